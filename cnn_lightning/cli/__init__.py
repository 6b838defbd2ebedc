"""The commands, one a file; the script of the same name calls it."""
