"""Controls, and the verdict that is computed from them.

The order of the verdicts is the order in which a number loses its meaning:

1. **invalid**: a deterministic check (``gates=True``) failed. The numbers are wrong, whatever else holds.
2. **unchecked**: a mandatory control, or any gate, did not run. Nobody knows whether the numbers are right;
   this comes before power and p, since a significance level of unchecked numbers invites belief.
3. **underpowered**: the smallest p that this design can reach lies above alpha. No outcome could have been
   called an effect, so neither can its absence; a failed control says nothing either at this n.
4. **unchecked** again when no p was computed at all: no number without its null.
5. **supported**: p <= alpha and every mandatory control passed.
6. **not distinguishable from its null**: p above alpha, or a mandatory control failed: something that must
   not have the effect has it too.

A failed control that is neither a gate nor mandatory changes no verdict; it is named among the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ControlError, ResultError
from .frozen import freeze_json

SUPPORTED = "supported"
NULL = "not distinguishable from its null"
INVALID = "invalid"
UNDERPOWERED = "underpowered"
UNCHECKED = "unchecked"
VERDICTS = (SUPPORTED, NULL, INVALID, UNDERPOWERED, UNCHECKED)
_FEW = 4


@dataclass(frozen=True)
class Control:
    """One control as data.

    Parameters
    ----------
    name: its name, as the technique declares it.
    rules_out: what the effect would be instead, if this control failed.
    expected: what was expected, in words.
    observed: what was seen: a number, words, or a JSON-able mapping of them (None only if it did not run).
    passed: True, False, or None when it did not run; `detail` then says why.
    n: on how many (cells, prompts, draws) it rests; at least 1 when it ran: a control over nothing passes
       whatever is wrong.
    null: (low, high) of the null distribution, where there is one.
    detail: anything more in words.
    gates: a deterministic check, whose failure makes the numbers invalid.
    """

    name: str
    rules_out: str
    expected: str
    observed: float | str | Mapping[str, Any] | None
    passed: bool | None
    n: int
    null: tuple[float, float] | None = None
    detail: str = ""
    gates: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "rules_out", "expected"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ResultError(
                    f"control {self.name!r} has no {name}", why="a control says what it rules out and expects",
                    instead=f"give {name}= in words",
                )  # fmt: skip
        self._check_outcome()
        observed = freeze_json(self.observed, f"control {self.name!r}: observed")
        if observed is None and self.passed is not None or isinstance(observed, (bool, tuple)):
            raise ResultError(
                f"control {self.name!r} observed {self.observed!r}",
                why="what was seen must be shown: a number, words or a mapping",
                instead="observed=0.12",
            )
        object.__setattr__(self, "observed", observed)
        if self.null is not None:
            object.__setattr__(self, "null", _interval(self.name, self.null))

    def _check_outcome(self) -> None:
        passed, gates, n = (_python(value) for value in (self.passed, self.gates, self.n))
        if not (passed is None or isinstance(passed, bool)) or not isinstance(gates, bool):
            raise ResultError(
                f"control {self.name!r}: passed={self.passed!r}, gates={self.gates!r}",
                why="passed is True, False or None (did not run); gates is True or False",
                instead="convert with bool(...)",
            )
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ResultError(f"control {self.name!r}: n={self.n!r}", why="n counts", instead="n=0 or more")
        if passed is not None and n == 0:
            raise ResultError(
                f"control {self.name!r} {'passed' if passed else 'failed'} on nothing (n=0)",
                why="a control over an empty set passes whatever is wrong",
                instead="say passed=None and in detail= why it did not run",
            )
        if passed is None and not self.detail.strip():
            raise ResultError(
                f"control {self.name!r} did not run and does not say why",
                why="a reader must be able to tell a skipped control from a forgotten one",
                instead="detail='the task declares no variables'",
            )
        for name, value in (("passed", passed), ("gates", gates), ("n", n)):
            object.__setattr__(self, name, value)

    @classmethod
    def not_run(cls, name: str, rules_out: str, expected: str, why: str, *, gates: bool = False) -> Control:
        """A control that did not run, and why."""
        return cls(name, rules_out, expected, None, None, 0, detail=why, gates=gates)

    @property
    def outcome(self) -> str:
        """'passed', 'failed' or 'did not run'."""
        return "did not run" if self.passed is None else "passed" if self.passed else "failed"


class Verdict(str):
    """The word of a verdict (it compares as text), with its `reasons` and the numbers it was computed from.

    Made by `verdict`, never typed: a Result recomputes it and refuses one that does not follow.
    """

    reasons: tuple[str, ...]
    mandatory: tuple[str, ...]
    p: float | None
    alpha: float
    smallest_p: float | None

    def __new__(
        cls,
        word: str,
        reasons: Sequence[str],
        mandatory: Sequence[str],
        p: float | None,
        alpha: float,
        smallest_p: float | None,
    ) -> Verdict:
        """See the class."""
        if word not in VERDICTS:
            raise ResultError(
                f"{word!r} is no verdict", why="verdicts are computed", instead=f"one of {VERDICTS}"
            )
        self = super().__new__(cls, word)
        self.reasons, self.mandatory = tuple(reasons), tuple(mandatory)
        self.p, self.alpha, self.smallest_p = p, alpha, smallest_p
        return self

    @property
    def word(self) -> str:
        """The word alone, one of VERDICTS."""
        return str.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Verdict, (self.word, self.reasons, self.mandatory, self.p, self.alpha, self.smallest_p)


def verdict(
    controls: Iterable[Control],
    mandatory: Sequence[str] = (),
    p: float | None = None,
    alpha: float = 0.001,
    smallest_p: float | None = None,
) -> Verdict:
    """The verdict that follows from the controls (order and meaning: the module's head).

    Parameters
    ----------
    controls: all that the result carries. Every gate is mandatory.
    mandatory: names of the controls without which nothing is believed.
    p: the family-wise p of the effect (in [0, 1]); None when no test was made.
    alpha: the level; 0.001 unless said otherwise (recorded in the verdict).
    smallest_p: the smallest p that this n and this test can reach, 0 for a parametric test; needed with p.

    Raises ControlError for a p outside [0, 1], below `smallest_p` (a p that its own test cannot reach is a
    mistake in the test), or without `smallest_p`.
    """
    _check_numbers(p, alpha, smallest_p)
    by_name = {control.name: control for control in controls}
    wanted = tuple(dict.fromkeys(mandatory))

    def make(word: str, *reasons: str) -> Verdict:
        return Verdict(word, (*reasons, *cautions), wanted, p, alpha, smallest_p)

    failed = [c for c in by_name.values() if c.passed is False]
    cautions = tuple(_failure(c) for c in failed if not c.gates and c.name not in wanted)
    if broken := [c for c in failed if c.gates]:
        return make(INVALID, *(_failure(c) for c in broken))
    absent = [f"{name} was not run" for name in wanted if name not in by_name]
    idle = [c for c in by_name.values() if c.passed is None and (c.gates or c.name in wanted)]
    if absent or idle:
        return make(UNCHECKED, *absent, *(f"{c.name} did not run: {c.detail}" for c in idle))
    lost = tuple(_failure(c) for c in failed if c.name in wanted)
    if smallest_p is not None and smallest_p > alpha:
        return make(
            UNDERPOWERED, f"the smallest p within reach is {smallest_p:.2g}, above alpha {alpha:g}", *lost
        )
    if p is None:
        return make(UNCHECKED, "no test against a null was made", *lost)
    weak = () if p <= alpha else (f"p = {p:.2g}, above alpha {alpha:g}",)
    if weak or lost:
        return make(NULL, *weak, *lost)
    many = "1 mandatory control" if len(wanted) == 1 else f"{len(wanted)} mandatory controls"
    return make(SUPPORTED, f"p = {p:.2g}, at or below alpha {alpha:g}; {many} passed")


def _failure(control: Control) -> str:
    kind = "deterministic check" if control.gates else "control"
    return f"{kind} {control.name} failed: expected {control.expected}, observed {_seen(control.observed)}"


def _seen(observed: Any) -> str:
    """What was observed, short enough for a sentence: three digits, the first few of many."""
    if isinstance(observed, Mapping):
        shown = [f"{name} {_seen(value)}" for name, value in list(observed.items())[:_FEW]]
        more = len(observed) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")
    real = isinstance(observed, float) and not isinstance(observed, bool)
    return f"{observed:.3g}" if real else str(observed)


def _check_numbers(p: float | None, alpha: float, smallest_p: float | None) -> None:
    if not 0 < alpha < 1:
        raise ControlError(f"alpha is {alpha!r}", why="a level lies between 0 and 1", instead="alpha=0.001")
    for name, value in (("p", p), ("smallest_p", smallest_p)):
        if value is not None and not 0 <= value <= 1:  # NaN fails this too
            raise ControlError(
                f"{name} is {value!r}", why="a probability lies in [0, 1]", instead="None if not known"
            )
    if p is None:
        return
    if smallest_p is None:
        raise ControlError(
            f"p = {p:g} without smallest_p",
            why="whether the design could have shown anything decides between null and underpowered",
            instead="give the smallest p of this test: 1 / (number of distinct sign-flips), 0 if parametric",
        )
    if p < smallest_p * (1 - 1e-9):
        raise ControlError(
            f"p = {p:g} lies below the smallest p within reach, {smallest_p:g}",
            why="a permutation p is (1 + hits) / (1 + draws); without the ones it is too small",
            instead="count the observed arrangement among the draws",
        )


def _python(value: Any) -> Any:
    """NumPy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _interval(name: str, null: Any) -> tuple[float, float]:
    if not isinstance(null, (tuple, list)) or len(null) != 2:
        raise ResultError(
            f"control {name!r}: null={null!r}", why="it is (low, high)", instead="null=(-0.1, 0.1)"
        )
    low, high = float(null[0]), float(null[1])
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ResultError(
            f"control {name!r}: null=({low}, {high})",
            why="low must not exceed high",
            instead="null=None if unknown",
        )
    return low, high
