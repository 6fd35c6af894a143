"""What tests of the record share: toy techniques that need no torch, projects, and what must be true of every record."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
from sqlalchemy import insert, select, text

import microtome.lab.place as places
from microtome.lab import schema
from microtome.lab.reading import Record, Wanted
from microtome.lab.study import Study, study
from microtome.results import Control, Result, emit_look, technique, verdict


class Model:
    """Enough of a model: something with a hash."""

    hash = "abcd"


class Known(Model):
    """A model that the record keeps."""

    hash, name, card = "dcba", "toy", "a toy"

    class facts:
        family = "toys"


def _define():  # local, so that the registry of the whole test run knows nothing of them
    @technique("toy_leaf", "1")
    def leaf(model, value=1, fail=""):
        if fail:
            raise ValueError(fail)
        control = Control(
            "identity", rules_out="a wrong patch", expected="no change", observed=0.0, passed=True, n=1
        )
        values = {"values": np.arange(4, dtype=np.float32) + value}
        return Result("toy", tensors=values, controls=(control,), verdict=verdict((control,), ("identity",)))

    @technique("toy_tree", "1")
    def tree(model, value=1):
        emit_look(model, ["inside"], ["L0.z"])
        return Result("toys", children=(leaf(model, value),))

    return leaf, tree


leaf, tree = _define()


def predict(one: Study, probability: float = 0.7) -> None:
    """A prediction's row, as `predicting` would write it."""
    with one.database.writing() as connection:
        row = {"key": os.urandom(8).hex(), "study": one.number, "person": one.person, "statement": "it holds",
               "probability": probability, "about": "{}", "holds": None, "made_at": 1.0, "after_run": 0, "post_hoc": False,
               "state": "open", "seal": ""}  # fmt: skip
        connection.execute(insert(schema.prediction), row)


def project(folder: Path, url: str = "") -> places.Place:
    """A project in a folder, with a database of its own."""
    return places.init(folder, url=url)


def opened(place: places.Place, title: str = "toys", person: str = "ada") -> Study:
    return study(title, folder=place.folder, person=person)


def runs(place: places.Place):
    """Every run, the oldest first."""
    record = Record(place)
    found = record.runs(Wanted(nested=True), None)[::-1]
    record.close()
    return found


def sound(place: places.Place) -> set[str]:
    """The database is whole, and every file that a row names is there and is what it was; the keys of these files."""
    record = Record(place)
    with record.database.reading() as connection:
        if record.database.sqlite:
            assert connection.execute(text("PRAGMA integrity_check")).scalars().all() == ["ok"]
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
        linked = set(connection.execute(select(schema.run_file.c.key)).scalars())
        heads = set(connection.execute(select(schema.run.c.result)).scalars()) - {None}
    assert heads <= linked
    for key in linked:
        record.files.get(key)
    record.close()
    return linked


def sqlite(place: places.Place) -> sqlite3.Connection:
    return sqlite3.connect(place.database)
