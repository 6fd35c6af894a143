"""What others take from a probe's result: its directions, as values."""

from __future__ import annotations

import numpy as np
import torch

from microtome.directions.direction import Direction
from microtome.errors import ResultError
from microtome.results.result import Result
from microtome.sites import parse

__all__ = ["direction_of"]


def direction_of(result: Result, kind: str | None = None) -> Direction:
    """The direction of a probe at the place chosen on validation texts, in the unit of the site; positive is the positive class.

    kind: "mass_mean", "whitened", "ridge" or "logistic" (None: the kind that was chosen); "displacement": the direction of the
    causal test, at the length by which the classes lie apart along it and at the site that the test chose.

    Raises
    ------
    ResultError: no probe, or no direction of this kind in it.
    """
    found = {name.removeprefix("direction/"): v for name, v in result.tensors.items()}
    about = result.tables.get("places")
    if result.kind != "probe" or about is None:
        raise ResultError(f"a {result.kind} holds no probe's direction", why="directions come from the result of `probe`",
                          instead="mt.methods.probe(model, data, ...)")  # fmt: skip
    sites = dict(zip(about["direction"].astype(str), about["site"].astype(str), strict=True))
    wanted = kind or str(about.loc[about["chosen"], "direction"].iloc[0])
    if wanted not in found or wanted not in sites:
        raise ResultError(
            f"this probe has no direction {wanted!r}",
            why=f"it has {', '.join(sites)}",
            instead="one of these",
        )
    site = parse(sites[wanted])
    query = result.query
    made = {
        "by": "probe",
        "kind": wanted,
        "data": query.data if query else "",
        "seed": query.seed if query else None,
        "position": str(site.at) if site.at is not None else "",
    }
    vector = torch.from_numpy(np.array(found[wanted]))  # a result's own arrays are read-only
    return Direction(vector, site.bare, query.model if query else "", f"{wanted} probe", made)
