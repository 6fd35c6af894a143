"""Path patching: how much of a sender's effect goes to chosen receivers, directly or through named mediators.

Method: Wang et al. 2023 (IOI; three runs: donor, base with the sender patched and all else held, base with the receivers
set), Goldowsky-Dill et al. 2023 (paths as sets of edges). The engine is `microtome.graph.paths`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.controls.ratio import normalised_effect
from microtome.controls.sampling import Strata, stratified_sample
from microtome.controls.signflip import FamilyTest, sign_flip
from microtome.errors import ControlError
from microtome.graph.donors import Prompts
from microtome.graph.nodes import Graph, graph_of
from microtome.graph.path_runs import PathRuns, sender_rows
from microtome.graph.paths import Paths
from microtome.methods import donors, path_controls
from microtome.methods.path_parts import Asked, Part, resolve
from microtome.methods.setting import Column, Mode, Setting, examples, setting, settings
from microtome.replay.bench import Bench
from microtome.replay.sweep import measure
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import Site, parse

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

CHOSEN, SAMPLE, LEAST_SAMPLE = 4, 32, 4
SHARE = 0.3
MANDATORY = ("identity", "receipts", "sums", "same_value", "irrelevant")
IF_RUN = ("value_matters",)
"""Mandatory where the task can give it: a variable of two values has no third."""


@technique("path_patching", "1", controls=("identity", "receipts", "sums", "additivity", "sign_flip", "random_senders", "same_value", "irrelevant", "other_cells", "wrong_value", "value_matters"),
           mandatory=MANDATORY, figure="microtome.figures.paths:draw", random=True)  # fmt: skip
def path_patching(
    model: Model,
    task: PairTask,
    *,
    sender: str | Sequence[str],
    receiver: str | Sequence[str],
    through: str | Sequence[str] = (),
    freeze: Sequence[Part] = (),
    downstream: Literal["free", "frozen"] = "free",
    mode: Mode = "denoise",
    metrics: Sequence[str] = (),
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Carry each sender's change to the receivers along chosen paths, with everything off these paths as on the base run.

    A mediator is computed again from its base stream plus the changes of the sender and of earlier mediators; a receiver reads
    its base stream plus the changes that reach it. Every part that is no mediator keeps what it wrote.

    Parameters
    ----------
    sender: heads ("L5H3.z"), MLPs ("L5.mlp_out") or "embed"; each is one row of the map, patched alone at all positions.
        Wildcards ("L*H*.z") leave out what no receiver sees.
    receiver: queries, keys or values ("L9H6.q", "L9KV2.k"), MLPs ("L9.ln2_out"), all set together, each to the value that it has
        when the others are not set; or "logits". A key/value head goes on to all query heads that share it.
    through: mediators: heads and MLPs ("L7H2", "L8.mlp"), "mlps" or "all" between sender and receiver. () is the direct edge.
    freeze: what stays as on the base run on the path itself: "norms" (the divisors of all norms through which mediators and
        receivers read, the final one included, and mediators write), "patterns" (mediating heads pass on by their values only),
        "mlps" (none is a mediator, also under "all"). Norms of single queries and keys are never frozen.
    downstream: "free" lets everything behind the receivers run; "frozen" keeps it, so that only what the receivers' own heads
        and MLPs write straight to the logits counts.
    mode: "denoise" carries clean values into corrupt runs, "noise" the reverse.
    metrics: names; the first decides tests and controls. Default: the task's own.
    alpha: family-wise level.

    Returns a Result: effects [site (sender), prompt, metric], path-patched minus base in the metric's unit. Tables: cells
    (interval, null band, p), normalised (share of donor minus base), sums (senders one by one, all together, their gap), parts
    (receivers and mediators), donors, other_cells.

    What must add up: all writers' changes, to the change of the stream that each receiver reads (control "sums", gates); with
    norms frozen, the effects on the logit difference of all writers straight to the logits, to their joint effect. What need
    not: effects through free norms, attention or MLPs, and none of them to donor minus base (control "additivity" has the gap).

    Raises
    ------
    SiteError: a family without a graph, a part that is none, a sender or mediator on no path to the receivers.
    TaskError: pairs of unequal length.
    """
    s = setting(model, task, mode, metrics)
    asked = Asked(sender, receiver, through, freeze, downstream)
    graph = graph_of(model.binding)
    question = Question(s, graph, *resolve(graph, model.facts, asked))
    runs = question.runs()
    singles = sender_rows(graph, question.senders)
    joint, kinds = path_controls.joint_rows(graph, question.paths, question.senders)
    values, base = runs.measure(torch.cat([singles, joint]))
    effects = (values - base).numpy()
    effects, together = effects[: len(singles)], effects[len(singles) :, :, 0]
    first = effects[..., 0].astype(np.float64)
    total = (measure(s.donor_bench()) - base).numpy().astype(np.float64)
    test = _family(first, s, alpha, seed)
    chosen = _choose(question, first, total[:, 0], test, seed)
    sums = path_controls.Sums(first, dict(zip(kinds, together, strict=True)), total[:, 0])
    ran = [
        path_controls.identity(question, chosen),
        *path_controls.add_up(question, runs, sums),
        _tested(test),
    ]
    ran += [path_controls.random_senders(question, runs, first, seed), *_other_donors(s, chosen, seed)]
    ran.insert(
        1, checks.receipts({"runs and writes": runs.count.fired}, {"runs and writes": runs.count.planned})
    )
    names = question.names(question.senders)
    p, least = (test.min_p, test.smallest_p) if test is not None else (None, None)
    tables = {"cells": _cells(names, first, s, test), "normalised": _normalised(names, first, total[:, 0], s), "sums": sums.table(s),
              "parts": _parts(question), **donors.tables(chosen, s)}  # fmt: skip
    coords: dict[str, tuple[str | int, ...]] = {"site": names, "prompt": tuple(range(task.n)), "metric": s.metrics}  # fmt: skip
    return Result(
        "path_patching",
        effects=Labelled(effects.astype(np.float32), ("site", "prompt", "metric"), coords),
        tables={k: v for k, v in tables.items() if len(v)},
        tensors={"base": base.numpy(), "total": total.astype(np.float32)},
        controls=ran,
        verdict=verdict(ran, _mandatory(ran), p, alpha, least),
        raw_examples=examples(model, s.base, _measured(s, base.numpy()[:, 0], total[:, 0]), seed),
    )


