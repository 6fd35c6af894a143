"""A write-up as a value: everything that is computed from the record, and the author's words beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microtome.lab.claim_rows import ClaimRow, Linked
    from microtome.lab.predicting import Prediction
    from microtome.lab.reading import RunRow
    from microtome.lab.scoring import Score
    from microtome.report.numbers import Number
    from microtome.results import Result

__all__ = ["ClaimPart", "Examples", "Experiment", "LeftOut", "Scored", "WriteUp"]


@dataclass(frozen=True)
class Examples:
    """Raw examples drawn at random with a seed from those that the result keeps. of: how many it keeps."""

    rows: tuple[Mapping[str, Any], ...]
    of: int
    seed: int


@dataclass(frozen=True)
class Experiment:
    """A run that a claim rests on, or that speaks against it.

    number: within the write-up, from 1. link: the evidence as linked. result: None for a raw look.
    question: what the technique asks, and of what. predictions: those that this run decided, and those made before it that a person judges. what: (name, value) of what was done.
    numbers: the headline, each with interval and null. checks: (control, "mandatory", "gate" or "", outcome, rules out, observed).
    calibration: one sentence. n: on how many prompts, None where it does not say. examples: drawn at random.
    why: the author's words on why it bears on the claim.
    """

    number: int
    link: Linked
    row: RunRow
    result: Result | None
    question: str
    predictions: tuple[Prediction, ...]
    what: tuple[tuple[str, str], ...]
    numbers: tuple[Number, ...]
    verdict: str
    reasons: tuple[str, ...]
    calibration: str
    n: int | None
    examples: Examples
    why: str = ""

    @property
    def name(self) -> str:
        """By which the author's words on it are found: "run 12 for claim 1" is "1.12"."""
        return f"run {self.row.number}"


@dataclass(frozen=True)
class ClaimPart:
    """A claim with its experiments.

    caps: why its rung is not higher, a sentence each; next: what would lift it. foretold: predictions that bear on it and that
    no experiment of it decided. set_aside: runs that were linked and do not count, with why.
    """

    claim: ClaimRow
    rung: str
    caps: tuple[str, ...]
    next: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    foretold: tuple[Prediction, ...]
    set_aside: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Predictions of one kind by one person. score: None where none has an outcome; curve: whether there are enough for one."""

    person: str
    kind: str
    made: int
    open: int
    void: int
    score: Score | None
    curve: bool


@dataclass(frozen=True)
class LeftOut:
    """Runs of the same studies that are not in the write-up, by state, verdict and method."""

    state: str
    verdict: str
    method: str
    runs: int


@dataclass(frozen=True)
class WriteUp:
    """A write-up: one to three claims, not in the order of time.

    summary, limitations, verified: the author's words. computed_limitations, checked: what follows from the record.
    scored: the predictions of its studies. left_out: runs of the same studies that are not in it; looks: how often something was
    looked at raw. environment: versions of what decided the numbers. seed: of everything drawn here.
    """

    title: str
    authors: tuple[str, ...]
    summary: str
    claims: tuple[ClaimPart, ...]
    limitations: str
    computed_limitations: tuple[str, ...]
    blind_spots: tuple[str, ...]
    verified: str
    checked: tuple[str, ...]
    scored: tuple[Scored, ...]
    left_out: tuple[LeftOut, ...]
    looks: int
    studies: tuple[str, ...]
    dates: tuple[str, str]
    environment: Mapping[str, str]
    seed: int = 0
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> tuple[int, ...]:
        """Numbers of the runs in it, each once."""
        return tuple(sorted({e.row.number for c in self.claims for e in c.experiments}))
