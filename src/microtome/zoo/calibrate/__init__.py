"""How often every technique is right on models whose mechanism is known.

A `Setting` is one way to call a technique whose answer can be marked; a job is a setting on one specimen; the marks of all
jobs become rates with intervals over models, the table of the docs and the sentence beside every result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from microtome.zoo.calibrate.adapters import SILENT, Reading, Setting, settings
    from microtome.zoo.calibrate.measures import Mark, mark
    from microtome.zoo.calibrate.plan import Case, Job, cases, jobs
    from microtome.zoo.calibrate.runs import calibrate
    from microtome.zoo.calibrate.table import summarise, write
    from microtome.zoo.calibrate.truths import Truth, truth

_HOMES = {
    "Case": "plan", "Job": "plan", "cases": "plan", "jobs": "plan", "Mark": "measures", "mark": "measures", "calibrate": "runs",
    "Reading": "adapters", "SILENT": "adapters", "Setting": "adapters", "settings": "adapters", "summarise": "table",
    "write": "table", "Truth": "truths", "truth": "truths",
}  # fmt: skip
__all__ = [
    "SILENT",
    "Case",
    "Job",
    "Mark",
    "Reading",
    "Setting",
    "Truth",
    "calibrate",
    "cases",
    "jobs",
    "mark",
    "settings",
    "summarise",
    "truth",
    "write",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
