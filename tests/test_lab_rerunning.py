"""Runs again, from their records: equal to the bit in another process, and refused where what they used is not there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import update

import measured
import planted
import worded
from cli_toys import run
from lab_tools import opened, project, runs
from measured import Task
from microtome.errors import LabError, MicrotomeError
from microtome.lab import schema
from microtome.lab.equality import TOLERANCE, compared
from microtome.lab.reading import Record
from microtome.lab.rerunning import again
from microtome.results import Control, Labelled, Result, emit_look, verdict

CSV = "clean,corrupt,answer,wrong,entity\n" + "".join(
    f"w{i} w{i + 1} w{i + 2},w{i} w{i + 9} w{i + 2}, w{i + 3}, w{i + 4},{'ab'[i % 2]}\n" for i in range(4, 12)
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    planted.one_head().hf.save_pretrained(folder)
    worded.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def place(fast_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    return project(fast_path)


def ask(weights, path):
    """A model from a folder and a task from a file."""
    import microtome as mt
    from microtome.tasks.files import pairs

    model = mt.load(weights)
    path.write_text(CSV, encoding="utf-8")
    return model, pairs(model, path)


def patch(model, task, **more):
    from microtome import methods

    return methods.activation_patching(model, task, sites="L*.resid_pre", positions=[-1], controls="none", seed=0, **more)  # fmt: skip


def command(place, *words):
    """The command line in a process of its own."""
    code = "from microtome.cli.main import main; main()"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=place.folder, env=env, capture_output=True, text=True, check=False)  # fmt: skip


def test_in_another_process_and_without_the_file_of_its_data_the_numbers_are_the_same_bits(place, weights):
    model, task = ask(weights, place.folder / "pairs.csv")
    with opened(place):
        patch(model, task)
    (place.folder / "pairs.csv").unlink()
    done = command(place, "lab", "rerun", "1", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["again"] == 2 and (
        told["agreement"]["same"],
        told["agreement"]["within"],
        told["agreement"]["largest"],
    ) == (True, True, 0.0)
    first, second = runs(place)
    assert first.query == second.query and first.title == second.title and first.process != second.process
    record = Record(place)
    assert record.result(1) == record.result(2)
    keys = [{f.name: f.key for f in record.files_of(n, "result")} for n in (1, 2)]
    assert keys[0] == keys[1]  # content-addressed: the same files
    shown = run("lab", "rerun", "1", "--folder", place.folder)
    assert (
        shown.exit_code == 0 and "equal, bit for bit" in shown.stdout and "run 1 again: run 3" in shown.stdout
    )


def test_what_took_a_result_as_an_argument_finds_it_in_the_record(place, weights):
    from microtome import circuits, methods

    model, task = ask(weights, place.folder / "pairs.csv")
    with opened(place):
        edges = methods.attribution_patching(model, task, of="edges", how="ig-inputs", mode="noise")
        found = circuits.discover(model, task, size=4, scores=edges)
    rows = runs(place)
    top = [r for r in rows if r.parent is None]
    assert [r.not_again for r in top] == ["", ""]
    record = Record(place)
    with opened(place):
        assert again(record, top[1].number) == found.result
        for row in rows:  # what it called can be run again alone
            if row.parent is not None and not row.not_again:
                assert again(record, row.number) == record.result(row.number)
    with record.database.writing() as connection:  # a record from which the first was taken away
        connection.execute(update(schema.run).where(schema.run.c.number == top[0].number).values(result=None))
    with pytest.raises(LabError, match="is not in the record"):
        again(record, top[1].number)


def test_other_weights_are_refused(place, tmp_path):
    folder = tmp_path / "toy"
    planted.one_head().hf.save_pretrained(folder)
    worded.tokenizer().save_pretrained(folder)
    model, task = ask(folder, place.folder / "pairs.csv")
    with opened(place):
        patch(model, task)
    import torch

    changed = planted.one_head().hf
    with torch.no_grad():
        changed.lm_head.weight.mul_(1.5)
    changed.save_pretrained(folder)
    with pytest.raises(LabError, match="is not the one that was recorded"):
        again(Record(place), 1)
    done = run("lab", "rerun", "1", "--folder", place.folder)
    assert done.exit_code == 1 and "is not the one that was recorded" in done.stderr
    with opened(place):
        assert again(Record(place), 1, load_model=lambda recipe: model).kind == "activation_patching"


def test_what_cannot_be_run_again_says_why(place, weights):
    model, task = ask(weights, place.folder / "pairs.csv")
    memory = planted.one_head()
    pairs = planted.pairs(memory)
    with opened(place):
        patch(memory, pairs)
        emit_look(model, ["w4"], ["L0.z"])
        measured.measure(measured.Model(), Task())
    record = Record(place)
    with pytest.raises(LabError, match=r"cannot be run again from its record\n.*held in memory"):
        again(record, 1)
    with pytest.raises(LabError, match=r"run 2 cannot be run again\n.*a look, not a technique"):
        again(record, 2)
    with pytest.raises(LabError, match="cannot be run again"):
        again(record, 3)
    assert "not possible" in run("lab", "show", "1", "--folder", place.folder).stdout


def test_a_technique_that_is_not_there_any_more_is_named(place, weights):
    model, task = ask(weights, place.folder / "pairs.csv")
    with opened(place):
        patch(model, task)
    record = Record(place)
    with record.database.writing() as connection:
        connection.execute(update(schema.run).values(method="no_such_technique"))
    with pytest.raises(LabError, match="'no_such_technique' cannot be run again"):
        again(record, 1)
    with record.database.writing() as connection:
        connection.execute(update(schema.run).values(method="activation_patching"))
    record.files.path(runs(place)[0].arguments).unlink()
    with pytest.raises(MicrotomeError, match="missing|not there|lost"):
        again(record, 1)


# ------------------------------------------------------------------------------------------------ agreement


def result(values=((1.0, 2.0), (3.0, 4.0)), table=(1.0, 2.0), names=("x", "y"), tensor=None, children=(), passed=True):  # fmt: skip
    controls = (Control("identity", "a wrong patch", "no change", 0.0, passed, 1),)
    tensors = {"t": np.asarray([1.0, 2.0] if tensor is None else tensor)}
    frame = pd.DataFrame({"name": list(names), "value": list(table)})
    made = None if values is None else measured.effects(values, ("L0.z", "L1.z"))
    return Result("toy", effects=made, tables={"found": frame}, tensors=tensors, children=children, controls=controls,
                  verdict=verdict(controls, ("identity",)))  # fmt: skip


def untouched(found):
    return (found.same, found.within, found.largest) == (True, True, 0.0)


def test_equal_results_agree_and_small_differences_are_within_the_tolerance():
    assert untouched(compared(result(), result()))
    near = compared(result(), result(values=((1.0, 2.0), (3.0, 4.00004))))
    assert not near.same and near.largest == pytest.approx(1e-5, rel=0.02) and near.within
    far = compared(result(), result(values=((1.0, 2.0), (3.0, 4.004))))
    assert far.largest == pytest.approx(1e-3, rel=0.01) and far.largest > TOLERANCE and not far.within


@pytest.mark.parametrize(
    "other",
    [
        {"table": (1.0, 2.1)},
        {"names": ("x", "z")},
        {"tensor": [1.0, 2.1]},
        {"tensor": [1.0, 2.0, 3.0]},
        {"tensor": [1, 2]},
        {"tensor": [1.0, math.nan]},
        {"tensor": [1.0, math.inf]},
        {"tensor": [True, False]},
        {"values": None},
        {"passed": False},
        {"children": (result(),)},
    ],
    ids=str,
)
def test_whatever_differs_is_seen(other):
    found = compared(result(), result(**other))
    assert not found.same and not found.within
    back = compared(result(**other), result())
    assert not back.same and not back.within


def test_labels_and_stages_count():
    moved = Labelled(result().effects.values, ("site", "prompt", "metric"), {**result().effects.coords, "site": ("L0.z", "L2.z")})  # fmt: skip
    assert compared(result(), replace(result(), effects=moved)).largest == math.inf
    one, two = (result(children=(result(table=(1.0, x)),)) for x in (2.0, 2.1))
    assert compared(one, two).largest == pytest.approx(0.1 / 2.1) and untouched(compared(one, one))


def test_counts_and_ids_must_be_equal_and_infinities_alike():
    big = [[49000, 1], [49001, 1]]  # 2e-5 of the largest: a neighbour in a vocabulary is another word
    assert compared(result(tensor=big[0]), result(tensor=big[1])).largest == math.inf
    infinite = [1.0, math.inf], [1.0, -math.inf]
    assert compared(result(tensor=infinite[0]), result(tensor=infinite[0])).within
    assert compared(result(tensor=infinite[0]), result(tensor=infinite[1])).largest == math.inf
