"""Which heads attend to the previous token, do induction and copy: predicted from weights, measured, confirmed by ablation.

Roles are those of Elhage et al. 2021 (A mathematical framework for transformer circuits) and Olsson et al. 2022 (arXiv
2209.11895). The previous-token score of rotary heads was chosen among about six while looking at one model (SmolLM2-135M), so
agreement there is the best of five; the others were written down before they were measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from microtome.controls.roc import roc
from microtome.errors import ControlError
from microtome.methods import patterns
from microtome.methods.headlines import headlined
from microtome.methods.texts import blocks_of
from microtome.methods.weights import role_controls
from microtome.methods.weights.behave import Behaviour, measured
from microtome.methods.weights.heads import HeadCircuits
from microtome.methods.weights.predict import Prediction, predictions
from microtome.methods.weights.role_ablation import ablations, confirmed
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["head_roles"]

DOES = 0.4
"""Measured score from which a head does what the role says, as for attention detectors."""
LEVEL = 0.01
"""Level at which a head is flagged by its own null."""
PERMUTATIONS = 9999
BLOCKS, CONTEXT = 16, 64
MANDATORY = ("same_weights", "random_weights")


@technique("head_roles", "1", controls=("same_weights", "random_weights", "ablation", "natural_text"), mandatory=MANDATORY,
           figure="microtome.figures.roles:draw", random=True)  # fmt: skip
def head_roles(
    model: Model,
    texts: Any = None,
    *,
    prompts: int = 8,
    context: int = CONTEXT,
    ablate: int = 4,
    random_sets: int = 19,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Predict every head's part in induction from its weights, then see what it does, and what is lost without it.

    Parameters
    ----------
    texts: natural text beside repeated random tokens: a corpus, or texts or id lists (see `blocks_of`); None: none.
    prompts, context: how many prompts of repeated tokens and blocks of text, and how long the blocks are.
    ablate: how many of the best predicted induction heads are ablated, one by one and together (0: none).
    random_sets: sets of as many other heads of the same thirds of the layers, the null of the ablations.

    Tables: "roles" (head x role: predicted score, its null and p, flagged at 1 %, measured on each kind of text with the null
    of shuffled keys), "ranks" (role x text: Spearman's rank correlation, AUROC against heads that measure 0.4 or more, p
    by permuting heads within thirds of the layers), "ablations" (set x text: rise of the loss where induction can tell the next
    token and elsewhere, nats). The verdict's p is the smallest of the agreements on repeated tokens, times their number.

    Raises
    ------
    ModelError: positions that no weights tell of (see `HeadCircuits`). ControlError: fewer than two heads.
    TaskError: texts without a block of this length.
    """
    circuits = HeadCircuits(model)
    if len(circuits.heads) < 2:
        raise ControlError(
            "One head has no rank.", why="predictions are compared over heads", instead="look at the head"
        )
    kinds: dict[str, Sequence[Sequence[int]]] = {"repeated": patterns._repeated(model, seed, n=prompts)}
    references: dict[str, Sequence[Sequence[int]]] = {
        "repeated": patterns._repeated(model, seeds.child(seed, "reference"), n=2 * prompts)
    }
    if texts is not None:
        blocks = blocks_of(model, texts, context=context, most=2 * prompts, seed=seed).ids
        kinds["natural"], references["natural"] = (
            blocks[: max(len(blocks) // 2, 1)],
            blocks[len(blocks) // 2 :],
        )
    found = predictions(circuits, seed)
    progress(1, 3, "stages", "predicted from weights")
    seen = {kind: measured(circuits, ids, seeds.child(seed, kind)) for kind, ids in kinds.items()}
    progress(2, 3, "stages", "measured")
    agreement = agreements(circuits, found, seen, seed)
    rises = ablations(circuits, found[1], kinds, references, ablate, random_sets, seed)
    progress(3, 3, "stages", "ablated")
    ran = [
        role_controls.same_weights(circuits, seed),
        role_controls.random_weights(circuits, seen["repeated"], seed),
        confirmed(rises),
        role_controls.natural_text(agreement),
    ]
    tested = [a for a in agreement if a["text"] == "repeated"]
    p = min(1.0, len(tested) * min(float(a["p"]) for a in tested))  # type: ignore[arg-type]
    return headlined(Result(
        "head_roles",
        tables={"roles": _roles(circuits, found, seen), "ranks": _frame(agreement), **({"ablations": _frame(rises)} if rises else {}),
                "transforms": _frame([{"transform": k, "what": v} for k, v in circuits.transforms.items()])},
        controls=ran, verdict=verdict(ran, MANDATORY, p, alpha, min(1.0, len(tested) * _least(circuits))),
        raw_examples=_shown(model, kinds, seed),
    ))  # fmt: skip


def _thirds(c: HeadCircuits) -> list[int]:
    return [3 * layer // max(c.model.facts.n_layers, 1) for layer, _ in c.heads]


def _least(c: HeadCircuits) -> float:
    """The smallest p that permuting heads within thirds can reach."""
    thirds = _thirds(c)
    ways = sum(math.lgamma(1 + thirds.count(t)) for t in set(thirds))
    return max(1 / (1 + PERMUTATIONS), math.exp(-ways))


def agreements(
    c: HeadCircuits, found: Sequence[Prediction], seen: dict[str, dict[str, Behaviour]], seed: int
) -> list[dict[str, object]]:
    """Predicted against measured over heads, per role and kind of text."""
    third = _thirds(c)
    out: list[dict[str, object]] = []
    for kind, behaviours in seen.items():
        for one in found:
            truth = behaviours[one.role].score
            rho, p, null = rank_test(one.score, truth, third, seeds.child(seed, f"{kind} {one.role}"))
            does = truth >= DOES
            area = roc(one.score, does).area if 0 < does.sum() < len(does) else float("nan")
            out.append({"role": one.role, "text": kind, "spearman": rho, "null_low": -null, "null_high": null, "p": p,
                        "auroc": area, "heads": len(does), "doing": int(does.sum())})  # fmt: skip
    return out


def rank_test(
    predicted: np.ndarray, truth: np.ndarray, strata: Sequence[int], seed: int, draws: int = PERMUTATIONS
) -> tuple[float, float, float]:
    """Spearman's correlation, its one-sided p when heads are permuted within strata, and the 95th percentile of the draws.

    A constant side has no ranks: correlation 0, p 1. Shapes: [head] each.
    """
    first, second = stats.rankdata(predicted), stats.rankdata(truth)
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    if size == 0:
        return 0.0, 1.0, 0.0
    generator = np.random.default_rng(seed)
    groups = [np.flatnonzero(np.asarray(strata) == s) for s in sorted(set(strata))]
    observed = float(first @ second) / size
    drawn = np.empty(draws)
    for d in range(draws):
        shuffled = second.copy()
        for group in groups:
            shuffled[group] = second[generator.permutation(group)]
        drawn[d] = first @ shuffled / size
    p = float((1 + (drawn >= observed - 1e-12).sum()) / (1 + draws))
    return observed, p, float(np.quantile(drawn, 0.95))


def _roles(
    c: HeadCircuits, found: Sequence[Prediction], seen: dict[str, dict[str, Behaviour]]
) -> pd.DataFrame:
    rows = []
    for one in found:
        for k, (layer, head) in enumerate(c.heads):
            through = int(one.partner[k])
            rows.append({"site": f"L{layer}H{head}", "layer": layer, "head": head, "role": one.role, "predicted": float(one.score[k]),
                         "null_high": float(one.null[k]), "p": float(one.p[k]), "flagged": bool(one.p[k] <= LEVEL),
                         "through": "" if through < 0 else f"L{c.heads[through][0]}H{c.heads[through][1]}",
                         **{kind: float(b[one.role].score[k]) for kind, b in seen.items()},
                         **{f"{kind}_null": float(b[one.role].null[k]) for kind, b in seen.items()}})  # fmt: skip
    return _frame(rows)


def _shown(model: Model, kinds: dict[str, Sequence[Sequence[int]]], seed: int) -> list[dict[str, object]]:
    generator = seeds.rng(seed, "raw_examples")
    out: list[dict[str, object]] = []
    for kind, ids in kinds.items():
        row = [int(i) for i in ids[int(generator.integers(len(ids)))]]
        out.append({"text": kind, "prompt": "".join(model.strings(row)), "tokens": model.strings(row)})
    return out


def _frame(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))
