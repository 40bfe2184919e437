"""treeopt: find the speculation tree to run, from measured acceptance and latency to the fastest tree.

`treeopt.profiles` holds measurements, `treeopt.profiling` takes them, and `treeopt.optimizer` finds the tree. `treespec` runs it.
"""

__version__ = "0.1.0"
