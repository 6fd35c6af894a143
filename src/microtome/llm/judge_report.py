"""A judge calibrated: agreement with hand labels, biases each beside its null, controls that it must tell apart.

What is measured follows what is known to go wrong with judges: position and length (Zheng et al. 2023, "Judging LLM-as-a-judge with
MT-Bench and Chatbot Arena"), wording of the rubric, and self-preference, which is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from microtome.errors import ChatError
from microtome.llm.judging import Judge, Scores, not_the_generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Agreement", "Bias", "HandLabels", "JudgeReport", "calibrate_judge"]

MIN_CONTROLS = 3
TOLD_APART = 0.9
"""Area under the ROC of positive over negative control texts from which they are told apart; what was not read counts against it."""
LEVEL = 1 - 0.05 / 4
"""Of a bias's limits: four are looked at, and one in twenty unbiased judges may be called biased."""
FILLER = " This sentence says nothing that bears on the question. Neither does this one, which is only here to be long."
"""Put after a text to see whether length alone moves the judge."""


@dataclass(frozen=True)
class HandLabels:
    """Texts that people labelled. labels: 0 or 1 for a binary scale, else in the scale's unit. clusters: the prompt or template of
    each text; texts of one cluster are not independent."""

    texts: tuple[str, ...]
    labels: tuple[float, ...]
    clusters: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        clusters = self.clusters or tuple(range(len(self.texts)))
        if not len(self.texts) == len(self.labels) == len(clusters) or not self.texts:
            raise ChatError(f"{len(self.texts)} texts, {len(self.labels)} labels, {len(clusters)} clusters",
                            why="each text has one label and stands in one cluster", instead="as many of each")  # fmt: skip
        object.__setattr__(self, "texts", tuple(self.texts))
        object.__setattr__(self, "labels", tuple(float(v) for v in self.labels))
        object.__setattr__(self, "clusters", tuple(clusters))


@dataclass(frozen=True)
class Agreement:
    """Agreement with hand labels, over n texts that were read.

    Binary: accuracy and Cohen's kappa (1960) with limits: draws from the posterior of the 2 x 2 table, its counts cut down to what
    clusters leave of them. Numeric: kappa is the concordance coefficient of Lin (1989), accuracy NaN; error_mean and error_sd are of
    score minus label, in the scale's unit.
    """

    n: int
    accuracy: float
    kappa: float
    kappa_low: float
    kappa_high: float
    error_mean: float
    error_sd: float


@dataclass(frozen=True)
class Bias:
    """One way in which an answer may depend on what it should not, with limits over texts; null: what an unbiased judge shows.

    found: the limits leave out the null. n: on how many answers it rests; 0: it could not be measured, and found is None.
    """

    name: str
    what: str
    value: float
    low: float
    high: float
    null: float
    n: int

    @property
    def found(self) -> bool | None:
        """Whether the bias is there; None where nothing could be read."""
        return None if not self.n else bool(self.low > self.null or self.high < self.null)


