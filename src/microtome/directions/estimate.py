"""Directions from labelled text, from a probe, or given: each a `Direction` that says how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.directions.contrast import (
    ESTIMATORS,
    Contrast,
    Positions,
    contrast,
    contrast_of_lists,
    one_site,
)
from microtome.directions.direction import Direction
from microtome.errors import EditError
from microtome.sites import Site
from microtome.tasks.labelled import LabelledText

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Texts", "as_direction", "from_probe", "given", "mean_difference", "pca"]

Texts = LabelledText | tuple[Sequence[str], Sequence[str]]
"""Labelled text of two classes, or (positive texts, negative texts)."""


def mean_difference(
    model: Model, data: Texts, site: str | Site, *, positions: Positions = "all", first_token: bool = False
) -> Direction:
    """Mean activation of class 1 minus mean activation of class 0 (difference in means), in the site's unit.

    Parameters
    ----------
    data: labelled text of two classes, or a pair of lists (positive, negative).
    positions: "all" averages over a text's own tokens but the first, an integer reads one of them (-1: the last real one).
    first_token: keep the first token in the averages. `made["first_token_norm_ratio"]` says how far it stands out.

    Raises
    ------
    TaskError: one class only, or as `contrast`. EditError: means that coincide. ModelError: non-finite activations.
    """
    return _estimated("mean_difference", model, data, site, positions, first_token)


def pca(
    model: Model, data: Texts, site: str | Site, *, positions: Positions = "all", first_token: bool = False
) -> Direction:
    """First principal component of the differences between paired texts (Zou et al. 2023); arguments as `mean_difference`.

    Raises
    ------
    ControlError: classes of different size. Else as `mean_difference`.
    """
    return _estimated("pca", model, data, site, positions, first_token)


def from_probe(
    model: Model, weights: Any, site: str | Site, *, name: str = "probe", data: str = ""
) -> Direction:
    """A linear probe's weights as a direction. weights: [d], in the units of the raw activations; data: hash of its data.

    A probe that was fitted on standardised activations must have its weights divided by their scale first.

    Raises
    ------
    EditError: weights of another width than the site, zero or not finite.
    """
    return _checked(model, weights, site, name, {"estimator": "probe", "data": data})


def given(model: Model, vector: Any, site: str | Site, *, name: str = "given") -> Direction:
    """Any vector as a direction of this model at a site. vector: [d].

    Raises
    ------
    EditError: as `from_probe`.
    """
    return _checked(model, vector, site, name, {"estimator": "given"})


def as_direction(
    model: Model, value: Any, site: str | Site | None, data: Texts | None = None
) -> tuple[Direction, Contrast | None]:
    """What a technique was given as its direction, checked against the model, and the contrast that it came from.

    value: a Direction, labelled text (its mean difference is taken), or a bare [d] tensor. data: the text that a Direction was
    estimated on, read again for its null directions. With one class or another width it refuses as the estimators do.

    Raises
    ------
    EditError: a direction of another model or width, a tensor without a site.
    """
    if isinstance(value, LabelledText | tuple):
        if site is None:
            raise EditError("labelled text without a site", why="a direction lives at one", instead='site="L12.resid_post"')  # fmt: skip
        return _both("mean_difference", model, value, site, "all", False)
    if not isinstance(value, Direction):
        if site is None:
            raise EditError("a bare tensor without a site", why="a direction lives at one", instead='site="L12.resid_post"')  # fmt: skip
        value = given(model, value, site)
    at = one_site(model, value.site if site is None else site)
    value.check(model.hash, width_of(model, at))
    if data is None:
        return value, None
    made = value.made
    positions, first = made.get("positions", "all"), bool(made.get("first_token", False))
    return value, contrast(model, as_labelled(data), value.site, positions=positions, first_token=first)


def as_labelled(data: Texts) -> LabelledText:
    """Labelled text, made of two lists where those were given."""
    return data if isinstance(data, LabelledText) else contrast_of_lists(*data)


def width_of(model: Model, site: Site) -> int:
    """Length of the vectors at a site, read from a run of one token."""
    values = model.run([[0]], site, logits=None)[site]
    if values.dim() != 3:
        raise EditError(f"{site} has values of shape {tuple(values.shape[2:])} at each token", why="a direction is one vector",
                        instead="a point of the stream, or one head")  # fmt: skip
    return int(values.shape[-1])


def _estimated(
    how: str, model: Model, data: Texts, site: str | Site, positions: Positions, first_token: bool
) -> Direction:
    return _both(how, model, data, site, positions, first_token)[0]


def _both(
    how: str, model: Model, data: Texts, site: str | Site, positions: Positions, first_token: bool
) -> tuple[Direction, Contrast]:
    texts = as_labelled(data)
    found = contrast(model, texts, site, positions=positions, first_token=first_token)
    vector = ESTIMATORS[how](found.values, found.labels)
    size = np.linalg.norm(vector) / max(float(np.linalg.norm(found.values, axis=-1).mean()), 1e-300)
    if size < 1e-9:
        raise EditError(f"the two classes of {texts.name} have the same mean at {found.site}", why="nothing there tells them apart",
                        instead="another site or position")  # fmt: skip
    made = {
        "estimator": how, "data": texts.hash, "n": [int((found.labels == k).sum()) for k in (0, 1)], "classes": list(texts.classes),
        "positions": positions, "first_token": first_token,
        "first_token_norm_ratio": None if np.isnan(found.sink) else round(found.sink, 4),
    }  # fmt: skip
    return Direction(torch.from_numpy(vector), found.site, model.hash, texts.name, made), found


def _checked(model: Model, vector: Any, site: str | Site, name: str, made: dict[str, Any]) -> Direction:
    at = one_site(model, site)
    out = Direction(torch.as_tensor(vector), at, model.hash, name, made)
    out.check(model.hash, width_of(model, at))
    return out
