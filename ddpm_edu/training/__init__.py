"""Training: Algorithm 1 with what real runs need, recipes, whole systems. Notebooks 04 to 09."""
