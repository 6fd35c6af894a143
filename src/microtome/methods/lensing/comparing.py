"""Logit, tuned and Jacobian lens on the same held-out text: divergence from the end, agreement, calibration, and their nulls.

nostalgebraist 2020 (logit lens), Belrose et al. 2023 (tuned lens, arXiv 2303.08112), Gurnee et al. 2026 (Jacobian lens).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.controls.intervals import mean_interval
from microtome.controls.signflip import sign_flip
from microtome.errors import TaskError
from microtome.methods.headlines import headlined
from microtome.methods.lensing.fitting import FitOptions, constant_lens, fit_jacobian, fit_tuned
from microtome.methods.lensing.reading import METRICS, Readings, calibration_error, read, reliability
from microtome.methods.lensing.translators import Translators, block_digest, identity, stream_sites
from microtome.methods.texts import Blocks, blocks_of
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["lenses"]

MANDATORY = ("last_layer", "untrained", "held_out", "other_text", "constant")
JACOBIAN_BLOCKS = 8


@technique(
    "lenses",
    "1",
    controls=MANDATORY,
    mandatory=MANDATORY,
    figure="microtome.figures.lenses:draw",
    random=True,
)
def lenses(
    model: Model,
    texts: Any,
    *,
    tuned: Translators | None = None,
    jacobian: Translators | None = None,
    held_out: int = 16,
    options: FitOptions | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Three lenses beside each other at every layer of text that none was fitted to.

    Parameters
    ----------
    texts: a corpus, or texts or id lists (see `blocks_of`); split by document into text to fit to and text to judge on.
    tuned, jacobian: lenses fitted before (`tuned_lens`, `jacobian_lens`, `Translators.load`), on other text; None: fitted here, the
        Jacobian one on 8 of the blocks.
    held_out: blocks to judge on. options: of the fit, and its context, layers and skipped positions for the judging.

    Effects: [site, prompt, metric], a block of text per prompt: "kl logit" and so on (nats, from the final distribution to the
    lens's), "agreement ..." (share of positions where both have the same likeliest token), "nll ..." (of the next token, nats).
    Table "cells" has their intervals by document and as null the same lens reading another block's stream. "calibration": expected
    calibration error of the likeliest token as a guess of the next one, per lens and layer, interval by resampled documents.
    "reliability": its bins. "fit": what the fits say of themselves. The lens "constant" gives the mean final stream whatever the
    text: what is known without reading. The verdict's p is that the tuned lens diverges less than the logit lens at some layer,
    signs flipped by document.

    Raises
    ------
    ModelError: a lens of another model, or layers that it does not have. TaskError: under two documents, or no block.
    """
    o = options or FitOptions()
    layers = stream_sites(model, o.layers)
    for lens in (tuned, jacobian):
        if lens is not None:
            lens.check(model)
    train, judged = _split(model, texts, o, held_out, tuned is None or jacobian is None, seed)
    given: dict[str, Translators] = {"logit": Translators("logit", model=model.hash)}
    given["tuned"] = fit_tuned(model, train, o, seed) if tuned is None else tuned
    given["jacobian"] = (
        fit_jacobian(model, train.part(range(min(JACOBIAN_BLOCKS, len(train)))), o, seed)
        if jacobian is None
        else jacobian
    )
    given["constant"] = constant_lens(model, train if len(train) else judged, layers, o.skip)
    found = read(model, given, judged, layers, o.skip)
    sites = (*(f"L{k}.resid_pre" for k in layers), "final_resid")
    metrics = tuple(f"{m} {name}" for m in METRICS for name in found.lenses)
    stacked = found.values.transpose(1, 3, 0, 2).reshape(len(sites), len(judged), len(metrics))
    tested = _test(found, judged, seed, alpha)
    ran = [
        _last_layer(found),
        _untrained(model, judged, layers, o.skip),
        _held_out(given, judged),
        _other_text(found),
        _constant(found),
    ]
    p, least = (None, None) if tested is None else tested
    return headlined(Result(
        "lenses",
        effects=Labelled(stacked, ("site", "prompt", "metric"), {"site": sites, "prompt": tuple(range(len(judged))), "metric": metrics}),
        tables={"cells": _cells(found, sites, judged), "calibration": _calibration(found, sites, judged, seed),
                "reliability": _reliability(found, sites), "fit": _fits(given, layers)},
        controls=ran, verdict=verdict(ran, MANDATORY, p, alpha, least), raw_examples=_examples(model, given, judged, layers, o.skip, seed),
    ))  # fmt: skip


