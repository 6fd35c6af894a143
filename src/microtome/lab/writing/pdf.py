"""PDF by a browser of the Chromium family that is on this machine: no other program lays out this page as readers see it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import LabError
from microtome.lab.writing.whole import write_whole

if TYPE_CHECKING:
    from microtome.lab.writing.values import WriteUp

__all__ = ["BROWSER", "NAMES", "browser", "pages_of", "write_pdf"]

BROWSER = "MICROTOME_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge", "microsoft-edge", "brave-browser")  # fmt: skip
PATIENCE = 120.0
"""Seconds for the browser."""
_FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--disable-default-apps",
    "--disable-breakpad", "--no-pings", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--no-pdf-header-footer",
)  # fmt: skip
_PAGE = re.compile(rb"/Type\s*/Page(?![a-zA-Z])")


def browser() -> str:
    """The browser that `MICROTOME_BROWSER` names, else the first of NAMES on the path.

    Raises LabError when there is none.
    """
    named = os.environ.get(BROWSER, "").strip()
    instead = f"install chromium (Debian: apt-get install chromium), or name one in {BROWSER}; or open the HTML and print it to a PDF"
    if named:
        found = shutil.which(named)
        if found is None:
            raise LabError(f"{BROWSER}={named} is no program", why="it is not there, or may not be run", instead=instead)  # fmt: skip
        return found
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return found
    raise LabError("no browser to make a PDF with", why=f"none of {', '.join(NAMES)} is on the path", instead=instead)  # fmt: skip


def write_pdf(write_up: WriteUp, path: str | Path, *, patience: float = PATIENCE) -> Path:
    """Write the write-up as PDF; its absolute path. The browser gets a file, an empty profile and no network.

    Raises LabError: no browser, one that fails or takes longer than `patience` seconds, or gives no PDF with pages.
    """
    from microtome.lab.writing.html import write_html

    place = Path(path).expanduser().absolute()
    program = browser()
    with tempfile.TemporaryDirectory(prefix="microtome-pdf-") as folder:
        root = Path(folder)
        source, made = write_html(write_up, root / "write-up.html"), root / "write-up.pdf"
        said = _run(program, source, made, root / "profile", patience)
        if not made.is_file():
            raise LabError(f"{program} made no PDF", why=said or "it said nothing", instead="another browser, or print the HTML")  # fmt: skip
        content = made.read_bytes()
        if pages_of(content) == 0:
            raise LabError(f"{program} made a PDF without pages", why=said or "it said nothing", instead="another browser, or print the HTML")  # fmt: skip
    return write_whole(place, content)


def pages_of(content: bytes) -> int:
    """How many pages a PDF of a browser has; 0 for what is none."""
    return len(_PAGE.findall(content)) if content.startswith(b"%PDF") else 0


def _run(program: str, source: Path, made: Path, profile: Path, patience: float) -> str:
    """The last line that the browser said. Raises LabError."""
    # as root a sandbox cannot be made; anybody else keeps it
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [program, *_FLAGS, *root, f"--user-data-dir={profile}", f"--print-to-pdf={made}", source.as_uri()]  # fmt: skip
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    except OSError as error:
        raise LabError(f"{program} cannot be started", why=str(error), instead=f"name another in {BROWSER}") from error  # fmt: skip
    try:
        _, told = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise LabError(
            f"{program} took longer than {patience:g} seconds",
            why="it was ended",
            instead="print the HTML to a PDF",
        ) from error
    lines = told.decode("utf-8", "replace").strip().splitlines()
    if process.returncode != 0:
        raise LabError(f"{program} ended with {process.returncode}", why=lines[-1] if lines else "it said nothing", instead="another browser, or print the HTML")  # fmt: skip
    return lines[-1] if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser with the processes that it started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.communicate()
