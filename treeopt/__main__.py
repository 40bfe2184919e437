"""Run `python -m treeopt` as the command `treeopt`."""

from treeopt.cli.main import main

if __name__ == "__main__":
    main(prog_name="treeopt")
