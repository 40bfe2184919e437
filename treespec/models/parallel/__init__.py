"""Tensor parallelism: a target whose weights are divided over the processes of one run, which a launcher such as torchrun starts.

torch.distributed carries the data. Every process takes the same steps with the same tokens, and holds its own part of the heads, of the inner
dimension of the MLPs and of the vocabulary's rows.
"""
