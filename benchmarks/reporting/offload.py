"""Results of `benchmarks.offload`: offloaded decoding beside the time that its weights take to arrive."""

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, Slower, speedup, told, verdict

BOUND = {"autoregressive": "x bound, autoregressive", "tree": "x bound, tree"}
"""The keys of the goals in the file, by decoder."""
SHARE = "speed-up / tokens per step"


def tree_name(data: Data) -> str:
    """Return what a table calls the tree."""
    return f"tree of {data['tree']['size']} nodes, depth {data['tree']['depth']}"


def checks_of(data: Data) -> list[Check]:
    """Return the figures that have a goal."""
    goals, figures = data["goals"], data["figures"]
    names = {"autoregressive": "offloaded autoregressive step", "tree": f"offloaded step of a {tree_name(data)}"}
    found = [Check(names[way], figures[key], Goal(goals[key], "x bound")) for way, key in BOUND.items()]
    return [*found, Check("speed-up of the offloaded tree / tokens per step", figures[SHARE], Goal(goals[SHARE], "", at_most=False), 3)]


def slower_of(data: Data) -> list[Slower]:
    """Return the tree, if it was slower than autoregressive decoding."""
    return [Slower(f"offloaded {tree_name(data)}", data["speedup"], "offloaded autoregressive decoding")] if data["speedup"] < 1 else []


def _headlines(data: Data) -> list[str]:
    found, predicted = data["systems"]["tree"], data["tree"]["expected_tokens_per_step"]
    return [
        f"offloaded {tree_name(data)}: {speedup(data['speedup'])} x offloaded autoregressive decoding,"
        f" {found['tokens_per_step']:.2f} tokens per step (predicted: {predicted:.2f})"
    ]


def _body(run: Run) -> str:
    data = run.data
    systems, passes, bound, on_device = data["systems"], data["pass_seconds"], data["bound_seconds"], data["on_device"]
    ways, (*bounds, share) = {"autoregressive": "autoregressive", "tree": tree_name(data)}, checks_of(data)
    rows = [
        [
            ways[way],
            f"{1e3 * found['seconds_per_step']:,.0f}",
            check.figure,
            f"{found['tokens_per_step']:.2f}",
            f"{data['tree']['expected_tokens_per_step']:.2f}" if way == "tree" else "",
            f"{found['tokens'] / found['seconds']:.2f}",
            f"{1e3 * on_device[way]['seconds_per_step']:.1f}",
            verdict([check]),
        ]
        for (way, found), check in zip(((way, systems[way]) for way in ways), bounds, strict=True)
    ]
    rows += [
        [f"{who}, a plain pass over one token", f"{1e3 * passes[key]:,.0f}", f"{passes[key] / bound:.2f}", *[""] * 5]
        for who, key in (("treeopt", "treeopt"), ("accelerate's `cpu_offload`", "accelerate"))
    ]
    equal = data["equal_outputs"]
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            "The target has the cost of Llama-2-13B, and its layers are in host memory; the draft has the cost of llama-68m, on the GPU.",
            f"Copies of pinned memory ran at {data['bandwidth'] / 1e9:.1f} GB/s, so that {data['streamed_bytes'] / 1e9:.1f} GB of layers take",
            f"{1e3 * bound:.0f} ms, which is the bound. The run decoded {counted(data['prompts'], 'prompt')} of 128 tokens greedily, with",
            f"{counted(data['gen_len'], 'token')} generated for each.",
        ),
        paragraph(
            "Each row is a way to take one step. The columns give its milliseconds, these over the bound, the tokens per step, those that the",
            "acceptance profile predicted, the tokens per second, the milliseconds of the same step by the same modules with all weights on the",
            "GPU, and the goal that was set for the step over the bound.",
        ),
        table(("step", "ms", "x bound", "tokens per step", "predicted tokens per step", "tokens/s", "ms, on the GPU", "goal"), rows),
        told(slower_of(data)),
        paragraph(
            "The columns give the speed-up of the tree over offloaded autoregressive decoding, that speed-up over the tokens per step with its goal,",
            "and whether outputs of both ways are equal, and equal to those of the same models on the GPU.",
        ),
        table(
            ("speed-up", SHARE, "goal", "tree = autoregressive", "offloaded = on the GPU"),
            [
                [
                    speedup(data["speedup"]),
                    share.figure,
                    verdict([share]),
                    *("yes" if equal[key] else "no" for key in ("tree and autoregressive", "offloaded and on the device")),
                ]
            ],
            left=0,
        ),
        _memory(data),
    )


def _memory(data: Data) -> str:
    memory = data["memory_bytes"]
    columns = ("two layers", "rest of the target", "draft", "K/V", "at most")
    sizes = [f"{memory[key] / 1e9:.2f}" for key in ("two_layers", "rest_of_target", "draft", "kv", "peak")]
    says = paragraph(
        "The columns give GB of GPU memory: two layers of the target, which is all that is there of its layers at a time, the other parts, and what",
        "was allocated at most.",
    )
    return parts(says, table(columns, [sizes], left=0))


OFFLOAD = Kind(
    title=lambda data: f"Offloading on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    checks=checks_of,
    slower=slower_of,
    prompts=lambda data: int(data["prompts"]),
)
"""What a file of `benchmarks.offload` says."""
