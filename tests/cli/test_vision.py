"""The commands on a vision-language pair: pictures in, the target's own captions out."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.reference import vision as v


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    target = v.llava(1)
    v.train(target, 60, range(2000, 2256))
    v.save(target, folder / "target")
    v.save(v.llava(2, layers=1), folder / "draft")
    v.write_scenes(folder / "scenes", range(6))
    (folder / "asked.jsonl").write_text(
        "".join(json.dumps({"image": f"scenes/scene-{n:04}.png", "prompt": "what is on the left"}) + "\n" for n in range(4))
    )
    return folder


def test_profile_generate_and_evaluate_on_pictures(home: Path, run: Run) -> None:
    pair = ["--target", home / "target", "--draft", home / "draft", "--device", "cpu", "--dtype", "float32"]
    rows = ["--dataset", home / "scenes", "--prompt", "<image> what is here", "--start", 0, "--num-prompts", 4, "--format", "json"]
    profiled = run("profile", "acceptance", *pair, *rows, "--gen-len", 8, "--max-branch", 4, "-o", "a.json")
    assert profiled.code == 0, profiled.err
    assert profiled.json["prompts"] == 4
    assert run("generate", "--acceptance", "a.json", "--size", 5, "--depth", 3, "-o", "tree.pt").code == 0
    said = {}
    for name, plan in {
        "static": ["--growmap", "tree.pt"],
        "dynamic": ["--growmap", "tree.pt", "--dynamic"],
        "baseline": ["--mode", "baseline"],
    }.items():
        done = run("evaluate", *pair, *rows, *plan, "--gen-len", 8, "--save-tokens", "-o", f"{name}.json")
        assert done.code == 0, done.err
        assert done.json["lossless"] == ("not-applicable" if name == "baseline" else "match")
        said[name] = done.json["outputs"]
    assert said["static"] == said["dynamic"] == said["baseline"]
    assert len({tuple(tokens) for tokens in said["static"]}) > 1, "the answer depends on the picture"
    sampled = run(
        "evaluate", *pair, *rows, "--growmap", "tree.pt", "--gen-len", 8, "--temperature", 0.8, "--drafting", "swor", "-o", "sampled.json"
    )
    assert sampled.code == 0, sampled.err
    assert sampled.json["tokens_per_step"] >= 1


def test_rows_ask_questions_of_their_own(home: Path, run: Run) -> None:
    only = ["--target", home / "target", "--mode", "baseline", "--device", "cpu", "--dtype", "float32", "--gen-len", 4, "--format", "json"]
    done = run("evaluate", *only, "--dataset", home / "asked.jsonl", "--num-prompts", 4, "-o", "r.json")
    assert done.code == 0, done.err
    assert done.json["prompt_set"]["prompt_len"] == 16 + 5


def test_pictures_are_known_again_by_what_they_show(home: Path, run: Run, tmp_path: Path) -> None:
    """Not by the names of their files; and one that cannot be read any more is not the one that was profiled."""
    pair = ["--target", home / "target", "--draft", home / "draft", "--device", "cpu", "--dtype", "float32", "--format", "json"]
    profiled = run("profile", "acceptance", *pair, "--dataset", home / "scenes", "--num-prompts", 2, "--gen-len", 4, "--max-branch", 4)
    assert profiled.code == 0, profiled.err
    assert run("generate", "--acceptance", "acceptance.json", "--size", 3, "--depth", 2, "-o", "tree.pt").code == 0

    def starts_at(folder: Path) -> int:
        done = run("evaluate", *pair, "--dataset", folder, "--growmap", "tree.pt", "--num-prompts", 1, "--gen-len", 4, "--skip-bad-rows")
        assert done.code == 0, done.err
        return int(done.json["prompt_set"]["start"])

    scenes = sorted((home / "scenes").iterdir())
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, contents in ((same, scenes), (other, scenes[::-1])):
        folder.mkdir()
        for number, (scene, content) in enumerate(zip(scenes, contents, strict=True)):
            shutil.copy(content, folder / (scene.name if folder is other else f"renamed-{number}.png"))
    assert starts_at(home / "scenes") == starts_at(same) == 2
    assert starts_at(other) == 0
    (other / scenes[0].name).unlink()
    (other / scenes[0].name).symlink_to(other / "gone.png")
    assert starts_at(other) == 0


def test_rows_that_were_profiled_under_a_field_are_known_again(home: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    images = sorted((home / "scenes").iterdir())[:3]
    path.write_text("".join(json.dumps({"image": str(image), "question": "what is on the left"}) + "\n" for image in images))
    pair = ["--target", home / "target", "--draft", home / "draft", "--device", "cpu", "--dtype", "float32", "--format", "json"]
    rows = ["--dataset", path, "--field", "question", "--num-prompts", 2, "--gen-len", 4]
    assert run("profile", "acceptance", *pair, *rows, "--max-branch", 4).code == 0
    assert run("generate", "--acceptance", "acceptance.json", "--size", 3, "--depth", 2, "-o", "tree.pt").code == 0
    done = run("evaluate", *pair, *rows, "--growmap", "tree.pt")
    assert done.code == 0, done.err
    assert done.json["prompt_set"]["start"] == 2


def test_a_bound_on_slots_is_held_against_the_prompts_that_there_are(home: Path, run: Run) -> None:
    """Prompts about pictures are as long as they are, not as long as --prompt-len."""
    command = [
        "evaluate",
        "--target",
        home / "target",
        "--mode",
        "baseline",
        "--device",
        "cpu",
        "--dataset",
        home / "scenes",
        "--gen-len",
        4,
    ]
    assert run(*command, "--num-prompts", 2, "--prompt-len", 64, "--max-length", 64).code == 0
    refused = run(*command, "--num-prompts", 2, "--prompt-len", 64, "--max-length", 16)
    assert refused.code == 1
    assert "--max-length" in refused.err


@pytest.mark.parametrize(
    ("target", "dataset", "message"),
    [
        ("target", "text.jsonl", "has no picture, but the target reads pictures"),
        ("target", "torn", "the picture cannot be decoded"),
        ("target", "two.jsonl", "2 times <image>"),
    ],
)
def test_bad_rows_end_in_one_line(target: str, dataset: str, message: str, home: Path, run: Run) -> None:
    (home / "torn").mkdir(exist_ok=True)
    (home / "torn" / "x.png").write_bytes(b"no picture")
    (home / "text.jsonl").write_text('{"text": "what is here"}\n')
    (home / "two.jsonl").write_text('{"image": "scenes/scene-0000.png", "prompt": "<image> <image>"}\n')
    done = run("evaluate", "--target", home / target, "--mode", "baseline", "--device", "cpu", "--dataset", home / dataset)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_text_pair_says_that_it_cannot_see(home: Path, run: Run, pair: tuple[Path, Path]) -> None:
    done = run("evaluate", "--target", pair[0], "--mode", "baseline", "--device", "cpu", "--dataset", home / "scenes")
    assert done.code == 1
    assert "which needs a vision-language target" in done.err


@pytest.mark.parametrize("command", [["potential"], ["profile", "acceptance", "--method", "teacher-forced", "--max-branch", "4"]])
def test_pictures_have_no_text_of_their_own_which_is_told_before_models_are_loaded(command: list[str], home: Path, run: Run) -> None:
    pair = ["--target", home / "target", "--draft", home / "draft", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("treespec.models.pairs.PairInfo.load", lambda *_, **__: pytest.fail("models are loaded"))
        refused = run(*command, *pair, "--dataset", home / "scenes", "--num-prompts", 2, "--gen-len", 4)
    assert refused.code == 1
    assert refused.err.endswith("no row of scenes holds two tokens of text after its prompt; use --method on-policy\n")
