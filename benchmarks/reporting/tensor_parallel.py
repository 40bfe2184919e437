"""Predictions of `benchmarks.tensor_parallel`: what a target gains that several GPUs hold together."""

from benchmarks.reporting.markdown import counted, day, details, device, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run


def _body(run: Run) -> str:
    data, link, target, known = run.data, run.data["link"], run.data["target"], run.data["provenance"]
    rows = [
        [
            str(row["prompts"]),
            str(row["processes"]),
            f"{1e3 * row['token_seconds']:.2f}",
            f"{1e3 * row['joining_seconds']:.2f}",
            f"({row['size']}, {row['depth']})",
            f"{row['tokens_per_step']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['over_one_process']:.2f}",
        ]
        for row in data["rows"]
    ]
    return parts(
        paragraph(
            f"Nothing here was measured on several GPUs: `{run.command}` predicts it from the passes of one, for {counted(target['layers'], 'layer')}",
            f"of width {target['width']} and {counted(target['vocabulary'], 'token')}. Measured on {device(known)} ({details(known)}) on {day(known)} by",
            f"`python -m benchmarks.engine`, with torch {known['torch']}, these are in `benchmarks/results/{data['file']}`. The predictions are in",
            f"`benchmarks/results/{run.file}`, and the head of `benchmarks/tensor_parallel.py` has the model. Assumed are",
            f"{1e6 * link['launch_seconds']:g} µs for a collective, {1e6 * link['hop_seconds']:g} µs for each hop, and",
            f"{link['bytes_per_second'] / 1e9:.0f} GB/s from one GPU to the next: measurements may refute them.",
        ),
        paragraph(
            "Each row is a number of prompts that one pass reads, and of processes that hold the target. The columns give the milliseconds of",
            "a token without a tree, and of these, what the processes spend on joining their results; the best tree (nodes of each prompt,",
            "depth), its tokens per step, its speed-up over decoding without a tree on as many GPUs, and how much faster it is than the",
            "best tree of one process.",
        ),
        table(
            ("prompts", "processes", "ms per token", "joining, ms", "tree", "tokens per step", "speed-up of the tree", "x one process"),
            rows,
            left=0,
        ),
    )


def _headlines(data: Data) -> list[str]:
    alone = [row for row in data["rows"] if row["prompts"] == 1]
    most = max(alone, key=lambda row: float(row["over_one_process"]))
    return [
        f"predicted, not measured: {most['processes']} GPUs decode a prompt {most['over_one_process']:.2f} times as fast as one, both with "
        f"their best tree; the tree's own speed-up is {most['speedup']:.2f} there, and {alone[0]['speedup']:.2f} on one"
    ]


TENSOR_PARALLEL = Kind(title=lambda data: "A target held by several GPUs, predicted", body=_body, headlines=_headlines)
"""What a file of `benchmarks.tensor_parallel` says."""
