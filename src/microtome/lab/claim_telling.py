"""A claim in words: its rung, why it is not higher, and what would lift it. Plain text: whoever shows it escapes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.lab.evidence import CAUSAL, KINDS
from microtome.lab.rungs import (
    CORRELATIONAL,
    HELD_OUT,
    HERE,
    OBSERVED,
    PREDICTIVE,
    REPLICATED,
    RUNGS,
    UNSUPPORTED,
    Foretold,
    Piece,
)

if TYPE_CHECKING:
    from microtome.lab.claim_rows import ClaimRow, Linked
    from microtome.lab.rungs import Cap

__all__ = ["as_dict", "as_text", "lines", "steps"]

_OTHERS = {
    "ablation": "mt.methods.ablation", "activation_patching": "mt.methods.activation_patching", "path_patching": "mt.methods.path_patching",
    "circuit_evaluation": "mt.circuits.evaluate", "directional_ablation": "mt.methods.directional_ablation",
}  # fmt: skip
_HOW = {
    "circuit_evaluation": "mt.circuits.evaluate(model, circuit, task, held_out=other)",
    "component_set": "mt.methods.component_set(model, task, ranking=..., held_out=other)",
    "distributed_alignment_search": "mt.methods.distributed_alignment_search(model, task, variable=..., site=..., held_out=other)",
    "directional_ablation": "mt.methods.directional_ablation(...) with options.data, on prompts that are not among those texts",
    "function_vector": "mt.methods.function_vector(model, pairs) on other pairs",
    "probe": "mt.methods.probe(model, data) on other texts, its causal test switched on",
}


def lines(claim: ClaimRow) -> list[str]:
    """The claim for a terminal, a line each."""
    rung = claim.rung
    told = [f"claim {claim.number}: {rung.name}", f"  {claim.statement}"]
    if claim.withdrawn_at is not None:
        told.append(f"  withdrawn: {claim.why_withdrawn}")
    told.append(f"  by {claim.person} in {claim.title!r}, {_about(claim.about)}")
    if rung.by:
        told.append(f"  reached by {', '.join(rung.by)}" + (f"; the evidence alone reaches {rung.evidence}" if rung.evidence != rung.name else ""))  # fmt: skip
    if rung.skipped:
        told.append(f"  without: {', '.join(rung.skipped)}")
    told += _listed("why not higher", _caps(rung.caps))
    told += _listed("what would lift it", steps(claim))
    for name, texts in (("what else could explain it", claim.alternatives), ("what would show it wrong", claim.falsifiers),
                        ("what it does not say", claim.limitations)):  # fmt: skip
        late = name == "what would show it wrong"
        told += _listed(name, [t.text + (" (post hoc: written after the first evidence)" if late and t.late else "") for t in texts])  # fmt: skip
    return told + _listed("evidence", [_piece(p) for p in claim.pieces])


def steps(claim: ClaimRow) -> tuple[str, ...]:
    """What would lift the claim, as concrete as the record allows: what limits it first, else what its next rung needs."""
    if claim.withdrawn_at is not None:
        return ()
    rung, number = claim.rung, claim.number
    limits = [c for c in rung.caps if c.instead and (c.against or not c.piece) and RUNGS.index(c.at) <= rung.place]  # fmt: skip
    if limits and rung.place < RUNGS.index(rung.evidence):
        return tuple(dict.fromkeys(c.instead.replace(" N ", f" {number} ") for c in limits))
    found = [c.instead.replace(" N ", f" {number} ") for c in limits]
    found += [f"{c.piece}: {c.instead}" for c in rung.caps if c.piece and c.instead and not c.against and c.at == rung.evidence]  # fmt: skip
    mending = bool(found)
    after = "" if claim.falsifiers else ", after something is written that would show it wrong"
    link = f"then microtome lab claim link {number} RUN"
    used = {m for p in claim.pieces if isinstance(p.piece, Piece) for m in p.piece.shown.methods}
    sites, model = (
        claim.about.get("sites"),
        repr(claim.about.get("model_name")) if claim.about.get("model_name") else "model",
    )
    where = f", sites={list(sites)!r}" if sites else ""
    held = [_HOW[m] for m in sorted(used) if m in _HOW] or [f"mt.methods.activation_patching(model, task{where}, held_out=other)"]  # fmt: skip
    asked = f'mt.query("ablation", model={model}{where})'
    predict = f"before a run, study.predict(..., probability=..., about={asked}, holds=mt.expect(...), claim={number}), about a task, site or model that this record has not seen"  # fmt: skip
    fresh = next((call for m, call in _OTHERS.items() if m not in used), "one that is not linked yet")
    needs = {
        UNSUPPORTED: [f"microtome lab claim link {number} RUN, a run that saw more than its null of what the claim is about"],
        OBSERVED: [f"a run with a null, such as mt.methods.probe, logit_lens or direct_logit_attribution, {link}"],
        CORRELATIONAL: [f"a run that changes something: mt.methods.activation_patching(model, task{where}) or mt.methods.ablation(model, task{where}), {link}"],
        HERE: [f"a run on held-out prompts, begun from now on{after}: {held[0]}, with task, other = task.split(by='template'), {link}",
               *([f"or mt.methods.ablation(model, other{where}) on pairs that nothing here saw at these sites, {link}"] if sites else []), f"or a prediction: {predict}"],
        HELD_OUT: [predict, f"or its replication on another model or by another technique ({fresh}), {link}"],
        PREDICTIVE: [f"the same on another model, or by a technique that it does not rest on yet ({fresh}), {link}"],
    }  # fmt: skip
    low = RUNGS.index(rung.evidence) < RUNGS.index(HERE)
    return tuple(dict.fromkeys(found if mending and low else found + needs.get(rung.evidence, [])))


def as_text(claim: ClaimRow) -> dict[str, Any]:
    """The claim as plain data for a red team: statement, alternatives, falsifiers, evidence (see `llm.claim_text.claim_from`)."""
    return {
        "statement": claim.statement,
        "alternatives": [t.text for t in claim.alternatives],
        "falsifiers": [t.text for t in claim.falsifiers],
        "evidence": [_evidence(p) for p in claim.pieces],
    }


def as_dict(claim: ClaimRow) -> dict[str, Any]:
    """The claim as plain data for a program: everything that `lines` says, and the numbers of runs and predictions."""
    kept = ("number", "key", "study", "title", "person", "statement", "about", "made_at", "after_run", "withdrawn_at",
            "why_withdrawn", "alternatives", "falsifiers", "limitations")  # fmt: skip
    return {
        **{name: getattr(claim, name) for name in kept},
        "rung": claim.rung.name, "ladder": list(RUNGS), "evidence_alone": claim.rung.evidence, "by": claim.rung.by,
        "skipped": claim.rung.skipped, "caps": list(claim.rung.caps), "next": list(steps(claim)),
        "evidence": [{"number": p.number, "run": p.run, "prediction": p.prediction, "weight": p.weight, "supports": p.supports,
                      "person": p.person, "note": p.note, "at": p.at, "counts_as": _counts(p.piece), "method": p.row.method if p.row else None,
                      "verdict": p.row.verdict if p.row else None, "post_hoc": p.piece.post_hoc, "stale": p.piece.stale} for p in claim.pieces],
    }  # fmt: skip


def _listed(name: str, items: Sequence[str]) -> list[str]:
    return [f"  {name}:", *(f"    - {item}" for item in items)] if items else []


def _caps(caps: Sequence[Cap]) -> list[str]:
    """A line per piece and rung that it is held at, in the order of the caps."""
    lines: dict[tuple[str, str], list[str]] = {}
    for cap in caps:
        lines.setdefault((cap.piece, cap.at), []).append(cap.why)
    return [(f"{piece}: " if piece else "") + "; ".join(why) + ("" if at == REPLICATED else f" (at most {at})")
            for (piece, at), why in lines.items()]  # fmt: skip


def _about(about: Mapping[str, Any]) -> str:
    said = [about.get("model_name") or about.get("model", "")[:12], about.get("family") or about.get("task", "")[:12],
            ", ".join(about.get("sites", ()))]  # fmt: skip
    named = "; ".join(s for s in said if s)
    return f"about {named}" if named else "about anything: evidence is not compared with what it is about"


def _counts(piece: Piece | Foretold) -> str:
    if isinstance(piece, Foretold):
        return f"a prediction that is {piece.outcome}"
    return piece.shown.level + (" on held-out prompts" if piece.shown.held_out else "")


def _piece(p: Linked) -> str:
    what = p.piece.name + (f" ({p.row.method})" if p.row is not None and p.prediction is None else "")
    side = "" if p.supports else ", against the claim"
    verdict = f", {p.row.verdict}" if p.row is not None and p.row.verdict and p.prediction is None else ""
    told = f": {p.statement}" if p.statement else ""
    return f"{what}: {_counts(p.piece)}{verdict}; {p.weight.replace('_', ' ')}{side}" + (f"; {p.note}" if p.note else "") + told  # fmt: skip


def _evidence(p: Linked) -> dict[str, Any]:
    row = p.row
    said = [_piece(p)]
    kind = KINDS.get(row.method) if row is not None else None
    if kind is not None and kind.level != CAUSAL:
        said.append(kind.why)
    found: dict[str, Any] = {"summary": "; ".join(said), "post_hoc": bool(p.piece.post_hoc)}
    if row is not None:
        found |= {"method": "" if row.method == "look" else row.method, "model": row.model_name, "task": row.family, "sites": list(p.sites),
                  "controls": {c.name: c.passed for c in p.controls}, "seeds": [] if row.seed is None else [row.seed]}  # fmt: skip
    return found
