"""Results of `benchmarks.decoding`: four decoders side by side."""

from benchmarks.reporting.markdown import day, device, origin, parts
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.side_by_side import Predicted, Systems, headline, prompts_of, side_by_side, slower_systems


def systems_of(data: Data) -> Systems:
    """Return the decoders of a file."""
    tree, predicted = data["tree"], data["predicted"]
    names = {
        "treeopt autoregressive": "treeopt, autoregressive",
        "treeopt tree": f"treeopt, the tree it chose, {tree['size']} nodes, depth {tree['depth']}",
    }
    known = Predicted(predicted["tokens_per_step"], predicted["speedup"], predicted["seconds_per_step"])
    return Systems(data["systems"], "treeopt autoregressive", "treeopt tree", names.__getitem__, known)


def _body(run: Run) -> str:
    return parts(origin(run.data["provenance"], run.command, run.file), side_by_side(run, systems_of(run.data)))


DECODING = Kind(
    title=lambda data: f"Four decoders on {device(data['provenance'])}, {day(data['provenance'])}",
    body=_body,
    headlines=lambda data: [headline(systems_of(data))],
    slower=lambda data: slower_systems(systems_of(data)),
    prompts=prompts_of(systems_of),
)
"""What a file of `benchmarks.decoding` says."""
