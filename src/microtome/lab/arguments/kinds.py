"""The values that have a written form of their own: one table, type -> tag, to JSON, from JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import arrays, kept, models, tasks
from .opening import Opening
from .values import TAG, bad, field, paths_of
from .writing import Writing

__all__ = ["KINDS", "Kind", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """One kind of value.

    tag: what its JSON has under "$". of: "module:Class". bases: whether classes derived from it are written alike.
    write: (writing, value, depth) -> JSON, or the mark of a lost value. read: (opening, JSON, depth) -> the value.
    """

    tag: str
    of: str
    write: Callable[[Writing, Any, int], Any]
    read: Callable[[Opening, Mapping[str, Any], int], Any]
    bases: bool = False


def _write_site(writing: Writing, value: Any, depth: int) -> Any:
    return {TAG: "site", "text": str(value)}


def _read_site(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    from microtome.sites import parse

    return parse(field(data, "text", str))


def _read_edge(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    from microtome.sites import parse_edge

    return parse_edge(field(data, "text", str))


def _write_edge(writing: Writing, value: Any, depth: int) -> Any:
    return {TAG: "edge", "text": str(value)}


def _write_trace(writing: Writing, value: Any, depth: int) -> Any:
    return writing.lost(value, "it holds a whole run of a model; give the tensor that is meant, trace[site]")


def _read_trace(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    raise bad("a trace", "traces are not kept")


KINDS = (
    Kind("model", "microtome.facade:Model", models.write_model, models.read_model),
    Kind("task", "microtome.tasks.pairs:PairTask", tasks.write_task, tasks.read_task),
    Kind("corpus", "microtome.tasks.corpus:Corpus", tasks.write_corpus, tasks.read_corpus),
    Kind("site", "microtome.sites:Site", _write_site, _read_site),
    Kind("edge", "microtome.sites:Edge", _write_edge, _read_edge),
    Kind("array", "numpy:ndarray", arrays.write_array, arrays.read_array, bases=True),
    Kind("tensor", "torch:Tensor", arrays.write_tensor, arrays.read_tensor, bases=True),
    Kind("result", "microtome.results.result:Result", kept.write_result, kept.read_result),
    Kind("trace", "microtome.trace.trace:Trace", _write_trace, _read_trace),
    Kind("store", "microtome.activations.reading:Store", kept.write_store, kept.read_store),
)


def kind_of(value: Any) -> Kind | None:
    """The kind of a live value, None where it has none of its own."""
    paths = paths_of(type(value))
    return next((k for k in KINDS if k.of == paths[0] or (k.bases and k.of in paths)), None)
