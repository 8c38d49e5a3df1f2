"""Which way is worth it: every way of classifying the same unseen rows, at growing numbers of labels."""
