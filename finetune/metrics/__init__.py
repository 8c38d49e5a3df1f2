"""Answers → figures and intervals. Knows no models."""
