"""Downloads that end: with the right data, or with an error that says what each server answered.

Our own, because torchvision waits for ever for a server that sends nothing, or a byte now and then, and takes what a
server answers for the file if it has the right name; no library we know gives up a server for being slow.
"""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

TIMEOUT = 10.0  # seconds without an answer
GRACE = 15.0  # seconds, after which a server has to have sent
LEAST_SPEED = 10_000  # bytes a second on average
MOST_BYTES = 2**26  # of a file
ROUNDS = 2  # times that servers are asked which had trouble that may pass
PAUSE = 1.0  # seconds between them


class DownloadError(Exception):
    """No server sent the right data; says in one line what each did."""


def download(urls: Sequence[str], is_right: Callable[[bytes], bool]) -> bytes:
    """Download a file from the first of some servers that sends the right data.

    Args:
        urls: The file on each of them.
        is_right: Tells whether it is the right data.

    Raises:
        DownloadError: None did.
    """
    answers = {}
    ask = list(urls)
    for attempt in range(ROUNDS):
        time.sleep(PAUSE if attempt else 0)
        for url in list(ask):
            reader = _Reader(url)
            content, answers[url] = reader.content, reader.answer
            if content is not None and is_right(content):
                return content
            if content is not None:
                answers[url] = f"sent {len(content):,} bytes of something else"
            elif reader.is_final:
                ask.remove(url)
    raise DownloadError("; ".join(f"{urlsplit(url).netloc}: {answer}" for url, answer in answers.items()))


class _Reader:
    """Reads what a server sends, in a thread: waiting for it cannot be interrupted in all cases, as for its address.

    Attributes:
        content: All of it; None if it failed.
        answer: Why it failed.
        is_final: Whether it is no use to ask again.
    """

    def __init__(self, url: str) -> None:
        self.content: bytes | None = None
        self.answer = ""
        self.is_final = False
        self._given_up = False
        self._received = bytearray()
        self._total: int | None = None
        thread = threading.Thread(target=self._read, args=(url,), daemon=True)
        thread.start()
        self._wait(thread, url.rpartition("/")[2])

    def _wait(self, thread: threading.Thread, name: str) -> None:
        began = time.monotonic()
        with tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while thread.is_alive():
                thread.join(0.1)
                bar.total = self._total
                bar.update(len(self._received) - bar.n)
                seconds = time.monotonic() - began
                if seconds > GRACE and len(self._received) < LEAST_SPEED * seconds:
                    self.content, self._given_up = None, True
                    self.answer = f"too slow, {len(self._received):,} bytes in {seconds:.0f} s"
                    return

    def _read(self, url: str) -> None:
        try:
            with urlopen(Request(url, headers={"User-Agent": "cnn_lightning"}), timeout=TIMEOUT) as response:
                self._total = response.length
                while not self._given_up and len(self._received) <= MOST_BYTES and (part := response.read1(65536)):
                    self._received += part
            if self._given_up:
                return
            if len(self._received) > MOST_BYTES:
                self.answer = f"sends more than {MOST_BYTES:,} bytes"
            elif self._total is not None and len(self._received) < self._total:
                self.answer = f"cut off after {len(self._received):,} of {self._total:,} bytes"
            else:
                self.content = bytes(self._received)
        except HTTPError as error:
            self.answer = f"{error.code} {error.reason}"
            self.is_final = error.code < 500 and error.code not in (408, 429)  # which ask to try again
        except URLError as error:
            self.answer = str(error.reason)
            self.is_final = isinstance(error.reason, socket.gaierror | ConnectionRefusedError | TimeoutError)
        except (OSError, HTTPException, ValueError) as error:
            self.answer = str(error) or type(error).__name__
