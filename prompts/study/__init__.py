"""Many prompts on the same rows, compared."""
