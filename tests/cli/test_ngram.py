"""`--draft ngram` in every command that takes a draft, on a tiny target from disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

Pair = tuple[Path, Path]
TIMES = ("--sizes", "1,2,4", "--widths", "1,2", "--context", 16)


@pytest.fixture
def where(pair: Pair, rows: Path) -> list[object]:
    """The target, and the rows to measure on."""
    return ["--target", pair[0], "--draft", "ngram", "--device", "cpu", "--dataset", rows, "--num-prompts", 4, "--prompt-len", 12]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(" ".join(f"w{(i * i) % 50}" for i in range(400)), encoding="utf-8")
    return path


def done(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return outcome


def one_line(outcome: Any, words: str, code: int = 1) -> None:
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err


def test_the_whole_loop_without_a_second_model(run: Any, where: list[object], corpus: Path, tmp_path: Path) -> None:
    short = ["--gen-len", 16]
    done(run("profile", "acceptance", *where, *short, "--corpus", corpus, "--dynamic", "--trace", "trace.json", "-o", "a.json"))
    done(run("profile", "latency", *where[:6], "--corpus", corpus, *TIMES, "--dynamic", "-o", "l.json"))
    done(run("grow", "--acceptance", "a.json", "--latency", "l.json", "--size", 4, "--depth", 2, "-o", "tree.pt"))
    done(run("grow", "--dynamic", "--acceptance", "a.json", "--latency", "l.json", "-o", "budget.json"))
    names = [json.loads((tmp_path / name).read_text())["provenance"]["models"]["draft"] for name in ("a.json", "l.json", "trace.json")]
    assert len(set(names)) == 1
    assert names[0].startswith("ngram+")
    for plan in (["--growmap", "tree.pt"], ["--budget", "budget.json"]):
        outcome = done(run("evaluate", *where, *short, "--corpus", corpus, *plan, "-o", "report.json", "--format", "json"))
        assert outcome.json["lossless"] == "match"
        assert "was made for" not in outcome.err
        assert outcome.json["provenance"]["models"]["draft"] == names[0]
    other = done(run("evaluate", *where, *short, "--growmap", "tree.pt", "-o", "report.json"))
    assert f"was made for the draft {names[0]} (this run has ngram)" in " ".join(other.err.split())
    counted = done(run("replay", "tree.pt", "--trace", "trace.json", "--format", "json")).json
    assert counted["trees"][0]["tokens_per_step"] >= 1


def test_ngrams_beside_a_model_go_through_the_same_commands(
    run: Any, where: list[object], pair: Pair, corpus: Path, tmp_path: Path
) -> None:
    mixed = f"{pair[1]}+ngram"
    beside = [*where[:2], "--draft", mixed, *where[4:], "--corpus", corpus]
    done(run("profile", "acceptance", *beside, "--gen-len", 16, "--trace", "trace.json", "-o", "a.json"))
    done(run("profile", "latency", *beside[:6], "--corpus", corpus, *TIMES, "-o", "l.json"))
    names = [json.loads((tmp_path / name).read_text())["provenance"]["models"]["draft"] for name in ("a.json", "l.json", "trace.json")]
    assert len(set(names)) == 1
    assert names[0].startswith(f"{pair[1].name}+ngram+")
    done(run("grow", "--acceptance", "a.json", "--latency", "l.json", "--size", 4, "--depth", 2, "-o", "tree.pt"))
    outcome = done(run("evaluate", *beside, "--gen-len", 16, "--growmap", "tree.pt", "-o", "report.json", "--format", "json"))
    assert outcome.json["lossless"] == "match"
    assert outcome.json["provenance"]["models"]["draft"] == names[0]
    assert "was made for" not in outcome.err
    other = done(run("evaluate", *where, "--gen-len", 16, "--growmap", "tree.pt", "-o", "report.json"))
    assert f"was made for the draft {names[0]} (this run has ngram)" in " ".join(other.err.split())
    one_line(
        run("export", "--to", "vllm", "--acceptance", "a.json", "--latency", "l.json"), f"treeopt's own n-grams ({names[0]}), which vllm"
    )
    told = ["--prompt", "w1 w2 w3 w1 w2 w3 w1 w2", "--max-new-tokens", 8, "--format", "json"]
    assert done(run("run", *beside[:6], *told)).json["text"] == done(run("run", "--target", pair[0], "--device", "cpu", *told)).json["text"]
    drafts = ["--draft", pair[1], "--draft", mixed, "--gen-len", 8, "--format", "json", "--corpus", corpus]
    assert len(done(run("potential", *where, *drafts)).json["drafts"]) == 3
    plan = done(run("tune", *where, *drafts, "--dry-run", "--evaluate-prompts", 1, "--choose-prompts", 1)).json
    assert len(plan["candidates"]) == 3
    assert plan["memory_bytes"] > 0
    done(run("profile", "acceptance", *beside, "--gen-len", 8, "--temperature", 0.6, "-o", "a.json"))
    missing = run("grow", "--acceptance", "a.json", "--latency", "l.json", "-o", "tree.pt")
    assert f"--draft path/to/{pair[1].name}+ngram --corpus path/to/corpus" in missing.err


def test_ngrams_stand_beside_models_alone(run: Any, where: list[object], tmp_path: Path) -> None:
    command = ["profile", "acceptance", *where[:2], "--draft"]
    rest = [*where[4:], "--gen-len", 8]
    one_line(run(*command, "+ngram", *rest), "the name of a model is empty")
    one_line(run(*command, "ngram+ngram", *rest), "ngram is a draft without a model")
    one_line(run(*command, f"{tmp_path}/nowhere+ngram", *rest), "there is no folder")


def test_profiles_of_different_corpora_do_not_mix(run: Any, where: list[object], corpus: Path) -> None:
    done(run("profile", "acceptance", *where, "--gen-len", 8, "--corpus", corpus, "-o", "a.json"))
    done(run("profile", "latency", *where[:6], *TIMES, "-o", "l.json"))
    one_line(
        run("grow", "--acceptance", "a.json", "--latency", "l.json", "-o", "tree.pt"), "but the latency profile is of the draft ngram; pass"
    )
    done(run("profile", "acceptance", *where, "--gen-len", 8, "-o", "b.json"))
    one_line(run("export", "--to", "vllm", "--acceptance", "b.json", "--latency", "l.json"), "treeopt's own n-grams (ngram), which vllm")


def test_text_potential_and_tuning(run: Any, where: list[object], pair: Pair, corpus: Path, tmp_path: Path) -> None:
    told = [*where[:6], "--corpus", corpus, "--prompt", "w1 w2 w3 w1 w2 w3 w1 w2", "--max-new-tokens", 8, "--format", "json"]
    alone = ["run", "--target", pair[0], "--device", "cpu", *told[8:]]
    assert done(run("run", *told)).json["text"] == done(run(*alone)).json["text"]
    drafts = ["--draft", pair[1], "--corpus", corpus, "--gen-len", 8, "--format", "json"]
    ranked = done(run("potential", *where, *drafts)).json["drafts"]
    assert {entry["draft"].partition("+")[0] for entry in ranked} == {"ngram", "draft"}
    assert all(entry["kl"]["mean"] > 0 for entry in ranked)
    plan = done(run("tune", *where, *drafts, "--dry-run", "--evaluate-prompts", 1, "--choose-prompts", 1)).json
    assert len(plan["candidates"]) == 2
    assert plan["memory_bytes"] > 0
    short = ["--evaluate-prompts", 1, "--choose-prompts", 1, "--gen-len", 8, *TIMES]
    tuned = done(run("tune", *where, "--corpus", corpus, *short, "-o", "tuned", "--format", "json"))
    assert json.loads((tmp_path / "tuned" / "report.json").read_text())["provenance"]["models"]["draft"].startswith("ngram+")
    assert tuned.json["chosen"]


def test_a_corpus_is_read_or_refused_in_one_line(run: Any, where: list[object], corpus: Path, tmp_path: Path, pair: Pair) -> None:
    command = ["profile", "acceptance", *where, "--gen-len", 8]
    for name, content, words in (
        ("none.txt", None, "there is no file none.txt; check the path"),
        (
            "latin.txt",
            "caf\u00e9".encode("latin-1"),
            "latin.txt, which --corpus names, is no UTF-8 text (byte 3); convert it, or name another file",
        ),
        ("empty.txt", b" \n", "empty.txt, which --corpus names, holds no text; name a file with text, or leave --corpus out"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        one_line(run(*command, "--corpus", name), words)
    one_line(run(*command, "--corpus", tmp_path), "is a folder; name a file")
    with open(tmp_path / "large.txt", "wb") as large:
        large.truncate((64 << 20) + 1)
    one_line(run(*command, "--corpus", "large.txt"), "large.txt is larger than the limit of 67108864 bytes; pass a part of it as --corpus")
    (tmp_path / "one.txt").write_text("w1")
    outcome = run(*command, "--corpus", "one.txt")
    assert outcome.code == 1
    assert outcome.err.endswith(
        "error: the --corpus is of one token, after which nothing follows; name a longer text, or leave --corpus out\n"
    )
    done(run(*command, "--corpus", corpus, "--corpus", corpus))
    beside = ["--draft", pair[1], "--corpus", "none.txt", "--gen-len", 8]
    one_line(run("tune", *where, *beside, "--dry-run"), "error: there is no file none.txt; check the path")
    one_line(run("potential", *where, *beside), "error: there is no file none.txt; check the path")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(pair[0] / file, bare / file)
    (tmp_path / "ids.jsonl").write_text(json.dumps({"ids": list(range(1, 30))}) + "\n")
    told = ["profile", "acceptance", "--target", bare, "--draft", "ngram", "--device", "cpu", "--dataset", "ids.jsonl"]
    one_line(run(*told, "--corpus", corpus), "a --corpus is read in the target's tokens, but")


def test_names_lead_where_they_should(run: Any, where: list[object], pair: Pair, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "ngram")
    command = ["profile", "acceptance", *where, "--gen-len", 8, "--format", "json"]
    done(run(*command, "-o", "ngram.json"))
    outcome = done(run(*command, "--draft", "./ngram", "--corpus", corpus, "-o", "folder.json"))
    assert "only n-grams read a corpus, so --corpus" in outcome.err
    own, folder = (json.loads((tmp_path / name).read_text()) for name in ("ngram.json", "folder.json"))
    assert own["pair_sha256"] != folder["pair_sha256"]
    one_line(run(*command, "--draft-adapter", tmp_path), "the draft ngram has no weights that --draft-adapter")
    shutil.rmtree(tmp_path / "ngram")
    one_line(run("profile", "acceptance", "--target", "ngram", *where[2:]), "ngram is a draft without a model")
    noted = done(run(*command, "--draft-revision", "abc"))
    assert "--draft-revision abc changes nothing: ngram is not on the hub" in noted.err


def test_missing_times_are_asked_for_by_the_name(run: Any, where: list[object], corpus: Path) -> None:
    done(run("profile", "acceptance", *where, "--gen-len", 8, "--temperature", 0.6, "--corpus", corpus, "-o", "a.json"))
    done(run("profile", "latency", *where[:6], *TIMES, "--corpus", corpus, "-o", "l.json"))
    outcome = run("grow", "--acceptance", "a.json", "--latency", "l.json", "-o", "tree.pt")
    assert outcome.code == 1
    assert "--draft ngram --corpus path/to/corpus" in outcome.err


def test_python_takes_the_name_too(pair: Pair, corpus: Path) -> None:
    import treeopt
    from treespec.errors import ModelError
    from treespec.models.pairs import load_drafts

    loaded = treeopt.load_pair(str(pair[0]), "ngram", corpus=[corpus])
    module = loaded.target.module  # type: ignore[attr-defined]
    given = treeopt.pair(module, "ngram", loaded.tokenizer, corpus=[corpus])
    several = load_drafts(loaded, ["ngram", str(pair[1])], corpus=[corpus])
    text = torch.tensor([[1, 4, 9, 16, 25, 36, 49, 14]])
    wanted = loaded.draft.score(text)
    assert torch.equal(wanted, given.draft.score(text))
    assert torch.equal(wanted, several[0].score(text))
    assert not torch.equal(wanted, treeopt.load_pair(str(pair[0]), "ngram").draft.score(text))
    prompt = "w1 w2 w3 w1 w2 w3 w1 w2"
    text_of = {plan: treeopt.generate(given, prompt, plan=plan, max_new_tokens=8).ids for plan in (treeopt.SpeculationTree.chain(3), None)}
    assert len(set(text_of.values())) == 1
    with pytest.raises(ModelError, match="`corpus` is counted for n-grams, and"):
        treeopt.load_pair(str(pair[0]), str(pair[1]), corpus=[corpus])
