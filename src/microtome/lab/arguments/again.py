"""The arguments of a call into a record, and a call from its record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from microtome.errors import LabError, MicrotomeError

from .models import recipe_of
from .opening import Opening
from .values import SCHEMA_VERSION, TAG, Encoded, Files, bad, json_text, paths_of, read_text
from .writing import Writing

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.results.result import Result

__all__ = ["decode", "encode", "run_again"]

INLINE = 4096
"""Characters of JSON up to which an argument stands in the record itself; longer ones are files."""


def encode(
    arguments: Mapping[str, Any],
    files: Files,
    *,
    model_of: Callable[[Any], Mapping[str, Any] | str] = recipe_of,
    recorded: Callable[[str], bool] = lambda query: False,
) -> Encoded:
    """The bound arguments of a technique's call (`Event.arguments`) as JSON and files.

    An argument that cannot be had again (a module held in memory, a function of a notebook) is marked and named in `why_not`;
    nothing is raised for it.

    model_of: a model's recipe as JSON-able data, or why there is none. recorded: whether the result of a query is kept, so that a
    result among the arguments is a reference.

    Raises whatever `files.put` raises.
    """
    writing = Writing(files, model_of, recorded, _models(arguments))
    out, why = {}, []
    for name, value in arguments.items():
        writing.why = []
        data = writing.value(value)
        if len(json_text(data)) > INLINE:
            data = {TAG: "file", "key": writing.put_json(data)}
        out[str(name)] = data
        if writing.why:
            why.append(f"{name}: {'; '.join(dict.fromkeys(writing.why))}")
    made = {"schema_version": SCHEMA_VERSION, "order": list(out), "arguments": out}
    return Encoded(made, tuple(writing.keys), not why, tuple(why))


def decode(
    encoded: Encoded | Mapping[str, Any] | str,
    files: Files,
    *,
    load_model: Callable[[Mapping[str, Any]], Model] | None = None,
    result_of: Callable[[str], Result] | None = None,
) -> dict[str, Any]:
    """The arguments, in the order of the call, from what `encode` gave (its `arguments`, or their JSON text).

    load_model: from a recipe to a model, whose hash is compared (None: `load_again`). result_of: from a query's id to its recorded result.

    Raises
    ------
    LabError: an argument that was not kept, a record that is damaged or of a newer Microtome, a file that is missing, a model,
    corpus or task generator that is not what it was; nothing but Microtome's own code is imported for what a record names.
    """
    data: Any = encoded.arguments if isinstance(encoded, Encoded) else encoded
    if isinstance(data, str):
        data = read_text(data, "the arguments of the call")
    if not isinstance(data, Mapping):
        raise bad("the arguments of the call", f"they are a {type(data).__name__}")
    version = data.get("schema_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise bad("the arguments of the call", f"their schema version is {version!r}")
    if version > SCHEMA_VERSION:
        raise LabError(
            f"the arguments of the call have schema version {version}",
            why=f"this version of Microtome reads up to {SCHEMA_VERSION}",
            instead="update Microtome",
        )
    told, order = data.get("arguments"), data.get("order")
    if not isinstance(told, Mapping) or not isinstance(order, list) or sorted(order, key=str) != sorted(told):
        raise bad("the arguments of the call", "they are no mapping with the order of its names")
    opening = Opening(files, load_model, result_of or _nothing_recorded)
    return {name: _argument(opening, name, told[name]) for name in order}


def run_again(
    method: str,
    encoded: Encoded | Mapping[str, Any] | str,
    files: Files,
    *,
    load_model: Callable[[Mapping[str, Any]], Model] | None = None,
    result_of: Callable[[str], Result] | None = None,
) -> Result:
    """Call a technique, by its name in the registry, with recorded arguments.

    Raises
    ------
    LabError: as `decode`, no such technique, or one that takes other arguments now. Whatever the technique raises.
    """
    from microtome.results import registry

    try:
        technique = registry.get("techniques", method)
    except MicrotomeError as error:
        raise LabError(
            f"{method!r} cannot be run again: {error.what}", why=error.why, instead=error.instead
        ) from error
    arguments = decode(encoded, files, load_model=load_model, result_of=result_of)
    taken = inspect.signature(technique.__wrapped__).parameters
    missing = [p.name for p in taken.values() if p.default is p.empty and p.name not in arguments]
    unknown = [name for name in arguments if name not in taken]
    if missing or unknown:
        what = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(unknown)}"] * bool(unknown)
        raise LabError(
            f"{method} takes other arguments than were recorded",
            why=f"version {technique.spec.version} takes {', '.join(taken)}; the record {' and '.join(what)}",
            instead="use the version of Microtome that made the record, or call the technique anew",
        )
    found: Result = technique(**arguments)
    return found


def _argument(opening: Opening, name: str, value: Any) -> Any:
    try:
        return opening.value(value)
    except LabError as error:
        raise LabError(f"argument {name!r}: {error.what}", why=error.why, instead=error.instead) from error


def _models(arguments: Mapping[str, Any]) -> list[Any]:
    """The models among the arguments, one level into sequences and checkpoints too."""
    found = []
    for value in arguments.values():
        inner = value.models if "microtome.zoo.checkpoints:Checkpoints" in paths_of(type(value)) else value
        for one in inner if isinstance(inner, list | tuple) else (value,):
            if "microtome.facade:Model" in paths_of(type(one)):
                found.append(one)
    return found


def _nothing_recorded(query: str) -> NoReturn:
    raise LabError(
        f"the result of the query {query} is needed",
        why="an argument of this call was the result of an earlier one",
        instead="give result_of=, which finds recorded results",
    )
