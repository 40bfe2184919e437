"""The kernel against its twin, and the twin against softmax as it is written in a textbook."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from treespec.kernels.ancestors import pack, reference_pack
from treespec.kernels.attention import reference_attention, tree_attention
from treespec.kernels.attention_tiles import MAX_SPLITS, Short, Tiling, choose_splits, choose_tiling
from treespec.kernels.device import Gpu
from treespec.trees.tree import SpeculationTree

BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""On ||out - exact|| / ||exact||."""
HIDDEN = 3e4


def random_tree(size: int, seed: int) -> SpeculationTree:
    draw = random.Random(seed)
    return SpeculationTree.from_parents([-1, *(draw.randrange(node) for node in range(1, size))])


TREES = {
    "root": SpeculationTree.chain(0),
    "chain": SpeculationTree.chain(6),
    "binary": SpeculationTree.k_ary(2, 3),
    "random": random_tree(23, 0),
}


@dataclass(frozen=True)
class Case:
    query: Tensor
    keys: Tensor
    values: Tensor
    length: Tensor
    visible: Tensor
    depths: Tensor

    def run(self, **options: Any) -> Tensor:
        return tree_attention(self.query, self.keys, self.values, self.length, self.visible, **self.options(options))

    def exact(self, **options: Any) -> Tensor:
        wide = (each.double() for each in (self.query, self.keys, self.values))
        return reference_attention(*wide, self.length, self.visible, **self.options(options))

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"scale": self.query.shape[2] ** -0.5, "depths": self.depths if "window" in given else None} | given


