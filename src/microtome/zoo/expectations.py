"""What was published of the trained models, beside what these weights do. Every number comes from what ships.

Published outcomes are expectations, not truths: where ours differ, the row says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from microtome.zoo import shipped
from microtome.zoo.shipped import Shipped

__all__ = ["RATES", "Expectation", "expectations", "reached"]

RATES = Path(__file__).parent / "rates.json"
"""Of some recipes, the seeds that reached their accuracy."""
MARGIN_OF = (113, (14, 35, 41, 42, 52))
HEAD = 0.4
"""Mean attention from which a head counts as one of a kind, as in `induction_heads.THRESHOLD`."""


@dataclass(frozen=True)
class Expectation:
    """One outcome.

    model: name of the training. published: the outcome, with its source. ours: the same in words, with the number.
    value: that number. agrees: whether ours is as published.
    """

    model: str
    published: str
    source: str
    ours: str
    value: float
    agrees: bool


def expectations() -> tuple[Expectation, ...]:
    """All of them, in the order of the models.

    Raises
    ------
    ModelError: what ships is incomplete.
    """
    notes = {name: shipped.read(name) for name in shipped.names()}
    rates: Mapping[str, Mapping[str, Any]] = json.loads(RATES.read_text(encoding="utf-8"))
    return (*_ioi(notes, rates), *_induction(notes), *_max(notes), *_brackets(notes), *_modular(notes))


def reached(note: Shipped, what: str = "accuracy", level: float = 0.99) -> int | None:
    """The first step of its curve at which a measure is at least `level`, None if none."""
    return next((int(p["step"]) for p in note.curve if p[what] >= level), None)


def _ioi(notes: Mapping[str, Shipped], rates: Mapping[str, Mapping[str, Any]]) -> list[Expectation]:
    say = partial(Expectation, "symbolic_ioi", source="arXiv 2510.25013")
    two, one = (rates[f"symbolic_ioi{suffix}"] for suffix in ("", ".1l1h"))
    note, failed = notes["symbolic_ioi"], notes["symbolic_ioi.1l1h"]
    share, alone = (len(r["reached"]) / r["seeds"] for r in (two, one))
    least, most = note.measured["least_contrast"], note.measured["most_contrast"]
    return [
        say("one layer of two heads is right on all inputs", ours=f"accuracy {note.accuracy:.1%}; so are {len(two['reached'])} of {two['seeds']} seeds",
            value=share, agrees=note.accuracy == 1),
        say("one layer of one head fails",
            ours=f"{len(one['reached'])} of {one['seeds']} seeds are right on all inputs; seed {failed.recipe.seed} ends at {failed.accuracy:.1%}",
            value=alone, agrees=alone == 0),
        say("one head adds names, the other tells them apart",
            ours=f"of what a head adds to the answer, {least:.0%} is not added to the repeated name by one head, {most:.0%} by the other",
            value=most - least, agrees=abs(least) < 0.1 and most > 0.5),
    ]  # fmt: skip


def _induction(notes: Mapping[str, Shipped]) -> list[Expectation]:
    say = partial(Expectation, "induction_heads", source="arXiv 2209.11895")
    note, one = notes["induction_heads"], notes["induction_heads.1l"]
    lost, m = note.mechanism["lost"], note.measured
    k, others = lost["L0H0.z->L1H0.k"], max(lost["L0H0.z->L1H0.q"], lost["L0H0.z->L1H0.v"])
    return [
        say("two layers learn it", ours=f"accuracy {note.accuracy:.1%}, 99 % from step {reached(note)} on", value=note.accuracy, agrees=note.accuracy > 0.99),
        say("one layer does not", ours=f"accuracy {one.accuracy:.1%} after {one.recipe.steps} steps", value=one.accuracy, agrees=one.accuracy < 0.5),
        say("a head matches prefixes", ours=f"{m['prefix']:.2f} of its attention is on what followed the token before", value=m["prefix"], agrees=m["prefix"] > HEAD),
        say("a head attends to the previous token",
            ours=f"{m['previous']:.2f} of its attention, the rest on other recent tokens; cut off from the next head it costs {k:.0%} of the answers",
            value=m["previous"], agrees=m["previous"] > HEAD),
        say("it is composed through keys", ours=f"cutting the first head from the second's keys costs {k:.0%} of the answers, from its queries or values {others:.0%} at most",
            value=k - others, agrees=k > 5 * max(others, 0.01)),
    ]  # fmt: skip


def _max(notes: Mapping[str, Shipped]) -> list[Expectation]:
    say = partial(Expectation, "max_of_k", source="arXiv 2406.11779")
    m = notes["max_of_k"].measured
    return [
        say("one head finds the largest of all inputs tried", ours=f"right on {m['exact_accuracy']:.4%} of all 16,777,216 inputs", value=m["exact_accuracy"], agrees=m["exact_accuracy"] > 0.99),
        say("it attends to large numbers and copies", ours=f"most attention on a largest number in {m['attends_to_max']:.1%} of inputs", value=m["attends_to_max"], agrees=m["attends_to_max"] > 0.95),
    ]  # fmt: skip


def _brackets(notes: Mapping[str, Shipped]) -> list[Expectation]:
    say = partial(Expectation, "balanced_brackets", source="ARENA 1.5.1")
    note = notes["balanced_brackets"]
    m = note.measured
    return [
        say("a small bidirectional model learns it", ours=f"accuracy {note.accuracy:.1%}; {m['accuracy_count']:.1%} of words that do not close, {m['accuracy_below']:.1%} of words that close too early",
            value=note.accuracy, agrees=note.accuracy > 0.99),
        say("two heads of the last layer find one fault each",
            ours=f"there is one such head; without it {m['without_L1H0_wrong_balanced']:.0%} of balanced words, {m['without_L1H0_wrong_below']:.0%} of those that close too early "
                 f"and {m['without_L1H0_wrong_count']:.0%} of those that do not close are answered wrongly",
            value=m["without_L1H0_wrong_below"] - m["without_L1H0_wrong_count"], agrees=False),
    ]  # fmt: skip


def _modular(notes: Mapping[str, Shipped]) -> list[Expectation]:
    from microtome.zoo.modular_addition import margin

    out = []
    for name in ("modular_addition_59", "modular_addition_113"):
        if name not in notes:
            continue
        say = partial(Expectation, name, source="arXiv 2301.05217")
        note, m = notes[name], notes[name].measured
        seen, held = reached(note, "train_accuracy"), reached(note)
        late = held is not None and seen is not None and held >= 5 * max(seen, 1)
        lost = note.mechanism["lost"]["embed->logits"]
        out += [
            say("held-out pairs are learned long after the training pairs", ours=f"99 % of the training pairs from step {seen} on, of the held-out ones from step {held} on",
                value=float(held or 0), agrees=late),
            say("a few frequencies carry it", ours=f"{m['key_frequencies']:.0f} key frequencies with {m['key_embedding']:.1%} of the embedding's power",
                value=m["key_embedding"], agrees=m["key_embedding"] > 0.8 and m["key_frequencies"] <= 10),
            say("every pair is right, with room", ours=f"the smallest margin over all pairs is {m['least_margin']:.2f} logits", value=m["least_margin"], agrees=m["least_margin"] > 0),
            say("what is embedded does not go straight to the logits", ours=f"cut, it costs {lost:.1%} of the answers; the claimed edges alone keep {note.mechanism['whole']:.1%}",
                value=note.mechanism["whole"], agrees=lost < 0.01 and note.mechanism["whole"] > 0.95),
        ]  # fmt: skip
    found = margin(*MARGIN_OF)
    says = f"{found:.6f} over all {MARGIN_OF[0] ** 2:,} pairs"
    out.append(Expectation("modular addition by cosines", "the five key frequencies of the published network tell every sum apart",
                           "arXiv 2301.05217", f"smallest margin {says}", found, found > 0))  # fmt: skip
    return out
