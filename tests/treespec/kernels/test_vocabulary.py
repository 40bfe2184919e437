"""The largest logits of each row, against stable sorts, where ties are frequent and memory holds garbage beforehand."""

import pytest
import torch
from torch import Tensor

from treespec.kernels import vocabulary as kernels
from treespec.kernels.vocabulary import reference_top_tokens, reference_write_children, top_tokens, write_children

pytestmark = pytest.mark.usefixtures("poison")
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
INF, NAN = float("inf"), float("nan")


def quantised(rows: int, vocabulary: int, *, levels: int = 9, dtype: torch.dtype = torch.float32, device: str, seed: int = 0) -> Tensor:
    """Logits of few values, negative ones and both zeros among them, so that most of a row's largest are ties."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-levels, levels + 1, (rows, vocabulary), generator=generator) / 4
    sign = torch.randint(0, 2, (rows, vocabulary), generator=generator) * 2 - 1.0
    return torch.where(drawn == 0, drawn * sign, drawn).to(dtype).to(device)


def distinct(rows: int, vocabulary: int, *, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(rows * vocabulary)
    return (torch.randn(rows, vocabulary, generator=generator) * 5).to(dtype).to(device)


def agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same bits, but for the NaN's."""
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(0.0), other.nan_to_num(0.0))
        assert torch.equal(one.signbit() & ~one.isnan(), other.signbit() & ~other.isnan())


def sound(logits: Tensor, count: int) -> list[bool]:
    """Whether the largest logit of each row is finite, as decoding asks it."""
    return check(logits, count)[0][:, 0].isfinite().tolist()


def check(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    before, found = logits.clone(), top_tokens(logits, count)
    agree(found, reference_top_tokens(logits, count))
    assert torch.equal(logits.nan_to_num(0.0), before.nan_to_num(0.0))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 32, 64])
@pytest.mark.parametrize("vocabulary", [5, 1000, 1025])
def test_the_largest_come_first_and_ties_go_to_the_smaller_index(vocabulary: int, count: int, device: str) -> None:
    if count > vocabulary:
        with pytest.raises(ValueError, match="no more than the vocabulary's 5"):
            top_tokens(torch.zeros(1, vocabulary, device=device), count)
        count = vocabulary
    check(quantised(2, vocabulary, device=device, seed=count), count)
    check(distinct(1, vocabulary, dtype=torch.float32, device=device), count)


@DTYPES
@pytest.mark.parametrize("count", [1, 6, 40])
def test_every_type_at_the_size_of_a_model(dtype: torch.dtype, count: int, device: str) -> None:
    check(distinct(1, 32_000, dtype=dtype, device=device), count)
    check(quantised(1, 32_000, levels=9000, dtype=dtype, device=device), count)


@pytest.mark.parametrize("count", [1, 2, 24])
def test_all_logits_equal(count: int, device: str) -> None:
    logits = torch.tensor([[0.0], [-0.0], [-3.5]], device=device).expand(-1, 4099).contiguous()
    assert check(logits, count)[1].tolist() == [list(range(count))] * 3


