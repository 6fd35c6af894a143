"""Tools for predictions and claims. The record decides what is post hoc and how far a claim may be believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import plain
from microtome.agents.tools import Tool, made, number, object_of, text, texts
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["TOOLS"]


def prediction_make(
    call: Call,
    statement: str,
    probability: float,
    about: dict[str, Any],
    holds: dict[str, Any] | None = None,
    claim: int | None = None,
) -> dict[str, Any]:
    """Predict what a run will show, before it runs. `about` says which run; `holds` what its result must show, decided by the
    result alone. The answer says whether it is post hoc."""  # fmt: skip
    expected = None if holds is None else _expectation(holds)
    with call.writing() as study:
        made_ = study.predict(statement, probability, _question(call, about), expected, claim=claim)
    return _prediction(made_)


def predictions_list(call: Call, state: str | None = None, mine: bool = True) -> dict[str, Any]:
    """Predictions with their outcomes: yours, or everybody's."""
    from microtome.lab.predicting import predictions

    with call.record() as record:
        found = predictions(record.database, state=state, person=call.agent if mine else None)
    return {"predictions": [_prediction(p) for p in found]}


def prediction_void(call: Call, prediction: int, reason: str) -> dict[str, Any]:
    """Make an open prediction of yours void, with a reason: nobody will be able to tell. It stays in the record, unscored."""
    from microtome.lab.predicting import predictions

    with call.record() as record:
        mine = {p.number for p in predictions(record.database, person=call.agent)}
    if prediction not in mine:
        raise LabError(f"prediction {prediction} is not yours", why=f"you are {call.agent}", instead="predictions_list")  # fmt: skip
    with call.writing() as study:
        return _prediction(study.resolve(prediction, None, reason=reason))


def predictions_score(call: Call, mine: bool = True) -> dict[str, Any]:
    """Brier and log score against the base rate, and calibration, apart for each person and kind (computed, judged, post hoc)."""
    from microtome.lab.predicting import forecasts, predictions
    from microtome.lab.scoring import score

    with call.record() as record:
        found = predictions(record.database, person=call.agent if mine else None)
    groups: dict[str, list[Any]] = {}
    for one in forecasts(found):
        groups.setdefault(f"{one.person}, {one.kind}", []).append(one)
    return {"scores": {who: plain(score(these, seed=0)) for who, these in sorted(groups.items())}, "open": sum(p.state == "open" for p in found)}  # fmt: skip


def _prediction(p: Any) -> dict[str, Any]:
    told = {"prediction": p.number, "statement": p.statement, "probability": p.probability, "by": p.person, "about": p.about.text,
            "holds": None if p.holds is None else p.holds.text, "state": p.state, "kind": p.kind, "post_hoc": p.post_hoc,
            "why_post_hoc": p.why_post_hoc, "run": p.run, "observed": p.observed, "reason": p.reason, "claim": p.claim}  # fmt: skip
    return {k: plain(v) for k, v in told.items() if v not in (None, "")}


def _question(call: Call, about: dict[str, Any]) -> Any:
    from microtome.lab.questions import query
    from microtome.results.arguments import suggest

    given = dict(about)
    parameters = given.pop("parameters", {})
    taken = [name for name in parameters if name in ("method", "model", "task", "sites", "family")]
    if taken:
        raise LabError(f"about.parameters names {taken[0]}", why="it has a place of its own in about", instead=suggest(taken[0], _ABOUT))  # fmt: skip
    task = given.get("family")
    if given.get("task"):
        from microtome.agents.desk import task_of

        task = task_of(call, given["task"])
    model = call.desk.called(given["model"]) if given.get("model") else None
    return query(given.get("method"), model=model, task=task, sites=given.get("sites", ()), **parameters)  # fmt: skip


def _expectation(holds: dict[str, Any]) -> Any:
    from microtome.lab.expecting import expect

    return expect(**holds)


# ---------------------------------------------------------------------------------------------- claims


def claim_make(
    call: Call,
    statement: str,
    about: dict[str, Any],
    alternatives: list[str],
    falsifiers: list[str],
    evidence: list[int] | None = None,
    limitations: list[str] | None = None,
) -> dict[str, Any]:
    """Claim something, with what else could explain it and what would show it wrong. Its rung follows from the evidence (numbers
    of runs) and is capped by controls that failed or did not run."""  # fmt: skip
    with call.writing() as study:
        found = study.claim(statement, about=_question(call, about), evidence=evidence or (), alternatives=alternatives,
                            falsifiers=falsifiers, limitations=limitations or ())  # fmt: skip
    return _claim(found)


def claim_link(
    call: Call,
    claim: int,
    run: int | None = None,
    prediction: int | None = None,
    weight: str = "strong",
    supports: bool = True,
    note: str = "",
) -> dict[str, Any]:
    """Link a run or a prediction to a claim, for it or against it. Evidence against a claim is linked as well."""
    from microtome.lab.claiming import Link, link

    with call.writing() as study:
        link(study.database, claim, Link(of=run, weight=weight, supports=supports, note=note, prediction=prediction), call.agent)  # fmt: skip
    return claim_show(call, claim)


