"""Toy techniques with effects, a task and a seed, for tests of what a record does with results: no model is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.results import Control, Labelled, Result, emit_look, technique, verdict

MIDDLE = []
"""What the next call of `measure` does in its middle."""
SITES = ("L9H6.z", "L9H7.z", "L3.mlp_out")


@dataclass(frozen=True)
class Task:
    """Prompts of a family; another sample has another hash."""

    name: str = "ioi"
    hash: str = "77c0" * 8


class Facts:
    family = "toys"


class Model:
    """A model that the record keeps."""

    card, facts = "a toy", Facts()

    def __init__(self, name="toy", mark="abcd" * 8):
        self.name, self.hash = name, mark


def effects(values, sites=SITES, prompts=None):
    """[site, prompt] as effects of one metric."""
    values = np.asarray(values, dtype=np.float32)
    labels = tuple(range(values.shape[1])) if prompts is None else tuple(prompts)
    coords = {"site": tuple(sites), "prompt": labels, "metric": ("logit_diff",)}
    return Labelled(values[:, :, None], ("site", "prompt", "metric"), coords)


def during(function, *given, **named):
    """Call `measure`, with `function` in its middle."""
    MIDDLE.append(function)
    try:
        return measure(*given, **named)
    finally:
        MIDDLE.clear()


def _define():  # local, so that the registry of the whole test run knows nothing of them
    @technique("toy_effects", "1", random=True)
    def measure(model, task, *, sites=SITES, size=-0.5, by="mean", fail="", seed=0):
        """Effects of `size` (a number, or an array [site, prompt])."""
        if MIDDLE:
            MIDDLE.pop()()
        if fail:
            raise ValueError(fail)
        values = np.full((len(sites), 4), size) if np.ndim(size) == 0 else size
        control = Control("identity", "a wrong patch", "no change", 0.0, True, 1)
        return Result("toy_effects", effects=effects(values, sites), controls=(control,), verdict=verdict((control,), ("identity",)))  # fmt: skip

    @technique("toy_stages", "1")
    def stages(model, task, *, size=-0.5, fail=""):
        """Calls `measure`, looks itself, and gives a result without effects."""
        inner = measure(model, task, size=size)
        emit_look(model, ["inside"], ["L5.mlp_out"])
        if fail:
            raise ValueError(fail)
        return Result("toy_stages", children=(inner,))

    @technique("toy_beside", "1")
    def beside(model, other, task, *, sites=SITES):
        """Two models, of which the second is a parameter."""
        return Result("toy_beside", effects=effects(np.zeros((len(sites), 4)), sites))

    return measure, stages, beside


measure, stages, beside = _define()
