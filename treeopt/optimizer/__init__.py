"""Optimizer: exact solvers over (size, depth bound), and the hardware-aware choice among the trees that they find."""

from treeopt.optimizer.search import FrontierPoint, OptimizationResult, optimize

__all__ = ["FrontierPoint", "OptimizationResult", "optimize"]
