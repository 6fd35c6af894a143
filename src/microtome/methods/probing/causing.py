"""The causal test of a probe's direction: its place chosen with another direction, its effect tested on test texts.

The direction that chooses the place is fitted on validation texts, that which is tested on training texts. With one direction for
both, the place would be where it happens to do most, while null directions are taken as they come (docs/decisions/0018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.clusters import FloatArray
from microtome.controls.directions import isotropic, likeness, noise_donor, norm_matched, unexplained
from microtome.controls.intervals import mean_interval
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import MicrotomeError
from microtome.methods.probing.asking import Asked
from microtome.methods.probing.capture import Matrix, Place
from microtome.methods.probing.causal import (
    WAYS,
    Prompted,
    at_site,
    displacement,
    effects,
    indirect,
    prompted,
)
from microtome.methods.probing.closed import factored, fit
from microtome.methods.probing.design import Design
from microtome.methods.probing.options import CLOSED, ProbeOptions
from microtome.methods.probing.sweeping import Swept
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

RULES_OUT = "that the model does not use what the probe reads, or that any direction of this length does it"
EXPECTED = "moving texts along the direction moves the answers more than the same estimator does on shuffled labels, and than noise of its length of two kinds"
EQUAL = "shuffled labels, equal length"
TOLD = ("shuffled labels", "isotropic", "natural noise")
"""Families that the direction must beat; "shuffled labels, equal length" is shown beside them (docs/decisions/0018)."""


@dataclass(frozen=True)
class Caused:
    """The control, one row per direction and way of using it, one row per place tried, and the displacement [d]."""

    control: Control
    table: pd.DataFrame
    places: pd.DataFrame
    tensors: dict[str, np.ndarray] = field(default_factory=dict)


def causal_test(
    model: Model,
    d: Design,
    asked: tuple[Asked, Any] | None,
    swept: Swept,
    captured: Mapping[Place, Matrix],
    o: ProbeOptions,
    seed: int,
) -> Caused:
    """Add, subtract and project out; beside it 199 shuffled-label directions, and as many of each kind of noise of its length."""
    why = (
        "it was switched off"
        if not o.causal
        else "the model cannot be asked for the label"
        if asked is None
        else ""
    )
    candidates = _candidates(swept, captured, o)
    if not why and not candidates:
        why = "no probe reads the stream at each text's last token"
    if why or asked is None:
        return _idle(why)
    wording = asked[0]
    held = _rows(d, d.train, o.prompts, seed, "choosing")
    rows = _rows(d, d.test, o.prompts, seed, "test")
    try:
        tried = _tried(model, d, wording, held, candidates, captured, o)
        site, kind, _ = max(tried, key=lambda t: t[2])
        p = prompted(model, wording, rows, d.truth[rows], site)
        families = _families(d, captured[site, -1], kind, o, seed)
        found = {way: {name: effects(p, vectors, way) for name, vectors in families.items()
                       if way == "move" or name != EQUAL} for way in WAYS}  # fmt: skip
    except MicrotomeError as error:  # this model, or this site, cannot be swept
        return _idle(f"{error.what}: {error.why}")
    return _told(d, p, rows, kind, found, tried, families)


def _idle(why: str) -> Caused:
    empty = _table([])
    return Caused(Control.not_run("causal", RULES_OUT, EXPECTED, why), empty, empty)


def _candidates(swept: Swept, captured: Mapping[Place, Matrix], o: ProbeOptions) -> list[tuple[str, str]]:
    """(site, kind) to choose from: evenly spread sites of the stream, mass-mean and the best closed-form kind."""
    sites = [site for site, at in captured if at == -1 and ".resid_" in site]
    sites = (
        sites[:-1] if len(sites) > 1 else sites
    )  # after the last layer nothing reads the text's token again
    spread = sorted({round(x) for x in np.linspace(0, len(sites) - 1, min(o.layers, len(sites))).tolist()})
    closed = [c.kind for c in swept.cells if c.kind in CLOSED]
    best = swept.best(closed).kind if closed else ""
    kinds = [k for k in dict.fromkeys(("mass_mean", best)) if k in closed]
    return [(sites[i], kind) for i in spread for kind in kinds]


def _rows(d: Design, part: np.ndarray, n: int, seed: int, name: str) -> list[int]:
    """n texts of each class, drawn at random."""
    rng = seeds.rng(seed, f"causal texts/{name}")
    sides = [rng.permutation(part[d.truth[part] == side])[:n] for side in (False, True)]
    return sorted(int(i) for side in sides for i in side)


def _direction(
    part: np.ndarray, values: Matrix, kind: str, labels: np.ndarray, o: ProbeOptions
) -> FloatArray:
    """Displacements of the estimator on a part's texts for label columns, [column, d]."""
    site = factored(values[part], [kind], ridge=o.ridge)
    delta = fit(site, labels[part], ["mass_mean"])["mass_mean"].weights
    return displacement(fit(site, labels[part], [kind])[kind].weights, delta)


