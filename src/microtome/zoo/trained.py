"""Trained specimens: what each one's module says of itself, and how it becomes a model with its mechanism confirmed.

The mechanism is the published one. Whether these weights follow it is measured: edges cut one at a time, and all that does
not belong to it replaced by its mean at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from microtome.errors import ModelError, TaskError, TrainingError
from microtome.zoo import shipped
from microtome.zoo.mechanism import Mechanism, Variable
from microtome.zoo.spec import all_edges
from microtome.zoo.training import Loss, Measure, Recipe, Trained, train

if TYPE_CHECKING:
    from microtome.zoo.catalog import Entry
    from microtome.zoo.specimen import Specimen

__all__ = ["LOST", "Asked", "Claim", "Subject", "build", "entry", "reproduce", "ship"]

LOST = 0.05
"""Share of answers that must be lost when an edge alone is cut (zero ablation) for the edge to count as confirmed."""
EXAMPLES = 1024
"""Inputs on which edges are confirmed, where the domain has more."""


@dataclass(frozen=True)
class Claim:
    """The published mechanism in the terms of one trained module: nodes, edges and variables by Microtome's names."""

    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    variables: tuple[Variable, ...]


@dataclass(frozen=True)
class Asked:
    """One input as words (BOS left out), the word that answers it, and its variables."""

    words: tuple[str, ...]
    answer: str
    variables: Mapping[str, str]

    @property
    def text(self) -> str:
        """As a prompt."""
        return " ".join(self.words)


