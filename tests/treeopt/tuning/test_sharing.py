"""What the first process of a run orders, the others do, in folders of their own."""

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.reference.pairs import prompt_set, tiny_pair
from tests.reference.processes import together
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.tuning.sharing import Crew
from treespec.errors import CapacityError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.journal import Journal, journal_of_rank
from treespec.files.processes import Processes
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

SETTINGS = AcceptanceSettings(gen_len=4, max_branch=3, batch_size=1)
MAKING = threading.Lock()


def pairs() -> list[Pair]:
    """A good draft and a bad one; torch's seed is one for all threads."""
    with MAKING:
        return [tiny_pair(), tiny_pair(noise=1.0)]


def quiet(what: str, done: int, total: int) -> None:
    """Say nothing."""


def test_the_others_do_their_share_of_every_order_until_the_run_is_over(tmp_path: Path) -> None:
    prompts = prompt_set(4)

    def run(processes: Processes) -> Any:
        crew, out = Crew(pairs(), processes), tmp_path / f"host{processes.place.rank}" / "tuned"
        if not processes.place.first:
            crew.serve()
            return None
        out.mkdir(parents=True)
        journals = [out / "acceptance.json.journal", out / "trace.json.journal", out / "report.json.journal"]
        profile = crew.share(profile_acceptance, 1, prompts, SETTINGS, journal=journals[0], progress=quiet)
        traced, _ = crew.share(trace_acceptance, 0, prompts, SETTINGS, journal=journals[1], progress=quiet)
        plan, own = SpeculationTree.chain(2), EvaluationSettings(gen_len=4)
        report = crew.share(evaluate, 0, plan, prompts, own, journal=journals[2], progress=quiet, notice=lambda said: None)
        crew.dismiss()
        return profile, traced, report

    profile, traced, report = together(2, run)[0]
    alone = pairs()
    assert profile.prompt_sums == profile_acceptance(alone[1], prompts, SETTINGS).prompt_sums
    assert traced.prompt_sums == profile_acceptance(alone[0], prompts, SETTINGS).prompt_sums
    assert profile.prompt_sums != traced.prompt_sums
    assert [one.row for one in report.results] == [0, 1, 2, 3]
    assert report.lossless in ("match", "ties")
    assert report.provenance["processes"] == 2


def test_the_others_delete_their_journals_when_the_first_one_goes_on(tmp_path: Path) -> None:
    """It has saved a result when it orders more, or says that all is over."""
    prompts, kept = prompt_set(4), []

    def run(processes: Processes) -> None:
        crew, out = Crew(pairs(), processes), tmp_path / f"host{processes.place.rank}"
        out.mkdir()
        if not processes.place.first:
            with Journal(journal_of_rank(tmp_path / "host0" / "a.journal", 1), "left by another run") as journal:
                journal.put("0", 0)
            crew.serve()
            return
        for name in ("a", "b"):
            crew.share(profile_acceptance, 0, prompts, SETTINGS, journal=out / f"{name}.journal", progress=quiet)
            kept.append((out / f"{name}.journal").exists())
        crew.dismiss()

    together(2, run)
    assert any(kept)
    assert [path.name for path in (tmp_path / "host0").iterdir() if path.suffix != ".lock"] == ["a.journal.rank1.old"]


def test_an_error_of_another_process_ends_the_first(tmp_path: Path) -> None:
    def run(processes: Processes) -> None:
        crew = Crew(pairs(), processes)
        if not processes.place.first:
            crew.serve()
            return
        long = AcceptanceSettings(gen_len=4000, max_branch=3)
        crew.share(profile_acceptance, 0, prompt_set(2), long, journal=tmp_path / "j", progress=quiet)

    with pytest.raises(CapacityError):
        together(2, run)
