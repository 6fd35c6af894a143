"""The page of the red team's battery: each way of being wrong, when it applies, what rules it out, and the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Table = Callable[[Sequence[str], Iterable[Sequence[object]]], str]

INTRO = """# The dumbest ways in which a claim could be wrong

`microtome redteam "CLAIM" --method NAME` cuts this list to the evidence, less what controls have ruled out: every control named
here for the technique must have run and passed. `MODEL`, `TASK` and `SITE` are filled in from the claim. Nothing is run by it.
What is not on this list can be wrong all the same.
"""
WHEN = {
    "": "",
    "judged": "a person or a model judged",
    "post_hoc": "the evidence was seen before the claim",
    "one_seed": "there were fewer than two seeds",
    "few": "there were fewer than 20 prompts, or it is not known",
}


def page(table: Table) -> str:
    """The text."""
    from microtome.llm.battery import BATTERY

    head = ("for", "run", "if the claim is right", "if it is wrong", "takes")
    parts = [INTRO]
    for h in BATTERY:
        parts.append(f"## {h.name}\n\n{h.statement} For {_about(h)}.\n\n{table(head, _checks(h))}")
        if h.covers:
            ruled = "; ".join(f"`{method}`: {', '.join(names)}" for method, names in h.covers)
            parts.append(f"Ruled out by controls: {ruled}.\n")
    return "\n".join(parts)


def _about(h: Any) -> str:
    said = ", ".join(f"`{name}`" for name in h.methods) or "any technique"
    return ", where ".join(x for x in (said, WHEN[h.when]) if x)


def _checks(h: Any) -> list[tuple[object, ...]]:
    from microtome.llm.checks import filled

    every = [
        ("any" if not h.instead else "others", h.check),
        *((f"`{method}`", check) for method, check in h.instead),
    ]
    rows = []
    for who, found in every:
        check = filled(found, model="", task="", site="")
        given = f"; {check.given}" if check.given else ""
        rows.append((who, f"`{check.line()}`{given}", check.if_right, check.if_wrong, check.cost))
    return rows
