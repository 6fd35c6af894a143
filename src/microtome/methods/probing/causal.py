"""Does the model use the direction: add, subtract, project out, and watch the answer to a question about the text.

The natural indirect effect of Marks & Tegmark (2023): texts of the negative class get the probe's displacement added at their
last token, texts of the positive class get it subtracted; 1 means that their answers moved as far as the classes' answers
are apart. The nulls: directions of the same estimator on shuffled labels, and noise of two kinds at equal norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.controls.clusters import FloatArray
from microtome.errors import TaskError
from microtome.methods.probing.asking import Asked
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Given, SourceSpec
from microtome.replay.sweep import Bench, sweep
from microtome.sites import At, parse

if TYPE_CHECKING:
    from microtome.facade import Model

WAYS = ("move", "project_out")
BLOCK = 50
"""Directions per sweep: each is a source of its own."""


@dataclass(frozen=True)
class Prompted:
    """Prompts of a causal test at one site: their bench, the values at the text's last token [prompt, d], their classes."""

    bench: Bench
    site: str
    values: Tensor
    ends: tuple[int, ...]
    truth: NDArray[np.bool_]


def prompted(
    model: Model, asked: Asked, rows: Sequence[int], truth: NDArray[np.bool_], site: str
) -> Prompted:
    """Prompts made ready.

    Raises
    ------
    TaskError: a site that is not the stream after a layer.
    """
    if parse(site).point not in ("resid_pre", "resid_mid", "resid_post"):
        raise TaskError(f"the causal test does not move {site}", why="it displaces the stream, where directions are read and written",
                        instead="probe L*.resid_post@-1")  # fmt: skip
    ids = [asked.ids[i] for i in rows]
    ends = tuple(asked.ends[i] for i in rows)
    plan = scoring([((asked.answer,),)] * len(ids), [((asked.wrong,),)] * len(ids))
    bench = Bench(model.binding, ids, plan, (metric("logit_diff"),), [{"text": (e, e + 1)} for e in ends])
    return Prompted(bench, site, _values(model, ids, ends, site), ends, np.asarray(truth, dtype=bool))


def _values(model: Model, ids: Sequence[Sequence[int]], ends: Sequence[int], site: str) -> Tensor:
    """The site's values at the texts' last tokens. [prompt, d]."""
    values: list[Tensor] = []
    for start in range(0, len(ids), 16):
        here = model.run([list(row) for row in ids[start : start + 16]], [site], logits=None)[site]
        values += [here[k, e] for k, e in enumerate(ends[start : start + 16])]
    return torch.stack(values)


def effects(p: Prompted, directions: FloatArray, way: str) -> tuple[FloatArray, FloatArray, int, int]:
    """What each direction does: [direction, prompt] toward the other class, nats; the base readings [prompt]; places written
    and planned.

    directions [direction, d], at the length of the displacement. way "move": added to texts of the negative class, subtracted
    from those of the positive one; "project_out": the component along it removed, signed toward the other class.
    """
    sign = torch.where(torch.as_tensor(p.truth), -1.0, 1.0).double()
    out = np.empty((len(directions), len(p.ends)))
    base = np.empty(len(p.ends))
    fired = planned = 0
    for start in range(0, len(directions), BLOCK):
        block = torch.as_tensor(np.asarray(directions[start : start + BLOCK]))
        cells, sources = [], {}
        for k, vector in enumerate(block):
            name = f"d{k}"
            cells.append(Cell((Change(parse(p.site), At(span="text"), name),), name))
            sources[name] = Given(partial(_moved, p.values, vector, sign, way))
        found = sweep(p.bench, cells, dict[str, SourceSpec](sources))
        fired, planned = fired + found.fired, planned + found.planned
        out[start : start + BLOCK] = found.effects[..., 0].numpy()
        base = found.base[:, 0].numpy()
    return out * sign.numpy(), base, fired, planned


def _moved(
    values: Tensor,
    vector: Tensor,
    sign: Tensor,
    way: str,
    point: str,
    layer: int,
    prompt: Tensor,
    col: Tensor,
    head: Tensor | None,
) -> Tensor:
    old = values[prompt.to(values.device)]
    if way == "move":
        return old + (sign[prompt].to(old)[:, None] * vector.to(old))
    unit = (vector / vector.norm()).to(old)
    return old - (old @ unit)[:, None] * unit


def displacement(weights: FloatArray, delta: FloatArray) -> FloatArray:
    """The direction at the length by which the class means lie apart along it: [d, column] and [d, column] -> [column, d].

    So it carries a text of one class to where the other class's mean is, as the probe sees it.
    """
    unit = weights / np.linalg.norm(weights, axis=0, keepdims=True)
    return np.asarray((unit * (unit * delta).sum(0, keepdims=True)).T, dtype=np.float64)


def indirect(moved: FloatArray, base: FloatArray, truth: NDArray[np.bool_]) -> float:
    """Natural indirect effect: the mean move over the distance between the classes' mean answers."""
    apart = float(base[truth].mean() - base[~truth].mean())
    return float(moved.mean()) / apart if apart else float("nan")


def at_site(p: Prompted, model: Model, site: str) -> Prompted:
    """The same prompts at another site."""
    return replace(p, site=site, values=_values(model, p.bench.ids, p.ends, site))
