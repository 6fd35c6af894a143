"""A write-up as Markdown: places for the author's words, and blocks that are computed, in reading order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ResourceError
from microtome.lab.writing import telling
from microtome.lab.writing.prose import as_markdown, escape
from microtome.lab.writing.whole import write_whole

if TYPE_CHECKING:
    from microtome.lab.writing.values import ClaimPart, Experiment, WriteUp

__all__ = ["Section", "page", "sections", "write_markdown"]


@dataclass(frozen=True)
class Section:
    """A part of the file. computed: generated, else the author's. name: by which it is found again. experiment: of its figures."""

    name: str
    text: str
    computed: bool = True
    experiment: Experiment | None = None


def write_markdown(write_up: WriteUp, path: str | Path) -> Path:
    """Write the write-up as Markdown with its figures in a folder beside it (NAME_figures); the file's absolute path.

    Raises ResourceError when it cannot be written.
    """
    from microtome.lab.writing.pictures import Drawn, pictures

    place = Path(path).expanduser().absolute()
    folder = place.with_name(f"{place.stem}_figures")
    drawn: dict[int, Sequence[Drawn]] = {}
    for part in write_up.claims:
        for e in part.experiments:
            drawn[e.number] = pictures(e.result) if e.result is not None else ()
    if any(drawn.values()):
        _figures(folder, drawn)
    return write_whole(place, page(write_up, drawn, folder.name).encode("utf-8"))


def _figures(folder: Path, drawn: Mapping[int, Sequence[Any]]) -> None:
    """The pictures, in the place of those of an earlier write-up; nothing else in the folder is touched."""
    try:
        for old in folder.glob("experiment-*.svg"):
            old.unlink()
    except OSError as error:
        raise ResourceError(f"{folder} cannot be written to", why=error.strerror or str(error), instead="another path") from error  # fmt: skip
    for number, found in drawn.items():
        for i, one in enumerate(found):
            write_whole(folder / _name(number, i), one.light.encode("utf-8"))


def _name(number: int, i: int) -> str:
    return f"experiment-{number}-{i + 1}.svg"


def page(write_up: WriteUp, drawn: Mapping[int, Sequence[Any]] = {}, folder: str = "") -> str:
    """The write-up as Markdown text. drawn: pictures of each experiment, which lie in `folder`."""
    out = [f"# {escape(write_up.title)}", _by(write_up)]
    for section in sections(write_up):
        text = section.text
        if not section.computed:
            text = as_markdown(text) if text.strip() else _empty(section.name)
        if text:
            out.append(text)
        if section.experiment is not None and section.computed:
            found = drawn.get(section.experiment.number, ())
            out += [f"![{escape(x.caption or x.name, 300)}]({_address(folder)}/{_name(section.experiment.number, i)})" for i, x in enumerate(found)]  # fmt: skip
    return "\n\n".join(out) + "\n"


def _by(write_up: WriteUp) -> str:
    first, last = write_up.dates
    dates = first if first == last else f"{first} to {last}"
    return f"*{', '.join(escape(a, 200) for a in write_up.authors)}*; runs of {dates}."


def _empty(name: str) -> str:
    return {"summary": "*No summary was written.*", "limitations": "", "verified": "*The author says nothing of what was verified by hand.*"}.get(name, f"*{telling.UNSAID}*")  # fmt: skip


def _address(folder: str) -> str:
    from urllib.parse import quote

    return quote(folder)


