"""What heads attend to: patterns on the task, and head detectors on several text distributions.

Detectors after Elhage et al. 2021 and Olsson et al. 2022: previous token, duplicate token, induction, current, first.
A label holds on the distribution it was measured on, so each score comes with the same score where the pattern's own
keys are shuffled, and with scores on other texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.methods.setting import examples, sites_of
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask, Side

DETECTORS = ("previous", "duplicate", "induction", "current", "first")
BATCH = 8
NULLS = 20
SHOWN = 6


@technique("attention_patterns", "2", controls=("rows_sum", "shuffled_keys", "other_texts"), mandatory=("rows_sum", "shuffled_keys"),
           figure="microtome.figures.attention:draw", random=True)  # fmt: skip
def attention_patterns(
    model: Model,
    task: PairTask,
    *,
    heads: str | Sequence[str] = "L*H*.pattern",
    texts: Mapping[str, Side] | None = None,
    show: Sequence[str] = (),
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Score every head by what it attends to, on the task's prompts, random repeated tokens and other texts.

    Parameters
    ----------
    texts: more distributions by name (sides of prompts); random repeated tokens are always one.
    show: heads whose pattern on one random prompt is kept, e.g. ("L9H6",); at most six.

    Table "detectors": site, layer, head, detector, distribution, score in [0, 1] (mean attention on the detector's
    keys, over queries that have such a key), null band (keys permuted among those the query can see), and p: the chance
    that keys drawn at random among those each query can see get as much, at most (Bernstein's inequality with the exact
    mean and variance of the draw), times the number of scores in the table. The verdict's p leaves "first" out, which
    most heads of most models attend to whatever the text.
    """
    named = sites_of(model, heads)
    distributions: dict[str, list[list[int]]] = {
        "task": [list(r) for r in task.clean.ids],
        "repeated": _repeated(model, seed),
    }
    distributions.update({name: [list(r) for r in side.ids] for name, side in (texts or {}).items()})
    layers = sorted({site.layer for site in named if isinstance(site.layer, int)})
    rows: list[dict[str, object]] = []
    worst, reach = 0.0, []
    n_scores = len(named) * len(DETECTORS) * len(distributions)
    for done, (name, prompts) in enumerate(distributions.items(), 1):
        found = _scores(model, layers, prompts, seeds.child(seed, name))
        worst = max(worst, found.off)
        reach.append(found.most)
        rows += [
            _row(site, layers, d, name, found, n_scores) for site in named for d in range(len(DETECTORS))
        ]
        progress(done, len(distributions), "distributions", "reading patterns")
    table = _frame(rows)
    ran = [
        _rows_sum(model, worst, sum(map(len, distributions.values()))),
        _shuffled(table),
        _other_texts(table),
    ]
    p = float(table.loc[table.detector != "first", "p"].min())
    least = min(1.0, n_scores * float(np.exp(-1.5 * max(reach))))
    tensors, tokens = _shown(model, task, list(show)[:SHOWN], seed)
    return Result(
        "attention_patterns", tables={"detectors": table, **({"pattern_tokens": tokens} if len(tokens) else {})}, tensors=tensors, controls=ran,
        verdict=verdict(ran, ("rows_sum", "shuffled_keys"), max(p, least), alpha, least),
        raw_examples=examples(model, task.clean, {}, seed),
    )  # fmt: skip


