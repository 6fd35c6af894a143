"""A toy model of superposition as a transformer, so that its features have addresses like those of any other model.

Each prompt lists all features with their sizes, a token each ("a=0", "b=0.75", ...). A head that looks everywhere adds up the
features' directions: what it writes is W x, n features in m dimensions. The neurons of the MLP are ReLU(W^T W x + b), the
toy model's own outputs, and the logits of the words "a", "b", ... show them. W and b are trained from the seed; all else is
written down around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microtome.errors import ModelError, TrainingError
from microtome.zoo.mechanism import Variable
from microtome.zoo.spec import Array, Block, Head, Neurons, Spec
from microtome.zoo.superposition import GEOMETRIES, Geometry, Toys, dimensionality, geometry, train
from microtome.zoo.words import BOS
from microtome.zoo.written import Story, Values, Written, specimen

if TYPE_CHECKING:
    from microtome.zoo.decoys import Decoys
    from microtome.zoo.specimen import Specimen

__all__ = ["ARRANGEMENTS", "superposition"]

ARRANGEMENTS = ("digon", "pentagon", "square_antiprism")
"""Those that training ends in. Three features in two dimensions, and four in three, end as digons and features of their own."""
SIZES = ("0", "0.125", "0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1")
PROBABILITY, NEAR = 0.03, 0.02


def superposition(
    *, seed: int, n: int = 32, decoys: Decoys | None = None, arrangement: Geometry = "pentagon"
) -> Specimen:
    """Sparse features that share dimensions of the stream, each along a direction of its own: `z.directions("a")`.

    seed: of the training, pairs and decoys. arrangement: "digon" (2 features in 1 dimension), "pentagon" (5 in 2) or
    "square_antiprism" (8 in 3); features have that arrangement's dimensionality.

    Raises
    ------
    ModelError: another arrangement.
    TrainingError: training from this seed ended in another arrangement; with the curve.
    """
    if arrangement not in ARRANGEMENTS:
        raise ModelError(
            f"no model is trained to the arrangement {arrangement!r}",
            why="sparse features of equal importance do not end in it",
            instead=f"one of {', '.join(ARRANGEMENTS)}",
        )
    m, features = geometry(arrangement).shape
    toys = train([PROBABILITY], [[1.0] * features], m=m, seed=seed, starts=8, steps=2500)
    found = dimensionality(toys.weights[0])
    if not np.allclose(found, GEOMETRIES[arrangement], atol=NEAR):
        raise TrainingError(
            f"training from the seed {seed} gave no {arrangement}",
            why=f"its features have the dimensionalities {', '.join(f'{d:.2f}' for d in found)}",
            instead="give another seed",
            curve=tuple({"step": 100.0 * k, "loss": float(v)} for k, v in enumerate(toys.curve[:, 0])),
        )
    return specimen(_written(toys, arrangement), seed=seed, n=n, decoys=decoys)


def _written(toys: Toys, arrangement: str) -> Written:
    w, b = toys.weights[0], toys.bias[0]
    m, n = w.shape
    names = tuple("abcdefgh"[:n])
    words = (BOS, *(f"{name}={size}" for name in names for size in SIZES), *names)
    x, hidden, out = slice(0, n), slice(n, n + m), slice(n + m, 2 * n + m)
    d = 2 * n + m
    tokens = np.zeros((len(words), d))
    for k in range(n):
        for j, size in enumerate(SIZES):
            tokens[1 + len(SIZES) * k + j, k] = float(size)
    v, into = np.zeros((d, m)), np.zeros((d, n))
    v[x] = (n + 1) * w.T  # attention is 1 / (n + 1) everywhere
    into[hidden] = w
    unembed = np.zeros((d, len(words)))
    unembed[out, -n:] = np.eye(n)
    zero = np.zeros((d, m))
    head = Head(zero, np.zeros(m), zero, v, np.eye(d)[hidden], origin="L0H0.z")
    neurons = Neurons(into, b, np.eye(d)[out], np.zeros(d))
    spec = Spec(tokens, None, [Block([head], [neurons], 0)], unembed, n + 1, False, 1.0)
    directions: dict[str, Array] = {}
    variables = []
    for k, name in enumerate(names):
        rows = (
            (f"{name}.in", "embed", "size, at its own token", np.eye(d)[[k]]),
            (name, "L0H0.z", "size, along its direction among those of all", np.eye(d)[hidden].T @ w[:, [k]]),
            (f"{name}.out", "L0.mlp_out", "size as given back", np.eye(d)[[n + m + k]]),
        )
        for variable, site, meaning, direction in rows:
            variables.append(Variable(variable, site, f"feature {name}: {meaning}", "numerical", SIZES))
            directions[variable] = direction.reshape(1, d)
    return Written("superposition", "B", spec, words, _story(names), tuple(variables), directions)


def _story(names: tuple[str, ...]) -> Story:
    def surface(random: np.random.Generator) -> dict[str, str]:
        # at most one other feature, and at most half as large: features are sparse
        size = 4 + int(random.integers(5))
        return {
            "size": SIZES[size],
            "other": str(1 + int(random.integers(len(names) - 1))),
            "other_size": SIZES[int(random.integers(size // 2 + 1))],
        }

    def write(values: Values) -> list[tuple[str, str]]:
        large = names.index(values["largest"])
        small = (large + int(values["other"])) % len(names)
        sizes = {large: values["size"], small: values["other_size"]}
        return [("", f"{name}={sizes.get(k, '0')}") for k, name in enumerate(names)]

    return Story("superposition", {"largest": names}, ("largest",), surface, write, lambda v: v["largest"])
