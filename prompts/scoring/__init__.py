"""Prompts and a model → log-probabilities [examples, labels]."""
