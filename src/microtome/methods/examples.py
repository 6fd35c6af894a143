"""Max-activating examples: where a neuron, a head or a direction is largest, and what it does everywhere else.

The top alone misleads (Bolukbasi et al. 2021, "An interpretability illusion for BERT"): lower quantiles often show something
else, and another corpus another story. So every unit comes with samples from each quantile and at random, and with a prediction:
do the tokens of one half of the documents say where it is active in the other half, and better than for a random direction?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from microtome.controls.clusters import as_clusters
from microtome.controls.detection import Area, area, areas
from microtome.errors import ControlError, SiteError
from microtome.methods.example_search import Found, blocks_of, search
from microtome.methods.headlines import headlined
from microtome.methods.ngrams import NGrams
from microtome.methods.unembedded import vocabulary
from microtome.methods.units import Units, units_of, watch
from microtome.model.tokens import pack
from microtome.results import seeds
from microtome.results.arguments import ArgumentError, suggest
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.trace.run import forward, prepare

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["ExampleOptions", "disjoint", "max_activating", "most_active", "rank_p", "stratum_names"]

FEW = 8
"""Up to so many units all are shown with their contexts; of more, `SHOWN` drawn at random."""
SHOWN = 4
BINS = 40


@dataclass(frozen=True)
class ExampleOptions:
    """How a corpus is searched and what is kept.

    k: top examples of a unit, one per block. strata: where the quantiles of the activation are cut. each: samples from every
    stratum. random: samples at random. active: the share of tokens that counts as active in the prediction.
    context, tokens: block length, and tokens of the corpus at most. before, after: tokens shown around an example.
    first: whether a block's first token may be an example (attention sinks lie there). sample: random token positions kept.
    draws: random directions. batch: tokens of one forward.
    """

    k: int = 10
    strata: tuple[float, ...] = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)
    each: int = 2
    random: int = 3
    active: float = 0.05
    context: int = 128
    tokens: int = 20_000
    before: int = 12
    after: int = 4
    first: bool = False
    sample: int = 4096
    draws: int = 199
    batch: int = 2048

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> ExampleOptions:
        """Options by name.

        Raises
        ------
        ArgumentError: an option that there is not. ControlError: a value that makes no sense.
        """
        known = [f.name for f in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise ArgumentError(f"there is no option {name!r}", why=f"options are {', '.join(known)}", instead=suggest(name, known))  # fmt: skip
        given = dict(options or {})
        return cls(**given | ({"strata": tuple(given["strata"])} if "strata" in given else {}))

    def __post_init__(self) -> None:
        inner = self.strata
        if len(inner) < 2 or inner[0] != 0 or inner[-1] != 1 or any(a >= b for a, b in zip(inner, inner[1:], strict=False)):  # fmt: skip
            raise ControlError(
                f"strata={inner}", why="quantiles rise from 0 to 1", instead="(0, 0.5, 0.9, 0.99, 1)"
            )
        whole = {"k": 1, "each": 0, "random": 1, "context": 2, "tokens": 2, "before": 0, "after": 0, "sample": 40, "draws": 19, "batch": 1}  # fmt: skip
        for name, least in whole.items():
            if getattr(self, name) < least:
                raise ControlError(f"{name}={getattr(self, name)}", why=f"it is {least} or more", instead=f"{name}={least}")  # fmt: skip
        if not 0 < self.active < 0.5:
            raise ControlError(f"active={self.active}", why="the active tokens are the fewer ones", instead="active=0.05")  # fmt: skip


@technique("max_activating", "1", controls=("same_alone", "disjoint", "random_directions", "first_token", "beyond_the_top"),
           mandatory=("same_alone", "disjoint", "random_directions"), figure="microtome.figures.examples:draw", random=True)  # fmt: skip
def max_activating(
    model: Model,
    corpus: Any,
    of: Any,
    *,
    directions: Tensor | None = None,
    show: list[str] | None = None,
    options: Mapping[str, Any] | None = None,
    alpha: float = 0.01,
    seed: int = 0,
) -> Result:
    """The tokens at which units are most active, samples of the rest, and how far tokens predict them on held-out text.

    Parameters
    ----------
    corpus: a corpus, its blocks, texts (one document each) or lists of token ids.
    of: "L12.neurons" (all of a layer in one pass), "L12N5,9.neurons", "L3.head_out" (norms of heads' outputs), a `Direction` or
        several; with `directions` [unit, d] the address where they live. Directions are read at length 1.
    options: see `ExampleOptions`: k, strata, context, tokens, first, ...
    show: names of units whose contexts are kept; default all of up to 8, of more 4 drawn at random.
    alpha: level of the comparison with random directions.

    Tables: "cells" (site, metric "detection": the area under the ROC with which tokens and bigrams of the shown documents
    predict the most active tokens of the others, beside random directions), "summary" (one row per unit), "tops" (the k largest of each
    unit), and of shown units "contexts" (token by token), "strata", "histogram" and "logits" (what the unit writes, in the
    vocabulary; null: random directions of its length). Activations in the unit of the site.

    Controls: an example recomputed by itself gives the number shown; documents of the halves are disjoint; random directions on
    the same tokens; the share of first tokens (attention sinks) among the largest; the prediction without the top stratum.

    Raises
    ------
    SiteError, EditError: units that cannot be read so. ControlError: one document, or too few tokens.
    ModelError: an activation that is not finite.
    """
    o = ExampleOptions.of(options)
    units = units_of(model, of, directions)
    chosen = _chosen(units, show, seed)
    items = blocks_of(model, corpus, o.context, o.tokens, seeds.child(seed, "corpus"))
    null = units.null(o.draws, seeds.child(seed, "random directions"))
    found = search(model, items, units, null, k=o.k, sample=o.sample, first=o.first, batch=o.batch, seed=seed)  # fmt: skip
    n = len(units.names)
    held = Held.of(found, o.active)
    documents = as_clusters(held.document)
    intervals = [area(held.predicted[:, c], held.truth[:, c], documents) for c in range(n)]
    p, least = rank_p(held.value[:n], held.value[n:])
    contexts, gap = _contexts(model, units, found, chosen, o, seed)
    ran = [
        _same_alone(gap, found, model, n),
        disjoint(found),
        _random_directions(held.value[:n], held.value[n:], p, alpha),
        _first_token(found, n, o),
        _beyond(held, n, o),
    ]
    tables = {
        "cells": _cells(units, intervals, held.value[n:]),
        "summary": _summary(units, found, held, n),
        "tops": _tops(model, units, found, n),
        "contexts": _table(contexts),
        "strata": _strata(units, found, held, chosen, o),
        "histogram": _histogram(units, found, chosen, n),
    }
    logits, why = ([], units.why) if units.writes is None else vocabulary(model, units.writes[chosen], 8, seeds.child(seed, "logits"))  # fmt: skip
    if logits:
        words = model.strings([row["token"] for row in logits])
        tables["logits"] = _table([{**row, "unit": units.names[chosen[row["unit"]]], "token": word} for row, word in zip(logits, words, strict=True)])  # fmt: skip
    about = {"tokens": int(len(items.ids)), "blocks": len(items), "documents": int(found.document.max()) + 1, "shown units": len(chosen), "units": n,
             "logits": why or "direct, without the final norm's division, biases, softcap and later layers", "first tokens": "kept" if o.first else "left out"}  # fmt: skip
    tables["about"] = _table([{"name": key, "value": str(value)} for key, value in about.items()])
    mandatory = ("same_alone", "disjoint", "random_directions")
    return headlined(Result("max_activating", tables={k: t for k, t in tables.items() if len(t)}, controls=ran, verdict=verdict(ran, mandatory, p, alpha, least),
                  raw_examples=_raw(contexts)))  # fmt: skip


def _chosen(units: Units, show: list[str] | None, seed: int) -> list[int]:
    n = len(units.names)
    if show is not None:
        if unknown := [name for name in show if name not in units.names]:
            raise SiteError(f"{unknown[0]} is none of the units", why=f"there are {n}: {', '.join(units.names[:3])}, ...", instead=f'show=["{units.names[0]}"]')  # fmt: skip
        return [units.names.index(name) for name in show]
    if n <= FEW:
        return list(range(n))
    return sorted(seeds.rng(seed, "examples/shown").choice(n, SHOWN, replace=False).tolist())


@dataclass(frozen=True)
class Held:
    """The held-out half of the sample. Shapes: predicted, truth, activation [row, column]; document [row]; value [column]."""

    predicted: np.ndarray
    truth: np.ndarray
    activation: np.ndarray
    document: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, found: Found, active: float) -> Held:
        """Tokens and bigrams fitted on the shown half, tried on the other.

        Raises
        ------
        ControlError: fewer than 40 held-out tokens.
        """
        train = found.train
        before, here = found.tokens(1), found.tokens()
        activation = found.sample[~train].astype(np.float64)
        if len(activation) < 40:
            raise ControlError(f"{len(activation)} held-out tokens", why="with fewer than 40 nothing can be predicted", instead="more text")  # fmt: skip
        predicted = NGrams(before[train], here[train], found.sample[train])(before[~train], here[~train])
        truth = most_active(activation, active)
        return cls(predicted, truth, activation, found.document[found.sample_item[~train]], areas(predicted, truth))  # fmt: skip


def most_active(activation: np.ndarray, share: float) -> np.ndarray:
    """The most active rows of each column, a share of them, ties broken by order. Shapes: [row, column] -> same."""
    n = len(activation)
    count = min(max(1, round(share * n)), n - 1)
    order = np.argsort(-activation, axis=0, kind="stable")
    truth = np.zeros(activation.shape, bool)
    np.put_along_axis(truth, order[:count], True, axis=0)
    return truth


def rank_p(own: np.ndarray, null: np.ndarray) -> tuple[float, float]:
    """One-sided p that units score above random directions: the rank of one, the rank sum of several; and the least possible."""
    if len(own) == 1:
        return float((1 + (null >= own[0]).sum()) / (1 + len(null))), 1 / (1 + len(null))
    from scipy import stats

    p = stats.mannwhitneyu(own, null, alternative="greater", method="asymptotic").pvalue
    apart = stats.mannwhitneyu(np.ones(len(own)), np.zeros(len(null)) + np.linspace(0, 0.5, len(null)), alternative="greater", method="asymptotic").pvalue  # fmt: skip
    return float(p), float(apart)


def _contexts(
    model: Model, units: Units, found: Found, chosen: list[int], o: ExampleOptions, seed: int
) -> tuple[list[dict[str, Any]], float]:
    """Every example of the shown units token by token, each run by itself; and the largest difference from the pass."""
    wanted = [example for c in chosen for example in _examples(found, c, o, seed)]
    runs: dict[tuple[int, int], list[int]] = {}
    for w, (_, _, item, at, _, _) in enumerate(wanted):
        runs.setdefault((item, at), []).append(w)
    plan = prepare(model.binding, pack([found.items[0][:2]]), capture=[units.site.whole], edits=(), attention=None)  # fmt: skip
    seen = watch(units.site, units.read)
    rows: list[list[dict[str, Any]]] = [[] for _ in wanted]
    gap = 0.0
    for count, ((item, at), which) in enumerate(runs.items()):
        ids = found.items[item][: at + o.after + 1]
        forward(model.binding, pack([ids]), [seen], [], logits=None, attention=plan.attention)
        assert seen.value is not None
        values = seen.value[0].detach().cpu().numpy()
        words = model.strings(ids[max(0, at - o.before) :])
        for w in which:
            column, stratum, _, _, rank, told = wanted[w]
            gap = max(gap, abs(float(values[at, column]) - told))
            rows[w] = [{"unit": units.names[column], "stratum": stratum, "rank": rank, "index": i, "token": word, "value": float(values[i, column]),
                        "peak": i == at, "document": str(_document(found, item))} for i, word in enumerate(words, max(0, at - o.before))]  # fmt: skip
        progress(count + 1, len(runs), "examples", "alone")
    return [row for own in rows for row in own], gap


def _document(found: Found, item: int) -> Any:
    return found.items.documents[item] if found.items.documents else item


def _examples(found: Found, c: int, o: ExampleOptions, seed: int) -> list[tuple[int, str, int, int, int, float]]:  # fmt: skip
    """(column, stratum, item, position, rank, activation): the top, samples of each stratum, and random ones."""
    out = [(c, "top", int(found.item[c, r]), int(found.at[c, r]), r, float(found.value[c, r]))
           for r in range(found.value.shape[1]) if np.isfinite(found.value[c, r])]  # fmt: skip
    generator = seeds.rng(seed, f"examples/strata/{c}")
    order = np.argsort(found.sample[:, c], kind="stable")
    cuts = [round(q * len(order)) for q in o.strata]
    groups = [(name, order[a:b], o.each) for name, a, b in reversed(list(zip(stratum_names(o.strata), cuts, cuts[1:], strict=False)))]  # fmt: skip
    for name, rows, count in [*groups, ("random", order, o.random)]:
        drawn = generator.choice(rows, min(count, len(rows)), replace=False) if len(rows) else rows
        out += [(c, name, int(found.sample_item[r]), int(found.sample_at[r]), k, float(found.sample[r, c])) for k, r in enumerate(drawn)]  # fmt: skip
    return out


def stratum_names(strata: tuple[float, ...]) -> list[str]:
    """Quantile strata as text."""
    return [f"{100 * a:g}-{100 * b:g} %" for a, b in zip(strata, strata[1:], strict=False)]


# ------------------------------------------------------------------------------------------ controls


def _same_alone(gap: float, found: Found, model: Model, n: int) -> Control:
    large = float(np.abs(found.sample[:, :n]).max())
    share = 1e-4 if model.numerics["dtype"] in ("float32", "float64") else 3e-2
    floor = share * max(large, 1e-6)
    return Control("same_alone", "that a number belongs to another token or text than the one shown", f"each example run by itself gives its number, within {floor:.1g}",
                   gap, gap <= floor, int(found.value.shape[1]), gates=True)  # fmt: skip


def disjoint(found: Found) -> Control:
    """No document in both halves, nor an example from a held-out one."""
    here, there = set(found.document[found.shown].tolist()), set(found.document[~found.shown].tolist())
    top = set(found.document[found.item[found.item >= 0]].tolist())
    held = set(found.document[found.sample_item[~found.train]].tolist())
    both = len(here & there) + len(top & held)
    return Control("disjoint", "that examples and held-out text share a document", "no document is in both halves", both, both == 0, len(here | there), gates=True)  # fmt: skip


def _random_directions(own: np.ndarray, null: np.ndarray, p: float, alpha: float) -> Control:
    low, high = (float(v) for v in np.quantile(null, [0.025, 0.975]))
    return Control("random_directions", "that tokens predict any direction of this site as well", f"more predictable than random directions on the same tokens, p <= {alpha:g}",
                   {"units, median": float(np.median(own)), "random, median": float(np.median(null)), "p": p}, p <= alpha, len(null), null=(low, high))  # fmt: skip


def first_share(found: Found) -> np.ndarray:
    """How many of the k largest would be first tokens, were those not left out: a share. Shapes: [column]."""
    both = np.concatenate([found.value, found.first], 1)
    is_first = np.concatenate([found.at == 0, np.ones(found.first.shape, bool)], 1)
    order = np.argsort(-both, axis=1, kind="stable")[:, : found.value.shape[1]]
    return np.asarray(np.take_along_axis(is_first, order, 1).mean(1))


def _first_token(found: Found, n: int, o: ExampleOptions) -> Control:
    own = found.at[:n][found.item[:n] >= 0]
    share = float((own == 0).mean())
    would = float(first_share(found)[:n].mean()) if not o.first else share
    return Control("first_token", "that the examples are attention sinks at a text's first token", "at most a tenth of the examples shown are first tokens",
                   {"shown": share, "if not left out": would}, share <= 0.1, len(own))  # fmt: skip


def _beyond(held: Held, n: int, o: ExampleOptions) -> Control:
    """Does what the tokens say hold below the top? The area for the next stratum against all that lies lower."""
    cut = o.strata[-2] if len(o.strata) > 2 else 1 - o.active
    rules_out, expected = "that only the very top fits a story", "without the top stratum tokens still predict better than random directions, p <= 0.05"  # fmt: skip
    rank = np.argsort(np.argsort(held.activation, axis=0, kind="stable"), axis=0)
    rest = rank < round(cut * len(rank))
    if int(rest[:, 0].sum()) < 40:
        return Control.not_run("beyond_the_top", rules_out, expected, "fewer than 40 held-out tokens lie below the top stratum")  # fmt: skip
    values = np.array([_below(held, c, rest[:, c], o.active) for c in range(held.predicted.shape[1])])
    low, high = (float(v) for v in np.quantile(values[n:], [0.05, 0.95]))
    p, _ = rank_p(values[:n], values[n:])
    return Control("beyond_the_top", rules_out, expected, {"units, median": float(np.median(values[:n])), "random, median": float(np.median(values[n:])), "p": p},
                   p <= 0.05, int(rest[:, 0].sum()), null=(low, high))  # fmt: skip


def _below(held: Held, c: int, rest: np.ndarray, share: float) -> float:
    own = held.activation[rest, c][:, None]
    return float(areas(held.predicted[rest, c], most_active(own, share))[0])


# ------------------------------------------------------------------------------------------ tables


def _cells(units: Units, intervals: list[Area], null: np.ndarray) -> pd.DataFrame:
    low, high = (float(v) for v in np.quantile(null, [0.025, 0.975]))
    return _table([{"site": name, "metric": "detection", "value": a.value, "low": a.low, "high": a.high, "null_low": low, "null_high": high, "n": a.n}
                   for name, a in zip(units.names, intervals, strict=True)])  # fmt: skip


def _summary(units: Units, found: Found, held: Held, n: int) -> pd.DataFrame:
    import pandas as pd

    own = found.sample[:, :n].astype(np.float64)
    spread = own.std(0)
    return pd.DataFrame({"unit": units.names, "largest": found.value[:n, 0].astype(float), "mean": own.mean(0), "sd": spread,
                         "kurtosis": ((own - own.mean(0)) ** 4).mean(0) / np.where(spread > 0, spread, 1) ** 4, "above_zero": (own > 0).mean(0),
                         "first_tokens": first_share(found)[:n], "detection": held.value[:n]})  # fmt: skip


def _tops(model: Model, units: Units, found: Found, n: int) -> pd.DataFrame:
    import pandas as pd

    column, rank = np.nonzero(np.isfinite(found.value[:n]))
    item, at = found.item[column, rank], found.at[column, rank]
    ids = found.items.ids[found.items.starts[item] + at]
    known, which = np.unique(ids, return_inverse=True)
    words = np.array(model.strings(known.tolist()), dtype=object)
    return pd.DataFrame({"unit": [units.names[c] for c in column], "rank": rank, "value": found.value[column, rank].astype(float), "item": item, "position": at,
                         "token": words[which], "document": [str(_document(found, int(i))) for i in item]})  # fmt: skip


def _strata(units: Units, found: Found, held: Held, chosen: list[int], o: ExampleOptions) -> pd.DataFrame:
    """Per stratum of the held-out activations of shown units: its range, and the mean rank that the tokens give it (0 to 1)."""
    rows = []
    for c in chosen:
        order = np.argsort(held.activation[:, c], kind="stable")
        rank = np.argsort(np.argsort(held.predicted[:, c], kind="stable"), kind="stable") / (len(order) - 1)
        cuts = [round(q * len(order)) for q in o.strata]
        for name, a, b in zip(stratum_names(o.strata), cuts, cuts[1:], strict=False):
            if b > a:
                values = held.activation[order[a:b], c]
                rows.append({"unit": units.names[c], "stratum": name, "from": float(values[0]), "to": float(values[-1]), "predicted": float(rank[order[a:b]].mean()),
                             "n": b - a})  # fmt: skip
    return _table(rows)


def _histogram(units: Units, found: Found, chosen: list[int], n: int) -> pd.DataFrame:
    """Shares of the sample's tokens in bins of each shown unit's activation, beside random directions of the same spread."""
    rows = []
    null = found.sample[:, n:].astype(np.float64)
    null = (null - null.mean(0)) / np.where(null.std(0) > 0, null.std(0), 1)
    for c in chosen:
        own = found.sample[:, c].astype(np.float64)
        ends = np.linspace(own.min(), max(own.max(), own.min() + 1e-9), BINS + 1)
        share = np.histogram(own, ends)[0] / len(own)
        other = np.histogram(null * own.std() + own.mean(), ends)[0] / null.size
        rows += [{"unit": units.names[c], "left": float(a), "right": float(b), "share": float(s), "null": float(z)}
                 for a, b, s, z in zip(ends, ends[1:], share, other, strict=False)]  # fmt: skip
    return _table(rows)


def _raw(contexts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The random samples as raw examples."""
    out: dict[tuple[str, int], dict[str, Any]] = {}
    for row in contexts:
        if row["stratum"] == "random":
            one = out.setdefault((row["unit"], row["rank"]), {"tokens": [], "unit": row["unit"], "activations": [], "at": ""})  # fmt: skip
            one["tokens"].append(row["token"])
            one["activations"].append(row["value"])
            if row["peak"]:
                one["at"], one["activation"] = row["token"], row["value"]
    return [{**one, "activations": [float(f"{v:.4g}") for v in one["activations"]]} for one in out.values()]


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
