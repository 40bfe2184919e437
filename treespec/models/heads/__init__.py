"""Heads: drafts that read a target's hidden states, with a file for each kind. `loading.load_head` recognises, checks and loads them."""
