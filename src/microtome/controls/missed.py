"""What an approximate map misses: a sample of known chances, verified exactly, and what it says of all that was not verified.

The strongest components of the map are flagged and all verified. Of the others each is drawn on its own with a known chance,
in proportion to how much it could matter (size of difference times size of gradient), over a floor that leaves no component
out. Counts are weighted by the inverse of the chance (Horvitz & Thompson 1952). The limits hold whatever the missed
components are: they are Chernoff bounds over all populations whose chances are at least the smallest one (where nothing was
found, the exact limit of a binomial), so they are wide, and never too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from microtome.controls.clusters import FloatArray, check_level
from microtome.controls.intervals import Labels
from microtome.controls.ratio import normalised_effect
from microtome.controls.sampling import IntArray
from microtome.errors import ControlError
from microtome.results import seeds
from microtome.results.verdicts import Control

FLOOR = 0.5
"""Share of the sample that is spread evenly."""
RELEVANT = 0.01
"""A component below this share of the largest is neither flagged nor called missed: that is rounding, not a part."""
RULES_OUT = "that parts as strong as the flagged ones were not flagged"


@dataclass(frozen=True)
class Sample:
    """Components to verify. index: sorted int64 [verified]; inclusion: the chance of each, 1 for the flagged; flagged: bool.

    n_cells: of the whole map; least: the smallest chance of any component outside those that are certain (1 if none is);
    expected: how many unflagged ones are drawn on average.
    """

    index: IntArray
    inclusion: FloatArray
    flagged: NDArray[np.bool_]
    n_cells: int
    least: float
    expected: float

    @property
    def n_rest(self) -> int:
        """Components that are not flagged."""
        return self.n_cells - int(self.flagged.sum())


def draw_verified(
    estimate: ArrayLike,
    weight: ArrayLike,
    *,
    top: int,
    n: int,
    seed: int,
    boost: ArrayLike | None = None,
    floor: float = FLOOR,
) -> Sample:
    """The `top` components of largest |estimate|, and about `n` others, each drawn on its own.

    Estimates under `RELEVANT` of the largest flag nothing, whatever their rank.

    estimate: mean effects [cell]; weight: how much each could matter, >= 0 [cell]; boost: how many times the even floor a
    component gets, >= 1 [cell] (where a gradient says nothing, its size is no reason to look elsewhere). All others are taken
    where there are no more than n.

    Raises ControlError for a map that is empty or not finite, or sizes that do not fit.
    """
    size, could = np.abs(np.asarray(estimate, np.float64)), np.asarray(weight, np.float64)
    extra = np.ones_like(size) if boost is None else np.asarray(boost, np.float64)
    if not size.size or not (size.shape == could.shape == extra.shape) or size.ndim != 1:
        raise ControlError(
            f"A map of shape {size.shape} with weights {could.shape}.", why="one of each per component"
        )
    if not (
        np.isfinite(size).all() and np.isfinite(could).all() and (could >= 0).all() and (extra >= 1).all()
    ):
        raise ControlError(
            "An estimate or weight is not finite, or a weight is negative.",
            why="they are chances to be drawn",
        )
    if not 1 <= top <= size.size or n < 0 or not 0 < floor <= 1:
        raise ControlError(
            f"{top} flagged and {n} others of {size.size} components, floor {floor:g}.", why="they must fit"
        )
    flagged = np.zeros(size.size, bool)
    first = np.argsort(-size, kind="stable")[:top]
    flagged[first[(size[first] >= RELEVANT * size.max()) | (first == first[0])]] = True
    chance = np.ones(size.size)
    rest = np.flatnonzero(~flagged)
    if rest.size > n:
        chance[rest] = _chances(could[rest], extra[rest], n, floor)
    taken = seeds.rng(seed, "controls.draw_verified").random(size.size) < chance
    index = np.flatnonzero(taken | flagged).astype(np.int64)
    uncertain = chance[chance < 1]
    least = float(uncertain.min()) if uncertain.size else 1.0
    return Sample(index, chance[index], flagged[index], size.size, least, float(chance[rest].sum()))


def _chances(weight: FloatArray, boost: FloatArray, n: int, floor: float) -> FloatArray:
    """Chances that add up to n, none above 1: floor shares in proportion to `boost`, the others to `weight`."""
    even = boost / boost.sum()
    total = weight.sum()
    share = floor * even + (1 - floor) * (weight / total if total > 0 else even)
    certain = np.zeros(share.size, bool)
    while True:
        left = share[~certain].sum()
        chance = np.where(certain, 1.0, share * (n - certain.sum()) / left if left > 0 else 0.0)
        over = (chance > 1) & ~certain
        if not over.any():
            return chance
        certain |= over


@dataclass(frozen=True)
class Missed:
    """How many components are as strong as flagged ones and were not flagged.

    threshold: |exact| from which one counts; found: their indices in the map, strongest first; estimate, low, high: of their
    number in the whole map; limit: up to which the answer is useful; needed: how large a sample would bring the upper limit
    there if it found none; strongest: the largest |exact| among the found over that among the flagged.
    """

    threshold: float
    found: tuple[int, ...]
    estimate: float
    low: float
    high: float
    level: float
    limit: int
    needed: int
    n_sampled: int
    n_rest: int
    strongest: float


def count_missed(
    estimate: ArrayLike,
    exact: ArrayLike,
    sample: Sample,
    *,
    limit: int,
    level: float = 0.95,
) -> Missed:
    """Count components that are not flagged, but whose |exact| effect is at or above the smallest flagged |estimate|.

    estimate: mean effects of the whole map [cell]; exact: mean exact effects of `sample.index` [verified]; limit: the number up
    to which an upper limit is of use (>= 1). Effects under `RELEVANT` of the largest verified one never count.

    Raises ControlError for shapes that do not fit, effects that are not finite, or a limit below 1.
    """
    size, true = np.abs(np.asarray(estimate, np.float64)), np.abs(np.asarray(exact, np.float64))
    if (
        size.shape != (sample.n_cells,)
        or true.shape != sample.index.shape
        or not np.isfinite(true).all()
        or limit < 1
    ):
        raise ControlError(f"Estimates {size.shape}, exact effects {true.shape} of {sample.index.size} verified, limit {limit}.",
                           why="one exact effect, a finite one, per verified component")  # fmt: skip
    mine = sample.index[sample.flagged]
    threshold = max(float(size[mine].min()), RELEVANT * float(true.max()), np.finfo(float).tiny)
    hit = ~sample.flagged & (true >= threshold)
    sure = int((hit & (sample.inclusion >= 1)).sum())
    drawn = hit & (sample.inclusion < 1)
    total = float((1 / sample.inclusion[drawn]).sum())
    alpha = (1 - check_level(level)) / 2
    low, high = (0.0, 0.0) if sample.least >= 1 else _limits(total, sample.least, alpha)
    n_sampled = int((~sample.flagged).sum())
    unseen = sample.n_rest - n_sampled
    found = int(hit.sum())
    order = sample.index[hit][np.argsort(-true[hit], kind="stable")]
    best = float(true[sample.flagged].max())
    strongest = float(true[hit].max()) / best if found and best > 0 else math.inf if found else 0.0
    if sample.least < 1:  # a count is whole
        low = max(float(found), float(math.ceil(sure + low - 1e-9)))
        high = min(float(math.floor(sure + high)), float(found + unseen))
    else:
        low = high = float(found)
    return Missed(threshold, tuple(int(i) for i in order), sure + total, low, high, level, limit,
                  needed(sample, limit, alpha), n_sampled, sample.n_rest, strongest)  # fmt: skip


def _limits(total: float, least: float, alpha: float) -> tuple[float, float]:
    """Chernoff limits of a count from its weighted sample sum, each at level alpha, for chances of at least `least`."""
    s = np.logspace(-3, 3, 400)
    tail = math.log(1 / alpha)
    upper = (s * least * total + tail) / -np.log1p(-least * -np.expm1(-s))
    # the tilt of the lower limit stops where exp() does
    t = s[s < 500]
    lower = (t * least * total - tail) / np.log1p(least * np.expm1(t))
    return max(0.0, float(lower.max())), float(upper.min()) + 1e-9


def needed(sample: Sample, limit: int, alpha: float = 0.025) -> int:
    """How many unflagged components must be drawn in the way of `sample` so that finding none bounds the missed by `limit`."""
    if sample.n_rest <= limit:
        return 0
    chance = 1 - alpha ** (1 / (limit + 1))
    return min(sample.n_rest, math.ceil(sample.expected * chance / sample.least))


def slope(estimate: ArrayLike, exact: ArrayLike, inclusion: ArrayLike) -> float:
    """Exact effect per estimated effect: the weighted least-squares line through 0. NaN where every estimate is 0.

    estimate, exact: mean effects of verified components [verified]; inclusion: the chance of each.
    """
    x, y, w = (np.asarray(v, np.float64) for v in (estimate, exact, inclusion))
    scale = float((x * x / w).sum())
    return float((x * y / w).sum()) / scale if scale > 0 else float("nan")


def missed_control(m: Missed, names: Sequence[str] = ()) -> Control:
    """Whether the map found what is there.

    Rule: failed where at least one missed component is stronger than every flagged one, or more than `limit` are certainly
    missed; not certified (neither passed nor failed) where the upper limit is above `limit`. names: of all components.
    """
    few = f"at most {m.limit} with |effect| >= {m.threshold:.3g} unflagged, none of them stronger than the flagged"
    observed = {"missed": m.estimate, "low": m.low, "high": m.high, "found": len(m.found)}
    shown = ", ".join(names[i] for i in m.found[:4]) if names else ""
    detail = f"{m.n_sampled} of {m.n_rest} unflagged verified" + (f"; found {shown}" if shown else "")
    if m.strongest > 1 or m.low > m.limit:
        worst = (
            f"; the strongest has {m.strongest:.3g} times the largest flagged effect"
            if m.strongest > 1
            else ""
        )
        return Control("missed", RULES_OUT, few, observed, False, max(m.n_sampled, 1), detail=detail + worst)
    if m.high > m.limit:
        enough = f"not certified: between {m.low:.3g} and {m.high:.3g} may be missed; a sample of {m.needed} would do if it found none"
        return Control("missed", RULES_OUT, few, observed, None, m.n_sampled, detail=f"{enough}; {detail}")
    return Control("missed", RULES_OUT, few, observed, True, max(m.n_sampled, 1), detail=detail)


def remainder_control(
    effect: ArrayLike, total: ArrayLike, estimated: float, clusters: Labels, *, limit: float = 0.5
) -> Control:
    """Everything that was not flagged, patched in one run: it moves the metric by less than `limit` of the whole change.

    effect: of that run [prompt]; total: donor minus base [prompt]; estimated: the sum of the remainder's estimates (mean).
    """
    joint, whole = np.asarray(effect, np.float64), np.asarray(total, np.float64)
    rules_out = "that what was not flagged matters together although each part looks small"
    expected = f"all unflagged together move the metric by less than {limit:g} of the whole change"
    seen = {"effect": float(joint.mean()), "total": float(whole.mean()), "estimated": float(estimated)}
    try:
        ratio = normalised_effect(joint[None], whole, clusters).at(0)
    except ControlError as error:
        return Control("remainder", rules_out, expected, seen, None, joint.size, detail=error.what)
    observed = {"share": float(ratio.estimate), "low": float(ratio.low), "high": float(ratio.high), **seen}
    return Control(
        "remainder",
        rules_out,
        expected,
        observed,
        bool(abs(ratio.estimate) < limit),
        joint.size,
        detail=ratio.label,
    )


def completeness_control(gap: float, steps: int, tolerance: float = 0.02) -> Control:
    """Integrated gradients add up to the metric's change over the cut that was interpolated. gap: what is missing, as a share."""
    rules_out, expected = (
        "that the steps of the interpolation are too coarse",
        f"the scores of the cut add up to the change, within {tolerance:.0%}",
    )
    if math.isnan(gap):
        return Control.not_run(
            "completeness", rules_out, expected, "nothing was interpolated, or the metric did not change"
        )
    return Control("completeness", rules_out, expected, {"gap": gap, "steps": steps}, gap <= tolerance, steps)


def saturation_control(share: float, n: int, *, repaired: bool, limit: float = 0.1) -> Control:
    """How much of attention is saturated: a gradient does not pass there, so what goes through queries and keys is missed.

    share: of (head, query) pairs whose attention lies above 0.99 on one token; n: of such pairs; repaired: patterns were
    recomputed instead of differentiated.
    """
    rules_out, expected = (
        "that effects through saturated attention were estimated as nothing",
        f"under {limit:.0%} of attention above 0.99 on one token, or how='atp*'",
    )
    if math.isnan(share) or not n:
        return Control.not_run("saturation", rules_out, expected, "this family shows no attention patterns")
    return Control("saturation", rules_out, expected, {"share": share}, bool(repaired or share < limit), n)
