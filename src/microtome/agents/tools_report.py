"""Tools that write claims up, into files of the project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import inside
from microtome.agents.tools import Tool, made, number, text
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["TOOLS"]

_FOLDER = "reports"
_KINDS = ("draft", "html", "markdown")
_SHOWN = 20_000  # characters of a draft that are shown


def report_preview(call: Call, claims: list[int] | None = None) -> dict[str, Any]:
    """What a write-up of one to three claims would say, as Markdown, without writing it. Refused where a claim's mandatory controls
    are missing; it says which."""  # fmt: skip
    from microtome.lab.writing import collect, draft

    with call.record() as record:
        written = draft(collect(record, claims or ()))
    shown: dict[str, Any] = {"claims": claims or "all that stand", "draft": written[:_SHOWN]}
    if len(written) > _SHOWN:
        shown["truncated"] = {"draft": f"{_SHOWN:,} of {len(written):,} characters"}
    return shown


def report_write(
    call: Call,
    name: str,
    kind: str,
    claims: list[int] | None = None,
    title: str = "",
    summary: str = "",
    limitations: str = "",
    verified: str = "",
) -> dict[str, Any]:
    """Write a report of one to three claims into the project's folder reports: a draft for a person to finish, HTML or Markdown. What
    follows from the record is computed, caps and failed controls among it; the words are yours. Nothing that is there is replaced."""  # fmt: skip
    from microtome.lab.writing import Words, collect, write_html, write_markdown
    from microtome.lab.writing.drafting import write_draft

    suffix = ".html" if kind == "html" else ".md"
    place = _free(call, name + suffix)
    words = Words(
        title=title, authors=(call.agent,), summary=summary, limitations=limitations, verified=verified
    )
    writers = {"draft": write_draft, "html": write_html, "markdown": write_markdown}
    with call.record() as record:
        written = writers[kind](collect(record, claims or (), words), place)
    return {"written": str(Path(written).relative_to(call.project.resolve())), "by": call.agent}


def _free(call: Call, name: str) -> Path:
    """Where a report of this name goes. Raises LabError where something is, and for a way out of the project."""
    place = inside(call.project, f"{_FOLDER}/{name}")
    beside = place.with_name(f"{place.stem}_figures")
    if place.parent != inside(call.project, _FOLDER) or place.exists() or beside.exists():
        raise LabError(
            f"{_FOLDER}/{name} cannot be written",
            why="there is something of that name",
            instead="another name",
        )
    return place


_NAME = text("of the file, without its ending", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")
_CLAIMS = {
    "type": "array",
    "items": number(minimum=1),
    "minItems": 1,
    "maxItems": 3,
    "description": "numbers of claims; default: all that stand",
}

TOOLS: tuple[Tool, ...] = (
    made(report_preview, {"claims": _CLAIMS}),
    made(report_write, {"name": _NAME, "kind": {"enum": list(_KINDS)}, "claims": _CLAIMS, "title": text(), "summary": text("at most 600 words"),
                        "limitations": text(), "verified": text("what you checked, and how")}, ["name", "kind"], reads=False),
)  # fmt: skip
