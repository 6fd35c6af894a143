"""The invariants of prompt pairs, each with an error that fits a screen and names the pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from microtome.errors import TaskError

if TYPE_CHECKING:
    from microtome.tasks.pairs import Continuations, Donors, PairTask, Side

__all__ = ["around", "count", "difference", "donors", "grouping", "indices", "pair", "quote", "side", "task"]


def quote(text: str, limit: int = 60) -> str:
    """The text in quotes on one line, with control characters and quotes visible, cut to `limit` characters."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    body = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return '"' + body.replace('"', '\\"') + '"'


def count(n: object, what: str) -> int:
    """`n` as a positive integer, else TaskError."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise TaskError(
            f"{what} is {n!r}", why="it counts prompts", instead=f"give a whole number >= 1 as {what}"
        )
    return n


def difference(a: Sequence[int], b: Sequence[int]) -> int:
    """The first token index at which two prompts differ (the shorter one's length if it is a prefix)."""
    for at, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return at
    return min(len(a), len(b))


def around(shown: Sequence[str], at: int, *, reach: int = 4, limit: int = 16) -> str:
    """Tokens around index `at`, quoted, the one at `at` in brackets."""
    low, high = max(at - reach, 0), min(at + reach + 1, len(shown))
    parts = [f"[{quote(shown[i], limit)}]" if i == at else quote(shown[i], limit) for i in range(low, high)]
    if at >= len(shown):
        parts.append("[nothing]")
    return ("… " if low else "") + " ".join(parts) + (" …" if high < len(shown) else "")


def side(made: Side) -> None:
    """What holds for every side: rows agree in number, prompts are not empty, spans lie inside them."""
    n = len(made.ids)
    if n == 0:
        raise TaskError("there are no prompts", why="the list is empty", instead="give at least one")
    for what in ("texts", "variables", "surface", "strings"):
        have = len(getattr(made, what))
        if have != n and not (what == "strings" and have == 0):
            raise TaskError(
                f"{n} prompts but {have} {what}", why="there is one per prompt", instead=f"give {n} {what}"
            )
    for i, row in enumerate(made.ids):
        if not row:
            raise TaskError(
                f"prompt {i} is empty: {quote(made.texts[i])}",
                why="it has no tokens, so there is no position to read",
                instead="give it text",
            )
        if min(row) < 0:
            raise TaskError(
                f"prompt {i} has the token id {min(row)}", why="ids count from 0", instead="check the ids"
            )
    for name, ranges in made.spans.items():
        _span(made, name, ranges)


def _span(made: Side, name: str, ranges: Sequence[tuple[int, int] | None]) -> None:
    if not name.isidentifier():
        raise TaskError(
            f"{quote(name)} cannot name a span",
            why="spans are written in addresses (@subject), so their names are letters, digits and _",
            instead="rename it",
        )
    if len(ranges) != len(made.ids):
        raise TaskError(
            f'the span "{name}" has {len(ranges)} ranges for {len(made.ids)} prompts',
            why="there is one per prompt (None where a prompt lacks it)",
            instead="give one per prompt",
        )
    for i, at in enumerate(ranges):
        if at is not None and not 0 <= at[0] < at[1] <= len(made.ids[i]):
            raise TaskError(
                f'prompt {i}: the span "{name}" is {at[0]}:{at[1]}, the prompt has {len(made.ids[i])} tokens',
                why="spans are half-open token ranges that lie inside the prompt",
                instead=f"use 0 <= start < stop <= {len(made.ids[i])}",
            )


def pair(
    where: str,
    clean: Sequence[int],
    corrupt: Sequence[int],
    shown: Callable[[int, Sequence[int]], Sequence[str]] | None = None,
) -> None:
    """Two prompts of equal token length that are not the same; `shown(0 or 1, ids)` gives a side's token strings."""
    if len(clean) != len(corrupt):
        at = difference(clean, corrupt)
        strings = shown or (lambda _, ids: [str(i) for i in ids])
        left, right = around(strings(0, clean), at), around(strings(1, corrupt), at)
        raise TaskError(
            f"{where}: the clean prompt has {len(clean)} tokens, the corrupt one {len(corrupt)}",
            why="patching moves position p of one prompt to position p of the other; they part at token "
            f"{at}:\n           clean    {left}\n           corrupt  {right}",
            instead="reword until both have the same number of tokens (often one name is longer than the other)",
        )
    if tuple(clean) == tuple(corrupt):
        raise TaskError(
            f"{where}: clean and corrupt are the same prompt",
            why="nothing differs, so no patch between them can do anything",
            instead="change the word that decides the answer in one of them",
        )


def continuations(
    where: str,
    right: Continuations,
    wrong: Continuations,
    metric: str,
    show: Callable[[Sequence[int]], str] = str,
) -> None:
    """Answers and wrong answers that are not empty, do not overlap, and fit the metric."""
    for what, options in (("answer", right), ("wrong answer", wrong)):
        if not options or any(not one for one in options):
            raise TaskError(
                f"{where}: the {what} is empty", why="it has no token to score", instead="give one"
            )
        if metric == "logit_diff" and (len(options) != 1 or len(options[0]) != 1):
            have = (
                f"{len(options)} continuations"
                if len(options) > 1
                else f"{len(options[0])} tokens: {show(options[0])}"
            )
            raise TaskError(
                f"{where}: the {what} is {have}",
                why='the metric "logit_diff" compares one token with one token',
                instead='metric="logprob_diff" (--metric logprob_diff), or words that are one token',
            )
    if right == wrong:
        raise TaskError(
            f"{where}: the answer equals the wrong answer: {show(right[0])}",
            why="their difference is zero whatever the model does",
            instead="give two that differ",
        )
    # sorted, everything that begins with `one` follows it directly: neighbours are enough
    every = sorted([*right, *wrong])
    for one, other in zip(every, every[1:], strict=False):
        if other[: len(one)] == one:
            raise TaskError(
                f"{where}: {show(one)} is the beginning of, or the same as, {show(other)}",
                why="the probability of one contains that of the other, so it would count twice",
                instead="give continuations none of which begins another",
            )


def task(made: PairTask) -> None:
    """Everything that a `PairTask` promises."""
    n = len(made.clean)
    rows: dict[str, int] = {"corrupt prompts": len(made.corrupt), "answers": len(made.answers)}
    rows |= {"wrong answers": len(made.wrong)} | {
        f'labels of "{by}"': len(x) for by, x in made.groups.items()
    }
    for what, have in rows.items():
        if have != n:
            raise TaskError(
                f"{n} clean prompts but {have} {what}", why="there is one per pair", instead=f"give {n}"
            )
    sides = (made.clean, made.corrupt)
    for i in range(n):

        def shown(which: int, ids: Sequence[int], i: int = i) -> Sequence[str]:
            return sides[which].strings[i] if sides[which].strings else [str(t) for t in ids]

        pair(f"pair {i}", made.clean.ids[i], made.corrupt.ids[i], shown)
        continuations(f"pair {i}", made.answers[i], made.wrong[i], made.metric)
    _same_spans(made)
    _declared(made)


def _same_spans(made: PairTask) -> None:
    if made.clean.spans.keys() != made.corrupt.spans.keys():
        only = sorted(made.clean.spans.keys() ^ made.corrupt.spans.keys())
        raise TaskError(
            f"only one side has the span {only[0]!r}",
            why="a span is a place in the pair",
            instead="give it to both",
        )
    for name, row in made.clean.spans.items():
        for i, (a, b) in enumerate(zip(row, made.corrupt.spans[name], strict=True)):
            if a != b:
                raise TaskError(
                    f'pair {i}: the span "{name}" is at {a} in clean and at {b} in corrupt',
                    why="positions of a pair stand for each other, so a span is one place in both",
                    instead="name spans by the clean prompt's roles and give corrupt the same ranges",
                )


def _declared(made: PairTask) -> None:
    names = {frozenset(v) for s in (made.clean, made.corrupt) for v in s.variables}
    if len(names) > 1:
        raise TaskError(
            "prompts declare different variables",
            why=f"found {' and '.join(sorted(str(sorted(x)) for x in names))}",
            instead="give every prompt a value for each variable",
        )
    known = next(iter(names))
    if not made.differs <= known:
        raise TaskError(
            f"the counterfactual differs in {sorted(made.differs - known)}, which are not variables",
            why=f"the variables are {sorted(known)}",
            instead="declare them, or correct `differs`",
        )
    for i, (a, b) in enumerate(zip(made.clean.variables, made.corrupt.variables, strict=True)):
        changed = {key for key in known if a[key] != b[key]}
        if not changed <= made.differs or (known and not changed):
            raise TaskError(
                f"pair {i}: clean and corrupt differ in {sorted(changed)}, declared is {sorted(made.differs)}",
                why="donors and controls are chosen by the variables, so a change that is not declared misleads them",
                instead="declare what differs, or make the pair differ in that only",
            )


def indices(keep: Sequence[int], n: int) -> None:
    """Distinct indices of pairs, at least one."""
    bad = [i for i in keep if not 0 <= i < n]
    if not keep or bad or len(set(keep)) != len(keep):
        what = (
            "no pairs were chosen"
            if not keep
            else f"there is no pair {bad[0]}"
            if bad
            else "a pair is chosen twice"
        )
        raise TaskError(
            what, why=f"the task has pairs 0 to {n - 1}, each once", instead="give distinct indices of pairs"
        )


def grouping(made: PairTask, by: str, held_out: float) -> tuple[str, ...]:
    """The labels to split by."""
    if by not in made.groups:
        known = ", ".join(sorted(made.groups)) or "none"
        raise TaskError(
            f"pairs are not grouped by {by!r}",
            why=f"groupings of this task: {known}",
            instead="split by one of them",
        )
    if not 0 < held_out < 1:
        raise TaskError(
            f"held_out is {held_out}", why="it is a share of the clusters", instead="give one between 0 and 1"
        )
    labels = made.groups[by]
    if len(set(labels)) < 2:
        raise TaskError(
            f"all {made.n} pairs are in one {by} cluster ({labels[0]!r})",
            why="clusters are held out whole, so there is nothing to hold out",
            instead="split by another grouping, or make more pairs",
        )
    return labels


def donor_kind(kind: str, kinds: Sequence[str]) -> None:
    """One of the kinds of donor."""
    if kind not in kinds:
        raise TaskError(
            f"there is no kind of donor {kind!r}",
            why="noise donors are made from activations by the controls, the others by the task",
            instead=f"use one of {', '.join(kinds)}",
        )


def donors(made: PairTask, given: Donors, kind: str) -> None:
    """Donors that are what their kind says: aligned, with the variables and the text that they promise.

    A source is code of anyone; a donor with a wrong variable would turn a control into its opposite.
    """
    if len(given) != made.n or given.kind != kind:
        raise TaskError(
            f"{len(given)} donors of kind {given.kind!r} for {made.n} pairs and kind {kind!r}",
            why="there is one donor per pair",
            instead="correct the task's source",
        )
    for i in range(made.n):
        problem = _donor_problem(made, given, kind, i)
        if problem:
            raise TaskError(
                f"the {kind} donor of pair {i} {problem}",
                why=f"donor {quote(given.texts[i])}, pair {quote(made.clean.texts[i])}",
                instead="correct the task's source: a control on such a donor would mislead",
            )


def _donor_problem(made: PairTask, given: Donors, kind: str, i: int) -> str:
    if len(given.ids[i]) != len(made.clean.ids[i]):
        return f"has {len(given.ids[i])} tokens, its pair {len(made.clean.ids[i])}"
    if given.spans_of(i) != made.clean.spans_of(i):
        return f"has its spans at {given.spans_of(i)}, its pair at {made.clean.spans_of(i)}"
    have, clean, corrupt = given.variables[i], made.clean.variables[i], made.corrupt.variables[i]
    if kind == "wrong_value":
        if len(given.answers) != made.n or len(given.wrong) != made.n:
            return "does not say its answer"
        continuations(f"the {kind} donor of pair {i}", given.answers[i], given.wrong[i], "logprob_diff")
        right = set(given.answers[i])
        if have in (clean, corrupt) or right in (set(made.answers[i]), set(made.wrong[i])):
            return "has the answer of its own pair"
        kept = sorted(key for key in clean if key not in made.differs and have.get(key) != clean[key])
        same = sorted(key for key in made.differs if have.get(key) == clean[key])
        if kept:
            return f"changes {kept[0]}, which the pair does not differ in"
        return f"has the clean prompt's {same[0]}, {clean[same[0]]!r}" if same else ""
    twin, name = (clean, "clean") if kind == "same_value" else (corrupt, "corrupt")
    wrong = sorted(key for key in twin.keys() | have.keys() if twin.get(key) != have.get(key))
    if wrong:
        return f"has {wrong[0]} = {have.get(wrong[0])!r}, the {name} prompt {twin.get(wrong[0])!r}"
    if given.ids[i] == (made.clean if name == "clean" else made.corrupt).ids[i]:
        return f"is the {name} prompt itself"
    return ""