def a_case(
    device: str,
    tree: SpeculationTree,
    prefix: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    capacity: int = 200,
    dtype: torch.dtype = torch.float16,
) -> Case:
    """Random queries, keys and values; NaN in the slots beyond the tree; the query a view of [n, heads, dim]."""
    torch.manual_seed(prefix + 1000 * tree.size)
    query = torch.randn(tree.size, heads, dim)
    keys = torch.randn(kv_heads, capacity, dim)
    values = torch.randn(kv_heads, capacity, dim)
    keys[:, prefix + tree.size :] = values[:, prefix + tree.size :] = torch.nan
    return Case(
        query.to(device, dtype).transpose(0, 1),
        keys.to(device, dtype),
        values.to(device, dtype),
        torch.tensor([prefix], device=device),
        torch.tensor(tree.ancestor_mask, device=device),
        torch.tensor(tree.depths, device=device),
    )


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def agree(case: Case, **options: Any) -> Tensor:
    found = case.run(**options)
    exact = case.exact(**{name: value for name, value in options.items() if name != "splits"})
    assert found.shape == exact.shape
    assert found.dtype == case.query.dtype
    assert found.is_contiguous()
    assert error(found, exact) < BOUNDS[found.dtype]
    return found


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated holds NaN, so that an element that is not written shows."""
    empty: Callable[..., Tensor] = torch.empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        out = empty(*size, **options)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)


# -- the twin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_the_twin_is_attention_one_node_and_head_at_a_time(window: int | None, cap: float | None) -> None:
    tree, prefix = TREES["binary"], 7
    case = a_case("cpu", tree, prefix, dim=3, heads=4, kv_heads=2, dtype=torch.float64)
    found = case.exact(scale=0.3, window=window, depths=case.depths, cap=cap)
    for node in range(tree.size):
        slots = [j for j in range(prefix) if window is None or prefix + tree.depths[node] - j < window]
        slots += [prefix + j for j in range(tree.size) if tree.ancestor_mask[node, j]]
        for head in range(4):
            keys, values = case.keys[head // 2, slots], case.values[head // 2, slots]
            scores = [0.3 * float(case.query[head, node] @ key) for key in keys]
            weights = [math.exp(score if cap is None else cap * math.tanh(score / cap)) for score in scores]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            torch.testing.assert_close(found[node, head], mean)


# -- the kernel ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("cap", [0.2, 3.0, 50.0])
def test_capped_scores(device: str, cap: float, dtype: torch.dtype) -> None:
    """Also where scores are far beyond the cap, and behind a window."""
    case = a_case(device, TREES["random"], 70, dtype=dtype)
    agree(case, cap=cap, splits=3)
    agree(case, cap=cap, window=9)
    agree(replace(case, query=50 * case.query), cap=cap)
    wrong = case.run() if cap < 1 else case.run(cap=0.2)
    assert error(wrong, case.exact(cap=cap)) > 20 * BOUNDS[torch.float16]


@pytest.mark.parametrize("prefix", [0, 1, 63, 64, 65, 130])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_every_length(device: str, tree: SpeculationTree, prefix: int) -> None:
    agree(a_case(device, tree, prefix))


@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize("prefix", [0, 63, 150])
def test_splits_and_masks_of_no_tree(device: str, splits: int, prefix: int) -> None:
    case = a_case(device, TREES["random"], prefix, dtype=torch.float32)
    case.visible.copy_((torch.rand(23, 23) < 0.4) | torch.eye(23, dtype=torch.bool))
    agree(case, splits=splits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_dims(device: str, dim: int, dtype: torch.dtype) -> None:
    agree(a_case(device, TREES["chain"], 70, dim=dim, dtype=dtype), splits=2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (2, 1), (8, 2), (8, 1), (6, 2), (14, 2)])
def test_groups(device: str, heads: int, kv_heads: int) -> None:
    agree(a_case(device, TREES["random"], 40, heads=heads, kv_heads=kv_heads), splits=2)


@pytest.mark.parametrize(("size", "dtype"), [(33, torch.float16), (150, torch.float16), (40, torch.float32)])
def test_several_blocks_of_rows(device: str, size: int, dtype: torch.dtype) -> None:
    agree(a_case(device, random_tree(size, 1), 20, dtype=dtype))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("window", "prefix"), [(1, 70), (3, 70), (64, 130), (68, 130), (5, 0), (1000, 70)])
def test_windows(device: str, window: int, prefix: int, splits: int) -> None:
    agree(a_case(device, TREES["random"], prefix), window=window, splits=splits)


def test_a_window_reads_no_tile_before_it(device: str) -> None:
    case = a_case(device, TREES["chain"], 150)
    case.keys[:, :64] = case.values[:, :64] = torch.nan
    found = case.run(window=20)
    case.keys[:, :64] = case.values[:, :64] = 0
    assert error(found, case.exact(window=20)) < BOUNDS[found.dtype]


def test_a_level_sees_its_ancestors_through_a_slice_of_the_mask(device: str) -> None:
    case, level = a_case(device, TREES["binary"], 61), slice(7, 15)
    mask = torch.zeros(31, 57, dtype=torch.bool, device=device)
    mask[3:18, 5:20] = case.visible
    agree(replace(case, query=case.query[:, level], visible=mask[3:18, 5:20][level], depths=case.depths[level]), window=30)


def test_strides(device: str) -> None:
    case = a_case(device, TREES["binary"], 100)
    plain = case.run()
    rows = torch.stack([case.keys.transpose(0, 1), case.values.transpose(0, 1)], dim=2)  # [capacity, kv_heads, 2, dim]
    keys, values = rows.unbind(2)
    other = replace(case, query=case.query.contiguous(), keys=keys.transpose(0, 1), values=values.transpose(0, 1))
    assert torch.equal(other.run(), plain)


def test_the_capacity_changes_nothing(device: str) -> None:
    small, large = (a_case(device, TREES["binary"], 50, capacity=capacity) for capacity in (65, 1000))
    large.keys[:, :65], large.values[:, :65] = small.keys, small.values
    assert torch.equal(small.run(splits=2), large.run(splits=2))


@pytest.mark.parametrize("slots", [32, 64, 128])
@pytest.mark.parametrize("size", [64, 65, 150])
def test_tiles_of_less_and_more_slots_than_a_word_has_bits(device: str, size: int, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treespec.kernels.attention.choose_tiling", lambda *_: Tiling(64, slots, 8, 2))
    for prefix in (0, 65):
        case = a_case(device, random_tree(size, 7), prefix, heads=2, kv_heads=1, dim=32, capacity=300)
        agree(case)
        agree(case, splits=2, window=70)


@pytest.mark.parametrize("window", [None, 100, 300])
@pytest.mark.parametrize("prefix", [0, 60, 130, 449])
def test_few_slots_of_a_large_cache_are_not_split(device: str, prefix: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many programs share the slots hangs on the length; how many are launched does not, and those too many write nothing."""
    plan = Tiling(16, 64, 4, 2, unsplit_tiles=2)
    assert choose_splits(2, 10, plan) == 10
    monkeypatch.setattr("treespec.kernels.attention.choose_tiling", lambda *_: plan)
    case = a_case(device, TREES["chain"], prefix, capacity=600)
    options = {} if window is None else {"window": window}
    found, alone = agree(case, **options), case.run(splits=1, **options)
    assert torch.equal(found, alone) == (min(prefix, window or prefix) <= 64 or window == 100)  # which 107 slots are not split for


