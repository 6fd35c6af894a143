"""Composition scores of head pairs: how much of what one head writes another one reads, against two random baselines.

Elhage et al. 2021 (A mathematical framework for transformer circuits): ||AB|| / (||A|| ||B||) with A a head's OV circuit and
B the later head's QK circuit from the query's side (Q), from the key's side (K), or its OV circuit (V).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from microtome.errors import ControlError
from microtome.methods.headlines import headlined
from microtome.methods.weights import role_controls
from microtome.methods.weights.heads import HeadCircuits
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["composition", "scores"]

KINDS = ("Q", "K", "V")
MANDATORY = ("same_weights", "random_weights")
SHOWN = 200
KAIMING = 199


@technique("composition", "1", controls=("same_weights", "random_weights", "kaiming"), mandatory=MANDATORY,
           figure="microtome.figures.composition:draw", random=True)  # fmt: skip
def composition(model: Model, *, draws: int = 199, alpha: float = 0.001, seed: int = 0) -> Result:
    """Q-, K- and V-composition of every head with every later one, from weights with the norms' gains multiplied in.

    The null of a pair is a random rotation between the two heads: both keep their singular values. Its squared score is
    1 / d_model on average, whatever the spectra; its variance is known (see `against_rotations`).
    draws: rotations drawn for the table "baseline", on 50 random pairs each.

    Tensors: "Q", "K", "V" [sender, reader] (NaN unless the sender is in an earlier layer), heads in model order; "Q/z" and so on
    the distance of the squared score from its null's mean in deviations. Tables: "pairs" (the 200 that stand out most, with
    null band of two deviations and family-wise p over all pairs and kinds), "baseline" (kind, family "rotated" or "kaiming": mean and 95 %
    range), "transforms".

    Raises
    ------
    ControlError: no head has an earlier one, or under 19 draws. ModelError: no heads (see `HeadCircuits`).
    """
    circuits = HeadCircuits(model)
    if len(circuits.layers) < 2:
        raise ControlError(
            "No head has an earlier one to compose with.", why="the model has one layer of heads"
        )
    if draws < 19:
        raise ControlError(f"{draws} draws tell nothing at 5 %.", instead="draws=999")
    found = scores(circuits)
    z, p = against_rotations(circuits, found)
    baseline = _baseline(circuits, found, draws, seed)
    ran = [
        role_controls.same_weights(circuits, seed),
        _random_weights(circuits, seed),
        _kaiming(found, baseline),
    ]
    least = min(float(np.nanmin(v)) for v in p.values())
    return headlined(Result(
        "composition", tables={"pairs": _pairs(circuits, found, z, p), "baseline": baseline,
                               "heads": _frame([{"site": f"L{a}H{b}", "layer": a, "head": b} for a, b in circuits.heads]), "transforms": _frame([{"transform": k, "what": v} for k, v in circuits.transforms.items()])},
        tensors={**found, **{f"{k}/z": v for k, v in z.items()}}, controls=ran,
        verdict=verdict(ran, MANDATORY, least, alpha, 0.0),
    ))  # fmt: skip


def scores(c: HeadCircuits) -> dict[str, np.ndarray]:
    """kind -> [sender, reader], NaN unless the sender's layer is earlier. float64 statistics of factored products."""
    n = len(c.heads)
    out = {kind: np.full((n, n), np.nan) for kind in KINDS}
    at = {i: [k for k, (layer, _) in enumerate(c.heads) if layer == i] for i in c.layers}
    written = {i: _right(c.W_V(i), c.W_O(i)) for i in c.layers}
    for done, reader in enumerate(c.layers, 1):
        read = {
            "Q": _left(c.W_Q(reader), c.W_K(reader)),
            "K": _left(c.W_K(reader), c.W_Q(reader)),
            "V": _left(c.W_V(reader), c.W_O(reader).mT),
        }
        for kind, b in read.items():
            size, narrow = b.flatten(1).norm(dim=1), b.float()  # the product in float32, its norm in float64
            for sender in (i for i in c.layers if i < reader):
                a = written[sender]
                both = torch.einsum("svm,hmk->shvk", a.float(), narrow).double().flatten(2).norm(dim=2)
                out[kind][np.ix_(at[sender], at[reader])] = (
                    both / (a.flatten(1).norm(dim=1)[:, None] * size).clamp_min(1e-30)
                ).numpy()
        progress(done, len(c.layers), "layers", "composing")
    return out


