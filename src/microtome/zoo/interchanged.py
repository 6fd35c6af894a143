"""Strictly trained models as specimens: the shipped weights, or a training; the program's mechanism in the nodes of each.

Nodes and edges are those that training and held-out inputs hold to the program (`interchange.Interchange.measure`); an edge is
confirmed when enough answers are lost once it alone carries zero.
"""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from microtome.zoo import shipped
from microtome.zoo.exchange import run
from microtome.zoo.interchange import NAMES, Interchange, recipe
from microtome.zoo.mechanism import Mechanism, Variable
from microtome.zoo.training import Recipe, train

if TYPE_CHECKING:
    from microtome.zoo.specimen import Specimen

__all__ = ["build", "interchange_detect_abc", "interchange_first_occurrence", "interchange_induction", "interchange_shift", "reproduce"]  # fmt: skip

LOST = 0.01
"""Share of answers, of all or of those at the last position, that must be lost without an edge for it to count as confirmed.
Less than for models with a published mechanism: without an edge outside the mechanism none are lost, and rare answers are few."""


def build(
    name: str, *, seed: int = 0, n: int = 32, train: bool = False, steps: int | None = None
) -> Specimen:
    """The strictly trained model of one program.

    Parameters
    ----------
    seed: of the training (which head holds what, weights, data) and of the task's pairs. n: pairs.
    train: train even where weights ship. steps: of the training (default: as shipped).

    Raises
    ------
    TrainingError: held-out inputs do not confirm the mechanism; with the curve. ModelError: no such program, or shipped
    weights that are not what was shipped. TaskError: fewer than n different pairs.
    """
    from microtome.facade import Model
    from microtome.model.load import load_module
    from microtome.zoo.pairs import pair_task
    from microtome.zoo.specimen import Specimen
    from microtome.zoo.words import word_tokenizer

    asked = recipe(name, seed=seed, steps=steps)
    data = Interchange(asked)
    found = None if train else _shipped(asked)
    made: Any = _trained(data) if found is None else found
    module = made.module if found is None else found.module()
    module.config.name_or_path = f"zoo/{asked.name}"
    model = Model(load_module(module, tokenizer=word_tokenizer(data.words[1:])))
    task = pair_task(model, data.program, data.words, n=n, seed=seed)
    return Specimen(
        asked.name,
        seed,
        "A",
        model,
        mechanism(data, module),
        task,
        data.words,
        program=data.program,
        training=made,
    )


def mechanism(data: Interchange, module: Any) -> Mechanism:
    """Which node holds which variable, and which of the program's edges these weights need."""
    rows = torch.arange(len(data.ids))
    right = run(module, data.ids)[0][:, 1:].argmax(-1) == data.labels

    def lost(edge: str) -> tuple[float, float]:
        """Shares of answers that are lost without it: of all, and of those at the last position."""
        still = data.exchange(module, rows, rows, edge=edge, by="zero")[:, 1:].argmax(-1) == data.labels
        gone = (right & ~still).double()
        return float(gone.mean()), float(gone[:, -1].mean())

    share = {edge: lost(edge) for edge in data.graph.edges}
    true = {edge.split("->")[0] for edge in data.edges}
    variables = [
        Variable(v.name, data.places[v.site], v.meaning, v.kind, tuple(map(str, v.values))) for v in data.compiled.variables
    ]  # fmt: skip
    return Mechanism(
        name=data.recipe.name,
        n_layers=data.layers,
        n_heads=data.heads,
        mlp=True,
        nodes=tuple(node for node in data.graph.sources if node in true),
        edges=data.edges,
        confirmed=tuple(e for e in data.edges if max(share[e]) > LOST),
        confirmed_last=tuple(e for e in data.edges if share[e][1] > LOST),
        decoys=data.empty,
        variables=tuple(variables),
        lost={e: round(all_, 6) for e, (all_, _) in share.items()},
    )


def reproduce(name: str, *, seed: int = 0, to: Path = shipped.FOLDER) -> shipped.Shipped:
    """Train the model of one program and store what ships. Raises as `build`."""
    data, began = Interchange(recipe(name, seed=seed)), time.perf_counter()
    made = _trained(data)
    return shipped.write(
        made,
        data.measure,
        seconds=time.perf_counter() - began,
        mechanism=lambda module: json.loads(mechanism(data, module).to_json()),
        folder=to,
    )


def _trained(data: Interchange) -> Any:
    return train(data.recipe, data.loss, data.measure)


def _shipped(asked: Recipe) -> shipped.Shipped | None:
    """What ships for exactly this recipe."""
    if asked.name not in shipped.names():
        return None
    found = shipped.read(asked.name)
    return found if found.recipe == asked and found.outcome == "reached" else None


interchange_shift, interchange_induction, interchange_first_occurrence, interchange_detect_abc = (
    partial(build, name) for name in NAMES
)
