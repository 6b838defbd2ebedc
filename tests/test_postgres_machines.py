"""The server and the machines that other tests use: tests/postgres.py."""

import subprocess
import sys

import psycopg
import pytest

from tests.postgres import Machines

# Adds a row and prints how many there are, with the address from which the server is reached.
ADD_ROW = """
import psycopg, sys
with psycopg.connect(sys.argv[1], connect_timeout=5) as connection:
    connection.execute("INSERT INTO log VALUES (1)")
    print(*connection.execute("SELECT count(*), host(inet_client_addr()) FROM log").fetchone())
"""


def test_two_machines_and_a_server_that_is_stopped_and_started():
    with Machines(2) as machines:
        server = machines.server
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE log (number integer)")
            assert connection.execute("SHOW fsync").fetchone() == ("on",)

        def add_row(index):
            command = [sys.executable, "-c", ADD_ROW, machines.urls[index]]
            process = machines.run(index, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            output, errors = process.communicate(timeout=60)
            return output.split() or errors

        (first, here), (second, there) = add_row(0), add_row(1)
        assert (first, second) == ("1", "2")
        assert here != there
        assert {here, there}.isdisjoint({"127.0.0.1"})

        server.stop()
        assert "Connection refused" in add_row(1)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(server.url)
        server.start()
        assert add_row(1) == ["3", there]

        sleeper = machines.run(0, ["sleep", "100"])
        machines.kill(0)
        assert sleeper.wait(timeout=10) == -9
        assert add_row(0) == ["4", here]
        folder = server.folder
        last = machines.run(1, ["sleep", "100"])
    assert last.wait(timeout=10) == -9
    assert not folder.exists()
