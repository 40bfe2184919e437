"""The command line: parse, one library call, print or write. It is installed as `treeopt.cli`, the only home of click and rich."""
