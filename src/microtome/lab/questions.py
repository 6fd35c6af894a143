"""`mt.query`: a pattern over what techniques are asked, to say which run a prediction is about.

A run matches when everything that the pattern names agrees: method, model, task, parameters, seed, and sites that
overlap (`microtome.lab.overlap`). What it does not name may be anything. `seen` asks the wider question, whether an
earlier run or raw look gave away what the pattern asks, and leans to yes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import LabError, ResultError
from ..results.arguments import suggest
from ..results.frozen import dumps, freeze_json
from .overlap import Parts, overlap, parts

if TYPE_CHECKING:
    from ..results.query import Query

__all__ = ["Mismatch", "Question", "query", "seen"]

_HASH = re.compile(r"[0-9a-f]{12,64}")
_TEXTS = ("method", "model", "model_name", "task", "family")
_SHOWN = 3


@dataclass(frozen=True)
class Mismatch:
    """Why a run is not what a question asks about. part: "method", "model", "task", "seed", "sites" or a parameter."""

    part: str
    asked: str
    found: str

    def __str__(self) -> str:
        return f"{self.part}: asked about {self.asked}, the run has {self.found}"


@dataclass(frozen=True)
class Question:
    """Which runs a prediction is about; made by `query`.

    Parameters
    ----------
    method: the technique's name, "" for any.
    model: the model's hash or its first 12 digits or more; model_name: its name. Both empty: any model.
    task: hash of the task or data; family: its name ("ioi"), which all its samples share. Both empty: any task.
    sites: addresses; empty: any.
    parameters: those that must have these very values, as `microtome.results.stamp.describe` writes them.
    seed: None for any.

    Raises
    ------
    LabError: nothing is named, or a field has the wrong type. SiteError: a site is no address.
    """

    method: str = ""
    model: str = ""
    model_name: str = ""
    task: str = ""
    family: str = ""
    sites: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise _wrong(name, getattr(self, name), "it is a name or a hash", f'{name}="..."')
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise _wrong("seed", self.seed, "a seed is an integer", "seed=0, or leave it out for any")
        sites: Any = self.sites
        if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
            raise _wrong("sites", sites, "they are a list of addresses", 'sites=["L9H6.z"]')
        if not isinstance(self.parameters, Mapping):
            raise _wrong("parameters", self.parameters, "they are named", 'mode="denoise"')
        object.__setattr__(self, "sites", tuple(sites))
        object.__setattr__(self, "parameters", freeze_json(self.parameters, "parameters"))
        if not (self.sites or any(getattr(self, name) for name in _TEXTS)):
            raise LabError(
                "a query that names no method, model, task or sites",
                why="every run would match it, so a prediction about it would be about nothing",
                instead='name at least one: mt.query("ablation", sites="L9H6.z")',
            )
        parts(self.sites)  # a site that is no address is refused here, not when a run has ended

    @cached_property
    def parts(self) -> Parts:
        """The parts of the model that its sites speak of."""
        return parts(self.sites)

    @property
    def text(self) -> str:
        """The question in one line. Names are as they were given: escape them where they are shown."""
        said = [self.method or "any technique"]
        if self.model or self.model_name:
            said.append(f"on {self.model_name or self.model}")
        if self.task or self.family:
            said.append(f"with {self.family or self.task}" + (f" ({self.task[:12]})" if self.task and self.family else ""))  # fmt: skip
        if self.sites:
            said.append(f"at {_few(self.sites)}")
        given = [f"{name}={value!r}" for name, value in sorted(self.parameters.items())]
        given += [] if self.seed is None else [f"seed={self.seed}"]
        return " ".join(said) + (f", {', '.join(given)}" if given else "")

    def as_json(self) -> dict[str, Any]:
        """The fields as a mapping of JSON-able values (`microtome.results.frozen.dumps` writes it)."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, stored: Any) -> Question:
        """The question that `as_json` gave.

        Techniques and parameters are not looked up again: a record may name those of a package that is not here.
        Raises LabError for what is not such a mapping, and as the class does.
        """
        known = cls.__dataclass_fields__
        if not isinstance(stored, Mapping) or (more := [str(key) for key in stored if key not in known]):
            found = (
                type(stored).__name__
                if not isinstance(stored, Mapping)
                else f"unknown fields: {', '.join(more)}"
            )
            raise LabError(
                f"a stored question that is none ({found})",
                why=f"its fields are {', '.join(known)}",
                instead="if a newer version wrote it, read it with that version",
            )
        try:
            return cls(**stored)
        except (ResultError, TypeError) as error:
            raise LabError(f"a stored question that cannot be read: {error}", why="a field has the wrong type") from error  # fmt: skip

    def matches(self, query: Query, *, model_name: str, family: str, sites: Sequence[str]) -> Mismatch | None:
        """None when the run answers this question, else the first thing in which it does not.

        Parameters
        ----------
        query: what the run was asked. model_name: of its model; family: name of its task or data, "" where it has
            none. sites: addresses that it read or edited; none: not known, which does not speak against a match.

        A model or task given as an object is compared by its hash alone, one given by name by its name. Parameters
        are equal when their JSON is: 1 is not 1.0.
        """
        if self.method and self.method != query.method:
            return Mismatch("method", self.method, query.method)
        if self.model:
            if not query.model.startswith(self.model):
                return Mismatch("model", _both(self.model_name, self.model), _both(model_name, query.model))
        elif self.model_name and self.model_name.casefold() != model_name.casefold():
            return Mismatch("model", self.model_name, model_name or "a model without a name")
        if self.task:
            if self.task not in (query.task, query.data):
                found = " and ".join(h for h in (query.task, query.data) if h)
                return Mismatch("task", _both(self.family, self.task), _both(family, found))
        elif self.family and not _same_family(self.family, family):
            return Mismatch("task", self.family, family or "no task")
        return self._parameters_differ(query) or self._sites_differ(sites)

    def _parameters_differ(self, query: Query) -> Mismatch | None:
        for name, value in self.parameters.items():
            if name not in query.parameters:
                return Mismatch(name, repr(value), "no such parameter")
            if dumps(value) != dumps(query.parameters[name]):
                return Mismatch(name, repr(value), repr(query.parameters[name]))
        if self.seed is not None and self.seed != query.seed:
            return Mismatch("seed", str(self.seed), "none" if query.seed is None else str(query.seed))
        return None

    def _sites_differ(self, sites: Sequence[str]) -> Mismatch | None:
        if not self.sites or overlap(self.parts, parts(sites)):
            return None
        return Mismatch("sites", _few(self.sites), _few(sites))


