"""Run `python -m treeopt` as the command `treeopt`."""

from treeopt.cli.process import run

if __name__ == "__main__":
    run()
