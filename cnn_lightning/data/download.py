"""Downloads that end: with the right data, or with an error that says what each server answered.

Custom because pooch 1.9 knows one URL a file, retries a 404, checks the archive and not its content, and waits without
end for a server that sends a byte now and then. torchvision 0.29 has no time-outs and no checksums of unpacked files.
"""

import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from socket import gaierror
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

TIMEOUT = 10.0  # seconds without an answer
GRACE = 15.0  # seconds before the speed counts
LEAST_SPEED = 10_000  # bytes a second on average
ROUNDS = 2  # attempts at servers whose trouble may pass
PAUSE = 1.0  # seconds between them


class DownloadError(Exception):
    """A server did not send the right data, or none did; the message says in one line what each answered."""

    def __init__(self, answer: str, is_final: bool = False) -> None:
        super().__init__(answer)
        self.is_final = is_final  # asking again is useless


def download(urls: Sequence[str], unpack: Callable[[bytes], bytes | None], most_bytes: int) -> tuple[bytes, bytes]:
    """Download a file from the first server that sends the right data.

    Args:
        urls: The file on each server.
        unpack: Unpacks what a server sent; returns None if it is not the right data.
        most_bytes: Largest size of what a server may send.

    Returns:
        What the server sent, and what ``unpack`` returned for it.

    Raises:
        DownloadError: No server sent the right data.
    """
    answers, pending = {}, list(urls)
    for attempt in range(ROUNDS):
        if attempt and pending:
            time.sleep(PAUSE)
        for url in list(pending):
            try:
                packed = _fetch(url, most_bytes)
                if (content := unpack(packed)) is not None:
                    return packed, content
                answers[url] = f"sent {len(packed):,} bytes of something else"
            except DownloadError as error:
                answers[url] = str(error)
                if error.is_final:
                    pending.remove(url)
    servers: dict[str, list[str]] = {}  # by answer: without a network, all give the same
    for url, answer in answers.items():
        servers.setdefault(answer, []).append(urlsplit(url).netloc)
    raise DownloadError("; ".join(f"{', '.join(names)}: {answer}" for answer, names in servers.items()))


def _fetch(url: str, most_bytes: int) -> bytes:
    """Fetch a URL in a thread, because looking up an address and reading headers cannot be interrupted."""
    received, failures, given_up = bytearray(), list[DownloadError](), threading.Event()

    def read() -> None:
        try:
            with urlopen(Request(url, headers={"User-Agent": "cnn_lightning"}), timeout=TIMEOUT) as response:
                bar.total = response.length
                while not given_up.is_set() and (part := response.read1(2**16)):
                    received.extend(part)
        except HTTPError as error:
            passes = error.code >= 500 or error.code in (408, 429)
            failures.append(DownloadError(f"{error.code} {error.reason}", is_final=not passes))
        except URLError as error:
            no_server = isinstance(error.reason, gaierror | ConnectionRefusedError | TimeoutError)
            failures.append(DownloadError(str(error.reason), is_final=no_server))
        except (OSError, HTTPException, ValueError) as error:
            failures.append(DownloadError(str(error) or type(error).__name__))

    with tqdm(desc=url.rpartition("/")[2], unit="B", unit_scale=True, leave=False, disable=None) as bar:
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        start = time.monotonic()
        while thread.is_alive():
            size, seconds = len(received), time.monotonic() - start
            is_slow = seconds > GRACE and size < LEAST_SPEED * seconds
            if is_slow or size > most_bytes:
                given_up.set()
                slow = f"too slow, {size:,} bytes in {seconds:.0f} s"
                raise DownloadError(slow if is_slow else f"sends more than {most_bytes:,} bytes")
            bar.update(size - bar.n)
            thread.join(0.1)
    if failures:
        raise failures[0]
    if bar.total is not None and len(received) < bar.total:
        raise DownloadError(f"cut off after {len(received):,} of {bar.total:,} bytes")
    return bytes(received)
