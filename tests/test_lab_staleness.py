"""Runs that are out of date: their code, their model or their data are not what they were, and nothing else makes them so."""

from __future__ import annotations

import json
import os

import pytest
from sqlalchemy import insert, update

import microtome.results.calibration as calibration
from lab_tools import Model as Unknown
from lab_tools import leaf, opened, project
from measured import Model, Task, measure
from microtome.lab import schema, stamps
from microtome.lab.reading import Record, Wanted
from microtome.lab.staleness import stale


@pytest.fixture
def place(fast_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    return project(fast_path)


def said(place, number=None):
    """What is said of a run, or of all, as {number: sentences}."""
    record = Record(place)
    found = stale(record, record.runs(Wanted(nested=True), None))
    record.close()
    return found if number is None else found.get(number, ())


def was(place, method, code):
    """Runs as if a technique of that name and code had made them."""
    record = Record(place)
    with record.database.writing() as connection:
        connection.execute(update(schema.run).values(method=method, code=code))
    record.close()


# ----------------------------------------------------------------------------------------------------- code


def test_code_that_changed_is_said_and_code_that_did_not_is_not(place):
    with opened(place):
        leaf(Unknown())
    now = calibration.technique_hash("ablation")
    assert len(now) == 32
    was(place, "ablation", now)
    assert said(place) == {}
    was(place, "ablation", "00" * 16)
    assert said(place) == {1: ("the code of ablation has changed",)}
    was(place, "no_such_technique", "00" * 16)
    assert said(place) == {1: ("the technique no_such_technique is not installed here",)}
    was(place, "look", "")
    assert said(place) == {}


def test_hashes_of_our_own_code_are_kept_until_a_file_changes(place, monkeypatch):
    with opened(place):
        leaf(Unknown())
    was(place, "ablation", calibration.technique_hash("ablation"))
    assert said(place) == {}
    asked = []
    monkeypatch.setattr(calibration, "technique_hash", lambda name: asked.append(name) or "ff" * 16)
    assert said(place) == {} and asked == []  # from the file
    kept = place.home / "cache" / "code.json"
    for damage in ("{", "[]", json.dumps({"mark": "other", "code": {}}), json.dumps({"mark": 1})):
        kept.write_text(damage, encoding="utf-8")
        assert said(place, 1) == ("the code of ablation has changed",)
    assert asked == ["ablation"] * 4
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("a file where the folder should be", encoding="utf-8")
    assert said(place, 1) == ("the code of ablation has changed",)


def test_the_code_of_another_package_is_read_each_time(place, monkeypatch):
    """No file of ours changes when theirs do."""
    from microtome.results import registry

    with opened(place):
        leaf(Unknown())
    was(place, "theirs", "aa" * 16)
    monkeypatch.setattr(registry, "module_of", lambda kind, name: "their_package.methods")
    code = ["aa" * 16]
    monkeypatch.setattr(calibration, "technique_hash", lambda name: code[0])
    assert said(place) == {}
    code[0] = "bb" * 16
    assert said(place) == {1: ("the code of theirs has changed",)}


# ---------------------------------------------------------------------------------------------------- model


def recipe(place, mark, **given):
    record = Record(place)
    with record.database.writing() as connection:
        values = {"recipe": json.dumps(given, sort_keys=True)}
        connection.execute(update(schema.model).where(schema.model.c.hash == mark).values(values))
    record.close()


def test_a_model_of_the_same_name_with_other_weights(place):
    with opened(place):
        measure(Model("toy", "aaaa"), Task())
        measure(Model("other", "bbbb"), Task())
        assert said(place) == {}
        measure(Model("toy", "cccc"), Task())
    assert said(place) == {1: ("toy has other weights now (cccc)",)}
    with opened(place):
        measure(Model("toy", "aaaa"), Task(), seed=1)
    assert said(place) == {3: ("toy has other weights now (aaaa)",)}


def test_the_same_model_in_another_type_or_at_another_revision_is_no_change(place):
    with opened(place):
        for mark in ("aaaa", "bbbb", "cccc", "dddd"):
            measure(Model("smol", mark), Task())
    base = {"kind": "hub", "name": "smol", "revision": "1", "dtype": "float32", "device": "cpu", "attention": "sdpa"}  # fmt: skip
    recipe(place, "aaaa", **base)
    recipe(place, "bbbb", **{**base, "dtype": "bfloat16"})
    recipe(place, "cccc", **{**base, "revision": "2"})
    recipe(place, "dddd", **{**base, "kind": "folder"})
    assert said(place) == {}
    recipe(place, "dddd", **{**base, "device": "cuda:0", "attention": "eager"})  # which change no weight
    assert said(place) == {1: ("smol has other weights now (dddd)",)}


# ----------------------------------------------------------------------------------------------------- data


def made_of(place, mark, **given):
    record = Record(place)
    with record.database.writing() as connection:
        row = {"hash": mark, "kind": "PairTask", "name": "mine", "recipe": json.dumps(given), "seen_at": 1.0}
        connection.execute(insert(schema.material), row)
    record.close()


def test_a_file_of_data_that_changed_or_is_gone_and_one_that_was_touched(place, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("one", encoding="utf-8")
    with opened(place):
        measure(Model(), Task("mine", "1111"))
        measure(Model(), Task("ioi", "2222"))
    made_of(place, "1111", stamp=stamps.stamp(str(path)))
    assert said(place) == {}
    os.utime(path, (1, 1))
    assert said(place) == {}
    path.write_text("two", encoding="utf-8")
    assert said(place) == {1: (f"{path} has changed",)}
    path.write_text("one", encoding="utf-8")
    assert said(place) == {}
    path.write_text("longer", encoding="utf-8")
    assert said(place) == {1: (f"{path} has changed",)}
    path.unlink()
    assert said(place) == {1: (f"{path} is gone",)}


def test_a_real_task_from_a_file_is_stamped_when_it_is_used(place, tmp_path):
    import planted
    import worded
    from microtome.tasks.files import pairs

    model = worded.with_words(planted.one_head())
    path = tmp_path / "mine.csv"
    path.write_text(
        "clean,corrupt,answer,wrong,entity\nw4 w5,w4 w6, w7, w8,a\nw5 w9,w5 w8, w7, w8,b\n", encoding="utf-8"
    )
    task = pairs(model, path)
    with opened(place):
        measure(Model(), task)
    assert said(place) == {}
    path.write_text(path.read_text(encoding="utf-8").replace("w9", "w10"), encoding="utf-8")
    assert said(place) == {1: (f"{path} has changed",)}


def test_a_generator_that_draws_other_prompts_now(place):
    from microtome.results import registry

    version = registry.get("tasks", "ioi").version
    with opened(place):
        for number in range(3):
            measure(Model(), Task("ioi", f"{number:04x}"))
    made_of(place, "0000", task="ioi", version=version)
    made_of(place, "0001", task="ioi", version="0.old")
    made_of(place, "0002", task="no such generator", version="1")
    assert said(place) == {
        2: (f"the task ioi draws other prompts now (version {version}, then 0.old)",),
        3: ("the task no such generator is not installed here",),
    }


def test_several_reasons_are_all_said(place, tmp_path):
    with opened(place):
        measure(Model("toy", "aaaa"), Task("mine", "1111"))
        measure(Model("toy", "cccc"), Task())
    made_of(place, "1111", stamp=stamps.stamp(str(tmp_path / "gone.csv")) or {"path": str(tmp_path / "gone.csv"), "size": 3, "time": 1, "digest": "x"})  # fmt: skip
    was(place, "ablation", "00" * 16)
    first, second = said(place)[1], said(place)[2]
    assert len(first) == 3 and [s.split()[0] for s in first[:2]] == ["the", "toy"] and "is gone" in first[2]
    assert second == ("the code of ablation has changed",)


# --------------------------------------------------------------------------------------------------- stamps


def test_a_folder_is_known_by_what_is_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("a", encoding="utf-8")
    kept = stamps.stamp(str(folder))
    assert stamps.changed(kept) == ""
    for change in ("write", "add", "rename"):
        if change == "write":
            (folder / "inner" / "a.txt").write_text("ab", encoding="utf-8")
        elif change == "add":
            (folder / "b.txt").write_text("", encoding="utf-8")
        else:
            (folder / "b.txt").rename(folder / "c.txt")
        assert "has changed" in stamps.changed(kept)
        kept = stamps.stamp(str(folder))
        assert stamps.changed(kept) == ""
    (folder / "inner" / "a.txt").unlink()
    assert "has changed" in stamps.changed(kept)
    monkeypatch.chdir(folder)
    assert stamps.stamp(".") is None  # a source called "." is the current folder, whatever is in it


@pytest.mark.parametrize(
    "given", [None, 5, "", "x" * 2000, "two\nlines", "ioi", "~nobody-has-this-name/x", "a\0b"], ids=repr
)
def test_what_is_no_path_has_no_stamp(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stamps.stamp(given) is None


def test_a_large_file_is_known_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "LARGE", 3)
    path = tmp_path / "large"
    path.write_text("1234", encoding="utf-8")
    kept = stamps.stamp(str(path))
    assert kept["digest"] == "" and stamps.changed(kept) == ""
    os.utime(path, (1, 1))
    assert stamps.changed(kept) == f"{path} has changed"
