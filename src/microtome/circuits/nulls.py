"""Circuits that a found one must beat: of its shape, of the strongest edges, and found by the same means in labels without meaning.

1. As many edges of each kind and layer third, every one of them on a path. Where a small graph has too few such circuits for a
   test, the shape is given up step by step (the layers, the kinds, at last the paths), and the control says which.
2. As many from the 3n units of largest score: are these better than others that look important?
3. Discovery with clean and corrupt exchanged in a random half of the clusters: how much effect does a search find where labels
   mean nothing? A circuit's edges may well be found again (an edge that matters matters under any labels); what must not be
   found again is the effect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from microtome.circuits.case import Case, settle
from microtome.circuits.circuit import Circuit
from microtome.circuits.connect import all_on_paths
from microtome.circuits.found import jaccard
from microtome.circuits.linked import Walk
from microtome.circuits.options import IMPORTANCE
from microtome.circuits.question import ask
from microtome.circuits.search import Search, by_exact
from microtome.circuits.units import first, ranked
from microtome.controls import checks
from microtome.controls.clusters import as_clusters
from microtome.controls.sampling import Strata, matched_sets, top_pool_sets
from microtome.errors import ControlError, MicrotomeError
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.tasks.pairs import PairTask, join

LEAST_CLUSTERS = 6
"""Clusters from which 19 ways to exchange half of them exist."""


@dataclass(frozen=True)
class Drawn:
    """Null circuits. sets: [draw][unit number]; label: what they share with the real one; why: "" or why there are none."""

    sets: tuple[np.ndarray, ...] = ()
    label: str = ""
    why: str = ""


def needed(alpha: float) -> int:
    """Fewest draws with which alpha can be reached."""
    return max(1, ceil(1 / alpha - 1e-9) - 1)


def of_shape(case: Case, draws: int, alpha: float) -> Drawn:
    """Random circuits of this one's shape, from the strictest description that has enough of them."""
    pool = np.flatnonzero(case.units.free)
    inside = np.flatnonzero(case.inside[pool])
    if not draws:
        return Drawn(why="no null circuits were asked for")
    if len(inside) == len(pool) or not len(inside):
        return Drawn(why="all or none of what could be left out is in the circuit")
    n_layers = len(case.question.graph.shape)
    layers = np.clip(case.units.layers[pool], 0, n_layers - 1).tolist()
    kinds = [case.units.kinds[i] for i in pool]
    shapes = [
        (Strata.of(layers, kinds, n_layers), "as many of each kind and layer third"),
        (Strata.of([0] * len(pool), kinds, n_layers), "as many of each kind"),
        (Strata.of([0] * len(pool), ["unit"] * len(pool), n_layers), f"as many {case.noun}s"),
    ]
    paths = _paths_matter(case)
    tries: list[tuple[Strata, str, bool]] = [
        (s, f"{label}, all on paths", True) for s, label in shapes if paths
    ]
    tries += [(s, label, False) for s, label in shapes]
    for strata, label, linked in tries:
        sets = (
            Walk(case.question.graph, pool, strata, inside, case.seed).sets(draws)
            if linked
            else _plain(strata, inside, draws, case.seed)
        )
        if len(sets) >= min(draws, needed(alpha)):
            return Drawn(tuple(pool[s] for s in sets), label)
    return Drawn(
        why=f"this graph has fewer than {needed(alpha)} other circuits of {len(inside)} {case.noun}s"
    )


def _paths_matter(case: Case) -> bool:
    """Whether unlinked null circuits would be weaker. Nodes bring all their edges, and a restored edge needs no path."""
    c = case.question.choices
    whole = c.granularity == "edge" and c.component == "all" and c.direction == "noise"
    return whole and all_on_paths(case.question.graph, case.chosen)


