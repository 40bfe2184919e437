"""Results of `benchmarks.offload`: offloaded decoding beside the time that its weights take to arrive."""

from typing import Any

from benchmarks.reporting.markdown import device, origin, paragraph, section, table


def offload(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.offload`."""
    tree, systems, passes = data["tree"], data["systems"], data["pass_seconds"]
    bound, on_device = data["bound_seconds"], data["on_device"]
    rows = [
        [
            name,
            f"{1e3 * found['seconds_per_step']:,.0f}",
            f"{found['seconds_per_step'] / bound:.2f}",
            f"{found['tokens_per_step']:.2f}",
            f"{found['tokens'] / found['seconds']:.2f}",
            f"{1e3 * resident['seconds_per_step']:.1f}",
        ]
        for name, found, resident in (
            ("autoregressive", systems["autoregressive"], on_device["autoregressive"]),
            (f"tree of {tree['size']} nodes, depth {tree['depth']}", systems["tree"], on_device["tree"]),
        )
    ]
    rows += [
        [f"{who}, a plain pass over one token", f"{1e3 * passes[key]:,.0f}", f"{passes[key] / bound:.2f}", "", "", ""]
        for who, key in (("treeopt", "treeopt"), ("accelerate's `cpu_offload`", "accelerate"))
    ]
    equal = data["equal_outputs"]
    return section(
        f"Offloading on {device(data['provenance'])}",
        origin(data["provenance"], command, file),
        paragraph(
            "The target is the embedded one with the cost of Llama-2-13B, its layers in host memory; the draft is the embedded one with the cost of",
            f"llama-68m. Copies of pinned memory ran at {data['bandwidth'] / 1e9:.1f} GB/s, so that {data['streamed_bytes'] / 1e9:.1f} GB of layers take",
            f"{1e3 * bound:.0f} ms, which is the bound. The run decoded {data['prompts']} prompts of 128 + {data['gen_len']} tokens greedily.",
        ),
        paragraph(
            "Each row is a way to take one step: the columns give its milliseconds, these over the bound, the tokens per step, the tokens per",
            "second, and the milliseconds of the same step by the same modules with all weights on the GPU.",
        ),
        table(("step", "ms", "x bound", "tokens per step", "tokens/s", "ms, on the GPU"), rows),
        paragraph(
            "The columns give the speed-up of the tree over offloaded autoregressive decoding, that speed-up over the tokens per step, and whether",
            "outputs of both ways are equal, and equal to those of the same models on the GPU.",
        ),
        table(
            ("speed-up", "speed-up / tokens per step", "tree = autoregressive", "offloaded = on the GPU"),
            [
                [
                    f"{data['speedup']:.2f}",
                    f"{data['figures']['speed-up / tokens per step']:.3f}",
                    *("yes" if equal[key] else "no" for key in ("tree and autoregressive", "offloaded and on the device")),
                ]
            ],
            left=0,
        ),
        _memory(data),
    )


def _memory(data: dict[str, Any]) -> str:
    memory = data["memory_bytes"]
    columns = ("two layers", "rest of the target", "draft", "K/V", "at most")
    sizes = [f"{memory[key] / 1e9:.2f}" for key in ("two_layers", "rest_of_target", "draft", "kv", "peak")]
    says = paragraph("The columns give GB of GPU memory: what the parts take, and what was allocated at most.")
    return f"{says}\n\n{table(columns, [sizes], left=0)}"