def _tried(
    model: Model,
    d: Design,
    wording: Asked,
    held: list[int],
    candidates: list[tuple[str, str]],
    captured: Mapping[Place, Matrix],
    o: ProbeOptions,
) -> list[tuple[str, str, float]]:
    """(site, kind, mean move of training texts by validation texts' direction)."""
    base: Prompted | None = None
    found = []
    for k, (site, kind) in enumerate(candidates):
        base = (
            prompted(model, wording, held, d.truth[held], site)
            if base is None
            else at_site(base, model, site)
        )
        real = _direction(d.validation, captured[site, -1], kind, d.truth, o)
        found.append((site, kind, float(effects(base, real, "move")[0].mean())))
        progress(k + 1, len(candidates), "places", "choosing where to intervene")
    return found


def _families(d: Design, values: Matrix, kind: str, o: ProbeOptions, seed: int) -> dict[str, FloatArray]:
    """The direction; the same estimator's on shuffled labels, at their own length and at its; and noise of its length of two kinds."""
    real = _direction(d.train, values, kind, d.truth, o)
    norm = np.full(o.directions, float(np.linalg.norm(real)))
    labels = shuffled_columns(
        d.truth, d.units, draws=o.directions, seed=seed, parts=d.parts, differ=True, name="causal shuffles"
    ).labels
    own = _direction(d.train, values, kind, labels, o)
    rest = unexplained(values[d.train], d.truth[d.train], d.units[d.train])
    keep = np.linalg.norm(own, axis=1) > 0
    return {"direction": real, "shuffled labels": own, EQUAL: norm_matched(own[keep], norm[0]),
            "isotropic": isotropic(real.shape[1], norm, seed=seed, name="causal"),
            "natural noise": noise_donor(rest, norm, seed=seed, name="causal")}  # fmt: skip


def _told(
    d: Design,
    p: Prompted,
    rows: list[int],
    kind: str,
    found: dict[str, dict[str, tuple[FloatArray, FloatArray, int, int]]],
    tried: list[tuple[str, str, float]],
    vectors: dict[str, FloatArray],
) -> Caused:
    table, seen = [], {}
    real = vectors["direction"][0]
    for way, families in found.items():
        mean = float(families["direction"][0].mean())
        seen[way] = (mean, {name: _rank(mean, values[0].mean(1)) for name, values in families.items() if name != "direction"})  # fmt: skip
        for name, (values, *_) in families.items():
            table += [{"way": way, "family": name, "value": float(v)} for v in values.mean(1)]
    moved, base = found["move"]["direction"][:2]
    apart = float(base[p.truth].mean() - base[~p.truth].mean())
    gap = mean_interval(np.where(p.truth, base, -base), d.units[rows], of="groups")
    nie = indirect(moved, base, p.truth) if bool(gap.low > 0) else None
    mean, chances = seen["move"]
    null = found["move"]["shuffled labels"][0].mean(1)
    fired, planned = (sum(f[k] for families in found.values() for f in families.values()) for k in (2, 3))
    observed: dict[str, Any] = {"move (nats)": mean, "p": chances["shuffled labels"], **{f"p, {name}": chances[name] for name in (EQUAL, *TOLD[1:])},
                                "project out (nats)": seen["project_out"][0], "p of projecting out": seen["project_out"][1]["shuffled labels"],
                                "answers apart (nats)": apart}  # fmt: skip
    if nie is not None:
        observed["natural indirect effect"] = nie
    least = 1 / (1 + len(null))
    passed = max(chances[name] for name in TOLD) <= 0.05
    alike = likeness(vectors["shuffled labels"], real)
    detail = (f"{kind} at {p.site}, each text's last token, {len(rows)} test texts, {len(null)} directions: p no smaller than {least:.2g}; {fired} of {planned} places written"
              + f"; median |cosine| of the direction with those of shuffled labels {alike:.2g}"
              + ("" if nie is not None else "; not normalised: the model's own answers do not tell the classes apart"))  # fmt: skip
    control = Control("causal", RULES_OUT, EXPECTED, observed, bool(passed and fired == planned), len(rows),
                      null=(float(null.min()), float(null.max())), detail=detail)  # fmt: skip
    places = _table(
        [{"site": s, "kind": k, "validation": v, "chosen": (s, k) == (p.site, kind)} for s, k, v in tried]
    )
    return Caused(control, _table(table), places, {"displacement": real.astype(np.float32)})


def _rank(own: float, null: FloatArray) -> float:
    return float((1 + int((null >= own - 1e-12).sum())) / (1 + len(null)))


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
