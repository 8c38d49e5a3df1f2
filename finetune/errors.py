"""Errors a user can mend. Knows nothing else."""


class InputError(ValueError):
    """Says what came, what was wanted and which flag mends it; scripts print it without a traceback."""
