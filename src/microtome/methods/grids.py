"""Prompt grids: what one change of a prompt does to the answer, before anything inside the model is looked at.

Two prompts that differ in one factor are a matched pair; a factor's effect is the mean difference over its pairs. The null that
matters is another wording of the same question: models move with wording (Sclar et al. 2024), and a factor must move them
further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.errors import TaskError
from microtome.methods import prompting
from microtome.methods.grid_effects import (
    Contrast,
    Tested,
    by_wording,
    contrasts,
    factor_tests,
    interactions,
    wordings,
)
from microtome.methods.headlines import headlined
from microtome.methods.prompting import OTHER, UNPARSED, Read, Sampling
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.tasks.encode import Encoder
from microtome.tasks.grid import GridPrompt, PromptGrid

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

MASS = 0.05


@technique("prompt_grid", "1", controls=("alone", "shuffled_levels", "paraphrases", "readable"), mandatory=("alone", "paraphrases"),
           figure="microtome.figures.prompts:draw", random=True)  # fmt: skip
def prompt_grid(
    model: Model,
    prompts: PromptGrid,
    *,
    read: Read = "logprob",
    design: Literal["all", "one"] = "all",
    sampling: Sampling | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """The effect of each factor of a prompt grid on the measured answer.

    Parameters
    ----------
    prompts: made by `microtome.tasks.grid.grid` or read from a file (`microtome.tasks.grid_files.read_grid`).
    read: "logprob": log P of the first answer (all its texts, all their tokens, teacher-forced), and where the grid has other
        answers the log-odds against them, which then comes first; "first_token": the same of first tokens only; "samples": how
        often sampled texts give the answer (`sampling`).
    design: "all" combinations, or "one" factor at a time from the reference levels.

    Returns a Result: effects [site, prompt, metric], where site is "factor: level - reference", prompt the changed prompt's row
    in tables["grid"] (NaN in other rows), values in nats, or as a share of samples. Intervals are over clusters: the settings
    of `over` factors, else of the other factors, else wordings. p is a permutation of levels within matched sets, Holm over
    factors; the null band is the largest effect of a change of wording.

    Raises
    ------
    TaskError: no PromptGrid, an unknown read or design, or prompts and answers that this model's tokenizer cannot keep apart.
    """
    if not isinstance(prompts, PromptGrid):
        raise TaskError(f"prompts is a {type(prompts).__name__}", why="a prompt grid is asked for",
                        instead="microtome.tasks.grid.grid(template, factors, answers), or read_grid(file)")  # fmt: skip
    if read not in ("logprob", "first_token", "samples"):
        raise TaskError(f"read={read!r}", why="it says how answers are read", instead='"logprob", "first_token" or "samples"')  # fmt: skip
    rows = prompts.prompts(design)
    reading = _sampled(model, prompts, rows, sampling or Sampling(), seed) if read == "samples" else _teacher_forced(model, prompts, rows, read, seed)  # fmt: skip
    found = contrasts(prompts, rows)
    tested = factor_tests(prompts, rows, reading.values[0], alpha=alpha, seed=seed)
    null = wordings(rows, reading.values[0])
    band = None if null is None else float(null["value"].abs().max())
    cells = _cells(found, reading, tested, band)
    ran = [
        reading.alone,
        _shuffled(tested, alpha),
        _paraphrases(cells, reading.metrics[0], band, rows, alpha),
        reading.readable,
    ]
    tables = {"cells": cells, "factors": tested.table(found, reading.values[0]), "grid": reading.table, "by_wording": by_wording(found, rows, reading.values[0])}  # fmt: skip
    if null is not None:
        tables["wordings"] = null
    if (crossed := interactions(prompts, rows, reading.values[0])) is not None:
        tables["interactions"] = crossed
    needed = ("alone", "paraphrases", *(("readable",) if read == "samples" else ()))
    return headlined(Result(
        "prompt_grid", effects=_effects(found, reading), tables=tables, controls=ran,
        verdict=verdict(ran, needed, tested.p, alpha, tested.smallest_p),
        raw_examples=reading.examples,
    ))  # fmt: skip


class _Reading:
    """What was measured of every prompt: values [metric, prompt], a table, controls, random examples."""

    def __init__(self, metrics: tuple[str, ...], values: np.ndarray, table: pd.DataFrame, alone: Control, readable: Control,
                 examples: list[dict[str, Any]]) -> None:  # fmt: skip
        self.metrics, self.values, self.table = metrics, values, table
        self.alone, self.readable, self.examples = alone, readable, examples


def _rendered(model: Model, grid: PromptGrid, rows: Sequence[GridPrompt]) -> tuple[Encoder, list[prompting.Rendered]]:  # fmt: skip
    encoder = Encoder(model)
    made = [
        prompting.render(model, encoder, r.user, system=r.system, prefill=r.prefill, chat=grid.chat)
        for r in rows
    ]
    for i, one in enumerate(made):
        encoder.fits(f"prompt {i}", len(one.ids))
    return encoder, made


def _teacher_forced(
    model: Model, grid: PromptGrid, rows: Sequence[GridPrompt], read: str, seed: int
) -> _Reading:
    encoder, made = _rendered(model, grid, rows)
    asking = prompting.asked(encoder, made, [r.answers for r in rows], first=read == "first_token")
    own, rest = prompting.log_probabilities(model, asking)
    table = _table(rows)
    table["logprob"] = own
    if rest is not None:
        table["logprob_others"] = rest
    table["value"] = own if rest is None else own - rest
    mass = np.exp(own) + (0.0 if rest is None else np.exp(rest))
    table["mass"] = mass
    gap = prompting.read_alone(model, asking, own, seed)
    floor = prompting.GAP * max(1.0, float(np.abs(own).max()))
    alone = Control("alone", "that padding, batching or a cached prefix changes what is read",
                    f"a prompt read by one plain forward gives the same log-probability, within {floor:.1g}", gap, gap <= floor,
                    min(4, len(rows)), gates=True)  # fmt: skip
    middle = float(np.median(mass))
    readable = Control("readable", "that the model would say none of the answers that are read",
                       f"the answers hold {MASS:.0%} of the probability in the median prompt", {"median": middle, "least": float(mass.min())},
                       middle >= MASS, len(rows))  # fmt: skip
    values = own[None] if rest is None else np.stack([own - rest, own])
    metrics = ("logprob",) if rest is None else ("logprob_diff", "logprob")
    examples = _tops(model, made, rows, values[0], seed)
    return _Reading(metrics, values, table, alone, readable, examples)


def _sampled(
    model: Model, grid: PromptGrid, rows: Sequence[GridPrompt], how: Sampling, seed: int
) -> _Reading:
    _, made = _rendered(model, grid, rows)
    names = list(grid.answers)
    readers = [prompting.extractor(how.extract, list(zip(names, r.answers, strict=True))) for r in rows]
    got = prompting.sample(model, [m.ids for m in made], how, readers, seed=seed, prefix=[r.prefill for r in rows])  # fmt: skip
    share = got.share(names[0])
    table = _table(rows)
    bounds = [proportion_interval([n == names[0] for n in row]) for row in got.names]
    table["value"], table["low"], table["high"] = share, [float(b.low) for b in bounds], [float(b.high) for b in bounds]  # fmt: skip
    for name in (*names[1:], OTHER, UNPARSED):
        table[f"share_{name}"] = got.share(name)
    table["samples"] = how.n
    return _Reading(("frequency",), share[None], table, prompting.drawn_alone(model, [m.ids for m in made], how, seed), prompting.parsed(got), _spoken(rows, got, share, seed))  # fmt: skip


def _table(rows: Sequence[GridPrompt]) -> pd.DataFrame:
    import pandas as pd

    setting = [", ".join(f"{k}={v}" for k, v in r.setting.items()) for r in rows]
    return pd.DataFrame({"prompt": range(len(rows)), "wording": [r.wording for r in rows], "setting": setting})  # fmt: skip


def _cells(found: Sequence[Contrast], reading: _Reading, tested: Tested, band: float | None) -> pd.DataFrame:
    import pandas as pd

    out = []
    for k, name in enumerate(reading.metrics):
        for one in found:
            differences = reading.values[k][list(one.rows)] - reading.values[k][list(one.base)]
            interval = mean_interval(differences, tested.clusters[one.factor].of(one.sets))
            limit = band if band is not None else tested.tests[one.factor].limit
            first = k == 0
            out.append({"site": one.site, "metric": name, "low": float(interval.low), "high": float(interval.high),
                        "null_low": -limit if first else np.nan, "null_high": limit if first else np.nan,
                        "p": tested.adjusted[one.factor] if first else np.nan, "effect": float(differences.mean())})  # fmt: skip
    return pd.DataFrame(out)


def _effects(found: Sequence[Contrast], reading: _Reading) -> Labelled:
    n = reading.values.shape[1]
    values = np.full((len(found), n, len(reading.metrics)), np.nan)
    for c, one in enumerate(found):
        values[c, list(one.rows)] = (reading.values[:, list(one.rows)] - reading.values[:, list(one.base)]).T
    return Labelled(values, ("site", "prompt", "metric"),
                    {"site": tuple(one.site for one in found), "prompt": tuple(range(n)), "metric": reading.metrics})  # fmt: skip


def _shuffled(tested: Tested, alpha: float) -> Control:
    hit = [f for f, p in tested.adjusted.items() if p <= alpha]
    few = "" if tested.smallest_p <= alpha else f"; underpowered: p = {tested.smallest_p:.2g} at best"
    ways = ", ".join(f"{f}: {t.n_sets} sets in {t.n_clusters} clusters" for f, t in tested.tests.items())
    return Control("shuffled_levels", "that levels given at random within matched sets differ as much", f"a factor with p (Holm) at most {alpha:g}",
                   {"p": tested.p, "factors": len(hit)}, bool(hit), len(tested.tests), detail=f"permutation of levels within clusters of matched sets; {ways}{few}")  # fmt: skip


def _paraphrases(
    cells: pd.DataFrame, name: str, band: float | None, rows: Sequence[GridPrompt], alpha: float
) -> Control:
    rules_out = "that any change of wording moves the answer as far"
    expected = "the strongest significant effect exceeds every effect of a change of wording"
    if band is None:
        return Control.not_run(
            "paraphrases", rules_out, expected, "the grid has one wording (give paraphrases)"
        )
    first = cells[cells["metric"] == name]
    clear = first[first["p"] <= alpha]
    pool = first if clear.empty else clear
    best = pool.iloc[int(pool["effect"].abs().to_numpy().argmax())]
    above = [f"{s}" for s, v in zip(clear["site"], clear["effect"], strict=True) if abs(v) > band]
    said = f"above it among the significant: {len(above)} of {len(clear)}"
    return Control("paraphrases", rules_out, expected, {str(best["site"]): float(best["effect"]), "largest of wording": band},
                   bool(abs(best["effect"]) > band), len(rows), null=(-band, band), detail=said)  # fmt: skip


def _tops(
    model: Model,
    made: Sequence[prompting.Rendered],
    rows: Sequence[GridPrompt],
    values: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """Random prompts with the model's own most likely next tokens."""
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(rows))[:6].tolist())
    out = []
    for i in pick:
        probabilities = model.run([list(made[i].ids)], logits="last").logits[0, -1].float().softmax(-1)
        top = probabilities.topk(min(5, len(probabilities)))
        out.append({"prompt": made[i].text, "tokens": list(model.strings(made[i].ids)), "setting": dict(rows[i].setting), "wording": rows[i].wording,
                    "top": [[model.strings([int(t)])[0], round(float(p), 4)] for p, t in zip(top.values, top.indices, strict=True)],
                    "value": round(float(values[i]), 4)})  # fmt: skip
    return out


def _spoken(rows: Sequence[GridPrompt], got: prompting.Samples, share: np.ndarray, seed: int) -> list[dict[str, Any]]:  # fmt: skip
    """Random prompts, each with a few random samples and how they were read."""
    generator = seeds.rng(seed, "raw_examples")
    pick = sorted(generator.permutation(len(rows))[:6].tolist())
    out = []
    for i in pick:
        some = sorted(generator.permutation(len(got.texts[i]))[:3].tolist())
        out.append({"prompt": rows[i].user, "setting": dict(rows[i].setting), "wording": rows[i].wording, "value": round(float(share[i]), 4),
                    "samples": [{"text": got.texts[i][k], "read": got.names[i][k]} for k in some]})  # fmt: skip
    return out
