"""Triton kernels, each beside a plain PyTorch twin that defines it. Imported only where models run on CUDA."""
