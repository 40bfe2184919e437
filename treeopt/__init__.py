"""treeopt: which speculation tree to run, from measured acceptance and latency to the fastest tree.

`treeopt.profiles` holds what was measured, `treeopt.profiling` measures it, `treeopt.optimizer` finds the tree. How a
tree is run is the business of `treespec`.
"""

__version__ = "0.1.0"
