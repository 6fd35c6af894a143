"""Logit lens (nostalgebraist 2020): the stream of each layer through the final norm and the unembedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.methods.setting import Label, columns, examples, setting
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

BATCH = 16
PAIRINGS = 8


@technique("logit_lens", "1", controls=("last_layer", "sign_flip", "other_answers"), mandatory=("last_layer", "other_answers"),
           figure="microtome.figures.lens:draw", random=True)  # fmt: skip
def logit_lens(
    model: Model, task: PairTask, *, positions: tuple[Label, ...] = (-1,), alpha: float = 0.001, seed: int = 0
) -> Result:
    """The task's metric read from the stream before every layer and after the last.

    Effects: [site, position, prompt, metric] in the metric's unit, not differences but the reading itself. Early
    layers are out of the unembedding's basis: a low reading there says little. Controls: the last layer equals the
    model's own logits; the same reading for other prompts' answers (shuffled among prompts) stays near zero.

    Raises
    ------
    TaskError: answers of several tokens (the lens reads one position).
    """
    s = setting(model, task, "noise", ("logit_diff",))
    found, s = columns(s, list(positions))
    sites = [f"L{i}.resid_pre" for i in range(model.facts.n_layers)] + ["final_resid"]
    values = np.zeros((len(sites), len(found), task.n))
    others = np.zeros((PAIRINGS, len(sites), task.n))
    whole = np.zeros(task.n)
    shuffles = [_derangement(task.n, seeds.child(seed, f"other answers {k}")) for k in range(PAIRINGS)]
    answer = torch.tensor([t[0][0][2] for t in s.bench.scoring.answers])
    wrong = torch.tensor([t[0][0][2] for t in s.bench.scoring.wrong])
    top: list[dict[str, object]] = []
    for start in range(0, task.n, BATCH):
        rows = list(range(start, min(start + BATCH, task.n)))
        trace = model.run([list(task.clean.ids[i]) for i in rows], sites, logits="last")
        whole[rows] = _diff(trace.logits[:, -1], answer[rows], wrong[rows])
        for k, site in enumerate(sites):
            for c, column in enumerate(found):
                at = torch.tensor([(s.bench.spans[i][column.names[0]] or (0, 1))[1] - 1 for i in rows])
                logits = _decode(model, trace[site][torch.arange(len(rows)), at])
                values[k, c, rows] = _diff(logits, answer[rows], wrong[rows])
                if c == len(found) - 1:
                    for d, order in enumerate(shuffles):
                        others[d, k, rows] = _diff(logits, answer[order[rows]], wrong[order[rows]])
                    top += _top(model, site, logits, rows, start)
        progress(len(rows) + start, task.n, "prompts", "reading")
    ran = [_last_layer(values[-1, -1], whole, positions), _others(values[:, -1], others)]
    test = sign_flip(values, list(s.clusters), seed=seed, alpha=alpha) if len(set(s.clusters)) > 1 else None
    ran.append(
        checks.sign_flip_control(test)
        if test is not None
        else Control.not_run("sign_flip", "chance", "a small p", "one cluster")
    )
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    labels = tuple(c.label for c in found)
    return Result(
        "logit_lens",
        effects=Labelled(values[..., None], ("site", "position", "prompt", "metric"),
                         {"site": tuple(sites), "position": labels, "prompt": tuple(range(task.n)), "metric": ("logit_diff",)}),
        tables={"cells": _cells(sites, labels, values, others, list(s.clusters)), "top": _table(top)},
        controls=ran, verdict=verdict(ran, ("last_layer", "other_answers"), p, alpha, least),
        raw_examples=examples(model, task.clean, {}, seed),
    )  # fmt: skip


@torch.no_grad()
def _decode(model: Model, stream: Tensor) -> Tensor:
    """[prompt, d_model] -> logits [prompt, d_vocab], by the model's own final norm and unembedding."""
    binding = model.binding
    return binding.unembed(stream[:, None])[:, 0]


def _diff(logits: Tensor, answer: Tensor, wrong: Tensor) -> np.ndarray:
    rows = torch.arange(len(answer))
    return (logits[rows, answer] - logits[rows, wrong]).double().cpu().numpy()


def _derangement(n: int, seed: int) -> np.ndarray:
    """A rotation by a random non-zero step of a random order: nobody keeps their own answer."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(n)
    out = np.empty(n, dtype=np.int64)
    out[order] = np.roll(order, int(generator.integers(1, max(n, 2))))
    return out


def _last_layer(last: np.ndarray, whole: np.ndarray, positions: tuple[Label, ...]) -> Control:
    rules_out, expected = (
        "that the lens reads something else than the model does",
        "the reading after the last layer is the model's own metric",
    )
    if positions[-1] not in (-1, "end"):
        return Control.not_run(
            "last_layer", rules_out, expected, "the last position was not read", gates=True
        )
    gap = float(np.abs(last - whole).max())
    floor = 1e-3 * max(1.0, float(np.abs(whole).max()))
    return Control(
        "last_layer", rules_out, f"{expected}, within {floor:.1g}", gap, gap <= floor, len(whole), gates=True
    )


def _others(values: np.ndarray, others: np.ndarray) -> Control:
    """[site, prompt] against [draw, site, prompt]: other prompts' answers must not rise as the own one does."""
    peak = int(np.abs(values.mean(1)).argmax())
    own, null = abs(values[peak].mean()), np.abs(others[:, peak].mean(-1))
    return Control("other_answers", "that these words rise in every prompt", "other prompts' answers read below half of the own answer",
                   {"own": float(own), "largest_other": float(null.max())}, bool(null.max() < 0.5 * own), len(null),
                   null=(float(-null.max()), float(null.max())))  # fmt: skip


def _top(
    model: Model, site: str, logits: Tensor, rows: list[int], start: int, k: int = 3
) -> list[dict[str, object]]:
    if start:
        return []
    probabilities = logits[:4].float().softmax(-1)
    best = probabilities.topk(min(k, probabilities.shape[-1]))
    return [{"site": site, "prompt": rows[r], "rank": j, "token": model.strings([int(best.indices[r, j])])[0], "probability": float(best.values[r, j])}
            for r in range(len(probabilities)) for j in range(best.indices.shape[-1])]  # fmt: skip


def _cells(
    sites: list[str], labels: tuple[Label, ...], values: np.ndarray, others: np.ndarray, clusters: list[str]
) -> pd.DataFrame:
    interval = mean_interval(values, clusters)
    null = np.abs(others.mean(-1)).max(0)
    return _table([{"site": site, "position": label, "metric": "logit_diff", "low": float(interval.low[k, c]), "high": float(interval.high[k, c]),
                    "null_low": -float(null[k]), "null_high": float(null[k])} for k, site in enumerate(sites) for c, label in enumerate(labels)])  # fmt: skip


def _table(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
