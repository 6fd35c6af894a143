"""Circuit files of the MIB benchmark's circuit track (Mueller et al. 2025), as EAP-IG's `Graph.to_json` and `to_pt` write them.

There every query head has keys and values of its own, so with grouped queries the edges into one key/value head come once
per query head. Reading refuses copies that contradict each other; writing repeats what is one here. The format knows models
whose layers all have the same heads and an MLP.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microtome.circuits.circuit import Circuit
from microtome.circuits.connect import leading, reached
from microtome.circuits.files import read_json, written
from microtome.errors import ResultError, SiteError
from microtome.graph.nodes import Graph, graph_of
from microtome.results.arguments import nearest

if TYPE_CHECKING:
    import torch

    from microtome.facade import Model

_JSON_KEYS = ("cfg", "nodes", "edges")
_PT_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
_NEURONS = ("neurons", "neurons_scores", "neurons_in_graph")


def _format(graph: Graph) -> tuple[int, int, int, bool]:
    """(layers, heads, key/value heads, parallel) of a model that the format can describe; else refused."""
    kinds = set(graph.shape)
    heads, groups, mlp, parallel = graph.shape[0]
    if len(kinds) != 1 or not mlp:
        why = "its layers differ" if len(kinds) != 1 else "its layers have no MLP"
        raise ResultError(
            "the MIB format has no place for this model",
            why=f"{why}; there all have the same heads and an MLP",
            instead="save_circuit",
        )
    return len(graph.shape), heads, groups, parallel


def _node(graph: Graph, writer: int) -> str:
    w = graph.writers[writer]
    return {"embed": "input", "mlp": f"m{w.layer}"}.get(w.kind, f"a{w.layer}.h{w.index}")


def _copies(graph: Graph, reader: int) -> list[str]:
    """What the format calls a reader: once per query head that uses it."""
    r = graph.readers[reader]
    if r.kind == "logits":
        return ["logits"]
    if r.kind == "mlp":
        return [f"m{r.layer}"]
    return [f"{_node(graph, w)}<{r.kind}>" for w in graph.fed_by(reader)]


def edge_copies(graph: Graph) -> Iterator[tuple[int, list[str]]]:
    """Every edge with its names in the format, several where key/value heads are shared."""
    readers = [_copies(graph, r) for r in range(len(graph.readers))]
    writers = [_node(graph, w) for w in range(len(graph.writers))]
    pairs = zip(graph.writer_of.tolist(), graph.reader_of.tolist(), strict=True)
    for edge, (w, r) in enumerate(pairs):
        yield edge, [f"{writers[w]}->{name}" for name in readers[r]]


def write_mib(
    circuit: Circuit,
    path: str | Path,
    model: Model,
    *,
    scores: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a circuit as the MIB circuit track reads it: .json or .pt, by the name.

    scores: of edges (0 where there is none); default those of the result that found it, else the circuit's own. With
    key/value heads shared by several query heads, each copy of an edge has the whole edge's score.

    Raises
    ------
    ResultError: a model or circuit that the format has no place for, another ending, or a file that is there already.
    SiteError: a circuit of another model.
    """
    target = Path(path)
    graph = graph_of(model.binding)
    if circuit.spans:
        raise ResultError(
            "the MIB format has no place for spans",
            why="its edges are the same at all positions",
            instead="save_circuit",
        )
    kept, values = circuit.mask(graph).numpy(), np.zeros(len(graph.edges))
    for name, score in (_scores(circuit) if scores is None else scores).items():
        values[graph.number(name)] = score
    layers, heads, _, parallel = _format(graph)
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": model.facts.d_model}  # fmt: skip
    inside = reached(graph, kept)[0] & leading(graph, kept)[0]
    nodes = {_node(graph, w): bool(inside[w]) for w in range(len(graph.writers))}
    if target.suffix == ".json":
        content = _json(graph, cfg, nodes, kept, values)
    elif target.suffix == ".pt":
        content = _pt(graph, cfg, nodes, kept, values)
    else:
        raise ResultError(
            f"{target.name} is no MIB file", why="they end in .json or .pt", instead="circuit.json"
        )
    return written(target, content, overwrite=overwrite)