def query(
    method: str | None = None,
    *,
    model: Any = None,
    task: Any = None,
    sites: str | Sequence[str] = (),
    **parameters: Any,
) -> Question:
    """A pattern for the runs that a prediction is about: `mt.query("ablation", task=task, sites="L9H6.z", by="mean")`.

    Parameters
    ----------
    method: a technique's name; None for any.
    model: a model (this one: by its hash), a hash, or a name as in `model.name`.
    task: a task, labelled text or corpus (this one: by its hash), or the name that all samples of it share ("ioi").
    sites: addresses. A run matches when it touched any part of them; how they were written does not matter.
    parameters: parameters of the technique that must have these values; `seed` too. A parameter of the technique
        called `sites` is matched by `sites`.

    Raises
    ------
    LabError: nothing is named; no such technique or parameter (the nearest is suggested); a model, task or data among
    the parameters. SiteError: no address. ResultError: a value that no record can hold.
    """
    from ..results.stamp import content_hash, describe

    if method is not None:
        _check_technique(
            method, parameters, {name for name, value in parameters.items() if content_hash(value)}
        )
    model_hash, model_name = _identity("model", model, hashes=True)
    task_hash, family = _identity("task", task, hashes=False)
    given = dict(parameters)
    seed = given.pop("seed", None)
    described = {name: describe(value, f"parameter {name!r}") for name, value in given.items()}
    where = (sites,) if isinstance(sites, str) else sites
    if not isinstance(where, list | tuple):
        raise _wrong("sites", sites, "they are a list of addresses", 'sites=["L9H6.z"]')
    return Question(
        method or "", model_hash, model_name, task_hash, family, tuple(map(str, where)), described, seed
    )


