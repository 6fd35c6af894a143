"""How far a claim may be believed: a rung, computed from its evidence, with the reasons why it is not higher.

    unsupported < observed < correlational < causal on this prompt set < causal on held-out prompts < predictive < replicated

What each rung needs, of evidence that is about the claim and was typed neither weak nor a sanity check:

- **observed**: anything was seen. **correlational**, **causal on this prompt set**: one supported run of that kind
  (`microtome.lab.evidence`).
- **causal on held-out prompts**: one such run whose control on held-out prompts passed, begun after the claim was made
  and after something was written that would show it wrong. Evidence that suggested a claim cannot also confirm it: who
  writes a claim after 20 runs can always write the one that the 20th fits. A technique without such a control that changes
  the sites it is told to (`microtome.lab.freshness`) shows as much on pairs that nothing had seen there before the claim.
- **predictive**: a causal rung, and a prediction made from the claim (never one that was linked once it was decided),
  not post hoc, thought likelier than not, that a result decided to be true. A prediction that a person decided is kept
  apart: its author would grade it.
- **replicated**: on held-out prompts or predictive, and a second causal run that is not post hoc either, on another
  model, or by a technique that the first does not use. Another seed, or the same question again, is no replication. A claim can be
  replicated without having predicted anything; `skipped` says so.

Caps, the lowest of which holds: a claim without alternatives or without anything that would show it wrong is at most
observed; so is one that a supported run contradicts (one of weak weight: causal on this prompt set; one on another
model: predictive), and a false prediction leaves at most causal on this prompt set. Caps on a single piece: not about
the claim, weak or sanity, not supported, out of date, post hoc, about prompts where the claim is about the inside,
without an effect (or without controls) at the sites that the claim names, or null when the same question was asked with another seed.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from microtome.escapes import visible
from microtome.lab.evidence import LEVELS, Shown
from microtome.results.verdicts import NULL, SUPPORTED, UNDERPOWERED

__all__ = ["RUNGS", "WEIGHTS", "Cap", "Foretold", "Piece", "Rung", "Stated", "climb"]

UNSUPPORTED, OBSERVED, CORRELATIONAL, HERE, HELD_OUT, PREDICTIVE, REPLICATED = RUNGS = (
    "unsupported", "observed", "correlational", "causal on this prompt set", "causal on held-out prompts", "predictive",
    "replicated",
)  # fmt: skip
STRONG, BIG_IF_TRUE, SANITY, WEAK = WEIGHTS = ("strong", "big_if_true", "sanity", "weak")
LIKELY = 0.5
"""A prediction below this probability was not expected to come true: its outcome speaks neither for nor against the claim."""
_SOUND = (SUPPORTED, NULL)  # verdicts whose numbers may decide a prediction


@dataclass(frozen=True)
class Piece:
    """A run that a claim rests on.

    name: how people name it ("run 12"). question: the same text for the same question, whatever the seed.
    shown: what it shows. verdict: its verdict. about: "" or why it is not about the claim. elsewhere: it is
    of another model than the claim names. post_hoc, stale: "" or why. null_again: runs that asked the same and came out
    as their null. nothing_at, untested_at: sites that the claim names at which it found no effect beyond its null, or
    an effect that its controls did not test.
    """

    name: str
    question: str
    shown: Shown
    verdict: str | None
    weight: str = STRONG
    supports: bool = True
    model: str = ""
    model_name: str = ""
    about: str = ""
    elsewhere: bool = False
    post_hoc: str = ""
    stale: str = ""
    null_again: tuple[str, ...] = ()
    nothing_at: tuple[str, ...] = ()
    untested_at: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        """Whether its verdict is."""
        return self.verdict == SUPPORTED


@dataclass(frozen=True)
class Foretold:
    """A prediction that bears on a claim.

    outcome: open, true, false or void. made_from: "" when it was made from the claim before it was decided, else why it was not.
    post_hoc, stale: "" or why. by_result: whether a result decided it; verdict: of that result.
    """

    name: str
    outcome: str
    probability: float
    made_from: str = ""
    post_hoc: str = ""
    by_result: bool = True
    verdict: str | None = "supported"
    supports: bool = True
    weight: str = STRONG
    stale: str = ""


@dataclass(frozen=True)
class Stated:
    """What a claim says beside its statement. inside: whether it names sites, and so is about the inside of the model."""

    alternatives: int = 0
    falsifiers: int = 0
    inside: bool = False


@dataclass(frozen=True)
class Cap:
    """Why no more than `at` is reached by one piece, or ("" for piece) by the claim. instead: what would lift it.

    against: the piece speaks against the claim.
    """

    at: str
    why: str
    piece: str = ""
    instead: str = ""
    against: bool = False


@dataclass(frozen=True)
class Rung:
    """A claim's rung.

    name: one of RUNGS. caps: why it is not higher, what speaks against it first. by: the pieces that reach it.
    skipped: causal rungs below that were not reached. evidence: the rung that the evidence alone would reach.
    """

    name: str
    caps: tuple[Cap, ...] = ()
    by: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    evidence: str = UNSUPPORTED

    def __repr__(self) -> str:
        return visible(f"<Rung: {self.said}>")

    @property
    def said(self) -> str:
        """The rung, and why it is not higher, in one line."""
        why = "; ".join(f"{c.piece}: {c.why}".removeprefix(": ") for c in self.caps)
        return self.name + (f" (not higher: {why})" if why else "")

    @property
    def place(self) -> int:
        """Its place on the ladder, from 0."""
        return RUNGS.index(self.name)


def climb(pieces: Sequence[Piece | Foretold], stated: Stated) -> Rung:
    """The rung of a claim. The order of the pieces does not matter."""
    runs = sorted((p for p in pieces if isinstance(p, Piece)), key=lambda p: (_natural(p.name), repr(p)))
    told = sorted((p for p in pieces if isinstance(p, Foretold)), key=lambda p: (_natural(p.name), repr(p)))
    nulls = _nulls(runs)
    heights = {p: _height(p, stated, nulls.get(p.question, ())) for p in runs if p.supports}
    caps = [cap for _, found in heights.values() for cap in found]
    caps += [cap for p in runs if not p.supports for cap in _against(p)]
    good = []
    for p in told:
        found = _foretold(p)
        caps += [] if found is None else [found]
        good += [p] if found is None else []
    name, by, skipped = _reached({p: height for p, (height, _) in heights.items()}, good)
    caps += _unstated(stated)
    limit = min((_at(c) for c in caps if c.against or not c.piece), default=len(RUNGS) - 1)
    final = RUNGS[min(RUNGS.index(name), limit)]
    order = sorted(dict.fromkeys(caps), key=lambda c: (not c.against, bool(c.piece), _at(c), _natural(c.piece), c.why))  # fmt: skip
    return Rung(final, tuple(order), by, tuple(s for s in skipped if RUNGS.index(s) < RUNGS.index(final)), name)  # fmt: skip


def _at(cap: Cap) -> int:
    return RUNGS.index(cap.at)


def _natural(name: str) -> tuple[str, int]:
    """ "run 12" after "run 9"."""
    word, _, number = name.rpartition(" ")
    return (word, int(number)) if number.isdigit() else (name, 0)


def _nulls(runs: Iterable[Piece]) -> dict[str, tuple[str, ...]]:
    """Question -> runs that asked it and came out as their null."""
    found: dict[str, set[str]] = {}
    for p in runs:
        found.setdefault(p.question, set()).update(p.null_again)
    return {question: tuple(sorted(names, key=_natural)) for question, names in found.items() if names}


# ------------------------------------------------------------------------------------------------- one piece


def _height(p: Piece, stated: Stated, nulls: tuple[str, ...]) -> tuple[int, list[Cap]]:
    """(place on the ladder that one piece reaches by itself, why not higher)."""
    if p.about:
        return 0, [
            Cap(
                UNSUPPORTED,
                f"it counts for nothing: {p.about}",
                p.name,
                "a run about what the claim is about",
            )
        ]
    own = LEVELS.index(p.shown.level) + (1 if p.shown.held_out else 0)
    caps = [Cap(RUNGS[own], why, p.name, _mend(p)) for why in p.shown.why]
    if p.weight in (SANITY, WEAK):
        word = "a sanity check" if p.weight == SANITY else "weak evidence"
        caps.append(
            Cap(OBSERVED, f"it was linked as {word}, which lifts no claim", p.name, "stronger evidence")
        )
    if p.weight == BIG_IF_TRUE and not p.supported:
        caps.append(Cap(UNSUPPORTED, "it was linked as big if true, and is not supported", p.name, _mend(p)))
    if p.nothing_at:
        caps.append(Cap(UNSUPPORTED, f"it found no effect beyond its null at {', '.join(p.nothing_at)}", p.name, "a claim about the sites that it did find"))  # fmt: skip
    if p.untested_at:
        caps.append(Cap(OBSERVED, f"its controls with other donors ran on other cells than {', '.join(p.untested_at)}", p.name, f"a run of these sites alone: sites={list(p.untested_at)!r}"))  # fmt: skip
    if stated.inside and not p.shown.inside:
        caps.append(Cap(OBSERVED, "it changed prompts, and the claim is about the inside of the model", p.name, "a run that changes the inside, such as activation_patching"))  # fmt: skip
    if p.stale:
        caps.append(Cap(OBSERVED, f"it is out of date: {p.stale}", p.name, f"microtome lab rerun {_number(p.name)}, and link that run"))  # fmt: skip
    if nulls:
        caps.append(Cap(OBSERVED, f"the same question came out as its null in {', '.join(nulls)}", p.name, "more prompts: an effect that comes and goes with the seed is none"))  # fmt: skip
    if p.post_hoc:
        caps.append(Cap(HERE, f"it is post hoc: {p.post_hoc}", p.name, "ask a question that was not asked before: other prompts (held_out=), another model or technique"))  # fmt: skip
    height = min([own, *map(_at, caps)])
    if p.elsewhere:  # its height still counts for a replication
        caps.append(
            Cap(
                UNSUPPORTED,
                f"it is of {p.model_name or p.model or 'another model'}: it can replicate the claim, and not establish it",
                p.name,
                "evidence on the model that the claim names",
            )
        )
    return height, caps


def _mend(p: Piece) -> str:
    if p.verdict == UNDERPOWERED:
        return "more prompts, of more templates or entities"
    if p.verdict == NULL:
        return ""  # it was asked, and this is the answer
    if not p.supported:
        return f"microtome lab show {_number(p.name)} says which controls failed or did not run; give them what they need"
    return ""  # the next rung's requirement says what shows more


def _number(name: str) -> str:
    return name.rpartition(" ")[2]


def _against(p: Piece) -> list[Cap]:
    """What a piece that was linked against the claim does to it."""
    if p.about:
        return [Cap(REPLICATED, f"it counts for nothing against the claim: {p.about}", p.name)]
    if not p.supported:
        return [Cap(REPLICATED, "it was linked against the claim, and is not supported itself", p.name)]
    at = PREDICTIVE if p.elsewhere else HERE if p.weight == WEAK else OBSERVED
    return [Cap(at, "it contradicts the claim", p.name, "withdraw the claim and make a narrower one that allows for it", against=True)]  # fmt: skip


def _foretold(p: Foretold) -> Cap | None:
    """Why a prediction does not lift its claim; None when it does."""

    def no(why: str, instead: str = "another prediction made from the claim, before its run") -> Cap:
        return Cap(HELD_OUT, why, p.name, instead)

    sound = not p.by_result or p.verdict in _SOUND
    if p.outcome in ("open", "void"):
        return no(
            "it is still open" if p.outcome == "open" else "it could not be decided", "run what decides it"
        )
    if not sound:
        return no(
            f"the run that decided it is {p.verdict or 'without a verdict'}: its numbers decide nothing"
        )
    if p.probability < LIKELY:
        return no(f"it was thought unlikely ({p.probability:g}): its outcome speaks neither way")
    if (p.outcome == "false") == p.supports:
        said = "it was predicted from the claim and is false" if p.supports else "it was predicted against the claim and is true"  # fmt: skip
        return Cap(
            HERE, said, p.name, "withdraw the claim and make a narrower one that allows for it", against=True
        )
    if not p.supports:
        return no("it was predicted against the claim and is false, which supports nothing by itself")
    if p.weight in (SANITY, WEAK):
        return no(f"it was linked as {'a sanity check' if p.weight == SANITY else 'weak evidence'}, which lifts no claim")  # fmt: skip
    for why in (p.made_from, p.post_hoc and f"it is post hoc: {p.post_hoc}", p.stale and f"the run that decided it is out of date: {p.stale}"):  # fmt: skip
        if why:
            return no(why)
    if not p.by_result:
        return no("a person decided it, not a result", "a prediction with holds=mt.expect(...), which its run decides")  # fmt: skip
    return None


# ------------------------------------------------------------------------------------------------- all together


def _reached(
    heights: dict[Piece, int], good: Sequence[Foretold]
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(rung, pieces that reach it, causal rungs that were left out)."""
    here = {p: h for p, h in heights.items() if not p.elsewhere}
    top = max(here.values(), default=0)
    reach = tuple(p.name for p, h in here.items() if h == top and top)
    causal, held = RUNGS.index(HERE), RUNGS.index(HELD_OUT)
    missed = (HELD_OUT,) if top < held else ()
    if top < causal:
        return RUNGS[top], _once(reach), ()
    pair = _replication(heights, predicted=bool(good)) if top >= held or good else ()
    if pair:
        return REPLICATED, _once(pair), (*missed, *(() if good else (PREDICTIVE,)))
    if good:
        return PREDICTIVE, _once((*reach, *(p.name for p in good))), missed
    return RUNGS[top], _once(reach), ()


