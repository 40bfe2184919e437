"""Tilings of tree attention: the blocks of rows, the tiles of slots, and the split of a head's slots over programs.

TILINGS is the whole choice, with the measurement that made each: the first line whose condition holds is used. Only shapes decide, because
launches are captured. The device decides what depends on the length, within the limits chosen here (`Short`, `Tiling.unsplit_tiles`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import triton

from treespec.kernels.device import Gpu

MAX_SPLITS = 16


@dataclass(frozen=True)
class Short:
    """Tiles for short contexts: some of the programs take all rows, in taller blocks, and the others have nothing to do."""

    max_slots: int
    """These tiles are used for up to this many slots, committed ones and the tree's own. The device decides, since it knows the number."""
    rows: int = 64
    slots: int = 64
    stages: int = 3


@dataclass(frozen=True)
class Tiling:
    """The sizes of the blocks of rows and the tiles of slots."""

    rows: int
    """Rows of a block; in TILINGS the most that a block has."""
    slots: int
    """Slots in a tile; 128 at most, which are two columns of ancestor bits."""
    warps: int
    stages: int
    occupancy: int = 2
    """Programs that run at once on one multiprocessor, if there are enough of them."""
    unsplit_tiles: int = 1
    """Up to this many tiles stay with one program (no split); the device decides."""
    short: Short | None = None
    """The tiles to use in short contexts instead, without splits."""


@dataclass(frozen=True)
class Work:
    """The work that is cut into tiles: `rows` (nodes times query heads per K/V head) that see up to `reach` slots of `kv_heads` heads."""

    rows: int
    dim: int
    float32: bool
    kv_heads: int
    reach: int
    gpu: Gpu

    @property
    def height(self) -> int:
        """The rows that tensor cores multiply: a power of two, 16 or more."""
        return max(16, int(triton.next_power_of_2(self.rows)))

    def fills(self, rows: int) -> bool:
        """Return whether several blocks of so few rows fill the device in one wave, and their caches are small enough for all to read them."""
        blocks = triton.cdiv(self.rows, rows)
        programs, multiprocessors = blocks * self.kv_heads, self.gpu.multiprocessors
        return blocks > 1 and multiprocessors // 3 <= programs <= multiprocessors and self.reach <= (1536 if blocks <= 4 else 512)

    def fills_unsplit(self, plan: Tiling) -> bool:
        """Return whether a tiling fills seven eighths of the device without splits."""
        programs = triton.cdiv(self.rows, plan.rows) * self.kv_heads
        tiles = triton.cdiv(self.reach, plan.slots)
        return programs >= self.gpu.multiprocessors * 7 // 8 and choose_splits(programs, tiles, plan, self.gpu) == 1


class Choice(NamedTuple):
    """One line of TILINGS."""

    when: Callable[[Work], bool]
    tiling: Tiling
    log: str
    """The entry of benchmarks/log/attention.md, by its first words, or why there is none."""


SPILLS = "Not measured: the largest tiles that compile with almost no spilled registers."
TALL = Tiling(128, 64, 8, 3, occupancy=1, unsplit_tiles=8)
TILINGS = (
    # float32, which models run in on the way to other types only
    Choice(lambda work: work.float32 and work.dim > 128, Tiling(32, 16, 8, 2), SPILLS),
    Choice(lambda work: work.float32, Tiling(32, 32, 8, 2), SPILLS),
    # long heads, and short ones
    Choice(lambda work: work.dim > 128 and work.height > 32, Tiling(64, 32, 8, 3), SPILLS),
    Choice(lambda work: work.dim > 128, Tiling(32, 32, 4, 3), SPILLS),
    Choice(lambda work: work.dim <= 64 and work.height == 16, Tiling(16, 32, 2, 3, occupancy=1), "Kept: 64 nodes with ungrouped heads"),
    Choice(lambda work: work.dim <= 64, Tiling(64, 64, 4, 3, occupancy=1), "Kept: up to 16 rows are split"),
    # heads of 65 to 128: small caches in one launch, where low blocks fill the device
    Choice(lambda work: work.fills(16), Tiling(16, 128, 4, 3, unsplit_tiles=12, short=Short(512)), "Kept: in caches of 513 to 1,536 slots"),
    Choice(lambda work: work.fills(32), Tiling(32, 128, 4, 3, unsplit_tiles=12, short=Short(768)), "Kept: in caches of 513 to 1,536 slots"),
    # few rows; then many, which fill the device; then whatever needs splits
    Choice(lambda work: work.height < 64, Tiling(32, 64, 4, 3, occupancy=1), "Kept: up to 16 rows are split"),
    Choice(lambda work: work.height >= 128 and work.fills_unsplit(TALL), TALL, "Kept: tiles of 128 rows and 8 warps"),
    Choice(
        lambda work: work.height == 64 or work.reach < 3072,
        Tiling(64, 64, 4, 4, occupancy=1, unsplit_tiles=8),
        "Kept: stages and splits chosen by whole passes",
    ),
    Choice(lambda work: True, Tiling(64, 64, 4, 3, occupancy=2, unsplit_tiles=8), "Kept: beyond 3,072 slots, 64 rows"),
)
"""Measured on an H100 and an H200."""


@lru_cache(1024)  # a launch asks again for the same shapes
def choose_tiling(rows: int, dim: int, dtype: torch.dtype, kv_heads: int, reach: int, gpu: Gpu | None = None) -> Tiling:
    """Return tiles for `rows` (nodes times query heads per K/V head) that see up to `reach` slots of each of `kv_heads` heads.

    Their stages fit into the shared memory of a multiprocessor.
    """
    work = Work(rows, dim, dtype == torch.float32, kv_heads, reach, gpu or Gpu())
    plan = next(choice.tiling for choice in TILINGS if choice.when(work))
    plan = replace(plan, rows=min(plan.rows, work.height))
    width = max(16, int(triton.next_power_of_2(dim))) * dtype.itemsize

    def stages(tiles: Tiling | Short) -> int:
        return max(1, min(tiles.stages, (work.gpu.shared_bytes - tiles.rows * width) // (2 * tiles.slots * width)))

    return replace(plan, stages=stages(plan), short=plan.short and replace(plan.short, stages=stages(plan.short)))


def choose_splits(programs: int, tiles: int, plan: Tiling, gpu: Gpu | None = None) -> int:
    """Return the number of parts to split at most `tiles` tiles of slots into, if `programs` programs run for each part."""
    room = plan.occupancy * (gpu or Gpu()).multiprocessors
    return 1 if tiles <= plan.unsplit_tiles else max(1, min(room // programs, MAX_SPLITS, tiles))