def seen(question: Question, *, model: str, family: str, sites: Sequence[str], model_name: str = "") -> str:
    """Whether an earlier run or raw look saw what a question asks, in one sentence; "" when it did not.

    The method, its parameters, the seed and the version do not count: who has patched a head on one sample of a task
    has seen something of what ablating it on another will do. What is not known counts as seen.

    Parameters
    ----------
    model, model_name: hash and name of the earlier run's model; the same by either is the same (another dtype of it
        has another hash and the same name), and "" for both is not known.
    family: name of its task or data, "" where it is not known, as for raw looks. Parts of a corpus ("web/held_out")
        are of its family.
    sites: addresses that it read or edited; none: not known. A look that captured nothing saw `logits`.
    """
    if not _same_model(question, model, model_name):
        return ""
    if question.family and family and not _same_family(question.family, family):
        return ""
    shared = overlap(question.parts, parts(sites))
    if not shared:
        return ""
    about = f"{family or 'a task that is not known'} on {model_name or model or 'a model that is not known'}"
    if not question.sites:
        return f"it saw {about}, and the question is about any site"
    if not sites:
        return f"it saw {about}, at sites that are not known"
    return f"it saw {about} at {_few(shared)}"


def _same_model(question: Question, model: str, model_name: str) -> bool:
    by_hash = model.startswith(question.model) if question.model and model else None
    by_name = (
        question.model_name.casefold() == model_name.casefold()
        if question.model_name and model_name
        else None
    )
    if by_hash is None and by_name is None:
        return True  # nothing that both name: it may be this model
    return bool(by_hash or by_name)


def _same_family(one: str, other: str) -> bool:
    """Equal, or one a part of the other: a corpus calls its parts "web/held_out"."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _identity(what: str, given: Any, *, hashes: bool) -> tuple[str, str]:
    """Hash and name of a model or task that is given as an object, a name, or (where `hashes`) a hash."""
    from ..results.stamp import content_hash

    if given is None:
        return "", ""
    if isinstance(given, str):
        if not given.strip():
            raise _wrong(what, given, "it names nothing", f"leave it out for any {what}")
        if _HASH.fullmatch(given):
            if hashes:
                return given, ""
            raise LabError(f"{what} is the hash {given}", why="by its hash alone nobody can tell of which kind it is, and what was seen of it",
                           instead=f"give the {what} itself, or its name")  # fmt: skip
        return "", given
    mark, name = content_hash(given), getattr(given, "name", "")
    if not mark or not isinstance(name, str):
        raise _wrong(what, type(given).__name__, f"it has no hash and name as a {what} has", f"{what}={what}, or its name")  # fmt: skip
    return mark, name


def _check_technique(method: str, parameters: Mapping[str, Any], hashed: set[str]) -> None:
    """Raises LabError for a name that no technique has, and for parameters that this one does not have."""
    from ..results import registry

    known = registry.names("techniques")
    if not isinstance(method, str) or method not in known:
        raise LabError(
            f"there is no technique {method!r}",
            why="neither Microtome nor an installed plug-in has it, so no run could ever match",
            instead=suggest(str(method), known),
        )
    if not parameters:
        return
    from .signatures import parameters_of

    names = parameters_of(method)
    for name in parameters:
        if name not in names:
            usable = [n for n in names if n not in ("model", "task", "sites")]
            raise LabError(
                f"{method} has no parameter {name!r}",
                why=f"its parameters are {', '.join(usable) or 'none'}",
                instead=suggest(name, usable),
            )
        if name in hashed and name in (*_CONTENT, *names[:1]):
            slot = "model" if name == names[0] and name not in _CONTENT else "task"
            raise LabError(
                f"{name}= is this technique's {slot}",
                why="a record keeps it beside the parameters, by its hash",
                instead=f"say {slot}=",
            )


_CONTENT = ("task", "pairs", "data", "corpus", "prompts", "texts")  # where a query keeps them as task or data


def _wrong(name: str, value: Any, why: str, instead: str) -> LabError:
    return LabError(f"{name} is {value!r}", why=why, instead=instead)


def _both(name: str, mark: str) -> str:
    return f"{name} ({mark[:12]})" if name and mark else name or mark or "none"


def _few(words: Sequence[str]) -> str:
    shown = ", ".join(words[:_SHOWN])
    return shown + (f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else "")
