"""The console command ``cnn-lightning COMMAND [OPTION...]``; ``python -m cnn_lightning`` does the same."""

import sys
from importlib import import_module

from cnn_lightning.cli.exit_codes import broken_pipe_exits, exit_with

COMMANDS = ("fit", "evaluate", "predict", "draw", "export", "compare", "sweep", "benchmark", "duplicates", "mistakes")


@broken_pipe_exits()
def main() -> None:
    """Call the command that is named first, with the other arguments."""
    name, *args = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: cnn-lightning {{{','.join(COMMANDS)}}} [OPTION...]\n\nEach command has a --help of its own.")
    elif name in COMMANDS:
        getattr(import_module(f"cnn_lightning.cli.{name}"), name)(args)
    else:
        exit_with(f"there is no command {name}: choose from {', '.join(COMMANDS)}")
