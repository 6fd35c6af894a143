"""From what a judge said to what is true: its measured error goes into the interval.

Binary: the share of texts judged positive is corrected for sensitivity and specificity (Rogan & Gladen 1978, Am J Epidemiol 107:71),
with an interval that carries their uncertainty (by simulation, in the spirit of Lang & Reiczigel 2014, Prev Vet Med 113:13). Numeric:
the mean score less the judge's mean error on labelled texts, their variances added (the difference estimator; Angelopoulos et al. 2023,
"Prediction-powered inference", with weight 1).

Both take for granted that the judge errs on the judged texts as it did on the labelled ones: label some texts of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import ChatError
from microtome.llm.judging import Scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microtome.llm.judge_report import JudgeReport

    Floats = NDArray[np.float64]

__all__ = ["Judged", "corrected_mean", "corrected_share", "effective_n", "judged_interval"]

DRAWS = 10_000


@dataclass(frozen=True)
class Judged:
    """A share (binary) or mean (numeric scale, in its unit) of what was judged, with the judge's error in its interval.

    raw, raw_low, raw_high: what one would have said had the judge never erred; shown beside, never to be reported alone.
    n: texts with a score, in n_clusters clusters. n_unread: texts without; they are not filled in: for a share the interval covers
    every answer that they could have had, a mean with them is of the read texts only and `note` says so.
    """

    value: float
    low: float
    high: float
    raw: float
    raw_low: float
    raw_high: float
    level: float
    n: int
    n_clusters: int
    n_unread: int
    method: str
    note: str = ""


@dataclass(frozen=True)
class _Rate:
    """A share of yes among n, with the n that its clusters leave of it."""

    yes: float
    n: float

    def draws(self, generator: np.random.Generator, end: str = "") -> Floats:
        """From the Jeffreys posterior: the interval of a proportion that covers near nominal also at 0 and 1. end: "low" or "high": from
        the distribution of that Clopper-Pearson limit, as Korn & Graubard have it for clusters, whose number is known so roughly."""
        add_yes, add_no = {"": (0.5, 0.5), "low": (0.0, 1.0), "high": (1.0, 0.0)}[end]
        return generator.beta(max(self.yes + add_yes, 1e-9), max(self.n - self.yes + add_no, 1e-9), DRAWS)


def effective_n(values: Any, clusters: Sequence[Any]) -> float:
    """How many independent texts a share rests on: its binomial variance over its cluster variance, with the degrees of freedom of
    the clusters counted in (Korn & Graubard 1998, Survey Methodology 24:193). values: 0 or 1 [text]; clusters: [text].

    Never more than the texts. Where all values agree nothing is known of the clustering: then each cluster counts as one text.
    """
    import numpy as np
    from scipy import stats

    from microtome.controls.clusters import as_clusters
    from microtome.controls.intervals import MeanDesign

    x, index = np.asarray(values, np.float64), as_clusters(list(clusters))
    n, p = len(x), float(x.mean())
    if index.n_clusters == n:
        return float(n)
    if p in (0.0, 1.0) or index.n_clusters < 2:
        return float(index.n_clusters)
    design = MeanDesign.of(index)
    terms = design.contributions(x[None])
    variance, degrees = float((terms**2).sum()), float(design.degrees(terms)[0])
    if variance <= 0:
        return float(index.n_clusters)
    ratio = float(stats.t.ppf(0.975, n - 1) / stats.t.ppf(0.975, max(degrees, 1.0)))
    return float(min(n, p * (1 - p) / variance * ratio**2))


def corrected_share(
    said: tuple[Any, Sequence[Any]],
    positives: tuple[Any, Sequence[Any]],
    negatives: tuple[Any, Sequence[Any]],
    *,
    unread: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(share, low, high): the Rogan-Gladen share, limits by simulation over all three proportions.

    Each argument is (values 0 or 1 [text], clusters [text]): what the judge said of the judged texts, of labelled positives (their
    mean is its sensitivity), of labelled negatives (one less their mean is its specificity). The share is kept within 0 and 1.
    unread: judged texts without an answer; the limits hold for any answers that they could have had.

    Raises ChatError where the labelled texts do not show that the judge is better than chance: no correction exists then.
    """
    import numpy as np

    from microtome.results import seeds

    generator = seeds.rng(seed, "judged share")
    sets = [np.asarray(values, np.float64) for values, _ in (said, positives, negatives)]
    for name, values in zip(("judged", "labelled positive", "labelled negative"), sets, strict=True):
        if not len(values):
            raise ChatError(f"no {name} text has a score", why="a share of nothing is no number", instead="more texts, or another judge")  # fmt: skip
    rates = [
        _Rate(v.mean() * e, e)
        for v, e in zip(sets, (effective_n(*g) for g in (said, positives, negatives)), strict=True)
    ]
    tail = (1 - level) / 2
    true_yes, false_yes = rates[1].draws(generator), rates[2].draws(generator)
    gain = true_yes - false_yes
    if np.quantile(gain, tail) <= 0:
        raise ChatError(f"sensitivity {sets[1].mean():.2f} and specificity {1 - sets[2].mean():.2f} are not above chance with certainty",
                        why="what such a judge says depends on the truth by too little to be turned back into it",
                        instead="more labelled texts, a better rubric, or another judge")  # fmt: skip

    def turned(rate: Any) -> Any:
        return np.clip((rate - false_yes) / gain, 0, 1)

    share = float(np.clip((sets[0].mean() - sets[2].mean()) / (sets[1].mean() - sets[2].mean()), 0, 1))
    n = len(sets[0])
    shrink = rates[0].n / n
    ends = [_Rate((sets[0].sum() + extra) * shrink, (n + unread) * shrink) for extra in (0, unread)]
    clustered = len(set(said[1])) < n
    low, high = (
        float(np.quantile(turned(rate.draws(generator, end if clustered else "")), q))
        for rate, end, q in zip(ends, ("low", "high"), (tail, 1 - tail), strict=True)
    )
    return share, min(low, share), max(high, share)


