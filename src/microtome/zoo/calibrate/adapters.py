"""Every way to call a technique whose answer can be marked: what is run, what is flagged, and what is true.

A reading's parts are named as in the specimen's mechanism. Flags follow the rule that a reader of the result would follow,
written out in `threshold`; no number of the truth enters a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import ResultError
from microtome.zoo.calibrate.measures import Bools, Floats
from microtome.zoo.calibrate.truths import Ablation, Kind

if TYPE_CHECKING:
    from microtome.results import Result
    from microtome.zoo.specimen import Specimen

ALPHA = 0.001
FAMILY = f"family-wise p <= {ALPHA:g}"
SILENT = {
    "behaviour": "it asks whether the model does the task, and flags no part of it",
    "circuit_robustness": "it measures one circuit under other choices, and flags no part",
    "lenses": "it compares readings of the whole stream, and flags no part of a mechanism",
    "patchscope": "it puts one state into words, which no specimen of the zoo has",
    "vocabulary_svd": "it lists tokens of directions, and flags no part",
    "dissect": "it runs other techniques, each of which is calibrated by itself",
    "directional_ablation": "it tests one direction that it is given on what the model then writes, and specimens have no room for a continuation",
    "generalisation": "it carries a probe from one dataset to another, which a specimen has one of; `probe` is calibrated",
    "unsupervised": "it gives directions at one site that it is told, and calls none of them true; a planted one is recovered in its own tests",
    "steering": "it tests one direction that it is given by what the model then writes, and specimens have no room for a continuation; its p is counted on random directions in its own tests",
    "prompt_grid": "it flags factors of prompts, of which a specimen has none that are not its task; false alarms on idle factors are counted in its own tests",
    "training_dynamics": "it runs another method on checkpoints of a training, and flags no part",
    "max_activating": "it shows text, and flags no part; specimens read symbols at random, in which there is nothing to find",
    "score_description": "it tries a sentence about one unit on text, and flags no part",
    "function_vector": "it tests one vector of a whole task; no specimen of the zoo learns one from demonstrations",
    "chain_of_thought": "it edits a text that the model wrote and flags sentences, not parts of a model",
}
"""Techniques that flag nothing, and why."""


@dataclass(frozen=True)
class Reading:
    """What a technique said of a specimen.

    names: parts as in its mechanism. Shapes [part]: scores (larger means more likely true), flags, and where the technique
    gives intervals of effects their limits low and high.
    """

    names: tuple[str, ...]
    scores: Floats
    flags: Bools
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Setting:
    """One way to call a technique.

    technique: its registered name. name: of this setting, for people. run: (specimen, seed) -> reading. kind, ablation: the
    truth it is held against. threshold: the rule of a flag, in words. match: parameters of a query that is answered by this
    setting's rates (dots read inside a parameter, a list means any of these); the first setting of a technique stands for calls
    that say nothing else. seconds: a guess for the estimate, one model on average. slow: of compiled programs only one variant
    is looked at. where: names of the models whose mechanism says what this setting asks; empty for all.
    """

    technique: str
    name: str
    run: Callable[[Specimen, int], Reading] = field(compare=False)
    kind: Kind
    ablation: Ablation
    threshold: str = FAMILY
    match: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.2
    slow: bool = False
    where: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """technique/name."""
        return f"{self.technique}/{self.name}"


def settings() -> tuple[Setting, ...]:
    """Every setting, those of one technique together."""
    from microtome.zoo.calibrate import maps, readings, searches

    return (*maps.SETTINGS, *searches.SETTINGS, *readings.SETTINGS)


def parts(z: Specimen) -> list[str]:
    """Heads and MLPs of a specimen."""
    return [n for n in z.mechanism.all_nodes if n != "embed"]


def family(result: Result, *, alpha: float = ALPHA) -> Reading:
    """A map of effects with its family-wise test: flagged where p <= alpha, scored by the size of the mean effect.

    Raises
    ------
    ResultError: a result without such a test.
    """
    cells, frame = result.tables.get("cells"), result.frame()
    if cells is None or "p" not in cells.columns or len(cells) != len(frame):
        raise ResultError(f"this {result.kind} has no test per part", why="flags come from its family-wise p",
                          instead="an adapter of its own")  # fmt: skip
    names = tuple(str(s).replace(".head_out", ".z") for s in cells["site"])
    value = frame["value"].to_numpy(np.float64)
    return Reading(
        names,
        np.abs(np.nan_to_num(value)),
        np.asarray(cells["p"].to_numpy(np.float64) <= alpha),
        cells["low"].to_numpy(np.float64),
        cells["high"].to_numpy(np.float64),
    )


def only(reading: Reading, keep: Callable[[str], bool]) -> Reading:
    """The parts of a reading that `keep` wants."""
    use = np.array([keep(n) for n in reading.names], dtype=bool)

    def cut(x: Any) -> Any:
        return None if x is None else x[use]

    names = tuple(n for n, u in zip(reading.names, use, strict=True) if u)
    return Reading(names, cut(reading.scores), cut(reading.flags), cut(reading.low), cut(reading.high))
