"""Starting the MCP server of a project and talking to it with the official client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp import Client
from mcp.client.stdio import StdioServerParameters

# the command line as it is installed, with this command in it whether or not it is there yet
SERVE = """
from microtome.cli import main, mcp
if "mcp" not in {c.name for c in main.app.registered_commands}:
    main.app.command("mcp")(mcp.mcp)
main.main()
"""
COMMAND = [sys.executable, "-c", SERVE, "mcp"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MICROTOME_PERSON": "Ada", "PYTHONWARNINGS": "default"}


def project(folder: Path) -> Path:
    from microtome.lab import place

    folder.mkdir(parents=True, exist_ok=True)
    place.init(folder)
    return folder


@asynccontextmanager
async def over_stdio(
    folder: Path, *options: str, name: str = "scripted", **client: Any
) -> AsyncIterator[Client]:
    """A client of a server that was started for it."""
    server = StdioServerParameters(
        command=COMMAND[0], args=[*COMMAND[1:], *options], env=environment(), cwd=folder
    )
    async with Client(server, client_info=types.Implementation(name=name, version="1"), **client) as made:
        yield made


class Http:
    """A server over HTTP: its address, its token, its process."""

    def __init__(self, process: subprocess.Popen[str], address: str, token: str) -> None:
        self.process, self.address, self.token = process, address, token

    @asynccontextmanager
    async def client(self, name: str = "scripted", **client: Any) -> AsyncIterator[Client]:
        from mcp.client.streamable_http import streamable_http_client
        from mcp.shared._httpx_utils import create_mcp_http_client

        async with create_mcp_http_client(headers={"Authorization": f"Bearer {self.token}"}) as http:
            transport = streamable_http_client(self.address, http_client=http)
            async with Client(
                transport, client_info=types.Implementation(name=name, version="1"), **client
            ) as made:
                yield made


@contextmanager
def over_http(folder: Path, *options: str) -> Iterator[Http]:
    process = subprocess.Popen(
        [*COMMAND, "--http", "0", *options], cwd=folder, env=environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(3)]
        found = re.search(r"address: (\S+)\s+token: (\S+)", "".join(said))
        assert found, "".join(said) + process.stderr.read()
        yield Http(process, found[1], found[2])
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def data(result: types.CallToolResult) -> dict[str, Any]:
    """What a tool gave, as JSON; an error of the tool fails the test."""
    text = words(result)
    assert not result.is_error, text
    return dict(json.loads(text))


def words(result: types.CallToolResult) -> str:
    """The text of a tool's answer."""
    first = result.content[0]
    assert isinstance(first, types.TextContent)
    return first.text


def refused(result: types.CallToolResult) -> str:
    """The text of an answer that must be an error."""
    assert result.is_error, words(result)
    return words(result)
