"""Outcomes turned into `Control` data: each function is one decision rule, stated in `expected`.

Deterministic checks gate (a failure makes a result invalid): `identity`, `receipts`, `sums`. The others compare the
effect with what it would be if the claim were wrong. "No effect" is never concluded from a large p: it is an
equivalence (two one-sided tests, Schuirmann 1987) within a stated margin, so that too few prompts fail a
control rather than pass it. Every rule about several cells needs all of them to pass, which keeps its error rate
at alpha without a correction (intersection-union test, Berger 1982).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from microtome.controls.clusters import FloatArray, as_cells, as_clusters
from microtome.controls.intervals import Interval, Labels, MeanDesign, mean_interval
from microtome.controls.multiple import HeldOut
from microtome.controls.rank import Overlap
from microtome.controls.signflip import FamilyTest
from microtome.errors import ControlError
from microtome.results.verdicts import Control

SAME_VALUE_MARGIN = 0.5
IRRELEVANT_MARGIN = 0.2
WRONG_VALUE_FRACTION = 0.5
VALUE_FRACTION = 0.9
OFF_TASK_FACTOR = 2.0
RULE_ALPHA = 0.05
"""Level of each one-sided test in a control; the effect itself is tested at a stricter level elsewhere."""


def identity(differences: ArrayLike, noise_floor: float) -> Control:
    """Patching each activation with itself must change nothing. Gates.

    differences: metric after the identity edit minus metric before, any shape; noise_floor: the largest difference
    that this model, dtype and batch shape make without any edit, in the metric's unit. Passes when no |difference|
    is above the floor; NaN fails. Raises ControlError for a floor that is negative or not finite.
    """
    _limit("noise floor", noise_floor)
    values = np.abs(np.asarray(differences, dtype=np.float64)).reshape(-1)
    return _largest(
        "identity",
        "that writing an activation back, rather than its new value, changes the metric",
        f"largest |difference| at most the noise floor {noise_floor:.3g}",
        values,
        noise_floor,
    )


def sums(residual: ArrayLike, scale: ArrayLike, *, tolerance: float = 1e-4) -> Control:
    """Pieces must add up to the whole. Gates.

    residual: sum of the pieces minus the whole, any shape; scale: sum of the pieces' absolute values, same shape (not
    the whole, which may be near 0 while its pieces are not). Passes when |residual| / scale is at most `tolerance`
    everywhere; NaN fails.
    """
    _limit("tolerance", tolerance)
    gap, size = np.broadcast_arrays(np.abs(np.asarray(residual, np.float64)), np.asarray(scale, np.float64))
    if (size < 0).any():
        raise ControlError("A sum of absolute pieces is negative.", why="scale is the sum of |piece|")
    relative = np.divide(gap, size, out=np.where(gap == 0, 0.0, np.inf), where=size != 0).reshape(-1)
    return _largest(
        "sums",
        "that pieces are missing, counted twice or in another unit",
        f"largest |sum - whole| / sum of |pieces| at most {tolerance:g}",
        relative,
        tolerance,
    )


def receipts(fired: Mapping[str, int], expected: Mapping[str, int]) -> Control:
    """Every edit must have happened exactly as often as it was asked for. Gates.

    fired, expected: times per edit, by name. Passes when they agree for every edit; one that left no receipt counts as
    fired 0 times, one that nobody asked for fails. Raises ControlError for an edit expected less than once.
    """
    idle = [name for name, times in expected.items() if times < 1]
    if idle:
        raise ControlError(
            f"Edit {idle[0]!r} is expected {expected[idle[0]]} times.", why="it would test nothing"
        )
    says = "every edit fired exactly as often as it was asked for"
    rules_out = "that an edit silently did nothing, or happened where it should not"
    if not expected and not fired:
        return Control.not_run("receipts", rules_out, says, "there were no edits", gates=True)
    names = sorted({*fired, *expected})
    wrong = {name: [fired.get(name, 0), expected.get(name, 0)] for name in names}
    wrong = {name: pair for name, pair in wrong.items() if pair[0] != pair[1]}
    return Control(
        name="receipts",
        rules_out=rules_out,
        expected=says,
        observed=float(len(wrong)),
        passed=not wrong,
        n=len(names),
        detail="; ".join(
            f"{name}: fired {was}, expected {want}" for name, (was, want) in list(wrong.items())[:5]
        ),
        gates=True,
    )


def sign_flip_control(test: FamilyTest) -> Control:
    """At least one cell lies outside the null band of the largest cell.

    Passes when the smallest family-wise p is at most the test's alpha. An underpowered test cannot pass and says so.
    """
    count = int(test.significant.sum())
    few = (
        f"; underpowered: {test.n_clusters} clusters reach p = {test.smallest_p:.2g}"
        if test.underpowered
        else ""
    )
    return Control(
        name="sign_flip",
        rules_out="that the best cell of a large map looks good by chance",
        expected=f"a family-wise p at most {test.alpha:g}",
        observed={"p": test.min_p, "cells": count},
        passed=count > 0,
        n=test.n_cells,
        null=(-test.critical, test.critical),
        detail=f"{test.method}, {test.n_clusters} clusters, smallest p within reach {test.smallest_p:.2g}; the null is in standard errors{few}",
    )


def same_value(
    effects: ArrayLike,
    real: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    margin: float = SAME_VALUE_MARGIN,
    alpha: float = RULE_ALPHA,
) -> Control:
    """A donor with other words but the same variables must reproduce the effect.

    effects, real: [cell, prompt], patched - base with the same-value donor and with the task's own; clusters:
    [prompt]. Rule: mean(effects) / mean(real) is shown to lie in (1 - margin, 1 + margin), each side by a one-sided
    cluster t test at alpha on effects - limit * real, so that no ratio is formed.
    """
    top, bottom = _two(effects, real, clusters, cells)
    within = _ratio_within(top, bottom, 1 - margin, 1 + margin, clusters, alpha)
    return _per_cell(
        "same_value",
        "that the effect belongs to the donor's wording, not to its variables",
        f"same-value / real effect between {1 - margin:g} and {1 + margin:g} in every cell (alpha {alpha:g} each side)",
        _ratios(top, bottom),
        within,
        cells,
        as_clusters(clusters).n,
        null=None,
    )


def irrelevant_donor(
    effects: ArrayLike,
    real: ArrayLike,
    total: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    margin: float = IRRELEVANT_MARGIN,
    alpha: float = RULE_ALPHA,
) -> Control:
    """A donor with the base's variables and answer but other text must do nothing.

    effects, real: [cell, prompt], with the irrelevant donor and with the task's own; total: [prompt], donor - base of
    the whole run with the task's own donor. Rule, for every cell: (1) mean(effects) is shown to lie within
    margin * |mean(total)| of 0 (two one-sided cluster t tests at alpha), and (2) the real effect exceeds the irrelevant
    one in the real one's direction (one-sided, alpha): a small cell must not pass on a margin as large as itself.
    """
    top, own = _two(effects, real, clusters, cells)
    whole = np.broadcast_to(_two(np.asarray(total)[None], own[:1], clusters, ["total"])[0], top.shape)
    near_zero = _ratio_within(top, whole, -margin, margin, clusters, alpha)
    exceeded = _positive(np.sign(own.mean(axis=1, keepdims=True)) * (own - top), clusters, alpha)
    return _per_cell(
        "irrelevant",
        "that any other text in this place has the effect",
        f"irrelevant / total effect within +-{margin:g} and below the real effect in every cell (alpha {alpha:g})",
        _ratios(top, whole),
        near_zero & exceeded,
        cells,
        as_clusters(clusters).n,
        null=(-margin, margin),
    )


def wrong_value(
    effects: ArrayLike,
    real: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    fraction: float = WRONG_VALUE_FRACTION,
    alpha: float = RULE_ALPHA,
) -> Control:
    """A donor with a third value must move the output to *its* answer: the cell then holds the answer itself.

    A cell that holds something else that decides (which of two places the answer stands in) fails this and is no less
    real; that the patch does not merely damage the base's answer is the business of `value_matters`.

    effects: [cell, prompt], change of log P(this donor's answer) - log P(base's answer); real: the same quantity for
    the task's own donor and its answer. Rule, for every cell: effects exceed `fraction` of the real effect in its
    direction (one-sided cluster t test at alpha).
    """
    top, own = _two(effects, real, clusters, cells)
    sign = np.sign(own.mean(axis=1, keepdims=True))
    return _per_cell(
        "wrong_value",
        "that the cell holds something that decides the answer, but not the answer itself",
        f"moves to the donor's answer by more than {fraction:g} of the real effect in every cell (alpha {alpha:g})",
        _ratios(top, own),
        _positive(sign * (top - fraction * own), clusters, alpha) & (sign[:, 0] != 0),
        cells,
        as_clusters(clusters).n,
        null=None,
    )


def value_matters(
    effects: ArrayLike,
    real: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    fraction: float = VALUE_FRACTION,
    alpha: float = RULE_ALPHA,
) -> Control:
    """A donor with other values must not do what the task's own donor does.

    effects, real: [cell, prompt], change of the task's own metric with the wrong-value donor and with the task's own. A
    patch that only damages the base's answer moves it equally whatever it brings. Rule, for every cell: the effect is
    shown to be below `fraction` of the real one, in its direction (one-sided cluster t test at alpha).
    """
    top, own = _two(effects, real, clusters, cells)
    sign = np.sign(own.mean(axis=1, keepdims=True))
    return _per_cell(
        "value_matters",
        "that the patch only damages the base's answer, whatever value it brings",
        f"a third value has less than {fraction:g} of the real effect on the task's metric in every cell (alpha {alpha:g})",
        _ratios(top, own),
        _positive(sign * (fraction * own - top), clusters, alpha) & (sign[:, 0] != 0),
        cells,
        as_clusters(clusters).n,
        null=None,
    )


def other_cells(
    effects: ArrayLike,
    total: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    margin: float = IRRELEVANT_MARGIN,
    alpha: float = RULE_ALPHA,
) -> Control:
    """At cells that were not chosen, too, a donor without the difference must do nothing.

    effects: [cell, prompt], irrelevant donor at a random sample of the other cells; total: [prompt], as in
    `irrelevant_donor`. Rule, for every cell: mean(effects) is shown to lie within margin * |mean(total)| of 0.
    """
    top, _ = _two(effects, effects, clusters, cells)
    whole = np.broadcast_to(
        _two(np.asarray(total)[None], np.asarray(total)[None], clusters, ["total"])[0], top.shape
    )
    return _per_cell(
        "other_cells",
        "that other text moves the metric at the cells that were not chosen, so that the map shows text as well",
        f"irrelevant / total effect within +-{margin:g} in a random sample of the other cells (alpha {alpha:g})",
        _ratios(top, whole),
        _ratio_within(top, whole, -margin, margin, clusters, alpha),
        cells,
        as_clusters(clusters).n,
        null=(-margin, margin),
    )


def noise_donor_control(
    effects: ArrayLike,
    real: ArrayLike,
    clusters: Labels,
    *,
    cells: Sequence[str],
    alpha: float = RULE_ALPHA,
) -> Control:
    """Noise of the patch's norm and natural covariance must move the metric less than the patch.

    effects: [draw, cell, prompt] with noise donors; real: [cell, prompt]. Rule, for every cell: the real effect in its
    own direction exceeds the noise's mean *absolute* effect on the same prompts (one-sided cluster t test at alpha).
    Absolute and per prompt, because noise of random sign would average to 0 however much it moves.
    """
    noise = np.asarray(effects, dtype=np.float64)
    if noise.ndim != 3 or noise.shape[0] < 1:
        raise ControlError(f"Noise effects of shape {noise.shape}.", why="they are [draw, cell, prompt]")
    size, own = _two(np.abs(noise).mean(axis=0), real, clusters, cells)
    sign = np.sign(own.mean(axis=1, keepdims=True))
    largest = float(np.abs(noise.mean(axis=2)).max())
    return _per_cell(
        "noise",
        "that any change of this size in this place has the effect",
        f"real effect above the mean |effect| of noise in every cell (alpha {alpha:g})",
        _ratios(size, own),
        _positive(sign * own - size, clusters, alpha),
        cells,
        noise.shape[0] * as_clusters(clusters).n,
        null=(-largest, largest),
        what="noise / real",
    )


def random_components(
    real: float,
    null: ArrayLike,
    *,
    what: str = "effect",
    alpha: float = RULE_ALPHA,
    name: str = "random_components",
) -> Control:
    """The chosen components do better than random ones of the same kind, number and depth.

    real: the quantity for the chosen set (larger is better); null: [set], the same for random sets. Rule:
    p = (1 + sets at least as good) / (1 + sets) is at most alpha. Fewer sets than could reach alpha: did not run.
    Raises ControlError for values that are not finite.
    """
    values = np.asarray(null, dtype=np.float64).reshape(-1)
    if not np.isfinite(values).all() or not np.isfinite(real):
        raise ControlError(f"The {what} of a set is not finite.", why="sets are compared by it")
    rules_out = (
        "that any of the strongest components would do"
        if name == "strong_sets"
        else "that any components of this kind and depth would do"
    )
    expected = f"p at most {alpha:g} among random sets of the same shape"
    least = 1 / (1 + values.size)
    if least > alpha:
        why = f"{values.size} sets reach p = {least:.2g} at best, above alpha {alpha:g}"
        return Control.not_run(name, rules_out, expected, why)
    p = float((1 + (values >= real).sum()) / (1 + values.size))
    return Control(
        name=name,
        rules_out=rules_out,
        expected=expected,
        observed={what: float(real), "p": p},
        passed=p <= alpha,
        n=values.size,
        null=(float(values.min()), float(values.max())),
        detail=f"{what} of random sets: median {np.median(values):.4g}",
    )


@dataclass(frozen=True)
class Damage:
    """How much an intervention changes the output distribution: values [prompt] >= 0, clusters [prompt].

    quantity: what the values are, positions included, such as "KL at the answer position, nats".
    """

    values: FloatArray
    clusters: Labels
    quantity: str


def off_task(
    on: Damage, off: Damage, *, factor: float = OFF_TASK_FACTOR, alpha: float = RULE_ALPHA
) -> Control:
    """Damage on the task exceeds the damage of the same intervention on unrelated text.

    Rule: mean(on) - factor * mean(off) > 0 by a one-sided cluster t test at alpha for two independent sets of prompts
    (Welch-Satterthwaite). Raises ControlError when the two quantities differ or a value is negative beyond 1e-6.
    """
    if on.quantity != off.quantity:
        raise ControlError(
            f"Damage on the task is {on.quantity!r}, off the task {off.quantity!r}.",
            why="two different quantities cannot be compared",
            instead="the same divergence at scored positions on both",
        )
    parts = []
    for side in (on, off):
        index = as_clusters(side.clusters)
        flat, shape = as_cells(side.values, index.n)
        if shape or index.n < 2 or (flat < -1e-6).any():
            raise ControlError("Damage is one number >= 0 per prompt, for two prompts or more.")
        design = MeanDesign.of(index)
        terms = design.contributions(flat)
        parts.append((float(flat.mean()), float((terms**2).sum()), float(design.degrees(terms)[0]), index.n))
    (mean_on, var_on, df_on, n_on), (mean_off, var_off, df_off, n_off) = parts
    var_off *= factor**2
    gap, variance = mean_on - factor * mean_off, var_on + var_off
    spread = var_on**2 / df_on + var_off**2 / df_off
    degrees = variance**2 / spread if spread > 0 else min(df_on, df_off)
    low = gap - stats.t.ppf(1 - alpha, degrees) * np.sqrt(variance)
    return Control(
        name="off_task",
        rules_out="that the components matter for every text, not for this task",
        expected=f"{on.quantity}: on the task more than {factor:g} times that off the task (alpha {alpha:g})",
        observed={"on": mean_on, "off": mean_off},
        passed=bool(low > 0),
        n=n_on + n_off,
        detail=f"on - {factor:g} off = {gap:.4g}, lower limit {low:.4g}; {n_on} prompts on, {n_off} off",
    )


def held_out(result: HeldOut, *, cells: Sequence[str]) -> Control:
    """Every selected cell has its effect, with the same sign, on prompts that did not select it (Holm)."""
    _named(cells, result.p.size)
    failed = [cell for cell, ok in zip(cells, result.passed, strict=True) if not ok]
    return Control(
        name="held_out",
        rules_out="that the cells were selected for the noise of the prompts that selected them",
        expected=f"Holm-adjusted p at most {result.alpha:g}, same sign, in every selected cell",
        observed={"p": float(result.p_holm.max()), "cells": float(result.passed.sum())},
        passed=not failed,
        n=result.interval.n,
        detail="; ".join(filter(None, [f"failed: {', '.join(failed)}" if failed else "", result.cap])),
    )


def approximation(
    agreement: Interval, overlap: Overlap, *, least_correlation: float = 0.7, least_overlap: float = 0.5
) -> Control:
    """An approximate map ranks cells as the exact one does, and misses few of its largest.

    Rule: the lower limit of the rank correlation is at least `least_correlation`, and at least `least_overlap` of the
    exact top k are in the estimate's.
    """
    return Control(
        name="approximation",
        rules_out="that the approximation misses cells, or invents them",
        expected=f"rank correlation's lower limit >= {least_correlation:g}, top-{overlap.k} overlap >= {least_overlap:g}",
        observed={
            "correlation": float(agreement.estimate),
            "low": float(agreement.low),
            "high": float(agreement.high),
            "overlap": overlap.fraction,
        },
        passed=bool(agreement.low >= least_correlation and overlap.fraction >= least_overlap),
        n=overlap.n_cells,
        detail=f"{agreement.label}; overlap by chance {overlap.expected / overlap.k:.2g}",
    )


def _largest(name: str, rules_out: str, expected: str, values: FloatArray, limit: float) -> Control:
    """A gate on the largest of values [...]: NaN counts as infinite."""
    if not values.size:
        return Control.not_run(name, rules_out, expected, "nothing was checked", gates=True)
    worst = float(np.where(np.isnan(values), np.inf, values).max())
    return Control(
        name=name, rules_out=rules_out, expected=expected, observed=worst, passed=worst <= limit,
        n=values.size, gates=True,
    )  # fmt: skip


def _limit(name: str, value: float) -> None:
    if not (np.isfinite(value) and value >= 0):
        raise ControlError(f"The {name} is {value}.", why="it bounds an absolute difference")


def _named(cells: Sequence[str], n: int) -> None:
    if len(cells) != n or not n:
        raise ControlError(f"{len(cells)} names for {n} cells.", why="a control says which cell failed")


def _two(
    effects: ArrayLike, other: ArrayLike, clusters: Labels, cells: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Two arrays [cell, prompt] on the same prompts, checked."""
    index = as_clusters(clusters)
    (first, shape), (second, shape_2) = as_cells(effects, index.n), as_cells(other, index.n)
    if shape != shape_2 or len(shape) != 1 or index.n < 2:
        raise ControlError(
            f"Effects of cells {shape} and {shape_2} on {index.n} prompts.",
            why="both are [cell, prompt] on the same two prompts or more",
        )
    _named(cells, shape[0])
    return first, second