@dataclass(frozen=True)
class JudgeReport:
    """What is known of a judge. invalid: reasons for which nothing that it says may be used; empty for a valid one.

    controls: area under the ROC of positive over negative control texts. repeatability: share of texts with the same score when
    asked again. order_consistent: share of pairs with the same winner in both orders. rubrics: spread (largest less smallest mean
    score) over rubric paraphrases, and the lowest share of equal scores; None where none were given.
    n_refused, n_unreadable: of n_asked answers to single texts; counted, never filled in.
    """

    judge: Judge
    labels: HandLabels = field(repr=False)
    scores: Scores = field(repr=False)
    agreement: Agreement
    controls: float
    biases: tuple[Bias, ...]
    repeatability: float
    order_consistent: float
    rubrics: tuple[float, float] | None
    n_asked: int
    n_refused: int
    n_unreadable: int
    models: tuple[str, ...]
    invalid: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether what the judge says may be used, with its error in the interval."""
        return not self.invalid

    def require_valid(self) -> None:
        """Raises ChatError, with the reasons, for an invalid judge."""
        if self.invalid:
            raise ChatError(f"the judge {self.judge.name} is invalid", why="; ".join(self.invalid), instead="another rubric or another judge, calibrated anew")  # fmt: skip

    def found(self) -> tuple[str, ...]:
        """Names of the biases that are there."""
        return tuple(b.name for b in self.biases if b.found)

    def said(self, label: float) -> tuple[list[float], list[Any]]:
        """Scores of the labelled texts of one class that were read, and their clusters."""
        rows = [i for i in self.scores.read() if self.labels.labels[i] == label]
        return [self.scores.values[i] for i in rows], [self.labels.clusters[i] for i in rows]

    def errors(self) -> tuple[list[float], list[Any]]:
        """Score minus hand label of the labelled texts that were read, and their clusters."""
        rows = self.scores.read()
        return [self.scores.values[i] - self.labels.labels[i] for i in rows], [self.labels.clusters[i] for i in rows]  # fmt: skip


def calibrate_judge(
    judge: Judge,
    labelled: HandLabels,
    *,
    generator: str,
    positive: Sequence[str],
    negative: Sequence[str],
    paraphrases: Sequence[str] = (),
    pairs: int = 20,
    seed: int = 0,
) -> JudgeReport:
    """Measure a judge on texts whose answer is known.

    Asks each labelled text four times (as it is, again, with the options in the other order, with filler after it) and once per
    paraphrase of the rubric; at most `pairs` pairs of differently labelled texts in both orders, and as many texts against
    themselves with filler; and the control texts.

    Parameters
    ----------
    generator: who wrote the texts that will be judged. positive, negative: at least three texts each that fit the rubric beyond
    doubt, or do not; they are not among the labelled ones. paraphrases: the rubric in other words.

    Raises
    ------
    ChatError: the judge is the generator; too few controls; labels that the scale does not have; nothing labelled of one class.
    """
    not_the_generator(judge, generator)
    _check(judge, labelled, positive, negative)
    scores = judge.score(labelled.texts)
    not_the_generator(judge, generator, scores.models)
    again = judge.again(1).score(labelled.texts)
    reverse = replace(judge, reverse=True).score(labelled.texts)
    padded = judge.score([text + FILLER for text in labelled.texts])
    control = judge.score([*positive, *negative])
    others = [replace(judge, rubric=rubric).score(labelled.texts) for rubric in paraphrases]
    duels = _duels(judge, labelled, pairs, seed)
    stuffed = _stuffed(judge, labelled, pairs, seed)
    agreement = _agreement(judge, labelled, scores, seed)
    told = _told_apart(control.values[: len(positive)], control.values[len(positive) :])
    clusters = labelled.clusters
    biases = (
        _bias("order", "the first of two texts is preferred, whichever it is", [(a + b) / 2 for a, b, _ in duels], [c for *_, c in duels], 0.5),
        _bias("length, two texts", "the same text with filler is preferred to itself", [v for v, _ in stuffed], [c for _, c in stuffed], 0.5),
        _moved("length", "filler after a text moves its score", scores, padded, clusters),
        _moved("options", "naming the options in the other order moves the score", scores, reverse, clusters),
    )  # fmt: skip
    asked = [scores, again, reverse, padded, control, *others]
    return JudgeReport(
        judge, labelled, scores, agreement, told, biases, _same(scores, again), _consistent(duels), _rubrics(scores, others),
        sum(len(s.values) for s in asked), sum(s.n_refused for s in asked), sum(s.n_unreadable for s in asked),
        tuple(dict.fromkeys(m for s in asked for m in s.models)), _invalid(agreement, told, len(labelled.texts)),
    )  # fmt: skip


def _check(judge: Judge, labelled: HandLabels, positive: Sequence[str], negative: Sequence[str]) -> None:
    for name, texts in (("positive", positive), ("negative", negative)):
        if isinstance(texts, str) or len(set(texts)) < MIN_CONTROLS:
            raise ChatError(f"fewer than {MIN_CONTROLS} {name} control texts", why="a judge must be seen to tell them apart", instead=f"{name}=[...] with {MIN_CONTROLS} different texts or more")  # fmt: skip
    if set(positive) & set(negative) or (set(positive) | set(negative)) & set(labelled.texts):
        raise ChatError("a control text stands twice", why="controls are texts of their own", instead="other control texts")  # fmt: skip
    scale, labels = judge.scale, set(labelled.labels)
    if scale.kind == "binary" and labels != {0.0, 1.0}:
        raise ChatError(f"hand labels {sorted(labels)[:4]}", why="a binary judge is measured on texts of both classes, 0 and 1", instead="label texts of both")  # fmt: skip
    if any(not scale.low <= v <= scale.high for v in labels) or len(labels) < 2:
        raise ChatError(f"hand labels from {min(labels):g} to {max(labels):g}", why=f"the scale goes from {scale.low:g} to {scale.high:g}, and labels must differ",
                        instead="labels of the judge's own scale")  # fmt: skip


def _invalid(agreement: Agreement, told: float, n: int) -> tuple[str, ...]:
    out = []
    if told < TOLD_APART:
        out.append(f"control texts are not told apart: area {told:.2f}, at least {TOLD_APART} is asked for")
    if agreement.n == 0:
        out.append("not one answer to a labelled text could be read")
    elif not agreement.kappa_low > 0:
        out.append(f"agreement with hand labels is not above chance: kappa {agreement.kappa:.2f} [{agreement.kappa_low:.2f}, {agreement.kappa_high:.2f}]")  # fmt: skip
    if agreement.n < n / 2:
        out.append(f"only {agreement.n} of {n} answers to labelled texts could be read")
    return tuple(out)


def _told_apart(positive: Sequence[float], negative: Sequence[float]) -> float:
    """The area; a pair in which either text was not read counts 0 (NaN compares false)."""
    wins = [float(p > q) + 0.5 * float(p == q) for p in positive for q in negative]
    return sum(wins) / len(wins)


def _agreement(judge: Judge, labelled: HandLabels, scores: Scores, seed: int) -> Agreement:
    import numpy as np

    rows = list(scores.read())
    nan = float("nan")
    if len(rows) < 2:
        return Agreement(len(rows), nan, nan, nan, nan, nan, nan)
    said = np.array([scores.values[i] for i in rows])
    truth = np.array([labelled.labels[i] for i in rows])
    clusters = [labelled.clusters[i] for i in rows]
    error = said - truth
    shared = (float(error.mean()), float(error.std(ddof=1)))
    if judge.scale.kind == "binary":
        kappa, low, high = _kappa(said, truth, clusters, seed)
        return Agreement(len(rows), float((said == truth).mean()), kappa, low, high, *shared)
    value, low, high = _concordance(said, truth, clusters, seed)
    return Agreement(len(rows), nan, value, low, high, *shared)


def _kappa(said: Floats, truth: Floats, clusters: Sequence[Any], seed: int) -> tuple[float, float, float]:
    """Cohen's kappa with limits from Dirichlet draws around the table (Jeffreys prior), so that a table without errors has some too."""
    import numpy as np

    from microtome.llm.judge_error import effective_n
    from microtome.results import seeds

    table = np.array([[((said == a) & (truth == b)).sum() for b in (0, 1)] for a in (0, 1)], float)
    n = min(effective_n(said == truth, clusters), effective_n(said, clusters), float(len(said)))
    draws = (
        seeds.rng(seed, "kappa").dirichlet((table * n / len(said) + 0.5).ravel(), 20_000).reshape(-1, 2, 2)
    )

    def kappa(t: Floats) -> Floats:
        observed = t[..., 0, 0] + t[..., 1, 1]
        chance = (t.sum(-1) * t.sum(-2)).sum(-1)
        return (observed - chance) / np.where(chance < 1, 1 - chance, 1.0)

    low, high = np.quantile(kappa(draws), [0.025, 0.975])
    value = float(kappa(table / table.sum()))
    return value, min(float(low), value), max(float(high), value)


