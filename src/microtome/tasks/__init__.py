"""Tasks: prompt pairs with declared variables, spans, donors and splits; and ordinary text beside them."""

from __future__ import annotations

from microtome.tasks import sets as sets  # registers the datasets
from microtome.tasks.alignment import columns, first_difference, groups, match, positions
from microtome.tasks.behaviour import Behaviour, behaviour
from microtome.tasks.files import pairs
from microtome.tasks.interchange import Interchanges, interchanges
from microtome.tasks.offtask import offtask
from microtome.tasks.pairs import DONOR_KINDS, Donors, PairTask, Side
from microtome.tasks.registry import describe, names, task
from microtome.tasks.show import show

__all__ = [
    "DONOR_KINDS",
    "Behaviour",
    "Donors",
    "Interchanges",
    "PairTask",
    "Side",
    "behaviour",
    "columns",
    "describe",
    "first_difference",
    "groups",
    "interchanges",
    "match",
    "names",
    "offtask",
    "pairs",
    "positions",
    "show",
    "task",
]
