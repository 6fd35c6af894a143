"""Limitations that follow from the record: what a reader would otherwise have to find out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microtome.lab.evidence import CAUSAL, KINDS
from microtome.lab.rungs import Piece
from microtome.results.verdicts import NULL, UNCHECKED, UNDERPOWERED

if TYPE_CHECKING:
    from microtome.lab.reading import Record
    from microtome.lab.writing.values import ClaimPart, Experiment
    from microtome.results import Control, Result

__all__ = ["blind_spots", "limitations"]


def limitations(record: Record, parts: Sequence[ClaimPart]) -> tuple[str, ...]:
    """Sentences, the most general first; nothing here depends on what the author wrote."""
    experiments = [e for part in parts for e in part.experiments]
    said = [*_breadth(experiments), *_times(parts), *_doubts(experiments), *_models(record, experiments)]
    for part in parts:
        c = part.claim
        said += [f"Claim {c.number}: {t.text}" for t in c.limitations]
        against = [e for e in part.experiments if not e.link.supports]
        if against:
            said.append(f"Claim {c.number}: {_runs(against)} {'speaks' if len(against) == 1 else 'speak'} against it.")  # fmt: skip
        if not c.alternatives:
            said.append(f"Claim {c.number}: nobody wrote down what else could explain its evidence.")
        if not c.falsifiers:
            said.append(f"Claim {c.number}: nobody wrote down what would show it wrong.")
        late = [t for t in c.falsifiers if t.late]
        if late and len(late) == len(c.falsifiers):
            said.append(f"Claim {c.number}: what would show it wrong was written after its first evidence was seen.")  # fmt: skip
    return tuple(dict.fromkeys(said))


def blind_spots(parts: Sequence[ClaimPart]) -> tuple[str, ...]:
    """What the techniques cannot show however well they are used, each sentence once."""
    from microtome.report.prose import limits

    results = [e.result for part in parts for e in part.experiments if e.result is not None]
    return tuple(dict.fromkeys(sentence for result in results for sentence in limits(result)))


def _breadth(experiments: Sequence[Experiment]) -> list[str]:
    said = []
    models = sorted({e.row.model_name or e.row.model[:12] for e in experiments if e.row.model})
    families = sorted({e.row.family for e in experiments if e.row.family})
    methods = sorted({e.row.method for e in experiments})
    if len(models) == 1:
        said.append(f"One model only: {models[0]}.")
    if len(families) == 1:
        said.append(f"One kind of prompts only: {families[0]}.")
    if len(methods) == 1 and experiments:
        said.append(f"One technique only: {methods[0]}.")
    shown = [p.shown for p in (e.link.piece for e in experiments) if isinstance(p, Piece)]
    if experiments and not any(one.held_out for one in shown):
        said.append("Nothing was shown on held-out prompts.")
    if experiments and not any(_causal(e) for e in experiments):
        said.append("Nothing was changed in the model: what is seen may not be what causes the behaviour.")
    return said


def _causal(e: Experiment) -> bool:
    kind = KINDS.get(e.row.method)
    return kind is None or kind.level == CAUSAL or bool(kind.causal_by) or kind.children


def _times(parts: Sequence[ClaimPart]) -> list[str]:
    said = []
    for part in parts:
        for e in part.experiments:
            if e.link.piece.post_hoc and e.link.prediction is None:
                said.append(f"Run {e.row.number} is post hoc for claim {part.claim.number}: {e.link.piece.post_hoc}.")  # fmt: skip
            said += [f"Prediction {p.number} is post hoc: {p.why_post_hoc or 'something earlier here had seen it'}."
                     for p in e.predictions if p.post_hoc]  # fmt: skip
        if not any(e.predictions for e in part.experiments) and not part.foretold:
            said.append(f"No prediction was made before the runs of claim {part.claim.number}.")
    return said


def _doubts(experiments: Sequence[Experiment]) -> list[str]:
    said = []
    words = {
        UNDERPOWERED: "is underpowered: no outcome of it could have counted as an effect",
        UNCHECKED: "is unchecked: no test against a null was made",
        NULL: "is not distinguishable from its null",
    }
    for e in experiments:
        name = f"Run {e.row.number} ({e.row.method})"
        if e.verdict in words:
            said.append(f"{name} {words[e.verdict]}.")
        if e.result is None:
            said.append(f"{name} is a raw look: it has neither a null nor controls.")
            continue
        needed = set(e.result.verdict.mandatory)
        for c in e.result.controls:
            if c.passed is not True and not (c.gates or c.name in needed):
                word = "failed" if c.passed is False else "did not run"
                said.append(f"{name}: the control {c.name} {word}; not ruled out is {c.rules_out}.")
        inner = [c for child in e.result.children for c in _all_controls(child)]
        for word, state in (("failed", False), ("did not run", None)):
            names = [c.name for c in inner if c.passed is state]
            if names:
                said.append(f"{name}: {len(names)} of {len(inner)} controls of its stages {word} ({', '.join(dict.fromkeys(names))}).")  # fmt: skip
        if getattr(e.link.piece, "stale", ""):
            said.append(f"{name} is out of date: {e.link.piece.stale}.")
        if e.calibration.startswith("not calibrated"):
            said.append(f"{name} is {e.calibration.rstrip('.')}.")
        if e.row.by == "agent":
            said.append(f"{name} was made by an agent ({e.row.person}).")
    return said


def _all_controls(result: Result) -> list[Control]:
    return [*result.controls, *(c for child in result.children for c in _all_controls(child))]


def _models(record: Record, experiments: Sequence[Experiment]) -> list[str]:
    said = []
    for mark, name in sorted({(e.row.model, e.row.model_name) for e in experiments if e.row.model}):
        certificate = record.certificate(mark)
        if certificate is None:
            said.append(f"The certificate of {name or mark[:12]} was never asked for: nobody compared what was read and written with the model's own forward pass (microtome models check).")  # fmt: skip
            continue
        failed = certificate.get("failed") or [c.get("name") for c in certificate.get("checks", ()) if c.get("passed") is False]  # fmt: skip
        if failed:
            said.append(f"The certificate of {name or mark[:12]} has failures: {', '.join(map(str, failed))}.")  # fmt: skip
    return said


def _runs(experiments: Sequence[Experiment]) -> str:
    return ("run " if len(experiments) == 1 else "runs ") + ", ".join(str(e.row.number) for e in experiments)
