"""Tools for tasks, pairs and data. What they make is named by a handle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import UNTRUSTED, plain
from microtome.agents.desk import DEFAULT, labelled_of, task_of
from microtome.agents.tools import Tool, made, number, text, texts
from microtome.agents.tools_models import MODEL
from microtome.errors import TaskError

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["TOOLS"]

_MOST = 512  # pairs or texts of one task
HANDLE = text("handle from task_make")
SEED = number("of everything that is drawn", minimum=0, maximum=2**31 - 1, default=0)


def tasks_list(call: Call) -> dict[str, Any]:
    """Tasks (pairs of a clean and a corrupt prompt) and labelled datasets that come with Microtome and its plug-ins."""
    from microtome.tasks import describe, names, sets

    return {"tasks": [plain(describe(name)) for name in names()], "datasets": [plain(sets.describe(name)) for name in sets.names()]}  # fmt: skip


def task_make(
    call: Call,
    name: str,
    n: int = 32,
    seed: int = 0,
    model: str = DEFAULT,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Make n pairs of a task for a model's tokenizer; gives a handle. The same arguments give the same pairs."""
    from microtome.tasks import task

    with call.models():
        made_ = task(name, call.desk.model(model), n=n, seed=seed, **(options or {}))
    return _made(call, made_)


def pairs_make(
    call: Call,
    clean: list[str],
    corrupt: list[str],
    answer: list[Any],
    wrong: list[Any],
    model: str = DEFAULT,
    metric: str | None = None,
    groups: list[str] | None = None,
) -> dict[str, Any]:
    """Pairs of your own: clean and corrupt prompts of equal token length, the answer and a wrong one with their leading space."""
    from microtome.tasks.files import pairs

    columns = {"group": groups} if groups is not None else None
    with call.models():
        made_ = pairs(call.desk.model(model), clean=clean, corrupt=corrupt, answer=answer, wrong=wrong, metric=metric, columns=columns)  # fmt: skip
    return {**_made(call, made_), "notes": plain(made_.provenance.get("notes", ()))}


def _made(call: Call, task: Any) -> dict[str, Any]:
    return plain({
        "task": call.desk.keep(task), "name": task.name, "hash": task.hash, "n": len(task), "metric": task.metric, "aligned": task.aligned,
        "groups": {by: len(set(labels)) for by, labels in task.groups.items()}, "differs": sorted(task.differs),
    })  # fmt: skip


def task_split(
    call: Call, task: str, by: str = "template", share: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    """Split pairs into kept and held out, by whole clusters (template, entity); gives two handles."""
    kept, away = task_of(call, task).split(by, share, seed=seed)
    return {"kept": _made(call, kept), "held_out": _made(call, away)}


def task_show(call: Call, task: str, k: int = 2, model: str = "") -> dict[str, Any]:
    """Read raw pairs: tokens, positions, spans, variables, answers. Do it before any number."""
    from microtome.tasks import show

    found = task_of(call, task)
    if not model:
        return {"untrusted": plain(show(found, None, k)), "note": UNTRUSTED}
    with call.models():
        return {"untrusted": plain(show(found, call.desk.model(model), k)), "note": UNTRUSTED}


def data_make(
    call: Call,
    kind: str,
    name: str = "",
    texts: list[str] | None = None,
    labels: list[Any] | None = None,
    groups: dict[str, list[Any]] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Labelled text (a built-in dataset by name, or your texts and labels) or a corpus (your texts, or the standard library's
    for none); gives a handle."""  # fmt: skip
    from microtome.tasks.corpus import corpus
    from microtome.tasks.dataset import labelled
    from microtome.tasks.sets import names

    if kind == "corpus":
        made_: Any = corpus(texts)
        return plain({"data": call.desk.keep(made_), "name": made_.name, "hash": made_.hash})
    if texts is None and name not in names():
        from microtome.results.arguments import suggest

        raise TaskError(
            f"there is no dataset {name!r}",
            why="an agent names a built-in dataset, or gives texts and labels; files and downloads are not read",
            instead=suggest(name, names()),
        )
    made_ = labelled(texts if texts is not None else name, labels, groups, n=n, seed=seed, name=name if texts is not None else "")  # fmt: skip
    return plain({"data": call.desk.keep(made_), "name": made_.name, "hash": made_.hash, "n": len(made_), "counts": made_.counts})  # fmt: skip


def data_show(call: Call, data: str, k: int = 6, seed: int = 0) -> dict[str, Any]:
    """Read raw texts with their labels, and what the linter finds in them before anything is fitted."""
    from microtome.tasks.lint import lint

    found = labelled_of(call, data)
    rows = [{"label": found.classes[found.labels[i]], "text": found.texts[i]} for i in range(min(k, len(found)))]  # fmt: skip
    told = lint(found, seed=seed)
    findings = [{"kind": f.kind, "severity": f.severity, "detail": f.detail} for f in told.findings]
    return plain({"untrusted": rows, "findings": findings, "clean": told.clean, "note": UNTRUSTED})  # fmt: skip


_VALUE = {
    "anyOf": [
        {"type": ["string", "number", "boolean"]},
        {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
    ]
}
_ANSWERS = {"type": "array", "items": {"anyOf": [{"type": ["string", "integer"]}, texts()]}}

TOOLS: tuple[Tool, ...] = (
    made(tasks_list),
    made(task_make, {"name": text("of a task; tasks_list has them"), "n": number(minimum=1, maximum=_MOST, default=32), "seed": SEED,
                     "model": MODEL, "options": {"type": "object", "additionalProperties": _VALUE}}, ["name"]),
    made(pairs_make, {"clean": texts(), "corrupt": texts(), "answer": _ANSWERS, "wrong": _ANSWERS, "model": MODEL,
                      "metric": {"enum": ["logit_diff", "logprob_diff"]}, "groups": texts("one label per pair: pairs that fall together")},
         ["clean", "corrupt", "answer", "wrong"]),
    made(task_split, {"task": HANDLE, "by": text(default="template"), "share": number("held out", whole=False, exclusiveMinimum=0, exclusiveMaximum=1, default=0.5),
                      "seed": SEED}, ["task"]),
    made(task_show, {"task": HANDLE, "k": number(minimum=1, maximum=20, default=2), "model": text("to decode tokens; none by default")}, ["task"]),
    made(data_make, {"kind": {"enum": ["labelled", "corpus"]}, "name": text("of a built-in dataset, or what to call yours"), "texts": texts(minItems=1),
                     "labels": {"type": "array", "items": {"type": ["string", "integer", "boolean"]}},
                     "groups": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": ["string", "integer"]}}},
                     "n": number(minimum=1, maximum=_MOST), "seed": SEED}, ["kind"]),
    made(data_show, {"data": text("handle from data_make"), "k": number(minimum=1, maximum=50, default=6), "seed": SEED}, ["data"]),
)  # fmt: skip
