"""Pairs and prompts as people have them, from the command line: what runs, what is left out, and what is said about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.cli.conftest import WORDS, Run

Pair = tuple[Path, Path]


def changed(source: Path, folder: Path, edit: Callable[[Any], None] = lambda module: None, **settings: Any) -> Path:
    """A copy of a model with other settings and weights."""
    shutil.copytree(source, folder)
    config = AutoConfig.from_pretrained(source)
    config.update(settings)
    module = AutoModelForCausalLM.from_pretrained(source, config=config)
    with torch.no_grad():
        edit(module)
    module.save_pretrained(folder)
    return folder


@pytest.fixture
def growmap(run: Run, profiles: tuple[Path, Path], tmp_path: Path) -> Path:
    """A tree of 5 nodes."""
    assert run("generate", "--acceptance", profiles[0], "--size", 5, "--depth", 2, "-o", "tree.pt").code == 0
    return tmp_path / "tree.pt"


@pytest.fixture
def evaluate(run: Run, pair: Pair, rows: Path, growmap: Path) -> Any:
    """Two prompts of 8 and 6 tokens, on the target as its own draft; options may be given anew."""

    def command(*options: object) -> Any:
        usual = ["--target", pair[0], "--draft", pair[0], "--growmap", growmap, "--dataset", rows, "--num-prompts", 2]
        return run("evaluate", *usual, "--prompt-len", 8, "--gen-len", 6, *options)

    return command


def test_rows_that_are_too_long_for_the_target_are_skipped_and_counted(evaluate: Any, pair: Pair, tmp_path: Path) -> None:
    small = changed(pair[0], tmp_path / "small", max_position_embeddings=13)
    done = evaluate("--target", small, "--format", "json")
    assert done.code == 0, done.err
    assert done.json["tokens"] == 12, "13 positions are enough for 8 and 6 tokens"
    long = tmp_path / "long.jsonl"
    long.write_text("".join(json.dumps({"turns": [" ".join(WORDS[:n])]}) + "\n" for n in (3, 9, 12, 4)))
    tokenizer = AutoTokenizer.from_pretrained(small)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(small)
    done = evaluate("--target", small, "--dataset", long, "--num-prompts", 9, "--prompt-len", 20, "--chat", "--format", "json")
    assert done.code == 0, done.err
    assert (done.json["prompts"], done.json["prompt_set"]["too_long"]) == (2, 2), done.err
    none = evaluate("--target", small, "--gen-len", 7)
    assert none.code == 1
    assert none.err.endswith(
        "8 prompt and 7 generated tokens need 14 positions, but the target model has 13; pass --gen-len 6 or less, or --prompt-len 7 or less\n"
    )


@pytest.mark.parametrize("options", [(), ("--dynamic",), ("--drafting", "swor", "--draft-temperature", 1)])
@pytest.mark.parametrize("positions", [6, 11])
def test_a_draft_of_few_positions_speculates_while_it_can(
    evaluate: Any, pair: Pair, tmp_path: Path, positions: int, options: tuple[object, ...]
) -> None:
    small = changed(pair[0], tmp_path / "small", max_position_embeddings=positions)
    done = evaluate("--draft", small, *options, "--gen-len", 12)
    assert done.code == 0, done.err
    alone = json.loads(Path("report.json").read_text())["tokens_without_draft"]
    assert alone == 22 if positions == 6 else 0 < alone < 22
    assert f"{alone} of 24 tokens were decoded without the draft, which has no positions for longer texts" in done.out
    assert "lossless: all 2 outputs equal" in done.out


def test_acceptance_is_profiled_where_the_draft_has_positions(run: Run, pair: Pair, rows: Path, tmp_path: Path) -> None:
    drafts = {n: changed(pair[0], tmp_path / f"d{n}", max_position_embeddings=n) for n in (8, 12)}
    usual = ["--target", pair[0], "--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 16, "--max-branch", 2]
    done = run("profile", "acceptance", *usual, "--draft", drafts[12], "--format", "json")
    assert done.code == 0, done.err
    assert (done.json["positions"], done.json["rank_probability"][0]) == (3 * 4, 1.0)
    none = run("profile", "acceptance", *usual, "--draft", drafts[8])
    assert none.err.endswith("the draft model has 8 positions, but prompts of 8 tokens need 9 or more; use shorter prompts\n")


def test_a_potential_goes_on_without_the_drafts_that_do_not_fit(run: Run, pair: Pair, rows: Path, tmp_path: Path) -> None:
    other, short = shutil.copytree(pair[1], tmp_path / "other"), changed(pair[1], tmp_path / "short", max_position_embeddings=4)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"] = {word.replace("w", "v"): index for word, index in content["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(content))
    head = shutil.copytree(pair[1], tmp_path / "head")
    (head / "config.json").write_text('{"speculators_model_type": "eagle3"}')
    usual = ["potential", "--target", pair[0], "--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 8]
    done = run(*usual, *(f"--draft={draft}" for draft in (other, head, pair[1], short)), "-o", "p.json", "--format", "json")
    assert done.code == 0, done.err
    assert [draft["draft"] for draft in done.json["drafts"]] == ["draft"]
    assert f"left out: target {pair[0]}" in done.err
    assert f"left out: {head}" in done.err
    assert "an EAGLE-3 head" in done.err
    assert f"left out: draft {short} has 4 positions, but prompts of 8 tokens need 9 or more" in done.err
    recorded = json.loads(Path("p.json").read_text())["left_out"]
    assert [item["draft"] for item in recorded] == ["other", "head", "short"]
    assert str(tmp_path) not in json.dumps(recorded), "records name no folders"
    assert run("inspect", "p.json").code == 0
    none = run(*usual, "--draft", other, "--draft", shutil.copytree(other, tmp_path / "another"))
    assert (none.code, none.err.count("\n")) == (1, 1)
    assert none.err.startswith("error: none of the 2 drafts fits the target; the first: target")


def test_a_draft_of_another_model_is_doubted(run: Run, evaluate: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    def permute(module: Any) -> None:
        module.lm_head.weight.copy_(module.lm_head.weight.roll(1, 0))  # it always chooses the word beside the target's

    other = changed(pair[0], tmp_path / "other", permute)
    said = "first tokens: is it the right draft?"
    usual = ["--target", pair[0], "--draft", other, "--dataset", rows, "--num-prompts", 7, "--prompt-len", 20, "--gen-len", 40]
    assert said in evaluate(*usual).err
    assert said in run("profile", "acceptance", *usual).err
    assert said not in evaluate("--num-prompts", 7, "--gen-len", 40).err, "the target is its own right draft"


def test_processors_are_applied_and_what_is_not_applied_is_named(run: Run, evaluate: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    target = shutil.copytree(pair[0], tmp_path / "target")
    given = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.6, "top_k": 20}
    (target / "generation_config.json").write_text(json.dumps(given))
    line, drawing = f"not applied of the generation config of {target}:", "do_sample true, temperature 0.6, top_k 20; generate of"
    eager = "runs eagerly: logits processors of its generation config run path by path (repetition_penalty 1.3)\n"
    usual = evaluate("--target", target)
    assert f"{line} {drawing} transformers would\n" in usual.err
    assert usual.err.count(eager) == 1
    assert json.loads(Path("report.json").read_text())["settings"]["engine"].endswith(eager.strip())
    assert f"{line} top_k 20; generate of transformers would\n" in evaluate("--target", target, "--temperature", 0.5).err
    without = evaluate("--target", target, "--no-processors")
    assert f"{line} repetition_penalty 1.3, {drawing} transformers would\n" in without.err
    assert eager not in without.err
    assert "not applied" not in evaluate().err
    profiled = run(
        "profile", "acceptance", "--target", target, "--draft", pair[1], "--dataset", rows, "--num-prompts", 1, "--prompt-len", 8
    )
    assert f"{line} repetition_penalty 1.3, {drawing} transformers would\n" in profiled.err, "a profile is of the models' own logits"


def test_a_run_without_a_step_is_told_in_a_sentence(evaluate: Any, pair: Pair, tmp_path: Path) -> None:
    for mode in ((), ("--dynamic",)):
        done = evaluate("--gen-len", 1, *mode)
        assert done.code == 0, done.err
        assert done.out.startswith("no step to measure: with one token to generate, each prompt's token comes from its prompt pass")
        assert done.out.count("\n") == 1
    target = shutil.copytree(pair[0], tmp_path / "target")
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(61))}))
    done = evaluate("--target", target)
    assert done.out == "no step to measure: every text ended with its first token, which comes from the prompt pass; use other prompts\n"


def test_the_root_alone_gives_no_budget_to_a_dynamic_tree(run: Run, evaluate: Any, profiles: tuple[Path, Path]) -> None:
    grown = run("generate", "--acceptance", profiles[0], "--size", 1, "--depth", 1, "-o", "root.pt")
    assert "the tree is the root alone, as it was asked for: nothing is drafted" in grown.out
    said = "error: the growmap is the root alone and gives no budget to a dynamic tree; pass --size 2 or more, and --depth."
    for options in ((), ("--size", 4), ("--depth", 2)):
        none = evaluate("--growmap", "root.pt", "--dynamic", *options)
        assert (none.code, none.err.count("\n")) == (2, 1)
        assert none.err.startswith(said)
    assert evaluate("--growmap", "root.pt", "--dynamic", "--size", 4, "--depth", 2).code == 0
    done = evaluate("--growmap", "root.pt")
    assert "the tree is the root alone: nothing is drafted" in done.out
