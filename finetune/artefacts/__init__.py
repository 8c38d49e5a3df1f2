"""What a run leaves: its folder, its passport, its checkpoints. Knows no trainer."""