class Subject:
    """What one trained model of the zoo is: its recipe, its data and the published mechanism.

    Attributes
    ----------
    name, summary, source: for the catalogue. words: the vocabulary by id. bos: whether "<bos>" is put first (then words[0]).
    differs: the variables in which the prompts of a pair differ. store: dtype in which weights ship. keep: steps that ship.
    """

    name: str
    summary: str
    source: str
    words: tuple[str, ...]
    bos: bool = True
    differs: frozenset[str] = frozenset()
    store: str = "float32"
    keep: tuple[int, ...] = ()

    def recipe(self, *, seed: int, **options: Any) -> Recipe:
        """The recipe of one seed; options change it (sizes, for instance). Raises ModelError for an unknown option."""
        raise NotImplementedError

    def loss(self, recipe: Recipe) -> Loss:
        """What is made small."""
        raise NotImplementedError

    def measure(self, recipe: Recipe) -> Measure:
        """What is measured while it trains, and of the shipped weights; on data from the recipe's seed."""
        raise NotImplementedError

    def examples(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """Inputs on which the mechanism is confirmed. Shapes: ids [input, pos], answer token at the last position [input]."""
        raise NotImplementedError

    def claim(self, module: Any, recipe: Recipe) -> Claim:
        """The published mechanism, with the heads of this module that play its parts."""
        raise NotImplementedError

    def facts(self, module: Any, recipe: Recipe) -> dict[str, float]:
        """Numbers that the publication speaks of, measured on this module; they ship with the weights."""
        return {}

    def pair(self, random: np.random.Generator) -> tuple[Asked, Asked]:
        """A clean and a corrupt input of one length."""
        raise NotImplementedError

    def alike(self, asked: Asked, random: np.random.Generator) -> Asked:
        """Another input with the same variables. Raises TaskError where every token is a variable."""
        raise TaskError(
            f"{self.name} has no donors",
            why="every token of an input is a variable: no other text has the same values",
            instead="report this control as not run",
        )

    def other(self, clean: Asked, corrupt: Asked, random: np.random.Generator) -> Asked:
        """Clean with a third value of what differs. Raises as `alike`."""
        return self.alike(clean, random)

    def ids(self, asked: Asked) -> list[int]:
        """Token ids, BOS first where there is one."""
        return [*([0] if self.bos else []), *(self.words.index(w) for w in asked.words)]


def entry(subject: Subject) -> Entry:
    """The row of the catalogue."""
    from microtome.zoo.catalog import Entry

    return Entry(subject.name, "B", subject.summary, partial(build, subject))


def build(
    subject: Subject,
    *,
    seed: int = 0,
    train: bool = False,
    n: int = 32,
    folder: str | Path | None = None,
    **options: Any,
) -> Specimen:
    """The shipped weights where they are of this recipe and seed, else a training; then the mechanism, confirmed.

    Parameters
    ----------
    seed: of the training and of the task's pairs. train: train even if weights ship. n: pairs of the task.
    folder: where checkpoints go while it trains. options: changes to the recipe, as the subject takes them.

    Raises
    ------
    TrainingError: the accuracy was not reached. ModelError: an unknown option, or shipped weights that are not what they
    should be. TaskError: fewer than n different pairs.
    """
    from microtome.facade import Model
    from microtome.model.load import load_module
    from microtome.zoo.specimen import Specimen
    from microtome.zoo.trained_pairs import pair_task
    from microtome.zoo.words import word_tokenizer

    recipe = subject.recipe(seed=seed, **options)
    made: Any = None if train else _shipped(recipe)
    if made is None:
        made = run(subject, recipe, folder)
    module = made.module() if isinstance(made, shipped.Shipped) else made.module
    module.config.name_or_path = f"zoo/{subject.name}"
    words = subject.words[1:] if subject.bos else subject.words
    model = Model(load_module(module, tokenizer=word_tokenizer(words, bos=subject.bos)))
    return Specimen(
        subject.name,
        seed,
        "B",
        model,
        confirm(subject, module, recipe),
        pair_task(model, subject, n=n, seed=seed),
        subject.words,
        training=made,
    )


def _shipped(recipe: Recipe) -> shipped.Shipped | None:
    """What ships for exactly this recipe. A training that is known to fail is run again, so that it says so itself."""
    if recipe.name not in shipped.names():
        return None
    found = shipped.read(recipe.name)
    return found if found.recipe == recipe and found.outcome == "reached" else None


def run(subject: Subject, recipe: Recipe, folder: str | Path | None = None) -> Trained:
    """Train by a recipe of this subject. Raises TrainingError."""
    return train(recipe, subject.loss(recipe), subject.measure(recipe), folder=folder)


def reproduce(
    subject: Subject, *, seed: int = 0, to: Path = shipped.FOLDER, **options: Any
) -> shipped.Shipped:
    """Train and store what ships: weights, or the curve of a training that failed. See `shipped.write`."""
    recipe = subject.recipe(seed=seed, **options)
    began = time.perf_counter()
    try:
        done = run(subject, recipe)
    except TrainingError as error:
        return shipped.record_failure(recipe, error, seconds=time.perf_counter() - began, folder=to)
    return ship(subject, done, seconds=time.perf_counter() - began, to=to)


def ship(subject: Subject, done: Trained, *, seconds: float, to: Path = shipped.FOLDER) -> shipped.Shipped:
    """Store a training of this subject with its facts. See `shipped.write`."""
    return shipped.write(
        done,
        partial(_both, subject, done.recipe),
        seconds=seconds,
        dtype=subject.store,
        keep=subject.keep,
        mechanism=lambda module: json.loads(confirm(subject, module, done.recipe).to_json()),
        folder=to,
    )


def _both(subject: Subject, recipe: Recipe, module: Any) -> dict[str, float]:
    """What is measured while it trains, and the facts."""
    return {**subject.measure(recipe)(module), **subject.facts(module, recipe)}


def confirm(subject: Subject, module: Any, recipe: Recipe) -> Mechanism:
    """The claimed mechanism with what each of its edges is worth on these weights, and what it is worth as a whole."""
    claim = subject.claim(module, recipe)
    config = module.config
    ids, answers = subject.examples(recipe)
    shape = {"n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}
    every = all_edges(*shape.values(), mlp=config.intermediate_size > 0)
    lost = losses(module, ids, answers, every)
    others = [e for e in every if e not in claim.edges]
    found = tuple(e for e in claim.edges if lost[e] > LOST)
    return Mechanism(
        name=subject.name,
        **shape,
        mlp=config.intermediate_size > 0,
        nodes=claim.nodes,
        edges=claim.edges,
        confirmed=found,
        confirmed_last=found,
        variables=claim.variables,
        lost={e: round(lost[e], 6) for e in every},
        whole=round(accuracy_without(module, ids, answers, others), 6),
    )


def losses(module: Any, ids: Tensor, answers: Tensor, edges: Sequence[str]) -> dict[str, float]:
    """Per edge the share of answers lost when it alone carries zero. Shapes: ids [input, pos], answers [input]."""
    from microtome.zoo.oracle import forward

    def right(cut: Sequence[str]) -> float:
        return float((forward(module, ids, cut)[0][:, -1].argmax(-1) == answers).float().mean())

    whole = right(())
    return {edge: whole - right((edge,)) for edge in edges}


def accuracy_without(module: Any, ids: Tensor, answers: Tensor, edges: Sequence[str]) -> float:
    """Accuracy when all these edges carry what their source writes on average at each position."""
    from microtome.zoo.oracle import forward, parts

    means = {source: written.mean(0, keepdim=True) for source, written in parts(module, ids).items()}
    logits = forward(module, ids, edges, means)[0][:, -1]
    return float((logits.argmax(-1) == answers).float().mean())


def choose(what: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their defaults.

    Raises
    ------
    ModelError: an option that this recipe does not take.
    """
    if unknown := sorted(set(given) - set(known)):
        raise ModelError(
            f"{what} takes no {unknown[0]!r}",
            why=f"its recipe takes {', '.join(known) or 'no options'}",
            instead="leave it out",
        )
    return {**known, **given}
