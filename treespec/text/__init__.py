"""Text in, text out: a prompt of words, messages or token ids goes on until it ends, and tokens become pieces of text as they are made.

`generation` has the two functions for people, `writing` decodes one text after another, `characters` and `stops` turn tokens into text.
"""
