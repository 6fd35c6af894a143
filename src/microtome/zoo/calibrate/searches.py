"""Adapters of the techniques that give a set: circuits, component sets, and subspaces that carry the answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import ControlError
from microtome.zoo.calibrate.adapters import ALPHA, Reading, Setting, parts
from microtome.zoo.calibrate.truths import RANDOM, Ablation, truth

if TYPE_CHECKING:
    from microtome.tasks.pairs import PairTask
    from microtome.zoo.specimen import Specimen

TAU = 1e-4
"""ACDC's threshold, squared logits: a change of 0.01 logits, the least that a true edge of a compiled program makes."""
SHARE = 10
"""Edge pruning keeps one edge in so many: it has no threshold of its own."""
ALIGNED: dict[str, Any] = {"k": 4, "steps": 100, "placebos": 1}
PAIRS = 64
EVALUATED = {"inflated": 30, "bootstraps": 0, "second": False}
"""What decides no verdict is left out or made short."""


def discovering(z: Specimen, seed: int, how: Any, by: str) -> Reading:
    """Every edge: scored by its score, flagged where it is in the circuit."""
    from microtome.circuits import Choices, circuit_discovery

    limits: dict[str, Any] = {}
    if how == "acdc":
        limits = {"threshold": TAU, "metric": "l2"}
    elif how == "edge-pruning":
        limits = {"size": max(1, len(z.mechanism.all_edges) // SHARE)}
    result = circuit_discovery(z.model, z.task, how=how, choices=Choices(ablation=by), seed=seed, **limits)
    table = result.tables["edges"]
    score = np.asarray(table["score"].to_numpy(np.float64))
    score = np.where(np.isnan(score), 0.0, np.clip(score, -1e30, 1e30))
    if how != "edge-pruning":  # log alpha: the gate's own sign counts
        score = np.abs(score)
    low, high = (table[c].to_numpy(np.float64) for c in ("low", "high"))
    return Reading(tuple(map(str, table["edge"])), score, table["kept"].to_numpy(bool), low, high)


def growing(z: Specimen, seed: int) -> Reading:
    """Every head and MLP: scored by its rank, flagged where it is in the set."""
    from microtome.methods import activation_patching, component_set

    ranking = activation_patching(
        z.model, z.task, sites=parts(z), positions="all", controls="none", alpha=ALPHA, seed=seed
    )
    result = component_set(z.model, z.task, ranking=ranking, held_out=None, alpha=ALPHA, seed=seed)
    frame = ranking.frame()
    names = tuple(map(str, frame["site"]))
    kept = set(result.tables["components"]["site"])
    return Reading(
        names, frame["value"].to_numpy(np.float64), np.array([n in kept for n in names], dtype=bool)
    )


def aligning(z: Specimen, seed: int) -> Reading:
    """The answer, in what each layer's attention and MLP add at the last position: flagged where the verdict is supported."""
    from microtome.methods import das

    task = _more(z, PAIRS)
    declared = task.clean.variables[0]
    variable = "answer" if "answer" in declared or len(task.differs) != 1 else next(iter(task.differs))
    half = task.n * 5 // 8
    # pairs without templates and entities are held out as they are
    training = task if task.groups else task.subset(range(half))
    held_out = None if task.groups else task.subset(range(half, task.n))
    names, rows = [], []
    for layer in range(z.mechanism.n_layers):
        for part in ("attn_out", "mlp_out") if z.mechanism.mlp else ("attn_out",):
            site = f"L{layer}.{part}"
            result = das(z.model, training, variable=variable, site=f"{site}@-1", held_out=held_out, alpha=ALPHA, seed=seed, **ALIGNED)  # fmt: skip
            cell = result.tables["cells"].iloc[0]
            gain = float(result.frame()["value"].iloc[0])
            names.append(site)
            rows.append((gain, result.verdict == "supported", float(cell["low"]), float(cell["high"])))
    scores, flags, low, high = (np.array(column) for column in zip(*rows, strict=True))
    return Reading(
        tuple(names),
        scores.astype(np.float64),
        flags.astype(bool),
        low.astype(np.float64),
        high.astype(np.float64),
    )


def evaluating(z: Specimen, seed: int) -> Reading:
    """The mechanism as a circuit, and circuits of random paths of its size: flagged where the verdict is supported.

    Raises
    ------
    ControlError: a graph in which random paths are the mechanism.
    """
    from microtome.circuits import Circuit, circuit_evaluation, graph

    shape = graph(z.model).shape
    chosen = {"mechanism": set(z.mechanism.edges)} | {name: random_paths(z, seed, name) for name in RANDOM}
    scores, flags = [], []
    for edges in chosen.values():
        circuit = Circuit(tuple(e for e in z.mechanism.all_edges if e in edges), shape, z.model.hash)
        result = circuit_evaluation(z.model, circuit, z.task, options=EVALUATED, seed=seed)
        measured = result.tables["measures"].set_index("quantity")["value"]
        scores.append(float(measured["faithfulness"]))
        flags.append(result.verdict == "supported")
    return Reading(tuple(chosen), np.array(scores), np.array(flags, dtype=bool))


def random_paths(z: Specimen, seed: int, name: str) -> set[str]:
    """Random paths from the embedding to the logits, until they have as many edges as the mechanism, and not all that it needs.

    Raises
    ------
    ControlError: no such set in a hundred draws.
    """
    from microtome.results.seeds import rng

    random = rng(seed, f"calibrate/{name}")
    into: dict[str, list[str]] = {}
    for edge in z.mechanism.all_edges:
        into.setdefault(edge.split("->")[1], []).append(edge)
    needed = truth(z, "edges", "corrupt").true
    for _ in range(100):
        found: set[str] = set()
        while len(found) < len(z.mechanism.edges):
            reader = "logits"
            while reader:
                edge = str(random.choice(into[reader]))
                found.add(edge)
                mine = [r for r in into if _writes(r) == edge.split("->")[0]]
                reader = str(random.choice(mine)) if mine else ""
        if not needed <= found:
            return found
    raise ControlError(f"random paths of {z.name} are its mechanism", why=f"its graph has {len(z.mechanism.all_edges)} edges",
                       instead="a specimen with decoys")  # fmt: skip


def _writes(reader: str) -> str:
    """The node that a reader belongs to."""
    return (
        reader.replace(".ln2_out", ".mlp_out") if reader.endswith(".ln2_out") else f"{reader.split('.')[0]}.z"
    )


def _more(z: Specimen, n: int) -> PairTask:
    """n pairs of a compiled program's domain where it has as many; else the specimen's own."""
    from microtome.errors import TaskError
    from microtome.zoo.pairs import DomainSource

    source = z.task.source
    if not isinstance(source, DomainSource):
        return z.task
    try:
        return source.task(n, z.seed)
    except TaskError:
        return z.task


def _circuits() -> list[Setting]:
    each: dict[Any, tuple[Ablation, ...]] = {
        "eap-ig": ("corrupt", "zero"),
        "eap": ("corrupt", "zero", "mean", "resample"),
        "eap-ig-activations": ("corrupt",),
        "relp": ("corrupt",),
        "exact": ("corrupt", "zero", "mean", "resample"),
        "acdc": ("corrupt", "zero", "mean", "resample"),
        "edge-pruning": ("corrupt",),
    }
    seconds = {"eap-ig": 1.0, "eap-ig-activations": 4.0, "edge-pruning": 2.5, "eap": 0.15, "relp": 0.15}
    rule = {"acdc": f"tau {TAU:g} squared logits", "edge-pruning": f"the best {100 // SHARE} % of edges kept"}
    share = "the smallest set with 80 % of the effect"
    out = []
    for how, ablations in each.items():
        for by in ablations:
            allowed = [by, None] if by == "corrupt" else [by]
            place = "choices.fields.ablation"
            out.append(Setting("circuit_discovery", f"{how}, {by}", partial(discovering, how=how, by=by), "edges", by, rule.get(how, share),
                               {"how": how, place: allowed}, seconds.get(how, 0.7), slow=how in ("eap-ig-activations", "edge-pruning")))  # fmt: skip
    return out


SETTINGS: tuple[Setting, ...] = (
    *_circuits(),
    Setting("circuit_evaluation", "the mechanism and random circuits", evaluating, "circuits", "corrupt", "verdict supported (alpha 0.05)", seconds=10.0, slow=True),
    Setting("component_set", "nodes", growing, "nodes", "corrupt", "the smallest set with 80 % of the effect", seconds=0.3),
    Setting("distributed_alignment_search", "the answer, by sublayer", aligning, "answer", "zero", f"verdict supported (alpha {ALPHA:g})",
            {"boundless": False}, seconds=12.0, slow=True),
)  # fmt: skip
