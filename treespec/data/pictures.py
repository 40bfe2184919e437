"""Pictures of prompts: they are checked when prompts are loaded, and made pixels when they are decoded. This module needs no torch."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treespec.data.chat import talk_of, templated
from treespec.data.encoding import encoded
from treespec.data.rows import Row
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError, ModelError, counted, reason_of
from treespec.files.kinds import kind_of
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
_MAX_PIXELS = 1 << 26
"""Largest picture that is decoded, which takes about 0.8 GB; a small file may claim any size."""
_MOST_SCANS = 100
"""Most scans of a progressive JPEG, each of which goes over the whole picture; encoders write about 10."""
_TIFF_TILE = (322, 323)
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

    def ids(self, text: str, name: str, chat: ChatOptions | None = None) -> tuple[int, ...]:
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
        if chat is not None:
            parts = [{"type": "image"}, {"type": "text", "text": text.replace(mark, "").strip()}]
            talk = talk_of(Row(name, messages=({"role": "user", "content": parts},)), chat)
            whole = templated(self.tokenizer, talk, name)
            if mark not in whole:
                raise DatasetError(f"{name}: the tokenizer's chat template has no place for a picture ({mark}); drop `chat`")
        else:
            whole = text if count else f"{mark}\n{text}"
        spread = whole.replace(mark, mark * self.shape.rows)
        ids = encoded(self.tokenizer, spread, name, special=chat is None)
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
    _decoded(content, name)
    return Picture(path, hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    return read_bytes(path, limit=_MAX_BYTES, error=DatasetError)


def _decoded(content: bytes, name: str) -> Any:
    """Return the picture as an RGB image, turned as its camera says. Its size is checked by its header, before it is decoded."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is below PIL's
            opened = Image.open(BytesIO(content), formats=_FORMATS)
        with opened as image:
            _check_size(*image.size, getattr(image, "tag_v2", {}), name)
            if image.format == "JPEG" and (scans := content.count(b"\xff\xda")) > _MOST_SCANS:  # in its data, another byte follows an ff
                raise DatasetError(f"{name}: the picture has {scans} scans, above the limit of {_MOST_SCANS}; save it anew, or remove it")
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:  # whatever a damaged header raises: it says nothing of how the camera was held
                image.load()
                upright = image
            if upright.mode.startswith("I"):  # 16 bits a pixel, which converting would cut off at 255
                upright = Image.fromarray((np.asarray(upright).clip(0, 65535) / 257).astype(np.uint8))
            return upright.convert("RGB")
    except (DatasetError, MemoryError):
        raise
    except Exception as e:  # whatever PIL raises for damaged files
        found = kind_of(content) if isinstance(e, UnidentifiedImageError) else None
        if found is not None and ";" in found:
            raise DatasetError(f"{name}: the file of the picture {found}") from e
        reason = f"it is none of {', '.join(_FORMATS)}" if isinstance(e, UnidentifiedImageError) else e
        raise DatasetError(f"{name}: the picture cannot be decoded ({reason}); repair or remove it") from e


def _check_size(width: int, height: int, tags: Mapping[int, Any], name: str) -> None:
    """Raise DatasetError for a picture, or for tiles in a TIFF file, that are too large to be decoded, and for a picture that is too thin."""
    tile = [int(tags.get(tag, 0)) for tag in _TIFF_TILE]
    for what, pixels in (("the picture is {} x {} pixels", (width, height)), ("its tiles are {} x {} pixels", tile)):
        if pixels[0] * pixels[1] > _MAX_PIXELS:
            raise DatasetError(
                f"{name}: {what.format(*pixels)}, above the limit of {_MAX_PIXELS >> 20} million; make it smaller, or remove it"
            )
    if max(width, height) > _MOST_THIN * min(width, height):
        raise DatasetError(f"{name}: the picture is {width} x {height} pixels, thinner than 1 to {_MOST_THIN}; cut or remove it")
