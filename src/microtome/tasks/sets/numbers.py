"""True and false statements about numbers in words.

After Marks & Tegmark, The Geometry of Truth (arXiv 2310.06824), `larger_than` and `smaller_than`, with more templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from microtome.tasks.rng import shuffled
from microtome.tasks.sets.base import Dataset, Row, compared, statements

__all__ = ["LARGER_THAN", "SMALLER_THAN", "SUMS", "spelled"]

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_PAPER = "in the style of Marks & Tegmark 2023, arXiv 2310.06824; computed"
_MOST = 600

_LARGER = (
    "{x} is larger than {y}.",
    "{x} is more than {y}.",
    "{x} is greater than {y}.",
    "The number {x} is larger than the number {y}.",
    "{x} comes after {y} when one counts.",
    "{x} exceeds {y}.",
    "Of the two numbers, {x} and not {y} is the larger.",
    "{x} things are more than {y} things.",
    "It is so that {x} is larger than {y}.",
    "Compared with each other, {x} is larger than {y}.",
    "Whoever has {x} has more than one who has {y}.",
    "On a ruler {x} lies to the right of {y}.",
)
_SMALLER = (
    "{x} is smaller than {y}.",
    "{x} is less than {y}.",
    "{x} is lower than {y}.",
    "The number {x} is smaller than the number {y}.",
    "{x} comes before {y} when one counts.",
    "{x} falls short of {y}.",
    "Of the two numbers, {x} and not {y} is the smaller.",
    "{x} things are fewer than {y} things.",
    "It is so that {x} is smaller than {y}.",
    "Compared with each other, {x} is smaller than {y}.",
    "Whoever has {x} has less than one who has {y}.",
    "On a ruler {x} lies to the left of {y}.",
)
_SUM = (
    "{x} is {y}.",
    "{x} equals {y}.",
    "{x} makes {y}.",
    "The result of {x} is {y}.",
    "It is so that {x} is {y}.",
    "If you work out {x}, you get {y}.",
    "The value of {x} is {y}.",
    "{x} comes to {y}.",
    "{x} gives {y}.",
    "The answer to {x} is {y}.",
    "Worked out, {x} is {y}.",
    "One finds that {x} is {y}.",
)


def spelled(n: int) -> str:
    """A number from 0 to 99 in words."""
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10] + ("" if n % 10 == 0 else "-" + _ONES[n % 10])


@lru_cache(maxsize=1)
def _pairs() -> Sequence[tuple[str, str]]:
    """(larger, smaller) of the numbers from 1 to 99, at most 50 apart: always the same draw."""
    every = [(a, d) for a in range(1, 100) for d in range(1, 51) if a + d <= 99]
    return tuple((spelled(a + d), spelled(a)) for a, d in shuffled(every, 0, "numbers/pairs")[:_MOST])


@lru_cache(maxsize=1)
def _sums() -> Sequence[tuple[str, str]]:
    every = [(a, b) for a in range(2, 50) for b in range(a, 50)]
    return tuple(
        (f"{spelled(a)} plus {spelled(b)}", spelled(a + b))
        for a, b in shuffled(every, 0, "numbers/sums")[:_MOST]
    )


_NOTE = "no set of words, the same either way round; which number comes first, as a large one is mostly the larger"


def _compared(name: str, templates: Sequence[str], n: int, seed: int) -> list[Row]:
    pairs = _pairs() if name == "larger_than" else [(small, large) for large, small in _pairs()]
    return compared(pairs, templates, n, seed, name=name)


LARGER_THAN = Dataset(
    "larger_than",
    "Sixty-one is larger than fifty-four. / Fifty-four is larger than sixty-one.",
    "whether the statement is true",
    _PAPER,
    lambda n, seed: _compared("larger_than", _LARGER, n, seed),
    lambda: _MOST,
    readable=_NOTE,
)
SMALLER_THAN = Dataset(
    "smaller_than",
    "Fifty-four is smaller than sixty-one. / Sixty-one is smaller than fifty-four.",
    "whether the statement is true",
    _PAPER,
    lambda n, seed: _compared("smaller_than", _SMALLER, n, seed),
    lambda: _MOST,
    readable=_NOTE,
)
SUMS = Dataset(
    "sums",
    "Seventeen plus five is twenty-two. / ... is forty.",
    "whether the sum is right",
    "computed",
    lambda n, seed: statements(_sums(), _SUM, n, seed, name="sums"),
    lambda: _MOST,
)
