"""Model diffing: where two models of one architecture differ inside, and whether noise of the same size would differ as much.

Most of what a fine-tune changes is drift (Lindsey et al. 2024, crosscoders; Minder et al. 2025, arXiv 2504.02922), and any
change of the weights changes every activation above it. So the difference stands beside that of models whose weights were moved
as far, tensor by tensor, at random (rounded otherwise where the second model is a rounded copy), and beside an unrelated
fine-tune where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from microtome.errors import ControlError, ModelError
from microtome.methods import diff_controls as judged
from microtome.methods import diff_tables as shown
from microtome.methods.diff_data import Texts, texts_of
from microtome.methods.diff_reading import Reading
from microtome.methods.diff_runs import Compared, Lockstep
from microtome.methods.diff_text import outputs, text_level
from microtome.methods.diff_tokens import Comparable, Level, check_level, comparable
from microtome.methods.diff_weights import WeightDiff, weight_diff
from microtome.methods.diff_words import word_level
from microtome.methods.headlines import headlined
from microtome.methods.setting import sites_of
from microtome.model.binding import Binding, bind
from microtome.model.copies import copy_of, put, tensors_of
from microtome.model.noise import KINDS, Noise, RandomChange, fitting
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import verdict
from microtome.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from microtome.facade import Model

TINY = 1e-15
CLOSE, TRIES = 1.5, 3
MANDATORY = ("same_model", "noise_size", "batching", "noise_models")


@dataclass(frozen=True)
class DiffOptions:
    """How two models are compared.

    draws: noise models, at least three; their number sets the smallest p, 1 / (draws + 1). noise: "gaussian"; "spectrum" (the real
    singular values between random directions, which keeps the rank); "rounding" (to other steps of the same coarseness); "fitting"
    chooses by the weights: rounding for a rounded copy, spectrum for a low rank, else gaussian. leave_out: leading tokens of each text that enter
    no average. most_tokens: longest text, the rest is cut and counted. passages: of a corpus. positions: a cell per position rather than a mean
    over the text; needs prompts of one layout. batch_tokens, memory: tokens run together, and bytes of recorded runs kept.
    """

    draws: int = 19
    noise: Noise | Literal["fitting"] = "fitting"
    leave_out: int = 1
    most_tokens: int = 128
    passages: int = 32
    positions: bool = False
    batch_tokens: int = 512
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        least = {"draws": 3, "leave_out": 0, "most_tokens": 2, "passages": 2, "batch_tokens": 1, "memory": 0}
        low = [f"{name}={getattr(self, name)}" for name, n in least.items() if getattr(self, name) < n]
        if low or self.noise not in ("fitting", *KINDS):
            raise ControlError(
                f"DiffOptions({low[0] if low else f'noise={self.noise!r}'}) cannot be asked for",
                why="at least three draws show a spread"
                if low
                else f"noise is one of {', '.join(('fitting', *KINDS))}",
                instead=f"at least {', '.join(f'{k}={v}' for k, v in least.items())}",
            )


@technique("model_diff", "1", controls=(*MANDATORY, "unrelated", "reading", "paired", "other_words"), mandatory=("same_model",),
           figure="microtome.figures.diffing:draw", random=True)  # fmt: skip
def model_diff(
    a: Model,
    b: Model,
    data: Any,
    *,
    sites: str | Sequence[str] = ("L*.resid_post", "L*.attn_out", "L*.mlp_out"),
    unrelated: Model | None = None,
    words: Sequence[str] = (),
    level: Level = "sites",
    options: DiffOptions | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> Result:
    """Run two models in lock-step on the same tokens and hold their difference against nulls.

    Parameters
    ----------
    a, b: two models of one architecture and tokenizer, such as a model and its fine-tune (a LoRA: merged, see
        `merged_copy`) or its quantised copy (`quantised_copy`, or another GGUF).
    data: texts, rows of token ids, labelled text (clusters: its units), a pair task (its clean prompts), or a corpus.
    sites: points of layers with a value per token.
    unrelated: another fine-tune of `a` of about the same size: what any training does.
    words: what `b` may have been trained on; whether the difference promotes them is tested.
    level: "sites"; "outputs" where only tokens agree; "words" (ends of words) where layers and width agree; "text" where nothing
        does: what is left is then compared, against another null.
    alpha: level; with 19 noise models the smallest p is 0.05.

    Returns a Result: effects [site, (position,) prompt, metric]: relative_norm, the norm of the difference over the mean of both
    norms (0 to 2), and cosine_distance, 1 - cosine, each a mean over the text's tokens. Tables: cells (interval over documents, null band of
    the noise models, p over the map; also the KL of the outputs), weights (each tensor), tokens (where outputs differ most,
    with context), reading (what the mean difference at the first positions promotes, real and null), drift (with
    `unrelated`), about. Tensors: first_difference [site, position, d_model].

    Raises
    ------
    ModelError: models that cannot be compared at this level; it says what differs and what can still be compared.
    SiteError, TaskError: sites or data that do not fit.
    """
    o = options or DiffOptions()
    texts = texts_of(a, data, o.most_tokens, o.leave_out + 1, o.passages, seed)
    found = comparable(a, b, [t for t in texts.texts if t])
    check_level(found, level)
    if level == "text":
        return headlined(text_level(a, b, texts, found, alpha, seed))
    if level == "words":
        return headlined(word_level(a, b, texts, sites_of(a, sites), found, alpha, seed))
    if level == "outputs":
        return headlined(outputs(a, b, texts, found, alpha, seed))
    if o.positions and not texts.aligned:
        raise ModelError("positions are other places in each text", why="these texts have no common layout", instead="options=DiffOptions(positions=False)")  # fmt: skip
    return headlined(
        _sites(_Question(a, b, texts, sites_of(a, sites), found, o, alpha, seed), unrelated, tuple(words))
    )


@dataclass(frozen=True)
class _Question:
    a: Model
    b: Model
    texts: Texts
    sites: list[Site]
    found: Comparable
    options: DiffOptions
    alpha: float
    seed: int


def _sites(q: _Question, unrelated: Model | None, words: tuple[str, ...]) -> Result:
    o = q.options
    weights = weight_diff(q.a, q.b)
    start = weights.start if not q.found.configs else None
    lock = Lockstep(q.a.binding, q.texts.ids, q.sites, start, o.batch_tokens, o.memory)
    streams = [s for s in q.sites if s.point == "resid_post"]
    view = shown.View(q.sites, streams, q.texts, o.leave_out, o.positions)
    progress(0, o.draws + 2, "models", "the difference itself")
    real = lock.compare(q.b.binding, streams)
    noise = _noise(q, weights, lock, streams, real)
    draws = noise.draws
    third = _unrelated(q, unrelated, streams) if unrelated is not None else None
    tests = judged.families(view, real, draws, noise.matched, q.alpha)
    shown_tests = tests.shown if tests is not None else {}
    reading = Reading.of(q.a, view, real, draws, third, words, q.alpha)
    strongest = judged.strongest(view, real)
    ran = [
        judged.same_model(lock),
        judged.noise_size(noise.sizes),
        judged.batching(lock, view, strongest),
        judged.noise(view, tests, noise.kind, q.alpha, moved=strongest[1] > 0),
        judged.unrelated(view, real, third, q.seed),
        reading.control(q.alpha),
        *judged.OTHER_LEVELS,
    ]
    p, least = judged.p_of(tests, reading.test, moved=strongest[1] > 0)
    mandatory = MANDATORY if draws else ("same_model", "noise_models")
    token_map, maps = shown.token_map(q.a, view, real, q.seed)
    tables = {
        "token_map": token_map,
        "cells": shown.cells(view, real, draws, shown_tests),
        "weight_changes": weights.table,
        "differing_tokens": shown.tokens(q.a, view, real, shown_tests),
        "reading": reading.table(),
        "drift": shown.drift(view, real, third),
        "about": shown.about(q.a, q.b, weights, q.found, q.texts, len(draws), noise.kind),
    }
    return Result(
        "model_diff",
        effects=_effects(view, real),
        tables={k: v for k, v in tables.items() if len(v)},
        tensors={
            "first_difference": real.first.numpy().astype(np.float32),
            "structurally_zero": view.zero(real, draws),
            **maps,
        },
        controls=ran,
        verdict=verdict(ran, mandatory, p, q.alpha, least),
        raw_examples=shown.examples(q.a, view, real, q.seed),
    )


@dataclass
class _NoiseModels:
    """draws: each against the first model; matched: the same, rescaled where their outputs differ otherwise; sizes: how far each
    tensor really was moved, relative, as the model's type rounds it."""

    kind: Noise
    draws: list[Compared] = field(default_factory=list)
    matched: list[Compared] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)


