"""The demo: the whole loop (profile, generate, evaluate) on the embedded pair and the standard library's own text."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from treeopt.growmap_making import generate, notes_of
from treeopt.optimizer.search import OptimizationResult
from treeopt.profiles.acceptance import ACCEPTANCE_SCHEMA, AcceptanceProfile
from treeopt.profiles.latency import LATENCY_SCHEMA, LatencyProfile
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import load_prompts
from treespec.evaluation.prediction import prediction_of
from treespec.evaluation.report import SCHEMA, EvaluationReport
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.load import note_crowding
from treespec.files.writing import check_writable, make_folder
from treespec.models.pairs import load_pair
from treespec.trees.growmap import check_growmap_writable

Progress = Callable[[str, int, int], None]

FILES = ("acceptance.json", "latency.json", "tree.pt", "tree.json", "report.json")
"""Files that the demo leaves in its folder."""

WORTH_WHILE = 1.2
"""Speed-ups below this one are explained."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes that keep the demo within a minute on two idle CPU cores. Lengths are in tokens per prompt, repetitions are per cell.

    `sizes` and `widths` are those of `LatencySettings`.
    """

    profile_prompts: int = 48
    evaluate_prompts: int = 6
    prompt_len: int = 128
    gen_len: int = 128
    max_branch: int = 16
    sizes: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    repetitions: int = LatencySettings.repetitions


@dataclass(frozen=True)
class DemoResult:
    """The result of each stage of the loop; `seconds` is the wall time of each stage."""

    out: Path
    acceptance: AcceptanceProfile
    latency: LatencyProfile
    optimization: OptimizationResult
    report: EvaluationReport
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Sentences for people on the growmap's promise."""

    @property
    def verdict(self) -> str:
        """One sentence on the speed-up and, if it is small, on its limits."""
        return explain_speedup(self.report, self.optimization, self.latency)


def run_demo(
    out: Path,
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
    settings: DemoSettings = DemoSettings(),
    notice: Callable[[str], None] | None = None,
) -> DemoResult:
    """Profile the embedded pair, generate the best growmap, evaluate it, and write FILES to the folder `out`.

    The evaluation takes rows that come after the profiled ones. Each file is written when its stage is done. `notice` is told if torch has more
    threads than there are idle cores. Raises TreeoptError, and OutputError before any work if `out` cannot be written.
    """
    make_folder(out)
    check_writable(out / "acceptance.json", ACCEPTANCE_SCHEMA)
    check_writable(out / "latency.json", LATENCY_SCHEMA)
    check_growmap_writable(out / "tree.pt")
    check_writable(out / "report.json", SCHEMA)
    seconds: dict[str, float] = {}
    with _timed("load", seconds):
        pair = load_pair("embedded-target", "embedded-draft", device=device, dtype="auto")
        profiled = load_prompts("stdlib", pair.tokenizer, num_prompts=settings.profile_prompts, prompt_len=settings.prompt_len)
        held_back = load_prompts(
            "stdlib", pair.tokenizer, num_prompts=settings.evaluate_prompts, prompt_len=settings.prompt_len, start=profiled.end
        )
    note_crowding(device, notice)
    with _timed("profile acceptance", seconds):
        measure = AcceptanceSettings(gen_len=settings.gen_len, max_branch=settings.max_branch, batch_size=settings.profile_prompts)
        acceptance = profile_acceptance(pair, profiled, measure, journal=None, progress=progress)
        for name in FILES[1:]:  # of an earlier demo: they would describe other profiles
            (out / name).unlink(missing_ok=True)
        acceptance.write(out / "acceptance.json")
    with _timed("profile latency", seconds):
        context = settings.prompt_len + settings.gen_len // 2
        cells = LatencySettings(settings.sizes, settings.widths, contexts=(context,), repetitions=settings.repetitions)
        latency = profile_latency(pair, cells, journal=None, progress=progress)
        latency.write(out / "latency.json")
    with _timed("generate", seconds):
        generated = generate(out / "acceptance.json", latency=out / "latency.json")
        generated.growmap.write(out / "tree.pt")
    with _timed("evaluate", seconds):
        result = generated.result
        decode = EvaluationSettings(gen_len=settings.gen_len)
        predicted, _ = prediction_of(generated.growmap, {}, None, decode.sampling, decode.drafting)
        report = evaluate(pair, result.tree, held_back, decode, predicted=predicted, journal=None, progress=progress)
        report.write(out / "report.json")
    return DemoResult(out, acceptance, latency, result, report, seconds, notes_of([generated]))


def explain_speedup(report: EvaluationReport, result: OptimizationResult, latency: LatencyProfile | None = None) -> str:
    """Return one sentence on the measured speed-up and, if it is below WORTH_WHILE, on its limits."""
    speedup = report.speedup
    if result.tree.size == 1:
        return "no speed-up: with these latencies no tree beats plain decoding on this machine, so the growmap is the root alone"
    if speedup is None:
        return "no speed-up can be told: every prompt ended with its first token"
    measured = f"speed-up {speedup:.2f} x over autoregressive decoding"
    if speedup >= WORTH_WHILE:
        return measured
    reasons = []
    step = report.seconds_per_step
    figures = [("tokens per step", report.tokens_per_step, result.expected_tokens_per_step, 1.0)]
    if result.predicted_seconds_per_step is not None and result.predicted_speedup is not None:
        per_token = result.predicted_speedup * result.predicted_seconds_per_step / result.expected_tokens_per_step
        figures.append(("ms per step", step, result.predicted_seconds_per_step, 1e3))
        figures.append(("autoregressive ms per token", report.baseline_seconds_per_token, per_token, 1e3))
        reasons.append(f"predicted {result.predicted_speedup:.2f} x")
    reasons += [
        f"{what} {unit * found:.2f} measured, {unit * promised:.2f} predicted"
        for what, found, promised, unit in figures
        if found is not None
    ]
    if latency is not None:
        model = latency.at_context()
        share = model.draft_seconds(1) / model.target_seconds(1)
        reasons.append(f"here one draft pass costs {share:.2f} of a target pass, and a step of this tree needs {result.tree.depth}")
    return f"{measured}, less than {WORTH_WHILE} x: {'; '.join(reasons)}"


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
