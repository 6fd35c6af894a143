"""A study over the cells of a real notebook: opened in one, used in others, closed in a third; and a kernel that is killed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from lab_tools import Model as Toy
from lab_tools import leaf, opened, project, runs, sound
from microtome.lab.doctor import examine
from microtome.lab.predicting import predictions
from microtome.lab.reading import Record

START = """
import sys; sys.path.insert(0, {tests!r})
import microtome as mt
from measured import Model, Task, measure, stages
study = mt.study("in a notebook", person="ada").open()
"""
PREDICT = """
from microtome.lab.questions import Question
study.predict("it hurts", 0.8, Question(method="toy_effects", family="ioi", sites=("L9H6.z",)), mt.expect("effects", site="L9H6.z", high=0))
"""
THREADS = """\
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda n: measure(Model(), Task(), seed=n), range(4)))
"""
CALLS = "result = measure(Model(), Task())"
FAILS = "measure(Model(), Task(), fail='broken')"
DIES = """
import measured, os, signal
measured.during(lambda: os.kill(os.getpid(), signal.SIGKILL), Model(), Task())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    monkeypatch.delenv("MICROTOME_PERSON", raising=False)
    return project(tmp_path)


def execute(place, *cells, **options):
    """The cells with their outputs."""
    start = START.format(tests=str(Path(__file__).parent))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (start, *cells)])
    where = {"metadata": {"path": str(place.folder)}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=where, **options).execute()
    return book.cells


def shown(cell):
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in cell["outputs"])


def test_a_study_spans_cells(place):
    cells = execute(place, PREDICT, "def work():\n    x = 1\n    return measure(Model(), Task())\nresult = work()", "stages(Model(), Task('sva', '1111' * 8)); study.last",
                    THREADS, FAILS, "study.close()\nstudy.last", "measure(Model(), Task(), seed=9);", "study", allow_errors=True)  # fmt: skip
    assert [c["execution_count"] for c in cells] == list(range(1, 10))
    failed = [i for i, c in enumerate(cells) if any(o["output_type"] == "error" for o in c["outputs"])]
    assert failed == [5] and "ValueError" in cells[5]["outputs"][-1]["ename"]
    kept = runs(place)
    assert len(kept) == 8 and [r.state for r in kept] == ["finished"] * 7 + [
        "failed"
    ]  # what came after the close is not there
    assert [r.called_from for r in kept[:3]] == ["cell 3, line 3", "cell 4, line 1", ""]
    assert {r.called_from for r in kept[3:7]} == {"cell 5, line 3"} and kept[
        7
    ].called_from == "cell 6, line 1"
    assert kept[2].parent == kept[1].number and len({r.process for r in kept}) == 1
    assert {r.title for r in kept} == {"in a notebook"} and {r.person for r in kept} == {"ada"}
    assert shown(cells[3]) == "2" and shown(cells[6]) in ("7", "8") and ": closed, " in shown(cells[8])
    (prediction,) = predictions(Record(place).database)
    assert (prediction.state, prediction.run, prediction.post_hoc) == ("true", 1, False)
    assert "<Prediction 1: 'it hurts' with 0.8, open>" in shown(cells[1])
    assert Record(place).studies()[0].closed_at and sound(place) and examine(place).ok


def test_a_kernel_that_is_killed_leaves_what_was_done_and_the_study_goes_on(place):
    with pytest.raises(DeadKernelError):
        execute(place, CALLS, DIES)
    first, second = runs(place)
    assert (first.state, second.state) == ("finished", "interrupted") and "killed" in second.error
    assert second.ended_at is None and Record(place).studies()[0].closed_at is None
    assert Record(place).result(1).kind == "toy_effects" and second.called_from
    with Record(place).database.reading() as connection:
        stored = connection.exec_driver_sql("SELECT state FROM run WHERE number = 2").scalar()
    assert stored == "running"  # nobody could say otherwise yet
    with opened(place, "in a notebook", person="ada") as again:
        assert again.number == 1
        leaf(Toy())
        with Record(place).database.reading() as connection:
            assert (
                connection.exec_driver_sql("SELECT state FROM run WHERE number = 2").scalar() == "interrupted"
            )
    assert [r.state for r in runs(place)] == ["finished", "interrupted", "finished"]
    assert len(Record(place).studies()) == 1 and Record(place).studies()[0].closed_at and sound(place)
    assert examine(place).ok


def test_a_notebook_whose_study_was_never_closed_is_closed_with_its_kernel(place):
    execute(place, "measure(Model(), Task());")
    assert [r.state for r in runs(place)] == ["finished"] and sound(place)
