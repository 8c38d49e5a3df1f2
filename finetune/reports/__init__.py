"""Figures → tables and plots. Knows no models."""
