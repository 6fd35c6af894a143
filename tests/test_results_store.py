"""Saving and opening: everything comes back, nothing is lost, nothing damaged is believed."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from microtome.errors import ResourceError, ResultError
from microtome.results import Control, Labelled, Query, Result, open_result, pieces, save, verdict
from microtome.results import store as store_module
from microtome.results.frozen import loads

HOSTILE = "<script>\u202e\x00\ud800"


def made(name="toy", children=(), **changes):
    controls = (
        Control(
            "identity",
            "a broken edit",
            "0",
            {"max": math.nan, "where": HOSTILE},
            True,
            3,
            null=(-math.inf, 0.5),
            gates=True,
        ),
        Control.not_run("donor", "an artefact", "0", "no variables"),
    )
    values = np.array([[[1.5, np.nan], [-0.0, np.inf]]], np.float32)
    fields = {
        "kind": name,
        "query": Query(
            name,
            "1",
            "aa",
            "bb",
            "",
            {"x": math.nan, "sites": ["a", {"$float": "nan"}]},
            3,
            {"dtype": "float32"},
        ),
        "effects": Labelled(
            values,
            ("position", "prompt", "metric"),
            {"position": ("s",), "prompt": (0, "b"), "metric": ("ld", "kl")},
        ),
        "tables": {
            "cells": pd.DataFrame(
                {"position": ["s"], "metric": ["kl"], "low": [-math.inf], "high": [math.inf]}
            ),
            "mixed": pd.DataFrame(
                {"label": [1, "one", None, math.nan, ("a", 1.0)], "n": pd.array([1, None, 3, 4, 5], "Int64")}
            ),
            "empty": pd.DataFrame({"a": pd.Series([], dtype="float64"), "b": pd.Series([], dtype=object)}),
            "plain": pd.DataFrame(
                {"b": [True, False], "t": ["x", "ü"], "f": np.float32([1, 2])}, index=[5, 7]
            ),
        },
        "tensors": {
            "W/x": np.arange(6, dtype=np.int16).reshape(2, 3),
            "e": np.zeros((0, 4)),
            "s": np.array(2.0),
            "b": np.array([True]),
        },
        "controls": controls,
        "verdict": verdict(controls, ["donor"], 0.2, 0.001, 0.0),
        "raw_examples": ({"prompt": HOSTILE, "tokens": ["\ud83d", "a"]},),
        "children": children,
    }
    return Result(**{**fields, **changes})


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip_with_children_of_children(tmp_path):
    grandchild = made("leaf", effects=None, tables={}, tensors={})
    result = made(children=(made("one", (grandchild,)), made("two")))
    place = save(result, tmp_path / "deep" / "r")
    again = open_result(place)
    assert again == result
    assert again.children[0].children[0] == grandchild
    assert again.query.id == result.query.id and again.verdict.reasons == result.verdict.reasons
    pd.testing.assert_frame_equal(again.frame(), result.frame())
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    assert math.isnan(again.query.parameters["x"]) and again.query.parameters["sites"][1] == {"$float": "nan"}
    assert math.isnan(again.controls[0].observed["max"]) and again.controls[0].null == (-math.inf, 0.5)
    assert again.effects.values.tobytes() == result.effects.values.tobytes()  # -0.0 and NaN bit for bit
    assert not again.effects.values.flags.writeable and not again.tensors["W/x"].flags.writeable


def test_a_second_save_is_byte_for_byte_the_same_and_there_is_no_pickle(tmp_path):
    result = made(children=(made("one"),))
    one, two = save(result, tmp_path / "a"), save(open_result(save(result, tmp_path / "b")), tmp_path / "c")
    assert everything(one) == everything(two)
    names = set(everything(one))
    assert names == {
        *("result.json", "arrays.safetensors"),
        *(f"tables/{n}.parquet" for n in ("cells", "mixed", "empty", "plain")),
        *(f"children/000/{n}" for n in ("result.json", "arrays.safetensors")),
        *(f"children/000/tables/{n}.parquet" for n in ("cells", "mixed", "empty", "plain")),
    }
    text = (one / "result.json").read_text()
    assert text.isascii() and "NaN" not in text and "Infinity" not in text
    head = json.loads(text)
    assert head["kind"] == "toy" and head["schema_version"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing left beside them


def test_the_smallest_result_round_trips(tmp_path):
    result = Result("toy", query=Query("toy", "1"))
    assert open_result(result.save(tmp_path / "r")) == result
    assert set(everything(tmp_path / "r")) == {"result.json"}


def test_a_result_that_nobody_asked_for_is_not_saved(tmp_path):
    with pytest.raises(ResultError, match="no query"):
        save(Result("toy"), tmp_path / "r")
    with pytest.raises(ResultError, match="no query"):
        save(made(children=(Result("toy"),)), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------- overwriting


def test_nothing_that_is_there_is_destroyed(tmp_path):
    result = made()
    place = tmp_path / "r"
    place.mkdir()
    save(result, place)  # empty: fine
    before = everything(place)
    with pytest.raises(ResultError, match="holds a result already"):
        save(made("other"), place)
    assert everything(place) == before
    save(made("other"), place, overwrite=True)
    assert open_result(place).kind == "other"

    (place / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match=r"notes\.txt"):
        save(result, place, overwrite=True)
    assert (place / "notes.txt").read_text() == "mine" and open_result(place).kind == "other"

    for content in ({"thesis.tex": "x"}, {"result.json": "{}"}, {"result.json": "["}):
        other = tmp_path / f"f{len(list(tmp_path.iterdir()))}"
        other.mkdir()
        for name, text in content.items():
            (other / name).write_text(text)
        for flag in (False, True):
            with pytest.raises(ResultError, match="is no result"):
                save(result, other, overwrite=flag)
        assert {n: b.decode() for n, b in everything(other).items()} == content

    file = tmp_path / "file"
    file.write_text("x")
    for place in (file, file / "below"):
        with pytest.raises(ResultError):
            save(result, place, overwrite=True)
    assert file.read_text() == "x"
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_users_notes_inside_a_childs_folder_are_kept_too(tmp_path):
    result = made(children=(made("one", (made("two"),)),))
    place = save(result, tmp_path / "r")
    save(result, place, overwrite=True)
    deep = place / "children" / "000" / "children" / "000" / "notes.txt"
    deep.write_text("mine")
    with pytest.raises(ResultError, match=r"notes\.txt"):
        save(result, place, overwrite=True)
    assert deep.read_text() == "mine"


@pytest.mark.parametrize("where", ["_from_table", "_sync", "_put"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_save_leaves_the_older_result_and_no_litter(tmp_path, monkeypatch, where, error):
    place = save(made(), tmp_path / "r")
    before = everything(place)

    def fail(*args, **kwargs):
        raise error

    owner, name = (pieces, "_table_bytes") if where == "_from_table" else (store_module, where)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ResourceError):
        save(made("other"), place, overwrite=True)
    assert everything(place) == before and [p.name for p in tmp_path.iterdir()] == ["r"]


def test_the_older_result_comes_back_when_the_second_rename_fails(tmp_path, monkeypatch):
    place = save(made(), tmp_path / "r")
    before, rename, calls = everything(place), os.rename, []

    def second_fails(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise PermissionError(errno.EACCES, "denied")
        rename(a, b)

    monkeypatch.setattr(store_module.os, "rename", second_fails)
    with pytest.raises(ResultError, match="cannot be written"):
        save(made("other"), place, overwrite=True)
    assert len(calls) == 3 and everything(place) == before and [p.name for p in tmp_path.iterdir()] == ["r"]


def test_the_folder_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    place, put, seen = tmp_path / "r", store_module._put, []

    def look(fresh, target, aside):
        seen.append((target.exists(), open_result(fresh) == result))
        put(fresh, target, aside)

    result = made()
    monkeypatch.setattr(store_module, "_put", look)
    save(result, place)
    assert seen == [(False, True)]


def test_a_table_that_parquet_cannot_hold_is_named(tmp_path):
    bad = pd.DataFrame({"a": np.array([1 + 2j])})
    with pytest.raises(ResultError, match="table 'odd' cannot be written"):
        save(made(tables={"odd": bad}), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- damage


@pytest.fixture
def saved(tmp_path):
    return save(made(children=(made("one"),)), tmp_path / "r")


FILES = [
    "result.json",
    "arrays.safetensors",
    "tables/cells.parquet",
    "children/000/result.json",
    "children/000/arrays.safetensors",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["lost", "cut", "flipped", "empty", "folder"])
def test_every_damage_is_noticed(saved, name, how):
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        at = len(content) - 3 if name.endswith("safetensors") else len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.mkdir()
    with pytest.raises(ResultError):
        open_result(saved)


def edit(folder, change, *, seal=True):
    """Change the head; sealed again, so that the checks behind the digest are reached."""
    path = folder / "result.json"
    head = json.loads(path.read_text())
    change(head)
    if seal:
        head["digest"] = pieces.head_digest(loads(json.dumps(head)))
    path.write_text(json.dumps(head))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h.update(schema_version=2), "upgrade microtome"),
        (lambda h: h.update(schema_version="1"), "schema_version is '1'"),
        (lambda h: h.update(schema_version=True), "schema_version"),
        (lambda h: h.update(schema_version=0), "schema_version is 0"),
        (lambda h: h.pop("schema_version"), "schema_version is None"),
        (lambda h: h.update(format="something.else"), "another kind"),
        (lambda h: h["query"].update(seed=4), "its id differs"),
        (lambda h: h["query"].update(extra=4), "damaged"),
        (lambda h: h["query"].pop("id"), "damaged"),
        (lambda h: h["verdict"].update(word="supported"), "follows from its controls"),
        (lambda h: h["verdict"].update(p=7), "damaged"),
        (lambda h: h["controls"][0].update(passed=False), "'invalid' follows"),
        (lambda h: h["controls"][0].update(passed="yes"), "damaged"),
        (lambda h: h["effects"]["coords"].update(position=["s", "t"]), "labels for the"),
        (lambda h: h.pop("effects"), "damaged"),
        (lambda h: h.update(controls=None), "damaged"),
        (lambda h: h["files"].pop("tables/cells.parquet"), "notes no digest"),
        (lambda h: h["files"].pop("arrays.safetensors"), "notes no digest"),
        (lambda h: h["files"].pop("children/000/result.json"), "notes no digest"),
        (lambda h: h.update(files=[]), "notes no files"),
        (lambda h: h["tensors"].append("absent"), "absent"),
        (lambda h: h.update(kind="../x"), "kind is"),
        (lambda h: h["tables"].update({"../../x": {"json_columns": []}}), "out of the folder"),
        (lambda h: h.update(children=["../../r"]), "out of the folder"),
        (lambda h: h["files"].update({"/etc/passwd": "00"}), "out of the folder"),
        (lambda h: h["files"].update({"..\\x": "00"}), "out of the folder"),
        (lambda h: h["files"].update({"C:x": "00"}), "out of the folder"),
    ],
)
def test_a_head_that_does_not_hold_together_is_refused(saved, change, says):
    edit(saved, change)
    with pytest.raises(ResultError, match=says):
        open_result(saved)


def test_the_head_is_sealed_too(saved):
    edit(saved, lambda h: None, seal=False)  # other spacing, same content: fine
    open_result(saved)
    edit(saved, lambda h: h["controls"].pop(), seal=False)
    with pytest.raises(ResultError, match="result.json is not the file that was saved"):
        open_result(saved)


def test_a_swapped_child_is_noticed(saved, tmp_path):
    other = save(made("foreign"), tmp_path / "other")
    shutil.rmtree(saved / "children" / "000")
    shutil.copytree(other, saved / "children" / "000")
    with pytest.raises(ResultError, match="children/000/result.json is not the file"):
        open_result(saved)


@pytest.mark.parametrize("text", ["", "[", "null", "[1]", '"x"', "{}", '{"x": NaN}', "\u00ff", "[" * 100_000])
def test_strange_text_in_the_head(saved, text):
    (saved / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(ResultError):
        open_result(saved)


def test_wrong_paths_say_what_to_give(tmp_path, saved):
    with pytest.raises(ResultError, match="does not exist"):
        open_result(tmp_path / "nothing")
    with pytest.raises(ResultError, match="is a file") as caught:
        open_result(saved / "result.json")
    assert str(saved) in caught.value.instead
    with pytest.raises(ResultError, match="no result in"):
        open_result(tmp_path)


def test_an_unreadable_parquet_with_a_right_digest_is_still_a_clear_error(saved):
    path = saved / "tables" / "cells.parquet"
    path.write_bytes(b"PAR1 nonsense PAR1")
    edit(saved, lambda h: h["files"].update({"tables/cells.parquet": pieces.piece_digest(path.read_bytes())}))
    with pytest.raises(ResultError, match=r"tables/cells\.parquet"):
        open_result(saved)
    path = saved / "arrays.safetensors"
    path.write_bytes(b"\xff" * 40)
    edit(saved, lambda h: h["files"].update({"arrays.safetensors": pieces.piece_digest(path.read_bytes())}))
    with pytest.raises(ResultError, match=r"arrays\.safetensors"):
        open_result(saved)
