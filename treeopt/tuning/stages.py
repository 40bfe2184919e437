"""The stages of a tuning run, each with its files: profiles, growmaps and the report. A stage whose files are finished is not done again."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from treeopt.growmap_making import Generated, Limits, generate_fastest
from treeopt.optimizer.fitting import BY_RANK
from treeopt.optimizer.selection import prompts_with_steps
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.latency import read_latency
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.tuning.budget import Allotment, Pilot, allot
from treeopt.tuning.folder import Folder
from treeopt.tuning.prompts import Parts, longest_of
from treeopt.tuning.result import Score
from treeopt.tuning.settings import PILOT_PROMPTS, PILOT_REPETITIONS, Candidate, TuneSettings, names
from treeopt.tuning.sharing import Crew
from treespec.evaluation.prediction import prediction_of
from treespec.evaluation.runner import evaluate
from treespec.files.writing import write_json_together
from treespec.models.drafts import recorded_name

Progress = Callable[[str, int, int], None]

_PILOT = "pilot/"
"""The folder of the pilots of a budget of minutes."""


class Stages:
    """The stages of a run. Files are named below its folder."""

    def __init__(
        self,
        crew: Crew,
        parts: Parts,
        folder: Folder,
        settings: TuneSettings,
        progress: Progress,
        notice: Callable[[str], None] | None,
    ) -> None:
        self.crew, self.pairs, self.folder, self.settings, self.notice = crew, crew.pairs, folder, settings, notice
        self.choose, self.profile, self.evaluated = parts
        self.longest = longest_of(parts)
        self.candidates = settings.candidates(len(self.pairs))
        self.names = names(self.candidates, [recorded_name(pair.draft) for pair in self.pairs])
        self._progress = progress
        self.pilots = min(PILOT_PROMPTS, len(self.profile)), PILOT_REPETITIONS
        self.efforts: dict[int, tuple[int, int]] = {}

    def scores(self, loading: float) -> tuple[Score, ...]:
        """Return the scores of all candidates, the fastest first."""
        racing = tuple(range(len(self.candidates)))
        if self.settings.minutes is not None:
            pilots = [self.pilot(one) for one in self.candidates]
            found = self.folder.noted("allotment", lambda: self.pairs[0].agreed(asdict(self.allot(pilots, loading))))
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
        trace = self._held_out(one, acceptance)
        made = generate_fastest([out / acceptance], latency=out / latency, limits=limits, verifier=verifier, trace=trace, models=[BY_RANK])[
            0
        ]
        tree = self.tree(one, prompts, repetitions)
        self.folder.stage([f"{tree}.pt", f"{tree}.json"], [acceptance, latency], lambda journal: made.growmap.write(out / f"{tree}.pt"))
        return made

    def acceptance(self, one: Candidate, prompts: int) -> str:
        """Return the name of an acceptance profile of the first prompts, which is measured if it is not there, with its trace if it can have one."""
        file = f"{self._where(prompts == self.pilots[0])}{self._place(one)}acceptance.json"
        some = self.profile if prompts == len(self.profile) else self.profile.split(prompts)[0]
        own, draft = self.settings.acceptance(one), one.draft - 1
        out, progress = self.folder.out, self._named(one)

        def make(journal: Path) -> None:
            if not self._traced(one):
                self.crew.share(profile_acceptance, draft, some, own, journal=journal, progress=progress).write(out / file)
                return
            profile, traced = self.crew.share(trace_acceptance, draft, some, own, journal=journal, progress=progress)
            write_json_together([(out / file, profile.to_json()), (out / self._trace(file), traced.to_json())])

        self.folder.stage([file, self._trace(file)] if self._traced(one) else [file], [], make)
        return file

    def compare(self, one: Candidate) -> str:
        """Return the name of the acceptance profile on the prompts that candidates are compared on, which is measured if it is not there."""
        file = f"{self._place(one)}choice.json"
        assert self.choose is not None
        prompts, own, progress = self.choose, self.settings.acceptance(one), self._named(one, "choice")

        def make(journal: Path) -> None:
            found = self.crew.share(profile_acceptance, one.draft - 1, prompts, own, journal=journal, progress=progress)
            found.write(self.folder.out / file)

        self.folder.stage([file], [], make)
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
        sources = [acceptance, latency, f"{tree}.pt", f"{tree}.json", *([self._trace(acceptance)] if self._traced(one) else [])]
        targets = ["acceptance.json", "latency.json", "tree.pt", "tree.json", *(["trace.json"] if self._traced(one) else [])]
        self.folder.copy(sources, targets)
        pair, own = self.pairs[one.draft - 1], self.settings.evaluation(one)
        facts = pair.provenance()
        models = {role: name.partition("@")[0] for role, name in facts["models"].items()}
        device = facts["gpu"] or facts["cpu"]
        predicted, said = prediction_of(
            made.growmap, models, device, own.sampling, own.drafting, facts["threads"], facts["tensor_parallel"]
        )
        for sentence in said:
            if self.notice is not None:
                self.notice(sentence)

        def make(journal: Path) -> None:
            plan, said = made.result.tree, {"progress": self._progress, "notice": self.notice}
            found = self.crew.share(evaluate, one.draft - 1, plan, self.evaluated, own, predicted=predicted, journal=journal, **said)
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

    def _traced(self, one: Candidate) -> bool:
        """Return whether steps of a candidate can be counted on the profiled texts: no child is random."""
        return not one.sampled

    def _held_out(self, one: Candidate, acceptance: str) -> Trace | None:
        """Return the trace by which the tree of a candidate promises what trees gave on prompts held out; None without one, and for too few prompts."""
        if not self._traced(one):
            return None
        trace = read_trace(self.folder.out / self._trace(acceptance))
        return trace if prompts_with_steps(trace) > 1 else None

    def _trace(self, acceptance: str) -> str:
        return acceptance.removesuffix("acceptance.json") + "trace.json"

    def _named(self, one: Candidate, what: str = "candidate") -> Progress:
        """Return a progress callback that also says which candidate, or which draft, the work is for, and whether it is for the choice among them."""
        if len(self.candidates) == 1:
            return self._progress
        name = recorded_name(self.pairs[one.draft - 1].draft) if what == "draft" else self.names[self.candidates.index(one)]
        why = ", to choose by" if what == "choice" else ""
        return lambda work, done, total: self._progress(f"{work}: {name}{why}", done, total)
