"""The layer of a network in which an error was raised, added to the message of the error."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from torch import Tensor, nn

from cnn_lightning.errors import UsageError

SHOWN = 4  # tensors


@contextmanager
def naming_layer(net: nn.Module) -> Iterator[None]:
    """Add the innermost module that was running to the message of an error, with the shapes of the tensors there.

    The error stays what it is, with its traceback. The message then ends like ``, in layer head
    (Linear(in_features=100, out_features=10, bias=True)): input (1, 4608)``.

    Custom because hooks on all modules would cost time in every step; the frames of the traceback cost nothing.

    Args:
        net: The network; its modules are named by their paths in it.
    """
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:  # what PyTorch raises where shapes do not fit
        message = error.args[0] if error.args else None
        where = _where(net, error.__traceback__)
        if where and isinstance(message, str) and not isinstance(error, UsageError) and where not in message:
            error.args = (f"{message}, {where}", *error.args[1:])
        raise


def _where(net: nn.Module, traceback: TracebackType | None) -> str:
    """Describe the innermost ``forward`` of a module of the network in a traceback, or return ""."""
    names = {id(module): name for name, module in net.named_modules()}
    found: FrameType | None = None
    while traceback:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "forward" and id(frame.f_locals.get("self")) in names:
            found = frame
        traceback = traceback.tb_next
    if found is None:
        return ""
    module = found.f_locals["self"]
    kind = type(module).__name__ if list(module.children()) else repr(module)
    place = f"layer {names[id(module)]} ({kind})" if names[id(module)] else kind
    tensors = [(name, value) for name, value in found.f_locals.items() if isinstance(value, Tensor)]
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors[:SHOWN])
    return f"in {place}: {shapes}" if shapes else f"in {place}"
