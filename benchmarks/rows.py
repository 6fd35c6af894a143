"""Cells and tables of the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def took(who: dict | None) -> str:
    """Median seconds, smallest to largest in brackets; or why there are none."""
    if who is None:
        return ""
    if "failed" in who:
        return f"failed: {who['failed']}"
    return f"{who['seconds']:.2f} ({who['low']:.2f} to {who['high']:.2f})"


def paired(who: dict, other: dict) -> float:
    """Median over rounds of the ratio within a round: both saw the same minute of the machine. One round: of the medians."""
    own, theirs = who.get("rounds", [who["seconds"]]), other.get("rounds", [other["seconds"]])
    if len(own) != len(theirs):
        return float(who["seconds"] / other["seconds"])
    return statistics.median(a / b for a, b in zip(own, theirs, strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)
