"""Which rows commands take: held-out ones by default, conversations, bad rows, slices past the end."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from treespec.files.locks import alone

Pair = tuple[Path, Path]
TEMPLATE = "{% for m in messages %}w1 {{ m.content }} w2 {% endfor %}{% if add_generation_prompt %}w3{% endif %}"


def models(pair: Pair) -> list[object]:
    return ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]


def baseline(pair: Pair) -> list[object]:
    return ["--target", pair[0], "--device", "cpu", "--mode", "baseline"]


def one_line(outcome: Any, words: str) -> None:
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err


@pytest.fixture
def grown(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> Path:
    """A growmap that was profiled on rows 1 to 3 of the eight."""
    where = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--start", 1]
    outcome = run("profile", "acceptance", *models(pair), *where, "--gen-len", 3, "--max-branch", 2)
    assert outcome.code == 0, outcome.err
    outcome = run("generate", "--acceptance", "acceptance.json", "--size", 3, "--depth", 2)
    assert outcome.code == 0, outcome.err
    return tmp_path / "tree.pt"


def evaluate(run: Any, pair: Pair, growmap: Path, dataset: Path, *options: object) -> Any:
    where = ["--growmap", growmap, "--dataset", dataset, "--prompt-len", 8, "--gen-len", 2, "--format", "json"]
    outcome = run("evaluate", *models(pair), *where, *options)
    assert outcome.code == 0, outcome.err
    return outcome


def slice_of(outcome: Any) -> tuple[int, int, int]:
    used = outcome.json["prompt_set"]
    return used["start"], used["end"], used["prompts"]


def test_profile_and_growmap_record_the_rows_for_programs(run: Any, grown: Path, tmp_path: Path) -> None:
    from treespec.trees.growmap import read_growmap

    recorded = json.loads((tmp_path / "acceptance.json").read_text())
    rows = {"dataset": "rows.jsonl", "start": 1, "end": 4}
    assert {key: recorded["prompt_set"][key] for key in rows} == rows
    assert run("inspect", "acceptance.json", "--format", "json").json["prompt_set"] == recorded["prompt_set"]
    assert recorded["provenance"]["dataset"] == "rows.jsonl[1:4]"
    metadata = read_growmap(grown).metadata
    assert {key: metadata[f"profiled_{key}"] for key in rows} == rows


def test_evaluation_takes_the_rows_behind_the_profiled_ones(run: Any, pair: Pair, grown: Path, rows: Path) -> None:
    outcome = evaluate(run, pair, grown, rows, "--num-prompts", 2)
    assert slice_of(outcome) == (4, 6, 2)
    assert "profiled on rows 1 to 3 of rows.jsonl: rows from 4 on are used" in outcome.err
    assert "which flatters it" not in outcome.err


def test_overlap_is_told_where_rows_were_chosen_or_none_lie_behind(run: Any, pair: Pair, grown: Path, rows: Path, tmp_path: Path) -> None:
    outcome = evaluate(run, pair, grown, rows, "--start", 0, "--num-prompts", 3)
    assert slice_of(outcome) == (0, 4, 3)
    assert "of 3 prompts, 2 are rows that the growmap was profiled on, which flatters it: pass --start 4" in outcome.err
    outcome = evaluate(run, pair, grown, rows, "--end", 4)
    assert slice_of(outcome) == (0, 4, 3)
    assert "of 3 prompts, 2 are rows" in outcome.err
    assert "--end 4 leaves none behind row 3" in outcome.err
    outcome = evaluate(run, pair, grown, rows, "--start", 5)
    assert slice_of(outcome) == (5, 8, 3)
    assert "profiled" not in outcome.err
    short = tmp_path / "rows.jsonl"  # the same name, and nothing behind row 3
    short.write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    outcome = evaluate(run, pair, grown, short)
    assert slice_of(outcome) == (0, 4, 3)
    assert "of 3 prompts, 2 are rows" in outcome.err
    assert "no usable one lies behind row 3" in outcome.err


def test_a_data_set_is_known_by_its_content_and_not_by_its_name(run: Any, pair: Pair, grown: Path, rows: Path, tmp_path: Path) -> None:
    same = tmp_path / "other.jsonl"
    shutil.copy(rows, same)
    outcome = evaluate(run, pair, grown, same, "--num-prompts", 2)
    assert slice_of(outcome) == (4, 6, 2)
    (tmp_path / "else").mkdir()
    other = tmp_path / "else" / "rows.jsonl"
    other.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    outcome = evaluate(run, pair, grown, other, "--num-prompts", 2)
    assert slice_of(outcome) == (0, 2, 2)
    assert "profiled" not in outcome.err


def test_other_data_sets_and_growmaps_of_unknown_rows_start_at_0(
    run: Any, pair: Pair, grown: Path, rows: Path, profiles: tuple[Path, Path], tmp_path: Path
) -> None:
    outcome = evaluate(run, pair, grown, "stdlib", "--num-prompts", 2)
    assert slice_of(outcome)[0] == 0
    assert "profiled" not in outcome.err
    run("generate", "--acceptance", profiles[0], "--size", 3, "--depth", 2, "-o", "old.pt")
    outcome = evaluate(run, pair, tmp_path / "old.pt", rows, "--num-prompts", 2)
    assert slice_of(outcome) == (0, 2, 2)
    assert "profiled" not in outcome.err


def test_metadata_that_name_no_rows_are_not_believed() -> None:
    from treeopt.cli.plan import ProfiledRows, profiled_rows

    good = {"profiled_dataset": "cnn", "profiled_start": 0, "profiled_end": 5}
    assert profiled_rows(good) == ProfiledRows("cnn", 0, 5)
    for change in ({"profiled_dataset": None}, {"profiled_start": None}, {"profiled_end": 0}):
        assert profiled_rows({**good, **change}) is None


@pytest.fixture
def chatty(pair: Pair, tmp_path: Path) -> Pair:
    """The pair with a chat template in both tokenizers."""
    folders = tmp_path / "chatty-target", tmp_path / "chatty-draft"
    for folder, source in zip(folders, pair, strict=True):
        shutil.copytree(source, folder)
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folders


def test_conversations_are_profiled_and_evaluated_whole(run: Any, chatty: Pair, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    lengths = (3, 40, 5, 90)
    contents = [" ".join(f"w{(row + i) % 60}" for i in range(length)) for row, length in enumerate(lengths)]
    chats.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in contents))
    where = ["--dataset", chats, "--chat", "--gen-len", 4, "--format", "json"]
    outcome = run("profile", "acceptance", *models(chatty), *where, "--max-branch", 2)
    assert outcome.code == 0, outcome.err
    assert outcome.json["prompts"] == 4
    assert json.loads((tmp_path / "acceptance.json").read_text())["prompt_set"]["prompt_len"] == 90 + 3
    run("generate", "--acceptance", "acceptance.json", "--size", 3, "--depth", 2)
    outcome = run("evaluate", *models(chatty), *where, "--growmap", "tree.pt", "--prompt-len", 45, "--max-length", 60)
    assert outcome.code == 0, outcome.err
    assert slice_of(outcome) == (0, 4, 3)
    assert outcome.json["lossless"] == "match"
    assert "1 longer than 45 tokens of 4 rows" in outcome.err


def test_every_turn_of_the_user_is_a_prompt_of_its_own(run: Any, chatty: Pair, tmp_path: Path) -> None:
    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5 w6", "w7"]}\n{"turns": ["w8"]}\n')
    where = ["--dataset", chats, "--chat", "--gen-len", 4, "--format", "json"]
    outcome = run("profile", "acceptance", *models(chatty), *where, "--max-branch", 2)
    assert (outcome.code, outcome.json["prompts"], outcome.json["positions"]) == (0, 3, 9), outcome.err
    assert "writing replies: 1/1" in outcome.err
    outcome = run("evaluate", *models(chatty), *where, "--dynamic", "--size", 4, "--depth", 2, "--save-tokens")
    assert (outcome.code, outcome.json["prompts"], outcome.json["lossless"]) == (0, 3, "match"), outcome.err
    assert outcome.json["prompt_set"]["prompt_len"] > 5


def test_replies_survive_an_interruption_and_are_not_written_before_what_cannot_fit(
    run: Any, chatty: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treespec.evaluation import conversations, runner

    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5 w6", "w7", "w9"]}\n{"turns": ["w8", "w1"]}\n')
    command = [
        "evaluate",
        *models(chatty),
        "--dataset",
        chats,
        "--chat",
        "--gen-len",
        4,
        "--mode",
        "baseline",
        "--save-tokens",
        "--format",
        "json",
    ]
    whole = run(*command, "-o", tmp_path / "whole.json").json["outputs"]
    written, decode, prompt = [], conversations.decode_autoregressive, runner._Run.prompt

    def counting(target: Any, request: Any, **options: Any) -> Any:
        written.append(request.prompt)
        return decode(target, request, **options)

    def stop(self: Any, prompt: Any, index: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(conversations, "decode_autoregressive", counting)
    monkeypatch.setattr(runner._Run, "prompt", stop)
    assert run(*command, "-o", tmp_path / "r.json").code != 0
    monkeypatch.setattr(runner._Run, "prompt", prompt)
    assert run(*command, "-o", tmp_path / "r.json").json["outputs"] == whole
    assert len(written) == len(set(written)) == 3
    assert not list(tmp_path.glob("*.journal"))
    assert run(*command, "-o", tmp_path / "s.json", "--max-length", 8).code == 1
    assert len(written) == 3


def test_replies_are_not_written_where_another_run_writes_the_same_output(run: Any, chatty: Pair, tmp_path: Path) -> None:
    """Whatever its options, and whatever it is at: replies, what they are for, or the output."""
    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5 w6", "w7"]}\n')
    where = [*models(chatty), "--dataset", chats, "--chat", "-o", "o.json"]
    commands = [
        ["evaluate", *where, "--mode", "baseline", "--gen-len", 4],
        ["profile", "acceptance", *where, "--gen-len", 4, "--max-branch", 2],
        ["profile", "latency", *models(chatty), "--sizes", "1,2", "--widths", "1", "--repetitions", 1, "--context", 8, "-o", "o.json"],
        ["potential", *where, "--method", "on-policy", "--gen-len", 5],
    ]
    for command in commands:
        with alone(tmp_path / ".treeopt-o.json.lock", "o.json"):
            outcome = run(*command)
            assert (outcome.code, outcome.out) == (1, "")
            assert outcome.err.endswith("another run is writing o.json now; wait for it, or name another output with -o\n")
            assert "writing replies" not in outcome.err
        assert not list(tmp_path.glob("*o.json*"))
        assert run(*command).code == 0
        assert [path.name for path in tmp_path.glob("*o.json*")] == ["o.json"]
        (tmp_path / "o.json").unlink()


def test_a_link_to_an_output_is_the_output(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("o.json")
    command = ["evaluate", *models(pair), "--dataset", rows, "--prompt-len", 5, "--gen-len", 4, "--mode", "baseline", "-o", "link.json"]
    with alone(tmp_path / ".treeopt-o.json.lock", "o.json"):
        outcome = run(*command)
    assert outcome.code == 1
    assert "another run is writing link.json now" in outcome.err
    assert run(*command).code == 0
    assert (tmp_path / "o.json").is_file()


def test_turns_that_do_not_fit_or_that_a_template_refuses_are_told(run: Any, chatty: Pair, tmp_path: Path) -> None:
    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5", "w7", "w9"]}\n{"turns": ["w8", "w1"]}\n')
    command = ["evaluate", *baseline(chatty), "--dataset", chats, "--chat", "--gen-len", 4, "--format", "json"]
    outcome = run(*command, "--prompt-len", 20)
    assert (outcome.json["prompts"], outcome.json["prompt_set"]["too_long"]) == (4, 1)
    assert "left out of 3 later turns: 1 too long for the models, --prompt-len or --max-length\n" in outcome.err
    assert "writing replies: 3/3" in outcome.err
    outcome = run(*command, "--max-length", 20)
    assert (outcome.json["prompts"], outcome.json["prompt_set"]["too_long"]) == (4, 1)
    template = chatty[0] / "chat_template.jinja"
    template.write_text("{% if messages|length > 3 %}{{ raise_exception('no more') }}{% endif %}" + template.read_text())
    one_line(
        run(*command, "--num-prompts", 2),
        "line 1, turn 3: the tokenizer's chat template refuses the conversation: no more (--skip-bad-rows",
    )
    outcome = run(*command, "--skip-bad-rows")
    assert (outcome.json["prompts"], outcome.json["prompt_set"]["bad_rows"]) == (4, ["turns.jsonl, line 1, turn 3"])
    assert "skipped: turns.jsonl, line 1, turn 3: the tokenizer's chat template refuses" in outcome.err
    assert "left out of 3 later turns: 1 bad\n" in outcome.err
    chats.write_text('{"turns": ["w5", "w7", "w9", "w4"]}\n' * 12)
    outcome = run(*command, "--skip-bad-rows")
    assert "skipped: 2 more bad turns; all are named in the output" in outcome.err
    assert "left out of 36 later turns: 12 bad, 12 behind bad ones\n" in outcome.err


def test_turns_are_conversations_too_where_only_the_draft_has_a_tokenizer(run: Any, chatty: Pair, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (chatty[0] / name).unlink(missing_ok=True)
    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5", "w7"]}\n')
    outcome = run(
        "profile", "acceptance", *models(chatty), "--dataset", chats, "--chat", "--gen-len", 4, "--max-branch", 2, "--format", "json"
    )
    assert (outcome.code, outcome.json["prompts"]) == (0, 2), outcome.err


def test_chat_without_a_template_is_one_line(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run("evaluate", *baseline(pair), "--dataset", rows, "--chat")
    one_line(outcome, "--chat needs a chat template, but the target's tokenizer has none; drop --chat")


def test_bad_rows_end_the_run_unless_they_are_to_be_skipped(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": 5}\n' * 12 + rows.read_text())
    where = ["evaluate", *baseline(pair), "--dataset", broken, "--prompt-len", 8, "--gen-len", 2, "--num-prompts", 7]
    one_line(run(*where), 'broken.jsonl, line 1: "text" is a number')
    assert not (tmp_path / "report.json").exists()
    outcome = run(*where, "--skip-bad-rows", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["prompt_set"]["bad_rows"] == [f"broken.jsonl, line {line}" for line in range(1, 13)]
    assert outcome.err.count("skipped: broken.jsonl, line ") == 10
    assert "skipped: 2 more bad rows" in outcome.err
    assert "left out: 1 too short, 12 bad of 20 rows" in outcome.err


def test_where_rows_are_conversations_they_are_counted_as_such(run: Any, chatty: Pair, tmp_path: Path) -> None:
    chats = tmp_path / "turns.jsonl"
    chats.write_text('{"turns": ["w5", "w7"]}\n{"turns": ["w8", "w1"]}\n')
    where = ["--mode", "baseline", "--dataset", chats, "--chat", "--gen-len", 4, "--num-prompts", 3]
    outcome = run("evaluate", *models(chatty), *where, "--format", "json")
    assert outcome.json["prompts"] == 4
    assert "2 conversations of the 3 asked for: none left out of 2 rows" in outcome.err


def test_a_prompt_about_pictures_must_ask_something_and_is_told_where_there_are_none(run: Any, pair: Pair, rows: Path) -> None:
    where = ["evaluate", *baseline(pair), "--dataset", rows, "--prompt-len", 8, "--gen-len", 2, "--num-prompts", 1]
    outcome = run(*where, "--prompt", " ")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--prompt is empty; pass what is to be asked" in outcome.err
    assert "the target reads text only: it changes nothing" in run(*where, "--prompt", "what is it").err


def test_draws_that_change_nothing_are_told(run: Any, pair: Pair, rows: Path) -> None:
    where = ["profile", "acceptance", *models(pair), "--dataset", rows, "--prompt-len", 8, "--gen-len", 3, "--num-prompts", 1]
    where += ["--max-branch", 2, "--format", "json"]
    assert "topk samples no children, so --draws changes nothing" in run(*where, "--draws", 3).err
    assert "changes nothing" not in run(*where).err
    sampled = [*where, "--drafting", "swor", "--temperature", 1]
    assert [run(*sampled, *draws).json["draws"] for draws in ([], ["--draws", 3])] == [8, 3]
    assert "changes nothing" not in run(*sampled, "--draws", 3).err


def test_slices_past_the_end_name_the_rows_there_are(run: Any, pair: Pair, rows: Path) -> None:
    where = ["evaluate", *baseline(pair), "--dataset", rows, "--prompt-len", 8, "--gen-len", 2]
    one_line(run(*where, "--start", 8), "has no row at --start 8: it has 8 rows, counted from 0; pass --start 7 or less")
    outcome = run(*where, "--start", 6, "--end", 20)
    assert outcome.code == 0, outcome.err
    assert "2 prompts of the 16 asked for: none left out of 2 rows; the data set ends with row 7, before --end 20" in outcome.err


def test_the_text_may_lie_under_another_key(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace('"text"', '"body"'))
    where = ["evaluate", *baseline(pair), "--dataset", other, "--prompt-len", 8, "--gen-len", 2]
    one_line(run(*where), "name the one that holds the text with --field")
    outcome = run(*where, "--field", "body", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["prompts"] == 7


def test_a_token_without_an_embedding_row_is_one_line_everywhere(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    """The tokenizers have a token that was added after the models' last resize."""
    from transformers import AutoTokenizer

    larger = tmp_path / "target", tmp_path / "draft"
    for old, new in zip(pair, larger, strict=True):
        shutil.copytree(old, new)
        tokenizer = AutoTokenizer.from_pretrained(new)
        tokenizer.add_tokens(["<added>"])
        tokenizer.save_pretrained(new)
    lines = rows.read_text().splitlines()
    words = json.loads(lines[0])["text"].split()
    refusal = ", line 2: the row has token 61, but the model has 61 embedding rows, for ids 0 to 60 only; give it rows for added tokens"
    draw = ["--num-prompts", 3, "--prompt-len", 8, "--gen-len", 4, "--format", "json"]
    train = ["--objective", "ce", "--eval-prompts", 0, "--steps", 1, "--batch-size", 1, "--seq-len", 8, "--format", "json"]
    odd = {"text.jsonl": {"text": " ".join(["<added>", *words])}, "ids.jsonl": {"input_ids": [*range(8), 61]}}
    for name, row in odd.items():
        (tmp_path / name).write_text("\n".join([lines[0], json.dumps(row), *lines[1:]]))
        commands: list[list[object]] = [
            ["evaluate", *baseline(larger), *draw],
            ["profile", "acceptance", *models(larger), *draw],
            ["potential", *models(larger), *draw],
            ["train-draft", *models(larger), *train],
        ]
        for command in commands:
            whole = [*command, "--dataset", tmp_path / name, "-o", f"{name}-{command[0]}"]
            one_line(run(*whole), name + refusal)
            outcome = run(*whole, "--skip-bad-rows")
            assert outcome.code == 0, outcome.err
            assert f"skipped: {name}{refusal}" in outcome.err


def test_an_end_of_text_without_an_embedding_row_is_refused(run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(pair[0], tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(pair[0])
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(tmp_path / "target")
    same = tmp_path / "target"
    outcome = run("train-draft", "--target", same, "--draft", same, "--device", "cpu", "--dataset", rows, "--seq-len", 8)
    one_line(outcome, "the end of a text, the tokenizer's EOS, is token 61, but the model has 61 embedding rows")
