"""Tools that run techniques: one for each, made from its signature, and one for any by name."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import plain
from microtome.agents.desk import DEFAULT, task_of
from microtome.agents.jobs import stoppable
from microtome.agents.kinds import value
from microtome.agents.schemas import parameters_of, schema
from microtome.agents.telling import tell
from microtome.agents.tools import Answer, Tool, check, made, text
from microtome.agents.tools_models import MODEL as MODEL_SCHEMA
from microtome.agents.tools_tasks import HANDLE
from microtome.errors import LabError

if TYPE_CHECKING:
    from microtome.agents.desk import Call
    from microtome.agents.schemas import Parameter

__all__ = ["TOOLS", "of_techniques"]

_PREFIX = "run_"


def of_techniques() -> tuple[Tool, ...]:
    """A tool for every registered technique that JSON can call."""
    from microtome.results import registry

    return tuple(_tool(name) for name in registry.names("techniques") if not parameters_of(name).missing)


def _tool(name: str) -> Tool:
    signature = parameters_of(name)
    about = _doc(name).partition("\n\n")[0]
    left = f" Not from here: {', '.join(signature.left_out)}." if signature.left_out else ""

    def run(call: Call, arguments: dict[str, Any]) -> Answer:
        return _run(call, name, arguments)

    return Tool(
        _PREFIX + name,
        " ".join(about.split()) + left,
        schema(signature),
        run,
        False,
        lambda given: _keeps_controls(name, given),
    )


def _doc(name: str) -> str:
    from microtome.results import registry

    return inspect.getdoc(registry.get("techniques", name)) or ""


# ------------------------------------------------------------------------------------------- the tools


def techniques_list(call: Call) -> dict[str, Any]:
    """Every technique in one line: what it does, its controls, whether it can be run from here and why not."""
    from microtome.results import registry

    rows = []
    for name in registry.names("techniques"):
        signature, spec = parameters_of(name), registry.get("techniques", name).spec
        row = {
            "name": name,
            "does": " ".join(_doc(name).partition("\n\n")[0].split()),
            "controls": spec.controls,
        }
        if signature.missing:
            row["not_from_here"] = f"needs {', '.join(signature.missing)}, which JSON cannot say: in Python"
        rows.append(row)
    return {"techniques": plain(rows)}


def technique_describe(call: Call, method: str) -> dict[str, Any]:
    """A technique's full documentation, its parameters as JSON, its controls, and how often it is right on models whose
    mechanism is known."""  # fmt: skip
    from microtome.results import registry
    from microtome.results.calibration import calibration_line, technique_hash

    spec, signature = registry.get("techniques", method).spec, parameters_of(method)
    return {
        "method": method, "version": spec.version, "documentation": _doc(method), "parameters": schema(signature), "left_out": list(signature.left_out),
        "controls": list(spec.controls), "mandatory": list(spec.mandatory),
        "calibration": calibration_line(method, spec.version, technique_hash(method)),
    }  # fmt: skip


def run_technique(call: Call, method: str, parameters: dict[str, Any] | None = None) -> Answer:
    """Run any technique by name; technique_describe has its parameters. Its controls run with it and cannot be left out."""
    return _run(call, method, parameters or {})


def estimate(call: Call, method: str, task: str = "", model: str = DEFAULT) -> dict[str, Any]:
    """How long a run may take: one forward of this size timed on made-up tokens (nothing of the task is seen), and what runs of
    this technique took in this record. Ask before a run that could be long."""  # fmt: skip
    parameters_of(method)
    pairs = task_of(call, task) if task else None
    rows, length = (len(pairs), max(map(len, pairs.clean.ids))) if pairs is not None else (8, 32)
    with call.models():
        loaded = call.desk.model(model)
        made_up = [[(31 * i + k) % loaded.facts.d_vocab for k in range(length)] for i in range(min(rows, 64))]
        loaded.run(made_up, logits="last")
        began = time.perf_counter()
        loaded.run(made_up, logits="last")
        each = (time.perf_counter() - began) * rows / len(made_up)
    from microtome.lab.reading import Wanted

    with call.record() as record:
        before = record.runs(Wanted(method=method, state="finished", nested=True), limit=10)
    return {
        "seconds_of_one_forward": plain(each),
        "said": f"a sweep over k cells of this task takes up to k times {each:.2g} s; controls add up to a third, more with controls='full'",
        "earlier_runs": [{"run": r.number, "seconds": plain(r.seconds), "family": r.family, "parameters": r.about} for r in before],
    }  # fmt: skip


# --------------------------------------------------------------------------------------------- running


def _run(call: Call, method: str, arguments: Mapping[str, Any]) -> Answer:
    from microtome.results import registry

    signature = parameters_of(method)
    if signature.missing:
        raise LabError(
            f"{method} cannot be run from here",
            why=f"{', '.join(signature.missing)} cannot be said in JSON",
            instead=f"a person runs it in Python: help(mt.methods.{method})",
        )
    _keeps_controls(method, arguments)
    check(method, schema(signature), arguments)
    technique = registry.get("techniques", method)
    with call.models():
        given = {
            p.name: _value(call, p, arguments[p.name], arguments.get("model", DEFAULT))
            for p in signature.parameters
            if p.name in arguments
        }
        if any(p.name == "model" for p in signature.parameters):
            given.setdefault("model", call.desk.model(DEFAULT))
        _foretold(call, technique, given)
        with call.study() as study, stoppable():
            result = technique(**given)
        ran = study.last
        call.job.say(f"{method}: done, drawing")
        return tell(call, result, ran)


def _keeps_controls(method: str, arguments: Mapping[str, Any]) -> None:
    if arguments.get("controls") == "none":
        raise LabError(
            f"{method} without controls",
            why="controls cannot be switched off by an agent",
            instead='leave controls out, or controls="full"',
        )


def _value(call: Call, p: Parameter, given: Any, model: str) -> Any:
    found = value(call, p.kind, given, model)
    return tuple(found) if p.tuples and isinstance(found, list) else found


def _foretold(call: Call, technique: Any, given: Mapping[str, Any]) -> None:
    """Raises LabError where the server wants a prediction and none that is open is about this call."""
    if not call.desk.settings.predictions:
        return
    from microtome.lab.arguments.reading import family_of
    from microtome.lab.predicting import OPEN, predictions
    from microtome.results.arguments import bind
    from microtome.results.stamp import make_query

    bound = bind(technique.spec.name, inspect.signature(technique), (), given).arguments
    asked = make_query(technique.spec.name, technique.spec.version, bound)
    name = next((m.name for m in bound.values() if hasattr(m, "facts")), "")
    sites = _sites(bound)
    with call.record() as record:
        waiting = predictions(record.database, state=OPEN, person=call.agent)
    if any(
        p.about.matches(asked, model_name=name, family=family_of(bound), sites=sites) is None for p in waiting
    ):
        return
    raise LabError(
        f"{technique.spec.name} was not run: no open prediction of {call.agent} is about it",
        why="this server asks for a prediction before every result",
        instead="prediction_make(statement, probability, about={method, family, sites}, holds=...), then the same call again",
    )


def _sites(bound: Mapping[str, Any]) -> tuple[str, ...]:
    """Addresses among the arguments, as far as they are written out."""
    for name in ("sites", "site", "heads"):
        found = bound.get(name)
        if isinstance(found, str):
            return (found,)
        if isinstance(found, list | tuple):
            return tuple(map(str, found))
    return ()


TOOLS: tuple[Tool, ...] = (
    made(techniques_list),
    made(technique_describe, {"method": text("name of a technique")}, ["method"]),
    made(estimate, {"method": text("name of a technique"), "task": HANDLE, "model": MODEL_SCHEMA}, ["method"]),
    made(run_technique, {"method": text("name of a technique"), "parameters": {"type": "object"}}, ["method"], reads=False),
)  # fmt: skip
