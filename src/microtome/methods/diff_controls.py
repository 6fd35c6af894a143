"""The controls of a model diff, and the tests against noise models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microtome.controls.draws import DrawTest, against_draws, combined_p, stricter
from microtome.controls.signflip import sign_flip
from microtome.methods.diff_runs import Lockstep, distance
from microtome.model.noise import WORDS, Noise
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    from microtome.methods.diff_runs import Compared
    from microtome.methods.diff_tables import View

TINY = 1e-12
SIZE_TOLERANCE = 0.01
ABOVE_FLOOR = 10.0
LARGER, DENSER = 1.1, 1.5
"""Least ratios to the noise models' (geometric) mean that count, of a size and of a focus (decision 0017)."""
UNRELATED_ALPHA = 0.05


@dataclass(frozen=True)
class Tests:
    """The families of tests: shown, what tables and figures show; each: against noise models as they are and, where those had to be
    rescaled to the outputs' difference, against the rescaled ones. The p is the larger one.
    """

    shown: dict[str, DrawTest]
    each: tuple[dict[str, DrawTest], ...]

    def p(self, reading: DrawTest | None = None) -> float:
        """One p of all families, and of the reading if there is one."""
        more = [reading] if reading is not None else []
        return max(combined_p([*tests.values(), *more]) for tests in self.each)


def families(view: View, real: Compared, draws: Sequence[Compared], matched: Sequence[Compared], alpha: float) -> Tests | None:  # fmt: skip
    """The tests against the noise models; None without draws.

    "sites": how large the difference is, on a log scale. "focus": how few tokens it sits on. "tokens": each token's share of the
    outputs' KL. A backdoor is smaller than noise, and all of it on a few tokens. Noise that is larger spreads more evenly, so the
    latter two are also held against `matched`, the same noise models rescaled until their outputs differ as much.
    """
    if not draws:
        return None
    own = _against(view, real, draws, alpha)
    if all(m is d for m, d in zip(matched, draws, strict=True)):
        return Tests(own, (own,))
    rescaled = {"sites": own["sites"]} | {k: t for k, t in _against(view, real, matched, alpha).items() if k != "sites"}  # fmt: skip
    return Tests({k: stricter(own[k], rescaled[k]) for k in own}, (own, rescaled))


def _against(view: View, real: Compared, draws: Sequence[Compared], alpha: float) -> dict[str, DrawTest]:
    zero = view.zero(real, draws).reshape(-1)
    outside = np.concatenate([zero, np.zeros(len(view.labels), bool)])
    every = (real, *draws)
    size = np.log([view.cells(c).mean(-1).ravel() + TINY for c in every])
    out = {"sites": against_draws(size[0], size[1:], alpha=alpha, outside=outside, least=np.log(LARGER))}
    if not view.each:
        focus = np.log([view.focus(c) for c in every])
        out["focus"] = against_draws(focus[0], focus[1:], alpha=alpha, outside=outside, least=np.log(DENSER))
    shares = np.array([view.shares(c) for c in every])
    if shares.shape[1] > 1 and shares[0].any():
        out["tokens"] = against_draws(shares[0], shares[1:], alpha=alpha, studentised=False)
    return out


def p_of(tests: Tests | None, reading: DrawTest | None, *, moved: bool) -> tuple[float | None, float | None]:
    """(p of all families together, the smallest that so many draws can reach); (1, 0) for models that are the same."""
    if tests is None:
        return (None, None) if moved else (1.0, 0.0)
    return tests.p(reading), tests.shown["sites"].smallest_p


def same_model(lock: Lockstep) -> Control:
    """The first model against itself, through the same code as the other: exactly 0. Gates."""
    batch = lock.batches()[0]
    base = lock.whole(lock.binding, batch)
    again = lock.other(lock.binding, batch, base)
    worst = max(float((again.values[s] - base.values[s]).abs().max()) for s in lock.sites)
    worst = max(worst, float((again.log_probs - base.log_probs).abs().max()))
    return Control("same_model", "that the comparison itself makes a difference", "the first model against itself differs by exactly 0",
                   worst, worst == 0.0, len(batch.docs), gates=True)  # fmt: skip


def noise_size(sizes: Sequence[float]) -> Control:
    """Every tensor of every noise model was moved as far as it really was. sizes: ratios, one per tensor and draw."""
    rules_out, expected = "that the null is of another size than the difference", f"each tensor moved as far as it really was, within {SIZE_TOLERANCE:.0%}"  # fmt: skip
    if not sizes:
        return Control.not_run("noise_size", rules_out, expected, "no tensor differs, so there is no noise to match")  # fmt: skip
    off = float(np.abs(np.asarray(sizes) - 1).max())
    return Control("noise_size", rules_out, expected, off, off <= SIZE_TOLERANCE, len(sizes),
                   detail="the largest relative error, after rounding to the model's dtype")  # fmt: skip


