"""What was asked: enough to ask it again, and to see whether two results answer the same question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import ResultError
from .frozen import digest, dumps, freeze_json

_NOT_THE_QUESTION = ("version", "seed", "numerics")


@dataclass(frozen=True, eq=False)
class Query:
    """One question as data.

    Parameters
    ----------
    method, version: the technique and its version.
    model, task, data: content hashes (hex), "" where there is none.
    parameters: every other argument of the technique, defaults filled in; JSON-able.
    seed: the seed that was given, None for a technique that draws nothing.
    numerics: dtype, attention implementation, device; JSON-able.

    Raises ResultError, naming the parameter, for a value that JSON cannot hold.
    """

    method: str
    version: str
    model: str = ""
    task: str = ""
    data: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    numerics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("method", "version", "model", "task", "data"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ResultError(
                    f"{name} is {value!r}",
                    why="it must be text: a name or a hash",
                    instead=f"{name}={str(value)!r}",
                )
        if not self.method:
            raise ResultError(
                "a query without a method", why="nothing was asked", instead="name the technique"
            )
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise ResultError(f"seed is {self.seed!r}", why="a seed is an integer", instead="seed=0")
        for name, single in (("parameters", "parameter"), ("numerics", "numerics entry")):
            mapping = getattr(self, name)
            if not isinstance(mapping, Mapping):
                raise ResultError(
                    f"{name} is {mapping!r}", why="it must be a mapping", instead=f"{name}={{}}"
                )
            frozen = {key: freeze_json(value, f"{single} {key!r}") for key, value in mapping.items()}
            object.__setattr__(self, name, freeze_json(frozen, name))

    @cached_property
    def id(self) -> str:
        """32 hex digits over the whole content; the same in every process."""
        return digest(dumps(self.as_json()))

    @property
    def rerunnable(self) -> bool:
        """False when a parameter was a function that cannot be imported by name, or a bare array."""
        return not _mentions(self.parameters, "rerunnable", False)

    def as_json(self) -> dict[str, Any]:
        """The fields as a mapping of JSON-able values (without the id)."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def same_question(self, other: Query) -> bool:
        """Whether both ask the same of the same model and data.

        Version, seed and numerics may differ: such results are repetitions of one question, and comparing
        them is how a finding is shown to be stable.
        """
        mine, theirs = self.as_json(), other.as_json()
        for name in _NOT_THE_QUESTION:
            del mine[name], theirs[name]
        return dumps(mine) == dumps(theirs)

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, Query) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)


def _mentions(value: Any, key: str, wanted: Any) -> bool:
    if isinstance(value, Mapping):
        return value.get(key, None) is wanted or any(_mentions(v, key, wanted) for v in value.values())
    if isinstance(value, tuple):
        return any(_mentions(item, key, wanted) for item in value)
    return False
