"""Activations of two models at the ends of words, for models of one size whose tokenizers cut texts otherwise.

A word ends at the same character for both, whatever its pieces, and at its end both have read it. Whether the two models'
coordinates have anything to do with each other is not known here, so it is tested: the same word must be nearer than another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.errors import TaskError
from microtome.methods.diff_runs import distance
from microtome.methods.diff_text import about, not_here, same_run
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.methods.diff_data import Texts
    from microtome.methods.diff_tokens import Comparable

LEAST = 3
"""Fewest words of a text that end at a token's end in both models."""


def word_level(
    a: Model, b: Model, texts: Texts, sites: Sequence[Site], found: Comparable, alpha: float, seed: int
) -> Result:
    """relative_norm of the difference at the last token of each word that ends at a token's end in both models.

    Raises
    ------
    TaskError: token ids, or a text with too few such words.
    """
    if not all(texts.texts):
        raise TaskError("token ids have no words", why="words are found in texts", instead="give texts")
    same, other = (np.zeros((len(sites), len(texts))) for _ in range(2))
    names, words = [str(s) for s in sites], 0
    for i, text in enumerate(texts.texts):
        places = [_ends(m, text) for m in (a, b)]
        shared = sorted(set(places[0]) & set(places[1]))
        if len(shared) < LEAST:
            raise TaskError(f"text {i} has {len(shared)} words that end at a token's end in both models", why=f"at least {LEAST} are compared",
                            instead="longer texts")  # fmt: skip
        words += len(shared)
        traces = [m.run(text, names, logits=None) for m in (a, b)]
        order = seeds.rng(seed, f"other words {i}").permutation(len(shared))
        turned = np.empty(len(shared), dtype=np.int64)
        turned[order] = np.roll(order, 1)  # nobody keeps their own word
        for k, name in enumerate(names):
            one, two = (t[name][0, [p[e] for e in shared]].flatten(1) for t, p in zip(traces, places, strict=True))  # fmt: skip
            same[k, i] = float(distance(one, two)[0].double().mean())
            other[k, i] = float(distance(one, two[torch.from_numpy(turned)])[0].double().mean())
        progress(i + 1, len(texts), "texts", "at the ends of words")
    return _result(a, b, texts, names, (same, other), words, found, alpha, seed)


def _ends(model: Model, text: str) -> dict[int, int]:
    """Character behind the end of a word -> the token that ends there."""
    made: Any = model.tokenizer(text, return_offsets_mapping=True)
    stops = {int(stop): k for k, (start, stop) in enumerate(made["offset_mapping"]) if stop > start}
    ends = {m.end() for m in re.finditer(r"\S+", text)}
    room = model.facts.n_ctx
    return {end: k for end, k in stops.items() if end in ends and (room is None or k < room)}


def _result(
    a: Model, b: Model, texts: Texts, names: list[str], values: tuple[np.ndarray, np.ndarray], words: int, found: Comparable, alpha: float,
    seed: int,
) -> Result:  # fmt: skip
    import pandas as pd

    same, other = values
    clusters = list(texts.clusters)
    test = sign_flip(same - other, clusters, seed=seed, alpha=alpha) if len(set(clusters)) > 1 else None
    rules_out, expected = "that the two models' coordinates have nothing to do with each other", f"the same word is nearer than another one of its text (family-wise p at most {alpha:g})"  # fmt: skip
    if test is None:
        near = Control.not_run("other_words", rules_out, expected, "one document")
    else:
        nearer = test.significant & ((same - other).mean(1) < 0)
        near = Control("other_words", rules_out, expected, {"p": test.min_p, "sites where it is": int(nearer.sum()), "of": len(nearer)}, bool(nearer.any()), words)  # fmt: skip
    why = f"models are compared at level 'words': {found.why or 'as asked'}"
    ran = [same_run(a, texts), *not_here(why, "other_words"), near]
    interval = mean_interval(same, clusters)
    null = mean_interval(other, clusters)
    cells = pd.DataFrame({"site": names, "metric": "relative_norm", "low": interval.low, "high": interval.high, "null_low": null.low, "null_high": null.high,
                          **({} if test is None else {"p": test.p})})  # fmt: skip
    p, least = (None, None) if test is None else (test.min_p, test.smallest_p)
    return Result(
        "model_diff",
        effects=Labelled(same[..., None], ("site", "prompt", "metric"), {"site": tuple(names), "prompt": tuple(range(len(texts))), "metric": ("relative_norm",)}),
        tables={"cells": cells, "about": about(a, b, found, why)},
        controls=ran, verdict=verdict(ran, ("same_model", "other_words"), p, alpha, least),
        raw_examples=[{"prompt": texts.texts[i]} for i in sorted(seeds.rng(seed, "raw_examples").permutation(len(texts))[:4].tolist())],
    )  # fmt: skip
