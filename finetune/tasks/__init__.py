"""What there is to learn from rows with answers. Knows no trainer."""