@pytest.mark.parametrize("vocabulary", [5, 1000, 1025])
@DTYPES
def test_the_first_maximum(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    for logits in (quantised(3, vocabulary, dtype=dtype, device=device), distinct(3, vocabulary, dtype=dtype, device=device)):
        check(logits, 1)
    assert check(torch.tensor([[1.0, 2.0, -1.0, 2.0], [-1.0, -2.0, -1.0, -INF]], device=device), 1)[1].tolist() == [[1], [0]]


def test_both_zeros_tie(device: str) -> None:
    logits = torch.full((2, 100), -1.0, device=device)
    logits[0, 3], logits[0, 70], logits[0, 20] = -0.0, 0.0, 0.0
    logits[1, 3], logits[1, 70], logits[1, 20] = 0.0, -0.0, -0.0
    assert check(logits, 4)[1].tolist() == [[3, 20, 70, 0], [3, 20, 70, 0]]


@DTYPES
@pytest.mark.parametrize("count", [1, 3, 10])
def test_minus_infinity_is_a_logit_like_any_other(dtype: torch.dtype, count: int, device: str) -> None:
    """Fewer finite logits than asked for: the rest are -inf in order of index, and none from beyond the vocabulary."""
    logits = quantised(3, 1003, dtype=dtype, device=device)
    logits[0, 6:] = -INF
    logits[1] = -INF
    logits[1, 1002], logits[1, 500] = 1.0, -2.0
    logits[2, :1000] = -INF
    assert sound(logits, count) == [True] * 3


@DTYPES
@pytest.mark.parametrize(("count", "row", "place"), [(1, 0, 0), (1, 2, 1001), (2, 1, 777)])
def test_a_row_without_a_finite_largest_logit_is_not_sound(dtype: torch.dtype, count: int, row: int, place: int, device: str) -> None:
    """NaN of either sign is noticed alone, and comes before +inf."""
    for planted in (INF, NAN, -torch.tensor(NAN)):
        logits = quantised(3, 1002, dtype=dtype, device=device)
        logits[row, place] = planted
        assert sound(logits, count) == [each != row for each in range(3)]
        logits[row, 300] = INF
        check(logits, count)
    logits[row] = -INF
    assert sound(logits, count) == [each != row for each in range(3)]


def test_rows_any_distance_apart(device: str) -> None:
    """What stands right of a sliced view would win if it were read; so would the rows between those of a strided one."""
    logits = torch.full((6, 1500), 50.0, device=device)
    logits[::2, :1025] = quantised(3, 1025, device=device)
    for count in (1, 9):
        check(logits[::2, :1025], count)
        check(logits[:1, :1025].expand(2, -1), count)
        check(logits[4:, :1025].narrow(0, 0, 1), count)


@DTYPES
@pytest.mark.parametrize("count", [1, 2, 7])
def test_children_are_written_where_they_belong(dtype: torch.dtype, count: int, device: str) -> None:
    """Nothing else is: neither before the first child, nor behind the last, nor for a node without children."""
    logits = quantised(4, 1025, dtype=dtype, device=device)
    logits[3, 5] = INF
    children = torch.tensor([count, 0, 1, count], device=device)
    first = 3 + children.cumsum(0) - children
    found, expected = (torch.full((40,), -9, device=device) for _ in range(2))
    largest, wanted = (torch.zeros(4, device=device) for _ in range(2))
    write_children(logits, count, (first, children), found, largest)
    reference_write_children(logits, count, (first, children), expected, wanted)
    assert found.tolist() == expected.tolist()
    assert largest.tolist() == wanted.tolist()
    assert (found == -9).sum() == 40 - int(children.sum())
    assert largest.isfinite().tolist() == [True, True, True, False]


def test_a_planted_mistake_is_seen(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal logits swapped, in the result and by a kernel whose groups are too few."""
    logits = quantised(2, 1000, device=device)
    values, tokens = check(logits, 8)
    assert values[1, 2] == values[1, 3], "the case has a tie to swap"
    tokens[1, [2, 3]] = tokens[1, [3, 2]]
    with pytest.raises(AssertionError):
        agree((values, tokens), reference_top_tokens(logits, 8))
    monkeypatch.setattr(kernels, "grouping", lambda vocabulary, count_bits: (4, 5))  # 32 groups of 16 leave out half of the row
    with pytest.raises(AssertionError):
        check(distinct(2, 1000, dtype=torch.float32, device=device), 8)


def test_what_the_kernels_do_not_take(device: str) -> None:
    logits = torch.zeros(2, 100, device=device)
    for count in (0, 65, -1):
        with pytest.raises(ValueError, match=f"count is {count}; the kernels take 1 to 64"):
            top_tokens(logits, count)
    with pytest.raises(ValueError, match="pass rows that are contiguous"):
        top_tokens(logits.T, 1)
    with pytest.raises(ValueError, match="pass float16, bfloat16 or float32"):
        top_tokens(logits.double(), 1)
    with pytest.raises(ValueError, match="262,144 at most"):
        top_tokens(torch.zeros(1, 262_145, device=device), 1)
    for wrong in (logits[0], logits[:0], logits[:, :0]):
        with pytest.raises(ValueError, match="at least one of each"):
            top_tokens(wrong, 1)


def test_groups_cover_every_vocabulary_and_keep_the_sorts_short() -> None:
    for vocabulary in (1, 5, 16, 17, 1025, 32_000, 50_257, 128_256, 151_936, 262_144):
        for count_bits in range(7):
            group_bits, groups_bits = kernels.grouping(vocabulary, count_bits)
            assert vocabulary <= 1 << group_bits + groups_bits
            assert groups_bits >= count_bits
            assert (1 << groups_bits) + (1 << group_bits + count_bits) <= 8192


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "vocabulary"), [(64, 32_000), (4, 128_256), (300, 151_936), (1, 262_144), (7, 50_257)])
@DTYPES
def test_whole_vocabularies(rows: int, vocabulary: int, dtype: torch.dtype, device: str) -> None:
    for logits in (distinct(rows, vocabulary, dtype=dtype, device=device), quantised(rows, vocabulary, dtype=dtype, device=device)):
        for count in (1, 2, 8, 17, 32, 64):
            check(logits, count)


@pytest.mark.gpu
def test_a_captured_graph_follows_its_input(device: str) -> None:
    """Replayed over logits of which one row is sound, is not, and is again."""
    logits = distinct(16, 32_000, dtype=torch.float16, device=device)
    top_tokens(logits, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = top_tokens(logits, 8)
    for seed, planted in enumerate([0.0, NAN, 0.0, INF, 0.0]):
        logits.copy_(quantised(16, 32_000, dtype=torch.float16, device=device, seed=seed))
        logits[11, 31_999] = planted
        graph.replay()
        agree(found, reference_top_tokens(logits, 8))
        assert bool(found[0][11, 0].isfinite()) == (planted == 0.0)
