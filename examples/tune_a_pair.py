# %% [markdown]
# Tune a pair of models: measure it, grow the tree that is fastest on this machine, and decode with it.
#
# The pair is the tiny one that comes with treeopt, so this runs anywhere, on the CPU and offline, in half a minute. For your own models, put
# their folders or hub ids in its place, say `device="cuda"`, and leave out the numbers that keep this short.

# %%
import treeopt

pair = treeopt.load_pair("embedded-target", "embedded-draft")
tuning, held_out = treeopt.load_prompts("stdlib", pair, num_prompts=24, prompt_len=64).split(16)

# %% [markdown]
# How often does the target accept the draft's first choice, its second, and so on? And how long do passes take?

# %%
acceptance = treeopt.profile_acceptance(pair, tuning, gen_len=64, max_branch=8)
latency = treeopt.profile_latency(pair, contexts=[96], repetitions=8)
print(acceptance)

# %% [markdown]
# The best tree for these two profiles, what it promises, and what it keeps of that on prompts that were not profiled.

# %%
growmap = treeopt.grow(acceptance, latency)
print(growmap.promise)
report = treeopt.evaluate(pair, growmap, held_out, gen_len=64)
print(report)

# %% [markdown]
# The same tree writes text.

# %%
for piece in treeopt.stream(pair, "class Stack:\n    def push(self, item):\n", plan=growmap, max_new_tokens=48):
    print(piece, end="", flush=True)
print()
