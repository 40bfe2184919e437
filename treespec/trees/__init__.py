"""Trees: the speculation tree, the growmap that stores it, the same tree as tensors, and where its tokens stand."""
