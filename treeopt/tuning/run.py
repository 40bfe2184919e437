"""A tuning run: profile every candidate, choose the fastest, evaluate it. What is finished is in the folder, and is not done again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treeopt.growmap_making import Generated, Limits, generate
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.latency import read_latency
from treeopt.profiling.acceptance import profile_acceptance, require_fit, trace_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.latency import require_fit as require_latency_fit
from treeopt.tuning.budget import Allotment, Pilot, allot
from treeopt.tuning.folder import FILES, Folder, claimed, versions
from treeopt.tuning.result import Score, Tuning, doubt
from treeopt.tuning.settings import PILOT_PROMPTS, PILOT_REPETITIONS, Candidate, TuneSettings, names
from treespec.data.prompts import PromptSet
from treespec.errors import counted
from treespec.evaluation.prediction import prediction_of
from treespec.evaluation.report import read_report
from treespec.evaluation.runner import evaluate
from treespec.files.load import note_crowding, threads
from treespec.files.writing import write_json_together
from treespec.models.pairs import Pair, PairInfo, recorded_name

Progress = Callable[[str, int, int], None]

Parts = tuple[PromptSet | None, PromptSet, PromptSet]
"""The prompts to compare candidates on (None for a single one), to profile, and to evaluate. No row is in two of them."""


def tune(
    pairs: Sequence[Pair],
    parts: Parts,
    out: Path,
    settings: TuneSettings,
    *,
    record: Mapping[str, Any],
    loading: float = 0.0,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] | None = None,
) -> Tuning:
    """Take all stages that are not finished in the folder `out`, and return the result of all of them.

    `pairs` are the drafts beside one target. `record` are the settings as people gave them, which the folder keeps and compares; `loading` is
    the time that the models took. Raises OutputError, before any work, for a folder of other settings, versions, models, prompts or another
    machine, and for one that another run is in; else the errors of the stages.
    """
    notice = None if notice is None else _once(notice)
    with claimed(out):
        folder = Folder(out)
        run = _Run(pairs, parts, folder, settings, progress, notice)
        run.require_fit()
        folder.begin(
            {
                "settings": record,
                "versions": versions(),
                "machine": _machine(pairs[0]),
                "models": {f"draft {number}": pair.sha256 for number, pair in enumerate(pairs, 1)},
                "prompts": {what: some.fingerprint for what, some in zip(_PARTS, parts, strict=True) if some is not None},
            }
        )
        note_crowding(pairs[0].target.device.type, notice)
        scores = run.scores(loading)
        return _finish(run, scores, run.report(scores[0]), loading)


def require_fit_of(info: Pair | PairInfo, parts: Parts, settings: TuneSettings) -> None:
    """Raise CapacityError or ProfileError for prompts or settings that a pair, which need not be loaded, cannot be tuned with."""
    for candidate in settings.candidates(1):
        for prompts in parts:
            if prompts is not None:
                require_fit(info, prompts, settings.acceptance(candidate))
    require_latency_fit(info, settings.latency(longest_of(parts)))


def longest_of(parts: Parts) -> int:
    """Return the number of tokens of the longest prompt."""
    return max(len(prompt.ids) for some in parts if some is not None for prompt in some)


_PARTS = ("choose", "profile", "evaluate")


class _Run:
    """The stages of a run. Files are named below its folder."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        parts: Parts,
        folder: Folder,
        settings: TuneSettings,
        progress: Progress,
        notice: Callable[[str], None] | None,
    ) -> None:
        self.pairs, self.folder, self.settings, self.notice = pairs, folder, settings, notice
        self.choose, self.profile, self.evaluated = parts
        self.longest = longest_of(parts)
        self.candidates = settings.candidates(len(pairs))
        self.names = names(self.candidates, [recorded_name(pair.draft) for pair in pairs])
        self._progress = progress
        self.pilots = min(PILOT_PROMPTS, len(self.profile)), PILOT_REPETITIONS
        self.efforts: dict[int, tuple[int, int]] = {}

    def require_fit(self) -> None:
        """Raise CapacityError or ProfileError for what cannot be done, before anything is."""
        for pair in self.pairs:
            require_fit_of(pair, (self.choose, self.profile, self.evaluated), self.settings)

    def scores(self, loading: float) -> tuple[Score, ...]:
        """Return the scores of all candidates, the fastest first."""
        racing = tuple(range(len(self.candidates)))
        if self.settings.minutes is not None:
            pilots = [self.pilot(one) for one in self.candidates]
            found = self.folder.noted("allotment", lambda: asdict(self.allot(pilots, loading)))
            racing = tuple(found["racing"])
            self.efforts = dict.fromkeys(racing, (found["prompts"], found["repetitions"]))
        compares = len(racing) > 1 and self.choose is not None
        scores = []
        for place, (one, name) in enumerate(zip(self.candidates, self.names, strict=True)):
            made = self.grow(one, *self.effort(one))
            compared = read_acceptance(self.folder.out / self.compare(one)) if compares and place in racing else None
            latency = read_latency(self.folder.out / self.latency(one.draft, self.effort(one)[1]))
            scores.append(Score.of(one, name, made, compared, latency))
        scores.sort(key=lambda score: (self.candidates.index(score.candidate) not in racing, -score.tokens_per_second))
        return tuple(scores)

    def effort(self, one: Candidate) -> tuple[int, int]:
        """Return how many prompts and samples a candidate gets: all, or what the budget leaves it, which is no more than the pilot's for some."""
        if self.settings.minutes is None:
            return len(self.profile), self.settings.repetitions
        return self.efforts.get(self.candidates.index(one), self.pilots)

    def pilot(self, one: Candidate) -> Pilot:
        """Return what few prompts and samples tell of a candidate."""
        generated = self.grow(one, *self.pilots)
        took = self.folder.data["seconds"]
        acceptance, latency = self.acceptance(one, self.pilots[0]), self.latency(one.draft, self.pilots[1])
        return Pilot(generated, self.pilots[0], took[acceptance], took[latency])

    def allot(self, pilots: Sequence[Pilot], loading: float) -> Allotment:
        """Return how the rest of the minutes is spent: what choosing and evaluating need is left aside."""
        assert self.settings.minutes is not None
        leader = min(pilots, key=lambda pilot: pilot.generated.seconds_per_token)
        own = leader.generated.seconds_per_token
        alone = own * (leader.generated.result.predicted_speedup or 1.0)
        decoding = (len(self.evaluated) + 1) * self.settings.gen_len * (own + alone)
        per_prompt = sum(pilot.acceptance_seconds / pilot.prompts for pilot in pilots)
        choosing = 0.0 if self.choose is None or len(pilots) == 1 else len(self.choose) * per_prompt
        left = 60 * self.settings.minutes - loading - self.folder.spent - decoding - choosing
        return allot(pilots, [one.draft for one in self.candidates], left, len(self.profile))

    def grow(self, one: Candidate, prompts: int, repetitions: int) -> Generated:
        """Return the best tree of a candidate, with profiles of so many prompts and samples, and write its growmap."""
        acceptance, latency = self.acceptance(one, prompts), self.latency(one.draft, repetitions)
        limits = Limits(max_size=self.settings.max_size, max_depth=self.settings.max_depth)
        verifier = one.drafting.verifier if one.sampled else None
        out = self.folder.out
        made = generate(out / acceptance, latency=out / latency, limits=limits, verifier=verifier)
        tree = self.tree(one, prompts, repetitions)
        self.folder.stage([f"{tree}.pt", f"{tree}.json"], [acceptance, latency], lambda journal: made.growmap.write(out / f"{tree}.pt"))
        return made

    def acceptance(self, one: Candidate, prompts: int) -> str:
        """Return the name of an acceptance profile of the first prompts, which is measured if it is not there, with its trace if it can have one."""
        file = f"{self._where(prompts == self.pilots[0])}{self._place(one)}acceptance.json"
        some = self.profile if prompts == len(self.profile) else self.profile.split(prompts)[0]
        own, pair = self.settings.acceptance(one), self.pairs[one.draft - 1]
        out, progress = self.folder.out, self._named(one)

        def make(journal: Path) -> None:
            if one.sampled:
                profile_acceptance(pair, some, own, journal=journal, progress=progress).write(out / file)
                return
            profile, traced = trace_acceptance(pair, some, own, journal=journal, progress=progress)
            write_json_together([(out / file, profile.to_json()), (out / self._trace(file), traced.to_json())])

        self.folder.stage([file] if one.sampled else [file, self._trace(file)], [], make)
        return file

    def compare(self, one: Candidate) -> str:
        """Return the name of the acceptance profile on the prompts that candidates are compared on, which is measured if it is not there."""
        file = f"{self._place(one)}choice.json"
        assert self.choose is not None
        prompts, own, pair = self.choose, self.settings.acceptance(one), self.pairs[one.draft - 1]
        progress = self._named(one)
        self.folder.stage(
            [file],
            [],
            lambda journal: profile_acceptance(pair, prompts, own, journal=journal, progress=progress).write(self.folder.out / file),
        )
        return file

    def latency(self, draft: int, repetitions: int) -> str:
        """Return the name of the latency profile of a draft, which is measured if it is not there."""
        file = f"{self._where(repetitions == self.pilots[1])}{self._drafts(draft)}latency.json"
        pair, own = self.pairs[draft - 1], self.settings.latency(self.longest, repetitions)
        progress = self._named(next(one for one in self.candidates if one.draft == draft), "draft")

        def make(journal: Path) -> None:
            profile_latency(pair, own, journal=journal, progress=progress, notice=self.notice).write(self.folder.out / file)

        self.folder.stage([file], [], make)
        return file

    def tree(self, one: Candidate, prompts: int, repetitions: int) -> str:
        """Return the name of a candidate's growmap, made of so many prompts and samples, without its ending."""
        own = f"-{one.drafting.verifier}" if one.sampled and len(self.candidates) > 1 else ""
        return f"{self._where((prompts, repetitions) == self.pilots)}{self._place(one)}tree{own}"

    def report(self, best: Score) -> str:
        """Copy the files of the best candidate to the folder itself, evaluate its tree there, and return the name of the report."""
        one, made, out = best.candidate, best.generated, self.folder.out
        prompts, repetitions = self.effort(one)
        acceptance, latency, tree = (
            self.acceptance(one, prompts),
            self.latency(one.draft, repetitions),
            self.tree(one, prompts, repetitions),
        )
        sources = [acceptance, latency, f"{tree}.pt", f"{tree}.json", *([] if one.sampled else [self._trace(acceptance)])]
        targets = ["acceptance.json", "latency.json", "tree.pt", "tree.json", *([] if one.sampled else ["trace.json"])]
        self.folder.copy(sources, targets)
        pair, own = self.pairs[one.draft - 1], self.settings.evaluation(one)
        facts = pair.provenance()
        models = {role: name.partition("@")[0] for role, name in facts["models"].items()}
        device = facts["gpu"] or facts["cpu"]
        predicted, said = prediction_of(made.growmap, models, device, own.sampling, own.drafting, facts["threads"])
        for sentence in said:
            if self.notice is not None:
                self.notice(sentence)

        def make(journal: Path) -> None:
            plan, progress = made.result.tree, self._progress
            found = evaluate(pair, plan, self.evaluated, own, predicted=predicted, journal=journal, progress=progress, notice=self.notice)
            found.write(out / "report.json")

        self.folder.stage(["report.json"], ["tree.pt"], make)
        return "report.json"

    def _where(self, pilot: bool) -> str:
        """Return the folder of pilots, if this is one of a budget of minutes."""
        return _PILOT if pilot and self.settings.minutes is not None else ""

    def _place(self, one: Candidate) -> str:
        """Return where the files of a candidate are: in the folder itself, if it is the only one."""
        return "" if len(self.candidates) == 1 else f"{self._drafts(one.draft)}{one.profile_name}/"

    def _drafts(self, draft: int) -> str:
        return "" if len(self.candidates) == 1 else f"candidates/{draft}/"

    def _trace(self, acceptance: str) -> str:
        return acceptance.removesuffix("acceptance.json") + "trace.json"

    def _named(self, one: Candidate, what: str = "candidate") -> Progress:
        """Return a progress callback that also says which candidate, or which draft, the work is for."""
        if len(self.candidates) == 1:
            return self._progress
        name = recorded_name(self.pairs[one.draft - 1].draft) if what == "draft" else self.names[self.candidates.index(one)]
        return lambda work, done, total: self._progress(f"{work}: {name}", done, total)


