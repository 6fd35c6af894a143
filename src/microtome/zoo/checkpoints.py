"""Training dynamics: any method over a list of checkpoints, with one call.

`dynamics(z, "grokking")` gives the progress measures of Nanda et al. 2023 (arXiv 2301.05217), `dynamics(z, "induction")` those
of Olsson et al. 2022 (arXiv 2209.11895); any function from a model to numbers, or to a Result, does as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from microtome.errors import ModelError
from microtome.results import seeds
from microtome.results.frozen import digest
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.zoo.specimen import Specimen

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Checkpoints", "Method", "dynamics", "training_dynamics"]

Method = Callable[["Model"], "Mapping[str, float] | Result"]
"""(model) -> numbers by name, or a Result whose cells are the numbers."""
MOST = 12
"""Cells of a Result that are followed: those that are largest at the last checkpoint."""
SAME = 1e-6
"""Largest relative difference of a measure between two runs on one checkpoint."""
NULLS, ALPHA = 19, 0.05
"""Models with scrambled weights, and the level of their rank test: the smallest p that so many can reach."""
MANDATORY = ("repeat", "scrambled_weights")


@dataclass(frozen=True)
class Checkpoints:
    """Models by step, in order.

    Raises
    ------
    ModelError: fewer than two, or steps that do not rise.
    """

    steps: tuple[int, ...]
    models: tuple[Model, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if len(self.steps) < 2 or not rising or len(self.steps) != len(self.models):
            raise ModelError(
                f"these are no checkpoints to follow: steps {list(self.steps)}",
                why="a curve needs two models or more, each at a later step",
                instead="give (step, model) pairs in order, or a trained specimen",
            )

    @cached_property
    def hash(self) -> str:
        """Of steps and models."""
        told = [f"{step}:{model.hash}" for step, model in zip(self.steps, self.models, strict=True)]
        return digest("|".join(told).encode())

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Of the last model."""
        return self.models[-1].numerics


def dynamics(
    checkpoints: Specimen | Sequence[tuple[int, Model]],
    method: str | Method,
    *,
    nulls: int = NULLS,
    seed: int = 0,
) -> Result:
    """Run one method on every checkpoint.

    Parameters
    ----------
    checkpoints: a trained specimen (its own are taken), or (step, model) pairs in the order of steps.
    method: "grokking" or "induction" (they need the specimen that they are about), or any function of a model. One with a
        method `fit(model)` is fitted to the last checkpoint first, and to each null model for itself.
    nulls: models with the last checkpoint's weights in random order, on which the method runs as well.

    Raises
    ------
    ModelError: no checkpoints, an unknown name, or a specimen of another task.
    """
    from microtome.zoo.progress import named

    made = method if callable(method) else named(method, checkpoints)
    pairs = checkpoints.checkpoints() if isinstance(checkpoints, Specimen) else list(checkpoints)
    held = Checkpoints(tuple(step for step, _ in pairs), tuple(model for _, model in pairs))
    return training_dynamics(held, made, nulls=nulls, seed=seed)


@technique("training_dynamics", "1", controls=MANDATORY, mandatory=MANDATORY, figure="microtome.figures.dynamics:draw", random=True)  # fmt: skip
def training_dynamics(
    checkpoints: Checkpoints, method: Method, *, nulls: int = NULLS, seed: int = 0
) -> Result:
    """What a method says of each checkpoint of a training. See `dynamics`.

    Table "progress": step, measure, value, null_low, null_high (the range over models with scrambled weights). Controls: a
    second run on the last checkpoint gives the same; no network with scrambled weights goes as far, in the measure that
    changed most (its rank among them gives p).

    Raises
    ------
    ModelError: the method gives other measures at another step, or none; fewer than one null.
    """
    if nulls < 1:
        raise ModelError(
            f"nulls is {nulls}", why="a curve is shown beside its null", instead="nulls=1 or more"
        )
    last = checkpoints.models[-1]
    fitted = _fit(method, last)
    rows: list[dict[str, float]] = []
    for done, model in enumerate(checkpoints.models, 1):
        rows.append(_numbers(fitted(model)))
        progress(done, len(checkpoints.models) + nulls + 1, "models", "checkpoints")
    names = _followed(rows)
    again = _numbers(fitted(last))
    random = []
    for k in range(nulls):
        twin = scrambled(last, seeds.child(seed, f"scrambled/{k}"))
        random.append(_numbers(_fit(method, twin)(twin)))
        progress(len(rows) + k + 2, len(rows) + nulls + 1, "models", "nulls")
    null = {name: _range([r[name] for r in random if name in r]) for name in names}
    control, p = _scrambled(names, rows, random)
    ran = [_repeat(names, rows[-1], again), control]
    table = [
        {"step": step, "measure": name, "value": row[name], "null_low": null[name][0], "null_high": null[name][1]}
        for step, row in zip(checkpoints.steps, rows, strict=True)
        for name in names
    ]  # fmt: skip
    return Result(
        "training_dynamics",
        tables={"progress": pd.DataFrame(table)},
        controls=ran,
        verdict=verdict(ran, MANDATORY, p, ALPHA, 1 / (1 + nulls)),
    )


