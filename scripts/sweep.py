"""Call the command of this name in cnn_lightning/cli: see --help."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports prints no traceback

from cnn_lightning.cli.sweep import sweep

if __name__ == "__main__":  # the processes that it starts import this file, too
    sweep()
