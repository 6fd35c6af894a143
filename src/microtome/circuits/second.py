"""A second circuit that shares no edge with the first and does as well: then neither is *the* circuit.

Searched among what the first leaves, by score, at growing sizes. Scores are of the whole model, so a backup that acts only when
the first is gone is ranked late and found only by a large second circuit; none found does not prove that there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from microtome.circuits.case import Case
from microtome.circuits.nulls import near
from microtome.circuits.units import ranked
from microtome.results.verdicts import Control

SLACK = 0.05
"""How much less faithful a second circuit may be and still do as well."""


@dataclass(frozen=True)
class Second:
    """Disjoint circuits that were tried.

    Shapes: sizes, edges, share [try]: units asked for, edges kept, faithfulness; masks [try, edge]; found: the smallest that
    does as well, or -1.
    """

    sizes: tuple[int, ...]
    edges: np.ndarray
    share: np.ndarray
    masks: np.ndarray
    found: int


def second(case: Case, scores: np.ndarray) -> Second:
    """Try disjoint circuits of once, twice, four times ... as many units. Shapes: scores [unit]."""
    order = ranked(case.units, scores, "top-n", absolute=True)
    order = order[~case.inside[order]]
    sizes, size = [], max(1, len(case.chosen))
    while size < len(order):
        sizes.append(size)
        size *= 2
    sizes += [len(order)] if len(order) else []
    masks = [case.search.path(case.mask(order[:k])) for k in sizes]
    if not masks:
        return Second((), np.zeros(0, int), np.zeros(0), np.zeros((0, case.units.edges), bool), -1)
    share = case.share(case.driver(masks))
    real = float(near(case.share(case.driver([case.kept])))[0])
    good = np.flatnonzero(near(share) >= real - SLACK)
    free = ~case.units.fixed
    return Second(tuple(sizes), np.array([int((m & free).sum()) for m in masks]), share, np.stack(masks), int(good[0]) if len(good) else -1)  # fmt: skip


def control(case: Case, found: Second, share: float, least: float) -> Control:
    """No disjoint circuit does as well."""
    name, rules_out = "second", "that another circuit, without any edge of this one, does as well"
    expected = f"no disjoint circuit tried comes within {SLACK:g} of this one's nearness to faithfulness 1"
    if not found.sizes or abs(1 - share) > 1 - least:
        why = "nothing is left outside the circuit" if not found.sizes else "this one is not faithful itself"
        return Control.not_run(name, rules_out, expected, why)
    best = int(np.argmax(near(found.share)))
    if found.found >= 0:
        best = found.found
    observed = {"faithfulness": float(found.share[best]), "edges": int(found.edges[best])}
    return Control(name, rules_out, expected, observed, found.found < 0, len(found.sizes),
                   detail=f"sizes tried: {', '.join(map(str, found.sizes))}; scores of the whole model may hide a backup")  # fmt: skip
