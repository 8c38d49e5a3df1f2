"""Prompting: asks a model that stays as it is, and measures the answers."""
