"""Figures for those who cannot run a script: SVG always, PNG where a program that draws SVG is installed.

Microtome draws its figures as SVG without a browser. Many clients show their model PNG only, so where rsvg-convert or resvg
is on the path, or a browser of the Chromium family (as for PDF), the SVG is handed to it. It is our own text, with no script and
no link in it, and the browser gets an empty profile and no network.
"""  # fmt: skip

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import LabError, MicrotomeError

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["png", "svg"]

_SECONDS = 30.0
_MOST = 2_000_000  # bytes of a picture that is sent
_TOOLS = ("rsvg-convert", "resvg")
_FLAGS = ("--headless", "--disable-gpu", "--hide-scrollbars", "--disable-extensions", "--no-first-run", "--disable-background-networking",
          "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9")  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"


def svg(result: Result) -> str:
    """The first picture of a result as SVG; "" for a result that has none, or whose picture cannot be drawn or is too large."""
    from microtome.figures import pictures_of, static_svg

    try:
        every = pictures_of(result)
        text = static_svg(every[0].draw()) if every else ""
    except MicrotomeError:  # a table that is empty or was cut has no picture; the numbers are told anyway
        return ""
    return text if len(text) <= _MOST else ""


def png(picture: str, scratch: Path) -> bytes:
    """An SVG as PNG; b"" where no program that can is installed, or it failed. scratch: a folder to work in."""
    tool = next((t for t in _TOOLS if shutil.which(t)), "") or _browser()
    size = re.match(r'<svg [^>]*?width="(\d+)" height="(\d+)"', picture)
    if not tool or not picture or size is None:
        return b""
    with tempfile.TemporaryDirectory(dir=scratch, prefix="picture-") as folder:
        source, target = Path(folder, "figure.svg"), Path(folder, "figure.png")
        source.write_text(picture, encoding="utf-8")
        command = _command(tool, source, target, size.groups())
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=_SECONDS, check=True, cwd=folder)  # fmt: skip
            made = target.read_bytes()
        except (OSError, subprocess.SubprocessError):
            return b""
    return made if made.startswith(_PNG) and len(made) <= _MOST else b""


def _browser() -> str:
    from microtome.lab.writing.pdf import browser

    try:
        return browser()
    except LabError:  # none is here: the picture stays SVG
        return ""


def _command(tool: str, source: Path, target: Path, size: tuple[str, ...]) -> list[str]:
    if tool == "rsvg-convert":
        return [tool, "-o", str(target), str(source)]
    if tool == "resvg":
        return [tool, str(source), str(target)]
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # it refuses otherwise
    return [tool, *_FLAGS, *root, f"--user-data-dir={target.parent / 'profile'}", f"--window-size={','.join(size)}",
            f"--screenshot={target}", source.as_uri()]  # fmt: skip
