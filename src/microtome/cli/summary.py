"""A result on one screen: the verdict, what every stage found beside its null, and which controls failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from microtome.cli import output

if TYPE_CHECKING:
    from microtome.results import Control, Result

FAILED_SHOWN = 6


def as_data(result: Result) -> dict[str, Any]:
    """What `show` prints, and the query, as JSON-able data. Full numbers are in the saved folder."""
    return {
        "kind": result.kind,
        "title": result.title(),
        "query": result.query.as_json() if result.query else None,
        "verdict": {"word": result.verdict.word, "reasons": result.verdict.reasons, "p": result.verdict.p,
                    "alpha": result.verdict.alpha, "smallest_p": result.verdict.smallest_p},
        "strongest": strongest(result),
        "stages": output.plain(result.tables["stages"]) if "stages" in result.tables else None,
        "controls": [{**output.plain(c), "outcome": c.outcome} for c in result.controls],
        "tables": {name: len(frame) for name, frame in result.tables.items()},
        "children": [as_data(child) for child in result.children],
    }  # fmt: skip


def strongest(result: Result) -> dict[str, Any] | None:
    """The row of `frame()` with the largest absolute value, None where nothing was measured."""
    import pandas as pd

    frame = result.frame()
    order = frame["value"].abs().dropna().sort_values(ascending=False, kind="stable").index
    if order.empty:
        return None
    row = frame.loc[order[:1]].to_dict(orient="records")[0]
    return {str(k): None if pd.isna(v) else output.plain(v) for k, v in row.items()}


def show(result: Result) -> None:
    """Print it."""
    output.say(result.title(), style="bold")
    for reason in result.verdict.reasons:
        output.say(f"  {reason}")
    stages = _stages(result) or [_stage(result, result.kind)]
    head = ("stage", "strongest", "value", "interval", "null", "n", "controls", "verdict")
    output.table(head, stages, title="Stages" if result.children else "")
    failed = list(_failed(result))
    if failed:
        rows = [(where, c.name, c.expected, _observed(c), c.rules_out) for where, c in failed[:FAILED_SHOWN]]
        more = f" ({len(failed) - FAILED_SHOWN} more in the report)" if len(failed) > FAILED_SHOWN else ""
        output.table(
            ("stage", "control", "expected", "observed", "rules out"),
            rows,
            title="Controls that failed" + more,
        )


def _stages(result: Result) -> list[tuple[str, ...]]:
    """A row per child; where the result names its stages, by those names, with those that were refused."""
    kinds = [child.kind for child in result.children]
    if "stages" not in result.tables:
        return [_stage(child, kind) for child, kind in zip(result.children, kinds, strict=True)]
    told = result.tables["stages"].to_dict(orient="records")
    children = iter(result.children)
    return [
        (str(row["stage"]), str(row["note"]), *[""] * 5, "refused")
        if row["verdict"] == "refused"
        else _stage(next(children), str(row["stage"]))
        for row in told
    ]


def _stage(result: Result, name: str) -> tuple[str, ...]:
    row = strongest(result) or {}
    value = f"{output.number(row['value'])} {row['metric']}" if row else ""
    return (
        name.replace("_", " "),
        _where(row),
        value,
        _range(row.get("low"), row.get("high")),
        _range(row.get("null_low"), row.get("null_high")),
        output.number(row.get("n")),
        _counts(result),
        result.verdict.word,
    )


def _where(row: dict[str, Any]) -> str:
    """The cell's address; positions and heads that the site does not say are added."""
    site = row.get("site")
    if site is None:
        parts = [
            f"{letter}{row[name]}"
            for letter, name in (("L", "layer"), ("H", "head"))
            if row.get(name) is not None
        ]
        site = "".join(parts)
    at = row.get("position")
    return f"{site}@{at}" if at is not None and "@" not in str(site) else str(site)


def _range(low: Any, high: Any) -> str:
    if low is None or high is None:
        return ""
    return f"[{output.number(low)}, {output.number(high)}]"


def _counts(result: Result) -> str:
    said = {"passed": 0, "failed": 0, "did not run": 0}
    for control in result.controls:
        said[control.outcome] += 1
    return ", ".join(f"{n} {word}" for word, n in said.items() if n) or "none"


def _failed(result: Result, where: str = "") -> Iterator[tuple[str, Control]]:
    name = result.kind.replace("_", " ")
    for control in result.controls:
        if control.passed is False:
            yield name, control
    for child in result.children:
        yield from _failed(child, name)


def _observed(control: Control) -> str:
    seen: Any = control.observed
    if isinstance(seen, dict):
        return ", ".join(f"{k} {output.number(v)}" for k, v in seen.items())
    return output.number(seen)