def _noise(
    q: _Question, weights: WeightDiff, lock: Lockstep, streams: Sequence[Site], real: Compared
) -> _NoiseModels:
    """Models whose weights were moved as far at random."""
    old = tensors_of(q.a.hf)
    asked = q.options.noise
    out = _NoiseModels(fitting(old, weights.changed, weights.ranks) if asked == "fitting" else asked)
    if not weights.changed:
        return out
    copy = copy_of(q.a.hf)
    binding, change = _bound(q.a, copy), RandomChange(old, weights.changed, out.kind)

    def model(draw: int, scale: float) -> Compared:
        child = seeds.child(q.seed, f"noise model {draw}")
        for name, delta in weights.changed.items():
            moved = old[name].double() + scale * change.draw(name, child)
            put(copy, {name: moved.to(old[name])})
            if scale == 1:
                now = (tensors_of_one(copy, name).double() - old[name].double()).norm()
                out.sizes.append(float(now / delta.double().norm()))
        return lock.compare(binding, streams)

    for draw in range(q.options.draws):
        out.draws.append(model(draw, 1.0))
        out.matched.append(_rescaled(real, out.draws[-1], partial(model, draw), q.options.leave_out))
        progress(draw + 2, q.options.draws + 2, "models", "noise models")
    return out


