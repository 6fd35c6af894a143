"""Activations of labelled texts: one row per text and site, from one pass over the texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.errors import ControlError, TaskError
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.results.verdicts import Control
from microtome.sites import At, Site, expand_all, parse
from microtome.tasks.encode import Encoder, Prompt

if TYPE_CHECKING:
    from microtome.activations import Store
    from microtome.facade import Model
    from microtome.tasks.labelled import LabelledText

MEAN, ATTENTION = "mean", "attention"
Matrix = NDArray[np.float32]
Place = tuple[str, str | int]
"""(bare site, position): ("L5.resid_post", -1), or "mean" for all of a text's own tokens."""


@dataclass(frozen=True)
class Texts:
    """Texts as token ids with the token ranges of their spans: what `Model.run` takes. ids [item][pos]; spans by name."""

    ids: tuple[tuple[int, ...], ...]
    spans: Mapping[str, tuple[tuple[int, int] | None, ...]]

    def take(self, rows: Sequence[int]) -> Texts:
        """Some of them, in that order."""
        return Texts(
            tuple(self.ids[i] for i in rows),
            {k: tuple(v[i] for i in rows) for k, v in self.spans.items()},
        )


def encoded(model: Model, data: LabelledText, places: Sequence[Place] | None = None) -> Texts:
    """The texts as the model reads them, with those spans that `places` name (None: all).

    A span that nobody reads need not fall between tokens.

    Raises
    ------
    TaskError: the tokenizer ends texts with a token of its own, or one is longer than the context.
    """
    encoder = Encoder(model)
    named = {str(label).partition("[")[0] for _, label in places or ()}
    spans = {k: v for k, v in data.spans.items() if places is None or k in named}
    found = []
    for i, text in enumerate(data.texts):
        slots = {k: at for k, v in spans.items() if (at := v[i]) is not None}
        found.append(encoder.encode(Prompt(text, slots)))
        encoder.fits(f"text {i} of {data.name}", len(found[-1].ids))
    return Texts(tuple(e.ids for e in found), {k: tuple(e.slots.get(k) for e in found) for k in spans})


def places_of(model: Model, sites: str | Site | Sequence[str | Site]) -> list[Place]:
    """Single sites with one position each, in the order of the layers asked for.

    Raises
    ------
    SiteError: an address that this model lacks.
    TaskError: no position, or a range of them: a probe reads one vector per text.
    """
    found: list[Place] = []
    for site in expand_all([sites] if isinstance(sites, str | Site) else list(sites), model.facts):
        at = site.at
        if at is None or not at.single:
            raise TaskError(f"{site} names no single position", why="a probe reads one vector per text",
                            instead=f'"{site.bare}@-1" for each text\'s last token')  # fmt: skip
        place: Place = (str(site.bare), _label(at))
        if place not in found:
            found.append(place)
    return found


def _label(at: At) -> str | int:
    text = str(at).removeprefix("@")
    return int(text) if text.lstrip("-").isdigit() else text


def address(place: Place) -> str:
    """("L5.resid_post", -1) -> "L5.resid_post@-1"."""
    return f"{place[0]}@{place[1]}"


def capture(
    model: Model, texts: Texts, places: Sequence[Place], *, batch: int = 16, note: str = "reading"
) -> dict[Place, Matrix]:
    """The value of every place for every text, [item, d] each; position "mean" averages a text's own tokens but the first.

    Raises
    ------
    SiteError: a position or span that a text lacks.
    TaskError: a site with several vectors per position (name its heads).
    ControlError: activations that are not finite, with the first such text and site.
    """
    n = len(texts.ids)
    order = sorted(range(n), key=lambda i: len(texts.ids[i]))  # texts of like length together: fewer pads
    bare = list(dict.fromkeys(place[0] for place in places))
    out: dict[Place, Matrix] = {}
    for start in range(0, n, batch):
        rows = order[start : start + batch]
        trace = model.run(texts.take(rows), bare, logits=None)
        own = trace.positions >= (1 if len(texts.ids[rows[0]]) > 1 else 0)
        for place in places:
            if place[1] == MEAN:
                whole = trace[place[0]].float()
                keep = own.to(whole.device)[..., None]
                value = (whole.nan_to_num(0.0) * keep).sum(1) / keep.sum(1).clamp_min(1)
            else:
                value = trace[address(place)].float()
            _flat(value.shape[1:], place)
            if place not in out:
                out[place] = np.empty((n, value.shape[1]), dtype=np.float32)
            out[place][rows] = value.detach().cpu().numpy()
        progress(min(start + batch, n), n, "texts", note)
    for place, values in out.items():
        check_finite(values, address(place))
    return out


