"""Whether a run's prompts are new to a claim: nothing in the record had seen them at the claim's sites when it was made.

Some techniques change what they are told to and have no control on held-out prompts of their own. When such a run began after
the claim, on pairs that no earlier run about these sites used, its own prompts are the held-out ones. As in the techniques'
controls (`methods.setting.shares`), new means: no pair in common, and no template or entity, whichever the split was by.
Prompts that were not kept count as seen.
"""  # fmt: skip

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.lab.reading import Wanted

if TYPE_CHECKING:
    from microtome.lab.reading import Record, RunRow

__all__ = ["TOLD", "Prompts", "prompts_of", "seen_before", "shared"]

TOLD = ("ablation", "path_patching")
"""Techniques that change the sites that they are given, and choose none by their effect."""


@dataclass(frozen=True)
class Prompts:
    """Pairs of a task as stored. pairs: token ids of both sides, as JSON. groups: template and entity of each. by: of the split."""

    pairs: frozenset[str]
    groups: Mapping[str, frozenset[str]]
    by: str = "entity"


def seen_before(record: Record, row: RunRow, last: int, concerns: Callable[[RunRow], bool]) -> str:
    """Why a run's prompts are not new; "" when they are.

    last: number of the last run before the claim. concerns: whether an earlier run saw anything that the claim is about.
    """
    known: dict[str, Prompts] = {}
    mine = prompts_of(record, row, known)
    if not mine:
        return "its prompts were not kept"
    for old in record.runs(Wanted(nested=True, before=last + 1, state="finished"), None):
        if not concerns(old):
            continue
        theirs = prompts_of(record, old, known)
        if not theirs:
            return f"the prompts of run {old.number} ({old.method}), which saw these sites before the claim, were not kept"
        if why := next((w for new in mine for w in [shared(new, theirs)] if w), ""):
            return f"run {old.number} saw these sites before the claim, and {why}"
    return ""


def shared(new: Prompts, old: Sequence[Prompts]) -> str:
    """What pairs have in common with others, in words; "" for nothing."""
    for one in old:
        if again := len(new.pairs & one.pairs):
            return f"{again} of {len(new.pairs)} pairs are the same"
        if common := sorted(new.groups.get(new.by, frozenset()) & one.groups.get(new.by, frozenset())):
            return f"the {new.by} {common[0]!r} is in both"
    return ""


def prompts_of(record: Record, row: RunRow, known: dict[str, Prompts]) -> tuple[Prompts, ...]:
    """The pairs of every task that a run was given; () where they are not known, or where it was given something else.

    known: file -> its prompts, to which those that are read are added.
    """
    if row.arguments is None:
        return ()
    try:
        files = list(_tasks(record, row.arguments))
        known |= {name: _prompts(json.loads(record.files.get(name))) for name in files if name not in known}
        return tuple(known[name] for name in files)
    except (LabError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _tasks(record: Record, key: str) -> Iterator[str]:
    """Names of the files of all tasks that arguments hold; an argument that is long is a file itself."""
    todo = [json.loads(record.files.get(key))]
    while todo:
        one = todo.pop()
        kind = one.get("$") if isinstance(one, dict) else None
        if kind == "task":
            yield one["file"]
        elif kind == "file":
            todo.append(json.loads(record.files.get(one["key"])))
        elif isinstance(one, dict | list):
            todo.extend(one.values() if isinstance(one, dict) else one)


def _prompts(data: Mapping[str, Any]) -> Prompts:
    sides = [data[side]["fields"]["ids"]["items"] for side in ("clean", "corrupt")]
    pairs = frozenset(json.dumps(pair) for pair in zip(*sides, strict=True))
    groups = {name: frozenset(map(str, values["items"])) for name, values in data["groups"]["items"]}
    split = next((value for name, value in data["provenance"]["items"] if name == "split"), None)
    return Prompts(pairs, groups, "template" if _by(split) == "template" else "entity")


def _by(split: Any) -> str:
    """What a task was split by, as its provenance says; "" for none."""
    items = split.get("items", split) if isinstance(split, dict) else {}
    return str(dict(items).get("by", ""))
