"""Loading shows no progress bars where nobody watches, and leaves the process as it was."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from treespec.errors import ModelError
from treespec.models.loading import load_model
from treespec.models.quiet import native_output_as_text, without_bars


def shown() -> tuple[bool, bool]:
    """Whether transformers and the hub show theirs."""
    return logging.is_progress_bar_enabled(), not are_progress_bars_disabled()


@pytest.fixture(params=[(True, True), (True, False), (False, True), (False, False)], ids=str)
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool]]:
    """What is shown when a test begins."""
    kept, wanted = shown(), request.param

    def choose(ours: bool, hubs: bool) -> None:
        (logging.enable_progress_bar if ours else logging.disable_progress_bar)()  # type: ignore[no-untyped-call]
        (enable_progress_bars if hubs else disable_progress_bars)()

    choose(*wanted)
    assert shown() == wanted
    yield wanted
    choose(*kept)


def test_bars_are_off_within_and_then_as_before(before: tuple[bool, bool]) -> None:
    with without_bars():
        assert shown() == (False, False)
        with without_bars():
            assert shown() == (False, False)
        assert shown() == (False, False)
    assert shown() == before
    with pytest.raises(KeyError), without_bars():
        raise KeyError
    assert shown() == before


@pytest.mark.parametrize("watched", [True, False])
def test_loading_leaves_bars_as_they_were(
    watched: bool,
    before: tuple[bool, bool],
    tmp_path: Path,
    tiny_module: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_module("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    seen, load = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: (seen.append(shown()), load(*a, **k))[1])
    load_model(str(tmp_path))
    assert seen == [before if watched else (False, False)]
    assert shown() == before
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    assert shown() == before


def test_what_native_code_prints_comes_by_way_of_python(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizers library prints names from a tokenizer's files with `println!`."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with native_output_as_text():
        os.write(1, b"key \x1b[2J\n")
        os.write(2, b"panicked \xff\n")
    with pytest.raises(ZeroDivisionError), native_output_as_text():
        os.write(2, b"stack backtrace:\n")
        raise ZeroDivisionError
    assert written.getvalue() == "key \x1b[2J\npanicked \ufffd\n"
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")
