"""The predicted induction heads taken away: does the loss rise where induction can tell the next token, and there only?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from microtome.controls.intervals import mean_interval
from microtome.methods.weights.behave import Ids, without
from microtome.methods.weights.heads import HeadCircuits
from microtome.methods.weights.predict import Prediction
from microtome.results import seeds
from microtome.results.verdicts import Control

__all__ = ["ablations", "confirmed"]

TOGETHER = "together"


def ablations(
    c: HeadCircuits,
    predicted: Prediction,
    kinds: Mapping[str, Ids],
    references: Mapping[str, Ids],
    most: int,
    draws: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of the table "ablations": each best predicted head, all of them, and their nulls; empty without heads to take."""
    best = [int(k) for k in np.argsort(-predicted.score, kind="stable")[:most] if predicted.score[k] > 0]
    if not best:
        return []
    names = [f"L{layer}H{head}" for layer, head in c.heads]
    drawn = _draws(c, best, draws, seed)
    sets = [[names[k]] for k in best] + [[names[k] for k in best]] + [[names[k] for k in d] for d in drawn]
    labels = [names[k] for k in best] + [TOGETHER] + [f"random {i}" for i in range(len(drawn))]
    rows: list[dict[str, object]] = []
    for kind, ids in kinds.items():
        for where, rises in zip(
            ("repeats", "elsewhere"), without(c.model, sets, ids, references[kind]), strict=True
        ):
            known = ~np.isnan(rises).any(0)
            if known.sum() < 2:
                continue
            rises = rises[:, known]
            interval = mean_interval(rises, list(range(rises.shape[1])))
            null = rises[len(best) + 1 :].mean(1)
            for k, label in enumerate(labels):
                value = float(rises[k].mean())
                set_size = 1 if k < len(best) else len(best)
                p = (
                    float((1 + (null >= value).sum()) / (1 + len(null)))
                    if label == TOGETHER and len(null)
                    else float("nan")
                )
                band = (
                    (float(null.min()), float(null.max()))
                    if label == TOGETHER and len(null)
                    else (float("nan"),) * 2
                )
                rows.append({"heads": label, "sites": " ".join(sets[k]), "text": kind, "where": where, "rise": value, "size": set_size,
                             "low": float(interval.low[k]), "high": float(interval.high[k]), "null_low": band[0], "null_high": band[1],
                             "p": p, "n": int(known.sum())})  # fmt: skip
    return rows


def _draws(c: HeadCircuits, best: Sequence[int], draws: int, seed: int) -> list[list[int]]:
    """Sets of other heads, as many of each third of the layers as the real set has; all different, fewer where there are few."""
    n_layers = c.model.facts.n_layers
    third = np.array([3 * layer // n_layers for layer, _ in c.heads])
    pools = {
        t: [k for k in np.flatnonzero(third == t).tolist() if k not in best] for t in set(third[list(best)])
    }
    generator = seeds.rng(seed, "other heads")
    found: dict[tuple[int, ...], None] = {}
    for _ in range(20 * draws):
        if len(found) == draws:
            break
        chosen: list[int] = []
        for t, pool in sorted(pools.items()):
            need = int((third[list(best)] == t).sum())
            if len(pool) < need:
                return []
            chosen += generator.choice(pool, need, replace=False).tolist()
        found.setdefault(tuple(sorted(chosen)))
    return [list(s) for s in found]


def confirmed(rises: Sequence[Mapping[str, object]]) -> Control:
    """The set's loss on repeats rises more than without any random set of as many heads, on repeated tokens."""
    rules_out = "that any heads of these layers are missed as much where a sequence repeats"
    expected = "taking the predicted induction heads away costs more than every random set of their thirds of the layers"
    for row in rises:
        if row["heads"] == TOGETHER and row["text"] == "repeated" and row["where"] == "repeats":
            low, high, value = (float(row[k]) for k in ("null_low", "null_high", "rise"))  # type: ignore[arg-type]
            if np.isnan(high):
                break
            n = sum(
                str(r["heads"]).startswith("random")
                for r in rises
                if r["text"] == "repeated" and r["where"] == "repeats"
            )
            return Control(
                "ablation",
                rules_out,
                expected,
                {"rise": value, "largest_random": high},
                value > high,
                n,
                null=(low, high),
            )
    return Control.not_run(
        "ablation", rules_out, expected, "no head was predicted, or no other heads are left to compare with"
    )