def claim_show(call: Call, claim: int) -> dict[str, Any]:
    """A claim with its rung, every cap with its reason, its evidence, and what would lift it."""
    from microtome.lab.claim_rows import read

    with call.record() as record:
        return _claim(read(record, claim))


def claims_list(call: Call) -> dict[str, Any]:
    """Every claim of the project with its rung and its caps."""
    from microtome.lab.claim_rows import list_claims

    with call.record() as record:
        found = list_claims(record)
    kept = ("number", "person", "statement", "rung", "caps", "withdrawn_at")
    return {"claims": [{k: v for k, v in _claim(c).items() if k in kept} for c in found]}


def claim_add(
    call: Call,
    claim: int,
    alternatives: list[str] | None = None,
    falsifiers: list[str] | None = None,
    limitations: list[str] | None = None,
) -> dict[str, Any]:
    """Add alternatives, falsifiers or limitations to a claim of yours."""
    from microtome.lab.claiming import add_texts

    with call.record() as record:
        _own(call, record, claim)
        add_texts(record.database, claim, alternatives=alternatives or (), falsifiers=falsifiers or (), limitations=limitations or ())  # fmt: skip
    return claim_show(call, claim)


def claim_withdraw(call: Call, claim: int, why: str) -> dict[str, Any]:
    """Withdraw a claim of yours that was wrong. It stays in the record, with the reason."""
    from microtome.lab.claiming import withdraw

    with call.record() as record:
        _own(call, record, claim)
        withdraw(record.database, claim, why)
    return claim_show(call, claim)


def _own(call: Call, record: Any, claim: int) -> None:
    """Raises LabError for a claim that somebody else made: what is added to a claim does not say who added it."""
    from microtome.lab.claim_rows import read

    person = read(record, claim).person
    if person != call.agent:
        raise LabError(
            f"claim {claim} is {person}'s",
            why=f"you are {call.agent}",
            instead="link evidence against it (claim_link, supports=false), or make a claim of your own",
        )


def _claim(found: Any) -> dict[str, Any]:
    from microtome.lab.claim_telling import as_dict

    return dict(plain(as_dict(found)))


_ABOUT = {
    "method": text("technique"), "model": text("name or hash"), "family": text('name of the task or data, such as "ioi"'),
    "task": text("handle from task_make: these very pairs"), "sites": texts("addresses"),
    "parameters": {"type": "object", "description": "parameters of the technique that must have these values; seed too"},
}  # fmt: skip
_QUESTION = {
    **object_of(_ABOUT),
    "description": "which runs; what is left out may be anything",
    "minProperties": 1,
}
_CELL = {"type": ["string", "number", "boolean"]}
_BOUND = {"type": "number"}
_HOLDS = {
    **object_of(
        {"field": text("effects, low, high, verdict, p, control:NAME or table:NAME.COLUMN"), "site": text(), "layer": number(), "head": number(),
         "position": {"type": ["string", "integer"]}, "metric": text(), "where": {"type": "object", "additionalProperties": _CELL},
         "low": _BOUND, "high": _BOUND, "equals": _CELL, "how": {"enum": ["one", "every", "any", "mean", "max", "min"], "default": "one"}},
        ["field"],
    ),
    "description": "what the result must show; bounds inclusive",
}  # fmt: skip
_CLAIM = number("number of a claim", minimum=1)
_WEIGHTS = {"enum": ["strong", "big_if_true", "sanity", "weak"], "default": "strong"}

TOOLS: tuple[Tool, ...] = (
    made(prediction_make, {"statement": text(), "probability": number("between 0 and 1, neither", whole=False, exclusiveMinimum=0, exclusiveMaximum=1),
                           "about": _QUESTION, "holds": _HOLDS, "claim": _CLAIM}, ["statement", "probability", "about"], reads=False),
    made(predictions_list, {"state": {"enum": ["open", "true", "false", "void"]}, "mine": {"type": "boolean", "default": True}}),
    made(prediction_void, {"prediction": number(minimum=1), "reason": text()}, ["prediction", "reason"], reads=False),
    made(predictions_score, {"mine": {"type": "boolean", "default": True}}),
    made(claim_make, {"statement": text(), "about": _QUESTION, "alternatives": texts(minItems=1), "falsifiers": texts(minItems=1),
                      "evidence": {"type": "array", "items": number(minimum=1)}, "limitations": texts()},
         ["statement", "about", "alternatives", "falsifiers"], reads=False),
    made(claim_link, {"claim": _CLAIM, "run": number(minimum=1), "prediction": number(minimum=1), "weight": _WEIGHTS,
                      "supports": {"type": "boolean", "default": True}, "note": text()}, ["claim"], reads=False),
    made(claim_show, {"claim": _CLAIM}, ["claim"]),
    made(claims_list),
    made(claim_add, {"claim": _CLAIM, "alternatives": texts(), "falsifiers": texts(), "limitations": texts()}, ["claim"], reads=False),
    made(claim_withdraw, {"claim": _CLAIM, "why": text()}, ["claim", "why"], reads=False),
)  # fmt: skip