def _split(
    model: Model, texts: Any, o: FitOptions, held_out: int, fits: bool, seed: int
) -> tuple[Blocks, Blocks]:
    """Blocks to fit to and blocks to judge on, without a document in common."""
    if held_out < 2:
        raise TaskError(f"{held_out} held-out blocks", why="an interval needs two", instead="held_out=16")
    if not fits:
        every = blocks_of(model, texts, context=o.context, most=held_out, seed=seed)
        return every.part(()), every
    every = blocks_of(model, texts, context=o.context, most=o.blocks + held_out, seed=seed)
    train, judged = every.split(o.blocks / (o.blocks + held_out), seed)
    judged = judged.part(range(min(held_out, len(judged))))
    if len(judged) < 2 or len(train) < 2:
        raise TaskError(
            f"{len(train)} blocks to fit to and {len(judged)} to judge on",
            why="the documents gave no more",
            instead="more or longer texts",
        )
    return train, judged


def _test(found: Readings, blocks: Blocks, seed: int, alpha: float) -> tuple[float, float] | None:
    """p that the tuned lens diverges less than the logit lens somewhere, and the smallest that can be reached."""
    if len(set(blocks.documents)) < 2:
        return None
    gain = (
        found.values[0, :-1, found.lenses.index("logit")] - found.values[0, :-1, found.lenses.index("tuned")]
    )
    if not gain.any():
        return 1.0, 0.0
    test = sign_flip(gain, list(blocks.documents), seed=seed, alpha=alpha)
    better = test.p[gain.mean(1) > 0]
    return (float(better.min()) if better.size else 1.0), test.smallest_p


def _last_layer(found: Readings) -> Control:
    limit = 1e-3 if np.isfinite(found.gap) else 0.0
    return Control("last_layer", "that a lens unembeds otherwise than the model does", f"at the end every lens gives the model's own log-probabilities, within {limit:g}",
                   found.gap, found.gap <= limit, found.of_block.size, gates=True)  # fmt: skip


def _untrained(model: Model, blocks: Blocks, layers: list[int], skip: int) -> Control:
    """Maps that do nothing give the logit lens, number for number."""
    part = blocks.part(range(min(2, len(blocks))))
    both = read(model, {"logit": Translators("logit"), "untrained": identity(model)}, part, layers, skip)
    gap = float(np.abs(both.values[:, :, 0] - both.values[:, :, 1]).max())
    return Control("untrained", "that a lens moves or rescales the stream by being applied", "untrained maps read what the logit lens reads, within 1e-5",
                   gap, gap <= 1e-5, len(part) * len(layers), gates=True)  # fmt: skip


def _held_out(given: Mapping[str, Translators], blocks: Blocks) -> Control:
    seen = {
        name: sum(block_digest(b) in set(lens.made.get("blocks", ())) for b in blocks.ids)
        for name, lens in given.items()
    }
    return Control("held_out", "that a lens is judged on text that it was fitted to", "no block was fitted to", seen, not any(seen.values()),
                   len(blocks), gates=True)  # fmt: skip


def _other_text(found: Readings) -> Control:
    """At the last layer each lens must know which text it reads."""
    own, other = found.values[0, -2].mean(-1), found.null[0, -2].mean(-1)
    seen = {
        name: float(own[n] / max(other[n], 1e-12))
        for n, name in enumerate(found.lenses)
        if name != "constant"
    }
    return Control("other_text", "that a lens says the same of every text", "before the last layer each lens diverges less than half as much as from another block's end",
                   seen, max(seen.values()) < 0.5, found.values.shape[-1])  # fmt: skip


def _constant(found: Readings) -> Control:
    """The tuned lens must read something: more than the mean of the final streams tells without reading."""
    kl = found.values[0, :-1].mean(-1)
    mine, none = (float(kl[:, found.lenses.index(n)].mean()) for n in ("tuned", "constant"))
    return Control("constant", "that the tuned lens has learned how often tokens occur, and reads nothing", "over all layers the tuned lens diverges less than a lens that is the same for every text",
                   {"tuned": mine, "constant": none}, mine < none, len(kl))  # fmt: skip


