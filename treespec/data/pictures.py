"""Pictures of prompts: they are checked when prompts are loaded, and made pixels when they are decoded. This module needs no torch."""

import hashlib
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treespec.data.chat import templated
from treespec.errors import DatasetError, ModelError, counted, reason_of
from treespec.files.reading import read_bytes

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Suffixes of the files that count as pictures in a folder of pictures."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats of PIL that a picture may have, whatever its file is called. PIL has others that run programs (EPS) or read other files."""

QUESTION = "What is in this picture?"
PROMPT = f"USER: <image>\n{QUESTION} ASSISTANT:"
"""The prompt for every picture that has none of its own, in LLaVA 1.5's form. A chat template has a form of its own."""

_MAX_BYTES = 256 << 20
_MOST_THIN = 50
"""Largest ratio of a picture's sides. Image processors scale the shorter side first and hold the whole longer one meanwhile."""


@dataclass(frozen=True)
class PictureShape:
    """The form in which a model reads a picture: one token, repeated `rows` times in a prompt, and a square of `pixels` x `pixels`."""

    token_id: int
    rows: int
    pixels: int


@dataclass(frozen=True)
class Picture:
    """A picture file that could be decoded when it was found, and the SHA-256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class PictureReader:
    """The parts of a model that read pictures: its tokenizer, its image processor (both of transformers) and its `PictureShape`."""

    tokenizer: Any
    processor: Any
    shape: PictureShape

    @property
    def digest(self) -> str:
        """SHA-256 of the settings by which pictures become pixels."""
        known = [self.processor.to_dict(), self.shape.token_id, self.shape.rows, self.shape.pixels]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()

    def ids(self, text: str, name: str, chat: bool = False) -> tuple[int, ...]:
        """Return the token ids of a prompt with one picture.

        The picture's token is repeated once per row of the picture; it stands in front if the text does not say where. With `chat`, the
        text is a user's message, which the tokenizer's chat template writes. Raises DatasetError beginning with `name` for more than one
        picture, ModelError for a tokenizer that does not know the token.
        """
        mark = self.tokenizer.convert_ids_to_tokens(self.shape.token_id)
        if mark is None:
            raise ModelError(
                f"the tokenizer has no token {self.shape.token_id}, which stands for a picture; use the tokenizer files that belong to the target"
            )
        count = text.count(mark)
        if count > 1:
            raise DatasetError(f"{name}: the prompt has {counted(count, 'time')} {mark}, but a row has one picture; write it once")
        if chat:
            parts = [{"type": "image"}, {"type": "text", "text": text.replace(mark, "").strip()}]
            whole = str(templated(self.tokenizer, [{"role": "user", "content": parts}], name, tokenize=False))
            if mark not in whole:
                raise DatasetError(f"{name}: the tokenizer's chat template has no place for a picture ({mark}); drop `chat`")
        else:
            whole = text if count else f"{mark}\n{text}"
        spread = whole.replace(mark, mark * self.shape.rows)
        ids = tuple(int(i) for i in self.tokenizer.encode(spread, add_special_tokens=not chat))
        if ids.count(self.shape.token_id) != self.shape.rows:
            raise ModelError(
                f"the tokenizer does not read {mark} as the one token {self.shape.token_id}; use the tokenizer files that belong to the target"
            )
        return ids

    def pixels(self, picture: Picture) -> "Tensor":
        """Return the pixels of a picture, float32 [1, 3, pixels, pixels]. Raises DatasetError for a file that changed since it was found."""
        content = _content(picture.path)
        if hashlib.sha256(content).hexdigest() != picture.sha256:
            raise DatasetError(f"{picture.path} changed while prompts were decoded; run again")
        return self.processed(_decoded(content, str(picture.path)))

    def processed(self, image: Any) -> "Tensor":
        """Return the pixels of an RGB image of PIL, float32 [1, 3, pixels, pixels]. Raises ModelError if the image processor does not fit the model."""
        try:
            found: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"]
        except Exception as e:  # whatever numpy and PIL raise for its settings
            raise ModelError(f"the image processor makes no pixels of a picture ({reason_of(e)}); correct preprocessor_config.json") from e
        wanted = (1, 3, self.shape.pixels, self.shape.pixels)
        if tuple(found.shape) != wanted:
            raise ModelError(
                f"the image processor makes {tuple(found.shape)} of a picture, but the model reads {wanted}; correct preprocessor_config.json"
            )
        return found


def find_picture(path: Path, name: str) -> Picture:
    """Return a picture file that can be decoded. Raises DatasetError beginning with `name`."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DatasetError(f"{name}: {path} is no file; name a picture")
    try:
        content = _content(path)
    except DatasetError as e:
        raise DatasetError(f"{name}: {e}") from e
    width, height = _decoded(content, name).size
    if max(width, height) > _MOST_THIN * min(width, height):
        raise DatasetError(f"{name}: the picture is {width} x {height} pixels, thinner than 1 to {_MOST_THIN}; cut or remove it")
    return Picture(path, hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    return read_bytes(path, limit=_MAX_BYTES, error=DatasetError)


def _decoded(content: bytes, name: str) -> Any:
    """Return the picture as an RGB image, turned as its camera says."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:  # whatever a damaged header raises: it says nothing of how the camera was held
                image.load()
                upright = image
            if upright.mode.startswith("I"):  # 16 bits a pixel, which converting would cut off at 255
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257).astype(np.uint8))
            return upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:  # what PIL raises for damaged files
        reason = f"it is none of {', '.join(_FORMATS)}" if isinstance(e, UnidentifiedImageError) else e
        raise DatasetError(f"{name}: the picture cannot be decoded ({reason}); repair or remove it") from e
