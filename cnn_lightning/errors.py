"""User-facing errors; the commands print them in one line and exit with code 2."""


class UsageError(ValueError):
    """An error in the user's input: what was given, and what was expected instead.

    Args:
        message: One line, without a command-line option: library code knows none.
        argument: Name of the argument to change, such as "batch_size"; a command adds its option to the message.
    """

    def __init__(self, message: object, argument: str | None = None) -> None:
        super().__init__(str(message))
        self.argument = argument


class DivergedError(UsageError):
    """Loss or weights are no longer finite, so that training stops."""
