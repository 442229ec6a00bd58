"""The command line over this folder's recipes: `python -m recipes`, also installed as `tfbp`."""

import pathlib
import sys

from tfbp import commands


def main() -> None:
    """Runs the command of the command line, and exits with its code."""
    sys.exit(commands.main(pathlib.Path(__file__).parent, sys.argv[1:]))


if __name__ == "__main__":
    main()