def _plain(strata: Strata, inside: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    for n in (draws, needed(0.05)):
        try:
            return list(matched_sets(strata, inside.tolist(), n, seed=seed, name="circuit evaluation"))
        except ControlError:
            continue
    return []


def of_strongest(case: Case, scores: np.ndarray, draws: int, alpha: float) -> Drawn:
    """Random circuits of as many units, from the 3n of largest |score|. Shapes: scores [unit]."""
    pool = np.flatnonzero(case.units.free)
    inside = np.flatnonzero(case.inside[pool])
    if not draws:
        return Drawn(why="no null circuits were asked for")
    if not len(inside):
        return Drawn(why="none of what could be left out is in the circuit")
    for n in (draws, needed(alpha)):
        try:
            sets = top_pool_sets(
                scores[pool].tolist(), inside.tolist(), n, seed=case.seed, name="circuit evaluation"
            )
        except ControlError as error:
            why = error.what
            continue
        return Drawn(
            tuple(pool[s] for s in sets), f"{len(inside)} of the {min(3 * len(inside), len(pool))} strongest"
        )
    return Drawn(why=why)


def near(share: np.ndarray) -> np.ndarray:
    """Nearness to faithfulness 1. To five digits: what differs by rounding only is as near."""
    out: np.ndarray = np.round(1 - np.abs(1 - share), 5)
    return out


def shares(case: Case, drawn: Drawn) -> np.ndarray:
    """Faithfulness of null circuits, as rows of one batch. Shapes: -> [draw]."""
    return case.share(case.driver([case.mask(s) for s in drawn.sets])) if drawn.sets else np.zeros(0)


def control(
    name: str, rules_out: str, real: float, values: np.ndarray, drawn: Drawn, alpha: float
) -> Control:
    """Nearer to faithfulness 1 than null circuits: the p, its reach, and what was drawn."""
    expected = f"nearer to faithfulness 1 than circuits with {drawn.label or 'this shape'} (alpha {alpha:g})"
    if drawn.why:
        return Control.not_run(name, rules_out, expected, drawn.why)
    made = checks.random_components(
        float(near(np.array(real))), near(values), what="1 - |1 - faithfulness|", alpha=alpha, name=name
    )
    detail = (
        made.detail
        if made.passed is None
        else f"smallest p within reach {1 / (1 + len(values)):.2g}; {made.detail}"
    )
    return replace(made, rules_out=rules_out, expected=expected, detail=detail)


def p_of(real: float, values: np.ndarray) -> float:
    """(1 + null circuits at least as near to 1) / (1 + null circuits)."""
    return float((1 + (near(values) >= near(np.array(real))).sum()) / (1 + len(values)))


@dataclass(frozen=True)
class Shuffled:
    """Discoveries under labels without meaning.

    Shapes: effect [draw], |mean effect kept| under those labels, metric units; share, same [draw]: faithfulness under the true
    labels, and Jaccard similarity with the circuit. real: the circuit's own effect. how: the search that was repeated.
    """

    effect: np.ndarray
    share: np.ndarray
    same: np.ndarray
    real: float
    how: str
    why: str = ""


def shuffled(case: Case, circuit: Circuit, draws: int, known: np.ndarray | None = None) -> Shuffled:
    """Exchange clean and corrupt in a random half of the clusters, search again, and measure what the find keeps there.

    known: scores of every edge and prompt by "eap-ig", where they have been estimated. Shapes: [edge, prompt].

    Where faithfulness is of a distance (kl, l2), which has no sign, the task's own metric is used.
    """
    none, q = np.zeros(0), case.question
    how = circuit.how if circuit.how in IMPORTANCE else "eap-ig"
    index = as_clusters(q.clusters)
    if index.n_clusters < LEAST_CLUSTERS or not len(case.chosen):
        why = "the circuit has nothing that could be left out" if not len(case.chosen) else f"{index.n_clusters} clusters can be halved in too few ways"  # fmt: skip
        return Shuffled(none, none, none, 0.0, how, why)
    try:
        signed = _signed(case, circuit)
        real = abs(float((signed.driver([signed.kept])[0] - signed.ends[1]).mean()))
        mine = known if signed is case and how == "eap-ig" else None
        masks, effect = _found_again(signed, index.codes, how, draws, mine)
    except MicrotomeError as error:  # a part of the prompts may lack what these choices need
        return Shuffled(none, none, none, 0.0, how, f"{error.what}: {error.why}")
    if not masks:
        return Shuffled(none, none, none, real, how, "no discoveries were asked for")
    free = ~case.units.fixed
    same = np.array([jaccard(m & free, case.kept & free) for m in masks])
    return Shuffled(effect, signed.share(signed.driver(masks)), same, real, how)


def _signed(case: Case, circuit: Circuit) -> Case:
    q = case.question
    if q.setting.metrics[0] not in ("kl", "l2"):
        return case
    return settle(
        ask(q.model, q.task, replace(q.choices, prompts=""), metrics=(q.task.metric,)), circuit, case.seed
    )


def _found_again(
    case: Case, codes: np.ndarray, how: str, draws: int, known: np.ndarray | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Circuits found on shuffled labels, and the size of the mean effect that each keeps there.

    A prompt's scores and effects do not depend on the other prompts, so all draws are put together from two searches: under
    these labels, and with clean and corrupt exchanged everywhere. Shapes: -> [draw][edge] bool, [draw].
    """
    q, n = case.question, case.question.runs.n
    turned = ask(
        q.model,
        exchanged(q.task, np.ones(n, dtype=bool)),
        replace(q.choices, prompts=""),
        metrics=q.setting.metrics[:1],
    )
    both = [Search(one, case.units, 0, case.search.options, case.seed) for one in (q, turned)]
    if known is None:
        known = importance(both[0], how)
    scores = known, -known if _turns(case, how) else importance(both[1], how)
    flips = [halved(codes, case.seed, draw) for draw in range(draws)]
    masks = []
    for flip in flips:
        units = case.units.scores(np.where(flip, scores[1], scores[0]).mean(1))
        order = ranked(case.units, units, "top-n", absolute=True)
        masks.append(both[0].path(first(case.units, order, len(case.chosen))))
    if not masks:
        return masks, np.zeros(0)
    own, other = (s.measure(masks)[..., 0] - s.question.ends[1][:, 0] for s in both)
    kept = np.where(np.stack(flips), other, own)
    return masks, np.abs(kept.mean(1))


def _turns(case: Case, how: str) -> bool:
    """Whether exchanging clean and corrupt turns the sign of every score: the same points lie between the same two embeddings."""
    return how == "eap-ig" and case.question.choices.ablation == "corrupt"


def importance(search: Search, how: str = "eap-ig") -> np.ndarray:
    """Estimated importance of every edge on every prompt. Shapes: -> [edge, prompt]."""
    if how == "exact":
        return by_exact(search)
    path = {"steps": search.options.steps, "most": search.options.most} if how.startswith("eap-ig") else {}
    return search.question.importance(IMPORTANCE[how], **path)[0]


def halved(codes: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """Which prompts change sides: those of half of the clusters. Shapes: codes [prompt] -> [prompt] bool."""
    count = int(codes.max()) + 1
    order = seeds.rng(seed, f"shuffled labels/{draw}").permutation(count)
    out: np.ndarray = np.isin(codes, order[: count // 2])
    return out


def exchanged(task: PairTask, which: np.ndarray) -> PairTask:
    """The same pairs with clean and corrupt exchanged in some; answers stay, so that the metric's sign turns there."""
    both, n = join(task.clean, task.corrupt), task.n
    clean = [i + n * int(turn) for i, turn in enumerate(which)]
    return replace(task, clean=both.take(clean), corrupt=both.take([(i + n) % (2 * n) for i in clean]))