def sections(write_up: WriteUp) -> Iterator[Section]:
    """All parts after the title, in reading order."""
    yield Section("heading summary", "## Summary")
    yield Section("summary", write_up.summary, computed=False)
    for i, part in enumerate(write_up.claims, 1):
        yield Section(f"claim {part.claim.number}", _claim(part, i))
        for e in part.experiments:
            key = f"{part.claim.number}.{e.row.number}"
            yield Section(f"experiment {key}", _experiment(e, part.claim.number), experiment=e)
            yield Section(f"heading why {key}", "**Why it bears on the claim.**")
            yield Section(f"why {key}", e.why, computed=False)
        if part.foretold:
            text = ["### Other predictions that bear on it", _list(telling.prediction(p) for p in part.foretold)]  # fmt: skip
            yield Section(f"predictions of claim {part.claim.number}", "\n\n".join(text))
    yield Section("heading limitations", "## Limitations")
    yield Section("limitations", write_up.limitations, computed=False)
    yield Section("computed limitations", "From the record:\n\n" + _list(write_up.computed_limitations))
    yield Section("heading verified", "## What was verified, and how")
    yield Section("verified", write_up.verified, computed=False)
    yield Section("checked", "Checked by Microtome:\n\n" + _list(write_up.checked))
    yield Section("scores", "\n\n".join(_scores(write_up)))
    yield Section("left out", "\n\n".join(_left(write_up)))
    yield Section("techniques", "## What the techniques cannot show\n\n" + _list(write_up.blind_spots))
    versions = [f"{name} {version}" for name, version in write_up.environment.items()]
    yield Section("environment", "## With what it was made\n\n" + _list(versions))


def _claim(part: ClaimPart, i: int) -> str:
    c = part.claim
    out = [f"## Claim {i}: {escape(c.statement)}", f"**Rung: {escape(telling.rung(part))}** (claim {c.number} of the record)"]  # fmt: skip
    for name, items in telling.claim_facts(part):
        if items:
            out += [f"{name}:", _list(items)]
    return "\n\n".join(out)


def _experiment(e: Experiment, claim: int) -> str:
    out = [
        f"### Experiment {e.number}: {escape(e.question)}",
        escape(telling.evidence(e, claim)),
        "**Hypothesis.** " + ("" if e.predictions else "No prediction was made before it."),
    ]
    if e.predictions:
        out.append(_list(telling.prediction(p) for p in e.predictions))
    out += ["**What was done.**", _table(("", ""), e.what)]
    out.append(f"**Result: {escape(e.verdict)}.** {escape('; '.join(e.reasons))}")
    out.append(
        _list([telling.number_text(n) for n in e.numbers] or ["No headline number: see the result itself."])
    )
    rows = telling.controls(e)
    if rows:
        out += ["**Controls.**", _table(("control", "needed", "rules out", "expected", "observed", "outcome", "n"), rows)]  # fmt: skip
    below = telling.stages(e)
    if below:
        out += ["**Stages.**", _table(telling.STAGES, below)]
    if e.calibration:
        out.append(f"Calibration: {escape(e.calibration)}")
    if e.result is not None:
        out.append(escape(telling.examples_head(e)))
        out += [_fenced(row) for row in e.examples.rows]
    return "\n\n".join(out)


def _scores(write_up: WriteUp) -> list[str]:
    out = ["## Predictions", escape(telling.scored_head(write_up))]
    if write_up.scored:
        out.append(_table(telling.SCORED, [telling.scored(s) for s in write_up.scored]))
    for s in write_up.scored:
        if s.curve and s.score is not None:
            rows = [(f"{b.forecast:.2f}", f"{b.rate:.2f} [{b.low:.2f}, {b.high:.2f}]", str(b.n)) for b in s.score.curve]  # fmt: skip
            out += [f"Calibration of {escape(s.person, 80)} ({s.kind}); base rate {s.score.base_rate:.2f}:",
                    _table(("said", "came true", "n"), rows)]  # fmt: skip
    return out


def _left(write_up: WriteUp) -> list[str]:
    said, rows = telling.left_out(write_up)
    out = ["## What was run and is not here", escape(said)]
    return [*out, _table(("state", "verdict", "technique", "runs"), rows)] if rows else out


def _list(items: Any) -> str:
    return "\n".join(f"- {escape(item)}" for item in items) or "- nothing"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *[[escape(cell, 600) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _fenced(row: Mapping[str, Any]) -> str:
    """An example as JSON in a fence that nothing in it can close."""
    lines = [f" {json.dumps(str(k))}: {json.dumps(_shown(v), ensure_ascii=True)}" for k, v in row.items()]
    text = "{\n" + ",\n".join(lines) + "\n}"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{text}\n{fence}"


def _shown(value: Any) -> Any:
    """Frozen JSON as plain values, long lists shortened and said so."""
    if isinstance(value, Mapping):
        return {str(k): _shown(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        kept = [_shown(v) for v in value[:24]]
        return [*kept, f"... {len(value) - 24} more"] if len(value) > 24 else kept
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else str(value)
    return value
