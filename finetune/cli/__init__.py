"""Command line and recipes → option classes. Imports none of what it tells of until it is asked for."""