def _concordance(said: Floats, truth: Floats, clusters: Sequence[Any], seed: int) -> tuple[float, float, float]:  # fmt: skip
    """Lin's concordance with percentile limits over resampled clusters."""
    import numpy as np

    from microtome.results import seeds

    def rho(a: Floats, b: Floats) -> float:
        below = a.var() + b.var() + (a.mean() - b.mean()) ** 2
        return float(2 * ((a - a.mean()) * (b - b.mean())).mean() / below) if below > 0 else 0.0

    names = list(dict.fromkeys(clusters))
    members = [np.flatnonzero([c == name for c in clusters]) for name in names]
    generator, drawn = seeds.rng(seed, "concordance"), []
    for _ in range(2000):
        rows = np.concatenate([members[i] for i in generator.integers(0, len(members), len(members))])
        drawn.append(rho(said[rows], truth[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return rho(said, truth), float(low), float(high)


def _duels(judge: Judge, labelled: HandLabels, pairs: int, seed: int) -> list[tuple[float, float, Any]]:
    """Differently labelled pairs in both orders: (was the first preferred, in one order and the other, cluster); unread ones left out."""
    from microtome.results import seeds

    order = [int(i) for i in seeds.rng(seed, "pairs").permutation(len(labelled.texts))]
    chosen = [(i, j) for i, j in pairwise(order) if labelled.labels[i] != labelled.labels[j]][:pairs]
    asked = [(judge.prefer(labelled.texts[i], labelled.texts[j]), judge.prefer(labelled.texts[j], labelled.texts[i]), labelled.clusters[i]) for i, j in chosen]  # fmt: skip
    return [(a, b, c) for a, b, c in asked if a == a and b == b]


def _consistent(duels: Sequence[tuple[float, float, Any]]) -> float:
    """Share of pairs with the same winner in both orders: a says "first", b says "second", or both the same."""
    return sum(a == 1 - b for a, b, _ in duels) / len(duels) if duels else float("nan")


def _stuffed(judge: Judge, labelled: HandLabels, n: int, seed: int) -> list[tuple[float, Any]]:
    """Is a text with filler preferred to itself, over both orders: 1 always, 0 never, with its cluster."""
    from microtome.results import seeds

    out = []
    for i in (int(i) for i in seeds.rng(seed, "filler").permutation(len(labelled.texts))[:n]):
        text, longer = labelled.texts[i], labelled.texts[i] + FILLER
        value = (judge.prefer(longer, text) + 1 - judge.prefer(text, longer)) / 2
        if value == value:
            out.append((value, labelled.clusters[i]))
    return out


def _moved(name: str, what: str, before: Scores, after: Scores, clusters: Sequence[Any]) -> Bias:
    rows = [i for i in before.read() if not after.why[i]]
    return _bias(name, what, [after.values[i] - before.values[i] for i in rows], [clusters[i] for i in rows], 0.0)  # fmt: skip


def _bias(name: str, what: str, values: Sequence[float], clusters: Sequence[Any], null: float) -> Bias:
    """The mean with cluster limits; values that all agree have limits by the rule of three instead of none."""
    import numpy as np

    from microtome.controls.intervals import mean_interval

    nan = float("nan")
    if len(values) < 2:
        return Bias(name, what, nan, nan, nan, null, 0)
    x = np.array(values, float)
    mean, n_clusters = float(x.mean()), len(set(clusters))
    if np.ptp(x) == 0:
        half = min(3 / n_clusters, 1.0) * max(abs(mean - null), 1e-9)
        return Bias(name, what, mean, mean - half, mean + half, null, len(x))
    found = mean_interval(x, list(clusters), level=LEVEL)
    return Bias(name, what, mean, float(found.low), float(found.high), null, len(x))


def _same(a: Scores, b: Scores) -> float:
    """Share of texts with an equal score, of those read both times."""
    rows = [i for i in a.read() if not b.why[i]]
    return sum(a.values[i] == b.values[i] for i in rows) / len(rows) if rows else float("nan")


def _rubrics(scores: Scores, others: Sequence[Scores]) -> tuple[float, float] | None:
    if not others:
        return None
    means = [_mean(s) for s in (scores, *others)]
    return max(means) - min(means), min(_same(scores, s) for s in others)


def _mean(scores: Scores) -> float:
    rows = scores.read()
    return sum(scores.values[i] for i in rows) / len(rows) if rows else float("nan")
