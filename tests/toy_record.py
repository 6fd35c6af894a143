"""A record of toy runs with claims, for tests of what is written from it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from types import SimpleNamespace

import toy_results as toy
from microtome.lab import claiming
from microtome.lab.expecting import expect
from microtome.lab.questions import query
from microtome.results import Control, emit_look, technique, verdict

CONTROLS = ("identity", "noise", "irrelevant", "held_out")
MANDATORY = ("identity", "noise")
WORDS = {
    "alternatives": ["any head of that layer does it"],
    "falsifiers": ["removing it costs less than 10 %"],
}


class Model:
    def __init__(self, name="toy", mark="abcd" * 8):
        self.name, self.hash, self.card = name, mark, "a toy"
        self.facts, self.asked = SimpleNamespace(family="toy"), None


@dataclass(frozen=True)
class Task:
    name: str = "ioi"
    hash: str = "77c0" * 8


def _controls(given, failing):
    made = []
    for name in CONTROLS:
        rules, wants = f"that {name} does it", "at most 0.1"
        gates = name == "identity"
        if name in failing:
            made.append(Control(name, rules, wants, 0.4, False, 8, gates=gates))
        elif name in given:
            made.append(Control(name, rules, wants, 0.02, True, 8, gates=gates))
        else:
            made.append(Control.not_run(name, rules, wants, f"no {name} prompts were given", gates=gates))
    return tuple(made)


def _make(name, shape):
    @technique(name, "1", controls=CONTROLS, mandatory=MANDATORY, random=True)
    def toy_technique(
        model,
        task,
        *,
        given=CONTROLS,
        failing=(),
        p=0.0002,
        tokens=toy.TOKENS,
        n=8,
        broken=False,
        smallest_p=0.0001,
        seed=0,
    ):
        """A technique whose numbers are drawn and whose controls come out as they are told."""
        if broken:
            raise ValueError("broken")
        controls = _controls(given, failing)
        result = shape(tokens, n)
        # a technique stamps its own query
        return replace(
            result,
            kind=name,
            query=None,
            controls=controls,
            verdict=verdict(controls, MANDATORY, p, 0.001, smallest_p),
            children=(),
        )

    return toy_technique


patching = _make("activation_patching", lambda tokens, n: toy.patching(tokens=tokens, layers=6, n=n))
ablation = _make("ablation", lambda tokens, n: toy.heads("ablation", layers=6, n=n))
behaviour = _make("behaviour", lambda tokens, n: toy.behaviour(tokens))


def _make_whole():
    made = toy.dissect(layers=4)
    controls = tuple(replace(c, passed=True) for c in made.controls)
    judged = verdict(controls, made.verdict.mandatory, 0.0002, 0.001, 0.0001)

    @technique("dissect", "1", controls=tuple(c.name for c in controls), mandatory=made.verdict.mandatory)
    def whole_toy(model, task):
        """A dissection whose stages are supported, with controls in them that are not."""
        return replace(made, query=None, controls=controls, verdict=judged)

    return whole_toy


whole = _make_whole()  # local: the registry knows the real one by that name


def fill(study, *, tokens=toy.TOKENS, name="L3H3 carries the name"):
    """One claim with two runs for it, both predicted (the second post hoc); three runs that are in no claim; a look. The claim's row."""
    model, task = Model(), Task()
    study.predict("patching finds a place", 0.7, query("activation_patching", model="toy"), expect("verdict", equals="supported"))  # fmt: skip
    first = patching(model, task, tokens=tokens)
    links = [claiming.Link(first, note="the place where the name is moved")]
    row = study.claim(name, about={"model_name": "toy", "family": "ioi"}, evidence=links, limitations=["names only"], **WORDS)  # fmt: skip
    study.predict("taking out L3H3 does nothing", 0.8, query("ablation", model="toy"), expect("verdict", equals="unchecked"), claim=row.number)  # fmt: skip
    claiming.link(study.database, row.number, claiming.Link(ablation(model, Task(hash="1111" * 8), tokens=tokens)), study.person)  # fmt: skip
    behaviour(model, task)
    behaviour(model, task, p=0.4)
    with contextlib.suppress(ValueError):
        behaviour(model, task, broken=True)
    emit_look(model, ["a prompt"], ["L0.resid_pre"])
    return row
