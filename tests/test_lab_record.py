"""What runs in a study is recorded without being asked, in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from lab_faults import forked
from lab_tools import Known, Model, leaf, opened, predict, project, runs, sound, tree
from microtome.errors import LabError
from microtome.lab import database, migrations, schema
from microtome.lab.doctor import collect, examine
from microtome.lab.place import URL
from microtome.lab.reading import Record, Wanted
from microtome.lab.recorder import storable
from microtome.lab.sql import query
from microtome.results import ObserverWarning, emit_look
from test_lab_migrations import migrated, shape


@pytest.fixture(autouse=True)
def person(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")


def test_calls_become_runs_and_calls_within_them_child_runs(lab):
    with opened(lab) as one:
        made = leaf(Model(), value=3)
        tree(Known(), 2)
    first, second, child = runs(lab)
    assert (first.method, first.version, first.state, first.person, first.by) == ("toy_leaf", "1", "finished", "ada", "person")  # fmt: skip
    assert first.question["parameters"] == {"value": 3, "fail": ""} and first.query == made.query.id
    assert first.verdict == str(made.verdict) and first.about == "value=3"
    assert first.called_from.startswith(__file__) and child.called_from == ""
    assert (second.parent, child.parent, second.children) == (None, second.number, 1)
    assert second.model == "dcba" and second.model_name == "toy"
    record = Record(lab)
    result = record.result(first.number)
    assert np.array_equal(result.tensors["values"], made.tensors["values"]) and result.query == made.query
    assert record.result(second.number).children[0].tensors["values"].tolist() == [2.0, 3.0, 4.0, 5.0]
    (control,) = record.controls(first.number)
    assert (control.name, control.mandatory, control.passed, control.n) == ("identity", True, True, 1)
    assert record.sites(second.number) == ("L0.z",) and record.sites(child.number) == ()
    assert record.parents(child.number) == (second.number,)
    (study,) = record.studies()
    assert (study.title, study.person, study.runs, study.failed) == ("toys", "ada", 2, 0) and study.closed_at
    record.close()
    assert one.number == 1 and sound(lab)


def test_what_fails_is_recorded_as_failed_and_its_error_can_be_stored(lab):
    with opened(lab):
        for text_ in ("no", "nul \0 and half \udc80", "<script>\x1b[31m"):
            with pytest.raises(ValueError, match="no|nul|script"):
                leaf(Model(), fail=text_)
    kept = runs(lab)
    assert [r.state for r in kept] == ["failed"] * 3
    assert kept[1].error == r"ValueError: nul \x00 and half \udc80" and kept[2].error.endswith("<script>\x1b[31m")  # fmt: skip
    with pytest.raises(LabError, match="run 1 has no result"):
        Record(lab).result(1)
    with pytest.raises(LabError, match="characters"):
        opened(lab, "a\0title")
    assert storable("é 🙂 \x1b") == "é 🙂 \x1b"


def test_looks_in_a_row_are_one_run_and_looks_in_a_run_are_its_sites(lab):
    with opened(lab):
        for _ in range(3):
            emit_look(Model(), ["a"], ["L0.z"])
        emit_look(Model(), ["a"], ["L1.z"])
        leaf(Model())
        emit_look(Model(), ["a"], ["L1.z"])
    looks = [r for r in runs(lab) if r.method == "look"]
    assert [r.times for r in looks] == [3, 1, 1] and all(r.state == "finished" for r in looks)
    assert Record(lab).sites(looks[0].number) == ("L0.z",)
    assert len(Record(lab).runs(Wanted(looks=False))) == 1


def test_a_study_is_gone_on_with_by_its_title(lab):
    for title in ("one", "two", "one"):
        with opened(lab, title):
            leaf(Model())
    assert [(s.title, s.runs) for s in Record(lab).studies()] == [("one", 2), ("two", 1)]
    assert [r.number for r in runs(lab)] == [1, 2, 3]


def test_agents_and_people_are_kept_apart(lab):
    from microtome.lab.study import study

    with opened(lab):
        leaf(Model())
    with pytest.raises(LabError, match="ada is a person in this record"):
        study("toys", folder=lab.folder, person="ada", agent=True).open()
    with study("toys", folder=lab.folder, person="robot", agent=True):
        leaf(Model())
    assert [(r.person, r.by) for r in runs(lab)] == [("ada", "person"), ("robot", "agent")]


def test_a_writer_that_is_killed_loses_nothing_that_was_finished(lab):
    def work(say):
        opened(lab).open()
        leaf(Model(), 1)

        def stop(event):
            os.kill(os.getpid(), signal.SIGKILL)

        from microtome.results import add_observer

        add_observer(stop)  # the study heard of the begin first
        leaf(Model(), 2)

    assert forked(work)[0] == -signal.SIGKILL
    assert [r.state for r in runs(lab)] == ["finished", "interrupted"]
    with opened(lab):
        leaf(Model(), 3)
    assert [r.state for r in runs(lab)] == ["finished", "interrupted", "finished"] and sound(lab)
    assert examine(lab, deep=True).ok
    collect(lab, now=True)
    assert examine(lab, deep=True).findings == ()


def test_a_reader_sees_one_moment_and_cannot_write(lab):
    with opened(lab):
        leaf(Model(), 1)
        record = Record(lab)
        with record.database.reading() as connection:
            count = "SELECT count(*) FROM run"
            assert connection.execute(text(count)).scalar() == 1
            leaf(Model(), 2)
            assert connection.execute(text(count)).scalar() == 1
        with pytest.raises(LabError), record.database.reading() as connection:
            connection.execute(text("DELETE FROM run"))
        assert len(record.runs()) == 2
        record.close()


def test_a_connection_that_the_server_ends_is_made_again(lab):
    with opened(lab) as one:
        leaf(Model(), 1)
        if lab.url:
            import psycopg

            with psycopg.connect(lab.url.replace("+psycopg", "", 1), autocommit=True) as connection:
                mine = "datname = current_database() AND pid <> pg_backend_pid()"
                ended = connection.execute(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {mine}"
                ).fetchall()
            assert ended
        else:
            one.database.close()
        leaf(Model(), 2)
    assert [r.state for r in runs(lab)] == ["finished"] * 2


def test_eight_writers_lose_nothing(lab):
    with opened(lab, "warm"):
        leaf(Model())

    def work(i):
        with opened(lab, f"study {i % 3}", person=f"person {i}"):
            for n in range(10):
                leaf(Model(), value=100 * i + n)

    children = []
    for i in range(8):
        child = os.fork()
        if not child:
            code = 1
            try:
                work(i)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 8
    kept = runs(lab)[1:]
    assert len(kept) == len({r.number for r in kept}) == 80 and {r.state for r in kept} == {"finished"}
    values = sorted(r.question["parameters"]["value"] for r in kept)
    assert values == sorted(100 * i + n for i in range(8) for n in range(10))
    assert len(Record(lab).studies()) == 4 and sound(lab)


# ------------------------------------------------------------------------------------------------ SQL


def test_sql_reads(lab):
    with opened(lab):
        leaf(Model(), 1), leaf(Model(), 2)
    answer = query(lab, "-- mine\nSELECT number, method FROM run ORDER BY number;", limit=1)
    assert (answer.columns, answer.rows, answer.more) == (("number", "method"), ((1, "toy_leaf"),), True)
    assert query(lab, "WITH x AS (SELECT 'a;b%s' AS y) SELECT y FROM x").rows == (("a;b%s",),)
    if not lab.url:
        inner = "SELECT j.value FROM run, json_each(run.question, '$.parameters') AS j WHERE run.number = 2 AND j.key = 'value'"
        assert query(lab, inner).rows == ((2,),)
        assert query(lab, "SELECT count(*) FROM pragma_table_info('meta')").rows == ((2,),)
        with pytest.raises(LabError, match="sqlite_master may not be modified"):
            query(lab, "UPDATE sqlite_master SET sql = ''")
    for wrong in (0, -1, True, 10**9, "5"):
        with pytest.raises(LabError, match="limit="):
            query(lab, "SELECT 1", limit=wrong)
    with pytest.raises(LabError, match="not understood"):
        query(lab, "SELECT nothing FROM nowhere")
    with pytest.raises(LabError, match="no SQL"):
        query(lab, " ; ")


WRITES = [
    "DELETE FROM run", "UPDATE run SET method = 'x'", "INSERT INTO meta VALUES ('a', 'b')", "DROP TABLE run",
    "CREATE TABLE x (y INTEGER)", "CREATE TEMP TABLE x (y INTEGER)", "BEGIN", "COMMIT", "VACUUM",
    "WITH x AS (SELECT 1) DELETE FROM run", "ALTER TABLE run ADD COLUMN x TEXT", "ANALYZE",
]  # fmt: skip
LITE = ["ATTACH 'x.db' AS x", "PRAGMA journal_mode=DELETE", "PRAGMA query_only=OFF", "PRAGMA writable_schema=ON",
        "SELECT load_extension('x')", "VACUUM INTO 'x.db'", "INSERT INTO meta VALUES ('a', 'b') RETURNING key"]  # fmt: skip
POSTGRES = ["COPY run TO '/tmp/x'", "COPY (SELECT 1) TO PROGRAM 'true'", "SET ROLE postgres", "SELECT nextval('run_number_seq')",
            "WITH x AS (DELETE FROM run RETURNING number) SELECT * FROM x", "CALL x()", "DO $$ BEGIN END $$", "LOCK run",
            "SELECT * INTO x FROM run", "SELECT number FROM run FOR UPDATE"]  # fmt: skip


def test_sql_that_writes_is_refused_and_nothing_changes(lab):
    with opened(lab):
        leaf(Model())
        before = query(lab, "SELECT number, id, state FROM run")
        for sql in (*WRITES, *(POSTGRES if lab.url else LITE)):
            with pytest.raises(LabError, match="would change something|was refused"):
                query(lab, sql)
        for sql in ("SELECT 1; DELETE FROM run", "SELECT 1; SELECT 2", "SELECT 1;; COMMIT; DROP TABLE run"):
            with pytest.raises(LabError, match="several statements"):
                query(lab, sql)
        assert query(lab, "SELECT number, id, state FROM run") == before
        leaf(Model())  # and nobody was held up
    assert not list(lab.folder.glob("x*")) and len(runs(lab)) == 2


def test_sql_is_stopped_when_it_takes_too_long_or_too_much(lab):
    with opened(lab):
        leaf(Model())
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT sum(x) FROM c"
    with pytest.raises(LabError, match=r"longer than 0\.2 s"):
        query(lab, endless, seconds=0.2)
    assert len(query(lab, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c", limit=5).rows) == 5  # fmt: skip


def test_files_of_the_server_are_not_read(lab):
    with opened(lab):
        leaf(Model())
    sql = "SELECT pg_read_file('/etc/passwd')" if lab.url else "SELECT readfile('/etc/passwd')"
    with pytest.raises(LabError, match="was refused|no such function"):
        query(lab, sql)


# --------------------------------------------------------------------------------------------- tables


def test_the_first_revision_gives_the_tables_with_their_comments_in_postgres(postgres):
    import lab_servers

    shapes = []
    for make in (database.make, migrated):
        with lab_servers.database(postgres) as url:
            engine = create_engine(url)
            make(engine)
            shapes.append(shape(engine))
            engine.dispose()
    assert shapes[0] == shapes[1] and set(shapes[0]) == set(schema.metadata.tables)
    columns, *_, comment = shapes[0]["run"]
    assert comment["text"] and all(c["comment"] for c in columns)


def test_a_step_that_fails_leaves_a_postgres_record_as_it_was(lab, tmp_path, monkeypatch):
    from test_lab_migrations import SECOND

    with opened(lab) as one:
        leaf(Model())
        predict(one)
    for more in ("op.execute('SELECT nothing FROM nowhere')", ""):
        folder = tmp_path / f"versions{len(more)}"
        folder.mkdir()
        (folder / "0002_mood.py").write_text(SECOND.format(more=more), encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(database, "VERSIONS", [*database.VERSIONS, folder])
            patch.setattr(schema, "REVISION", "0002")
            if more:
                with pytest.raises(LabError, match="it is as it was"):
                    migrations.upgrade(lab)
            else:
                assert migrations.upgrade(lab).after == "0002"
        if more:
            assert len(runs(lab)) == 1
            with pytest.raises(LabError, match="not understood"):
                query(lab, "SELECT mood FROM run")
    with pytest.raises(LabError, match="newer version"):
        runs(lab)


def test_a_record_elsewhere_and_what_is_wrong_with_it(tmp_path, monkeypatch):
    place = project(tmp_path)
    monkeypatch.setenv(URL, "postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(LabError, match="does not answer") as caught:
        opened(project(place.folder)).open()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv(URL, "sqlite:///" + str(tmp_path / "other.db"))
    with opened(project(place.folder)):
        leaf(Model())
    assert (tmp_path / "other.db").exists() and not place.database.exists()
    with create_engine("sqlite:///" + str(tmp_path / "other.db")).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM run")).scalar() == 1


def test_somebody_elses_database_is_not_written_to(tmp_path):
    import sqlite3

    place = project(tmp_path)
    with sqlite3.connect(place.database) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for work in (runs, lambda place: opened(place).open()):
        with pytest.raises(LabError, match="is no record of Microtome's"):
            work(place)


def test_a_result_that_no_file_holds_does_not_keep_others_waiting(lab, monkeypatch):
    from microtome.errors import ResultError
    from microtome.lab import recorder

    def never(*_):
        raise ResultError("table 'x' cannot be written as Parquet")

    with opened(lab):
        with monkeypatch.context() as patch:
            patch.setattr(recorder.pieces, "write", never)
            with pytest.warns(ObserverWarning, match="cannot be written as Parquet"):
                leaf(Model(), 1)
        leaf(Model(), 2)
    first, second = runs(lab)
    assert first.state == "finished" and first.result is None and "was not kept" in first.error
    assert second.result and not second.error


def test_arguments_that_cannot_be_kept_do_not_lose_the_run(lab, monkeypatch):
    from microtome.errors import ResourceError
    from microtome.lab import keeping

    def full(*_):
        raise ResourceError("no room to record in files")

    with opened(lab):
        with monkeypatch.context() as patch:
            patch.setattr(keeping, "call", full)
            with pytest.warns(ObserverWarning, match="no room to record"):
                leaf(Model(), 1)
        leaf(Model(), 2)
    first, second = runs(lab)
    assert (first.state, second.state) == ("finished", "finished")
    assert first.not_again == "its arguments were not kept: no room to record in files" and first.result


def test_a_prediction_that_cannot_be_decided_does_not_undo_the_run(lab):
    def undecided(connection, number, result):
        connection.execute(schema.run.update().values(family="half done"))
        raise KeyError("no such field")

    with opened(lab) as one:
        one._recorder.after = undecided
        with pytest.warns(ObserverWarning, match="no such field"):
            leaf(Model(), 1)
        one._recorder.after = None
        leaf(Model(), 2)
    assert [(r.state, r.family) for r in runs(lab)] == [("finished", "")] * 2 and sound(lab)


HEAVY = ["torch", "pandas", "alembic", "plotly", "pyarrow", "transformers", "scipy"]
LISTS = """
from microtome.lab.reading import open_record
from microtome.lab import sql
record = open_record()
assert len(record.runs()) == 1 and record.studies() and record.run(1).about
assert sql.query(record.place, "SELECT 1").rows == ((1,),)
"""


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (LISTS, [*HEAVY, "numpy"]),
        ("import microtome.lab.study, microtome.lab.doctor, microtome.cli.lab_care", HEAVY),
    ],
    ids=["listing", "recording"],
)
def test_what_is_light_imports_nothing_heavy(tmp_path, code, heavy):
    place = project(tmp_path)
    with opened(place):
        leaf(Model())
    code += f"\nimport sys, json\nprint(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