def _positive(values: FloatArray, clusters: Labels, alpha: float) -> NDArray[np.bool_]:
    """Whether the mean of each row [cell, prompt] is shown to be above 0, one-sided at alpha."""
    return np.asarray(mean_interval(values, clusters, level=1 - 2 * alpha).low > 0)


def _ratio_within(
    top: FloatArray, bottom: FloatArray, low: float, high: float, clusters: Labels, alpha: float
) -> NDArray[np.bool_]:
    """Whether mean(top) / mean(bottom) is shown to lie in (low, high): two one-sided tests, no division."""
    sign = np.sign(bottom.mean(axis=1, keepdims=True))
    above = _positive(sign * (top - low * bottom), clusters, alpha)
    return above & _positive(sign * (high * bottom - top), clusters, alpha)


def _ratios(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """mean(top) / mean(bottom) per cell, for display; NaN over an exact 0."""
    below = bottom.mean(axis=1)
    return np.divide(top.mean(axis=1), below, out=np.full(below.shape, np.nan), where=below != 0)


def _per_cell(
    name: str,
    rules_out: str,
    expected: str,
    ratios: FloatArray,
    passed: NDArray[np.bool_],
    cells: Sequence[str],
    n: int,
    *,
    null: tuple[float, float] | None,
    what: str = "ratio",
) -> Control:
    failed = [cell for cell, ok in zip(cells, passed, strict=True) if not ok]
    return Control(
        name=name,
        rules_out=rules_out,
        expected=expected,
        observed={cell: float(ratio) for cell, ratio in zip(cells, ratios, strict=True)},
        passed=not failed,
        n=n,
        null=null,
        detail=f"{what} per cell; {len(failed)} of {len(cells)} failed"
        + (f": {', '.join(failed)}" if failed else ""),
    )
