"""Trees: the speculation tree, the growmap that stores it, the same tree as tensors, and the places of its tokens."""
