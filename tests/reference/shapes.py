"""The shapes of the trees that Sequoia's scripts and the study that follows them ran, by the branches of every level's nodes."""

from treespec.trees.tree import SpeculationTree

SHAPES = {
    "demo_tree": SpeculationTree.chain(3),
    "8-chain": SpeculationTree.chain(7),
    "4x8-tree": SpeculationTree.k_chains(4, 8),
    "8x8-tree": SpeculationTree.k_chains(8, 8),
    "A100-CNN-68m-13b-stochastic-S16": SpeculationTree.from_branches([[4], [3, 1, 1, 0], [2, 1, 0, 1, 0], [1, 0, 0, 0], [1]]),
    "68m_7b-64": SpeculationTree.from_branches(
        [
            [9],
            [7, 2, 1, 1, 1, 1, 1, 0, 0],
            [5, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0],
            [4, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0],
            [2, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0],
            [2, 1, 1, 1, 1, 1, 0],
        ]
    ),
    "A100-OpenWebText-68m-7b-stochastic": SpeculationTree.from_branches(
        [
            [19],
            [12, 4, 3, 2, *[1] * 8, 0, 0, 0, 1, 0, 0, 0],
            [9, 3, 2, *[1] * 7, 0, 0, 3, 1, 1, 0, 2, 1, 0, 1, 0, *[1] * 5, 0, 0, 0, 0],
            [6, 2, 1, 1, 1, 1, 0, 0, 0, 2, 1, 0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 2, 1, 0, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0],
            [4, 1, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0],
        ]
    ),
}
