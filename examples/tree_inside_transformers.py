"""A tree inside transformers' `generate`: the call that you have, with two arguments more, gives the same tokens in fewer passes.

The pair is the tiny one that comes with treeopt, so this runs anywhere, on the CPU and offline, in half a minute.
"""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from treespec import SpeculationTree
from treespec.integrations.transformers import tree_generate
from treespec.models.locating import folder_of

target, draft = (AutoModelForCausalLM.from_pretrained(folder_of(name)) for name in ("embedded-target", "embedded-draft"))
tokenizer = AutoTokenizer.from_pretrained(folder_of("embedded-target"))
inputs = tokenizer("class Stack:\n    def push(self, item):\n", return_tensors="pt")
tree = SpeculationTree.k_ary(2, 3)  # a growmap, its file or its name would go under `growmap=`

for asked in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.2}):
    plain = target.generate(**inputs, **asked, max_new_tokens=48)
    with_tree = target.generate(**inputs, **asked, max_new_tokens=48, custom_generate=tree_generate, draft=draft, plan=tree)
    print(asked, "- the same tokens:", torch.equal(plain, with_tree))
print(tokenizer.decode(plain[0]))
