"""The searches behind `discover`, each from a question to the edges that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from microtome.circuits import acdc, groups
from microtome.circuits.connect import connected
from microtome.circuits.edge_pruning import learn_gates
from microtome.circuits.options import IMPORTANCE, Options
from microtome.circuits.question import Question
from microtome.circuits.units import Units, first, ranked
from microtome.errors import ControlError, TaskError
from microtome.graph.scores import EdgeScores, edge_scores
from microtome.results import seeds
from microtome.results.technique import progress

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CHUNK = 256
RESTORED = 256


@dataclass
class Search:
    """A question with the units that it is asked of, and which of its metrics drives the search.

    given: importance [edge, prompt] and how it was estimated, where that has been done already.
    """

    question: Question
    units: Units
    column: int
    options: Options
    seed: int
    given: tuple[np.ndarray, EdgeScores] | None = None

    def path(self, kept: np.ndarray) -> np.ndarray:
        """The edges on a path, where there is reason to take out the others. Shapes: [edge] bool -> same.

        With "denoise" a kept edge brings a clean value whether or not a path leads to it, and nothing is taken out.
        """
        if not self.options.prune or self.question.choices.direction == "denoise":
            return kept
        return connected(self.question.graph, kept) | self.units.fixed

    def measure(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Metrics of circuits. Shapes: masks [circuit][edge] -> [circuit, prompt, metric]."""
        return self.question.measure(torch.from_numpy(np.stack(masks)))


@dataclass
class Outcome:
    """What a search found.

    Shapes: raw, kept [edge] bool, before and after taking out what is on no path; scores [edge]; per_prompt [edge, prompt]
    or None; tested [unit] bool: what could have been left out. sizes: requested units -> mask of each circuit measured, the
    found one among them.
    """

    raw: np.ndarray
    kept: np.ndarray
    scores: np.ndarray
    tested: np.ndarray
    sizes: dict[int, np.ndarray]
    values: np.ndarray
    per_prompt: np.ndarray | None = None
    estimate: EdgeScores | None = None
    walk: acdc.Found | None = None
    plain: acdc.Found | None = None
    restored: np.ndarray | None = None
    curve: np.ndarray | None = None
    counts: dict[str, int] = field(default_factory=dict)


def by_score(s: Search, how: str, select: str, size: int | None, threshold: float | None) -> Outcome:
    """Score every edge, keep the best, and measure circuits of several sizes."""
    per_prompt, estimate = _importance(s, how)
    if not np.abs(per_prompt).max() > 1e-12:
        raise _no_gradient(s)
    scores = s.units.scores(per_prompt.mean(1))
    order = ranked(s.units, scores, select, absolute=s.options.absolute)
    if threshold is not None:
        size = int(((np.abs(scores) if s.options.absolute else scores)[order] >= threshold).sum())
        if not size:
            raise ControlError(f"no score reaches threshold={threshold:g}", why=f"the largest is {np.abs(scores).max():.3g}",
                               instead="a smaller threshold, or a size")  # fmt: skip
    sizes = _sizes(s, order, size)
    raw = {k: first(s.units, order, k) for k in sizes}
    kept = {k: s.path(mask) for k, mask in raw.items()}
    values = s.measure(list(kept.values()))
    chosen = size if size is not None else _reaching(s, sizes, values)
    return Outcome(raw[chosen], kept[chosen], per_prompt.mean(1), s.units.free, _last(kept, chosen), _moved(values, sizes, chosen),
                   per_prompt, estimate)  # fmt: skip


def _last(kept: dict[int, np.ndarray], chosen: int) -> dict[int, np.ndarray]:
    """The same with the chosen size last."""
    return {**{k: v for k, v in kept.items() if k != chosen}, chosen: kept[chosen]}


def _moved(values: np.ndarray, sizes: list[int], chosen: int) -> np.ndarray:
    order = [i for i, k in enumerate(sizes) if k != chosen] + [sizes.index(chosen)]
    out: np.ndarray = values[order]
    return out


def _sizes(s: Search, order: np.ndarray, size: int | None) -> list[int]:
    wanted = s.options.sizes or tuple(int(f * len(order)) for f in FRACTIONS)
    every = {k for k in (*wanted, *([] if size is None else [size])) if s.options.sizes or k >= 1}
    return sorted(every)


def _reaching(s: Search, sizes: list[int], values: np.ndarray) -> int:
    """The smallest measured size with the wanted faithfulness, else the most faithful."""
    found = s.question.faithfulness(values, s.column)
    enough = [k for k, f in zip(sizes, found, strict=True) if f >= s.options.share]
    return enough[0] if enough else sizes[int(np.argmax(found))]


def _importance(s: Search, how: str) -> tuple[np.ndarray, EdgeScores | None]:
    if s.given is not None:
        return s.given
    if how == "exact":
        return by_exact(s), None
    o = s.options
    path = {"steps": o.steps, "tolerance": o.tolerance, "most": o.most} if how.startswith("eap-ig") else {}
    return s.question.importance(IMPORTANCE[how], **path)


def by_exact(s: Search) -> np.ndarray:
    """The loss of the metric when each edge alone is left out; noise: of the clean run, denoise: gained when alone restored.

    Shapes: -> [edge, prompt].
    """
    q = s.question
    noise = q.choices.direction == "noise"
    end = q.ends[0 if noise else 1][:, s.column]
    out = np.zeros((s.units.edges, q.runs.n))
    todo = np.flatnonzero(~s.units.fixed)
    todo = todo[np.argsort(s.units.graph.reader_of[todo % len(s.units.graph.edges)], kind="stable")]
    for begin in range(0, len(todo), CHUNK):
        part = todo[begin : begin + CHUNK]
        masks = torch.full((len(part), s.units.edges), noise)
        masks[torch.arange(len(part)), torch.from_numpy(part)] = not noise
        moved = q.measure(masks)[..., s.column] - end
        out[part] = -moved if noise else moved
        progress(begin + len(part), len(todo), "edges", "patching one by one")
    return out