_PILOT = "pilot/"
"""The folder of the pilots of a budget of minutes."""

_STAGES = {"acceptance.json": "profile acceptance", "latency.json": "profile latency", "choice.json": "choose", "report.json": "evaluate"}


def _finish(run: _Run, scores: tuple[Score, ...], report: str, loading: float) -> Tuning:
    """Record that all is done, and return the result. What is made of the whole result, such as a page, is to be written here."""
    out, best = run.folder.out, scores[0]
    seconds: dict[str, float] = {"load": loading} if loading else {}
    for file, took in run.folder.data["seconds"].items():
        stage = _STAGES.get(file.rpartition("/")[2], "grow")
        seconds[stage] = seconds.get(stage, 0.0) + took
    said = [*best.generated.notes, *best.generated.doubts, doubt(scores), _temperatures(scores), _spent(run)]
    result = Tuning(
        out,
        scores,
        best.generated.growmap,
        read_acceptance(out / "acceptance.json"),
        read_latency(out / "latency.json"),
        read_report(out / report),
        tuple(name for name in FILES if (out / name).is_file()),
        tuple(dict.fromkeys(sentence for sentence in said if sentence is not None)),
        seconds,
    )
    run.folder.finish(
        chosen=best.summary(),
        candidates=[score.summary() for score in scores],
        prompts={
            what: some.describe() for what, some in zip(_PARTS, (run.choose, run.profile, run.evaluated), strict=True) if some is not None
        },
        provenance=run.pairs[best.candidate.draft - 1].provenance(seed=run.settings.seed),
    )
    return result