def _right(first: Tensor, second: Tensor) -> Tensor:
    """R second with first = Q R: the product's norms from the right. Shapes: [h, d, k], [h, k, d] -> [h, k, d]."""
    return torch.linalg.qr(first)[1] @ second


def _left(first: Tensor, second: Tensor) -> Tensor:
    """first R^T with second = Q R: the norms of first @ second^T from the left. Shapes: [h, d, k] each -> [h, d, k]."""
    return first @ torch.linalg.qr(second)[1].mT


def _spectra(c: HeadCircuits) -> dict[str, Tensor]:
    """Squared singular values over their sum, per head: "write" of OV, "Q" and "K" of QK, "V" of OV. Shapes: [head, width]."""
    found: dict[str, list[Tensor]] = {"ov": [], "qk": []}
    for i in c.layers:
        found["ov"].append(
            torch.linalg.svdvals(torch.linalg.qr(c.W_V(i))[1] @ torch.linalg.qr(c.W_O(i).mT)[1].mT)
        )
        found["qk"].append(
            torch.linalg.svdvals(torch.linalg.qr(c.W_Q(i))[1] @ torch.linalg.qr(c.W_K(i))[1].mT)
        )
    squares = {k: _padded(v).square() for k, v in found.items()}
    shares = {k: v / v.sum(1, keepdim=True).clamp_min(1e-60) for k, v in squares.items()}
    return {"write": shares["ov"], "Q": shares["qk"], "K": shares["qk"], "V": shares["ov"]}


def _padded(rows: list[Tensor]) -> Tensor:
    """Layers whose heads differ in width, side by side."""
    width = max(r.shape[1] for r in rows)
    return torch.cat([torch.nn.functional.pad(r, (0, width - r.shape[1])) for r in rows])