def from_store(
    store: Store, model: Model, data: LabelledText, places: Sequence[Place]
) -> dict[Place, Matrix]:
    """The places that a store of these very texts holds; for "mean" it must hold all positions of the site.

    Raises
    ------
    ResourceError: a store of another model, tokenizer or data.
    TaskError, ControlError: as `capture`.
    """
    store.check(model, data)
    out: dict[Place, Matrix] = {}
    for place in places:
        bare, at = place
        if at != MEAN and address(place) in store:
            out[place] = np.array(store[address(place)], dtype=np.float32)
        elif at == MEAN and bare in store:
            out[place] = _means(store, bare)
    for place, values in out.items():
        _flat(values.shape[1:], place)
        check_finite(values, address(place))
    return out


def _means(store: Store, bare: str) -> Matrix:
    """Averages over each item's own tokens but the first, [item, d]."""
    item, position = store.rows(bare)
    lengths = np.bincount(item, minlength=len(store))
    own = (position > 0) | (lengths[item] == 1)
    values, begins = store[bare], np.concatenate([[0], np.cumsum(lengths)])
    rows = [values[a:b][own[a:b]].mean(0, dtype=np.float64) for a, b in itertools.pairwise(begins.tolist())]
    return np.array(rows, dtype=np.float32)


def _flat(shape: Sequence[int], place: Place) -> None:
    if len(shape) != 1:
        raise TaskError(f"{place[0]} has {tuple(shape)} values per position", why="a direction is one vector",
                        instead="name heads, for example L*H*.z@-1")  # fmt: skip


def check_finite(values: Matrix, where: str) -> None:
    """Refuse activations that are not finite.

    Raises
    ------
    ControlError: with the first such text.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(tuple(range(1, values.ndim))))
    if bad.size:
        raise ControlError(f"the activation of text {bad[0]} at {where} is not finite", why=f"{bad.size} of {len(values)} are not; a probe would learn from that",
                           instead="load the model in float32, or leave these texts out")  # fmt: skip


def sequences(model: Model, texts: Texts, site: str, *, batch: int = 16) -> tuple[Matrix, NDArray[np.bool_]]:
    """All positions of one site: [item, pos, d], and which of them are a text's own tokens but the first."""
    n, width = len(texts.ids), max(map(len, texts.ids))
    mask = np.zeros((n, width), dtype=bool)
    values: Matrix | None = None
    for start in range(0, n, batch):
        rows = list(range(start, min(start + batch, n)))
        trace = model.run(texts.take(rows), [site], logits=None)
        value = trace[site].float().nan_to_num(0.0).detach().cpu().numpy()
        if values is None:
            values = np.zeros((n, width, value.shape[-1]), dtype=np.float32)
        values[rows, : value.shape[1]] = value
        for i in rows:
            mask[i, 1 if len(texts.ids[i]) > 1 else 0 : len(texts.ids[i])] = True
    assert values is not None
    return values, mask


def own_token(model: Model, texts: Texts, captured: Mapping[Place, Matrix], seed: int, n: int = 4) -> Control:
    """Whether the captured rows are the named tokens' own: some texts run alone, without pads, and read by hand.

    A row taken one token off, or from a pad, differs from it.
    """
    drawn = seeds.rng(seed, "own token").choice(len(texts.ids), size=min(n, len(texts.ids)), replace=False)
    worst, compared = 0.0, 0
    place = next((p for p in captured if isinstance(p[1], int)), None)
    if place is None:
        return Control.not_run("own_token", "that a neighbouring token was read", "the same numbers from texts run alone",
                               "every position is a span or a mean", gates=True)  # fmt: skip
    for i in drawn.tolist():
        ids = texts.ids[i]
        with torch.no_grad():
            whole = model.run([list(ids)], [place[0]], logits=None)[parse(place[0])][0].float().cpu().numpy()
        alone = whole[place[1] % len(ids) if int(place[1]) < 0 else int(place[1])]
        worst = max(worst, _gap(alone, captured[place][i]))
        compared += 1
    limit = 0.02
    return Control("own_token", "that a neighbouring token, or a pad, was read", f"texts run alone give the same vectors, within {limit:g} of their norm",
                   worst, worst <= limit, compared, gates=True)  # fmt: skip


def _gap(one: Matrix, other: Matrix) -> float:
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(one)), 1e-12))