def strongest(view: View, real: Compared) -> tuple[int, float]:
    """(site, value) of the largest mean relative difference."""
    means = view.means(real.relative).mean(-1).max(1)
    at = int(means.argmax())
    return at, float(means[at])


def batching(lock: Lockstep, view: View, found: tuple[int, float]) -> Control:
    """What another batch shape does to the same activations of the same model, at the strongest site."""
    at, value = found
    site, batches = lock.sites[at], lock.batches()
    worst, n = 0.0, 0
    for batch in (batches[0], batches[-1]):
        together = lock.whole(lock.binding, batch)
        for row, doc in list(enumerate(batch.docs))[:2]:
            alone = lock.whole(lock.binding, lock.batch([doc]))
            length = batch.lengths[row]
            gap, _ = distance(together.values[site][row, :length], alone.values[site][0, :length])
            worst, n = max(worst, float(gap.mean())), n + 1
    return Control("batching", "that rounding is taken for a difference of the models", f"the largest difference ({site}) is over {ABOVE_FLOOR:g} times what another batch shape does",
                   {"difference": value, "batch shape": worst}, value > ABOVE_FLOOR * worst, n)  # fmt: skip


def noise(view: View, tests: Tests | None, kind: Noise, alpha: float, *, moved: bool) -> Control:
    """Whether anything exceeds noise models; what they are is said in the control's own words."""
    rules_out, expected = (
        f"that {WORDS[kind]} would do the same",
        f"a difference over {LARGER - 1:.0%} larger, or on {DENSER:g} times fewer tokens, than with {WORDS[kind]} (family-wise p at most {alpha:g})",
    )
    if tests is None and moved:
        return Control.not_run("noise_models", rules_out, expected, "the weights are equal, the configs are not: there is no noise to match")  # fmt: skip
    if tests is None:
        return Control("noise_models", rules_out, expected, "the weights are equal to the bit", False, 1)
    p = tests.p()
    names = [f"{s}@{q}" if view.each else s for s, q in view.names()]
    counts = {f"{k} above": int(t.significant.sum()) for k, t in tests.shown.items()}
    far = []
    for family in ("sites", "focus"):
        if family in tests.shown:
            z = tests.shown[family].statistic
            at = int(np.nanargmax(z))
            far.append(f"{names[at]} {'in size' if family == 'sites' else 'in focus'} by {z[at]:.1f}")
    draws = tests.shown["sites"].n_draws
    rescaled = "; also held against them rescaled to the outputs' difference" if len(tests.each) > 1 else ""
    return Control("noise_models", rules_out, expected, {"p": p, **counts}, p <= alpha, draws,
                   detail=f"{draws} noise models ({kind}) reach p = {1 / (draws + 1):.2g} at best; furthest above them, in their standard deviations: {', '.join(far)}{rescaled}")  # fmt: skip


def unrelated(view: View, real: Compared, third: Compared | None, seed: int) -> Control:
    """Whether some cell differs more than in an unrelated fine-tune, document by document."""
    rules_out, expected = (
        "that any fine-tuning moves the model as much (general drift)",
        f"a cell where the difference exceeds the unrelated one's over documents (family-wise p at most {UNRELATED_ALPHA:g})",
    )
    if third is None:
        return Control.not_run(
            "unrelated", rules_out, expected, "no unrelated fine-tune was given (unrelated=)"
        )
    mine, other = (x.reshape(-1, x.shape[-1]) for x in (view.cells(real), view.cells(third)))
    gap = mine - other
    zero = (gap == 0).all(1)
    if zero.all() or len(set(view.texts.clusters)) < 6:
        why = "the two differ nowhere" if zero.all() else "fewer than six documents cannot reach the level"
        return Control.not_run("unrelated", rules_out, expected, why)
    test = sign_flip(gap, list(view.texts.clusters), seed=seed, alpha=UNRELATED_ALPHA, structurally_zero=zero)
    above, below = test.significant & (gap.mean(1) > 0), test.significant & (gap.mean(1) < 0)
    ratio = float(np.exp(np.mean(np.log(mine.mean(1)[~zero] + TINY) - np.log(other.mean(1)[~zero] + TINY))))
    return Control("unrelated", rules_out, expected, {"above": int(above.sum()), "below": int(below.sum()), "ratio": ratio}, bool(above.any()), len(gap),
                   detail=f"p {test.min_p:.2g}; ratio is the geometric mean over cells")  # fmt: skip


OTHER_LEVELS = tuple(
    Control.not_run(name, rules_out, expected, "activations were compared token by token (level='sites')")
    for name, rules_out, expected in (
        ("paired", "that one model is no better a predictor of these texts than the other", "a difference of the loss over documents"),
        ("other_words", "that the two models' coordinates have nothing to do with each other", "the same word is nearer than another one"),
    )
)  # fmt: skip
"""Controls of the comparisons of models whose layers or tokens differ."""
