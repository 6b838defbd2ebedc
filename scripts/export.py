"""Call the command of this name in cnn_lightning/cli: see --help."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports prints no traceback

from cnn_lightning.cli.export import export

export()
