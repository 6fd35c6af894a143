"""Controls of path patching: nothing from nothing, what must add up and what need not, other senders of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval
from microtome.graph.donors import Prompts
from microtome.graph.nodes import Graph
from microtome.graph.path_runs import PathRuns, sender_rows, stream_sums
from microtome.graph.paths import Paths
from microtome.methods import donors
from microtome.methods.setting import Setting
from microtome.replay.bench import Bench
from microtome.replay.plan import Group
from microtome.results import seeds
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    import pandas as pd

    from microtome.methods.paths import Question

NULLS = 64
NULL_ALPHA = 0.05
GAP = 0.2
_ADDITIVE = "that senders' effects can be read as shares of a whole although they are not"


class FromStart(Prompts):
    """Donors that count as different everywhere, so that nothing is skipped."""

    def start(self, bench: Bench, group: Group) -> int:
        """The first column."""
        return 0


def identity(q: Question, chosen: donors.Chosen) -> Control:
    """The chosen senders and the sample with the base prompts as donors, from the first column on."""
    bench = replace(q.s.bench, metrics=q.s.bench.metrics[:1])
    runs = PathRuns(bench, FromStart(q.s.base.ids), q.paths)
    writers = [q.graph.writer_number[name] for name in (*chosen.names, *chosen.other_names)]
    values, base = runs.measure(sender_rows(q.graph, writers))
    return checks.identity((values - base).numpy(), donors.noise_floor(q.s))


def joint_rows(graph: Graph, paths: Paths, senders: Sequence[int]) -> tuple[Tensor, tuple[str, ...]]:
    """Rows that patch many senders at once, on direct paths: all that a receiver sees, and those of them not asked for.

    Shapes: [row, writer] bool, and the rows' names. None through mediators, where senders would be each other's.
    """
    rows = torch.zeros(2, len(graph.writers), dtype=torch.bool)
    if paths.mediators:
        return rows[:0], ()
    reach = paths.reach(graph)
    rows[:, :reach] = True
    rows[1, list(senders)] = False
    return (rows, ("together", "rest")) if bool(rows[1].any()) else (rows[:1], ("together",))


@dataclass(frozen=True)
class Sums:
    """Effects one by one and together. Shapes: first [sender, prompt]; joint: name -> [prompt]; total [prompt]."""

    first: np.ndarray
    joint: dict[str, np.ndarray]
    total: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """Together, minus one by one and the rest. Shapes: [prompt]."""
        rest = self.joint.get("rest", np.zeros_like(self.total))
        out: np.ndarray = self.joint["together"] - self.first.sum(0) - rest
        return out

    def table(self, s: Setting) -> pd.DataFrame:
        """Means and intervals of the parts of the sum."""
        import pandas as pd

        named = {"senders, one by one": self.first.sum(0)}
        if self.joint:
            named |= {"all other writers together": self.joint.get("rest", np.zeros_like(self.total)),
                      "all writers together": self.joint["together"], "gap": self.gap}  # fmt: skip
        named["donor minus base"] = self.total
        interval = mean_interval(np.stack(list(named.values())).astype(np.float64), list(s.clusters))
        return pd.DataFrame({"quantity": list(named), "value": [float(v.mean()) for v in named.values()],
                             "low": interval.low, "high": interval.high})  # fmt: skip


def add_up(q: Question, runs: PathRuns, sums: Sums) -> list[Control]:
    """Controls "sums" (gates) and "additivity" (gates only where it is an identity)."""
    gap, size = stream_sums(runs, q.s.donor.ids)
    dtype = next(q.s.model.hf.parameters()).dtype
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    streams = checks.sums(gap.numpy(), size.numpy(), tolerance=tolerance)
    streams = replace(streams, expected=f"{streams.expected}: all writers' changes against the change of what each receiver reads")  # fmt: skip
    if not sums.joint:
        return [streams, Control.not_run("additivity", _ADDITIVE, "senders one by one as all together", "through mediators, senders are on each other's paths: their effects need not add up")]  # fmt: skip
    observed = {str(r["quantity"]): float(r["value"]) for r in sums.table(q.s).to_dict("records")}
    pieces = np.abs(sums.first).sum(0) + np.abs(sums.joint.get("rest", 0)) + np.abs(sums.joint["together"])
    if linear(q):
        rounding = (
            donors.noise_floor(q.s) * (len(sums.first) + 2) ** 0.5
        )  # each effect is a difference of rounded logits
        exact = checks.sums(sums.gap, pieces + rounding / tolerance, tolerance=tolerance)
        return [streams, replace(exact, name="additivity", rules_out=_ADDITIVE, observed={**observed, "relative gap": exact.observed},
                                 expected=f"an identity here (norms frozen, straight to the logits): {exact.expected}, beside the rounding of so many effects")]  # fmt: skip
    whole = abs(observed["all writers together"])
    passed = abs(observed["gap"]) <= GAP * whole
    return [streams, Control("additivity", _ADDITIVE, f"|gap| at most {GAP:g} of all writers together; no identity: norms, attention and MLPs behind the paths bend",
                             observed, passed, len(sums.total))]  # fmt: skip


def linear(q: Question) -> bool:
    """True where effects on the first metric are linear in what senders write."""
    logits = q.paths.receivers == (q.graph.reader_number["logits"],)
    single = q.s.metrics[0] == "logit_diff"
    return logits and single and q.paths.norms and not q.paths.mediators and not q.s.model.facts.softcap


def random_senders(q: Question, runs: PathRuns, first: np.ndarray, seed: int) -> Control:
    """The strongest sender against others of its kind and third of the layers, along the same paths.

    In a map the strongest is found on one half of the clusters and compared on the other: on its own half it would win by
    having been chosen.
    """
    chosen, tested = _halves(q.s.clusters) if len(first) > 1 else (slice(None), slice(None))
    best = int(np.abs(first[:, chosen].mean(1)).argmax())
    pool = _like(q, q.senders[best])
    rules_out, expected = "that any sender of this kind and depth does it", f"p at most {NULL_ALPHA:g} among random senders of its kind and third of the layers"  # fmt: skip
    if len(pool) < 1 / NULL_ALPHA - 1:
        return Control.not_run("random_senders", rules_out, expected, f"there are {len(pool)} others of its kind and third that a receiver sees, too few for p = {NULL_ALPHA:g}")  # fmt: skip
    if len(pool) > NULLS:
        drawn = seeds.rng(seed, "path_patching/random_senders").permutation(len(pool))[:NULLS]
        pool = [pool[i] for i in sorted(drawn.tolist())]
    known = dict(zip(q.senders, first, strict=True))
    missing = [w for w in pool if w not in known]
    if missing:
        values, base = runs.measure(sender_rows(q.graph, missing))
        known |= dict(zip(missing, (values - base)[..., 0].numpy(), strict=True))
    sizes = np.array([abs(float(known[w][tested].mean())) for w in pool])
    real = abs(float(first[best][tested].mean()))
    made = checks.random_components(real, sizes, what="|effect|", alpha=NULL_ALPHA, name="random_senders")
    name = q.graph.writers[q.senders[best]].name
    how = (
        f"{name}, chosen on one half of the prompts' clusters and compared on the other"
        if len(first) > 1
        else name
    )
    return replace(made, rules_out=rules_out, expected=expected, detail=f"{how}; {made.detail}")


def _halves(clusters: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of every other cluster, and the rest. Shapes: [prompt] bool, twice."""
    order = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    odd = np.array([order[c] % 2 == 1 for c in clusters])
    return (~odd, odd) if odd.any() else (~odd, ~odd)


def _like(q: Question, sender: int) -> list[int]:
    """The other writers of a sender's kind and third of the layers that a receiver sees."""
    own, n = q.graph.writers[sender], len(q.graph.shape)
    return [i for i, w in enumerate(q.graph.writers[: q.paths.reach(q.graph)])
            if i != sender and w.kind == own.kind and 3 * w.layer // n == 3 * own.layer // n]  # fmt: skip
