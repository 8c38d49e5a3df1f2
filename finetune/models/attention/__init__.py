"""Attention for rows that stand in one line, and for CPUs."""
