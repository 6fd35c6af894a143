"""Do 0.95 intervals cover in 0.95 of cases? Counted on replicates whose truth is known, judged by the exact binomial.

Synthetic effects try the interval functions by themselves; planted ones are effects that a technique measured on a specimen,
of which a few prompts are drawn again and again: the truth is the mean over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from microtome.controls.intervals import bootstrap_interval, mean_interval, proportion_interval
from microtome.controls.ratio import normalised_effect
from microtome.errors import ControlError
from microtome.results import seeds

Floats = NDArray[np.float64]
Random = np.random.Generator

LEVEL = 0.95
REPLICATES = 2_000
BAND = 0.001
"""A right interval fails its case with at most this chance."""
PROMPTS, CLUSTERS = 32, 12
PLANTED = ("pair_balance", "mode", "shuffle_dyck1")
"""Programs in which a part's effect differs between prompts, by many values, some and two."""


@dataclass(frozen=True)
class Cover:
    """One case. run: (random, replicates) -> limits [replicate] and the truth. two_sided: too wide is wrong too, which holds
    where the interval is exact for such data; the others may only cover more often than they say.
    """

    name: str
    run: Callable[[Random, int], tuple[Floats, Floats, Floats | float]]
    two_sided: bool = False


def covers(
    case: Cover, *, replicates: int = REPLICATES, level: float = LEVEL, seed: int = 0
) -> dict[str, Any]:
    """How often a case's interval has the truth in it, and whether the exact binomial allows that many.

    Returns name, hits, n, coverage, low and high (the smallest and largest number of hits that is accepted), accepted.

    Raises
    ------
    ControlError: fewer than 2,000 replicates, with which a coverage of .93 and one of .95 could not be told apart.
    """
    if replicates < REPLICATES:
        raise ControlError(f"{replicates} replicates", why=f"coverage is judged on {REPLICATES:,} or more",
                           instead=f"replicates={REPLICATES}")  # fmt: skip
    low, high, true = case.run(seeds.rng(seed, f"coverage/{case.name}"), replicates)
    hits = int(((low <= true) & (true <= high)).sum())
    least, most = band(replicates, level, two_sided=case.two_sided)
    return {"name": case.name, "hits": hits, "n": replicates, "coverage": hits / replicates, "low": least, "high": most,
            "accepted": least <= hits <= most}  # fmt: skip


def band(n: int, level: float, *, two_sided: bool) -> tuple[int, int]:
    """The smallest and largest number of hits that a right interval has but with chance BAND (exact binomial)."""
    each = BAND / 2 if two_sided else BAND
    least = int(stats.binom.ppf(each, n, level))
    return least, int(stats.binom.isf(each, n, level)) if two_sided else n


def cases() -> tuple[Cover, ...]:
    """Every cheap case."""
    return (
        Cover("mean, normal prompts", _normal, two_sided=True),
        Cover("mean, equal clusters", _equal, two_sided=True),
        Cover("mean, unequal clusters", _unequal),
        Cover("mean, under six clusters", _few),
        Cover("mean, bootstrap-t over clusters", _bootstrap),
        Cover("proportion, Clopper-Pearson", _proportion),
        Cover("normalised effect, Fieller", _ratio),
        *(Cover(f"planted: patching in {name}", partial(_planted, name=name)) for name in PLANTED),
    )


def all_cases(seed: int = 0) -> list[dict[str, Any]]:
    """`covers` of every case."""
    return [covers(case, seed=seed) for case in cases()]


def _normal(random: Random, n: int) -> tuple[Floats, Floats, float]:
    found = mean_interval(0.3 + random.standard_normal((n, PROMPTS)), np.arange(PROMPTS))
    return found.low, found.high, 0.3


def _clustered(random: Random, n: int, codes: NDArray[np.int64]) -> Floats:
    """Mean 0, variance 1, half of it shared within clusters. Shapes: [replicate, prompt]."""
    shared = random.standard_normal((n, int(codes.max()) + 1))[:, codes]
    made: Floats = np.sqrt(0.5) * (shared + random.standard_normal((n, codes.size)))
    return made


def _equal(random: Random, n: int) -> tuple[Floats, Floats, float]:
    codes = np.repeat(np.arange(CLUSTERS), 3)
    found = mean_interval(_clustered(random, n, codes), codes)
    return found.low, found.high, 0.0


def _unequal(random: Random, n: int) -> tuple[Floats, Floats, float]:
    codes = np.repeat(np.arange(CLUSTERS), 1 + np.arange(CLUSTERS) % 4)
    found = mean_interval(_clustered(random, n, codes), codes)
    return found.low, found.high, 0.0


def _few(random: Random, n: int) -> tuple[Floats, Floats, Floats]:
    """Clusters are fixed then, and the truth is the mean of these."""
    codes = np.repeat(np.arange(4), 8)
    means = random.standard_normal((n, 4))[:, codes]
    found = mean_interval(means + random.standard_normal(means.shape), codes)
    return found.low, found.high, means.mean(1)


def _bootstrap(random: Random, n: int) -> tuple[Floats, Floats, float]:
    """In batches, each with draws of its own."""
    codes = np.repeat(np.arange(CLUSTERS), 3)
    lows, highs = [], []
    for start in range(0, n, 100):
        size = min(100, n - start)
        found = bootstrap_interval(_clustered(random, size, codes), codes, seed=start, draws=1_000)
        lows.append(found.low)
        highs.append(found.high)
    return np.concatenate(lows), np.concatenate(highs), 0.0


def _proportion(random: Random, n: int) -> tuple[Floats, Floats, float]:
    low, high = np.empty(PROMPTS + 1), np.empty(PROMPTS + 1)
    for hits in range(PROMPTS + 1):  # the interval depends on their number alone
        found = proportion_interval(np.arange(PROMPTS) < hits)
        low[hits], high[hits] = float(found.low), float(found.high)
    drawn = random.binomial(PROMPTS, 0.9, n)
    return low[drawn], high[drawn], 0.9


def _ratio(random: Random, n: int) -> tuple[Floats, Floats, float]:
    """Both means vary, anew in every replicate."""
    codes = np.repeat(np.arange(CLUSTERS), 3)
    low, high = np.empty(n), np.empty(n)
    for i in range(n):
        total = 4 + 1.5 * _clustered(random, 1, codes)[0]
        found = normalised_effect(0.6 * total + 0.8 * _clustered(random, 1, codes), total, codes)
        low[i], high[i] = found.low[0], found.high[0]
    return low, high, 0.6


def _planted(random: Random, n: int, name: str) -> tuple[Floats, Floats, float]:
    """Effects of the node of the mechanism whose effects vary most, on 256 pairs; a replicate is 32 of them, with replacement."""
    from microtome.methods import activation_patching
    from microtome.zoo.catalog import build

    z = build(name, seed=0, n=256)
    nodes = [node for node in z.mechanism.nodes if node != "embed"]
    result = activation_patching(
        z.model, z.task, sites=nodes, positions="all", mode="noise", controls="none", seed=0
    )
    assert result.effects is not None
    every = result.effects.values[..., 0].astype(np.float64)
    effects = every[every.std(1).argmax()]
    found = mean_interval(effects[random.integers(len(effects), size=(n, PROMPTS))], np.arange(PROMPTS))
    return found.low, found.high, float(effects.mean())


def failed(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the cases that were not accepted."""
    return [row["name"] for row in table if not row["accepted"]]