@pytest.mark.parametrize(("size", "heads", "window"), [(33, 2, None), (50, 4, 90)])
@pytest.mark.parametrize("prefix", [49, 97, 98])
def test_few_slots_are_taken_in_taller_blocks(
    device: str, prefix: int, size: int, heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to `max_slots` slots as with taller tiles alone, beyond as with low ones alone, bit for bit."""
    case = a_case(device, random_tree(size, 3), prefix, heads=heads, kv_heads=2, dim=32, capacity=300)
    options: dict[str, Any] = {"splits": 1} if window is None else {"splits": 1, "window": window}
    low, short = Tiling(16, 32, 4, 2), Short(130, 64, 64, 2)
    found = []
    for plan in (replace(low, short=short), low, Tiling(64, 64, 4, 2)):
        monkeypatch.setattr("treespec.kernels.attention.choose_tiling", lambda *_, plan=plan: plan)
        found.append(agree(case, **options))
    assert torch.equal(found[0], found[2 if prefix + size <= short.max_slots else 1])
    assert not torch.equal(found[1], found[2])  # so that it shows which were taken


def test_what_no_node_sees_may_hold_anything_finite(device: str) -> None:
    case = a_case(device, TREES["binary"], 60)
    case.visible[:, 9] = False
    plain = case.run()
    case.keys[:, 69], case.values[:, 69] = HIDDEN, -HIDDEN
    assert torch.equal(case.run(), plain)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_node_that_sees_nothing_gets_zeros(device: str, splits: int) -> None:
    case = a_case(device, TREES["binary"], 0)
    case.visible[4] = False
    found = agree(case, splits=splits)
    assert not found[4].any()


def test_peaked_scores_neither_overflow_nor_vanish(device: str) -> None:
    case = a_case(device, TREES["binary"], 90, dtype=torch.float32)
    agree(case, scale=4.0, splits=3)


@pytest.mark.parametrize(("node", "slot"), [(9, 1), (9, 10), (0, 3), (14, 14)])
def test_one_wrong_bit_of_the_mask_shows_in_its_node_alone(device: str, node: int, slot: int) -> None:
    case = a_case(device, TREES["binary"], 5)
    exact = case.exact()
    case.visible[node, slot] ^= True
    found = case.run()
    others = torch.arange(len(exact), device=device) != node
    assert error(found[node], exact[node]) > 20 * BOUNDS[found.dtype]
    assert error(found[others], exact[others]) < BOUNDS[found.dtype]


def test_one_position_more_shows(device: str) -> None:
    case = a_case(device, TREES["binary"], 12)
    exact = case.exact()
    assert error(replace(case, length=case.length - 1).run(), exact) > 20 * BOUNDS[torch.float16]
    assert error(case.run(window=8), case.exact(window=9)) > 20 * BOUNDS[torch.float16]


def test_what_cannot_be_read_is_refused(device: str) -> None:
    case = a_case(device, TREES["binary"], 5)
    with pytest.raises(ValueError, match="stride 1"):
        replace(case, keys=case.keys.transpose(1, 2).contiguous().transpose(1, 2)).run()
    with pytest.raises(ValueError, match=r"keys are \[2, 200, 64\] and values \[2, 200, 32\]; .* use the model's own attention"):
        replace(case, values=case.values[:, :, :32]).run()
    with pytest.raises(ValueError, match="stride 1"):
        replace(case, query=case.query.transpose(1, 2).contiguous().transpose(1, 2)).run()


def test_a_cache_that_is_too_small_is_noticed_in_debug_mode(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host does not know the length; see `CacheBudget` for who keeps the rule."""
    if device == "cuda":
        pytest.skip("an assertion on the device takes the process's CUDA context with it")
    from triton.runtime import interpreter

    case = a_case(device, TREES["binary"], 185)  # 15 nodes, 200 slots
    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True))
    agree(case)
    with pytest.raises(interpreter.InterpreterError, match="length \\+ m is larger than the capacity of the cache"):
        replace(case, length=case.length + 1).run()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 64), (33, 65), (5, 200), (64, 64), (70, 1024)])
