"""Triton kernels. Each has a plain PyTorch twin, which defines its result. They are imported only if a model runs on CUDA.

Reading order for newcomers; docs/kernels.md has a table of all kernels, and says how to change one.

1. `dependent_launch`: why a kernel starts while the one before it runs, and what it may read then. Every kernel calls `wait_for_inputs`.
2. `product`: the loop over streamed weights, and split-K; the operands that the products of a layer share. `product_tiles` cuts each
   product into tiles: tables of measured choices, of which the first that applies is used.
3. `linear`: the products of a layer, with norms, biases, gates and residuals in their epilogues. A pass begins with its `start`, or with that of
   `beside` where each token has a feature beside its embedding.
4. `qkv`: the product of queries, keys and values, whose epilogue rotates and stores them. `rotary` does that in a launch of its own.
5. `attention`: what tree attention computes, and how it is launched. `attention_kernel` has the kernels, `attention_tiles` the choices, and
   `ancestors` the bits that say which node sees which.
6. `pointwise`: what is left of a layer where cuBLAS multiplies, for more than 64 rows. It also moves accepted K/V rows. `peers` is its norm of a sum
   for a layer that GPUs of one host hold together: it reads the summands from their memory.
7. `vocabulary`: the largest logits of whole rows, and with them the children of a static tree. It sorts `keys` in registers. `growing`
   goes on from there to dynamic trees: the best candidates of each level, and in the end the best nodes of all.
8. `noise`, `distribution`, `racing`, `inverse`: random numbers, probabilities, and tokens drawn without and with replacement. They are what
   `vocabulary` is at temperature 0.
9. `residual`: the chances of sampled children, for all nodes of a tree at once. It has the mathematics of `decoding.verifiers.residual`.
10. `settling`: the end of a step, from the target's choices or chances to the committed tokens. `outcome` has the layout of its report.

`plain` and `plain_growing` hold the twins of what decoding calls, and `dispatch` decides for each call who computes; these need no Triton.
`device` has the context of a launch, and the limits of a GPU that tilings keep to.
"""
