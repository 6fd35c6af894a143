"""Circuits as files: JSON of our own, one object with everything that makes a circuit a value."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.circuits.circuit import Choices, Circuit
from microtome.errors import ResultError, SiteError

if TYPE_CHECKING:
    from microtome.facade import Model

KIND = "circuit"
SCHEMA_VERSION = 1
_KEYS = ("kind", "schema_version", "model", "shape", "choices", "how", "spans", "edges", "scores")


def save_circuit(circuit: Circuit, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a circuit as JSON: schema version, hash of the model, shape of its graph, choices, edges and scores.

    The result that found it is not in it; `circuit.result.save(folder)` keeps that.

    Raises
    ------
    ResultError: the file is there already.
    """
    data = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": circuit.model,
        "shape": [list(layer) for layer in circuit.shape],
        "choices": circuit.choices.data(),
        "how": circuit.how,
        "spans": list(circuit.spans),
        "edges": list(circuit.edges),
        "scores": {name: float(value) for name, value in circuit.scores.items()},
    }
    return written(Path(path), json.dumps(data, indent=1, ensure_ascii=False).encode(), overwrite=overwrite)


def written(path: Path, content: bytes, *, overwrite: bool) -> Path:
    """Write a file whole or not at all.

    Raises
    ------
    ResultError: the file is there already.
    """
    if path.exists() and not overwrite:
        raise ResultError(
            f"{path} is there already",
            why="a circuit that somebody kept would be lost",
            instead="overwrite=True, or another name",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(content)
    os.replace(draft, path)
    return path


def open_circuit(path: str | Path, model: Model | None = None, *, other_weights: bool = False) -> Circuit:
    """A circuit from a file of `save_circuit`.

    model: refuse a circuit of another one. other_weights: accept a model of the same shape with other weights (a fine-tuned
    one); the circuit keeps the hash of the model that it was found in.

    Raises
    ------
    ResultError: no such file, or one that is no circuit. SiteError: a circuit of another model (says what differs), or an edge
    that its graph does not have.
    """
    raw = read_json(Path(path), _KEYS)
    if raw["kind"] != KIND or raw["schema_version"] != SCHEMA_VERSION:
        raise ResultError(f"{path} is a {raw['kind']!r} of schema version {raw['schema_version']!r}", why=f"this version reads a {KIND!r} of version {SCHEMA_VERSION}",
                          instead="microtome.open(folder) for results; read_mib for files of the MIB benchmark")  # fmt: skip
    circuit = _built(Path(path), raw)
    if model is not None:
        from microtome.graph.nodes import graph_of

        circuit.mask(graph_of(model.binding))
        if circuit.model and circuit.model != model.hash and not other_weights:
            raise SiteError("this circuit is of another model", why=f"the shape is the same, the weights are not: {circuit.model[:12]} in the circuit, {model.hash[:12]} here",
                            instead="load the model that it was found in, or other_weights=True")  # fmt: skip
    return circuit


def _built(path: Path, raw: Mapping[str, Any]) -> Circuit:
    try:
        shape = tuple((int(h), int(kv), bool(mlp), bool(par)) for h, kv, mlp, par in raw["shape"])
        scores = {str(name): float(value) for name, value in dict(raw["scores"]).items()}
        edges, spans = tuple(map(str, raw["edges"])), tuple(map(str, raw["spans"]))
        choices = Choices(**raw["choices"])
    except (TypeError, ValueError) as error:
        raise ResultError(
            f"{path} is no circuit",
            why=f"a part of it has another form: {error}",
            instead="save it again with save_circuit",
        ) from None
    twice = len(edges) - len(set(edges))
    if twice:
        raise ResultError(
            f"{path} names {twice} edges twice", why="a circuit is a set", instead="save it again"
        )
    return Circuit(edges, shape, str(raw["model"]), choices, str(raw["how"]), scores, spans)


def read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with at least these keys.

    Raises
    ------
    ResultError: no such file, no JSON, or a key that is missing.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ResultError(f"there is no {path}", instead="give the path of a circuit file") from None
    except ValueError as error:
        raise ResultError(
            f"{path} is no JSON", why=str(error), instead="give the path of a circuit file"
        ) from None
    missing = [k for k in keys if not isinstance(raw, dict) or k not in raw]
    if missing:
        raise ResultError(f"{path} is no circuit file", why=f"it has no {', '.join(missing)}",
                          instead="files of save_circuit, or of the MIB circuit track for read_mib")  # fmt: skip
    return raw
