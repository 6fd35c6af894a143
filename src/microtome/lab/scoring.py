"""Scores of forecasts: how good were the probabilities, against always saying the base rate.

Brier score (Brier 1950): mean of (probability - outcome)^2. Log score (Good 1952): mean of -ln(probability that was
given to what happened), in nats. Of both, lower is better, and both are proper: nobody gains by saying anything but
what they believe.

**The base rate that a forecaster is compared with** is that of the *other* forecasts, by Laplace's rule of succession:
(others that came true + 1) / (others + 2). The share of all would know the very outcome that it is scored on; the plain
share of the others is 0 or 1 where they agree, whose log score is infinite. This is what somebody would say who knew how
the others came out and nothing else.

**Intervals** of the difference resample the forecasts and learn the base rate again in every resample. A t interval of
the differences per item does not know that they all share one base rate: it calls a forecaster who always says one half
better than chance. Simulated (nine forecasters, 8 to 150 forecasts, 600 times each), 95 % intervals covered the true
difference in 89 to 100 %, 97 % on average; of those who knew nothing 0 to 0.3 % were called better, of overconfident ones
who are truly worse 5 % with 8 forecasts and 2 % with 20.

Forecasts count as independent. Several about one run are not, and the interval is then too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import LabError
from ..results.arguments import suggest

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Bin", "Forecast", "Murphy", "Score", "by", "check_probability", "score", "smallest_difference"]

Bins = Literal["tenths", "equal count"]
_BINS = ("tenths", "equal count")
_GROUPS = ("person", "kind")
_CELLS = 2_000_000  # numbers in the largest temporary array


def check_probability(value: Any) -> float:
    """The probability as a float.

    Raises LabError unless it is a number strictly between 0 and 1.
    """
    plain = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise LabError(f"the probability is {value!r}", why="a probability is a number; words are not scored", instead="probability=0.7")  # fmt: skip
    if math.isnan(plain) or plain < 0 or plain > 1:
        instead = f"probability={plain / 100:g} for {plain:g} %" if 1 < plain < 100 else "probability=0.7"
        raise LabError(f"the probability is {plain:g}", why="it lies between 0 and 1", instead=instead)
    if plain in (0, 1):
        raise LabError(
            f"the probability is {plain:g}",
            why="0 and 1 cannot be wrong by a finite log score",
            instead="say .01 or .99, or something nearer if you would bet on it",
        )
    return float(plain)


@dataclass(frozen=True)
class Forecast:
    """A probability that something happens, and whether it did. person, kind: to group by; "" where nobody said.

    Raises LabError for what is no probability (`check_probability`) and an outcome that is not True or False.
    """

    probability: float
    outcome: bool
    person: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "probability", check_probability(self.probability))
        outcome = self.outcome.item() if hasattr(self.outcome, "item") else self.outcome
        if not isinstance(outcome, bool):
            raise LabError(f"the outcome is {self.outcome!r}", why="it happened or it did not; what is open is not scored", instead="True or False")  # fmt: skip
        object.__setattr__(self, "outcome", outcome)


@dataclass(frozen=True)
class Bin:
    """Forecasts of about the same probability. n: how many. forecast: their mean. rate: the share that came true, with
    Wilson's interval (1927) low to high at the score's level."""

    n: int
    forecast: float
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Murphy:
    """Murphy's (1973) partition of the Brier score over the bins of the curve; brier = reliability - resolution +
    uncertainty + within, exactly.

    reliability: mean squared distance of the bins from the diagonal; 0 is perfect calibration. reliability_null: what
    95 of 100 forecasters stay below who are perfectly calibrated and say these very probabilities; with few forecasts
    it is far from 0.
    resolution: mean squared distance of the bins' rates from the base rate; more is better. resolution_null: what 95 of
    100 stay below where the outcomes are dealt to the forecasts at random.
    uncertainty: base rate x (1 - base rate). within: what unequal forecasts in one bin add (Stephenson, Coelho & Jolliffe 2008).
    """

    reliability: float
    reliability_null: float
    resolution: float
    resolution_null: float
    uncertainty: float
    within: float


@dataclass(frozen=True)
class Score:
    """Scores of n forecasts.

    n, came_true: how many, and how many of them came true; base_rate: their ratio.
    brier, log: the forecasts'; base_brier, base_log: those of always saying the base rate of the others (module's head).
    skill: 1 - brier / base_brier: 1 is perfect, 0 no better than the base rate; NaN where all outcomes are equal.
    difference: brier - base_brier, below 0 where the forecasts are better; low, high: its interval at `level`, NaN where
        n forecasts with these outcomes cannot tell anything.
    p: how often outcomes dealt to the forecasts at random give a Brier score as low; small: the forecasts tell what will
        come true from what will not. 1 where all forecasts or all outcomes are equal.
    smallest: the difference that n forecasts at this base rate show half of the time (`smallest_difference`).
    curve, murphy: calibration. said: in one sentence whether the difference from the base rate can be told.
    """

    n: int
    came_true: int
    base_rate: float
    brier: float
    log: float
    base_brier: float
    base_log: float
    skill: float
    difference: float
    low: float
    high: float
    level: float
    p: float
    smallest: float
    curve: tuple[Bin, ...]
    murphy: Murphy
    said: str

    def as_json(self) -> dict[str, Any]:
        """The fields as a mapping of JSON-able values (with NaN: `microtome.results.frozen.dumps` writes it)."""
        return asdict(self)


def score(
    forecasts: Sequence[Forecast], *, seed: int, bins: Bins = "tenths", level: float = 0.95, draws: int = 4000
) -> Score:
    """Score forecasts whose outcome is known.

    Parameters
    ----------
    seed: of the resamples. bins: of the calibration curve: "tenths" of probability, or "equal count" (up to ten bins of
        about five forecasts or more; equal probabilities stay together). level: of intervals. draws: number of resamples.

    Raises
    ------
    LabError: no forecasts, or an unknown kind of bins. ControlError: too few draws for the level.
    """
    import numpy as np

    from ..controls.resample import check_draws
    from ..results import seeds

    if not forecasts:
        raise LabError("there is nothing to score", why="no prediction has an outcome yet", instead="resolve one first")  # fmt: skip
    if bins not in _BINS:
        raise LabError(f"there are no bins {bins!r}", why="a curve needs to know which forecasts go together", instead=suggest(str(bins), _BINS))  # fmt: skip
    check_draws(draws, level)
    said = np.array([f.probability for f in forecasts])
    came = np.array([f.outcome for f in forecasts], dtype=np.float64)
    n, k = len(said), int(came.sum())
    brier, log = float(np.mean((said - came) ** 2)), float(-np.mean(np.log(np.where(came == 1, said, 1 - said))))  # fmt: skip
    base_brier, base_log = float(_base_brier(k, n)), _base_log(k, n)
    difference, smallest = brier - base_brier, smallest_difference(n, k / n, level=level)
    # with fewer ways to deal the outcomes than this, the best possible forecasts happen by chance too often
    tells = 1 / math.comb(n, k) <= 1 - level
    skill = 1 - brier / base_brier if 0 < k < n else math.nan
    low, high = _interval(said, came, seeds.rng(seed, "lab.score/difference"), level, draws) if tells else (math.nan, math.nan)  # fmt: skip
    p = _dealt(said, came, seeds.rng(seed, "lab.score/dealt"), draws)
    group = _group(said, bins)
    return Score(
        n, k, k / n, brier, log, base_brier, base_log, skill, difference, low, high, level, p, smallest,
        _curve(said, came, group, level), _murphy(said, came, group, seeds.rng(seed, "lab.score/murphy"), draws),
        _sentence(n, k, difference, low, high, level, smallest),
    )  # fmt: skip


def by(forecasts: Sequence[Forecast], what: Literal["person", "kind"], **options: Any) -> dict[str, Score]:
    """The score of each person or kind, sorted by name; options: as `score` takes them.

    Raises LabError for another grouping.
    """
    if what not in _GROUPS:
        raise LabError(f"forecasts are not grouped by {what!r}", why="they carry a person and a kind", instead=suggest(str(what), _GROUPS))  # fmt: skip
    names = sorted({getattr(f, what) for f in forecasts})
    return {name: score([f for f in forecasts if getattr(f, what) == name], **options) for name in names}


def smallest_difference(n: int, base_rate: float = 0.5, *, level: float = 0.95) -> float:
    """The true Brier difference from the base rate (as a positive number) that n forecasts show about half of the time.

    For a calibrated forecaster who says base rate + s as often as base rate - s: the difference is s^2, one item's
    standard deviation 2 s sqrt(u - s^2) with u = base rate (1 - base rate), exact at one half; s^2 equals t standard
    errors at u 4 t^2 / (n + 4 t^2), with t the quantile of Student's t with n - 1 degrees of freedom. Simulated at one
    half: 44 % of 600 at n = 50. u itself, which only perfect forecasts reach, for n = 1.
    """
    from scipy import stats

    uncertainty = base_rate * (1 - base_rate)
    if n < 2:
        return uncertainty
    squared = 4 * float(stats.t.ppf(0.5 + level / 2, n - 1)) ** 2
    return uncertainty * squared / (n + squared)


def _base_brier(k: Any, n: int) -> Any:
    """Brier score of saying of each of n the base rate of the others, where k came true (an array of them, too)."""
    return (k * ((n + 1 - k) / (n + 1)) ** 2 + (n - k) * ((k + 1) / (n + 1)) ** 2) / n


def _base_log(k: int, n: int) -> float:
    total = (k * math.log(k / (n + 1)) if k else 0.0) + ((n - k) * math.log((n - k) / (n + 1)) if k < n else 0.0)  # fmt: skip
    return -total / n


def _interval(
    said: np.ndarray, came: np.ndarray, rng: np.random.Generator, level: float, draws: int
) -> tuple[float, float]:
    """Percentile bootstrap (Efron & Tibshirani 1993) of the difference, the base rate learned again in each resample."""
    import numpy as np

    n, squares = len(said), (said - came) ** 2
    found = []
    for size in _pieces(draws, n):
        index = rng.integers(0, n, (size, n))
        found.append(squares[index].mean(axis=1) - _base_brier(came[index].sum(axis=1), n))
    differences = np.sort(np.concatenate(found))
    tail = (1 - level) / 2 * (draws - 1)
    return float(differences[math.floor(tail)]), float(differences[math.ceil(draws - 1 - tail)])


def _dealt(said: np.ndarray, came: np.ndarray, rng: np.random.Generator, draws: int) -> float:
    """Permutation p: the Brier score depends on who got which outcome only by the sum of what was said of those true."""
    import numpy as np

    observed, hits = float(said @ came), 0
    for size in _pieces(draws, len(said)):
        dealt = rng.permuted(np.broadcast_to(came, (size, len(came))), axis=1)
        hits += int(np.sum(dealt @ said >= observed - 1e-9))
    return (1 + hits) / (1 + draws)


def _group(said: np.ndarray, bins: str) -> np.ndarray:
    """For each forecast the number of its bin."""
    import numpy as np

    if bins == "tenths":  # a forecast on an edge goes up; 1 - 0.9 is 0.09999... in binary
        return np.unique(np.floor(said * 10 + 1e-9), return_inverse=True)[1]
    inverse, counts = np.unique(said, return_inverse=True, return_counts=True)[1:]
    middle = (
        np.cumsum(counts) - counts / 2
    )  # the rank that equal probabilities share, so that they stay together
    wanted = min(10, max(1, len(said) // 5))
    return np.unique(np.floor(middle / len(said) * wanted), return_inverse=True)[1][inverse]


def _curve(said: np.ndarray, came: np.ndarray, group: np.ndarray, level: float) -> tuple[Bin, ...]:
    from statsmodels.stats.proportion import proportion_confint

    made = []
    for number in range(int(group.max()) + 1):
        inside = group == number
        n, k = int(inside.sum()), int(came[inside].sum())
        low, high = proportion_confint(
            k, n, alpha=1 - level, method="wilson"
        )  # at 0 and n it rounds past the rate
        made.append(
            Bin(
                n,
                float(said[inside].mean()),
                k / n,
                max(0.0, min(float(low), k / n)),
                min(1.0, max(float(high), k / n)),
            )
        )
    return tuple(made)


def _murphy(
    said: np.ndarray, came: np.ndarray, group: np.ndarray, rng: np.random.Generator, draws: int
) -> Murphy:
    import numpy as np

    n, sizes = len(said), np.bincount(group)
    member = np.eye(len(sizes))[group]
    mean = said @ member / sizes
    base = float(came.mean())

    def reliability(true: np.ndarray) -> np.ndarray:
        return ((true / sizes - mean) ** 2) @ sizes / n

    def resolution(true: np.ndarray) -> np.ndarray:
        return ((true / sizes - base) ** 2) @ sizes / n

    true = came @ member
    calibrated = np.concatenate([(rng.random((size, n)) < said) @ member for size in _pieces(draws, n)])
    dealt = rng.multivariate_hypergeometric(sizes, int(came.sum()), size=draws)
    rel, res, uncertainty = float(reliability(true)), float(resolution(true)), base * (1 - base)
    return Murphy(
        rel, float(np.quantile(reliability(calibrated), 0.95)), res, float(np.quantile(resolution(dealt), 0.95)), uncertainty,
        float(np.mean((said - came) ** 2)) - (rel - res + uncertainty),
    )  # fmt: skip


def _pieces(draws: int, n: int) -> Iterator[int]:
    """Numbers of draws that make up `draws`, each small enough for an array of n numbers a draw."""
    most = max(1, _CELLS // n)
    for start in range(0, draws, most):
        yield min(most, draws - start)


def _sentence(n: int, k: int, difference: float, low: float, high: float, level: float, smallest: float) -> str:  # fmt: skip
    many = f"{n} forecast" + ("s" if n > 1 else "")
    if k in (0, n):
        how = "came true" if k else "failed"
        return f"{many}, which all {how}: always saying so would have done as well, so nothing can be told."
    if math.isnan(low):
        return f"{many}, of which {k} came true, are too few: the best possible ones happen by chance once in {math.comb(n, k)} times."  # fmt: skip
    interval = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}] ({100 * level:g} %)"
    if low <= 0 <= high:
        return (
            f"Not told from the base rate: the Brier difference is {interval}. {many} at this base rate show a true "
            f"difference of {smallest:.3f} half of the time, a smaller one less often."
        )
    return f"{'Better' if high < 0 else 'Worse'} than the base rate: the Brier difference is {interval}."
