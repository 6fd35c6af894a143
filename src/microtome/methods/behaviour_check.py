"""Does this model do this task at all? Everything else waits for the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.methods.setting import clusters_of
from microtome.metrics import metric, scoring
from microtome.replay.sweep import Bench, measure
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.behaviour import Behaviour
    from microtome.tasks.pairs import PairTask


BOTH_ALPHA = 0.05


@technique("behaviour", "2", controls=("above_chance", "both_sides"), mandatory=("above_chance", "both_sides"),
           figure="microtome.figures.behaviour:draw", random=True)  # fmt: skip
def behaviour(model: Model, task: PairTask, *, alpha: float = 0.001, seed: int = 0) -> Result:
    """How often the answer beats the wrong answer, on the clean and (where its answer is known) the corrupt side.

    Effects: [prompt, metric], the task's metric on the clean prompts, in its unit. Accuracy comes with an exact
    (Clopper-Pearson) interval over clusters, the mean metric with a cluster t interval. The test against chance is
    binomial over prompts, and so conditional on these templates: with templates fixed, however unlike, the number right
    varies at most as the binomial does. A model may beat chance and yet not look (years mostly end late): so the other
    side must be answered too, or where it has no answer of its own, the metric must be lower there.

    Raises
    ------
    TaskError, ModelError: prompts that do not fit this model.
    """
    import pandas as pd

    from microtome.tasks.behaviour import behaviour as sides_of

    clean, corrupt = sides_of(task)
    rows, values = [], {}
    for name, side in (("clean", clean), ("corrupt", corrupt)):
        if side is not None:
            row, values[name] = _side(model, side, clusters_of(task), alpha)
            rows.append({"side": name, **row})
    table = pd.DataFrame(rows)
    above = _above_chance(rows[0], alpha)
    both = _both(rows) if len(rows) > 1 else _lower(model, task, clean, values["clean"])
    controls = [above, both]
    p, least = _binomial_p(rows[0])
    effects = Labelled(
        values["clean"][:, None],
        ("prompt", "metric"),
        {"prompt": tuple(range(task.n)), "metric": (task.metric,)},
    )
    return Result(
        "behaviour", effects=effects, tables={"sides": table}, controls=controls,
        verdict=verdict(controls, ("above_chance", "both_sides"), p, alpha, least),
        raw_examples=_outputs(model, clean, values["clean"], seed),
    )  # fmt: skip


def _side(
    model: Model, side: Behaviour, clusters: tuple[str, ...], alpha: float
) -> tuple[dict[str, Any], np.ndarray]:
    bench = Bench(model.binding, side.prompts.ids, scoring(side.answers, side.wrong), (metric(side.metric),))
    values = measure(bench)[:, 0].numpy()
    right = int((values > 0).sum())
    interval = proportion_interval(values > 0, clusters, level=1 - 2 * alpha)
    mean = mean_interval(values, clusters)
    row = {"accuracy": right / len(values), "low": float(interval.low), "high": float(interval.high), "chance": side.chance, "n": len(values),
           "mean": float(values.mean()), "mean_low": float(mean.low), "mean_high": float(mean.high), "metric": side.metric, "right": right}  # fmt: skip
    return row, values


def _binomial_p(row: dict[str, Any]) -> tuple[float, float]:
    from scipy.stats import binomtest

    n, chance = int(row["n"]), float(row["chance"])
    p = float(binomtest(int(row["right"]), n, chance, alternative="greater").pvalue)
    return p, chance**n


def _above_chance(row: dict[str, Any], alpha: float) -> Control:
    p, _ = _binomial_p(row)
    return Control("above_chance", "that the model does not do this task", f"more right than chance {row['chance']:g} on these templates (binomial p <= {alpha:g})",
                   {"accuracy": row["accuracy"], "low": row["low"], "p": p}, p <= alpha, int(row["n"]))  # fmt: skip


def _both(rows: list[dict[str, Any]]) -> Control:
    rules_out, expected = (
        "that the model says the same on either side",
        "the corrupt side's own answer beats chance too",
    )
    p, least = _binomial_p(rows[1])
    if least > BOTH_ALPHA:
        return Control.not_run(
            "both_sides", rules_out, expected, f"{rows[1]['n']} prompts reach p = {least:.2g} at best"
        )
    return Control(
        "both_sides",
        rules_out,
        expected,
        {"accuracy": rows[1]["accuracy"], "p": p},
        p <= BOTH_ALPHA,
        int(rows[1]["n"]),
    )


def _lower(model: Model, task: PairTask, clean: Behaviour, values: np.ndarray) -> Control:
    """Where the corrupt side has no answer of its own: the same question must have less of the answer there."""
    rules_out, expected = (
        "that the model says the same on either side",
        f"the metric is lower on the corrupt side (cluster t, one-sided, alpha {BOTH_ALPHA:g})",
    )
    if task.n < 2:
        return Control.not_run("both_sides", rules_out, expected, "one pair has no spread")
    other = task.clean if clean.prompts is task.corrupt else task.corrupt
    bench = Bench(model.binding, other.ids, scoring(clean.answers, clean.wrong), (metric(clean.metric),))
    fall = values - measure(bench)[:, 0].numpy()
    interval = mean_interval(fall, clusters_of(task), level=1 - 2 * BOTH_ALPHA)
    low = float(interval.low)
    return Control("both_sides", rules_out, expected, {"clean - corrupt": float(fall.mean()), "low": low}, low > 0, task.n,
                   detail=interval.label)  # fmt: skip


def _outputs(model: Model, side: Behaviour, values: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """Random prompts with the model's own most likely next tokens."""
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(values))[:6].tolist())
    trace = model.run([list(side.prompts.ids[i]) for i in pick], logits="last")
    probabilities = trace.logits[:, -1].float().softmax(-1)
    out = []
    for place, i in enumerate(pick):
        top = probabilities[place].topk(min(5, probabilities.shape[-1]))
        out.append({
            "prompt": side.prompts.texts[i], "tokens": list(model.strings(side.prompts.ids[i])),
            "answer": "".join(model.strings(side.answers[i][0])), "wrong": "".join(model.strings(side.wrong[i][0])),
            "top": [[model.strings([int(t)])[0], round(float(p), 4)] for p, t in zip(top.values, top.indices, strict=True)],
            "value": round(float(values[i]), 4),
        })  # fmt: skip
    return out
