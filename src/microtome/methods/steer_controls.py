"""The controls of steering, each of which something can fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats

from microtome.controls import checks
from microtome.controls.directions import norm_matched
from microtome.directions.contrast import ESTIMATORS, Contrast
from microtome.directions.direction import Direction
from microtome.methods.steer_measures import Floats
from microtome.methods.steer_runs import Push
from microtome.results import seeds
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    from microtome.methods.steer import Study

SINK = 3.0
SHARE = 0.5


def rank_p(own: float, null: Floats) -> float:
    """One-sided p of a number among those of null directions, the number itself counted: (1 + as large or larger) / (1 + all)."""
    return (1 + int((null >= own).sum())) / (1 + len(null))


def zero(s: Study) -> Control:
    """Coefficient 0 goes through the same edit and must give the unsteered logits to the bit."""
    rows = [s.rows[p] for p in s.text_rows]
    lengths = [len(r) for r in rows]
    # one more token, so that there is something generated for when="generated" to act on
    rows = [[*r, r[-1]] for r in rows]
    plain = s.stage.forced(rows, lengths, [None] * len(rows), lambda logits, row, n: logits.clone())
    pushed = s.stage.forced(
        rows, lengths, [Push(s.vector, 0.0)] * len(rows), lambda logits, row, n: logits.clone()
    )
    gap = max(float((a - b).abs().max()) for a, b in zip(plain, pushed, strict=True))
    same = all(torch.equal(a, b) for a, b in zip(plain, pushed, strict=True))
    return Control("zero", "that running through the edit changes something by itself", "coefficient 0 gives the unsteered logits bit for bit",
                   gap, same, len(rows), gates=True)  # fmt: skip


def receipts(s: Study) -> Control:
    """Every position that should have been steered was, once."""
    return checks.receipts(
        {"steering": s.stage.fired}, {"steering": s.stage.planned} if s.stage.planned else {}
    )


def first_token(real: Direction) -> Control:
    """Whether an attention sink is in the average."""
    rules_out = "that the direction is mostly about the first token (attention sink)"
    expected = f"the first token is left out of averages, or its norm is at most {SINK:g} times the others'"
    ratio = real.made.get("first_token_norm_ratio")
    if ratio is None:
        return Control.not_run(
            "first_token", rules_out, expected, "the direction does not say how it was averaged"
        )
    kept = bool(real.made.get("first_token", False)) and real.made.get("positions", "all") == "all"
    return Control("first_token", rules_out, expected, {"norm ratio": float(ratio), "in the average": "yes" if kept else "no"},
                   not kept or float(ratio) <= SINK, int(sum(real.made.get("n", (1,)))))  # fmt: skip


FAMILIES = {
    "shuffled_labels": ("that the labels do not matter: the estimator does as much on shuffled ones", "as the estimator gives them on shuffled labels"),
    "shuffled_equal_norm": ("that shuffled labels would do as much if their directions were as long", "from shuffled labels, drawn out to the same norm"),
    "isotropic": ("that any vector of this length does as much", "of the same norm, isotropic"),
    "natural_noise": ("that any natural change of this length does as much", "of the same norm, varying as these texts do apart from their labels"),
}  # fmt: skip
"""Families of null directions: what each rules out, and how it is made (docs/decisions/0018)."""
ALIKE = 0.5


def families(texts: Contrast, real: Direction, size: float, draws: int, seed: int) -> dict[str, Floats]:
    """Null directions of a contrast. Shapes: [draw, d] each.

    "shuffled_labels": the estimator on shuffled labels, each at its own length, in units in which the true labels give `size`;
    "shuffled_equal_norm": the same ones at length `size`; "natural_noise": at `size`, as what labels and units do not explain.
    """
    estimator = ESTIMATORS.get(str(real.made.get("estimator")), ESTIMATORS["mean_difference"])
    own = texts.null(estimator, None, draws, seeds.child(seed, "shuffled labels"))
    own *= size / max(float(np.linalg.norm(estimator(texts.values, texts.labels))), 1e-300)
    keep = np.linalg.norm(own, axis=1) > 0
    return {"shuffled_labels": own, "shuffled_equal_norm": norm_matched(own[keep], size),
            "natural_noise": texts.noise(size, draws, seeds.child(seed, "natural noise"))}  # fmt: skip


def null_controls(s: Study, nulls: dict[str, Floats]) -> list[Control]:
    """The real effect against null directions of every family."""
    own = float(s.effect.mean())
    return [
        against(name, own, s.null_effects.get(name), len(nulls.get(name, ())) or s.draws, s.o.alpha,
                alike_text(s.alike, s.n_alike) if name == "shuffled_equal_norm" else "")
        for name in FAMILIES
    ]  # fmt: skip


def against(name: str, own: float, null: Floats | None, n: int, alpha: float, detail: str = "") -> Control:
    """One family's control: the effect is larger than that of its directions. null: [direction], None where it could not be drawn."""
    rules_out, made = FAMILIES[name]
    least = 1 / (1 + n)
    level = max(alpha, least)
    expected = f"more than {n} directions {made} (p <= {level:.3g}; the smallest within reach is {least:.3g})"
    if null is None:
        return Control.not_run(
            name, rules_out, expected, "the direction came without labelled text (options.data)"
        )
    p = rank_p(own, null)
    return Control(name, rules_out, expected, {"effect": own, "null mean": float(null.mean()), "p": p}, p <= level, len(null),
                   null=(float(null.min()), float(null.max())), detail=detail)  # fmt: skip


