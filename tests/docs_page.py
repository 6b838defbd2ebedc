"""Render docs/draw/lenet_mnist.html again with the network that it holds: python -m tests.docs_page."""

import json
import re

from cnn_lightning.draw.page import render_page
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/draw/lenet_mnist.html"


def models_in(page):
    """The networks that a page holds."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["models"]


def rendered():
    """The page as the sources of today make it."""
    models = models_in(PAGE.read_text(encoding="utf-8"))
    return render_page(models[0]["title"], models)


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