def corrected_mean(
    said: tuple[Any, Sequence[Any]], errors: tuple[Any, Sequence[Any]], *, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean, low, high) of scores less the judge's mean error, variances added, degrees of freedom by Satterthwaite.

    said: (scores [text], clusters [text]); errors: (score - hand label [labelled text], clusters). Raises ChatError for fewer than
    two texts of either.
    """
    import numpy as np
    from scipy import stats

    from microtome.controls.clusters import as_clusters
    from microtome.controls.intervals import MeanDesign

    means, variances, degrees = [], [], []
    for values, clusters in (said, errors):
        x = np.asarray(values, np.float64)
        if len(x) < 2:
            raise ChatError(f"{len(x)} texts with a score", why="their spread cannot be measured", instead="more texts")  # fmt: skip
        design = MeanDesign.of(as_clusters(list(clusters)))
        terms = design.contributions(x[None])
        means.append(float(x.mean()))
        variances.append(float((terms**2).sum()))
        degrees.append(max(float(design.degrees(terms)[0]), 1.0))
    value, total = means[0] - means[1], sum(variances)
    parts = sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    half = float(stats.t.ppf(0.5 + level / 2, total**2 / parts) * np.sqrt(total)) if total > 0 else 0.0
    return value, value - half, value + half


def judged_interval(
    scores: Scores,
    report: JudgeReport,
    *,
    generator: str,
    clusters: Sequence[Any] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Judged:
    """What was judged, corrected by what the report says of the judge, with the judge's error in the interval.

    generator: who wrote the judged texts; never the judge. clusters: [text], the prompt (or template) that a text came from; None:
    every text stands for itself, which is wrong where several came from one prompt.

    Raises
    ------
    ChatError: the judge is its generator or is invalid, no text could be read, or there are no labelled texts of one class.
    """
    import numpy as np

    from microtome.llm.judging import not_the_generator

    not_the_generator(report.judge, generator, (*report.models, *scores.models))
    report.require_valid()
    groups = list(range(len(scores.values))) if clusters is None else list(clusters)
    if len(groups) != len(scores.values):
        raise ChatError(f"{len(groups)} clusters for {len(scores.values)} texts", why="each text is of one prompt", instead="one per text")  # fmt: skip
    read = list(scores.read())
    values = np.array([scores.values[i] for i in read])
    inside = [groups[i] for i in read]
    unread = len(groups) - len(read)
    said = (values, inside)
    if report.judge.scale.kind == "binary":
        value, low, high = corrected_share(said, report.said(1.0), report.said(0.0), unread=unread, level=level, seed=seed)  # fmt: skip
        raw = _raw_share(values, inside, level)
        method, note = (
            "Rogan-Gladen share; limits by simulation over sensitivity, specificity and the judged share",
            "",
        )
    else:
        value, low, high = corrected_mean(said, report.errors(), level=level)
        zero = (np.zeros(2), (0, 1))
        raw = corrected_mean(said, zero, level=level)
        method = "mean score less mean error on labelled texts; variances added"
        note = f"of the {len(read)} texts that were read" if unread else ""
    return Judged(value, low, high, *raw, level, len(read), len(set(inside)), unread, method, note)


def _raw_share(values: Floats, clusters: Sequence[Any], level: float) -> tuple[float, float, float]:
    """The share as if the judge never erred, with the Jeffreys interval."""
    from scipy import stats

    n = effective_n(values, clusters)
    p = float(values.mean())
    limits = stats.beta(p * n + 0.5, n - p * n + 0.5).ppf([(1 - level) / 2, (1 + level) / 2])
    return p, float(limits[0]), float(limits[1])
