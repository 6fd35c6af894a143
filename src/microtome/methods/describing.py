"""Is a description of a unit true? It must say where the unit is active in text that it was not written from.

Detection scoring (Paulo et al. 2024, "Automatically interpreting millions of features"), with what the scores are worth nothing
without: the same description tried on random directions, other descriptions tried on the unit, and baselines that read no
description (automated scores hardly tell trained from random models: Heap et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.detection import area, areas
from microtome.errors import ControlError, SiteError
from microtome.methods.described import Description, Texts, keywords_of, kind_of, shuffled
from microtome.methods.example_search import Found, blocks_of, search
from microtome.methods.examples import ExampleOptions, disjoint, most_active, stratum_names
from microtome.methods.headlines import headlined
from microtome.methods.ngrams import NGrams
from microtome.methods.units import units_of
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["score_description"]

Judge = Callable[[str, list[str]], Sequence[float]]
SHUFFLED, JUDGED, JUDGED_SHUFFLED = 99, 200, 5
_MANDATORY = ("disjoint", "random_directions", "shuffled_descriptions")


@technique("score_description", "1", controls=("disjoint", "random_directions", "shuffled_descriptions", "beyond_the_top", "ngrams"),
           mandatory=_MANDATORY, figure="microtome.figures.descriptions:draw", random=True)  # fmt: skip
def score_description(
    model: Model,
    corpus: Any,
    of: Any,
    description: Description,
    *,
    judge: Judge | None = None,
    options: Mapping[str, Any] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Result:
    """How well a description of one unit says at which held-out tokens it is most active.

    Parameters
    ----------
    of: one unit: "L12N5.neurons", a `Direction`, ... (see `max_activating`; the same corpus and seed give the same halves, so
        that a description written from its examples is tried on text that it did not show).
    description: text, ["some", "keywords"], or a regular expression "/.../".
    judge: a language model or anything else: judge(description, contexts) -> one score per context, in which the token in
        question stands between « and ». Larger is more active. It gets 200 contexts, a quarter of them active ones.

    Table "cells": site (the unit), metric (the reader: "lexical", "embedding", "judge", and "ngrams", which reads no description),
    value: area under the ROC, with limits over documents; null: the same scores on random directions. "predictors": the same with
    shuffled descriptions, and what a look at the top alone would have given. "strata": mean score by quantile of the activation.
    The verdict is about the judge where there is one, else keywords and patterns are read lexically and text by embeddings.

    Raises
    ------
    SiteError: several units. ControlError: an empty description, a judge that answers with something else than one finite number
    per context, or too little text.
    """
    o = ExampleOptions.of(options)
    kind = kind_of(description)
    units = units_of(model, of)
    if len(units.names) != 1:
        raise SiteError(f"{len(units.names)} units", why="a description is of one", instead=f'for example "{units.names[0]}"')  # fmt: skip
    items = blocks_of(model, corpus, o.context, o.tokens, seeds.child(seed, "corpus"))
    null = units.null(o.draws, seeds.child(seed, "random directions"))
    found = search(model, items, units, null, k=o.k, sample=o.sample, first=o.first, batch=o.batch, seed=seed)
    held = np.flatnonzero(~found.train)
    if len(held) < 40:
        raise ControlError(f"{len(held)} held-out tokens", why="with fewer than 40 nothing can be predicted", instead="more text")  # fmt: skip
    texts = Texts.of(model, found, held, o.before)
    active = most_active(found.sample[held].astype(np.float64), o.active)
    other = shuffled(texts, len(keywords_of(description)), SHUFFLED, seeds.rng(seed, "shuffled descriptions"))
    every = np.arange(len(held))
    readers = [
        Reader("lexical", every, texts.lexical(description), [texts.lexical(words) for words in other]),
        Reader("embedding", every, texts.likeness(model, description), [texts.likeness(model, words) for words in other]),
        Reader("ngrams", every, _ngrams(found, held), []),
    ]  # fmt: skip
    main = "lexical" if kind in ("keywords", "regex") else "embedding"
    if judge is not None:
        readers.insert(0, _judged(judge, description, other, texts, active[:, 0], seed))
        main = "judge"
    scored = [Scored.of(reader, active, found.document[found.sample_item[held]]) for reader in readers]
    told = next(s for s in scored if s.name == main)
    p = float((1 + (told.random >= told.value).sum()) / (1 + len(told.random)))
    ran = [
        disjoint(found),
        _random(told, p, alpha),
        _shuffled(told),
        _below_top(told, found.sample[held, 0], o),
        _against_ngrams(told, next(s for s in scored if s.name == "ngrams")),
    ]
    tables = {
        "cells": _cells(units.names[0], scored),
        "predictors": _predictors(scored, found.sample[held, 0], main),
        "strata": _strata(scored, found.sample[held, 0], o),
    }
    return headlined(Result("score_description", tables=tables, controls=ran, verdict=verdict(ran, _MANDATORY, p, alpha, 1 / (1 + o.draws)),
                  raw_examples=_raw(texts, found.sample[held, 0], active[:, 0], told, seed)))  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A way of reading a description: its scores of some held-out rows, and those of other descriptions. Shapes: [row]."""

    name: str
    rows: np.ndarray
    scores: np.ndarray
    shuffled: list[np.ndarray]