def _replication(heights: dict[Piece, int], *, predicted: bool) -> tuple[str, ...]:
    """Two pieces of which the second repeats the first on another model or by another technique.

    Neither is post hoc; the first may be where a prediction confirmed the claim.
    """
    causal = [p for p, h in heights.items() if h >= RUNGS.index(HERE)]
    for one, two in permutations(causal, 2):
        late = two.post_hoc or (one.post_hoc and not predicted)
        if one.elsewhere or late or one.question == two.question:
            continue
        if _other_model(one, two) or (
            not two.elsewhere and not set(one.shown.methods) & set(two.shown.methods)
        ):
            return (one.name, two.name)
    return ()


def _other_model(one: Piece, two: Piece) -> bool:
    """By weights and by name: the same model in another dtype has another hash."""
    return bool(one.model and two.model) and one.model != two.model and (one.model_name != two.model_name or not one.model_name)  # fmt: skip


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _unstated(stated: Stated) -> list[Cap]:
    caps = []
    if not stated.alternatives:
        caps.append(Cap(OBSERVED, "no alternative is written: what else could explain the evidence", "", "write one (microtome lab claim add N --alternative ...), and an experiment that tells them apart"))  # fmt: skip
    if not stated.falsifiers:
        caps.append(Cap(OBSERVED, "nothing is written that would show it wrong", "", "write it before the next run (microtome lab claim add N --falsifier ...)"))  # fmt: skip
    return caps