def _no_gradient(s: Search) -> TaskError:
    name = s.question.setting.metrics[s.column]
    return TaskError(f"the gradient of {name} is zero at every edge", why=f"the ends differ on some of {s.question.runs.n} prompts, but where the gradient was taken nothing moves it",
                     instead="how='eap-ig', whose gradients are taken on the way, or how='exact'")  # fmt: skip


def check_contrast(s: Search) -> None:
    """Refuse a metric that is the same in the whole model and in the empty circuit, prompt by prompt.

    Raises
    ------
    TaskError: on how many prompts.
    """
    name = s.question.setting.metrics[s.column]
    full, empty = (end[:, s.column] for end in s.question.ends)
    eps = torch.finfo(next(s.question.model.hf.parameters()).dtype).eps
    if bool((np.abs(full - empty) <= 100 * eps * np.maximum(1.0, np.abs(full))).all()):
        raise TaskError(f"{name} is constant: no edge has an effect or a gradient", why=f"the whole model and the empty circuit score the same on all {len(full)} prompts",
                        instead="pairs that differ in what the metric reads, or another metric")  # fmt: skip


def by_walk(s: Search, tau: float) -> Outcome:
    """ACDC, in one of its three walks."""
    o, units = s.options, s.units
    losses = acdc.Losses(s.question, s.column)
    tested = units.free & (units.layers >= o.from_layer)
    if not tested.any():
        raise ControlError(f"from_layer={o.from_layer} leaves nothing to test", why=f"the model has {len(units.graph.shape)} layers",
                           instead="from_layer=0")  # fmt: skip
    dead = s.question.choices.direction == "noise"
    scores = np.zeros(len(units)) if o.walk == "plain" else _likely(s)
    before = _counted(s)

    def tell(done: int) -> None:
        progress(done, len(units), "edges" if units.granularity == "edge" else "nodes", "walking")

    if o.walk == "plain":
        found = acdc.plain(losses, units, tested, tau, dead=dead)
    elif o.walk == "groups":
        found = groups.group_testing(losses, units, tested, tau, scores, dead=dead, tell=tell)
    else:
        found = acdc.speculative(losses, units, tested, tau, scores, batch=o.batch, dead=dead, tell=tell)
    after = _counted(s)
    kept = s.path(found.kept)
    scores_of_edges = np.zeros(units.edges)
    for decision in found.decisions:
        scores_of_edges[units.members(decision.unit)] = np.nan_to_num(decision.rise)
    out = Outcome(found.kept, kept, scores_of_edges, tested, {int(kept.sum()): kept}, s.measure([kept]), walk=found,
                  counts=_counts(found, before, after))  # fmt: skip
    if o.walk == "groups":
        _compare(s, losses, tau, scores, out, dead)
    return out


def _counted(s: Search) -> tuple[int, int]:
    return s.question.runs.calls, s.question.runs.forwards


def _counts(found: acdc.Found, before: tuple[int, int], after: tuple[int, int]) -> dict[str, int]:
    tested = sum(d.how == "tested" for d in found.decisions)
    return {
        "forward calls": after[0] - before[0],
        "forwards (circuit x prompt)": after[1] - before[1],
        "decisions with a run": tested,
        "dropped without a run": sum(d.how == "dead" for d in found.decisions),
        "dropped in blocks": sum(d.how == "block" for d in found.decisions),
        "wrong predictions": found.wrong,
    }


def _likely(s: Search) -> np.ndarray:
    """How likely units are to stay: attribution of the first metric, on a coarse path so that kl and l2 have a gradient."""
    estimate = edge_scores(s.question.runs, "ig-inputs", steps=4, tolerance=float("inf"), most=4)
    return np.abs(s.units.scores(estimate.values.numpy().astype(np.float64).mean(1)))


def _compare(
    s: Search, losses: acdc.Losses, tau: float, scores: np.ndarray, out: Outcome, dead: bool
) -> None:
    """What blocks may have hidden: the plain walk where it is affordable, and units put back one at a time."""
    assert out.walk is not None
    blocks = [unit for block in out.walk.blocks for unit in block]
    if blocks:
        order = seeds.rng(s.seed, "restored").permutation(len(blocks))[:RESTORED]
        sample = sorted(blocks[i] for i in order)
        out.restored = np.stack([sample, groups.restored(losses, s.units, out.walk, sample)])
    if int(out.tested.sum()) <= s.options.check:
        before = _counted(s)
        out.plain = acdc.speculative(
            losses, s.units, out.tested, tau, scores, batch=s.options.batch, dead=dead
        )
        after = _counted(s)
        out.counts["decisions with a run, plain"] = sum(d.how == "tested" for d in out.plain.decisions)
        out.counts["forward calls of the comparison"] = after[0] - before[0]


def by_gates(s: Search, size: int) -> Outcome:
    """Edge pruning: learn gates, keep the `size` that are most open."""

    def tell(done: int) -> None:
        progress(done, s.options.steps, "steps", "learning gates")

    o = s.options
    learnt = learn_gates(
        s.question, s.units, s.column, size, steps=o.steps, rate=o.rate, seed=seeds.child(s.seed, "edge pruning"), tell=tell
    )  # fmt: skip
    order = ranked(s.units, learnt.scores, "top-n", absolute=False)
    raw = first(s.units, order, size)
    kept = s.path(raw)
    return Outcome(
        raw,
        kept,
        learnt.scores[s.units.of_edge],
        s.units.free,
        {size: kept},
        s.measure([kept]),
        curve=learnt.curve,
    )
