"""The command line: parse, one library call, print or write. Installed as `treeopt.cli`; the only home of click and rich."""
