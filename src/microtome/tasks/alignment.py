"""Which positions of which prompts stand for each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from microtome.errors import TaskError
from microtome.sites import At
from microtome.tasks import checks
from microtome.tasks.pairs import PairTask, Side, Span

__all__ = ["Group", "columns", "first_difference", "groups", "match", "positions"]


@dataclass(frozen=True)
class Group:
    """Prompts whose positions stand for each other: same length, spans at the same positions.

    indices: of the prompts; length: their tokens; spans: name -> range, the same in all of them.
    """

    indices: tuple[int, ...]
    length: int
    spans: Mapping[str, Span]


def first_difference(task: PairTask) -> tuple[int, ...]:
    """Per pair, the first token position at which clean and corrupt differ.

    Before it a causal model's activations are equal, so that nothing there needs to be swept.
    """
    return tuple(checks.difference(a, b) for a, b in zip(task.clean.ids, task.corrupt.ids, strict=True))


def groups(data: PairTask | Side, *, roles: bool = True) -> tuple[Group, ...]:
    """The aligned groups, each in the order of its prompts, largest first.

    roles=False ignores what spans are called: IOI prompts of the orders ABBA and BABA then fall together,
    as they do for a reference distribution that should not keep the order.
    """
    made = data.clean if isinstance(data, PairTask) else data
    found: dict[object, list[int]] = {}
    for i in range(len(made)):
        found.setdefault(_layout(made, i, roles), []).append(i)
    every = [Group(tuple(rows), len(made.ids[rows[0]]), made.spans_of(rows[0])) for rows in found.values()]
    return tuple(sorted(every, key=lambda g: (-len(g.indices), g.indices)))


def match(data: PairTask | Side, reference: Side) -> tuple[tuple[int, ...], ...]:
    """Per prompt, the indices of the reference prompts that are aligned with it (roles ignored).

    Raises
    ------
    TaskError: a prompt has none.
    """
    made = data.clean if isinstance(data, PairTask) else data
    rows: dict[object, list[int]] = {}
    for j in range(len(reference)):
        rows.setdefault(_layout(reference, j, False), []).append(j)
    out = []
    for i in range(len(made)):
        fitting = rows.get(_layout(made, i, False), [])
        if not fitting:
            raise TaskError(
                f"no reference prompt is aligned with prompt {i}: {checks.quote(made.texts[i])}",
                why=f"none has {len(made.ids[i])} tokens and spans at the same positions",
                instead="ask for more reference prompts (task.reference(n, seed))",
            )
        out.append(tuple(fitting))
    return tuple(out)


def positions(data: PairTask | Side, at: At | str | int) -> tuple[Span, ...]:
    """Per prompt, the half-open token range that a position means: -1, "3:8", "subject", "subject[-1]".

    Raises
    ------
    SiteError: the position or span is not in one of the prompts.
    """
    from microtome.sites import parse

    made = data.clean if isinstance(data, PairTask) else data
    place = at if isinstance(at, At) else parse(f"embed@{at}").at
    assert isinstance(place, At)
    return tuple(place.resolve(len(made.ids[i]), made.spans_of(i)) for i in range(len(made)))


def columns(data: PairTask | Side) -> dict[str, tuple[Span | None, ...]]:
    """Every prompt cut into named pieces, so that each token is in exactly one column.

    A column is a span, or the gap between two ("io..s1", "..io", "end.."); where spans overlap, the common
    part is a column of its own ("subject+end"). Prompts that are not aligned can be compared column by
    column. Columns come in the order of their mean place; a prompt without the column has None.
    """
    made = data.clean if isinstance(data, PairTask) else data
    cut = [_pieces(len(made.ids[i]), made.spans_of(i)) for i in range(len(made))]
    middle: dict[str, list[float]] = {}
    for i, pieces in enumerate(cut):
        for name, (start, stop) in pieces.items():
            middle.setdefault(name, []).append((start + stop) / 2 / len(made.ids[i]))
    order = sorted(middle, key=lambda name: sum(middle[name]) / len(middle[name]))
    return {name: tuple(pieces.get(name) for pieces in cut) for name in order}


def _layout(made: Side, i: int, roles: bool) -> object:
    spans = made.spans_of(i)
    return len(made.ids[i]), frozenset(spans.items() if roles else spans.values())


def _pieces(length: int, spans: Mapping[str, Span]) -> dict[str, Span]:
    cover = ["+".join(name for name, (a, b) in spans.items() if a <= p < b) for p in range(length)]
    runs: list[tuple[str, int, int]] = []
    for p, name in enumerate(cover):
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1], p + 1)
        else:
            runs.append((name, p, p + 1))
    out: dict[str, Span] = {}
    for k, (name, start, stop) in enumerate(runs):
        label = name or _gap(runs, k)
        number = 2
        while label in out:  # a span interrupted by another one
            label = f"{name or _gap(runs, k)}#{number}"
            number += 1
        out[label] = (start, stop)
    return out


def _gap(runs: Sequence[tuple[str, int, int]], k: int) -> str:
    before = runs[k - 1][0] if k else ""
    after = runs[k + 1][0] if k + 1 < len(runs) else ""
    return f"{before}..{after}"
