"""What the result of a run shows, from its technique, its verdict and its controls. Nothing here is typed by a user.

- **observational**: it was looked at, or read off the weights; nothing was held against an alternative.
- **correlational**: an internal quantity goes with a label, an answer or another model, more than its null does.
- **causal**: something was changed, and the outcome changed more than under the null changes.

A verdict decides how much of that is left: *supported* all of it; *unchecked* and *underpowered* leave an observation
(numbers were seen, nobody knows how far to believe them); *not distinguishable from its null* and *invalid* leave nothing.
A technique that is not in the table, such as a plug-in's, counts as observational.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from microtome.results.verdicts import INVALID, NULL, SUPPORTED, UNCHECKED, UNDERPOWERED

__all__ = ["CAUSAL", "CORRELATIONAL", "KINDS", "LEVELS", "LOOK", "NOTHING", "OBSERVATIONAL", "Check", "Kind", "Ran", "Shown", "shows"]  # fmt: skip

NOTHING, OBSERVATIONAL, CORRELATIONAL, CAUSAL = "nothing", "observational", "correlational", "causal"
LEVELS = (NOTHING, OBSERVATIONAL, CORRELATIONAL, CAUSAL)
LOOK = "look"


@dataclass(frozen=True)
class Kind:
    """What a technique can show.

    level: what a supported result shows. why: the reason, in one sentence.
    causal_by: controls that make it causal, all of which must have run and passed; then `level` is what is left without.
    held_out: controls that show the effect on prompts which chose nothing: one of them ran and passed, none failed.
    inside: whether it acts on or reads the inside of the model; False: it varies the text that goes in.
    children: it shows what the runs that it called show.
    """  # fmt: skip

    level: str
    why: str
    causal_by: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    inside: bool = True
    children: bool = False


def _observed(why: str) -> Kind:
    return Kind(OBSERVATIONAL, why)


def _goes_with(why: str, *causal_by: str, held_out: tuple[str, ...] = ()) -> Kind:
    return Kind(CORRELATIONAL, why, causal_by, held_out)


def _causes(why: str, *held_out: str) -> Kind:
    return Kind(CAUSAL, why, held_out=held_out)


def _of_text(why: str) -> Kind:
    return Kind(CAUSAL, why, inside=False)


KINDS: Mapping[str, Kind] = MappingProxyType({
    # read and looked at
    "attention_patterns": _observed("it reads where heads attend; that a head attends says not what it does"),
    "behaviour": _observed("it counts right answers; nothing inside is looked at"),
    "composition": _observed("it reads weights; no text runs through them"),
    "max_activating": _observed("it shows the texts at which units are most active"),
    "vocabulary_svd": _observed("it reads weights; no text runs through them"),
    # held against a label, an answer, a text or another model
    "direct_logit_attribution": _goes_with("it splits the answer into what was written; later parts could undo or redo each, and none was changed"),
    "generalisation": _goes_with("it reads a label from activations across datasets"),
    "head_roles": _goes_with("it compares what weights predict with where heads attend; only its ablation changes anything", "ablation"),
    "lenses": _goes_with("it reads the stream in the vocabulary; nothing is changed"),
    "logit_lens": _goes_with("it reads the stream in the vocabulary; nothing is changed"),
    "model_diff": _goes_with("two models differ in more than one thing, and none of it was changed one at a time"),
    "patchscope": _goes_with("the state is put into another prompt in order to read it; the run that it came from is not changed"),
    "probe": _goes_with("it reads a label from activations; only its causal test changes anything", "causal", held_out=("split",)),
    "score_description": _goes_with("it compares a description with activations"),
    "training_dynamics": _goes_with("it follows a measure along a training; nothing in the training was changed"),
    "unsupervised": _goes_with("it compares directions found without labels with labels"),
    # changed
    "ablation": _causes("it replaces activations and measures the answer"),
    "activation_patching": _causes("it exchanges activations and measures the answer", "held_out"),
    "circuit_discovery": _causes("it exchanges everything outside the circuit and measures the answer"),
    "circuit_evaluation": _causes("it exchanges everything outside the circuit and measures the answer", "held_out"),
    "circuit_robustness": _causes("it exchanges everything outside the circuit under every choice"),
    "component_set": _causes("it exchanges everything outside the set and measures the answer", "held_out_faithfulness"),
    "cross_model_patching": _causes("it puts one model's activations into the other and measures the answer"),
    "directional_ablation": _causes("it removes a direction and measures the behaviour", "held_out"),
    "distributed_alignment_search": _causes("it exchanges a subspace between prompts and measures the answer", "held_out_entities", "held_out_templates"),
    "function_vector": _causes("it adds a vector and measures the answer", "held_out"),
    "path_patching": _causes("it exchanges what passes along paths and measures the answer"),
    "steering": _causes("it adds a direction and measures the behaviour"),
    # an estimate of a change, as far as the estimate was checked
    "attribution_patching": _goes_with("a gradient estimates the change; only what was patched exactly shows how far it holds", "approximation", "missed"),
    # changes of the text that goes in: causal of the prompt, and silent about the inside
    "chain_of_thought": _of_text("it changes sentences of the reasoning and measures the answer; the inside is not touched"),
    "prompt_grid": _of_text("it changes one factor of the prompt at a time and measures the answer; the inside is not touched"),
    "token_attribution": _of_text("it removes tokens of the prompt and measures the answer; where in the model they act is not asked"),
    # what it called
    "dissect": Kind(OBSERVATIONAL, "it shows what its stages show", children=True),
})  # fmt: skip
"""Every registered technique by name; a test asks that none is missing."""


@dataclass(frozen=True)
class Check:
    """A control of a run: whether the verdict depends on it, whether it is deterministic, and what came out (None: it did not run)."""

    name: str
    passed: bool | None
    mandatory: bool = False
    gates: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Ran:
    """A run as far as it matters here. verdict: None for a look and for a run without a result. children: the runs that it called."""

    method: str
    verdict: str | None
    checks: tuple[Check, ...] = ()
    children: tuple[Ran, ...] = ()


@dataclass(frozen=True)
class Shown:
    """What a run shows.

    level: one of LEVELS. held_out: also on prompts that chose nothing. inside: of the model, not only of its prompts.
    methods: the techniques by which. why: what keeps it from more, a sentence each.
    """

    level: str
    held_out: bool = False
    inside: bool = True
    methods: tuple[str, ...] = ()
    why: tuple[str, ...] = field(default=())


def shows(ran: Ran) -> Shown:
    """What a run shows: its technique's kind, lowered by its verdict and by controls that failed or did not run."""
    if ran.method == LOOK:
        return Shown(OBSERVATIONAL, methods=(LOOK,), why=("it is a raw look, which has neither a null nor controls",))  # fmt: skip
    most, why = _left(ran)
    kind = KINDS.get(ran.method)
    if kind is None:
        why += (f"what {ran.method} shows is not known here (a plug-in): it counts as observational",)
        return Shown(_least(OBSERVATIONAL, most), methods=(ran.method,), why=why)
    if kind.children:
        return _by_children(ran, most, why)
    level, missing = _level(kind, ran)
    why += missing
    found = _least(level, most)
    if found != CAUSAL:
        return Shown(found, False, kind.inside, (ran.method,), why)
    held, missing = _held_out(kind, ran)
    return Shown(found, held, kind.inside, (ran.method,), why + missing)


