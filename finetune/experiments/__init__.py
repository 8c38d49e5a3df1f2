"""One paper's figure each."""
