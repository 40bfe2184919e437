"""Offloading: a target whose layers stay in host memory and stream through a ring of buffers on the GPU."""