def _rescaled(real: Compared, own: Compared, model: Callable[[float], Compared], leave_out: int) -> Compared:
    """A noise model whose change is scaled until its outputs' mean KL is the real one's, within CLOSE; itself if it is, or has none.

    Secant steps on a log scale; a small change's KL grows with its square.
    """
    goal, now = (float(np.log(max(_kl(c, leave_out), TINY))) for c in (real, own))
    if min(goal, now) <= np.log(TINY):
        return own
    best, scale, slope = own, 0.0, 2.0
    for _ in range(TRIES):
        if abs(now - goal) <= np.log(CLOSE):
            break
        before, was = scale, now
        scale += float(np.clip((goal - now) / slope, -3.0, 3.0))
        best = model(float(np.exp(scale)))
        now = float(np.log(max(_kl(best, leave_out), TINY)))
        slope = float(np.clip((now - was) / (scale - before), 1.0, 4.0))
    return best


def _kl(one: Compared, leave_out: int) -> float:
    return float(np.nanmean(one.kl[:, leave_out:].double().numpy()))


def tensors_of_one(module: Any, name: str) -> Tensor:
    """A parameter or buffer by its path."""
    path, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(path), last)
    return found


def _bound(a: Model, copy: Any) -> Binding:
    binding = bind(copy)
    binding.tokenizer = a.tokenizer
    binding.refused, binding.limits = dict(a.binding.refused), dict(a.binding.limits)
    return binding


def _unrelated(q: _Question, c: Model, streams: Sequence[Site]) -> Compared:
    """The third model against the first.

    Raises
    ------
    ModelError: it is of another architecture.
    """
    check_level(comparable(q.a, c, [t for t in q.texts.texts if t]), "sites")
    start = weight_diff(q.a, c).start
    lock = Lockstep(q.a.binding, q.texts.ids, q.sites, start, q.options.batch_tokens, 0)
    return lock.compare(c.binding, streams)


def _effects(view: shown.View, real: Compared) -> Labelled:
    """[site, (position,) prompt, metric]."""
    values = np.stack([view.means(real.relative), view.means(1 - real.cosine)], axis=-1)
    coords: dict[str, tuple[str | int, ...]] = {
        "site": tuple(map(str, view.sites)),
        "prompt": tuple(range(len(view.texts))),
        "metric": ("relative_norm", "cosine_distance"),
    }
    if not view.each:
        return Labelled(values[:, 0], ("site", "prompt", "metric"), coords)
    return Labelled(values, ("site", "position", "prompt", "metric"), {**coords, "position": view.labels})
