"""Results of `benchmarks.vision`: what a picture, a prompt and a step cost."""

from typing import Any

from benchmarks.reporting.markdown import device, origin, paragraph, section, table


def vision(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.vision`."""
    memory = data["memory_bytes"]
    rows = [
        ["target", f"{data['target_picture_ms']:.1f}", f"{data['target_prompt_ms']:.1f}", f"{data['autoregressive_step_ms']:.2f}"],
        ["draft", f"{data['draft_picture_ms']:.1f}", f"{data['draft_prompt_ms']:.1f}", ""],
        ["step of a tree of 64 nodes, depth 7", "", "", f"{data['tree_step_ms']:.2f}"],
        ["transformers `generate`, target", "", f"{data['transformers_prompt_ms']:.1f}", f"{data['transformers_token_ms']:.1f}"],
    ]
    equal = "equal" if data["outputs_equal"] else f"part at token {data['first_difference'][0]}"
    return section(
        f"Pictures on {device(data['provenance'])}",
        origin(data["provenance"], command, file),
        paragraph(
            f"There is one picture of {data['picture_rows']} rows in a prompt of {data['prompt_tokens']} tokens: the columns give the milliseconds of the",
            "picture's own pass, of the whole prompt's pass, and of a token (for the tree: of a step). Random weights accept next to nothing, so this",
            f"says what a step costs, not how many tokens it yields. Outputs with and without the tree are {equal}.",
        ),
        table(("what", "picture", "prompt", "token or step"), rows),
        paragraph("The columns give GB of GPU memory: the weights, the K/V caches, and what was reserved above the weights at most."),
        table(
            ("weights", "K/V", "above the weights, K/V included"),
            [[f"{n / 1e9:.2f}" for n in (memory["weights"], memory["kv"], memory["peak_reserved"] - memory["weights"])]],
            left=0,
        ),
    )
