"""Which tokens of the prompt the answer rests on: gradient x input, integrated gradients, occlusion; held against deletion.

Attributions are believed only as far as removing tokens in their order does more than removing them in random orders
(deletion curves: Samek et al. 2017, Petsiuk et al. 2018). Integrated gradients: Sundararajan, Taly & Yan 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.orders import OrderTest, permute_own
from microtome.controls.signflip import FamilyTest, sign_flip
from microtome.errors import TaskError
from microtome.methods import token_checks
from microtome.methods.deletion import LEAST, RANDOM, Curves, curves, orders_of
from microtome.methods.donors import bench_noise
from microtome.methods.headlines import headlined
from microtome.methods.setting import settings
from microtome.methods.token_columns import TokenColumn, token_columns
from microtome.methods.token_gradients import SITE, Ends, Floats, Integrated, gradient_x_input, integrated
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Given
from microtome.replay.sweep import Bench, Outcome, sweep
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import verdict
from microtome.sites import At, parse
from microtome.tasks.asked import AskedPrompts
from microtome.tasks.pairs import PairTask

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

How = Literal["gradient_x_input", "integrated_gradients", "occlusion"]
WAYS: tuple[How, ...] = ("gradient_x_input", "integrated_gradients", "occlusion")
NEEDED = ("identity", "receipts", "random_orders")


@dataclass(frozen=True)
class Path:
    """How integrated gradients are computed: gradients per prompt to begin with and at most (where the path is rough), and how much
    of the change the sum may miss."""

    steps: int = 32
    most: int = 512
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("most", self.most)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TaskError(f"{name}={value!r}", why="it counts points of the path", instead=f"{name}=32")
        if self.most < self.steps or not 0 < self.tolerance < 1:
            raise TaskError(f"steps={self.steps}, most={self.most}, tolerance={self.tolerance}", why="most is at least steps, a tolerance a share below 1",
                            instead="Path(steps=32, most=512, tolerance=0.02)")  # fmt: skip


@technique("token_attribution", "1", controls=("identity", "receipts", "completeness", "random_orders", "least_first", "agreement"),
           mandatory=NEEDED, figure="microtome.figures.tokens:draw", random=True)  # fmt: skip
def token_attribution(
    model: Model,
    task: PairTask | AskedPrompts,
    *,
    how: Sequence[How] = WAYS,
    baseline: str = "mean",
    path: Path | None = None,
    orders: int = 19,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """How much each token of the prompt adds to the task's metric, against a named baseline.

    Parameters
    ----------
    task: pairs (their clean side is attributed), or prompts with answers (`microtome.tasks.asked.ask`).
    how: one or more of "gradient_x_input" (gradient times input minus baseline), "integrated_gradients", "occlusion" (metric
        of the prompt minus that with the token's embedding replaced by the baseline's, exactly, by replay).
    baseline: what a token is compared with: "zero" (no embedding), "mean" (over the vocabulary), "corrupt" (the token of the
        pair's corrupt prompt at its place), or "token:TEXT". Special tokens in front of the prompt stay as they are.
    path: of integrated gradients. orders: random orders of deletion per prompt.

    Returns a Result: effects [site, position, prompt, metric], where site is the way, in the metric's unit; positive: the token
    raises the metric. Positions are the tokens where all prompts are aligned, else spans (summed) and the rest; tables["tokens"]
    has every token. p: the largest over ways of the test that removing tokens in their order lowers the metric more than random
    orders do (each way must pass, so that no correction is needed).

    Raises
    ------
    TaskError: an unknown way or baseline, a baseline that is no single token, fewer than two tokens to compare, too few orders.
    """
    ways = _ways(how)
    q = question(model, task)
    if isinstance(orders, bool) or not isinstance(orders, int) or orders < 2:
        raise TaskError(f"orders={orders!r}", why="a null of random orders needs at least two", instead="orders=19")  # fmt: skip
    ends, source = ends_of(model, q, task, baseline)
    values: dict[str, tuple[Floats, ...]] = {}
    found: Integrated | None = None
    if "gradient_x_input" in ways:
        values["gradient_x_input"] = gradient_x_input(model, q.bench, ends)
    if "integrated_gradients" in ways:
        path = path or Path()
        found = integrated(model, q.bench, ends, steps=path.steps, most=path.most, tolerance=path.tolerance)
        values["integrated_gradients"] = found.values
    occluded, out = _occlusion(q, source)
    if "occlusion" in ways:
        values["occlusion"] = occluded
    values = {way: values[way] for way in ways}
    drawn = orders_of(values, q.places, orders, seed)
    deleted = curves(q.bench, source, drawn)
    tests = {way: permute_own(deleted.area(way)[0], deleted.area(RANDOM).T, seed=seed, name=way) for way in ways}  # fmt: skip
    agreed = token_checks.agreement(values, q.places, q.clusters, seed)
    columns, table = _summed(q, values)
    test = sign_flip(table, list(q.clusters), seed=seed, alpha=alpha) if len(set(q.clusters)) > 1 else None
    ran = [
        token_checks.identity(q.bench, bench_noise(q.bench), q.places),
        checks.receipts({"occlusion": out.fired, "deletion": deleted.fired}, {"occlusion": out.planned, "deletion": deleted.planned}),
        token_checks.completeness(found, path.tolerance if path else 0.0),
        token_checks.random_orders(tests, alpha),
        token_checks.least_first(deleted, seed),
        token_checks.agrees(agreed),
    ]  # fmt: skip
    tables = {"cells": _cells(ways, columns, table, q, test), "tokens": _tokens(model, q, values), "deletion": _curve_table(deleted, ways, q),
              "areas": _areas(tests, deleted), "sums": _sums(values, found, deleted, q)}  # fmt: skip
    if len(agreed):
        tables["agree"] = agreed
    p, least = max(t.p for t in tests.values()), max(t.smallest_p for t in tests.values())
    return headlined(Result(
        "token_attribution",
        effects=Labelled(table[..., None], ("site", "position", "prompt", "metric"),
                         {"site": ways, "position": tuple(c.label for c in columns), "prompt": tuple(range(len(q.bench.ids))), "metric": (q.metric,)}),
        tables=tables, controls=ran, verdict=verdict(ran, _mandatory(found), p, alpha, least), raw_examples=_examples(model, q, values, seed),
    ))  # fmt: skip


@dataclass(frozen=True)
class TokenQuestion:
    """Prompts with their question. places: per prompt the positions that may be attributed (special tokens in front not)."""

    bench: Bench
    texts: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    clusters: tuple[str, ...]
    metric: str
    base: Floats


def question(model: Model, task: PairTask | AskedPrompts) -> TokenQuestion:
    """The clean prompts of a task, or asked prompts, ready to be attributed.

    Raises
    ------
    TaskError: neither of the two, or a prompt with fewer than two tokens of its own.
    """
    from microtome.methods.setting import clusters_of

    if not isinstance(task, PairTask | AskedPrompts):
        raise TaskError(f"task is a {type(task).__name__}", why="pairs, or prompts with answers, are attributed",
                        instead="mt.task(...), mt.pairs(...), or microtome.tasks.asked.ask(model, prompts, answer)")  # fmt: skip
    side = task.clean if isinstance(task, PairTask) else task.side
    front = _special(model, side.ids)
    places = tuple(tuple(range(k, len(row))) for k, row in zip(front, side.ids, strict=True))
    for i, at in enumerate(places):
        if len(at) < 2:
            raise TaskError(f"prompt {i} has {len(at)} token{'s' * (len(at) != 1)} to attribute", why="with one there is no order of tokens",
                            instead="a longer prompt")  # fmt: skip
    spans = [side.spans_of(i) for i in range(len(side))]
    bench = Bench(model.binding, side.ids, scoring(task.answers, task.wrong), (metric(task.metric),), spans)
    if isinstance(task, PairTask):
        clusters = clusters_of(task)
    else:
        by = next((v for v in task.groups.values() if len(set(v)) > 1), None)
        clusters = by or tuple(f"prompt-{i}" for i in range(len(side)))
    from microtome.replay.sweep import measure

    base = measure(bench)[:, 0].double().cpu().numpy()
    return TokenQuestion(bench, tuple(side.texts), places, clusters, task.metric, base)


def _special(model: Model, ids: Sequence[Sequence[int]]) -> list[int]:
    known = set(getattr(model.tokenizer, "all_special_ids", None) or ())
    out = []
    for row in ids:
        k = 0
        while k < len(row) and row[k] in known:
            k += 1
        out.append(k)
    return out


def _ways(how: Sequence[How]) -> tuple[str, ...]:
    given = (how,) if isinstance(how, str) else tuple(how)
    wrong = [w for w in given if w not in WAYS]
    if wrong or not given or len(set(given)) < len(given):
        raise TaskError(f"how={how!r}", why="ways of attributing, each once", instead=f"one or more of {', '.join(WAYS)}")  # fmt: skip
    return tuple(w for w in WAYS if w in given)


@torch.no_grad()
def ends_of(
    model: Model, q: TokenQuestion, task: PairTask | AskedPrompts, baseline: str
) -> tuple[Ends, Given]:
    """Token embeddings of the prompts and of the baseline, and the baseline as a source of a sweep at `embed`.

    Raises
    ------
    TaskError: a baseline that is unknown, no single token, or "corrupt" without pairs.
    """
    from microtome.trace.edits import Patch

    inputs, baselines, streams = [], [], []
    for i, ids in enumerate(q.bench.ids):
        own = model.run([list(ids)], SITE, logits=None)[SITE][0].clone()
        other = _baseline(model, task, baseline, i, ids, own)
        there = own.clone()
        there[list(q.places[i])] = other[list(q.places[i])]
        edited = model.run([list(ids)], "embed", [Patch(f"{SITE}@0:{len(ids)}", there[None])], logits=None)
        inputs.append(own)
        baselines.append(there)
        streams.append(edited["embed"][0].clone())
    return Ends(tuple(inputs), tuple(baselines)), Given(_Stored(tuple(streams)))


@dataclass(frozen=True)
class _Stored:
    """Streams per prompt as the values of a sweep."""

    streams: tuple[Tensor, ...]

    def __call__(self, point: str, layer: int, prompt: Tensor, col: Tensor, head: Tensor | None) -> Tensor:
        device = self.streams[0].device
        return torch.stack([self.streams[p][c] for p, c in zip(prompt.tolist(), col.tolist(), strict=True)]).to(device)  # fmt: skip


def _baseline(model: Model, task: PairTask | AskedPrompts, name: str, i: int, ids: Sequence[int], own: Tensor) -> Tensor:  # fmt: skip
    """[pos, d_model]: what stands in for each token."""
    if name == "zero":
        return torch.zeros_like(own)
    if name == "mean":
        # run through the model's own embedding, so that a family's scale is in it
        weight = model.weights.W_E.float().mean(0).to(own)
        one = model.run([[int(ids[0])]], SITE, logits=None)[SITE][0, 0]
        raw = model.weights.W_E[int(ids[0])].to(one)
        scale = float((one @ raw) / (raw @ raw)) if bool(raw.any()) else 1.0
        return (scale * weight).expand_as(own).clone()
    if name == "corrupt":
        if not isinstance(task, PairTask):
            raise TaskError('baseline="corrupt" needs pairs', why="these prompts have no other side", instead='baseline="mean"')  # fmt: skip
        return model.run([list(task.corrupt.ids[i])], SITE, logits=None)[SITE][0].clone()
    if isinstance(name, str) and name.startswith("token:"):
        token = model.single_token(name.removeprefix("token:"))
        return model.run([[token]], SITE, logits=None)[SITE][0, 0].expand_as(own).clone()
    raise TaskError(f"baseline={name!r}", why="attributions are against a named baseline", instead='"zero", "mean", "corrupt" or "token: the"')  # fmt: skip


def _occlusion(q: TokenQuestion, source: Given) -> tuple[tuple[Floats, ...], Outcome]:
    """Metric of the prompt minus that without the token, [pos] per prompt; 0 at places that are not attributed."""
    from dataclasses import replace

    longest = max(map(len, q.places))
    spans = [dict(s) for s in q.bench.spans]
    for i, at in enumerate(q.places):
        for k in range(longest):
            spans[i][f"token {k}"] = (at[k], at[k] + 1) if k < len(at) else None
    cells = [Cell((Change(parse("embed"), At(span=f"token {k}"), "baseline", True),), f"token {k}") for k in range(longest)]  # fmt: skip
    out = sweep(replace(q.bench, spans=spans), cells, {"baseline": source}, settings("occluding"))
    found = []
    for i, (ids, at) in enumerate(zip(q.bench.ids, q.places, strict=True)):
        row = np.zeros(len(ids))
        row[list(at)] = -out.effects[: len(at), i, 0].numpy()
        found.append(row)
    progress(1, 1, "sweep", "occlusion")
    return tuple(found), out


def _summed(q: TokenQuestion, values: Mapping[str, Sequence[Floats]]) -> tuple[list[TokenColumn], Floats]:
    """[way, column, prompt]."""
    columns = token_columns(q.bench, q.places)
    table = np.full((len(values), len(columns), len(q.bench.ids)), np.nan)
    for w, several in enumerate(values.values()):
        for c, column in enumerate(columns):
            for i, row in enumerate(several):
                table[w, c, i] = row[list(column.places[i])].sum()
    return columns, table


def _mandatory(found: Integrated | None) -> tuple[str, ...]:
    return NEEDED if found is None else (*NEEDED, "completeness")


def _cells(ways: Sequence[str], columns: Sequence[TokenColumn], table: Floats, q: TokenQuestion, test: FamilyTest | None) -> pd.DataFrame:  # fmt: skip
    import pandas as pd

    interval = mean_interval(table, list(q.clusters))
    return pd.DataFrame([
        {"site": way, "position": column.label, "metric": q.metric, "low": float(interval.low[w, c]), "high": float(interval.high[w, c]),
         "null_low": np.nan if test is None else float(test.null_low[w, c]), "null_high": np.nan if test is None else float(test.null_high[w, c]),
         "p": np.nan if test is None else float(test.p[w, c])}
        for w, way in enumerate(ways) for c, column in enumerate(columns)
    ])  # fmt: skip


def _tokens(model: Model, q: TokenQuestion, values: Mapping[str, Sequence[Floats]]) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for i, ids in enumerate(q.bench.ids):
        strings = model.strings(ids)
        for p in q.places[i]:
            rows.append({"prompt": i, "position": p, "token": strings[p], **{way: float(v[i][p]) for way, v in values.items()}})  # fmt: skip
    return pd.DataFrame(rows)


def _curve_table(d: Curves, ways: Sequence[str], q: TokenQuestion) -> pd.DataFrame:
    """Mean change over prompts at every share, with the middle 95 % of random orders' means."""
    import pandas as pd

    rows = []
    means = d.curves[RANDOM].mean(axis=1)  # [order, step]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    for name in (*ways, *(f"{w}, {LEAST}" for w in ways), RANDOM):
        mean = d.curves[name].mean(axis=(0, 1))
        for s, share in enumerate(d.shares):
            rows.append({"order": name, "share": share, "value": float(mean[s]), "null_low": float(low[s]), "null_high": float(high[s])})  # fmt: skip
    return pd.DataFrame(rows)


def _areas(tests: Mapping[str, OrderTest], d: Curves) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([
        {"how": way, "area": t.own, "random": float(d.area(RANDOM).mean()), "null_low": t.low, "null_high": t.high,
         "least_first": float(d.area(f"{way}, {LEAST}").mean()), "p": t.p, "smallest_p": t.smallest_p}
        for way, t in tests.items()
    ])  # fmt: skip


def _sums(values: Mapping[str, Sequence[Floats]], found: Integrated | None, d: Curves, q: TokenQuestion) -> pd.DataFrame:  # fmt: skip
    """Per way and prompt: the sum of attributions beside the metric's change from baseline to prompt."""
    import pandas as pd

    change = -d.curves[RANDOM][0, :, -1] if found is None else found.change
    return pd.DataFrame([
        {"how": way, "prompt": i, "sum": float(row.sum()), "change": float(change[i]), "gap": float(row.sum() - change[i])}
        for way, several in values.items() for i, row in enumerate(several)
    ])  # fmt: skip


def _examples(
    model: Model, q: TokenQuestion, values: Mapping[str, Sequence[Floats]], seed: int, k: int = 4
) -> list[dict[str, Any]]:
    """Random prompts with the attribution of each token."""
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(q.texts))[:k].tolist())
    return [
        {
            "prompt": q.texts[i],
            "tokens": list(model.strings(q.bench.ids[i])),
            "value": round(float(q.base[i]), 4),
            **{way: [round(float(v), 4) for v in several[i]] for way, several in values.items()},
        }
        for i in pick
    ]
