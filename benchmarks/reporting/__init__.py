"""From one file of results to one section of docs/results.md: pure functions on dicts, a function per kind of result.

`page.PAGE` says which file is read by which function, and which command wrote it.
"""