def _least(*levels: str) -> str:
    return min(levels, key=LEVELS.index)


def _left(ran: Ran) -> tuple[str, tuple[str, ...]]:
    """(the most that the verdict and the controls leave, why)."""
    mandatory = [c for c in ran.checks if c.mandatory or c.gates]
    failed = [c for c in mandatory if c.passed is False]
    idle = [c for c in mandatory if c.passed is None]
    said = _named("deterministic check", [c for c in failed if c.gates], "failed")
    said += _named("mandatory control", [c for c in failed if not c.gates], "failed")
    said += tuple(
        f"the mandatory control {c.name} did not run" + (f": {c.detail}" if c.detail else "") for c in idle
    )
    broken = any(c.gates and c.passed is False for c in mandatory)
    if ran.verdict is None:
        return NOTHING, ("it has no result", *said)
    if ran.verdict == INVALID or broken:
        return NOTHING, (*said, "it is invalid: its numbers are wrong")
    if ran.verdict == NULL or (failed and ran.verdict == SUPPORTED):
        return NOTHING, (*said, "its effect is not distinguishable from its null")
    if ran.verdict == UNCHECKED or idle:
        return OBSERVATIONAL, said or ("it is unchecked: no test against a null was made",)
    if ran.verdict == UNDERPOWERED:
        return OBSERVATIONAL, ("it is underpowered: no outcome of it could have been called an effect", *said)
    if ran.verdict != SUPPORTED:
        return NOTHING, (f"its verdict {ran.verdict!r} is not known here",)
    return CAUSAL, ()