def _temperatures(scores: Sequence[Score]) -> str | None:
    if len({score.candidate.sampling for score in scores}) < 2:
        return None
    return "the candidates differ in temperature or top-p, and so do the texts that they write: the fastest was chosen, not the best text"


def _spent(run: _Run) -> str | None:
    found = run.folder.data["notes"].get("allotment")
    if found is None:
        return None
    out = len(run.candidates) - len(found["racing"])
    left = f"; {counted(out, 'candidate')} {'was' if out == 1 else 'were'} certainly slower and got no more than the pilot" if out else ""
    return (
        f"after the pilots, the budget of {run.settings.minutes:g} min was spent on {counted(found['prompts'], 'prompt')} and "
        f"{found['repetitions']} samples of each latency{left}"
    )


def _once(notice: Callable[[str], None]) -> Callable[[str], None]:
    """Return a notice that says each sentence once, whatever stage says it."""
    said: set[str] = set()

    def say(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notice(sentence)

    return say


def _machine(pair: Pair) -> dict[str, Any]:
    facts = pair.provenance()
    on_cpu = pair.target.device.type == "cpu"
    known = {"device": str(pair.target.device), "processor": facts["gpu"] or facts["cpu"], "dtype": facts["dtype"]}
    return known | ({"threads": threads()} if on_cpu else {})
