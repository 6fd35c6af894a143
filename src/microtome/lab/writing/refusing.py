"""What may not be written up: too many claims, claims that nothing supports, evidence whose mandatory controls are missing.

**Which evidence.** Runs that are linked *for* a claim, of whatever weight, looks aside (they have no controls, count as an
observation at most, and are shown so). Refused are: a run that is not in the record any more; an invalid one; one whose
mandatory control (or deterministic check) failed; one whose mandatory control did not run. A cap of the rung is no reason to
refuse: a claim that is only observed may be written as observed, with what keeps it there. So *underpowered*, *not
distinguishable from its null* with its controls passed, and *unchecked* only because the technique makes no test may be
written; `microtome.lab.rungs` gives them the little that they show, and the write-up says so.

**Ways out.** A control that did not run: run the technique again with what the control needs and link that run; the older run
is then set aside, and named as set aside. The same holds for a control that failed in an underpowered run, in which it could
hardly pass: ask again with more prompts. Elsewhere a control that failed is a finding, and a second run that passes does not
undo it: withdraw the claim and make one that allows for it. There is no switch.

Runs linked *against* a claim are never refused: nobody can hide a counterexample behind a control that it lacks. Nor are runs
that decided a prediction and are not linked themselves: the prediction counts for nothing then, which its cap says.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from microtome.errors import LabError
from microtome.lab.rungs import UNSUPPORTED
from microtome.results.verdicts import INVALID, UNDERPOWERED

if TYPE_CHECKING:
    from microtome.lab.claim_rows import ClaimRow, Linked
    from microtome.lab.reading import Record

__all__ = ["MOST_CLAIMS", "MOST_WORDS", "aside", "check_summary", "choose", "lacks", "refuse", "words_in"]

MOST_CLAIMS = 3
MOST_WORDS = 600


def choose(record: Record, numbers: Sequence[int]) -> tuple[ClaimRow, ...]:
    """The claims of these numbers, in this order; without numbers all that stand, if there are one to three.

    Raises LabError: none, more than three (it names those to choose from), one twice, or a withdrawn one.
    """
    from microtome.lab.claim_rows import list_claims, read

    if numbers:
        if len(set(numbers)) != len(numbers):
            raise LabError("a claim is named twice", why="it would be written twice", instead="name each once")  # fmt: skip
        found = tuple(read(record, n) for n in numbers)
    else:
        found = list_claims(record, withdrawn=False)
    if not found:
        raise LabError(
            "there is no claim to write up",
            why="a write-up has one to three claims, and none stands in this record",
            instead='microtome lab claim new "..." --run N',
        )
    if len(found) > MOST_CLAIMS:
        shown = "; ".join(f"{c.number} ({c.rung.name}): {_short(c.statement)}" for c in found[:12])
        best = sorted(found, key=lambda c: -c.rung.place)[:MOST_CLAIMS]
        raise LabError(
            f"{len(found)} claims are too many for one write-up",
            why=f"a reader keeps one to three. {shown}" + ("; ..." if len(found) > 12 else ""),
            instead=" ".join(f"--claim {c.number}" for c in best)
            + " (the highest rungs), or those that make one story",
        )
    for one in found:
        if one.withdrawn_at is not None:
            raise LabError(
                f"claim {one.number} was withdrawn",
                why=one.why_withdrawn,
                instead="write up one that stands",
            )
    return found


def refuse(claim: ClaimRow, reasons: Mapping[int, Sequence[str]]) -> None:
    """Raise LabError when a claim may not be written; see the module's head.

    reasons: run -> what its result says is missing beside its controls (`lacks`).
    """
    for one in claim.pieces:
        if one.run is not None and one.row is None:
            raise LabError(
                f"claim {claim.number} rests on run {one.run}, which is not in the record any more",
                why="nobody could check it",
                instead="take the record from a copy, or withdraw the claim and make one from runs that are there",
            )
    gone = aside(claim, reasons)
    for one in _runs(claim):
        if one.run in gone or not one.supports:
            continue
        _refuse_run(claim, one, reasons.get(one.run or 0, ()))
    if claim.rung.name == UNSUPPORTED:
        why = "; ".join(f"{c.piece}: {c.why}".removeprefix(": ") for c in claim.rung.caps[:4])
        raise LabError(
            f"nothing supports claim {claim.number}",
            why=why or "no evidence is linked to it",
            instead=f"microtome lab claim link {claim.number} RUN, or leave the claim out",
        )


def _refuse_run(claim: ClaimRow, one: Linked, more: Sequence[str]) -> None:
    assert one.row is not None
    needed = [c for c in one.controls if c.mandatory or c.gates]
    failed = [c.name for c in needed if c.passed is False]
    idle = [c for c in needed if c.passed is None]
    name = f"claim {claim.number} rests on run {one.run} ({one.row.method})"
    narrower = f'microtome lab claim withdraw {claim.number} "...", then make a claim that allows for it'
    again = f"then microtome lab claim link {claim.number} RUN; run {one.run} is set aside then"
    if failed:
        few = not _failed(one)
        raise LabError(
            f"{name}, whose mandatory control{'s' * (len(failed) > 1)} {', '.join(failed)} failed"
            + (" (it is underpowered)" if few else ""),
            why="what it rules out is not ruled out: "
            + "; ".join(c.rules_out for c in needed if c.name in failed),
            instead=f"run {one.row.method} again with more prompts, {again}" if few else narrower,
        )
    if one.row.verdict == INVALID:
        raise LabError(
            f"{name}, which is invalid",
            why="a deterministic check failed: its numbers are wrong",
            instead=narrower,
        )
    if idle or more:
        names = [c.name for c in idle] + [m for m in more if m not in {c.name for c in idle}]
        details = "; ".join(f"{c.name}: {c.detail}" if c.detail else f"{c.name} rules out {c.rules_out}" for c in idle)  # fmt: skip
        raise LabError(
            f"{name}, whose mandatory control{'s' * (len(names) > 1)} {', '.join(names)} did not run",
            why=details or "the result has no such control",
            instead=f"run {one.row.method} again with what the control needs, {again}",
        )


def aside(claim: ClaimRow, reasons: Mapping[int, Sequence[str]]) -> dict[int, int]:
    """Run whose mandatory controls have yet to tell -> the later run, linked too, that asked again with all of them.

    Asked again: the same technique of the same model on prompts of the same name. A control that failed sets nothing aside.
    """
    found = {}
    runs = [one for one in _runs(claim) if one.supports]
    for one in runs:
        if not _idle(one, reasons) or _failed(one):
            continue
        for other in runs:
            a, b = one.row, other.row
            assert a is not None and b is not None
            same = (a.method, a.model, a.family) == (b.method, b.model, b.family)
            if same and b.number > a.number and not _idle(other, reasons) and not _failed(other):
                found[a.number] = b.number
    return found


def lacks(mandatory: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Mandatory controls that a result has not at all."""
    return tuple(name for name in mandatory if name not in names)