def _repeated(model: Model, seed: int, n: int = 8, half: int = 24) -> list[list[int]]:
    """Random tokens, twice: what an induction head is made for. BOS in front where the model's own policy puts one."""
    generator = seeds.rng(seed, "repeated tokens")
    lead = _lead(model)
    if model.facts.n_ctx is not None:
        half = min(half, (model.facts.n_ctx - len(lead)) // 2)
    out = []
    for _ in range(n):
        ids = generator.integers(
            low=min(1000, model.facts.d_vocab // 2), high=model.facts.d_vocab, size=half
        ).tolist()
        out.append([*lead, *ids, *ids])
    return out


def _lead(model: Model) -> list[int]:
    if model.tokenizer is None:
        return []
    ids = list(model.tokenizer("a").input_ids)
    first = getattr(model.tokenizer, "bos_token_id", None)
    return ids[:1] if first is not None and ids[:1] == [first] else []


@dataclass(frozen=True)
class _Scores:
    """score, null (largest of the shuffles), tail (log of the chance of such a score): [layer, head, detector].

    off: largest distance of a row's sum from 1 (above it only, where the softmax has a sink); most: largest excess over
    the null's mean that any head could have.
    """

    score: np.ndarray
    null: np.ndarray
    tail: np.ndarray
    off: float
    most: float


def _scores(model: Model, layers: list[int], prompts: list[list[int]], seed: int) -> _Scores:
    """All heads of these layers on all prompts."""
    most = max(model.facts.layers[i].n_heads for i in layers)
    total = torch.zeros(len(layers), most, len(DETECTORS), dtype=torch.float64)
    null = torch.zeros(NULLS, len(layers), most, len(DETECTORS), dtype=torch.float64)
    moments = torch.zeros(2, len(layers), most, len(DETECTORS), dtype=torch.float64)
    counts, room = torch.zeros(2, len(DETECTORS), dtype=torch.float64)
    worst, sink = 0.0, _sink(model)
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        trace = model.run(batch, [f"L{i}.pattern" for i in layers], logits=None)
        for row, ids in enumerate(batch):
            masks = torch.stack([_keys(ids, d) for d in DETECTORS])
            counts += masks.any(-1).sum(-1)
            room += (masks.any(-1).double() - masks.sum(-1) / torch.arange(1, len(ids) + 1)).sum(-1)
            shuffles = [_shuffle(masks, generator) for _ in range(NULLS)]
            for place, layer in enumerate(layers):
                pattern = trace[f"L{layer}.pattern"][row, :, : len(ids), : len(ids)].double()
                sums = pattern.sum(-1) - 1
                worst = max(worst, float((sums if sink else sums.abs()).max()))
                moments[:, place, : pattern.shape[0]] += _moments(pattern, masks.double())
                total[place, : pattern.shape[0]] += torch.einsum("hqk,dqk->hd", pattern, masks.double())
                for n, shuffled in enumerate(shuffles):
                    null[n, place, : pattern.shape[0]] += torch.einsum(
                        "hqk,dqk->hd", pattern, shuffled.double()
                    )
    scale = counts.clamp_min(1)
    tail = _bernstein(total - moments[0], moments[1])
    return _Scores(
        (total / scale).numpy(), (null / scale).amax(0).numpy(), tail.numpy(), worst, float(room[:-1].max())
    )


def _moments(pattern: Tensor, masks: Tensor) -> Tensor:
    """Mean and variance of a score when each query's keys are drawn from those it can see, without replacement.

    Shapes: pattern [head, query, key], masks [detector, query, key] -> [2, head, detector].
    """
    seen = torch.arange(1, pattern.shape[-1] + 1, dtype=torch.float64)
    wanted = masks.sum(-1)
    mean = pattern.sum(-1) / seen
    spread = ((pattern**2).sum(-1) / seen - mean**2).clamp_min(0)
    factor = wanted * (seen - wanted) / (seen - 1).clamp_min(1)
    return torch.stack([torch.einsum("hq,dq->hd", mean, wanted), torch.einsum("hq,dq->hd", spread, factor)])


def _bernstein(excess: Tensor, variance: Tensor) -> Tensor:
    """Log of Bernstein's bound on P(sum - mean >= excess) for independent terms in [0, 1]; 0 where excess <= 0."""
    t = excess.clamp_min(0)
    return -(t**2) / (2 * (variance + t / 3)).clamp_min(1e-30)


def _sink(model: Model) -> bool:
    """Whether rows may sum to less than 1: an attention module with a learned sink."""
    return any("sink" in name for name, _ in model.hf.named_parameters())


def _keys(ids: list[int], detector: str) -> Tensor:
    """The keys that a detector wants, per query. Shapes: [query, key] bool."""
    n = len(ids)
    token = torch.tensor(ids)
    same = (token[:, None] == token[None, :]) & torch.ones(n, n).tril(-1).bool()
    match detector:
        case "previous":
            return torch.ones(n, n).tril(-1).triu(-1).bool()
        case "current":
            return torch.eye(n).bool()
        case "first":
            out = torch.zeros(n, n).bool()
            out[2:, 0] = True
            return out
        case "duplicate":
            return same
        case _:
            out = torch.zeros(n, n).bool()
            out[:, 1:] = same[:, :-1]
            return out & torch.ones(n, n).tril(-1).bool()


def _shuffle(masks: Tensor, generator: torch.Generator) -> Tensor:
    """As many keys per query as the detector wants, but any that the query can see. Shapes: [detector, query, key]."""
    n = masks.shape[-1]
    noise = torch.rand(masks.shape, generator=generator).masked_fill(~torch.ones(n, n).tril().bool(), -1)
    rank = noise.argsort(-1, descending=True).argsort(-1)
    return rank < masks.sum(-1, keepdim=True)


def _row(
    site: Site, layers: list[int], detector: int, name: str, found: _Scores, n_scores: int
) -> dict[str, object]:
    assert isinstance(site.layer, int) and isinstance(site.index, int)
    at = (layers.index(site.layer), site.index, detector)
    return {"site": str(site), "layer": site.layer, "head": site.index, "detector": DETECTORS[detector], "distribution": name,
            "score": float(found.score[at]), "null_low": 0.0, "null_high": float(found.null[at]),
            "p": min(1.0, n_scores * float(np.exp(found.tail[at])))}  # fmt: skip


def _rows_sum(model: Model, worst: float, n: int) -> Control:
    return Control("rows_sum", "that something else than a pattern is read", "every row of a pattern sums to 1 (with a sink, to no more)", worst,
                   worst <= 1e-3, n, gates=True)  # fmt: skip


def _shuffled(table: pd.DataFrame) -> Control:
    """Heads that score above the largest of their own shuffled-key nulls by a wide margin."""
    strong = table[(table.detector != "first") & (table.score > 0.4)]
    above = strong[strong.score > strong.null_high]
    return Control("shuffled_keys", "that a head attends everywhere and so also there", "every head with a score above 0.4 scores above the largest of its shuffled-key nulls",
                   {"strong": len(strong), "above": len(above)}, len(strong) == len(above) and len(strong) > 0, max(len(table), 1))  # fmt: skip


def _other_texts(table: pd.DataFrame) -> Control:
    """How many labels of the task hold on the other distributions too."""
    wide = table.pivot_table(index=["site", "detector"], columns="distribution", values="score")
    on_task = wide[wide["task"] > 0.4]
    others = on_task.drop(columns="task")
    if not len(on_task):
        return Control.not_run("other_texts", "that a head's label is a property of these prompts only",
                               "labels with a score above 0.4 on the task hold on the other texts", "no head has a label on the task")  # fmt: skip
    held = int((others > 0.4).all(axis=1).sum()) if len(others.columns) else 0
    return Control("other_texts", "that a head's label is a property of these prompts only", "labels with a score above 0.4 on the task hold on the other texts",
                   {"labels": len(on_task), "held": held}, held == len(on_task), len(on_task))  # fmt: skip


def _shown(
    model: Model, task: PairTask, show: list[str], seed: int
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    if not show:
        return {}, _frame([])
    i = int(seeds.rng(seed, "shown prompt").integers(task.n))
    ids = list(task.clean.ids[i])
    trace = model.run([ids], [f"{head}.pattern" for head in show], logits=None)
    tensors = {f"pattern/{head}": trace[f"{head}.pattern"][0].float().cpu().numpy() for head in show}
    tokens = _frame(
        [
            {"site": head, "prompt": i, "index": k, "token": t}
            for head in show
            for k, t in enumerate(model.strings(ids))
        ]
    )
    return tensors, tokens


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
