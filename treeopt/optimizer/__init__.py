"""Which tree is best: exact solvers over (size, depth bound), and the hardware-aware choice among their trees."""

from treeopt.optimizer.search import FrontierPoint, OptimizationResult, optimize

__all__ = ["FrontierPoint", "OptimizationResult", "optimize"]
