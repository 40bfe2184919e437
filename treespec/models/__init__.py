"""Hugging Face causal language models that run trees: loading, the slot-addressed cache and `TreeModel`."""
