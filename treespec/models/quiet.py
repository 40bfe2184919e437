"""Switching off what libraries print by themselves for a while: progress bars, and what their native code writes past Python."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bar of these libraries inside the context. Bars that were on before are on again after it."""
    ours, hubs = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    gguf: Any = modeling_gguf_pytorch_utils  # it draws the one bar that these switches do not reach
    bar = gguf.tqdm
    gguf.tqdm = partial(bar, disable=True)
    if ours:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if hubs:
        disable_progress_bars()
    try:
        yield
    finally:
        gguf.tqdm = bar
        if ours:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # and with them the hub's
            if not hubs:
                disable_progress_bars()
        elif hubs:
            enable_progress_bars()


def bars_for_people() -> AbstractContextManager[None]:
    """Return a context without progress bars unless stderr is a terminal."""
    return nullcontext() if sys.stderr.isatty() else without_bars()


@contextmanager
def native_output_as_text() -> Iterator[None]:
    """Have what native code prints in this block, on stdout too, written to `sys.stderr` at its end, 4 KiB at most.

    It is dropped if the block raises: the exception says what is wrong, and what a library of Rust prints before it is a backtrace.
    The tokenizers library prints names from a tokenizer's files as they are, past whoever keeps control characters from a terminal.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    with tempfile.TemporaryFile() as file:
        kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        for descriptor in kept:
            os.dup2(file.fileno(), descriptor)
        whole = False
        try:
            yield
            whole = True
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            text = file.read(4096).decode(errors="replace")
            if text and whole and sys.stderr is not None:
                sys.stderr.write(text)
