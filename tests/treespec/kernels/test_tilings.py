"""Tables of tilings: every line says what measured it, is of use, and follows the device that it runs on."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from treespec.kernels import attention_tiles, product_tiles
from treespec.kernels.attention_tiles import choose_tiling
from treespec.kernels.device import Gpu, gpu_of
from treespec.kernels.product_tiles import linear_tiling, qkv_tiling

LOG = Path(__file__).parents[3] / "benchmarks" / "log"
TABLES = {
    "TILINGS": (attention_tiles.TILINGS, "attention.md"),
    "LINEAR": (product_tiles.LINEAR, "products.md"),
    "QKV": (product_tiles.QKV, "products.md"),
}
SMALL = Gpu(multiprocessors=58, shared_bytes=90_000)
CHOOSERS = (choose_tiling, linear_tiling, qkv_tiling)
DTYPES = (torch.float16, torch.float32)


def entries(page: str) -> str:
    return re.sub(r"\s+", " ", (LOG / page).read_text())


@pytest.mark.parametrize(("table", "page"), TABLES.values(), ids=TABLES.keys())
def test_every_line_names_an_entry_of_the_log_or_says_why_there_is_none(table: tuple[Any, ...], page: str) -> None:
    for choice in table:
        assert choice.log.startswith("Not measured: ") or f"- **{choice.log}" in entries(page), choice.log


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What was chosen before, so that changed tables show, and changes do not stay."""
    for each in CHOOSERS:
        each.cache_clear()
    yield
    for each in CHOOSERS:
        each.cache_clear()


def used(table: str, monkeypatch: pytest.MonkeyPatch, choose: Any) -> set[int]:
    """The lines of a table that are chosen while `choose` runs."""
    module, (choices, _) = attention_tiles if table == "TILINGS" else product_tiles, TABLES[table]
    found: set[int] = set()

    def watched(line: int, when: Any) -> Any:
        def asked(work: Any) -> bool:
            return bool(when(work)) and not found.add(line)  # type: ignore[func-returns-value]

        return asked

    monkeypatch.setattr(module, table, tuple(choice._replace(when=watched(line, choice.when)) for line, choice in enumerate(choices)))
    choose()
    return found


def test_every_line_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention() -> None:
        for rows in (1, 16, 64, 128, 256, 2048):
            for dim in (64, 128, 256):
                for kv_heads in (2, 8, 32):
                    for reach in (256, 4096):
                        for dtype in DTYPES:
                            choose_tiling(rows, dim, dtype, kv_heads, reach)

    def linear() -> None:
        for rows in (1, 64):
            for columns in (576, 1024, 3072, 4096, 6144, 11_008, 12_288, 32_000):
                for inner in (576, 4096, 11_008):
                    for dtype in DTYPES:
                        linear_tiling(rows, columns, inner, False, dtype)
                        linear_tiling(rows, columns, inner, True, dtype)

    def qkv() -> None:
        for rows in (1, 64):
            for heads in (15, 48, 96):
                for dtype in DTYPES:
                    qkv_tiling(rows, heads, 128, 4096, dtype)

    for table, choose in (("TILINGS", attention), ("LINEAR", linear), ("QKV", qkv)):
        assert used(table, monkeypatch, choose) == set(range(len(TABLES[table][0]))), table


def test_other_devices_get_tiles_that_fit_into_them() -> None:
    for rows in (1, 64):
        for columns in (4096, 11_008):
            plan = linear_tiling(rows, columns, 4096, True, torch.float16, SMALL)
            tiles = -(-columns // plan.columns)
            assert tiles * plan.splits >= SMALL.multiprocessors * 8 // 11
            assert plan.stages == 3 or plan.stages * plan.inner * 2 * (2 * plan.columns + 16) <= SMALL.shared_bytes
        assert qkv_tiling(rows, 96, 128, 4096, torch.float16, SMALL) != qkv_tiling(rows, 96, 128, 4096, torch.float16)
    assert choose_tiling(64, 128, torch.float16, 32, 512).rows == 16
    assert choose_tiling(64, 128, torch.float16, 32, 512, SMALL).rows == 64  # 64 heads' blocks of 16 rows would be two waves


def test_the_device_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_of(torch.device("cpu")) == Gpu(132, 209_000)
    properties = SimpleNamespace(multi_processor_count=108, shared_memory_per_block_optin=166_912)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert gpu_of(torch.device("cuda", 77)) == Gpu(108, 150_220)
    gpu_of.cache_clear()
