"""The colours of images, plots and reports; colour-blind readers can tell them apart.

Source: Okabe and Ito 2008, Color Universal Design, https://jfly.uni-koeln.de/color/
"""

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PINK, SKY, AMBER = "#cc79a7", "#56b4e9", "#e69f00"
INK, PAPER, GREY = "#282828", "#ffffff", "#767676"