def _rotated(
    c: HeadCircuits, spectra: dict[str, Tensor], draws: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Per draw and kind the squared score of every pair under one random rotation: [sender, reader]."""
    generator = torch.Generator().manual_seed(seeds.child(seed, "rotations between heads"))
    d = c.model.facts.d_model
    widths = {k: v.shape[1] for k, v in spectra.items()}
    for _ in range(draws):
        frame = torch.linalg.qr(
            torch.randn(d, max(widths.values()), generator=generator, dtype=torch.float64)
        )[0].square()
        yield {k: spectra["write"] @ frame[: widths["write"], : widths[k]] @ spectra[k].T for k in KINDS}


def against_rotations(
    c: HeadCircuits, found: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Distance of each squared score from its null's mean, in deviations, and its p over all pairs and kinds (Bonferroni).

    Mean and variance under a random rotation are exact (fourth moments of a Haar matrix); the tail is that of the gamma
    distribution with these moments, as is usual for weighted sums of squares (Satterthwaite 1946).
    """
    spectra, d = _spectra(c), c.model.facts.d_model
    tests = len(KINDS) * int((~np.isnan(found["Q"])).sum())
    z, p = {}, {}
    for kind in KINDS:
        spread = np.sqrt(rotation_variance(spectra["write"], spectra[kind], d).numpy())
        squared = found[kind] ** 2
        z[kind] = (squared - 1 / d) / spread
        shape = 1 / (d * spread) ** 2
        tail = stats.gamma.sf(squared, shape, scale=1 / (d * shape))
        p[kind] = np.where(np.isnan(squared), np.nan, np.minimum(1.0, tests * tail))
    return z, p


def rotation_variance(first: Tensor, second: Tensor, d: int) -> Tensor:
    """Variance of sum_ij s_i O_ij^2 t_j for a Haar matrix O of width d, s and t summing to 1. Shapes: [a, k], [b, l] -> [a, b]."""
    s, t = first.square().sum(1)[:, None], second.square().sum(1)[None]
    line = 1 / (d * (d + 2))
    other = (d + 1) / (d * (d - 1) * (d + 2))
    return (
        3 * line * s * t + line * (s * (1 - t) + t * (1 - s)) + other * (1 - s) * (1 - t) - 1 / d**2
    ).clamp_min(1e-30)


def _baseline(c: HeadCircuits, found: dict[str, np.ndarray], draws: int, seed: int) -> pd.DataFrame:
    """Scores of random pairs: rotated real ones, and Kaiming matrices of the same shapes."""
    rows: list[dict[str, object]] = []
    known = ~np.isnan(found["Q"])
    rotated: dict[str, list[np.ndarray]] = {k: [] for k in KINDS}
    pick = seeds.rng(seed, "pairs of the baseline")
    places = np.argwhere(known)
    for drawn in _rotated(c, _spectra(c), draws, seeds.child(seed, "baseline")):
        i, j = places[pick.integers(len(places), size=50)].T
        for k, v in drawn.items():
            rotated[k].append(np.sqrt(v.numpy()[i, j]))
    kaiming = _kaiming_draws(c, seed)
    for kind in KINDS:
        for family, values in (
            ("rotated", np.concatenate(rotated[kind])),
            ("kaiming", kaiming[kind]),
            ("model", found[kind][known]),
        ):
            low, high = np.quantile(values, [0.025, 0.975])
            rows.append({"kind": kind, "family": family, "mean": float(values.mean()), "low": float(low), "high": float(high),
                         "largest": float(values.max()), "n": len(values)})  # fmt: skip
    return _frame(rows)


def _kaiming_draws(c: HeadCircuits, seed: int) -> dict[str, np.ndarray]:
    """Scores of pairs of random heads: each weight uniform within the bound of Kaiming's initialisation (He et al. 2015)."""
    generator = torch.Generator().manual_seed(seeds.child(seed, "kaiming"))
    facts = c.model.facts.layers[c.layers[0]]
    d, h, v = c.model.facts.d_model, facts.d_head, facts.d_value

    def draw(rows: int, columns: int) -> Tensor:
        return (
            torch.rand(KAIMING, rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
        ) * rows**-0.5

    a = _right(draw(d, v), draw(v, d))
    out = {}
    for kind in KINDS:
        b = _left(draw(d, v), draw(v, d).mT) if kind == "V" else _left(draw(d, h), draw(d, h))
        out[kind] = (
            (a @ b).flatten(1).norm(dim=1) / (a.flatten(1).norm(dim=1) * b.flatten(1).norm(dim=1))
        ).numpy()
    return out


def _random_weights(c: HeadCircuits, seed: int) -> Control:
    """Heads with random weights must not stand out from the null."""
    random = role_controls.RandomHeads(c, seed)
    p = min(float(np.nanmin(v)) for v in against_rotations(random, scores(random))[1].values())
    return Control("random_weights", "that any weights of these norms and groups compose so", f"the smallest p of random weights, over all pairs, is above {role_controls.RANDOM_LEVEL:g}",
                   p, p > role_controls.RANDOM_LEVEL, len(c.heads))  # fmt: skip


def _kaiming(found: dict[str, np.ndarray], baseline: pd.DataFrame) -> Control:
    """Whether any pair lies above the range of freshly initialised weights of the same shapes."""
    high = {
        str(r["kind"]): float(r["largest"]) for r in baseline.to_dict("records") if r["family"] == "kaiming"
    }
    above = {k: int((np.nan_to_num(found[k], nan=0.0) > high[k]).sum()) for k in KINDS}
    return Control("kaiming", "that weights as they are initialised score as high", f"some pair lies above the largest of {KAIMING} pairs of Kaiming matrices",
                   above, sum(above.values()) > 0, KAIMING)  # fmt: skip


def _pairs(
    c: HeadCircuits, found: dict[str, np.ndarray], z: dict[str, np.ndarray], p: dict[str, np.ndarray]
) -> pd.DataFrame:
    names = [f"L{layer}H{head}" for layer, head in c.heads]
    mean = 1 / c.model.facts.d_model
    rows = []
    for kind in KINDS:
        for i, j in np.argwhere(~np.isnan(found[kind])):
            deviation = abs(found[kind][i, j] ** 2 - mean) / max(abs(z[kind][i, j]), 1e-12)
            rows.append({"kind": kind, "sender": names[i], "reader": names[j], "score": found[kind][i, j], "null_low": max(mean - 2 * deviation, 0.0) ** 0.5,
                         "null_high": (mean + 2 * deviation) ** 0.5, "z": z[kind][i, j], "p": p[kind][i, j]})  # fmt: skip
    rows.sort(key=lambda r: -r["z"])
    return _frame(rows[:SHOWN])


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
