"""A real PostgreSQL for the tests: the one that MICROTOME_TEST_POSTGRES names, else Debian's, started on a loopback port."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

URL = "MICROTOME_TEST_POSTGRES"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    at = found[-1].parent if found else Path(shutil.which("initdb") or "/none").parent
    assert (at / "pg_ctl").exists(), (
        f"no PostgreSQL: apt-get install postgresql, or set {URL} to a server's URL"
    )
    return at


def _run(command: list[str]) -> None:
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        command = ["runuser", "-u", "postgres", "--", *command]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def server() -> Iterator[str]:
    """URL of a server, up to the name of a database."""
    if given := os.environ.get(URL):
        yield given.rpartition("/")[0]
        return
    binaries, folder, port = _binaries(), Path(tempfile.mkdtemp(prefix="microtome-postgres-")), _free_port()
    data, log = folder / "data", folder / "log"
    settings = f"-p {port} -h 127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=60"
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        _run(
            [
                str(binaries / "initdb"),
                "-D",
                str(data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
            ]
        )
        # the server must not hold the pipe of its starter
        _run([str(binaries / "pg_ctl"), "-D", str(data), "-l", str(log), "-w", "-o", settings, "start"])
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        finally:
            _run([str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def database(at: str) -> Iterator[str]:
    """URL of a new, empty database, which is dropped afterwards."""
    import psycopg

    name = f"t_{os.urandom(6).hex()}"
    plain = at.replace("+psycopg", "", 1)

    def say(sql: str) -> None:
        with psycopg.connect(f"{plain}/postgres", autocommit=True) as connection:
            connection.execute(sql)

    say(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        yield f"{at}/{name}"
    finally:
        say(f"DROP DATABASE {name} WITH (FORCE)")