def check_summary(text: str) -> None:
    """Raises LabError for a summary of more than 600 words, with the count."""
    count = words_in(text)
    if count > MOST_WORDS:
        raise LabError(
            f"the summary has {count} words",
            why=f"at most {MOST_WORDS} are read",
            instead=f"cut {count - MOST_WORDS}: what somebody who reads nothing else must know",
        )


def words_in(text: str) -> int:
    """Words: what stands between blanks and has a letter or digit."""
    return sum(any(c.isalnum() for c in word) for word in text.split())


def _runs(claim: ClaimRow) -> list[Linked]:
    """Linked runs, looks and predictions aside."""
    return [p for p in claim.pieces if p.prediction is None and p.row is not None and p.row.method != "look"]


def _idle(one: Linked, reasons: Mapping[int, Sequence[str]]) -> bool:
    """Whether a mandatory control has yet to tell: it did not run, or failed where it could hardly pass."""
    few = one.row is not None and one.row.verdict == UNDERPOWERED
    idle = any(c.passed is None and (c.mandatory or c.gates) for c in one.controls)
    return idle or bool(reasons.get(one.run or 0)) or (few and any(c.passed is False and c.mandatory for c in one.controls))  # fmt: skip


def _failed(one: Linked) -> bool:
    """Whether a mandatory control or deterministic check failed for good."""
    few = one.row is not None and one.row.verdict == UNDERPOWERED
    return any(c.passed is False and (c.gates or (c.mandatory and not few)) for c in one.controls)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
