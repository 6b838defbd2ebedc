"""``python -m cnn_lightning COMMAND [OPTION...]``."""

from cnn_lightning.cli.main import main

main()