def alike_text(alike: float, n: int) -> str:
    """Whether shuffled labels give the direction itself again, up to its sign and length."""
    if alike < ALIKE:
        return f"these {n} directions are others than the real one: median |cosine| {alike:.2g}"
    return (
        f"these {n} directions nearly are the real one or its opposite: median |cosine| {alike:.2g}. The labels are the largest difference "
        "between the texts, so drawn out to its norm they do what it does; this comparison says little here, and gives no verdict"
    )


def opposite(s: Study) -> Control:
    """The same direction with the other sign."""
    rules_out, expected = (
        "that a disturbance of this size raises the measure, whichever way it points",
        "less than half of the effect, or the opposite of it",
    )
    own = float(s.effect.mean())
    other = float(s.change([s.vector], -s.coefficient, s.report).mean())
    return Control(
        "opposite_sign",
        rules_out,
        expected,
        {"effect": own, "opposite": other},
        own > 0 and other < SHARE * own,
        len(s.report),
    )


def dose_response(s: Study) -> Control:
    """More of it does more, until fluency collapses."""
    rules_out, expected = (
        "that one lucky coefficient did it",
        "the effect rises with the coefficient while text is fluent (rank correlation at least 0.7)",
    )
    keep = [i for i, row in enumerate(s.dose_table) if not row["collapsed"]]
    if len(keep) < 3:
        return Control.not_run(
            "dose_response", rules_out, expected, f"{len(keep)} coefficients leave the text fluent"
        )
    means = s.effects[keep].mean(1)
    flat = bool(np.ptp(means) == 0)
    rho = 0.0 if flat else float(stats.spearmanr([s.doses[i] for i in keep], means).statistic)
    return Control("dose_response", rules_out, expected, rho, rho >= 0.7, len(keep))


def sibling(s: Study, other: Direction | None) -> Control:
    """Another concept's direction at the same norm."""
    rules_out, expected = (
        "that any meaningful direction does as much",
        "a sibling concept's direction has less than half of the effect",
    )
    if other is None:
        return Control.not_run(
            "sibling", rules_out, expected, "no sibling concept was given (options.sibling)"
        )
    own = float(s.effect.mean())
    change = s.change([other.unit * float(s.vector.norm())], s.coefficient, s.report)[0]
    found = float(change.mean())
    s.stands_beside("sibling", f"sibling: {other.name}", change)
    return Control(
        "sibling",
        rules_out,
        expected,
        {"effect": own, "sibling": found},
        own > 0 and found < SHARE * own,
        len(s.report),
    )


def prompting(s: Study) -> Control:
    """Asking by words."""
    rules_out, expected = (
        "that asking for it in words does as much",
        "steering does more than the system prompt and the examples",
    )
    asked = {b["name"]: b["value"] for b in s.baselines if b["kind"] == "words"}
    if not asked:
        return Control.not_run(
            "prompting", rules_out, expected, "no system_prompt and no few_shot were given (options)"
        )
    own = float(s.effect.mean())
    return Control(
        "prompting", rules_out, expected, {"steering": own, **asked}, own > max(asked.values()), len(s.report)
    )


def fluency(s: Study) -> Control:
    """Text at the chosen dose still reads like text."""
    row = s.dose_table[s.best]
    limit = s.o.perplexity
    return Control(
        "fluency", "that the text falls apart and the measure moves with it",
        f"perplexity under the unsteered model at most {limit:g} times that of its own text, and at most 0.25 more repeated 3-grams",
        {"perplexity": row["perplexity"] if np.isfinite(row["perplexity"]) else "no text", "unsteered": s.fluent["perplexity"], "repetition": row["repetition"]},
        not row["collapsed"], len(s.text_rows),
    )  # fmt: skip
