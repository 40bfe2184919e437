"""What a notebook shows of models and prompts is one line."""

import treeopt
from treespec.models.pairs import load_pair


def test_pairs_name_their_models_and_prompts_say_where_they_are_from() -> None:
    pair = load_pair("embedded-target", "embedded-draft")
    assert repr(pair) == "Pair(target='embedded-target, float32 on cpu', draft='embedded-draft, float32 on cpu')"
    assert repr(pair.alone()) == "Target(target='embedded-target, float32 on cpu')"
    prompts = treeopt.load_prompts("stdlib", pair, num_prompts=3, prompt_len=8)
    assert repr(prompts) == f"PromptSet(prompts=3, rows='stdlib[0:{prompts.end}]')"
