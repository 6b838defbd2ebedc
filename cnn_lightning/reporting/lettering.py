"""Letters in pictures that Pillow draws."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from cnn_lightning.reporting.palette import INK, PAPER

SIZE, LINE = 20, 26  # pixels: letters, and a line of text


def length(text: str) -> int:
    """Width of a text in pixels."""
    return int(_font(SIZE, text.isascii()).getlength(text)) + 1


def shorten(line: str, width: int) -> str:
    """Cut the end of a name, but not the confidence in brackets after it, so that a line fits a width in pixels."""
    name, bracket, rest = line.rpartition(" (") if line.endswith(")") else (line, "", "")
    shorter = name
    while length(line) > width and shorter:
        shorter = shorter[:-1]
        line = f"{shorter}..{bracket}{rest}"
    return line


def write(
    picture: Image.Image, where: tuple[int, int], text: str, anchor: str = "la", fill: str = INK, size: int = SIZE
) -> None:
    """Write a line of text; ``anchor`` is Pillow's name for the point of it that lies at ``where``."""
    ImageDraw.Draw(picture).text(where, text, fill, _font(size, text.isascii()), anchor=anchor)


def sideways(text: str) -> Image.Image:
    """Draw a line of text that reads upwards."""
    strip = Image.new("RGB", (length(text), LINE), PAPER)
    write(strip, (0, 0), text)
    return strip.rotate(90, expand=True)


@cache
def _font(size: int, is_ascii: bool) -> Any:
    """Pillow's font, which is narrow and covers ASCII only, or the one that comes with matplotlib."""
    if is_ascii:
        return ImageFont.load_default(size)
    import matplotlib  # imported here because it is slow

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
