"""The colours of images, plots and reports; colour-blind readers can tell them apart.

Source: Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
"""

from typing import NamedTuple


class Colour(NamedTuple):
    """Red, green and blue, 0 to 255, as Pillow takes them."""

    red: int
    green: int
    blue: int

    @property
    def hex(self) -> str:
        """Like "#0072b2", for matplotlib and HTML."""
        return f"#{self.red:02x}{self.green:02x}{self.blue:02x}"


BLUE, ORANGE, GREEN = Colour(0, 114, 178), Colour(213, 94, 0), Colour(0, 158, 115)
PINK, SKY, AMBER = Colour(204, 121, 167), Colour(86, 180, 233), Colour(230, 159, 0)
INK, PAPER, GREY = Colour(40, 40, 40), Colour(255, 255, 255), Colour(118, 118, 118)
