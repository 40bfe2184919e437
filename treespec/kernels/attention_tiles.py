"""Tilings of tree attention: the blocks of rows, the tiles of slots, and the split of a head's slots over programs.

The choices were measured on an H100 and an H200 (benchmarks/log/attention.md). Only shapes decide here, because launches are captured. The device
decides what depends on the length, within the limits chosen here (`Few`, `Tiling.whole`).
"""

from dataclasses import dataclass, replace

import torch
import triton

from treespec.kernels.product import MULTIPROCESSORS, SHARED

MAX_SPLITS = 16


@dataclass(frozen=True)
class Few:
    """Tiles for few slots: some of the programs take all rows, in taller blocks, and the others have nothing to do."""

    most: int
    """These tiles are used for up to this many slots, committed ones and the tree's own. The device decides, since it knows the number."""
    rows: int = 64
    slots: int = 64
    stages: int = 3


@dataclass(frozen=True)
class Tiling:
    """The sizes of the blocks of rows and the tiles of slots."""

    rows: int
    slots: int
    """Slots in a tile; 128 at most, which are two words of ancestor bits."""
    warps: int
    stages: int
    together: int = 2
    """Programs that run together on one multiprocessor, if there are enough of them."""
    whole: int = 1
    """Up to this many tiles stay with one program (no split); the device decides."""
    few: Few | None = None
    """The tiles to use for few slots instead, without splits."""


def choose_tiling(rows: int, dim: int, dtype: torch.dtype, kv_heads: int, reach: int, shared: int = SHARED) -> Tiling:
    """Return tiles for `rows` (nodes times query heads per K/V head) that see up to `reach` slots of each of `kv_heads` heads.

    Their sizes spill almost no registers on Hopper (benchmarks/log/attention.md); their stages fit into `shared` bytes of a multiprocessor.
    """
    plan = _tiling(rows, dim, dtype, kv_heads, reach)
    width = max(16, int(triton.next_power_of_2(dim))) * dtype.itemsize

    def stages(tiles: Tiling | Few) -> int:
        return max(1, min(tiles.stages, (shared - tiles.rows * width) // (2 * tiles.slots * width)))

    return replace(plan, stages=stages(plan), few=plan.few and replace(plan.few, stages=stages(plan.few)))


def _tiling(rows: int, dim: int, dtype: torch.dtype, kv_heads: int, reach: int) -> Tiling:
    height = max(16, triton.next_power_of_2(rows))
    if dtype == torch.float32:
        return Tiling(min(height, 32), 16 if dim > 128 else 32, 8, 2)
    if dim > 128:
        return Tiling(min(height, 64), 32, 8 if height > 32 else 4, 3)
    if dim <= 64 and height == 16:
        return Tiling(16, 32, 2, 3, together=1)
    if dim <= 64:
        return Tiling(min(height, 64), 64, 4, 3, together=1)
    for low in (16, 32):  # one launch, where such blocks fill the device and all may read what K/V rows there are
        blocks = triton.cdiv(rows, low)
        if blocks > 1 and MULTIPROCESSORS // 3 <= blocks * kv_heads <= MULTIPROCESSORS and reach <= (1536 if blocks <= 4 else 512):
            return Tiling(low, 128, 4, 3, whole=12, few=Few(512 if low == 16 else 768))
    if height < 64:
        return Tiling(height, 64, 4, 3, together=1)
    if height == 64 or reach < 3072:
        usual = Tiling(64, 64, 4, 4, together=1, whole=8)
    else:  # one program multiplies while the other makes weights
        usual = Tiling(64, 64, 4, 3, together=2, whole=8)
    tall = Tiling(128, 64, 8, 3, together=1, whole=8)
    programs = triton.cdiv(rows, tall.rows) * kv_heads
    unsplit = programs >= MULTIPROCESSORS * 7 // 8 and choose_splits(programs, triton.cdiv(reach, tall.slots), tall) == 1
    return tall if height >= 128 and unsplit else usual


def choose_splits(programs: int, tiles: int, plan: Tiling) -> int:
    """Return the number of parts to split at most `tiles` tiles of slots into, if `programs` programs run for each part."""
    return 1 if tiles <= plan.whole else max(1, min(plan.together * MULTIPROCESSORS // programs, MAX_SPLITS, tiles))