@dataclass(frozen=True)
class Scored:
    """A reader judged. random: areas on random directions [draw]; other: areas of other descriptions on the unit [draw]."""

    name: str
    rows: np.ndarray
    scores: np.ndarray
    value: float
    low: float
    high: float
    random: np.ndarray
    other: np.ndarray

    @classmethod
    def of(cls, reader: Reader, active: np.ndarray, document: np.ndarray) -> Scored:
        """Areas of a reader. Shapes: active [row, column], the unit's first, then those of random directions."""
        truth = active[reader.rows]
        own = area(reader.scores, truth[:, 0], document[reader.rows])
        usable = (truth.sum(0) > 0) & (truth.sum(0) < len(truth))
        random = areas(reader.scores, truth[:, usable])[1:]
        other = np.array([areas(s, truth[:, :1])[0] for s in reader.shuffled])
        return cls(reader.name, reader.rows, reader.scores, own.value, own.low, own.high, random, other)


def _ngrams(found: Found, held: np.ndarray) -> np.ndarray:
    train, before, here = found.train, found.tokens(1), found.tokens()
    return NGrams(before[train], here[train], found.sample[train][:, :1])(before[held], here[held])[:, 0]


def _judged(judge: Judge, description: Description, other: list[list[str]], texts: Texts, active: np.ndarray, seed: int) -> Reader:  # fmt: skip
    """The judge's scores of some rows, active ones among them, for the description and some shuffled ones."""
    generator = seeds.rng(seed, "judged")
    yes, no = np.flatnonzero(active), np.flatnonzero(~active)
    yes = generator.choice(yes, min(len(yes), JUDGED // 4), replace=False)
    no = generator.choice(no, min(len(no), JUDGED - len(yes)), replace=False)
    rows = generator.permutation(np.concatenate([yes, no]))
    marked = texts.marked()
    contexts = [marked[r] for r in rows]
    asked = [description if isinstance(description, str) else "words such as: " + ", ".join(description)]
    asked += ["words such as: " + ", ".join(words) for words in other[:JUDGED_SHUFFLED]]
    answers = []
    for k, question in enumerate(asked):
        answers.append(_answer(judge(question, list(contexts)), len(contexts)))
        progress(k + 1, len(asked), "descriptions", "judged")
    return Reader("judge", rows, answers[0], answers[1:])


def _answer(answer: Any, n: int) -> np.ndarray:
    try:
        scores = np.asarray(answer, np.float64)
    except (TypeError, ValueError) as error:
        raise ControlError(f"the judge answered with a {type(answer).__name__}", why=str(error), instead="one number per context") from error  # fmt: skip
    if scores.shape != (n,) or not np.isfinite(scores).all():
        raise ControlError(f"the judge gave {scores.shape} scores for {n} contexts, or one that is not finite", why="each context has one score",
                           instead="a list of as many numbers")  # fmt: skip
    return scores


# ------------------------------------------------------------------------------------------ controls


def _random(told: Scored, p: float, alpha: float) -> Control:
    low, high = (float(v) for v in np.quantile(told.random, [0.025, 0.975]))
    return Control("random_directions", "that the description says the same of any direction of this site", f"it says where this unit is active better than of random directions, p <= {alpha:g}",
                   {"unit": told.value, "random, median": float(np.median(told.random)), "p": p}, p <= alpha, len(told.random), null=(low, high))  # fmt: skip


def _shuffled(told: Scored) -> Control:
    high = float(np.quantile(told.other, 0.95))
    return Control("shuffled_descriptions", "that any description would have scored so", "above 19 of 20 descriptions made of other words (above all where there are fewer)",
                   {"own": told.value, "other, median": float(np.median(told.other)), "other, 95th percentile": high}, told.value > high, len(told.other),
                   null=(float(np.quantile(told.other, 0.05)), high))  # fmt: skip


def _below_top(told: Scored, activation: np.ndarray, o: ExampleOptions) -> Control:
    """Without the top stratum of activation: what is active there, by the same share."""
    rules_out, expected = "that the description fits the very top only", "above one half, and above 19 of 20 random directions, without the top stratum"  # fmt: skip
    own = activation[told.rows]
    cut = np.quantile(activation, o.strata[-2] if len(o.strata) > 2 else 1 - o.active)
    rest = own < cut
    floor = np.quantile(activation[activation < cut], 1 - o.active)
    truth = own[rest] >= floor
    if truth.sum() < 2 or (~truth).sum() < 2:
        return Control.not_run(
            "beyond_the_top", rules_out, expected, "too few tokens lie below the top stratum"
        )
    value, high = float(areas(told.scores[rest], truth[:, None])[0]), float(np.quantile(told.random, 0.95))
    return Control("beyond_the_top", rules_out, expected, {"below the top": value, "whole": told.value}, value > max(0.5, high), int(rest.sum()),
                   null=(float(np.quantile(told.random, 0.05)), high))  # fmt: skip


def _against_ngrams(told: Scored, ngrams: Scored) -> Control:
    return Control("ngrams", "that counting tokens would say more than the description does", "not below the n-gram baseline, which reads no description",
                   {told.name: told.value, "ngrams": ngrams.value}, told.value >= ngrams.value, len(told.rows))  # fmt: skip


# ------------------------------------------------------------------------------------------ tables


def _cells(name: str, scored: list[Scored]) -> pd.DataFrame:
    rows = []
    for s in scored:
        low, high = (float(v) for v in np.quantile(s.random, [0.025, 0.975]))
        rows.append({"site": name, "metric": s.name, "value": s.value, "low": s.low, "high": s.high, "null_low": low, "null_high": high, "n": len(s.rows)})  # fmt: skip
    return _table(rows)


def _predictors(scored: list[Scored], activation: np.ndarray, main: str) -> pd.DataFrame:
    """top_only: the area of the ten largest rows against rows of the lower half, the picture that top examples alone give."""
    rows = []
    for s in scored:
        own = activation[s.rows]
        order = np.argsort(-own, kind="stable")
        ends = np.concatenate([order[:10], order[len(order) // 2 :]])
        top_only = float(areas(s.scores[ends], (np.arange(len(ends)) < 10)[:, None])[0])
        other = np.quantile(s.other, [0.05, 0.95]) if len(s.other) else (np.nan, np.nan)
        rows.append({"reader": s.name, "value": s.value, "low": s.low, "high": s.high, "random_low": float(np.quantile(s.random, 0.025)),
                     "random_high": float(np.quantile(s.random, 0.975)), "shuffled_low": float(other[0]), "shuffled_high": float(other[1]), "top_only": top_only,
                     "n": len(s.rows), "main": s.name == main})  # fmt: skip
    return _table(rows)


def _strata(scored: list[Scored], activation: np.ndarray, o: ExampleOptions) -> pd.DataFrame:
    """The mean rank (0 to 1) that each reader gives to the tokens of each stratum."""
    rows = []
    for s in scored:
        own = activation[s.rows]
        rank = np.argsort(np.argsort(s.scores, kind="stable"), kind="stable") / (len(own) - 1)
        cuts = np.quantile(activation, o.strata)
        for i, name in enumerate(stratum_names(o.strata)):
            inside = (own >= cuts[i]) & ((own < cuts[i + 1]) | (i == len(o.strata) - 2))
            if inside.any():
                rows.append({"unit": s.name, "stratum": name, "from": float(own[inside].min()), "to": float(own[inside].max()),
                             "predicted": float(rank[inside].mean()), "n": int(inside.sum())})  # fmt: skip
    return _table(rows)


def _raw(texts: Texts, activation: np.ndarray, active: np.ndarray, told: Scored, seed: int, n: int = 6) -> list[dict[str, Any]]:  # fmt: skip
    chosen = seeds.rng(seed, "raw examples").choice(len(told.rows), min(n, len(told.rows)), replace=False)
    return [{"tokens": texts.words[told.rows[i]], "at": texts.words[told.rows[i]][-1], "activation": float(activation[told.rows[i]]),
             "active": bool(active[told.rows[i]]), told.name: float(told.scores[i])} for i in chosen]  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
