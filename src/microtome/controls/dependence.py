"""Whether two numbers per prompt depend on each other in any way: the Hilbert-Schmidt independence criterion, permuted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import FloatArray, as_clusters
from microtome.controls.intervals import Labels
from microtome.errors import ControlError
from microtome.results import seeds


@dataclass(frozen=True)
class Dependence:
    """An HSIC test: statistic, p, the smallest p that these draws can reach, and what was exchanged with what."""

    statistic: float
    p: float
    smallest_p: float
    draws: int
    within: str


def hsic(first: ArrayLike, second: ArrayLike) -> float:
    """The biased estimate tr(K H L H) / n^2 with Gaussian kernels (Gretton et al. 2005); 0 where either is constant.

    Shapes: [item] each. The kernels' width is the median distance between distinct values.
    """
    one, two = (_centred(np.asarray(v, dtype=np.float64)) for v in (first, second))
    return float((one * two).mean())


def hsic_test(
    first: ArrayLike, second: ArrayLike, groups: Labels, *, seed: int, draws: int = 999, name: str = "hsic"
) -> Dependence:
    """Permutation p of independence: larger HSIC than when the second's values change places.

    Shapes: first, second [prompt]; groups [prompt]. Values change places within groups of two prompts or more (a template's
    level would else count as dependence), and prompts alone in their group among themselves.

    Raises
    ------
    ControlError: lengths that differ, values that are not finite, or no two prompts that may change places.
    """
    a, b = (np.asarray(v, dtype=np.float64).reshape(-1) for v in (first, second))
    index = as_clusters(groups)
    if a.size != b.size or a.size != index.n:
        raise ControlError(f"{a.size} and {b.size} values of {index.n} prompts.", why="each prompt has one of each")  # fmt: skip
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ControlError("A value is not finite.", why="dependence is a matter of all prompts")
    alone = index.sizes[index.codes] == 1
    blocks = [np.flatnonzero(index.codes == c) for c in range(index.n_clusters) if index.sizes[c] > 1]
    blocks += [np.flatnonzero(alone)] if alone.sum() > 1 else []
    if not blocks:
        raise ControlError(f"{a.size} prompts cannot change places.", why="a permutation needs two")
    one, two = _centred(a), _centred(b)
    rng = seeds.rng(seed, f"controls.hsic_test/{name}")
    real = float((one * two).mean())
    hits = 0
    for _ in range(draws):
        order = np.arange(a.size)
        for block in blocks:
            order[block] = rng.permutation(block)
        hits += float((one * two[np.ix_(order, order)]).mean()) >= real * (1 - 1e-9)
    within = "all prompts" if len(blocks) == 1 and blocks[0].size == a.size else "prompts of one group"
    return Dependence(real, (1 + hits) / (1 + draws), _least(blocks, draws), draws, within)


def _least(blocks: list[NDArray[np.intp]], draws: int) -> float:
    """1 / (number of arrangements), or 1 / (draws + 1) where that is larger."""
    ways = 1.0
    for block in blocks:
        for n in range(2, block.size + 1):
            ways = min(ways * n, 1e18)
    return max(1 / ways, 1 / (1 + draws))


def _centred(values: FloatArray) -> FloatArray:
    """A centred Gaussian kernel matrix. Shapes: [item] -> [item, item]."""
    gaps = np.abs(values[:, None] - values[None])
    apart = gaps[gaps > 0]
    if not apart.size:
        return np.zeros_like(gaps)
    kernel = np.exp(-(gaps**2) / (2 * float(np.median(apart)) ** 2))
    out: FloatArray = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    return out
