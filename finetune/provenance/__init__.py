"""Whose text was used: marks in one's own texts and tests of models for them, overlap, licences."""
