"""Chains beside a tree: which ones are run, what they gave, and what the tree is worth beyond the fastest of them. No torch."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treespec.errors import GrowMapError, ProfileError, SettingsError, counted
from treespec.evaluation import figures
from treespec.evaluation.results import PromptResult
from treespec.tables import milliseconds, number
from treespec.trees.growmap import GrowMap
from treespec.trees.limits import MAX_SIZE
from treespec.trees.tree import SpeculationTree

CHAIN = "chain"
_ASKED = re.compile(rf"{CHAIN}(?::(\d{{1,6}}(?:,\d{{1,6}})*))?")
_SPEEDS = ("tokens_per_step", "seconds_per_token", "speedup")
Columns = dict[str, NDArray[np.float64]]


def chains_of(against: str | None, growmap: GrowMap | None) -> tuple[SpeculationTree, ...]:
    """Return the chains that a run is held against: none, "chain" for the growmap's best one, or "chain:3,5" for those of given depths.

    Raises SettingsError for another text, GrowMapError for a growmap that does not say which chain is best.
    """
    if against is None:
        return ()
    asked = _ASKED.fullmatch(str(against))
    if asked is None:
        raise SettingsError(
            f"`against` is {against!r:.40}, but it must be chain, for the best one, or chain:DEPTH, as in chain:4 or chain:3,5,8"
        )
    if asked[1] is not None:
        depths = tuple(dict.fromkeys(int(depth) for depth in asked[1].split(",")))
        if wrong := [depth for depth in depths if not 1 <= depth < MAX_SIZE]:
            raise SettingsError(f"`against` asks for a chain of depth {wrong[0]}, but a depth must be from 1 to {MAX_SIZE - 1:,}")
        return tuple(SpeculationTree.chain(depth) for depth in depths)
    if growmap is None:
        raise SettingsError(
            "`against` chain takes the best chain from a growmap, and there is none; pass `against` chain:DEPTH, as in chain:4"
        )
    depth = (growmap.metadata.get("best_chain") or {}).get("depth")
    if not depth:
        raise GrowMapError(
            "the growmap does not say which chain is best, as growmaps do that `treeopt grow` made with a latency profile; grow it again, or pass "
            "`against` chain:DEPTH, as in chain:4"
        )
    return (SpeculationTree.chain(depth),)


@dataclass(frozen=True)
class Beyond:
    """The worth of a tree beyond the fastest chain that ran beside it: the quotient of their tokens per second, over the same prompts."""

    depth: int
    """The depth of that chain."""
    ratio: float
    interval_95: tuple[float, float] | None
    """A paired interval: prompts are drawn again, each with what all ways gave on it, and in each draw the fastest chain is found anew."""


def chain_depths(results: Sequence[PromptResult]) -> tuple[int, ...]:
    """Return the depths of the chains that ran. Raises ProfileError if they are not the same for all prompts."""
    depths = {tuple(chain.depth for chain in result.chains) for result in results}
    if len(depths) > 1:
        raise ProfileError("not all results have the same chains")
    return depths.pop() if depths else ()


def chains_to_json(results: Sequence[PromptResult], columns: Columns) -> list[dict[str, Any]]:
    """Return the figures of each chain as plain data, with 95 % intervals over prompts. `columns` are those of the tree, [prompts]."""
    found = []
    for place, depth in enumerate(chain_depths(results)):
        own = _columns_of(results, place, columns)
        values = {name: figures.figure_of(own, getattr(figures, name)) for name in _SPEEDS}
        each = values["seconds_per_token"]
        mismatches = [result.chains[place].mismatch for result in results]
        found.append(
            {
                "depth": depth,
                "size": depth + 1,
                **values,
                "tokens_per_second": 1 / each if each else None,
                "intervals_95": {name: figures.interval_of(own, getattr(figures, name)) for name in _SPEEDS},
                "mismatches": sum(one is not None and not one.tie for one in mismatches),
                "ties": sum(one is not None and one.tie for one in mismatches),
            }
        )
    return found


def beyond_chains(results: Sequence[PromptResult], columns: Columns) -> Beyond | None:
    """Return what the tree is worth beyond the fastest chain; None without chains or steps."""
    depths = chain_depths(results)
    if not depths:
        return None
    all_columns = dict(columns)
    for place in range(len(depths)):
        all_columns |= {f"{name}_{place}": values for name, values in _columns_of(results, place, columns).items() if name in _OWN}

    def per_token(sums: figures.Sums) -> Any:
        every = [figures.seconds_per_token({name: sums[f"{name}_{place}"] for name in _OWN}) for place in range(len(depths))]
        return np.stack(every)

    def ratio(sums: figures.Sums) -> Any:
        return figures.ratio(per_token(sums).min(axis=0), figures.seconds_per_token(sums))

    value = figures.figure_of(all_columns, ratio)
    if value is None:
        return None
    fastest = int(per_token({name: column.sum() for name, column in all_columns.items()}).argmin())
    return Beyond(depths[fastest], value, figures.interval_of(all_columns, ratio))


_OWN = ("tokens", "steps", "seconds")


def _columns_of(results: Sequence[PromptResult], place: int, columns: Columns) -> Columns:
    """Return the columns of a chain: its own tokens, steps and seconds [prompts], and the baseline's."""
    rows = [(result.chains[place].tokens - 1, result.chains[place].steps, result.chains[place].seconds) for result in results]
    return columns | dict(zip(_OWN, np.array(rows, dtype=np.float64).T, strict=True))


def sentences(data: Mapping[str, Any]) -> list[str]:
    """Return the sentences about a tree and its chains, from the data of an evaluation: none where no chain ran."""
    beyond, chains = data.get("beyond_chain"), data.get("chains") or []
    said = [
        f"the chain of depth {chain['depth']} gave other tokens than autoregressive decoding in {counted(chain['mismatches'], 'output')}, by more than rounding"
        for chain in chains
        if chain["mismatches"]
    ]
    if beyond is None:
        return said
    named = f"the {'chain' if len(chains) == 1 else f'fastest of {len(chains)} chains, that'} of depth {beyond['depth']}"
    ratio, ends = beyond["ratio"], beyond["interval_95"]
    if ends is None:
        return [
            *said,
            f"the tree gave {ratio:.3f} x the tokens per second of {named}; one prompt says nothing of the error, so evaluate more",
        ]
    span = f"{ratio:.3f} x the tokens per second of {named} (95 % interval {ends[0]:.3f} to {ends[1]:.3f}, paired over {data['prompts']} prompts)"
    if ends[0] > 1:
        return [*said, f"beyond a chain, the tree is worth {100 * (ratio - 1):.1f} %: it gave {span}"]
    if ends[1] < 1:
        return [*said, f"the tree is worth nothing beyond a chain, which is faster: the tree gave {span}; run the chain"]
    return [*said, f"this run cannot tell the tree from a chain: it gave {span}, and the interval holds 1; evaluate more prompts"]


def rows_of(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row of speeds for each chain, as the table of an evaluation has them."""
    return [
        (
            f"chain of depth {chain['depth']}",
            number(chain["tokens_per_second"], 1),
            milliseconds(chain["seconds_per_token"], chain["intervals_95"]["seconds_per_token"]),
            number(chain["tokens_per_step"], 3, chain["intervals_95"]["tokens_per_step"]),
            number(chain["speedup"], 3, chain["intervals_95"]["speedup"]),
        )
        for chain in data.get("chains") or []
    ]