def test_bits_are_what_each_node_sees(device: str, n: int, m: int) -> None:
    """In whatever order the flags lie, and with nothing in the bits that no slot has."""
    flags = torch.rand(m, n, generator=torch.Generator().manual_seed(n + m)).to(device) < 0.5
    whole = torch.zeros(m + 3, n, 2, dtype=torch.bool, device=device)
    whole[:m, :, 1] = flags
    exact = [[sum(int(flags[64 * w + b, row]) << b for b in range(min(64, m - 64 * w))) for w in range(-(-m // 64))] for row in range(n)]
    signed = [[word - (1 << 64) * (word >> 63) for word in row] for row in exact]
    for visible in (flags.T, flags.T.contiguous(), whole[:m, :, 1].T):
        for made in (pack(visible), reference_pack(visible)):
            assert (made.slots, made.words.tolist()) == (m, signed)


def test_a_mask_may_come_packed_and_of_any_strides(device: str) -> None:
    case = a_case(device, TREES["random"], 70)
    wanted = case.run()
    assert torch.equal(replace(case, visible=case.visible.T.contiguous().T).run(), wanted)
    packed = tree_attention(case.query, case.keys, case.values, case.length, pack(case.visible), scale=case.query.shape[2] ** -0.5)
    assert torch.equal(packed, wanted)
    with pytest.raises(ValueError, match="pass depths"):
        case.run(window=4, depths=None)
    with pytest.raises(ValueError, match=r"scale 0\.0 is not positive"):
        case.run(scale=0.0)


# -- how it is launched -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("programs", [1, 2, 8, 32, 64, 98, 99, 132, 1000])
@pytest.mark.parametrize("tiles", [1, 5, 512])
@pytest.mark.parametrize("rows", [16, 64])
def test_splits_fill_the_device_and_have_tiles_to_take(programs: int, tiles: int, rows: int) -> None:
    plan = choose_tiling(rows, 128, torch.float16, 8, 4096)
    room = plan.occupancy * Gpu().multiprocessors
    splits = choose_splits(programs, tiles, plan)
    assert 1 <= splits <= min(MAX_SPLITS, tiles)
    assert splits == 1 or (programs * splits <= room and tiles > plan.unsplit_tiles)
    if programs <= room and tiles > plan.unsplit_tiles and splits not in (MAX_SPLITS, tiles):
        assert programs * splits > room / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_tiles_are_powers_of_two_that_the_tensor_cores_take(dim: int, dtype: torch.dtype) -> None:
    for rows in (1, 16, 17, 33, 65, 129, 8192):
        for reach in (64, 4096):
            plan = choose_tiling(rows, dim, dtype, 8, reach)
            assert plan.rows in (16, 32, 64, 128)
            assert plan.rows < 2 * max(rows, 16)


def test_tall_tiles_only_where_they_fill_the_device_and_add_no_splits() -> None:
    def tall(rows: int, kv_heads: int, reach: int) -> bool:
        return choose_tiling(rows, 128, torch.float16, kv_heads, reach).rows == 128

    assert tall(512, 32, 700)  # no splits
    assert tall(2048, 8, 4160)
    assert not tall(256, 8, 4160)  # these would split what low tiles, two programs on a multiprocessor, split as well
    assert choose_tiling(256, 128, torch.float16, 8, 4160).occupancy == 2
    assert not tall(256, 8, 320)  # too few tiles of slots to split
    assert not tall(256, 8, 1064)
    assert not tall(256, 32, 1300)  # low tiles fill the device unsplit
    assert not tall(64, 8, 4160)


def test_low_blocks_only_where_they_fill_the_device_and_share_few_slots() -> None:
    def rows_of(rows: int, kv_heads: int, reach: int) -> int:
        plan = choose_tiling(rows, 128, torch.float16, kv_heads, reach)
        programs, tiles = triton.cdiv(rows, plan.rows) * kv_heads, triton.cdiv(reach, plan.slots)
        assert plan.rows >= 64 or rows <= plan.rows or choose_splits(programs, tiles, plan) == 1
        return plan.rows

    assert [rows_of(64, 32, reach) for reach in (256, 512, 513, 1536, 1537)] == [16, 16, 16, 16, 64]
    assert choose_splits(32, 8, choose_tiling(64, 128, torch.float16, 32, 512)) == 1
    assert [rows_of(256, 8, reach) for reach in (256, 512, 513)] == [16, 16, 64]
    assert rows_of(128, 32, 256) == 32
    assert rows_of(256, 32, 256) == 64  # these fill it already
    assert rows_of(64, 8, 256) == 64  # 32 programs would not


def test_the_length_decides_about_taller_blocks_not_the_cache() -> None:
    plans = [choose_tiling(64, 128, torch.float16, 32, reach) for reach in (256, 1536)]
    assert plans[0] == plans[1]
    assert plans[0].short == Short(512, rows=64)
    assert choose_tiling(1, 128, torch.float16, 32, 256).short is None


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_stages_fit_into_the_shared_memory_of_smaller_devices(dim: int) -> None:
    for rows in (1, 64, 512):
        for shared in (48_000, 90_000, 209_000):
            plan, width = choose_tiling(rows, dim, torch.float16, 32, 500, Gpu(shared_bytes=shared)), 2 * dim
            for tiles in (plan, plan.short or plan):
                assert tiles.stages == 1 or tiles.rows * width + tiles.stages * 2 * tiles.slots * width <= shared
            assert plan.stages <= choose_tiling(rows, dim, torch.float16, 32, 500).stages


# -- on a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1, 7, 64, 300, 1024])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (14, 2, 64), (32, 32, 96), (8, 4, 256), (16, 2, 128)])
def test_large(device: str, heads: int, kv_heads: int, dim: int, size: int, dtype: torch.dtype) -> None:
    for prefix in (0, 300, 777, 8192 - size):
        agree(a_case(device, random_tree(size, 2), prefix, heads=heads, kv_heads=kv_heads, dim=dim, capacity=8192, dtype=dtype))
    for prefix in (0, 101, 300):
        agree(a_case(device, random_tree(size, 2), prefix, heads=heads, kv_heads=kv_heads, dim=dim, capacity=size + 301, dtype=dtype))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [5, 64, 300])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_large_windows(device: str, dim: int, size: int, dtype: torch.dtype) -> None:
    for window in (33, 1024, 4096):
        agree(a_case(device, random_tree(size, 3), 5000, heads=8, dim=dim, capacity=8192, dtype=dtype), window=window)


@pytest.mark.gpu
def test_a_long_cache_of_strides_beyond_32_bits(device: str) -> None:
    storage = torch.zeros(32768, 1, 66_000, dtype=torch.float16, device=device)  # 2.2e9 elements
    case = a_case(device, TREES["binary"], 32000, heads=4, kv_heads=1, capacity=32768)
    keys, values = storage[:, :, :64], storage[:, :, 64:128]
    keys.copy_(case.keys.transpose(0, 1))
    values.copy_(case.values.transpose(0, 1))
    far = replace(case, keys=keys.transpose(0, 1), values=values.transpose(0, 1))
    assert torch.equal(far.run(), case.run())


@pytest.mark.gpu
@pytest.mark.parametrize(("kv_heads", "dim", "capacity", "late"), [(2, 64, 4096, 3000), (32, 128, 1500, 1200)])
def test_a_captured_graph_follows_length_and_mask(
    device: str, kv_heads: int, dim: int, capacity: int, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across the length from which on slots are split, or blocks are low."""
    monkeypatch.undo()
    heads = max(4, kv_heads)
    first, second = (
        a_case(device, random_tree(40, seed), prefix, heads=heads, kv_heads=kv_heads, dim=dim, capacity=capacity)
        for seed, prefix in ((4, 100), (5, late))
    )
    first.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = first.run()
    for case in (first, second):
        for name, value in vars(case).items():
            getattr(first, name).copy_(value)
        graph.replay()
        assert error(found, case.exact()) < BOUNDS[torch.float16]


@pytest.mark.gpu
def test_no_tree_needs_another_compilation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    a_case(device, random_tree(1, 6), 101).run(splits=3)
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **facts: compiled.append(facts["repr"]))
    for size in (2, 3, 5, 8):  # of 2 query heads per K/V head: 16 rows for all
        a_case(device, random_tree(size, 6), 100 + size).run(splits=3)
    assert compiled == []


def test_the_first_rows_of_given_memory(device: str) -> None:
    """`out` gets the result in its first rows; what lies behind is left as it is."""
    case = a_case(device, TREES["random"], 37)
    n, heads, dim = case.query.shape[1], case.query.shape[0], case.query.shape[2]
    room = torch.full((n + 3, heads, dim), 7.0, dtype=case.query.dtype, device=device)
    found = case.run(out=room)
    assert found is room
    assert torch.equal(found[:n], case.run())
    assert bool((found[n:] == 7).all())
    for wrong in (room[: n - 1], room.double(), room.transpose(1, 2), room[:, :1]):
        with pytest.raises(ValueError, match=f"pass a contiguous .* \\[{n} or more"):
            case.run(out=wrong)
