"""Switching off the progress bars of transformers and of the hub, which are on or off for the whole process, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
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
