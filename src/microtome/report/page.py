"""The page itself: one file, closed to the network, with one copy of Plotly's script."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResourceError, ResultError
from ..results.result import Result
from .gallery import Gallery
from .markup import Html, tag
from .outline import heading, outline
from .sections import checked, provenance, section, whole
from .summary import question, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .outline import Stage

MOST_BYTES = 8_000_000
RESERVE = 400_000  # for text and tables
_ASSETS = Path(__file__).with_name("assets")


def write_report(result: Result, path: str | Path, *, command: str = "", folder: str | Path = "") -> Path:
    """Write a result as one self-contained HTML file of at most 8 MB; returns its absolute path.

    result: any Result; one with children gets a section per child. command: what was typed, for its provenance.
    folder: where the result was saved, so that "copy as Python" can be pasted as it is; a placeholder without it.
    The file appears under its name when it is complete, and replaces an older one.

    Raises ResultError for what is no Result and for a path that is a folder; ResourceError when it cannot be
    written.
    """
    if not isinstance(result, Result):
        raise ResultError(
            f"a report of a {type(result).__name__}",
            why="reports are made from results",
            instead="write_report(result, ...)",
        )
    place = Path(path).expanduser().resolve()
    if place.is_dir():
        raise ResultError(
            f"{place} is a folder", why="a report is one file", instead=str(place / "report.html")
        )
    text = page(result, command=command, folder=folder)
    fresh = place.with_name(f".{place.name}.{os.urandom(6).hex()}.new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(text.encode("utf-8"))
        os.replace(fresh, place)
    except OSError as error:
        raise ResourceError(
            f"the report cannot be written to {place}",
            why=str(error),
            instead="choose another path, or free space",
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return place


def page(result: Result, *, command: str = "", folder: str | Path = "") -> str:
    """The report as text; see `write_report`."""
    from plotly.offline import get_plotlyjs

    library = _script(get_plotlyjs())
    own, style = (
        _script((_ASSETS / "report.js").read_text("utf-8")),
        Html((_ASSETS / "report.css").read_text("utf-8")),
    )
    stages = outline(result)
    gallery = Gallery(
        folder, MOST_BYTES - RESERVE - len(library.encode()) - len(own.encode()) - len(style.encode())
    )
    title = question(result)
    body = [
        tag("a", "Skip to the stages", href="#stages", cls="skip"),
        summary(result, stages, command),
        _contents(result, stages),
        tag(
            "main",
            [section(s, gallery) for s in stages],
            whole(result, gallery),
            checked(result, stages, gallery.left_out),
            provenance(result, stages, command),
            id="stages",
        ),
        tag(
            "footer",
            tag(
                "p",
                "One file, no network. Figures need a script to be interactive; without it they are still here.",
            ),
        ),
        tag("script", library),
        tag("script", own),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(library, own)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} · Microtome"),
        tag("style", style),
    ]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", head), "\n", tag("body", body), lang="en") + "\n"


def _contents(result: Result, stages: Sequence[Stage]) -> Html:
    links = [(s.anchor, f"{s.number}. {heading(s)}") for s in stages]
    links += [("whole", "The stages together")] if result.children else []
    links += [("checked", "What was checked"), ("provenance", "Where this came from")]
    return tag(
        "nav",
        tag("ul", [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name in links]),
        aria_label="Contents",
    )


def _script(text: str) -> Html:
    """Code that cannot end its element. Raises ResultError where it would."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ResultError(
            "a script of the report would end its own element",
            why="it contains </script or <!--",
            instead="install another version of plotly",
        )
    return Html(text)


def _policy(*scripts: str) -> str:
    """Nothing may be loaded, sent or framed; only these very scripts may run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )
