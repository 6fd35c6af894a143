"""Sentences that the page and the Markdown file share. Plain text: whoever shows it escapes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.figures.text import interval, number, visible

if TYPE_CHECKING:
    from microtome.lab.predicting import Prediction
    from microtome.lab.writing.values import ClaimPart, Experiment, LeftOut, Scored, WriteUp
    from microtome.report.numbers import Number
    from microtome.results import Control

__all__ = ["STAGES", "UNSAID", "controls", "evidence", "examples_head", "left_out", "number_text", "plain", "prediction", "scored", "scored_head"]  # fmt: skip

UNSAID = "The author does not say why this bears on the claim."
_OUTCOMES = {"open": "is still open", "true": "came true", "false": "did not come true", "void": "could not be decided"}  # fmt: skip
_WEIGHTS = {"strong": "strong evidence", "big_if_true": "big if true, and probably fails", "sanity": "a sanity check", "weak": "weak evidence"}  # fmt: skip


def plain(text: object, most: int = 4000) -> str:
    """Text in one line; what does not print is written out."""
    return visible(text, most=most, prose=True)


def number_text(one: Number) -> str:
    """ "largest effect: L9H6.z = 1.9 [1.2, 2.4] logits; null over 8 cells: −0.2 to 0.2; n 32"."""
    said = f"{one.label}: {number(one.value)} {interval(one.low, one.high) or '(no interval)'}".rstrip()
    if one.unit:
        said += f" {one.unit}"
    if one.null_low != one.null_low:
        said += "; no null"
    elif one.null_low == one.null_high:
        said += f"; {one.null or 'null'}: {number(one.null_low)}"
    else:
        said += f"; {one.null or 'null'}: {number(one.null_low)} to {number(one.null_high)}"
    return said + (f"; n {one.n}" if one.n is not None else "")


def prediction(p: Prediction) -> str:
    """What was predicted, by whom, with what probability, and how it turned out; post hoc first where it is."""
    mark = "Post hoc: " if p.post_hoc else ""
    who = f"{p.person}{' (an agent)' if p.by == 'agent' else ''}"
    how = (
        "" if p.holds is not None else "; judged by a person" if p.resolved_by else "; for a person to judge"
    )
    run = f", decided by run {p.run}" if p.run is not None else ""
    why = plain(p.reason, 300).rstrip(". ")
    said = f"{mark}prediction {p.number} by {who}, with probability {p.probability:g}: “{plain(p.statement).rstrip('. ')}”. "
    said += f"It {_OUTCOMES[p.state]}{run}{how}{f' ({why})' if why else ''}."
    return said + (f" It is post hoc because of {plain(p.why_post_hoc, 300)}." if p.why_post_hoc else "")


def evidence(e: Experiment, claim: int) -> str:
    """Which run it is and how it is linked: its weight, its direction, whether it is post hoc, what it counts as."""
    link, row = e.link, e.row
    of = " ".join(x for x in (f"of {row.family}" if row.family else "", f"in {row.model_name}" if row.model_name else "") if x)  # fmt: skip
    name = f"Run {row.number}, {row.method} {of}".rstrip()
    if link.prediction is not None:
        return f"{name}. It decided prediction {link.prediction}, which bears on claim {claim}; it is not linked as evidence itself."
    side = "for" if link.supports else "AGAINST"
    shown = getattr(link.piece, "shown", None)
    counts = f", shows: {shown.level}{' on held-out prompts' if shown.held_out else ''}" if shown else ""
    late = f"; post hoc: {link.piece.post_hoc}" if link.piece.post_hoc else ""
    return f"{name}: {_WEIGHTS.get(link.weight, link.weight)} {side} claim {claim}{counts}{late}."


def controls(e: Experiment) -> list[tuple[str, ...]]:
    """Rows of (control, kind, what it rules out, expected, observed, outcome, n)."""
    if e.result is None:
        return []
    needed = set(e.result.verdict.mandatory)
    return [
        (c.name, "deterministic" if c.gates else "mandatory" if c.name in needed else "", plain(c.rules_out, 400), plain(c.expected, 300),
         _observed(c), c.outcome, str(c.n) if c.n else "–")
        for c in e.result.controls
    ]  # fmt: skip


def _observed(c: Control) -> str:
    from microtome.report.tables import observed

    seen = observed(c)
    null = f"null {number(c.null[0])} to {number(c.null[1])}" if c.null is not None else ""
    return "; ".join(part for part in (plain(seen, 300), null, plain(c.detail, 300)) if part)


STAGES = ("stage", "verdict", "controls that passed", "n", "failed", "did not run")


def stages(e: Experiment) -> list[tuple[str, ...]]:
    """Rows of STAGES, for a result that is made of others: a control that failed in one must not be out of sight."""
    from microtome.report.outline import outline

    if e.result is None or not e.result.children:
        return []
    rows: list[tuple[str, ...]] = []
    for s in outline(e.result):
        every = s.result.controls
        failed, idle = ([c.name for c in every if c.passed is state] for state in (False, None))
        rows.append((f"{s.number}. {plain(s.name, 80)}", s.result.verdict.word, f"{sum(c.passed is True for c in every)} of {len(every)}",
                     "–" if s.n is None else str(s.n), ", ".join(failed) or "–", ", ".join(idle) or "–"))  # fmt: skip
    return rows


def examples_head(e: Experiment) -> str:
    """How many of how many, and by which seed."""
    x = e.examples
    if not x.of:
        return "The result keeps no raw examples."
    whole = "all" if len(x.rows) == x.of else f"{len(x.rows)} of {x.of}"
    drawn = "" if len(x.rows) == x.of else f", drawn at random with seed {x.seed} and not chosen"
    return f"Raw examples: {whole} that the result keeps{drawn}."


def scored_head(write_up: WriteUp) -> str:
    """What the table of scores is."""
    if not write_up.scored:
        return "No prediction was registered in these studies, so nothing tells how good the authors' expectations are."
    return (
        "Predictions of these studies, all of them. Brier and log score: lower is better; the base rate is that of the other "
        "predictions of the same row. Post hoc ones, and those that a person judged, stand apart."
    )


def scored(s: Scored) -> tuple[str, ...]:
    """(person, kind, made, open, came true, Brier, of the base rate, log, of the base rate, what can be told)."""
    head = (plain(s.person, 80), s.kind, str(s.made), str(s.open + s.void))
    if s.score is None:
        return (*head, "–", "–", "–", "–", "–", "none has an outcome yet")
    x = s.score
    few = "" if s.curve else f" Fewer than 10 have an outcome ({x.n}): no calibration curve is drawn."
    return (*head, f"{x.came_true} of {x.n}", number(x.brier), number(x.base_brier), number(x.log), number(x.base_log), x.said + few)  # fmt: skip


SCORED = ("who", "kind", "made", "open or void", "came true", "Brier", "base rate's", "log", "base rate's", "what can be told")  # fmt: skip


def left_out(write_up: WriteUp) -> tuple[str, list[tuple[str, ...]]]:
    """(a sentence, rows of state, verdict, technique, number)."""
    total = sum(x.runs for x in write_up.left_out)
    where = ", ".join(f"“{plain(t, 100)}”" for t in write_up.studies)
    used = len(write_up.runs)
    said = f"In {where}: {used} run{'s are' if used != 1 else ' is'} in this write-up, {total} {'are' if total != 1 else 'is'} not"
    said += (
        f", and models were looked at raw {write_up.looks} time{'s' if write_up.looks > 1 else ''}."
        if write_up.looks
        else "."
    )
    return said, [_row(x) for x in write_up.left_out]


def _row(x: LeftOut) -> tuple[str, ...]:
    return (x.state, x.verdict or "–", x.method, str(x.runs))


def claim_facts(part: ClaimPart) -> list[tuple[str, list[str]]]:
    """(heading, items) of what stands under a claim beside its rung."""
    c = part.claim
    about = [c.about.get("model_name") or str(c.about.get("model", ""))[:12], c.about.get("family") or str(c.about.get("task", ""))[:12],
             ", ".join(c.about.get("sites", ()))]  # fmt: skip
    named = "; ".join(plain(x, 400) for x in about if x)
    return [
        ("What it is about", [named or "It does not say: any evidence was taken as being about it."]),
        ("Why it is not higher", [plain(x) for x in part.caps]),
        ("What would lift it", [plain(x) for x in part.next]),
        ("What else could explain it", [plain(t.text) for t in c.alternatives] or ["Nobody wrote down an alternative."]),
        ("What would show it wrong", [plain(t.text) + (" (post hoc: written after the first evidence)" if t.late else "") for t in c.falsifiers]
         or ["Nobody wrote down what would."]),
        ("Set aside", [plain(x) for x in part.set_aside]),
    ]  # fmt: skip


def rung(part: ClaimPart) -> str:
    """The rung, what reached it, and what the evidence alone would reach."""
    r = part.claim.rung
    by = f", reached by {', '.join(r.by)}" if r.by else ""
    more = f"; the evidence alone reaches {r.evidence}" if r.evidence != r.name else ""
    skipped = f"; without: {', '.join(r.skipped)}" if r.skipped else ""
    return f"{r.name}{by}{more}{skipped}"
