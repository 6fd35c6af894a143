"""Activations of labelled text at one site: what directions are estimated from, and the nulls of the same estimate.

The first token of most models is an attention sink with a norm of its own, ten or a hundred times the others'. An average
over all tokens is mostly about it, whatever the label, so averages leave it out unless asked not to, and its norm is
measured either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.controls import directions as nulls
from microtome.errors import ControlError, TaskError
from microtome.sites import Site, expand

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.tasks.labelled import LabelledText
    from microtome.trace.trace import Trace

Floats = NDArray[np.float64]
Positions = int | Literal["all"]
Estimator = Callable[[Floats, NDArray[np.generic]], Floats]
BATCH = 16


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """One vector per text, with labels and units.

    Shapes: values [item, d] float64; labels [item], 0 or 1; units [item], texts that share one are exchanged together.
    sink: mean norm of the first token over the mean norm of the others (NaN where texts have one token each).
    first_token: whether the first token is in the averages. positions: "all", or the own position that was read.
    """

    values: Floats
    labels: NDArray[np.int64]
    units: tuple[str, ...]
    site: Site
    positions: Positions
    first_token: bool
    sink: float

    def null(self, estimator: Estimator, norm: float | None, draws: int, seed: int) -> Floats:
        """The same estimator on labels shuffled between units, at one norm, or (None) each at its own. Shapes: [draw, d].

        No arrangement of labels comes twice, nor the real one. Fewer rows than `draws` come where the units have fewer arrangements.

        Raises
        ------
        ControlError: units that leave nothing to exchange.
        """
        return nulls.shuffled_directions(
            estimator, self.values, self.labels, self.units, norm=norm, draws=draws, seed=seed
        )

    def noise(self, norm: float, draws: int, seed: int) -> Floats:
        """Noise with the covariance of what neither units nor labels explain of these texts. Shapes: [draw, d].

        Raises
        ------
        ControlError: texts that differ by unit and label alone.
        """
        rest = nulls.unexplained(self.values, self.labels, self.units)
        return nulls.noise_donor(rest, np.full(draws, norm), seed=seed, name=f"contrast {self.site}")


def contrast(
    model: Model,
    data: LabelledText,
    site: str | Site,
    *,
    positions: Positions = "all",
    first_token: bool = False,
) -> Contrast:
    """Run labelled text once and keep one vector per text at a site.

    Parameters
    ----------
    site: a single site whose values are vectors: "L12.resid_post", "L5H3.z".
    positions: "all" averages over a text's own tokens; an integer reads one of them, -1 the last real one whatever the
        padding.
    first_token: keep the first token in averages ("all" only).

    Raises
    ------
    TaskError: other than two classes, a text of one token whose first is left out, a site that is several or has no vectors.
    ModelError: activations that are not finite; the first such site is named.
    """
    if len(data.classes) != 2:
        raise TaskError(f"{data.name} has {len(data.classes)} classes", why="a direction points from one class to the other",
                        instead="a contrast of two classes")  # fmt: skip
    if len(set(data.labels)) < 2:
        raise TaskError(f"every text of {data.name} is {data.classes[data.labels[0]]!r}", why="with one class there is nothing to tell apart",
                        instead="texts of both classes")  # fmt: skip
    if positions != "all" and (isinstance(positions, bool) or not isinstance(positions, int)):
        raise TaskError(f"positions={positions!r}", why="a text gives one vector", instead='"all", or a position such as -1')  # fmt: skip
    at = one_site(model, site)
    rows: list[Floats] = []
    norms = np.zeros((2, len(data)))
    for start in range(0, len(data), BATCH):
        trace = model.run(list(data.texts[start : start + BATCH]), at, logits=None)
        values = trace[at]
        if values.dim() != 3:
            raise TaskError(f"{at} has values of shape {tuple(values.shape[2:])} at each token", why="a direction is one vector",
                            instead="name one head or neuron group: L5H3.z, or a point of the stream")  # fmt: skip
        found, first, others = _pooled(trace, values, positions, first_token)
        rows.append(found)
        norms[:, start : start + len(found)] = first, others
    sink = float(norms[0].mean() / np.nanmean(norms[1])) if np.isfinite(norms[1]).any() else float("nan")
    return Contrast(np.concatenate(rows), np.array(data.labels), data.units, at, positions, first_token, sink)


def one_site(model: Model, site: str | Site) -> Site:
    """The single bare site meant.

    Raises
    ------
    TaskError: several sites, or one with a position.
    """
    found = expand(site, model.facts)
    if len(found) != 1 or found[0].at is not None:
        raise TaskError(f"{site} is not one site", why="a direction lives at a single site, and positions are named apart",
                        instead='for example "L12.resid_post"')  # fmt: skip
    return found[0]


def _pooled(
    trace: Trace, values: torch.Tensor, positions: Positions, first_token: bool
) -> tuple[Floats, Floats, Floats]:
    """(one vector per text, norm of its first token, mean norm of its other tokens)."""
    vectors, first, others = [], [], []
    for row, mask in zip(values, trace.mask, strict=True):
        own = row[mask.to(row.device)].double().cpu()
        size = own.norm(dim=-1)
        first.append(float(size[0]))
        others.append(float(size[1:].mean()) if len(own) > 1 else float("nan"))
        if positions == "all":
            kept = own if first_token else own[1:]
            if not len(kept):
                raise TaskError("a text of one token has no token but its first", why="the first token is left out of averages (attention sink)",
                                instead="longer texts, first_token=True, or positions=-1")  # fmt: skip
            vectors.append(kept.mean(0).numpy())
        else:
            if not -len(own) <= positions < len(own):
                raise TaskError(f"a text of {len(own)} tokens has no position {positions}", why="positions count its own tokens",
                                instead="-1 is the last one of every text")  # fmt: skip
            vectors.append(own[positions].numpy())
    return np.array(vectors), np.array(first), np.array(others)


def class_means(values: Floats, labels: NDArray[np.generic]) -> Floats:
    """Mean of class 1 minus mean of class 0. Shapes: values [item, d], labels [item] -> [d]."""
    one = np.asarray(labels) == 1
    return values[one].mean(0) - values[~one].mean(0)


def paired_component(values: Floats, labels: NDArray[np.generic]) -> Floats:
    """First principal component, uncentred, of the differences between the i-th text of class 1 and the i-th of class 0.

    It points to class 1 and has the length of the mean difference's projection on it. Representation engineering (Zou et al.
    2023) reads directions this way. Shapes: values [item, d], labels [item] -> [d].

    Raises
    ------
    ControlError: classes of different size, which have no pairs.
    """
    one = np.asarray(labels) == 1
    if one.sum() * 2 != len(one):
        raise ControlError(f"{one.sum()} texts of one class, {(~one).sum()} of the other", why="differences are taken pair by pair",
                           instead="as many texts of either class, in the same order")  # fmt: skip
    differences = values[one] - values[~one]
    _, _, axes = np.linalg.svd(differences, full_matrices=False)
    along = float(differences.mean(0) @ axes[0])
    return np.asarray(axes[0] * (along if along else 1.0))


ESTIMATORS: dict[str, Estimator] = {"mean_difference": class_means, "pca": paired_component}


def contrast_of_lists(
    positive: Sequence[str], negative: Sequence[str], name: str = "contrast"
) -> LabelledText:
    """Two lists of texts as labelled text: class 1 "positive", class 0 "negative".

    Raises
    ------
    TaskError: one of them is empty.
    """
    from microtome.tasks.labelled import LabelledText

    if not len(positive) or not len(negative):
        raise TaskError("one of the two lists of texts is empty", why="with one class there is nothing to tell apart",
                        instead="texts of both kinds")  # fmt: skip
    labels = (1,) * len(positive) + (0,) * len(negative)
    return LabelledText(name, (*positive, *negative), labels, ("negative", "positive"))
