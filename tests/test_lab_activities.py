"""The record as work: what a notebook's timers and audits count, and what the log tells of it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update

from lab_tools import opened
from measured import Model, Task, during, measure, stages
from microtome.lab import schema
from microtome.lab.activities import UNATTENDED, activities, keep_index
from microtome.lab.questions import Question
from microtome.lab.reading import Record, Wanted, log
from microtome.results import emit_look


@pytest.fixture(autouse=True)
def person(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")


def test_in_either_database_runs_and_looks_are_work_and_what_they_called_is_not_counted_twice(lab):
    seen = []
    with opened(lab) as one:
        record = Record(lab)
        measure(Model(), Task())
        stages(Model(), Task("sva"))
        emit_look(Model(), ["w4"], ["L0.z"])
        with pytest.raises(ValueError, match="no"):
            measure(Model(), Task(), fail="no")
        during(lambda: seen.extend(activities(record)), Model(), Task())
    found = activities(record)
    assert [(a.kind, a.method, a.state) for a in found] == [
        ("run", "toy_effects", "finished"), ("run", "toy_stages", "finished"), ("look", "look", "finished"),
        ("run", "toy_effects", "failed"), ("run", "toy_effects", "finished"),
    ]  # fmt: skip
    assert [a.what for a in found[:3]] == ["toy_effects on ioi", "toy_stages on sva", "look"]
    assert (
        all(a.end >= a.begin and a.attended for a in found) and seen[-1].end is None and seen[-1].state == ""
    )
    with one.database.writing() as connection:
        slow = update(schema.run).where(schema.run.c.number == 1)
        connection.execute(slow.values(seconds=UNATTENDED, begun_at=1.0, ended_at=1.0 + UNATTENDED))
        connection.execute(
            update(schema.run).where(schema.run.c.number == 2).values(ended_at=0.5)
        )  # a clock was set back
    first, second, *_ = activities(record)
    assert not first.attended and (first.end - first.begin).total_seconds() == UNATTENDED
    assert second.end == second.begin
    assert len(activities(record, since=2.0)) == 4
    record.close()
    one.database.close()


def test_in_either_database_the_index_of_pages_is_replaced_and_any_title_is_kept(lab):
    def page(path, **more):
        given = {"kind": "log", "title": "t", "date": "2026-11-28", "digest": "d" * 40, "fields": {"n": 1}, "problems": ("p",)}  # fmt: skip
        return SimpleNamespace(path=path, **{**given, **more})

    with opened(lab) as one:
        record = Record(lab)
        keep_index(record, [page("a.md"), page("b.md")])
        keep_index(
            record,
            [
                page("n" * 600),
                page("c.md", title="nul \0 half \udc80 <b>\x1b", date="in spring", kind="k" * 60),
            ],
        )
        with one.database.reading() as connection:
            rows = {r.path: r for r in connection.execute(select(schema.page))}
        assert set(rows) == {"n" * 500, "c.md"}
        assert rows["c.md"].title == "nul \\x00 half \\udc80 <b>\x1b" and rows["c.md"].dated is None
        assert rows["n" * 500].dated > 1.7e9 and len(rows["c.md"].kind) == 40
        keep_index(record, [])
        with one.database.reading() as connection:
            assert connection.execute(select(schema.page)).all() == []
    record.close()
    one.database.close()


def test_the_log_keeps_the_newest_in_order(lab):
    asked = Question(family="ioi")
    with opened(lab) as one:
        one.predict("first", 0.3, asked)
        measure(Model(), Task())
        stages(Model(), Task("sva"))
        for _ in range(3):
            emit_look(Model(), ["w4"], ["L0.z"])
        one.predict("second", 0.4, asked)
        one.resolve(1, None, reason="the task had a defect")
        claim = one.claim(
            "it moves the name", about=asked, alternatives=["any head"], falsifiers=["a small loss"]
        )
    record = Record(lab)
    entries = log(record)
    assert [(e.kind, e.number) for e in entries] == [
        ("prediction", "1"), ("run", "1"), ("run", "2"), ("look", "4"), ("prediction", "2"), ("came out void", "1"), ("claim", str(claim.number)),
    ]  # fmt: skip
    said = [e.said for e in entries]
    assert (
        said[0] == "first, with 0.3"
        and said[4] == "second, with 0.4 (post hoc)"
        and said[5] == "the task had a defect"
    )
    assert said[1].startswith("toy_effects on ioi in toy: ") and said[3] == "look in toy, 3 times"
    assert {e.who for e in entries} == {"ada"}
    assert log(record, limit=3) == entries[-3:] and log(record, since=time.time() + 5) == ()
    assert log(record, since=entries[2].at) == entries[2:]
    record.close()
    one.database.close()


def test_runs_are_chosen_by_state_also_where_a_limit_is_set(lab):
    with opened(lab) as one:
        for n in range(3):
            measure(Model(), Task(), seed=n)
        with one.database.writing() as connection:  # two that were running in a process that is gone
            row = dict(connection.execute(select(schema.process)).mappings().one())
            connection.execute(schema.process.insert(), {**row, "id": "gone", "pid": 999_999_999})
            lost = update(schema.run).where(schema.run.c.number.in_((1, 3)))
            connection.execute(lost.values(process="gone", state="running"))
        record = Record(lab)
        assert [r.number for r in record.runs(Wanted(state="interrupted"))] == [3, 1]
        assert [r.number for r in record.runs(Wanted(state="interrupted"), limit=1)] == [3]
        assert record.runs(Wanted(state="running")) == ()
        assert [r.number for r in record.runs(Wanted(state="finished"))] == [2]
        found = []
        during(lambda: found.extend(record.runs(Wanted(state="running"), limit=1)), Model(), Task())
        assert [r.number for r in found] == [4]
        record.close()
    one.database.close()
