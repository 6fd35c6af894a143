"""Which cells and which sets of components serve as controls: drawn by rule and seed, never by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import comb, prod

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ControlError
from microtome.results import seeds

IntArray = NDArray[np.int64]

PATIENCE = 200
"""Refused draws per wanted set before giving up."""


@dataclass(frozen=True)
class Strata:
    """Cells or components by kind ("resid", "head", "mlp", ...) and third of the model's layers.

    codes: int64 [cell]; names: [stratum], such as "head/middle".
    """

    codes: IntArray
    names: tuple[str, ...]

    @classmethod
    def of(cls, layers: Sequence[int], kinds: Sequence[str], n_layers: int) -> Strata:
        """From each cell's layer and kind. Raises ControlError for a layer outside 0 .. n_layers - 1."""
        if len(layers) != len(kinds) or not len(layers):
            raise ControlError(
                f"{len(layers)} layers and {len(kinds)} kinds.", why="each cell has one of each"
            )
        outside = [layer for layer in layers if not 0 <= layer < n_layers]
        if outside:
            raise ControlError(f"Layer {outside[0]} of a model of {n_layers} layers.")
        thirds = ("early", "middle", "late")
        labels = [f"{k}/{thirds[3 * layer // n_layers]}" for layer, k in zip(layers, kinds, strict=True)]
        names = tuple(sorted(set(labels)))
        return cls(np.array([names.index(label) for label in labels], dtype=np.int64), names)


def stratified_sample(
    strata: Strata, exclude: Iterable[int], *, seed: int, n: int = 32, name: str = "cells"
) -> IntArray:
    """A random sample of the cells not in `exclude`, spread over strata in proportion to their size.

    exclude: indices of the selected (and the structurally zero) cells. Every stratum with cells left gets at least
    one where n allows; the rest go by largest remainder. Returns sorted indices [<= n]: all that are left when there
    are no more than n. Raises ControlError when nothing is left.
    """
    left = np.ones(strata.codes.size, dtype=bool)
    left[sorted(set(exclude))] = False
    sizes = np.bincount(strata.codes[left], minlength=len(strata.names))
    if not left.any() or n < 1:
        raise ControlError(
            f"{n} cells from {int(left.sum())} that are not selected.", why="there is nothing to sample"
        )
    if sizes.sum() <= n:
        return np.flatnonzero(left).astype(np.int64)
    rng = seeds.rng(seed, f"controls.stratified_sample/{name}")
    chosen = [
        rng.choice(np.flatnonzero(left & (strata.codes == code)), size=count, replace=False)
        for code, count in enumerate(_allocate(sizes, n))
        if count
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _allocate(sizes: IntArray, n: int) -> IntArray:
    """Split n < sizes.sum() over strata: one each as far as n goes (largest first), then largest remainder."""
    occupied = np.flatnonzero(sizes)
    counts = np.zeros_like(sizes)
    counts[occupied[np.argsort(-sizes[occupied], kind="stable")][:n]] = 1
    room = sizes - counts
    spare = n - int(counts.sum())
    if spare == 0:
        return counts
    quota = spare * room / room.sum()
    whole = np.floor(quota).astype(np.int64)
    order = np.argsort(-(quota - whole), kind="stable")
    whole[order[: spare - int(whole.sum())]] += 1
    return counts + whole


def matched_sets(
    strata: Strata,
    target: Iterable[int],
    n_sets: int,
    *,
    seed: int,
    accept: Callable[[IntArray], bool] | None = None,
    name: str = "matched",
) -> IntArray:
    """Random sets with as many components of each kind and layer third as `target`: [set, component], sorted.

    Drawn from all components, members of the target included (the null is "a set of this shape", and most random
    sets share a few); never the target itself, never the same set twice. accept: a further condition, such as
    connectedness, that each set (indices [component]) must meet.

    Raises ControlError when there are not n_sets such sets, or too few draws are accepted.
    """
    wanted = np.array(sorted(set(target)), dtype=np.int64)
    _check_target(wanted, strata.codes.size)
    counts = np.bincount(strata.codes[wanted], minlength=len(strata.names))
    pools = [np.flatnonzero(strata.codes == code) for code in range(len(strata.names))]
    possible = prod(comb(pool.size, int(count)) for pool, count in zip(pools, counts, strict=True)) - 1
    rng = seeds.rng(seed, f"controls.matched_sets/{name}")

    def draw() -> IntArray:
        parts = [
            rng.choice(pool, size=int(c), replace=False) for pool, c in zip(pools, counts, strict=True) if c
        ]
        return np.sort(np.concatenate(parts)).astype(np.int64)

    return _distinct(draw, wanted, n_sets, possible, accept)


def top_pool_sets(
    scores: Sequence[float],
    target: Iterable[int],
    n_sets: int,
    *,
    seed: int,
    factor: int = 3,
    accept: Callable[[IntArray], bool] | None = None,
    name: str = "top",
) -> IntArray:
    """Random sets of the target's size n from the `factor` * n components of largest |score|: [set, component].

    A harder null than `matched_sets`: is this choice better than others among components that all look important?
    scores: [component], not NaN. Otherwise as `matched_sets`.
    """
    wanted = np.array(sorted(set(target)), dtype=np.int64)
    size = np.abs(np.asarray(scores, dtype=np.float64))
    _check_target(wanted, size.size)
    if np.isnan(size).any():
        raise ControlError("A score is NaN.", why="components are ranked by score")
    pool = np.argsort(-size, kind="stable")[: factor * wanted.size]
    possible = comb(pool.size, wanted.size) - int(np.isin(wanted, pool).all())
    rng = seeds.rng(seed, f"controls.top_pool_sets/{name}")

    def draw() -> IntArray:
        return np.sort(rng.choice(pool, size=wanted.size, replace=False)).astype(np.int64)

    return _distinct(draw, wanted, n_sets, possible, accept)


def _check_target(target: IntArray, n: int) -> None:
    if not target.size or target[0] < 0 or target[-1] >= n:
        raise ControlError(
            f"A target of {target.size} components out of {n}.", why="indices lie in 0 .. n - 1"
        )


def _distinct(
    draw: Callable[[], IntArray],
    target: IntArray,
    n_sets: int,
    possible: int,
    accept: Callable[[IntArray], bool] | None,
) -> IntArray:
    if possible < n_sets:
        raise ControlError(
            f"{n_sets} null sets were asked for, {max(possible, 0)} exist.",
            why="a null set has the target's shape and is not the target",
            instead=f"n_sets={possible}" if possible > 0 else "a smaller target, or another null",
        )
    seen = {target.tobytes()}
    found: list[IntArray] = []
    for _ in range(PATIENCE * n_sets):
        if len(found) == n_sets:
            break
        candidate = draw()
        if candidate.tobytes() in seen:
            continue
        seen.add(candidate.tobytes())
        if accept is None or accept(candidate):
            found.append(candidate)
    if len(found) < n_sets:
        raise ControlError(
            f"{len(found)} of {n_sets} null sets were found in {PATIENCE * n_sets} draws.",
            why="nearly all draws repeat an earlier set or fail the condition on sets",
            instead="fewer sets",
        )
    return np.stack(found)
