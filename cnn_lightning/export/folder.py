"""The files of an exported folder: written to a temporary one, which gets its name once all of them are verified."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cnn_lightning.errors import UsageError
from cnn_lightning.export import verify
from cnn_lightning.export.card import render_card
from cnn_lightning.export.deployed import Deployed
from cnn_lightning.export.int8 import constant_bytes, quantized
from cnn_lightning.export.plain_torch import code_of
from cnn_lightning.export.verify import Comparison, Outputs

if TYPE_CHECKING:
    from onnx import ModelProto

ONNX, INT8, WEIGHTS = "model.onnx", "int8.onnx", "model.safetensors"


@dataclass(frozen=True)
class Exported:
    """What the verification of a file found.

    Args:
        name: Name of the file.
        size: Its bytes.
        outputs: What it computes for the images of the verification; None for parameters alone.
        comparison: How that differs from PyTorch's.
        constants: Bytes of weights, biases and scales in the file.
    """

    name: str
    size: int
    outputs: Outputs | None = None
    comparison: Comparison | None = None
    constants: int = 0


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, which gets its name at the end, and is removed if there is an error before.

    Args:
        folder: The folder, which does not exist; its parent does.

    Raises:
        UsageError: It cannot be written.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        part.mkdir()
        yield part
        part.rename(folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {folder} ({error.strerror or error})", "output") from error
        raise


def write_onnx(path: Path, model: "ModelProto") -> None:
    """Write a model to one file, with all its weights."""
    path.write_bytes(model.SerializeToString())


def write_weights(path: Path, net: nn.Module) -> None:
    """Write parameters and buffers of a network as safetensors."""
    from safetensors.torch import save  # save_file makes a file that only its owner can read

    # Cloned, because safetensors refuses two tensors that share memory.
    path.write_bytes(save({name: tensor.contiguous().clone() for name, tensor in net.state_dict().items()}))


def write_files(
    folder: Path,
    model: "ModelProto",
    deployed: Deployed,
    expected: Outputs,
    images: Tensor,
    labels: Tensor | None,
    training_images: Tensor | None,
) -> list[Exported]:
    """Write the files of a network and verify them.

    Args:
        folder: An empty folder.
        model: What ``to_onnx`` made of the network.
        deployed: The network.
        expected: What PyTorch computes for ``images``.
        images: (N, C, H, W) uint8, without padding.
        labels: (N,) int64: their classes, if they are known.
        training_images: (M, C, H, W) uint8, without padding, for int8.onnx; None for no such file.

    Raises:
        UsageError: A file computes something else.
    """
    write_onnx(folder / ONNX, model)
    write_weights(folder / WEIGHTS, deployed.net)
    outputs = verify.run_onnx(folder / ONNX, images)
    comparison = verify.check_same(ONNX, outputs, expected)
    found = [Exported(ONNX, (folder / ONNX).stat().st_size, outputs, comparison, constant_bytes(model))]
    if training_images is not None:
        small = quantized(folder / ONNX, training_images)
        write_onnx(folder / INT8, small)
        outputs = verify.run_onnx(folder / INT8, images)
        comparison = verify.check_int8(outputs, expected, labels)
        found.append(Exported(INT8, (folder / INT8).stat().st_size, outputs, comparison, constant_bytes(small)))
    verify.check_weights(folder / WEIGHTS, deployed.net)
    found.append(Exported(WEIGHTS, (folder / WEIGHTS).stat().st_size))
    return found


def write_texts(
    folder: Path, config: Mapping[str, Any], deployed: Deployed, images: Tensor, verified: str, int8: str | None
) -> None:
    """Write config.json and the card.

    Args:
        folder: The folder with the other files.
        config: Content of config.json.
        deployed: The network.
        images: (N, C, H, W) uint8, without padding: some are used to check the card's PyTorch code.
        verified: What the verification found, in a sentence.
        int8: What it found about int8.onnx; None if there is no such file.
    """
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    # Names of classes may be those of folders, which need not be UTF-8.
    (folder / "config.json").write_bytes(f"{text}\n".encode(errors="replace"))
    code = code_of(deployed.net, deployed.prepare(images[:8]))
    (folder / "README.md").write_bytes(render_card(config, code, verified, int8).encode(errors="replace"))


def times(folder: Path, deployed: Deployed, names: Sequence[str], shape: Sequence[int]) -> dict[str, list[float]]:
    """Measure the milliseconds for one image and for a batch, of PyTorch and of ONNX files.

    Args:
        folder: The folder with the files.
        deployed: The network.
        names: The files.
        shape: (C, H, W) of an image, without padding.
    """
    images = random_images(shape)
    with torch.inference_mode():
        found = {"PyTorch": [verify.milliseconds(partial(deployed, some)) for some in (images[:1], images)]}
    for name in names:
        run = verify.session(folder / name)
        found[name] = [verify.milliseconds(partial(run, some.numpy())) for some in (images[:1], images)]
    return found


def random_images(shape: Sequence[int]) -> Tensor:
    """Return the same batch of random uint8 images every time, of a (C, H, W) shape."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (verify.BATCH, *shape), dtype=torch.uint8, generator=generator)