def _cells(found: Readings, sites: tuple[str, ...], blocks: Blocks) -> pd.DataFrame:
    interval = mean_interval(found.values, list(blocks.documents), of="documents")
    null = mean_interval(found.null, list(blocks.documents), of="documents")
    rows = [{"site": site, "metric": f"{metric} {name}", "low": float(interval.low[m, p, n]), "high": float(interval.high[m, p, n]),
             "null_low": float(null.low[m, p, n]), "null_high": float(null.high[m, p, n])}
            for m, metric in enumerate(METRICS) for p, site in enumerate(sites) for n, name in enumerate(found.lenses)]  # fmt: skip
    return _frame(rows)


def _calibration(found: Readings, sites: tuple[str, ...], blocks: Blocks, seed: int) -> pd.DataFrame:
    names = sorted(set(blocks.documents))
    code = np.array([names.index(d) for d in blocks.documents])[found.of_block]
    generator = seeds.rng(seed, "documents of calibration")
    members = [np.flatnonzero(code == k) for k in range(len(names))]
    drawn = [
        np.concatenate([members[k] for k in generator.integers(len(names), size=len(names))])
        for _ in range(200)
    ]
    rows: list[dict[str, object]] = []
    for p, site in enumerate(sites):
        for n, name in enumerate(found.lenses):
            c, r = found.confidence[p, n], found.right[p, n]
            spread = [calibration_error(c[i], r[i]) for i in drawn] if len(names) > 1 else [float("nan")]
            rows.append({"site": site, "lens": name, "value": calibration_error(c, r), "low": float(np.quantile(spread, 0.025)), "high": float(np.quantile(spread, 0.975)),
                         "confidence": float(c.mean()), "accuracy": float(r.mean()), "n": len(c)})  # fmt: skip
    return _frame(rows)


def _reliability(found: Readings, sites: tuple[str, ...]) -> pd.DataFrame:
    return _frame([{"site": site, "lens": name, **row} for p, site in enumerate(sites) for n, name in enumerate(found.lenses)
                   for row in reliability(found.confidence[p, n], found.right[p, n])])  # fmt: skip


def _fits(given: Mapping[str, Translators], layers: list[int]) -> pd.DataFrame:
    rows: list[dict[str, object]] = []
    for name, lens in given.items():
        for k in layers:
            curve = lens.made.get("divergence", {}).get(str(k), ())
            rows.append({"lens": name, "layer": k, "blocks": len(lens.made.get("blocks", ())), "first": float(curve[0]) if curve else float("nan"),
                         "last": float(curve[-1]) if curve else float("nan"), "split_half": float(lens.made.get("split_half", {}).get(str(k), float("nan")))})  # fmt: skip
    return _frame(rows)


@torch.no_grad()
def _examples(
    model: Model, given: Mapping[str, Translators], blocks: Blocks, layers: list[int], skip: int, seed: int
) -> list[dict[str, object]]:
    """Random positions: what each lens would say at a third and two thirds of the layers."""
    generator = seeds.rng(seed, "raw_examples")
    out: list[dict[str, object]] = []
    for b in generator.choice(len(blocks), min(4, len(blocks)), replace=False).tolist():
        ids = list(blocks.ids[b])
        at = int(generator.integers(skip, len(ids) - 1))
        shown = sorted({layers[len(layers) // 3], layers[2 * len(layers) // 3]})
        trace = model.run([ids], [f"L{k}.resid_pre" for k in shown])
        row: dict[str, object] = {"prompt": "".join(model.strings(ids[: at + 1])), "next": model.strings([ids[at + 1]])[0],
                                  "model": model.strings([int(trace.logits[0, at].argmax())])[0]}  # fmt: skip
        for k in shown:
            for name, lens in given.items():
                top = lens.logits(model, k, trace[f"L{k}.resid_pre"][0, at : at + 1])[0].argmax()
                row[f"L{k} {name}"] = model.strings([int(top)])[0]
        out.append(row)
    return out


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
