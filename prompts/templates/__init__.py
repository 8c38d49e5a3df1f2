"""Templates and words for labels, read and checked. Knows no models."""
