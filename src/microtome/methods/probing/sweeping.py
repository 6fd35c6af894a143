"""All probes over all places: fitted on training texts, scored on the others, the closed ones on shuffled labels as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.controls.discrimination import auroc
from microtome.controls.shuffles import Shuffles
from microtome.errors import TaskError
from microtome.methods.probing.capture import Matrix, Place
from microtome.methods.probing.closed import Linear, factored, fit
from microtome.methods.probing.design import Design
from microtome.methods.probing.fitted import logistic
from microtome.methods.probing.options import CLOSED, ProbeOptions
from microtome.results.technique import progress


@dataclass(frozen=True)
class Cell:
    """One probe: where, of which kind; its scores [item] on all texts, and its AUROC on the validation texts."""

    place: Place
    kind: str
    scores: FloatArray
    validation: float
    linear: Linear | None = None


@dataclass
class Swept:
    """Cells of a sweep and the null of the closed-form ones: highest, lowest [draw] AUROC on the test texts over all cells."""

    cells: list[Cell]
    highest: FloatArray
    lowest: FloatArray
    own: dict[tuple[Place, str], FloatArray] = field(default_factory=dict)

    def best(self, kinds: Sequence[str] = ()) -> Cell:
        """The cell with the largest AUROC on validation texts (the earliest of equals), among some kinds."""
        among = [c for c in self.cells if not kinds or c.kind in kinds]
        return max(among, key=lambda c: c.validation)


def sweep_places(
    captured: Mapping[Place, Matrix],
    d: Design,
    kinds: Sequence[str],
    shuffles: Shuffles | None,
    options: ProbeOptions,
    *,
    note: str = "probing",
) -> Swept:
    """Fit every kind at every place.

    Raises
    ------
    TaskError: another number of rows than texts.
    """
    closed = [k for k in kinds if k in CLOSED]
    draws = 0 if shuffles is None else shuffles.labels.shape[1]
    out = Swept([], np.full(draws, -np.inf), np.full(draws, np.inf))
    for done, (place, values) in enumerate(captured.items()):
        if len(values) != len(d.data):
            raise TaskError(f"{len(values)} activations for {len(d.data)} texts", why="there is one row per text",
                            instead="capture the same texts")  # fmt: skip
        rows = values.astype(np.float64)
        site = factored(rows[d.train], closed, ridge=options.ridge)
        for kind, probe in fit(site, d.truth[d.train], closed).items():
            _add(out, d, place, kind, probe, rows)
        if "logistic" in kinds:
            probe = logistic(rows[d.train], d.truth[d.train], C=options.C)
            _add(out, d, place, "logistic", probe, rows)
        if shuffles is not None:
            labels = shuffles.labels[d.test]
            for kind, probe in fit(site, shuffles.labels[d.train], closed).items():
                null = auroc(probe.scores(rows[d.test]), labels)
                out.own[place, kind] = null
                np.maximum(out.highest, null, out=out.highest)
                np.minimum(out.lowest, null, out=out.lowest)
        progress(done + 1, len(captured), "places", note)
    return out


def _add(out: Swept, d: Design, place: Place, kind: str, probe: Linear, rows: FloatArray) -> None:
    scores = probe.scores(rows)[:, 0]
    held = float(auroc(scores[d.validation], d.truth[d.validation])[0])
    out.cells.append(Cell(place, kind, scores, held, probe))
