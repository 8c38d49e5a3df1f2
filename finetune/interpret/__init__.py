"""A trained model → what one can look at: attention, positions, embeddings, gradients."""