@dataclass(frozen=True)
class Question:
    """What is asked: a task in one direction, senders and paths by number."""

    s: Setting
    graph: Graph
    senders: tuple[int, ...]
    paths: Paths

    def runs(self, bench: Bench | None = None, ids: Sequence[Sequence[int]] | None = None) -> PathRuns:
        """Path-patched runs of the task, or under another question or from other donors."""
        report = settings("carrying changes along paths").progress if bench is None else None
        donor = Prompts(self.s.donor.ids if ids is None else ids)
        return PathRuns(self.s.bench if bench is None else bench, donor, self.paths, progress=report)

    def names(self, writers: Sequence[int]) -> tuple[str, ...]:
        """The addresses of writers."""
        return tuple(self.graph.writers[w].name for w in writers)

    def run(self, bench: Bench, cells: donors.Cells, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Effects of senders from other donors (see `donors.Runner`). Shapes: [cell, prompt]."""
        writers = [self.graph.writer_number[str(site)] for site, _ in cells]
        values, base = self.runs(bench, ids).measure(sender_rows(self.graph, writers))
        return (values - base)[..., 0].numpy().astype(np.float64)


def _measured(s: Setting, base: np.ndarray, total: np.ndarray) -> dict[int, dict[str, object]]:
    return {i: {"donor": s.donor.texts[i], "base": float(base[i]), "total": float(total[i])} for i in range(len(base))}  # fmt: skip


def _family(first: np.ndarray, s: Setting, alpha: float, seed: int) -> FamilyTest | None:
    """Sign-flip of clusters over all senders; None where there is nothing to flip."""
    if len(set(s.clusters)) < 2:
        return None
    return sign_flip(first, list(s.clusters), seed=seed, alpha=alpha)


def _tested(test: FamilyTest | None) -> Control:
    if test is not None:
        return checks.sign_flip_control(test)
    return Control.not_run("sign_flip", "that the best sender of a large map looks good by chance", "a small family-wise p", "one cluster of prompts")  # fmt: skip


def _mandatory(ran: Sequence[Control]) -> tuple[str, ...]:
    return (*MANDATORY, *(c.name for c in ran if c.name in IF_RUN and c.passed is not None))


def _choose(
    q: Question, first: np.ndarray, total: np.ndarray, test: FamilyTest | None, seed: int
) -> donors.Chosen:
    """The strongest senders, and a stratified sample of the others at most SHARE of the map's runs (a few at least)."""
    order = np.argsort(-np.abs(first.mean(1)), kind="stable").tolist()
    significant = np.zeros(len(order), bool) if test is None else test.significant
    pick = ([i for i in order if significant[i]] or order[:1])[:CHOSEN]
    rest: list[int] = []
    if len(order) > len(pick):
        left = SHARE * len(order) - donors.RUNS * len(pick)
        n = max(LEAST_SAMPLE, min(SAMPLE, int(left / donors.RUNS_ELSEWHERE)))
        writers = [q.graph.writers[w] for w in q.senders]
        strata = Strata.of([max(w.layer, 0) for w in writers], [w.kind for w in writers], len(q.graph.shape))
        strong = [i for i in order if significant[i]] or order[:1]
        if len(strong) < len(order):
            rest = stratified_sample(strata, strong, seed=seed, n=n).tolist()
    sites: list[tuple[Site, Column | None]] = [(parse(name), None) for name in q.names(q.senders)]
    names = q.names(q.senders)
    return donors.Chosen([sites[i] for i in pick], first[pick], total, [names[i] for i in pick],
                         [sites[i] for i in rest], [names[i] for i in rest], run=q.run)  # fmt: skip


def _other_donors(s: Setting, chosen: donors.Chosen, seed: int) -> list[Control]:
    if s.task.n > 1:
        return donors.other_donors(s, chosen, seed)
    also = [name for names in donors.ALSO.values() for name in names]
    return [donors.not_run(name, "there is one prompt") for name in (*donors.DONORS, *also)]


def _cells(names: Sequence[str], first: np.ndarray, s: Setting, test: FamilyTest | None) -> pd.DataFrame:
    import pandas as pd

    interval, nan = mean_interval(first, list(s.clusters)), np.full(len(names), np.nan)
    band = (nan, nan, nan) if test is None else (test.null_low, test.null_high, test.p)
    return pd.DataFrame({"site": names, "metric": s.metrics[0], "low": interval.low, "high": interval.high,
                         "null_low": band[0], "null_high": band[1], "p": band[2]})  # fmt: skip


def _normalised(names: Sequence[str], first: np.ndarray, total: np.ndarray, s: Setting) -> pd.DataFrame:
    """Empty where the denominator's interval contains 0: a share of nothing is refused."""
    import pandas as pd

    try:
        ratio = normalised_effect(first, total, list(s.clusters))
    except ControlError:
        return pd.DataFrame()
    return pd.DataFrame({"site": names, "metric": s.metrics[0], "value": ratio.estimate, "low": ratio.low, "high": ratio.high})  # fmt: skip


def _parts(q: Question) -> pd.DataFrame:
    import pandas as pd

    rows = [("receiver", q.graph.readers[r].name) for r in q.paths.receivers]
    rows += [("mediator", q.graph.writers[w].name) for w in q.paths.mediators]
    return pd.DataFrame(rows, columns=["role", "part"])
