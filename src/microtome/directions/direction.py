"""A direction at a site as a value: the vector, where it lives, which model it belongs to, and what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.errors import EditError, ResourceError
from microtome.results.frozen import FrozenDict, digest, freeze_json
from microtome.sites import Site, parse

__all__ = ["Direction"]

_FILE, _CARD = "direction.safetensors", "direction.json"


@dataclass(frozen=True, repr=False, eq=False)
class Direction:
    """One direction.

    vector: [d], float32 on the CPU, in the units of the site.
    site: a single bare site ("L12.resid_post"), without a position.
    model: hash of the model that it was measured on.
    made: what made it (estimator, data hash, number of texts of each kind, seed), JSON-able.

    Raises
    ------
    EditError: a vector that is not [d], is zero or not finite, or a site with a position or a wildcard.
    """

    vector: Float[Tensor, " d"]
    site: Site
    model: str = ""
    name: str = "direction"
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        site = parse(self.site)
        vector = torch.as_tensor(self.vector).detach().to("cpu", torch.float32).clone()
        if vector.dim() != 1 or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
            raise EditError(f"a direction of shape {tuple(vector.shape)} that is zero, not finite or not flat",
                            why="a direction is one finite, non-zero vector", instead="pass [d]")  # fmt: skip
        if site.at is not None or site.before:
            raise EditError(f"{site} names a position", why="a direction belongs to a site; positions are chosen where it is used",
                            instead=str(site.bare))  # fmt: skip
        put = object.__setattr__
        put(self, "vector", vector)
        put(self, "site", site)
        put(self, "made", FrozenDict(freeze_json(dict(self.made), "made")))

    def __repr__(self) -> str:
        return f"<Direction {self.name} at {self.site}: d {self.vector.numel()}, norm {self.norm:.3g}, model {self.model[:12] or 'any'}>"

    @property
    def norm(self) -> float:
        """Length of the vector, in the site's unit."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector at length 1."""
        return self.vector / self.vector.norm()

    @cached_property
    def hash(self) -> str:
        """Hex digest of vector, site and model."""
        content = self.vector.numpy().tobytes() + json.dumps([str(self.site), self.model]).encode()
        return digest(content)

    def at_norm(self, norm: float) -> Direction:
        """The same direction at another length."""
        return replace(self, vector=self.unit * norm)

    def cosine(self, other: Direction) -> float:
        """Cosine with another direction of the same width.

        Raises
        ------
        EditError: another width.
        """
        if other.vector.shape != self.vector.shape:
            raise EditError(f"directions of {self.vector.numel()} and {other.vector.numel()} components", why="they live in different spaces",
                            instead="compare directions of one kind of site")  # fmt: skip
        return float(self.unit @ other.unit)

    def check(self, model_hash: str, width: int) -> None:
        """Refuse use on another model or at a site of another width.

        Raises
        ------
        EditError: which of the two it is.
        """
        if self.vector.numel() != width:
            raise EditError(f"{self.name} has {self.vector.numel()} components", why=f"values at {self.site} have {width}",
                            instead="a direction that was measured at this site")  # fmt: skip
        if self.model and self.model != model_hash:
            raise EditError(f"{self.name} was measured on another model ({self.model[:12]})", why=f"this one is {model_hash[:12]}: the same numbers mean something else there",
                            instead="measure it again, or say that you mean it: dataclasses.replace(direction, model='')")  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `direction.safetensors` and `direction.json` into a folder, which is made. Returns the folder."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        save_file({"vector": self.vector}, str(target / _FILE))
        card = {
            "site": str(self.site),
            "model": self.model,
            "name": self.name,
            "made": dict(self.made),
            "schema_version": 1,
        }
        (target / _CARD).write_text(json.dumps(card, indent=1, sort_keys=True), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Direction:
        """Read what `save` wrote.

        Raises
        ------
        ResourceError: a file is missing or is not what `save` writes.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        source = Path(folder)
        missing = [name for name in (_CARD, _FILE) if not (source / name).is_file()]
        if missing:
            raise ResourceError(f"{source} is no saved direction", why=f"it has no {' and no '.join(missing)}",
                                instead="a folder that Direction.save wrote")  # fmt: skip
        try:
            card = json.loads((source / _CARD).read_text(encoding="utf-8"))
            vector = load_file(str(source / _FILE))["vector"]
            return cls(vector, parse(card["site"]), card["model"], card["name"], card["made"])
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ResourceError(f"{source} is no saved direction", why=f"{type(error).__name__}: {error}",
                                instead=f"a folder with {_FILE} and {_CARD}") from error  # fmt: skip

    def numpy(self) -> np.ndarray:
        """The vector as float64 [d]."""
        return self.vector.double().numpy()
