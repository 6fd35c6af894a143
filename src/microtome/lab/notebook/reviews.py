"""Weekly reviews, post-mortems and time audits as pages: questions for a person, and a block that is computed.

    <!-- microtome:computed 0fa3... -->
    what was computed
    <!-- microtome:end -->

The block can be made again; what stands around it is never touched. The mark carries a digest of the block, so that what a
person wrote inside is found and not overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from microtome.errors import LabError
from microtome.lab.notebook import folder
from microtome.lab.notebook.audit import Audit, markdown
from microtome.lab.notebook.entries import aware
from microtome.lab.notebook.limits import LIMITS
from microtome.lab.notebook.pages import Page, decode
from microtome.results.frozen import digest

__all__ = ["POST_MORTEM", "WEEKLY", "block", "post_mortem", "refresh", "time_audit", "weekly_review"]

WEEKLY: Sequence[tuple[str, str]] = (
    ("Goal", "What was the goal of the week?"),
    ("Progress", "How far did you come, and how do you know?"),
    ("Biggest time sink", "What took most of the time, and was it worth it? (The numbers are below.)"),
    ("Blockers", "What stood in the way, and what would remove it?"),
    ("Mistakes", "What went wrong, and which habit would prevent it every time?"),
    ("Confusions", "What do you not understand? Set five minutes for each."),
    ("What is missing", "What have you not thought of: a question, a control, a person to ask?"),
)
"""The seven questions of a weekly review."""

POST_MORTEM: Sequence[tuple[str, str]] = (
    ("Done", "What did you do?"),
    ("Tried", "What did you try, in which order, and why that one first?"),
    ("Worked", "What worked? By luck, execution or judgement?"),
    ("Did not work", "What did not, and when could you have known?"),
    ("Mistakes", "Which mistakes cost most?"),
    ("Differently", "What would you do differently, starting again today?"),
    ("From now on", "Which one or two things change in how you work, and where is that written?"),
)
"""The questions of a post-mortem."""

_BEGIN = re.compile(r"<!-- microtome:computed ([0-9a-f]{32}) -->\n")
_END = "<!-- microtome:end -->"


def weekly_review(now: datetime, found: Audit) -> Page:
    """The page of this week's review (ISO week), to be written with `folder.create`."""
    year, week, _ = aware(now, "now").isocalendar()
    body = _questions(WEEKLY) + "## The week in numbers\n\n" + block(markdown(found))
    name = f"{year}-W{week:02d}"
    return Page("review", f"Week {name}", f"{now:%Y-%m-%d}", {"week": name}, body, f"reviews/{name}.md")


def post_mortem(now: datetime, title: str, found: Audit) -> Page:
    """The page of a post-mortem, with the time that the guide gives it; to be written with `folder.create`."""
    least, most = (LIMITS[n].value for n in ("post_mortem", "post_mortem_most"))
    ask = (
        f"Take {least:g} h for a mini-project, {least:g} to {most:g} h for a sprint, while you remember.\n\n"
    )
    body = ask + _questions(POST_MORTEM) + "## The time in numbers\n\n" + block(markdown(found))
    return Page("post-mortem", title, f"{aware(now, 'now'):%Y-%m-%d}", {}, body)


def time_audit(now: datetime, found: Audit) -> Page:
    """A page with an audit alone, to be written with `folder.create`."""
    body = "What do the numbers say that you did not know?\n\n" + block(markdown(found))
    day = f"{aware(now, 'now'):%Y-%m-%d}"
    return Page("review", f"Time audit {day}", day, {}, body, f"reviews/{day}-audit.md")


def _questions(every: Sequence[tuple[str, str]]) -> str:
    return "".join(f"## {name}\n\n*{text}*\n\n\n" for name, text in every)


def block(text: str) -> str:
    """Text between the marks of a computed block.

    Raises
    ------
    LabError: the text has such a mark itself.
    """
    if "<!-- microtome:" in text:
        raise LabError("a computed text holds the mark of a computed block", why="its end could not be found again", instead="escape it")  # fmt: skip
    inner = text if text.endswith("\n") else text + "\n"
    return f"<!-- microtome:computed {digest(inner)} -->\n{inner}{_END}\n"


def refresh(root: Path, path: str, text: str, *, digest: str | None = None) -> Page:
    """Make the computed block of a page again; not a byte outside it changes.

    digest: of the page that the caller read; if the file is another by now, nothing is written.

    Raises
    ------
    LabError: the page has no such block, or several, or somebody wrote inside it; or as `folder.append`.
    """
    return folder.replace(root, path, lambda old: _refreshed(old, text, path), digest=digest)


def _refreshed(old: bytes, text: str, path: str) -> bytes:
    decode(old, path)
    raw = old.decode("utf-8")
    # marks may stand in lines that end in CRLF; positions are those of the file itself
    begins = list(re.finditer(_BEGIN.pattern.replace("\\n", "\r?\n"), raw))
    ends = [match.start() for match in re.finditer(re.escape(_END), raw)]
    if len(begins) != 1 or len(ends) != 1 or ends[0] < begins[0].end():
        raise LabError(
            f"{path} has {len(begins)} begins and {len(ends)} ends of a computed block",
            why="it is not clear what may be written over",
            instead="restore the marks, or make a new page",
        )
    inner = raw[begins[0].end() : ends[0]]
    if digest(inner.replace("\r\n", "\n")) != begins[0][1]:
        raise LabError(
            f"somebody wrote inside the computed block of {path}",
            why="it would be lost",
            instead="move that text above or below the block and undo the change inside, or delete the block",
        )
    made = block(text).removesuffix("\n")
    made = made.replace("\n", "\r\n") if begins[0][0].endswith("\r\n") else made
    return (raw[: begins[0].start()] + made + raw[ends[0] + len(_END) :]).encode()
