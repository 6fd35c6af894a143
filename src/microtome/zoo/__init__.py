"""Models whose mechanism is known, and the calibration of every method on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily
from microtome.results import registry

if TYPE_CHECKING:
    from microtome.zoo.catalog import build, entries
    from microtome.zoo.checkpoints import dynamics, training_dynamics
    from microtome.zoo.decoys import Decoys
    from microtome.zoo.mechanism import Mechanism, Variable
    from microtome.zoo.specimen import Specimen
    from microtome.zoo.tuned import narrow

_HOME = {"build": "catalog", "entries": "catalog", "Specimen": "specimen", "Decoys": "decoys", "Mechanism": "mechanism", "Variable": "mechanism",
         "dynamics": "checkpoints", "narrow": "tuned", "training_dynamics": "checkpoints"}  # fmt: skip
__all__ = [
    "Decoys",
    "Mechanism",
    "Specimen",
    "Variable",
    "build",
    "dynamics",
    "entries",
    "narrow",
    "training_dynamics",
]

registry.register(
    "techniques", "training_dynamics", registry.Lazy("microtome.zoo.checkpoints:training_dynamics")
)

__getattr__, __dir__ = lazily(__name__, _HOME)
