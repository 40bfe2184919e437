"""Results of `benchmarks.calls`: the ways to call treeopt side by side."""

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run

_WITH, _WITHOUT = "evaluate", "evaluate, no tree"
_ALONE = ", no tree"


def _ratio(data: Data, name: str) -> float:
    """Return a call's tokens per second over those of `evaluate` with the same tree, or without one."""
    calls = data["calls"]
    base = _WITHOUT if name.endswith(_ALONE) or name.startswith("transformers") else _WITH
    return float(calls[name]["tokens_per_second"] / calls[base]["tokens_per_second"])


def _headlines(data: Data) -> list[str]:
    found = [f"{_ratio(data, name):.3f} for `{name}`" for name in ("treeopt.generate", "tree_generate")]
    return [f"tokens per second over those of `evaluate`, with the same tree: {' and '.join(found)}"]


def _prompts(data: Data) -> int:
    return int(data["calls"][_WITH]["tokens"] // (data["gen_len"] - 1))


def _body(run: Run) -> str:
    data = run.data
    tree, prompts = data["tree"], _prompts(data)
    rows = [
        (
            f"`{name.removesuffix(_ALONE)}`{_ALONE if name.endswith(_ALONE) else ''}" if not name.startswith("transformers") else name,
            f"{call['tokens_per_second']:.1f}",
            f"{_ratio(data, name):.3f}",
            f"{call['identical']} of {prompts}",
        )
        for name, call in data["calls"].items()
    ]
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"Each row is a way to decode the same {counted(prompts, 'prompt')} of 128 tokens, {data['gen_len']} tokens each, greedily: with one tree of",
            f"{counted(tree['size'], 'node')} and depth {tree['depth']}, or without a tree. The columns give the tokens per second from the first",
            "token of a text to its last, prompt passes left out; these over those of `evaluate` with the same tree or without one; and how many",
            "outputs equal those of",
            "autoregressive decoding, token for token.",
        ),
        table(("call", "tokens/s", "x evaluate", "identical"), rows),
    )


CALLS = Kind(
    title=lambda data: f"Calls from Python and inside transformers, on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    prompts=_prompts,
)
"""What a file of `benchmarks.calls` says."""
