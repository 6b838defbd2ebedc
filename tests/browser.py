"""Chromium for the tests of the page, and what they do in it."""

import math
import shutil

import numpy as np
import pytest
import torch

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput as PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select as Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium or its driver is not installed")


class DriverService(webdriver.ChromeService):
    """Chromium's driver, called by its address: the tests know no other host, not even localhost."""

    @property
    def service_url(self):
        return f"http://127.0.0.1:{self.port}"


def launch():
    """Start Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, DriverService(DRIVER))


class Page:
    """A page of scripts/draw.py, opened and ready."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: self.js("return !!window.draw"))
        browser.execute_async_script("draw.ready.then(arguments[0])")

    def __getitem__(self, name):
        return self.browser.find_element(By.CSS_SELECTOR, name if name[0] in ".#" else f"#{name}")

    def js(self, script, *args):
        return self.browser.execute_script(script, *args)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition):
        return WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda _: condition())

    def settle(self):
        """Wait until the page shows what is on the pad."""
        self.browser.execute_async_script(
            "const look = () => (app.isScheduled ? setTimeout(look) : arguments[0]()); requestAnimationFrame(look)"
        )

    def drag(self, element, points, pointer=None):
        """Press, move and release the pointer; points in shares of the element's side."""
        box = element.rect
        top = self.js("return scrollY")
        actions = ActionBuilder(self.browser, mouse=pointer, duration=10)
        for k, (x, y) in enumerate(points):
            place = int(box["x"] + x * box["width"]), int(box["y"] - top + y * box["height"])
            actions.pointer_action.move_to_location(*place)
            if not k:
                actions.pointer_action.pointer_down()
        actions.pointer_action.pointer_up()
        actions.perform()
        self.settle()

    def stroke(self, points):
        self.drag(self["pad"], [(x / 224, y / 224) for x, y in points])  # of a pad of 224

    def keys(self, *keys, shift=False):
        target = self.browser.switch_to.active_element
        target.send_keys(*([Keys.SHIFT] if shift else []), *keys)
        self.settle()

    def click(self, element):
        self.js("arguments[0].scrollIntoView({ block: 'center' })", element)
        element.click()

    def ink(self):
        pixels = self.js("return [...byId('pad').getContext('2d').getImageData(0, 0, PAPER, PAPER).data]")
        return int((np.array(pixels)[::4] > 127).sum())

    def feed(self, channels=1):
        feed = self.js("return draw.feed() && [...draw.feed()]")
        return feed and torch.tensor(feed, dtype=torch.uint8).view(channels, *[math.isqrt(len(feed) // channels)] * 2)

    def scores(self):
        scores = self.js("return draw.scores() && [...draw.scores()]")
        return scores and torch.tensor(scores)

    def bars(self):
        return [float(bar.get_attribute("aria-valuenow")) for bar in self.all("#bars [role=meter]")]

    def choose(self, path):
        self["file"].send_keys(str(path))
