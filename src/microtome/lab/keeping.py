"""What of a call is kept: its question, its arguments, the models and data it used, the sites it saw, its controls."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from microtome.lab import schema
from microtome.lab.overlap import addresses
from microtome.lab.stamps import stamp

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.files import Files
    from microtome.results import Event, Result

__all__ = [
    "Call",
    "call",
    "code_of",
    "controls",
    "link",
    "look",
    "models",
    "question_of",
    "sites",
    "subjects",
]

_SITES = 300  # addresses of a run that are kept as they are
_NARROW = re.compile(r"L(\d+)(?:H|KV|N|F)\d+")


@dataclass(frozen=True)
class Call:
    """What a call was given.

    row: columns of `run`. files: (name, key). sites: addresses among the arguments. models, materials: rows of those tables.
    """  # fmt: skip

    row: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[tuple[str, str]] = ()
    sites: frozenset[str] = frozenset()
    models: Sequence[Mapping[str, Any]] = ()
    materials: Sequence[Mapping[str, Any]] = ()


def question_of(event: Event) -> dict[str, Any]:
    """The question of a run as JSON-able data; of a look what was looked at."""
    if event.query is not None:
        return dict(event.query.as_json())
    look = event.look
    if look is None:
        return {"method": event.method}
    return {"method": "look", "model": look.model, "prompts": look.prompts, "sites": sorted(look.sites)}


def code_of(method: str) -> str:
    """Hash of a technique's code and of what decides its numbers; "" for a look and for what is not registered."""
    from microtome.results.calibration import technique_hash

    return technique_hash(method) if method != "look" else ""


def call(event: Event, files: Files, recorded: Callable[[str], bool]) -> Call:
    """What the begin of a run tells of its arguments, which are kept so that it can be run again.

    recorded: whether the result of a query is in the record, so that a result among the arguments is a reference.
    """
    from microtome.lab import arguments as kept

    arguments = event.arguments or {}
    made = kept.encode(arguments, files, recorded=recorded)
    key = files.put(made.text().encode("utf-8"), ".json")
    return Call(
        row={
            "family": kept.family_of(arguments),
            "arguments": key,
            "not_again": "\n".join(made.why_not),
        },
        files=tuple((key, key) for key in (key, *made.files)),
        sites=frozenset(kept.sites_of(event.method, arguments)),
        models=tuple(models(arguments.values())),
        materials=tuple(_materials(arguments)),
    )


def look(event: Event, files: Files) -> Call:
    """What a raw look tells: the model, and the prompts as text (the first few)."""
    from microtome.lab import arguments as kept
    from microtome.results.frozen import dumps

    arguments = event.arguments or {}
    key = files.put(dumps(kept.look_of(arguments)).encode("ascii"), ".json")
    return Call(
        row={"family": kept.family_of(arguments), "arguments": key, "not_again": "a look, not a technique"},
        files=((key, key),),
        models=tuple(models(arguments.values())),
    )


def models(values: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """Rows for the models among values."""
    from microtome.lab.arguments import recipe_of

    for value in values:
        if hasattr(value, "facts") and hasattr(value, "card") and hasattr(value, "hash"):
            found = getattr(value, "_certificate", None)
            recipe = recipe_of(value) if hasattr(value, "asked") else "nothing says how it was made"
            yield {"hash": value.hash, "name": value.name, "family": str(value.facts.family), "card": value.card,
                   "recipe": None if isinstance(recipe, str) else json.dumps(recipe, sort_keys=True), "certificate": None if found is None else json.dumps(found.as_dict(), default=str),
                   "seen_at": time.time()}  # fmt: skip


def _materials(arguments: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    from microtome.lab.arguments import material_of
    from microtome.results.frozen import dumps

    for one in material_of(arguments):
        if one.kind != "model":
            from_file = stamp(one.recipe.get("file")) or stamp(one.recipe.get("source"))
            recipe = {**one.recipe, **({"stamp": from_file} if from_file else {})}
            yield {"hash": one.hash, "kind": one.kind, "name": one.name, "seen_at": time.time(),
                   "recipe": dumps(recipe) if recipe else None}  # fmt: skip


def subjects(connection: Connection, kept: Call) -> None:
    """Rows for models and materials that the record has not yet; a certificate that came later is added."""
    from sqlalchemy import update

    for row in kept.models:
        found = connection.execute(select(schema.model).where(schema.model.c.hash == row["hash"])).first()
        if found is None:
            connection.execute(insert(schema.model), dict(row))
            continue
        late = {
            k: row[k] for k in ("recipe", "certificate") if row[k] is not None and row[k] != getattr(found, k)
        }
        if late:
            connection.execute(update(schema.model).where(schema.model.c.hash == row["hash"]).values(late))
    for row in kept.materials:
        known = select(schema.material.c.hash).where(schema.material.c.hash == row["hash"])
        if connection.execute(known).first() is None:
            connection.execute(insert(schema.material), dict(row))


def link(
    connection: Connection, number: int, role: str, names: Iterable[tuple[str, str]], files: Files
) -> None:
    """Rows for the files of a run."""
    rows = [
        {"run": number, "role": role, "name": name, "key": key, "bytes": files.path(key).stat().st_size}
        for name, key in dict(names).items()
    ]
    if rows:
        connection.execute(insert(schema.run_file), rows)


def sites(connection: Connection, number: int, seen: Iterable[str]) -> None:
    """Rows for what a run saw. Of very many (every neuron, every edge) the layers are named: that is more, never less."""
    every = set(addresses(seen))
    if len(every) > _SITES:
        every = {_NARROW.sub(r"L\1", site.partition("@")[0]) for site in every}
    rows = [{"run": number, "site": site} for site in sorted({s[:200] for s in every})]
    if rows:
        connection.execute(insert(schema.run_site), rows)


def controls(connection: Connection, number: int, result: Result) -> None:
    """Rows for a result's controls."""
    from microtome.results.frozen import dumps

    rows = [
        {"run": number, "name": c.name, "mandatory": c.name in result.verdict.mandatory, "passed": c.passed,
         "gates": c.gates, "rules_out": c.rules_out, "detail": c.detail, "expected": dumps(c.expected), "observed": dumps(c.observed), "n": c.n}
        for c in result.controls
    ]  # fmt: skip
    if rows:
        connection.execute(insert(schema.control), rows)
