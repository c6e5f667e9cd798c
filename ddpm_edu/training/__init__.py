"""Training: Algorithm 1 with what real runs need, recipes, and whole systems from nothing. Notebooks 04 to 09."""
