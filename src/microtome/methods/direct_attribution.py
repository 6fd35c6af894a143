"""Direct logit attribution: which part writes the answer into the stream.

Elhage et al. 2021; the final norm's scale is frozen at its value in the run, and the pieces must add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.methods.readouts import logit_direction, need_additive, through_norm
from microtome.methods.setting import Setting, examples, setting
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask
    from microtome.trace.trace import Trace

BATCH = 16
TOP_NEURONS = 20


@technique("direct_logit_attribution", "3", controls=("sums", "sign_flip", "corrupt_side"), mandatory=("sums", "corrupt_side"),
           figure="microtome.figures.logits:draw", random=True)  # fmt: skip
def direct_logit_attribution(model: Model, task: PairTask, *, alpha: float = 0.001, seed: int = 0) -> Result:
    """Split the logit difference (before any softcap) into what each head, MLP, embedding and bias wrote.

    Effects: [site, prompt, metric], logits; sites are L5H3.head_out, L5.mlp_out, embed, and "bias" for all biases.
    Table "neurons": the strongest neurons of the MLPs. Controls: the pieces add up (error relative to the sum of
    absolute pieces <= 1e-4, every run); on the corrupt side, where the answer is the other one, the same reading turns.

    Raises
    ------
    TaskError, ModelError: answers of several tokens, or a stream that is not a sum.
    """
    need_additive(model, "direct logit attribution")
    s = setting(model, task, "noise", ("logit_diff",))
    sites, clean, gap, size, neurons = _attribute(model, s, task.clean.ids)
    _, corrupt, _, _, _ = _attribute(model, s, task.corrupt.ids, neurons=False)
    test = sign_flip(clean, list(s.clusters), seed=seed, alpha=alpha) if len(set(s.clusters)) > 1 else None
    ran = [checks.sums(gap, size)]
    ran.append(
        checks.sign_flip_control(test)
        if test is not None
        else Control.not_run("sign_flip", "chance", "a small p", "one cluster")
    )
    ran.append(_corrupt_side(task, clean, corrupt, sites))
    interval = mean_interval(clean, list(s.clusters))
    nan = np.full(len(sites), np.nan)
    cells = _frame({"site": sites, "metric": "logit_diff", "low": interval.low, "high": interval.high,
                    "null_low": nan if test is None else test.null_low, "null_high": nan if test is None else test.null_high,
                    "p": nan if test is None else test.p})  # fmt: skip
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    return Result(
        "direct_logit_attribution",
        effects=Labelled(clean[..., None], ("site", "prompt", "metric"), {"site": tuple(sites), "prompt": tuple(range(task.n)), "metric": ("logit_diff",)}),
        tables={"cells": cells, "neurons": neurons}, tensors={"corrupt": corrupt.astype(np.float32)}, controls=ran,
        verdict=verdict(ran, ("sums", "corrupt_side"), p, alpha, least),
        raw_examples=examples(model, task.clean, {}, seed),
    )  # fmt: skip


def _frame(columns: dict[str, object]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns)


@torch.no_grad()
def _attribute(
    model: Model, s: Setting, ids: tuple[tuple[int, ...], ...], *, neurons: bool = True
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]:
    """(site names, pieces [site, prompt], sum - whole [prompt], sum of |pieces| [prompt], neuron table)."""
    direction, offset = logit_direction(model, s.bench.scoring)
    names: list[str] = []
    pieces, gaps, sizes = [], [], []
    writes: dict[int, list[Tensor]] = {}
    for start in range(0, len(ids), BATCH):
        rows = slice(start, start + BATCH)
        trace = model.run([list(r) for r in ids[rows]], _captures(model), logits="last")
        reader = _reader(model, trace, direction[rows])
        names, values = zip(*_pieces(model, trace, reader), strict=True)  # type: ignore[assignment]
        part = torch.stack(
            [*values, offset[rows] + model.binding.final_norm.bias.to(direction) @ direction[rows].T]
        )
        names = [*names, "final_bias"]
        logits = _before_softcap(model, trace.logits[:, -1])
        whole = _difference(logits, s, start, len(part[0]))
        pieces.append(part.double())
        gaps.append((part.sum(0) - whole).double())
        sizes.append(part.abs().sum(0).double())
        if neurons:
            for layer, value in _neurons(model, trace, reader):
                writes.setdefault(layer, []).append(value)
        progress(min(start + BATCH, len(ids)), len(ids), "prompts", "attributing")
    table = _neuron_table({k: torch.cat(v) for k, v in writes.items()})
    return names, torch.cat(pieces, 1).numpy(), torch.cat(gaps).numpy(), torch.cat(sizes).numpy(), table


def _captures(model: Model) -> list[str]:
    f = model.facts
    heads = [f"L{i}.z@-1" for i, layer in enumerate(f.layers) if "head_out" not in layer.lacks]
    rest = [
        f"L{i}.{p}@-1"
        for i, layer in enumerate(f.layers)
        for p in ("attn_raw", "attn_out", "mlp_out", "neurons")
        if p not in layer.lacks
    ]
    scale = [] if model.binding.stack.get("final_norm") is None else ["final_scale@-1"]
    return ["embed@-1", "final_resid@-1", *scale, *heads, *rest]


class _Reader:
    """What a piece of the stream adds to the logit difference. Shapes: [..., prompt, d_model] -> [..., prompt]."""

    def __init__(self, model: Model, scale: Tensor, direction: Tensor) -> None:
        self.model, self.scale, self.direction = model, scale, direction

    def __call__(self, piece: Tensor) -> Tensor:
        return (through_norm(self.model, piece, self.scale) * self.direction).sum(-1)


def _reader(model: Model, trace: Trace, direction: Tensor) -> _Reader:
    if model.binding.stack.get("final_norm") is None:
        return _Reader(model, model.binding.final_norm.scale(trace["final_resid@-1"]), direction)
    return _Reader(model, trace["final_scale@-1"], direction)


def _pieces(model: Model, trace: Trace, reader: _Reader) -> Iterator[tuple[str, Tensor]]:
    """Every additive part of the final stream, biases of attention by themselves."""
    yield "embed", reader(trace["embed@-1"])
    for i, layer in enumerate(model.facts.layers):
        if "attn_out" not in layer.lacks:
            yield from _attention(model, trace, reader, i)
        if "mlp_out" not in layer.lacks:
            yield f"L{i}.mlp_out", reader(trace[f"L{i}.mlp_out@-1"])


def _attention(model: Model, trace: Trace, reader: _Reader, i: int) -> Iterator[tuple[str, Tensor]]:
    out, raw = trace[f"L{i}.attn_out@-1"], trace[f"L{i}.attn_raw@-1"]
    heads = torch.einsum("phd,hdm->hpm", trace[f"L{i}.z@-1"], model.weights.W_O(i))
    rest = out - heads.sum(0)
    if model.binding.slots[i].style in ("sandwich", "post"):
        # a post-norm divides the heads' sum by its own scale: freeze it, and give its bias and the rest to "bias"
        path = model.binding.slots[i].at("ln1_post")
        norm = model.binding.norm(path or "")
        heads = norm.linear(heads, norm.scale(raw))
        rest = out - heads.sum(0)
    elif model.binding.slots[i].block.attn_scale != 1.0:
        heads = heads * model.binding.slots[i].block.attn_scale
        rest = out - heads.sum(0)
    for h in range(heads.shape[0]):
        yield f"L{i}H{h}.head_out", reader(heads[h])
    yield f"L{i}.attn_bias", reader(rest)


def _neurons(model: Model, trace: Trace, reader: _Reader) -> Iterator[tuple[int, Tensor]]:
    """Direct effect of each neuron where nothing but a multiplier lies between it and the stream. [prompt, neuron]."""
    for i, layer in enumerate(model.facts.layers):
        slot = model.binding.slots[i]
        if "neurons" in layer.lacks or slot.style in ("sandwich", "post"):
            continue
        weight = model.weights.W_out(i) * slot.block.mlp_scale
        norm = model.binding.final_norm
        gain = norm.gain.to(weight)
        centred = reader.direction * gain
        if norm.centred:
            centred = centred - centred.mean(-1, keepdim=True)
        per_neuron = (weight @ centred.T).T / reader.scale.to(weight)
        yield i, (trace[f"L{i}.neurons@-1"] * per_neuron)


def _neuron_table(writes: dict[int, Tensor]) -> pd.DataFrame:
    rows = []
    for layer, values in writes.items():
        mean = values.mean(0)
        for n in mean.abs().topk(min(5, mean.numel())).indices.tolist():
            rows.append(
                {
                    "site": f"L{layer}N{n}.neurons",
                    "value": float(mean[n]),
                    "share_same_sign": float((values[:, n].sign() == mean[n].sign()).float().mean()),
                }
            )
    rows.sort(key=lambda r: -abs(r["value"]))  # type: ignore[arg-type]
    return _frame({k: [r[k] for r in rows[:TOP_NEURONS]] for k in ("site", "value", "share_same_sign")})


def _before_softcap(model: Model, logits: Tensor) -> Tensor:
    cap = model.facts.softcap
    return torch.atanh((logits.double() / cap).clamp(-1 + 1e-12, 1 - 1e-12)) * cap if cap else logits


def _difference(logits: Tensor, s: Setting, start: int, n: int) -> Tensor:
    plan = s.bench.scoring.select(list(range(start, start + n)))
    return s.bench.metrics[0](logits[:, None], plan)


def _corrupt_side(task: PairTask, clean: np.ndarray, corrupt: np.ndarray, sites: list[str]) -> Control:
    """The strongest writers must write the other answer where the other answer is right."""
    rules_out, expected = (
        "that the parts write this answer whatever the prompt says",
        "the strongest parts' attribution falls on the corrupt side",
    )
    own, other = clean.mean(1), corrupt.mean(1)
    strength = np.abs(own)
    # a model may have fewer than five parts that write anything: those that write nothing cannot turn
    top = [i for i in np.argsort(-strength, kind="stable")[:5] if strength[i] > 0.01 * strength.max()]
    if not top:
        return Control.not_run("corrupt_side", rules_out, expected, "no part writes anything", gates=True)
    moved = [sites[i] for i in top if np.sign(own[i]) * (own[i] - other[i]) > 0.25 * abs(own[i])]
    share = len(moved) / len(top)
    return Control("corrupt_side", rules_out, expected + " by more than a quarter, in at least 3 of 5 (of those above 1 % of the strongest)", share, share >= 0.6, len(top),
                   detail=f"moved: {', '.join(moved) or 'none'}")  # fmt: skip
