"""Pictures in folders and in rows: what is found, how often its token stands in a prompt, and what is wrong with bad ones."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.clip import CLIPImageProcessorPil

from tests.reference import vision as v
from tests.reference.rows import write_records
from treespec.data.pictures import SUFFIXES, PictureReader, PictureShape, find_picture
from treespec.data.prompts import PromptSet, load_prompts
from treespec.errors import DatasetError, ModelError
from treespec.models.loading import load_picture_reader

ROWS = 16


def reader(pixels: int = v.SIDE, token: int = v.IMAGE_TOKEN) -> PictureReader:
    processor = CLIPImageProcessorPil(size={"shortest_edge": v.SIDE}, crop_size={"height": v.SIDE, "width": v.SIDE})
    return PictureReader(v.tokenizer(), processor, PictureShape(token, ROWS, pixels))


def load(path: Path, pictures: PictureReader | None = None, **options: Any) -> PromptSet:
    known = pictures or reader()
    return load_prompts(str(path), known.tokenizer, num_prompts=9, prompt_len=64, pictures=known, picture_prompt=v.ASKED, **options)


def rows(folder: Path, *records: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def changed(file: str, inside: str | None = None, **changes: object) -> Callable[[Path], object]:
    """Changes settings in a JSON file, or those of an object in it."""

    def edit(folder: Path) -> None:
        settings = json.loads((folder / file).read_text())
        (settings if inside is None else settings[inside]).update(changes)
        (folder / file).write_text(json.dumps(settings))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed("config.json", vision_feature_layer=99), "vision_feature_layer is 99, but it must be -3 to 2; correct its config.json"),
        (changed("config.json", vision_feature_layer=[-2, -4]), "vision_feature_layer is -4, but it must be -3 to 2"),
        (changed("config.json", image_token_index=-3), "image_token_id is -3, but it must be 0 to 25"),
        (changed("config.json", image_token_index=26), "image_token_id is 26, but it must be 0 to 25"),
        (changed("config.json", image_token_id="x"), "image_token_id is 'x', but it must be 0 to 25; correct its config.json"),
        (changed("config.json", image_token_id=None), "image_token_id is None, but it must be 0 to 25"),
        (changed("config.json", vision_feature_layer=[]), r"vision_feature_layer is \[\], but it must be -3 to 2"),
        (changed("config.json", "vision_config", num_hidden_layers=0), "num_hidden_layers of vision_config is 0, but it must be 1 or more"),
        (changed("config.json", "vision_config", image_size=0), "image_size is 0, but it must be 1 or more"),
        (changed("config.json", "vision_config", patch_size=0), "patch_size is 0, but it must be 1 to 32"),
        (changed("preprocessor_config.json", image_mean=["a", "b"]), "makes no pixels of a picture .ValueError: .*; correct preprocessor"),
        (changed("preprocessor_config.json", image_mean=["a", "b", "c"]), "makes no pixels of a picture .*; correct preprocessor"),
        (changed("preprocessor_config.json", crop_size={"height": 8, "width": 8}), r"makes \(1, 3, 8, 8\) of a picture"),
        (changed("preprocessor_config.json", image_processor_type="No"), "cannot be loaded: preprocessor_config.json: .*; correct that"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json, by which its pictures are read"),
    ],
)
def test_pictures_that_a_model_could_not_read_are_refused_before_it_is_loaded(edit, message, tmp_path):
    edit(v.save(v.llava(0), tmp_path))
    with pytest.raises(ModelError, match=message) as caught:
        load_picture_reader(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_is_its_pictures_by_name_each_asked_the_same(tmp_path):
    v.write_scenes(tmp_path, range(3))
    (tmp_path / "notes.md").write_text("not a picture")
    prompts = load(tmp_path)
    assert [prompt.name.split("/")[-1] for prompt in prompts] == ["scene-0000.png", "scene-0001.png", "scene-0002.png"]
    (ids,) = {prompt.ids for prompt in prompts}
    assert ids == tuple(v.tokenizer().encode(v.ASKED.replace("<image>", "<image>" * ROWS)))
    assert ids.count(v.IMAGE_TOKEN) == ROWS
    assert load(tmp_path, start=1, end=2).prompts[0].picture == prompts.prompts[1].picture


def test_rows_name_a_picture_beside_their_file_and_a_prompt_of_their_own(tmp_path):
    v.write_scenes(tmp_path / "pictures", range(2))
    path = rows(
        tmp_path,
        {"image": "pictures/scene-0000.png", "prompt": "what is on the left"},
        {"image": "pictures/scene-0001.png", "prompt": "is it <image> red"},
        {"image": str(tmp_path / "pictures" / "scene-0001.png")},
    )
    first, second, third = load(path).prompts
    words = v.tokenizer()
    assert first.ids == tuple([v.IMAGE_TOKEN] * ROWS + words.encode("what is on the left"))
    assert second.ids == tuple(words.encode("is it") + [v.IMAGE_TOKEN] * ROWS + words.encode("red"))
    assert third.ids == tuple(words.encode(v.ASKED.replace("<image>", "<image>" * ROWS)))
    assert second.picture == third.picture != first.picture


def test_other_pictures_are_other_work(tmp_path):
    v.write_scenes(tmp_path / "a", range(2))
    v.write_scenes(tmp_path / "b", range(1, 3))
    assert load(tmp_path / "a").fingerprint != load(tmp_path / "b").fingerprint


def test_pixels_are_the_processors_own_of_the_upright_picture(tmp_path):
    image = v.scene(0)[0]
    turned = image.rotate(90, expand=True)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "plain.png")
    known = reader()
    plain, upright = (known.pixels(find_picture(tmp_path / name, name)) for name in ("plain.png", "turned.png"))
    wanted = known.processor(images=image, return_tensors="pt")["pixel_values"]
    assert plain.equal(wanted)
    assert upright.equal(wanted)


def test_bad_pictures_are_named(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing")
    with pytest.raises(
        DatasetError,
        match=r"/torn\.png: the picture cannot be decoded \(it is none of PNG, JPEG, WEBP, GIF, BMP, TIFF\); repair or remove it",
    ):
        load(tmp_path)
    with pytest.raises(DatasetError, match=r"^rows\.jsonl, line 1: there is no file .*gone\.png; check the path \(`skip_bad_rows`"):
        load(rows(tmp_path, {"image": "gone.png"}))
    with pytest.raises(DatasetError, match="^rows.jsonl, line 1: cannot read .*: File name too long"):
        load(rows(tmp_path, {"image": "x" * 300}))
    with pytest.raises(DatasetError, match='rows.jsonl, line 1: "image" is'):
        load(rows(tmp_path, {"image": 3}))
    with pytest.raises(DatasetError, match='"prompt" is'):
        load(rows(tmp_path, {"image": "torn.png", "prompt": 3}))


def test_a_picture_is_of_the_formats_that_folders_are_searched_for(tmp_path, monkeypatch):
    """Others run programs, as Ghostscript for EPS, or read other files."""
    v.scene(0)[0].save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was to run"))
    with pytest.raises(DatasetError, match=r"x\.png: the picture cannot be decoded \(it is none of PNG"):
        load(tmp_path)
    for suffix in SUFFIXES:
        (tmp_path / suffix).mkdir()
        v.scene(0)[0].save(tmp_path / suffix / f"x{suffix}")
        assert len(load(tmp_path / suffix)) == 1


def test_bad_pictures_are_left_out_where_that_is_asked_for_and_counted(tmp_path):
    v.write_scenes(tmp_path, range(3))
    (tmp_path / "scene-0001.png").write_bytes(b"torn")
    prompts = load(tmp_path, skip_bad_rows=True)
    assert [prompt.row for prompt in prompts] == [0, 2]
    assert [row.name.split("/")[-1] for row in prompts.bad] == ["scene-0001.png"]


def test_bad_rows_of_pictures_are_left_out_too(tmp_path):
    v.write_scenes(tmp_path, range(1))
    good = {"image": "scene-0000.png"}
    path = rows(tmp_path, good, {"text": "no picture"}, {"image": "gone.png"}, {"image": None, "prompt": "is it red"}, good)
    found = load(path, skip_bad_rows=True)
    assert [prompt.row for prompt in found] == [0, 4]
    assert [row.name for row in found.bad] == [f"rows.jsonl, line {line}" for line in (2, 3, 4)]
    assert all(row.reason.startswith(row.name) for row in found.bad)
    with pytest.raises(DatasetError, match="line 2 has no picture, .*`skip_bad_rows` goes on"):
        load(path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "folder"])
def test_what_is_asked_about_a_picture_may_lie_under_a_key_that_is_named(tmp_path, suffix):
    v.write_scenes(tmp_path, range(1))
    image = str(tmp_path / "scene-0000.png")
    records = [{"image": image, "prompt": "no", "question": "is it red"}, {"image": image, "prompt": "no", "question": None}]
    path = write_records(tmp_path / f"rows.{suffix}", records)
    words = v.tokenizer()
    asked, not_asked = load(path, field="question").prompts
    assert asked.ids == tuple([v.IMAGE_TOKEN] * ROWS + words.encode("is it red"))
    assert not_asked.ids == tuple(words.encode(v.ASKED.replace("<image>", "<image>" * ROWS)))
    with pytest.raises(DatasetError, match=r'no (key|column) "answer" .*`field`'):
        load(path, field="answer")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "folder"])
def test_what_may_be_asked_about_a_picture_is_not_passed_over(tmp_path, suffix):
    v.write_scenes(tmp_path, range(1))
    image = str(tmp_path / "scene-0000.png")
    key, value = ("question", "is it red") if suffix != "jsonl" else ("messages", [{"role": "user", "content": "is it red"}])
    records = [{"image": image, "question_id": "a1", "size": 3, key: None}, {"image": image, "question_id": "a2", "size": 3, key: value}]
    path = write_records(tmp_path / f"rows.{suffix}", records)
    known = reader()
    plain = {"num_prompts": 9, "prompt_len": 64, "pictures": known}
    with pytest.raises(
        DatasetError,
        match=rf'(line 2|row 1): nothing is asked .* "prompt" or "text", but the row has text under .{key}.; .*`field`, or pass a `picture_prompt`',
    ):
        load_prompts(str(path), known.tokenizer, **plain)
    assert [prompt.row for prompt in load_prompts(str(path), known.tokenizer, **plain, skip_bad_rows=True)] == [0]
    assert len(load(path)) == 2, "with a prompt for all, nothing is in doubt"


def test_pictures_in_a_folder_have_no_fields(tmp_path):
    v.write_scenes(tmp_path, range(1))
    with pytest.raises(DatasetError, match="holds pictures, which have no fields; drop `field` question"):
        load(tmp_path, field="question")


def test_prompts_that_are_too_long_are_left_out_whole(tmp_path):
    v.write_scenes(tmp_path / "p", range(1))
    path = rows(tmp_path, *({"image": "p/scene-0000.png", "prompt": "is it red" + more} for more in ("", " and blue" * 30)))
    prompts = load(path)
    assert (len(prompts), prompts.too_long, len(prompts.prompts[0].ids)) == (1, 1, ROWS + 3)


def test_a_chat_template_says_where_the_picture_stands(tmp_path):
    v.write_scenes(tmp_path, range(1))
    known = reader()
    known.tokenizer.chat_template = (
        "<s> USER: {% for part in messages[0].content %}{% if part.type == 'image' %}<image> {% else %}{{ part.text }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    (prompt,) = load_prompts(
        str(tmp_path), known.tokenizer, num_prompts=1, prompt_len=64, pictures=known, picture_prompt="what is here", chat=True
    )
    words = known.tokenizer.convert_tokens_to_ids
    assert list(prompt.ids) == [1, words("USER:"), *[v.IMAGE_TOKEN] * ROWS, *words(["what", "is", "here", "ASSISTANT:"])]


def test_thin_pictures_are_refused_before_they_are_scaled(tmp_path):
    Image.new("RGB", (900, 10)).save(tmp_path / "thin.png")
    with pytest.raises(DatasetError, match=r"thin\.png: the picture is 900 x 10 pixels, thinner than 1 to 50"):
        load(tmp_path)
    Image.new("RGB", (500, 10)).save(tmp_path / "thin.png")
    assert len(load(tmp_path)) == 1


def test_a_damaged_header_does_not_turn_a_picture(tmp_path, monkeypatch):
    v.write_scenes(tmp_path, range(1))
    wanted = reader().pixels(find_picture(tmp_path / "scene-0000.png", "x"))

    def broken(image: Image.Image) -> Image.Image:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    assert reader().pixels(load(tmp_path).prompts[0].picture).equal(wanted)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, v.SIDE * v.SIDE).reshape(v.SIDE, v.SIDE)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 257).astype(np.uint8)).save(tmp_path / "plain.png")
    deep, plain = (reader().pixels(find_picture(tmp_path / name, name)) for name in ("deep.png", "plain.png"))
    assert (deep - plain).abs().max() < 0.02 < deep.std()


def test_other_pixels_are_other_work():
    other = PictureReader(v.tokenizer(), CLIPImageProcessorPil(size={"shortest_edge": v.SIDE}, image_mean=[0.1, 0.2, 0.3]), reader().shape)
    assert reader().digest == reader().digest != other.digest != reader(pixels=64).digest


def test_what_is_asked_stands_where_it_is_read(tmp_path):
    v.write_scenes(tmp_path, range(1))
    asked = {"image": "scene-0000.png", "text": "is it red"}
    assert load(rows(tmp_path, asked)).prompts[0].ids == tuple([v.IMAGE_TOKEN] * ROWS + v.tokenizer().encode("is it red"))
    (bad,) = load(rows(tmp_path, {"image": "~nobody-here/a.png"}, asked), skip_bad_rows=True).bad
    assert "~nobody-here" in bad.reason


def test_a_template_without_a_place_for_pictures_is_told(tmp_path):
    v.write_scenes(tmp_path, range(1))
    known = reader()
    known.tokenizer.chat_template = "USER: what is here ASSISTANT:"
    with pytest.raises(DatasetError, match="has no place for a picture"):
        load_prompts(str(tmp_path), known.tokenizer, num_prompts=1, prompt_len=64, pictures=known, chat=True)


def test_half_a_picture_is_not_a_picture(tmp_path):
    v.scene(0)[0].save(tmp_path / "whole.bmp")
    content = (tmp_path / "whole.bmp").read_bytes()
    (tmp_path / "half.bmp").write_bytes(content[: len(content) // 2])
    (tmp_path / "whole.bmp").unlink()
    with pytest.raises(DatasetError, match=r"half\.bmp: the picture cannot be decoded"):
        load(tmp_path)


def test_a_picture_that_changes_under_way_is_noticed(tmp_path):
    v.write_scenes(tmp_path, range(1))
    prompt = load(tmp_path).prompts[0]
    Image.new("RGB", (9, 9)).save(tmp_path / "scene-0000.png")
    assert prompt.picture is not None
    with pytest.raises(DatasetError, match="changed while prompts were decoded"):
        reader().pixels(prompt.picture)


def test_pictures_and_models_must_go_together(tmp_path):
    v.write_scenes(tmp_path, range(1))
    with pytest.raises(DatasetError, match="is a picture, which needs a vision-language target"):
        load_prompts(str(tmp_path), v.tokenizer(), num_prompts=1, prompt_len=64)
    with pytest.raises(DatasetError, match="has no picture, but the target reads pictures"):
        load(rows(tmp_path, {"text": "what is here"}))
    with pytest.raises(DatasetError, match="data set stdlib is text, but the target reads pictures; pass a folder of pictures"):
        load("stdlib", skip_bad_rows=True)
    with pytest.raises(DatasetError, match="the prompt has 2 times <image>"):
        load(rows(tmp_path, {"image": "scene-0000.png", "prompt": "<image> and <image>"}))
    prompt = load(tmp_path).prompts[0]
    assert prompt.picture is not None
    with pytest.raises(ModelError, match=r"makes \(1, 3, 32, 32\) of a picture, but the model reads \(1, 3, 64, 64\)"):
        reader(pixels=64).pixels(prompt.picture)
    with pytest.raises(ModelError, match="does not read </s> as the one token"):
        load(tmp_path, PictureReader(_Deaf(), None, PictureShape(2, ROWS, v.SIDE)))


def test_a_tokenizer_without_the_pictures_token_is_told(tmp_path):
    v.write_scenes(tmp_path, range(1))
    with pytest.raises(
        ModelError, match=f"the tokenizer has no token {v.IMAGE_TOKEN}, which stands for a picture; use the tokenizer files"
    ):
        load(tmp_path, PictureReader(v.tokenizer(picture=False), None, reader().shape))


class _Deaf:
    """A tokenizer that knows the token's name, but never reads it."""

    def convert_ids_to_tokens(self, index: int) -> str:
        return "</s>"

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [4, 5]

    def __len__(self) -> int:
        return v.IMAGE_TOKEN
