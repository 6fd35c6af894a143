"""The Python that draws a picture again from a saved result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

FOLDER = "results/..."


def call(module: str, function: str, **arguments: object) -> str:
    """An expression on `result` that draws a picture: a function of one of the modules in microtome.figures."""
    given = "".join(f", {name}={value!r}" for name, value in arguments.items() if value is not None)
    return f"{module}.{function}(result{given})"


def python(call: str = "", *, folder: str | Path = "", path: Sequence[int] = ()) -> str:
    """A few lines to paste.

    call: as `call` gives it, "" for the result's own figure; folder: where the result was saved; path: the
    indices of children that lead from the saved result to this one.
    """
    child = "".join(f".children[{index}]" for index in path)
    source = f"mt.open({str(folder) or FOLDER!r}){child}"
    hint = "" if folder else "  # where you saved it: result.save(...)"
    if not call:
        return f"import microtome as mt\n\nfigure = {source}.figure(){hint}\nfigure.show()\n"
    module = call.split(".", 1)[0]
    return (
        f"import microtome as mt\nfrom microtome.figures import {module}\n\n"
        f"result = {source}{hint}\nfigure = {call}\nfigure.show()\n"
    )