def _named(what: str, checks: Sequence[Check], outcome: str) -> tuple[str, ...]:
    """The checks in one sentence, none for none."""
    if not checks:
        return ()
    return (f"the {what}{'s' if len(checks) > 1 else ''} {', '.join(c.name for c in checks)} {outcome}",)


def _level(kind: Kind, ran: Ran) -> tuple[str, tuple[str, ...]]:
    """(what the technique shows with these controls, why not more)."""
    if kind.level == CAUSAL:
        return CAUSAL, ()
    if not kind.causal_by:
        return kind.level, (f"{ran.method} is {kind.level}: {kind.why}",)
    lacking = [_outcome(ran, name) for name in kind.causal_by if _passed(ran, name) is not True]
    if lacking:
        return kind.level, (f"{ran.method} is {kind.level} without {', '.join(kind.causal_by)}: {'; '.join(lacking)}",)  # fmt: skip
    return CAUSAL, ()


def _held_out(kind: Kind, ran: Ran) -> tuple[bool, tuple[str, ...]]:
    if not kind.held_out:
        return False, (f"{ran.method} tests on no held-out prompts",)
    outcomes = [_passed(ran, name) for name in kind.held_out]
    if any(o is True for o in outcomes) and not any(o is False for o in outcomes):
        return True, ()
    return False, ("not shown on held-out prompts: " + "; ".join(_outcome(ran, name) for name in kind.held_out),)  # fmt: skip


def _by_children(ran: Ran, most: str, why: tuple[str, ...]) -> Shown:
    below = [shows(child) for child in ran.children]
    level = _least(max((s.level for s in below), key=LEVELS.index, default=OBSERVATIONAL), most)
    if not below:
        return Shown(level, methods=(ran.method,), why=(*why, f"no runs that {ran.method} called are known"))
    # only stages that reach the level carry it
    carry = [s for s in below if s.level == level] or below
    methods = tuple(sorted({m for s in carry for m in s.methods}))
    if level != CAUSAL:
        if most == CAUSAL:
            why += (f"none of its stages shows more than {level}",)
        return Shown(level, methods=methods, why=why)
    failed = any(_passed(c, name) is False for c in ran.children if c.method in KINDS for name in KINDS[c.method].held_out)  # fmt: skip
    held = any(s.held_out for s in carry) and not failed
    return Shown(level, held, True, methods, why if held else (*why, "none of its stages shows it on held-out prompts" if not failed else "a stage failed on held-out prompts"))  # fmt: skip


def _passed(ran: Ran, name: str) -> bool | None:
    return next((c.passed for c in ran.checks if c.name == name), None)


def _outcome(ran: Ran, name: str) -> str:
    found: Sequence[Check] = [c for c in ran.checks if c.name == name]
    if not found or found[0].passed is None:
        return f"{name} did not run" + (f" ({found[0].detail})" if found and found[0].detail else "")
    return f"{name} {'passed' if found[0].passed else 'failed'}"