def _scores(circuit: Circuit) -> Mapping[str, float]:
    if circuit.result is None:
        return circuit.scores
    table = circuit.result.tables["edges"]
    return dict(zip(table["edge"], table["score"].astype(float), strict=True))


def _json(
    graph: Graph, cfg: dict[str, Any], nodes: dict[str, bool], kept: np.ndarray, values: np.ndarray
) -> bytes:
    edges = {
        name: {"score": float(values[edge]), "in_graph": bool(kept[edge])}
        for edge, names in edge_copies(graph)
        for name in names
    }
    told = {name: {"in_graph": inside} for name, inside in {**nodes, "logits": True}.items()}
    return json.dumps({"cfg": cfg, "nodes": told, "edges": edges}).encode()


def _columns(layers: int, heads: int) -> list[str]:
    """The destinations in the order of a matrix's columns."""
    out = []
    for layer in range(layers):
        out += [f"a{layer}.h{h}<{letter}>" for letter in "qkv" for h in range(heads)] + [f"m{layer}"]
    return [*out, "logits"]


def _pt(
    graph: Graph, cfg: dict[str, Any], nodes: dict[str, bool], kept: np.ndarray, values: np.ndarray
) -> bytes:
    import torch

    columns = _columns(cfg["n_layers"], cfg["n_heads"])
    place = {name: i for i, name in enumerate(columns)}
    row = {name: i for i, name in enumerate(nodes)}
    scores, inside = (
        torch.zeros(len(nodes), len(columns)),
        torch.zeros(len(nodes), len(columns), dtype=torch.bool),
    )
    for edge, names in edge_copies(graph):
        for name in names:
            source, _, destination = name.partition("->")
            scores[row[source], place[destination]] = float(values[edge])
            inside[row[source], place[destination]] = bool(kept[edge])
    data = {"cfg": cfg, "src_nodes": list(nodes), "dst_nodes": columns, "edges_scores": scores, "edges_in_graph": inside,
            "nodes_in_graph": torch.tensor(list(nodes.values()))}  # fmt: skip
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def read_mib(path: str | Path, model: Model, *, copies: Literal["same", "sum"] = "same") -> Circuit:
    """A circuit from a MIB file (.json or .pt). Its scores are those of all edges, in the circuit or not.

    The format does not say how it was found: the choices are the defaults and hold no prompts, the model's hash is empty.

    copies: with key/value heads shared by several query heads, "same" refuses edges whose copies have different scores, "sum"
    adds them up (an importance of the whole edge is the sum of those of its copies). Which edges are in must always agree.

    Raises
    ------
    ResultError: no such file, one of another form, neuron masks. SiteError: a circuit of another model (says what differs), an
    unknown node, copies that contradict each other.
    """
    if copies not in ("same", "sum"):
        raise ResultError(
            f"copies={copies!r}",
            why="copies of an edge agree or add up",
            instead='copies="same" or copies="sum"',
        )
    source = Path(path)
    cfg, edges = _read_pt(source) if source.suffix == ".pt" else _read_json(source)
    graph = graph_of(model.binding)
    layers, heads, groups, parallel = _format(graph)
    _same_model(cfg, {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": model.facts.d_model})  # fmt: skip
    _known(edges, graph)
    kept, scores = [], {}
    for edge, names in edge_copies(graph):
        found = [edges[name] for name in names]
        inside = {bool(f["in_graph"]) for f in found}
        values = {float(f.get("score", 0.0)) for f in found}
        if len(inside) > 1 or (len(values) > 1 and copies == "same"):
            raise SiteError(f"the copies of {graph.name(edge)} contradict each other", why=f"{_told(names, found)}: here the {heads // groups} query heads of a group read one key/value head",
                            instead="copies='sum' adds up scores; a circuit that keeps one copy and not the other has no counterpart here")  # fmt: skip
        scores[graph.name(edge)] = sum(float(f.get("score", 0.0)) for f in found) / (
            1 if copies == "sum" else len(found)
        )
        if inside == {True}:
            kept.append(graph.name(edge))
    return Circuit(tuple(kept), graph.shape, "", how=f"read from {source.name}", scores=scores)


def _told(names: list[str], found: list[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{name} is {'in' if f['in_graph'] else 'out'} at {float(f.get('score', 0.0)):.3g}"
        for name, f in zip(names, found, strict=True)
    )


def _same_model(cfg: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    for name, value in mine.items():
        if name in cfg and cfg[name] != value:
            raise SiteError("this circuit is of another model", why=f"{name}: {cfg[name]} in the file, {value} in this model",
                            instead="load the model that it was found in")  # fmt: skip


def _known(edges: Mapping[str, Any], graph: Graph) -> None:
    mine = {name for _, names in edge_copies(graph) for name in names}
    for name in edges:
        if name not in mine:
            ends = {end for known in mine for end in known.split("->")}
            strange = next((end for end in name.split("->") if end not in ends), name)
            close = nearest(strange, ends)
            raise SiteError(f'"{name}" is no edge of this model', why=f'"{strange}" is no node of it' if strange != name else "it goes backwards",
                            instead=f"did you mean {' or '.join(close)}?" if close else "nodes are input, a5.h3, m5 and logits")  # fmt: skip
    missing = next((name for name in mine if name not in edges), None)
    if missing is not None:
        raise SiteError(
            "this file lacks edges of this model",
            why=f"{len(mine) - len(edges):,} of {len(mine):,}, among them {missing}",
            instead="write the whole graph, with in_graph false for what is out",
        )


def _read_json(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
    raw = read_json(path, _JSON_KEYS)
    if any(key in node for node in raw["nodes"].values() for key in _NEURONS):
        raise _neurons(path)
    for name, told in raw["edges"].items():
        if not isinstance(told, dict) or "in_graph" not in told:
            raise ResultError(f'{path}: edge "{name}" does not say whether it is in', why=f"it holds {told!r}",
                              instead='{"score": 0.1, "in_graph": true}')  # fmt: skip
    return raw["cfg"], raw["edges"]


def _neurons(path: Path) -> ResultError:
    return ResultError(f"{path} masks neurons of nodes", why="circuits here are of edges or of whole nodes",
                       instead="a file of edges or nodes")  # fmt: skip


def _read_pt(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Mapping[str, Any]]]:
    import torch

    try:
        raw = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ResultError(f"there is no {path}", instead="give the path of a circuit file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ResultError(f"{path} cannot be read", why=f"it holds more than tensors and plain values, or is damaged: {first}",
                          instead="a file written by torch.save of tensors, numbers and text; other pickles run code and are never loaded") from None  # fmt: skip
    missing = [k for k in _PT_KEYS if not isinstance(raw, dict) or k not in raw]
    if missing:
        raise ResultError(
            f"{path} is no MIB circuit", why=f"it has no {', '.join(missing)}", instead="a file of to_pt"
        )
    if any(key in raw for key in _NEURONS):
        raise _neurons(path)
    return raw["cfg"], _from_matrix(path, raw)


def _from_matrix(path: Path, raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Edges by name; entries of the matrix that are no edge (a later node to an earlier one) are left out."""
    rows, columns = list(raw["src_nodes"]), list(raw["dst_nodes"])
    scores: torch.Tensor = raw["edges_scores"]
    inside: torch.Tensor = raw["edges_in_graph"]
    size = (len(rows), len(columns))
    for name, mask in (("edges_scores", scores), ("edges_in_graph", inside)):
        if tuple(mask.shape) != size:
            raise ResultError(f"{path}: {name} has the shape {tuple(mask.shape)}", why=f"the file has {size[0]} sources and {size[1]} destinations",
                              instead="masks of shape [source, destination]")  # fmt: skip
    parallel = bool(raw["cfg"].get("parallel_attn_mlp", False))
    values, kept = scores.tolist(), inside.bool().tolist()
    return {
        f"{source}->{to}": {"score": values[i][j], "in_graph": kept[i][j]}
        for i, source in enumerate(rows)
        for j, to in enumerate(columns)
        if _before(source, to, parallel=parallel)
    }


def _before(source: str, to: str, *, parallel: bool) -> bool:
    """Whether a source writes before a destination reads; True also for names that are none, which are refused elsewhere."""
    if source == "input" or to == "logits":
        return True
    try:
        first, second = (int(name.partition(".")[0][1:]) for name in (source, to))
    except ValueError:
        return True
    return first < second or (first == second and source[0] == "a" and to[0] == "m" and not parallel)
