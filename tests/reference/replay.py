"""How many steps a tree needs for a known continuation, by following the text through the tree node by node."""

from collections.abc import Callable, Sequence

from treespec.trees.tree import SpeculationTree

Ranker = Callable[[tuple[int, ...], int], Sequence[int]]
"""(context, k) -> the draft's k most likely tokens."""


def replay(tree: SpeculationTree, prompt: Sequence[int], continuation: Sequence[int], rank: Ranker, gen_len: int) -> list[int]:
    """Accepted drafted tokens of every step; `continuation` is the target's, long enough to follow beyond `gen_len`."""
    text = [*prompt, *continuation]
    root = len(prompt)  # the first generated token comes from the prompt pass
    accepted = []
    while root - len(prompt) + 1 < gen_len:
        node, count = 0, 0
        while tree.children[node]:
            ranked = list(rank(tuple(text[: root + count + 1]), len(tree.children[node])))
            following = text[root + count + 1]
            if following not in ranked:
                break
            node = tree.children[node][ranked.index(following)]
            count += 1
        accepted.append(count)
        root += count + 1
    return accepted
