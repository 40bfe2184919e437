"""Results of `benchmarks.vision`: what a picture, a prompt and a step cost."""

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run

TREE = "tree of 64 nodes, depth 7"


def _outputs(data: Data) -> str:
    equal = data["outputs_equal"]
    return "are equal" if equal else f"part at token {data['first_difference'][0]}"


def _body(run: Run) -> str:
    data = run.data
    memory = data["memory_bytes"]
    rows = [
        ["target", f"{data['target_picture_ms']:.1f}", f"{data['target_prompt_ms']:.1f}", f"{data['autoregressive_step_ms']:.2f}"],
        ["draft", f"{data['draft_picture_ms']:.1f}", f"{data['draft_prompt_ms']:.1f}", ""],
        [f"step of a {TREE}", "", "", f"{data['tree_step_ms']:.2f}"],
        ["transformers `generate`, target", "", f"{data['transformers_prompt_ms']:.1f}", f"{data['transformers_token_ms']:.1f}"],
    ]
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"There is one picture of {counted(data['picture_rows'], 'row')} of embeddings in a prompt of {counted(data['prompt_tokens'], 'token')}.",
            "The columns give the milliseconds of the picture's own pass, of the whole prompt's pass, and of a token (for the tree: of a step).",
            "Random weights accept next to nothing, so this says what a step costs, not how many tokens it yields. Outputs with and without the",
            f"tree {_outputs(data)}.",
        ),
        table(("what", "picture", "prompt", "token or step"), rows),
        paragraph("The columns give GB of GPU memory: the weights, the K/V caches, and what was reserved above the weights at most."),
        table(
            ("weights", "K/V", "above the weights, K/V included"),
            [[f"{n / 1e9:.2f}" for n in (memory["weights"], memory["kv"], memory["peak_reserved"] - memory["weights"])]],
            left=0,
        ),
    )


def _headlines(data: Data) -> list[str]:
    tree, token = data["tree_step_ms"], data["autoregressive_step_ms"]
    return [f"step of a {TREE}: {tree:.2f} ms, where a token without a tree takes {token:.2f} ms; outputs {_outputs(data)}"]


VISION = Kind(title=lambda data: f"Pictures on {device(data['provenance'])}", body=_body, headlines=_headlines, prompts=lambda data: 1)
"""What a file of `benchmarks.vision` says."""
