"""Techniques, tasks, metrics and families by name: Microtome's own, the user's, other packages'.

Three sources, in this order:

1. what was registered in this process (`register`; the `technique` decorator does it for importable functions);
2. the home packages of a kind, imported on the first question that 1 cannot answer; their ``__init__``
   registers what they hold, best as `Lazy` so that a list of names imports nothing heavy;
3. entry points of installed distributions, in the groups ``microtome.techniques``, ``microtome.tasks``,
   ``microtome.datasets``, ``microtome.metrics`` and ``microtome.families``; their names are known without importing them.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..errors import MicrotomeError
from .arguments import suggest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KINDS = ("techniques", "tasks", "datasets", "metrics", "families")

_HOMES = {
    "techniques": (
        "microtome.methods",
        "microtome.circuits",
        "microtome.features",
        "microtome.zoo",
        "microtome.dissect",
    ),
    "tasks": ("microtome.tasks",),
    "datasets": ("microtome.tasks",),
    "metrics": ("microtome.metrics",),
    "families": ("microtome.model.families",),
}


class RegistryError(MicrotomeError, LookupError):
    """A name that is not registered, registered twice, or belongs to a plug-in that does not load."""


class Lazy:
    """An object given by its path, "module:attribute", and imported when it is first asked for."""

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self) -> Any:
        """The object. Raises ImportError or AttributeError when it is not there."""
        module, _, attribute = self.path.partition(":")
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        return found


_lock = (
    threading.Lock()
)  # held for single changes only, never during an import, whose own locks it would cross
_objects: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_plugins: dict[str, dict[str, EntryPoint]] = {}


def register(kind: str, name: str, obj: Any) -> Any:
    """Register `obj` under a name; gives `obj` back.

    An object is known by its importable path: registering a later definition of the same module and
    qualified name (a notebook cell that ran again, a reloaded module) replaces the earlier one.
    Raises RegistryError when the name belongs to another object, for an unknown kind and an empty name.
    """
    _check_kind(kind)
    if not isinstance(name, str) or not name:
        raise RegistryError(f"{name!r} is no name", why="entries are found by name", instead="use text")
    with _lock:
        known = _objects[kind].get(name)
        if known is not None and not _same(known, obj):
            raise RegistryError(
                f"{kind}: {name!r} is registered already",
                why=f"it is {_path(known) or known!r}, the new one is {_path(obj) or obj!r}",
                instead="choose another name",
            )
        _objects[kind][name] = obj
    return obj


def get(kind: str, name: str) -> Any:
    """The object of this name, imported now if need be.

    Raises RegistryError for an unknown name (naming the nearest) and for a plug-in that does not load
    (naming its distribution).
    """
    _check_kind(kind)
    known = _objects[kind]
    if name not in known:
        _read_homes(kind)
    if name not in known and name in _entry_points(kind):
        return _load_plugin(kind, name)
    if name not in known:
        raise RegistryError(
            f"{kind}: nothing is called {name!r}",
            why="neither Microtome nor an installed plug-in has it",
            instead=suggest(str(name), names(kind)),
        )
    found = known[name]
    return found.load() if isinstance(found, Lazy) else found


def module_of(kind: str, name: str) -> str | None:
    """The module that defines an entry, found without importing it where the entry is `Lazy`; None where it has none.

    Raises RegistryError for an unknown kind or name.
    """
    _check_kind(kind)
    found = _objects[kind].get(name)
    for home in _HOMES[kind] if found is None else ():
        if home not in sys.modules and _is_there(home):
            importlib.import_module(home)
        found = _objects[kind].get(name)
        if found is not None:
            break
    if found is None:
        found = get(kind, name)
    if isinstance(found, Lazy):
        return found.path.partition(":")[0]
    module = getattr(found, "__module__", None)
    return module if isinstance(module, str) else None


def names(kind: str) -> tuple[str, ...]:
    """All names of a kind, sorted; plug-ins are listed without being imported.

    Raises RegistryError for an unknown kind, and when a plug-in claims a name that is taken.
    """
    _check_kind(kind)
    _read_homes(kind)
    return tuple(sorted({*_objects[kind], *_entry_points(kind)}))


def refresh() -> None:
    """Forget which plug-ins were found: after one was installed beside a running Python."""
    _plugins.clear()


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise RegistryError(
            f"no registry of {kind!r}", why="there is one per kind", instead=suggest(str(kind), KINDS)
        )


def _path(obj: Any) -> str | None:
    """ "module:qualified.name" of what can be imported by name, else None."""
    if isinstance(obj, Lazy):
        return obj.path
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:  # <locals>, <lambda>
        return None
    return f"{module}:{name}"


def _same(one: Any, other: Any) -> bool:
    path = _path(one)
    return one is other or (path is not None and path == _path(other))


def _read_homes(kind: str) -> None:
    for home in _HOMES[kind]:
        # a home that asks for names while it is itself imported gets what is registered so far
        if home not in sys.modules and not _is_there(home):
            continue  # a later capability, not there yet
        importlib.import_module(home)


def _is_there(home: str) -> bool:
    from importlib.util import find_spec

    return find_spec(home) is not None


def _entry_points(kind: str) -> dict[str, EntryPoint]:
    if kind in _plugins:
        return _plugins[kind]
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"microtome.{kind}"):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise RegistryError(
                f"{kind}: two plug-ins are called {point.name!r}",
                why=f"{_distribution(other)} and {_distribution(point)} both have it",
                instead="uninstall one of them",
            )
        known = _objects[kind].get(point.name)
        if known is not None and not _is_what_it_names(point, known):
            raise RegistryError(
                f"{kind}: the plug-in {_distribution(point)} claims the name {point.name!r}",
                why=f"it belongs to {_path(known) or known!r}",
                instead=f"uninstall {_distribution(point)}, or ask its authors for another name",
            )
    _plugins[kind] = found
    return found


def _is_what_it_names(point: EntryPoint, known: Any) -> bool:
    if _path(known) == point.value:
        return True
    found: Any = sys.modules.get(
        point.module
    )  # an instance has no path; a plug-in may have registered it itself
    for part in point.attr.split(".") if point.attr else ():
        found = getattr(found, part, None)
    return found is known


def _load_plugin(kind: str, name: str) -> Any:
    point = _plugins[kind][name]
    try:
        loaded = point.load()
    except Exception as error:  # whatever foreign code raises on import is reported with its owner's name
        raise RegistryError(
            f"{kind}: the plug-in {name!r} of {_distribution(point)} does not load",
            why=f"{point.value}: {type(error).__name__}: {error}",
            instead=f"update or uninstall {_distribution(point)}",
        ) from error
    spec_name = getattr(getattr(loaded, "spec", None), "name", name)
    if kind == "techniques" and spec_name != name:
        raise RegistryError(
            f"techniques: {_distribution(point)} offers {name!r}, but the technique is called {spec_name!r}",
            why="its results would say one name and the list another",
            instead="give the entry point the technique's name",
        )
    return register(kind, name, loaded)


def _distribution(point: EntryPoint) -> str:
    return (
        f"{point.dist.name} {point.dist.version}" if point.dist is not None else f"(unknown: {point.value})"
    )
