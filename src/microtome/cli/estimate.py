"""How long a command will take: the seconds of one timed forward, times the forwards that its technique does.

What is no forward (fits, drawing noise, statistics) is counted in forwards too, which is rough: the sum says whether to wait or to
come back, no more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from microtome.cli import job, output, recorded
from microtome.cli.watch import steps

__all__ = ["Part", "announce", "length", "made_up", "rate"]

TIMED, LONGEST = 8, 512
"""Rows of the timed forward, and how many tokens of each at most."""
ASIDE = 1.2
"""What small calls and statistics add."""
GENERATED = 3.0
"""A token written, in tokens read: one at a time is slower than all at once."""


class Part(NamedTuple):
    """One part of the work: what it is, and how many tokens go through the model for it."""

    what: str
    tokens: float


def length(rows: Sequence[Sequence[int]]) -> float:
    """Mean number of tokens of rows."""
    return sum(map(len, rows)) / max(len(rows), 1)


def made_up(model: Any, n: int, size: int) -> list[list[int]]:
    """n rows of `size` tokens that say nothing: what is timed where the real ones are made later."""
    size = min(size, model.facts.n_ctx or size)
    return [[(31 * i + k) % model.facts.d_vocab for k in range(size)] for i in range(n)]


def rate(model: Any, rows: Sequence[Sequence[int]]) -> float:
    """Seconds per token of a forward of rows of middle length, timed on the second time."""
    # a text that does not fit is refused by who reads it, not by who times it
    most = min(LONGEST, model.facts.n_ctx or LONGEST)
    first = max(0, (len(rows) - TIMED) // 2)
    some = [list(r)[:most] for r in sorted(rows, key=len)[first : first + TIMED]]
    model.run(some, logits="last")
    began = time.perf_counter()
    model.run(some, logits="last")
    return (time.perf_counter() - began) / sum(map(len, some))


def announce(model: Any, rows: Sequence[Sequence[int]], parts: Sequence[Part], *, to_stderr: bool) -> float:
    """Print the plan; its seconds. rows: token ids of what the command will read, some of which are timed."""
    with steps() as say:
        say("measuring what this machine does in a second")
        each = rate(model, rows) * ASIDE
    seconds = [each * part.tokens for part in parts]
    shown = [(part.what, job.minutes(s)) for part, s in zip(parts, seconds, strict=True)]
    title = f"Plan: about {job.minutes(sum(seconds))}"
    output.table(("part", "estimate"), shown, title=title, to=job.stream(to_stderr))
    recorded.long(sum(seconds), recorded.title())
    return sum(seconds)
