"""The page of real runs: what five questions gave on SmolLM2, written from the saved results alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import microtome as mt
from microtome.figures import pictures_of, static_svg
from microtome.report.numbers import Number, headline
from microtome.report.outline import outline
from microtome.report.prose import asked, limits
from microtome.report.tables import observed

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]
HOME = Path(__file__).parent
RESULTS, IMAGES = HOME / "results", HOME / "images" / "runs"
FIGURES = 2

INTRO = """# Real runs on SmolLM2

One command each, on the embedded model (135 M parameters). Numbers, verdicts and pictures are read from the saved results
(`docs/results`, `mt.open` opens them); nothing was left out because of what it said. SmolLM2 is small: where it cannot do
something, the answer is that there is nothing to find. `python tools/runs.py NAME` makes a run again.
"""


def page(table: Table) -> str:
    """The text."""
    runs = json.loads((RESULTS / "runs.json").read_text("utf-8"))
    return "\n".join(
        (INTRO, *(_run(name, said, table) for name, said in runs.items() if (RESULTS / name).is_dir()))
    )


def _run(name: str, said: dict[str, str], table: Table) -> str:
    result = mt.open(RESULTS / name)
    told = json.loads((RESULTS / name / "run.json").read_text("utf-8"))
    stages = outline(result)
    parts = [
        f"## {said['title']}\n",
        f"```sh\n{said['command']}\n```\n",
        f"{asked(result)}\n",
        f"**{str(result.verdict).capitalize()}** ({told['date']}, {told['seconds'] / 60:.0f} min on two cores). {'; '.join(result.verdict.reasons)}.\n",
        table(("what", "value", "interval", "null", "n"), [_number(n) for n in headline(result, stages)]),
        *_pictures(name, result),
        "Controls:\n",
        table(("control", "rules out", "observed", "outcome"), [_control(c) for c in result.controls]),
    ]
    for stage in stages if result.children else ():
        failed = ", ".join(c.name for c in stage.result.controls if c.passed is False) or "none"
        parts.append(f"- {stage.name}: **{stage.result.verdict}**; controls that failed: {failed}.\n")
    parts.append("What this does not show:\n\n" + "\n".join(f"- {s}" for s in limits(result)) + "\n")
    return "\n".join(parts)


def _number(one: Number) -> tuple[str, ...]:
    def pair(low: float, high: float) -> str:
        return "" if low != low else f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"

    null = f"{pair(one.null_low, one.null_high)} {one.null}".strip()
    return one.label, f"{one.value:.3g} {one.unit}".strip(), pair(one.low, one.high), null, str(one.n or "")


def _control(control: Any) -> tuple[str, ...]:
    return control.name.replace("_", " "), control.rules_out, observed(control), control.outcome


def pictures() -> dict[Path, Callable[[], str]]:
    """Every picture of the page: its file, and what draws it."""
    runs = json.loads((RESULTS / "runs.json").read_text("utf-8"))
    made = [n for n in runs if (RESULTS / n).is_dir()]
    return {
        IMAGES / f"{name}-{k}.svg": partial(_svg, picture)
        for name in made
        for k, picture in enumerate(_chosen(mt.open(RESULTS / name)))
    }


def _svg(picture: Any) -> str:
    return static_svg(picture.draw(), width=640) + "\n"


def _chosen(result: Any) -> list[Any]:
    """The first pictures of the result and of its first stage."""
    return [p for r in (result, *result.children[:1]) for p in pictures_of(r)[:FIGURES]]


def _pictures(name: str, result: Any) -> list[str]:
    return [f"![{p.name}](../images/runs/{name}-{k}.svg)\n" for k, p in enumerate(_chosen(result))]