def scrambled(model: Model, seed: int) -> Model:
    """The same model with the entries of every weight in random order: equal norms, no mechanism."""
    from microtome.facade import Model as Made
    from microtome.model.load import load_module

    module: Any = copy.deepcopy(model.hf)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    module.config.name_or_path = f"{module.config.name_or_path}/scrambled"
    return Made(load_module(module, tokenizer=model.tokenizer))


def _fit(method: Method, model: Model) -> Method:
    fit: Any = getattr(method, "fit", None)
    fitted: Method = method if fit is None else fit(model)
    return fitted


def _numbers(found: Mapping[str, float] | Result) -> dict[str, float]:
    """Measures by name; of a Result the cells of its frame."""
    if not isinstance(found, Result):
        return {str(name): float(value) for name, value in found.items()}
    frame = found.frame()
    several = frame["metric"].nunique() > 1
    out = {}
    for row in frame.to_dict("records"):
        at = "" if row["position"] is None or row["position"] != row["position"] else f"@{row['position']}"
        out[f"{row['site']}{at}" + (f" ({row['metric']})" if several else "")] = float(row["value"])
    return out


def _followed(rows: list[dict[str, float]]) -> list[str]:
    if any(row.keys() != rows[0].keys() for row in rows) or not rows[0]:
        other = sorted({name for row in rows for name in row.keys() ^ rows[0].keys()})
        raise ModelError(
            f"the method does not give the same measures at every step: {', '.join(other[:4]) or 'it gives none'}",
            why="a curve has one value per step",
            instead="a method with fixed names",
        )
    names = list(rows[0])
    if len(names) <= MOST:
        return names
    size = {name: abs(rows[-1][name]) for name in names}
    kept = set(sorted(names, key=lambda n: -size[n])[:MOST])
    return [name for name in names if name in kept]


def _range(values: list[float]) -> tuple[float, float]:
    known = [v for v in values if np.isfinite(v)]
    return (min(known), max(known)) if known else (float("nan"), float("nan"))


def _repeat(names: list[str], first: dict[str, float], second: dict[str, float]) -> Control:
    off = max(abs(first[n] - second[n]) / max(1.0, abs(first[n])) for n in names)
    return Control(
        "repeat",
        "that the curve is the method's own noise",
        f"a second run on the last checkpoint agrees within {SAME:g}",
        off,
        bool(off <= SAME),
        len(names),
        gates=True,
    )


def _scrambled(
    names: list[str], rows: list[dict[str, float]], random: list[dict[str, float]]
) -> tuple[Control, float]:
    """The measure that moved most, relative to its largest value, against models with scrambled weights; and the p of its
    rank among them in the direction in which it moved.
    """

    def moved(name: str) -> float:
        values = np.array([row[name] for row in rows])
        scale = float(np.abs(values).max())
        return abs(values[-1] - values[0]) / scale if scale > 0 else 0.0

    name = max(names, key=moved)
    first, last = rows[0][name], rows[-1][name]
    # a null model that has no such number counts as one that goes as far
    drawn = np.array([r.get(name, np.nan) for r in random])
    way = 1.0 if last >= first else -1.0
    hits = int((~(way * drawn < way * last)).sum())
    null = _range(drawn.tolist())
    control = Control(
        "scrambled_weights",
        "that any network with these weights in any order would score so",
        "in the measure that moved most, no network with scrambled weights goes as far",
        {"measure": name, "first": first, "last": last, "as_far": hits},
        hits == 0,
        len(random),
        null=null if np.isfinite(null).all() else None,
    )
    return control, (1 + hits) / (1 + len(random))
