"""Triton kernels. Each has a plain PyTorch twin, which defines its result. They are imported only if a model runs on CUDA."""
