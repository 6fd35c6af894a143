"""A tool: a name, a sentence, a JSON schema, and a function of a call and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.results.arguments import suggest

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["Answer", "Tool", "check", "made", "number", "object_of", "text", "texts"]

Schema = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a tool gives back: data, and pictures as SVG and, where it could be made, PNG."""

    data: Mapping[str, Any]
    svg: str = ""
    png: bytes = b""


@dataclass(frozen=True)
class Tool:
    """One tool.

    schema: of its arguments. reads: whether it changes neither the record nor what was seen. before: refuses what the schema
    would refuse less clearly.
    """  # fmt: skip

    name: str
    description: str
    schema: Schema
    function: Callable[[Call, dict[str, Any]], Answer | Mapping[str, Any]]
    reads: bool = True
    before: Callable[[dict[str, Any]], None] | None = None

    def __call__(self, call: Call, arguments: dict[str, Any]) -> Answer:
        """Check the arguments and run. Raises LabError for arguments that do not fit, and what the function raises."""
        if self.before is not None:
            self.before(arguments)
        check(self.name, self.schema, arguments)
        found = self.function(call, arguments)
        return found if isinstance(found, Answer) else Answer(found)


def made(
    function: Callable[..., Any],
    properties: Mapping[str, Schema] | None = None,
    required: Sequence[str] = (),
    *,
    reads: bool = True,
) -> Tool:
    """A tool of a function of a call and of keyword arguments; its name and description are the function's."""
    about = inspect.getdoc(function) or ""

    def run(call: Call, arguments: dict[str, Any]) -> Any:
        return function(call, **arguments)

    return Tool(function.__name__, " ".join(about.split()), object_of(properties or {}, required), run, reads)


def object_of(properties: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """The schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def text(about: str = "", **more: Any) -> Schema:
    """The schema of a text."""
    return {"type": "string", **({"description": about} if about else {}), **more}


def texts(about: str = "", **more: Any) -> Schema:
    """The schema of a list of texts."""
    return {"type": "array", "items": {"type": "string"}, **({"description": about} if about else {}), **more}


def number(about: str = "", *, whole: bool = True, **more: Any) -> Schema:
    """The schema of a number, whole unless said."""
    kind = "integer" if whole else "number"
    return {"type": kind, **({"description": about} if about else {}), **more}


def check(name: str, schema: Schema, arguments: Mapping[str, Any]) -> None:
    """Raises LabError for the first argument that the schema does not allow, naming it and what is allowed."""
    import jsonschema

    known = schema.get("properties", {})
    for given in arguments:
        if given not in known:
            raise LabError(
                f"{name} has no parameter {given!r}",
                why=f"it has {', '.join(known) or 'none'}",
                instead=suggest(str(given), known),
            )
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(arguments), key=lambda e: list(map(str, e.absolute_path)))  # fmt: skip
    if errors:
        where = ".".join(map(str, errors[0].absolute_path))
        what = f"{name}: {where} does not fit" if where else f"{name}: {errors[0].message[:300]}"
        raise LabError(what, why=errors[0].message[:300], instead=_instead(known, where))


def _instead(known: Mapping[str, Any], where: str) -> str:
    about = known.get(where.partition(".")[0])
    return f"its schema is {about}"[:500] if about else "see the tool's schema"


@dataclass
class Book:
    """Tools by name."""

    tools: dict[str, Tool] = field(default_factory=dict)

    def add(self, *tools: Tool) -> None:
        """Add tools. Raises LabError for a name that is taken."""
        for tool in tools:
            if tool.name in self.tools:
                raise LabError(f"two tools are called {tool.name}", why="a call names one", instead="another name")  # fmt: skip
            self.tools[tool.name] = tool

    def get(self, name: str) -> Tool:
        """A tool. Raises LabError for an unknown name, with the nearest."""
        if name not in self.tools:
            raise LabError(f"there is no tool {name!r}", why="it is not listed", instead=suggest(name, self.tools))  # fmt: skip
        return self.tools[name]
