"""A PostgreSQL server of the tests' own, and machines that reach it over a network: network namespaces."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {"shared_buffers": "16MB", "unix_socket_directories": ""}  # fsync stays on
LOCAL = "127.0.0.1"
# The kernel ends a process when the one that started it is gone, so that nothing is left of a test that is killed.
DIES_WITH_US = ["setpriv", "--pdeathsig"]


class PostgreSQL:
    """A server with a new database in a temporary folder, as the user ``postgres`` where this one is root.

    Args:
        *addresses: Of this machine, under which networks reach the server, besides 127.0.0.1.
    """

    def __init__(self, *addresses: str) -> None:
        self._bin, self._addresses = _programs(), addresses
        self._user: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PostgreSQL":
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # not in pytest's, which only root may enter
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder)
            stack.callback(self.stop)
            if os.geteuid() == 0:  # PostgreSQL refuses to run as root
                shutil.chown(self.folder, "postgres")
                self._user = ["--reuid=postgres", "--regid=postgres", "--init-groups"]
            self._create()
            self.start()
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _create(self) -> None:
        self.data, self.password, self.port = self.folder / "data", secrets.token_hex(8), _free_port()
        password = self.folder / "password"
        password.write_text(self.password)
        create = [f"--pgdata={self.data}", "--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256"]
        command = self._command("initdb", *create, "--encoding=UTF8", "--locale=C", "--no-sync")
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        settings = SETTINGS | {"port": str(self.port), "listen_addresses": ",".join([LOCAL, *self._addresses])}
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet scram-sha-256\n")  # the networks that this machine is in

    @property
    def url(self) -> str:
        """The URL of its database for processes of this machine."""
        return self.url_at(LOCAL)

    def url_at(self, address: str) -> str:
        """The URL of its database for those who reach this machine under an address."""
        return f"postgresql://postgres:{self.password}@{address}:{self.port}/postgres"

    def start(self) -> None:
        """Start it, also again, with the same data and port, and wait until it answers."""
        log = self.folder / "log"
        with log.open("ab") as file:
            command = self._command("postgres", "-D", str(self.data))
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=file, stderr=file)
        ready = [str(self._bin / "pg_isready"), "--quiet", f"--host={LOCAL}", f"--port={self.port}"]
        while subprocess.run(ready, check=False).returncode:
            if self.process.poll() is not None:
                raise RuntimeError(f"PostgreSQL does not start:\n{log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it; open connections are closed, and what was written is kept."""
        if self.process:
            self.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=60)
            self.process.kill()
            self.process.wait()
            self.process = None

    def _command(self, program: str, *args: str) -> list[str]:
        return [*DIES_WITH_US, "INT", *self._user, str(self._bin / program), *args]


class Machines:
    """Machines 0, 1, ...: network namespaces, each with a network of its own to a PostgreSQL server on this one.

    Args:
        count: How many.

    Attributes:
        server: The server.
        urls: The URL of its database for each machine.
    """

    def __init__(self, count: int) -> None:
        _programs()  # skips before anything is made
        self._started: list[list[subprocess.Popen[Any]]] = [[] for _ in range(count)]

    def __enter__(self) -> "Machines":
        with ExitStack() as stack:
            machines = range(len(self._started))
            self._holders = [stack.enter_context(_namespace(index)) for index in machines]
            hosts = [_addresses(index)[0] for index in machines]
            self.server = stack.enter_context(PostgreSQL(*hosts))
            self.urls = [self.server.url_at(host) for host in hosts]
            for index in machines:
                stack.callback(self.kill, index)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, index: int, command: Sequence[str], **keywords: Any) -> subprocess.Popen[Any]:
        """Start a command on a machine; further arguments are those of Popen."""
        command = [*DIES_WITH_US, "KILL", *_inside(self._holders[index]), *command]
        process = subprocess.Popen(command, **keywords)
        self._started[index].append(process)
        return process

    def kill(self, index: int) -> None:
        """Kill all processes of a machine, as if its power failed; it can be used again."""
        for process in self._started[index]:  # also one that is still on its way into the namespace
            process.kill()
            process.wait()
        holder = self._holders[index]
        while others := _processes_in(Path(f"/proc/{holder}/ns/net").readlink()) - {holder}:
            for process_id in others:
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(process_id, signal.SIGKILL)


@contextmanager
def _namespace(index: int) -> Iterator[int]:
    """Make a network namespace that is connected to this machine; yields the process that holds it."""
    host, guest = _addresses(index)
    ours, theirs = (f"t{os.getpid()}{end}{index}" for end in "ab")  # at most 15 characters
    holder = subprocess.Popen([*DIES_WITH_US, "KILL", "unshare", "--net", "sleep", "infinity"], stderr=subprocess.PIPE)
    inside = _inside(holder.pid)
    try:
        while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":
            if holder.poll() is not None:
                pytest.skip(f"network namespaces are not permitted here: {holder.stderr.read().decode().strip()}")
            time.sleep(0.01)
        made = _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", str(holder.pid))
        if made.returncode:
            pytest.skip(f"networks between network namespaces are not permitted here: {made.stderr.strip()}")
        for command in (
            _ip("address", "add", f"{host}/30", "dev", ours),
            _ip("link", "set", ours, "up"),
            _ip("address", "add", f"{guest}/30", "dev", theirs, inside=inside),
            _ip("link", "set", theirs, "up", inside=inside),
            _ip("link", "set", "lo", "up", inside=inside),
        ):
            command.check_returncode()
        yield holder.pid
    finally:
        _ip("link", "delete", ours)  # at once: the kernel takes its time to remove a namespace
        holder.kill()
        holder.communicate()


def _ip(*args: str, inside: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*inside, "ip", *args], check=False, capture_output=True, text=True)


def _inside(holder: int) -> list[str]:
    return ["nsenter", f"--net=/proc/{holder}/ns/net"]


def _processes_in(namespace: Path) -> set[int]:
    processes = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # it has ended
            if link.readlink() == namespace:
                processes.add(int(link.parts[2]))
    return processes


def _addresses(index: int) -> tuple[str, str]:
    """This machine and the other, in 198.18.0.0/15, which is reserved for tests of networks (RFC 2544)."""
    prefix = f"198.{18 + os.getpid() // 256 % 2}.{os.getpid() % 256}"
    return f"{prefix}.{4 * index + 1}", f"{prefix}.{4 * index + 2}"


def _programs() -> Path:
    """The folder of PostgreSQL's programs, of the newest version; skips the test where there is none."""
    if not shutil.which("setpriv") or not shutil.which("ip"):
        pytest.skip("needs setpriv and ip: Debian's packages util-linux and iproute2")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("needs PostgreSQL: Debian's package postgresql")
    return found[-1].parent


def _free_port() -> int:
    with socket.create_server((LOCAL, 0)) as server:
        return server.getsockname()[1]
