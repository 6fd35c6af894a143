"""From an older record to this version's tables: every step, or none."""

from __future__ import annotations

import re
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

import microtome.lab.place as places
from lab_faults import Moments, forked
from lab_tools import Model, leaf, opened, project, runs, sound
from microtome.errors import LabError
from microtome.lab import database, migrations, schema
from microtome.lab.doctor import examine
from microtome.lab.reading import Record

STORED = Path(__file__).parent / "data" / "record-0001"
SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    with op.batch_alter_table("run") as run:
        run.add_column(sa.Column("mood", sa.Text, nullable=False, server_default="calm"))
    op.create_table("extra", sa.Column("number", sa.Integer, primary_key=True))
    {more}
"""


@pytest.fixture
def stored(tmp_path) -> places.Place:
    """A record that the first released version wrote."""
    place = project(tmp_path)
    shutil.copytree(STORED / "files", place.files)
    with sqlite3.connect(place.database) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript((STORED / "lab.sql").read_text(encoding="utf-8"))
    connection.close()
    return place


@pytest.fixture
def second(tmp_path, monkeypatch):
    """A version of Microtome with one more revision."""

    def made(more="") -> None:
        folder = tmp_path / "versions%"
        folder.mkdir()
        (folder / "0002_mood.py").write_text(SECOND.format(more=more), encoding="utf-8")
        monkeypatch.setattr(database, "VERSIONS", [*database.VERSIONS, folder])
        monkeypatch.setattr(schema, "REVISION", "0002")

    return made


def shape(engine):
    """Everything that a database says of its tables."""
    look = inspect(engine)
    out = {}
    for table in sorted(set(look.get_table_names()) - {"alembic_version"}):
        columns = [{**c, "type": str(c["type"])} for c in look.get_columns(table)]
        comment = look.get_table_comment(table) if engine.dialect.supports_comments else None
        out[table] = (columns, look.get_pk_constraint(table), sorted(map(str, look.get_foreign_keys(table))),
                      sorted(map(str, look.get_indexes(table))), sorted(map(str, look.get_unique_constraints(table))), comment)  # fmt: skip
    return out


def migrated(engine) -> None:
    with engine.connect() as connection, connection.begin():
        migrations.run(connection, "0001")


def test_the_first_revision_gives_exactly_the_tables():
    made, grown = create_engine("sqlite://"), create_engine("sqlite://")
    database.make(made)
    migrated(grown)
    assert shape(made) == shape(grown) and len(shape(made)) == len(schema.metadata.tables)

    def sql(engine):
        rows = engine.connect().exec_driver_sql("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").scalars()  # fmt: skip
        bare = {re.sub(r"\s+", " ", row) for row in rows if "alembic_version" not in row}
        return {re.sub(r"\( | \)|, ", "|", row) for row in bare}

    assert {frozenset(row.split("|")) for row in sql(made)} == {frozenset(row.split("|")) for row in sql(grown)}  # fmt: skip
    made.dispose(), grown.dispose()


def test_the_first_revision_is_frozen_and_knows_nothing_of_the_tables_now():
    text = (database.VERSIONS[0] / "0001_first.py").read_text(encoding="utf-8")
    assert not re.search(r"(import|from) microtome", text)


def test_a_record_of_the_first_version_is_read_and_gone_on_with(stored):
    done = migrations.upgrade(stored)
    assert done == migrations.Upgraded("0001", "0001", None)
    assert examine(stored, deep=True).ok
    kept = runs(stored)
    assert [r.state for r in kept] == ["finished", "finished", "finished", "finished", "failed"]
    record = Record(stored)
    assert record.result(1).tensors["values"].tolist() == [1.0, 2.0, 3.0, 4.0]
    record.close()
    with opened(stored, "new"):
        leaf(Model())
    assert len(runs(stored)) == 6


def test_an_older_record_is_refused_then_upgraded_with_a_copy(stored, second):
    second()
    with pytest.raises(LabError, match=r"older version \(schema 0001\)[^$]*doctor --upgrade"):
        runs(stored)
    with pytest.raises(LabError, match="older version"):
        opened(stored).open()
    before = stored.database.read_bytes()
    done = migrations.upgrade(stored)
    assert (done.before, done.after) == ("0001", "0002")
    assert done.copy is not None and done.copy.stat().st_size == len(before)
    kept = sqlite3.connect(stored.database)
    assert kept.execute("SELECT DISTINCT mood FROM run").fetchall() == [("calm",)]
    assert kept.execute("SELECT count(*), max(number) FROM run").fetchall() == [(5, 5)]
    assert kept.execute("SELECT seq FROM sqlite_sequence WHERE name = 'run'").fetchall() == [(5,)]
    kept.close()
    sound(stored)
    copy = sqlite3.connect(done.copy)
    assert copy.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    copy.close()
    assert migrations.upgrade(stored) == migrations.Upgraded("0002", "0002", None)


@pytest.mark.parametrize(
    "more",
    ["raise RuntimeError('halfway')", "op.execute('SELECT nothing FROM nowhere')",
     "op.execute('PRAGMA foreign_keys=OFF'); op.execute('DELETE FROM study')"],
    ids=["a defect", "SQL that fails", "rows left behind"],
)  # fmt: skip
def test_a_step_that_fails_leaves_the_record_as_it_was(stored, second, more):
    connection = sqlite3.connect(stored.database)
    before = list(connection.iterdump())
    second(more)
    with pytest.raises((LabError, RuntimeError), match="as it was|halfway"):
        migrations.upgrade(stored)
    assert list(connection.iterdump()) == before
    connection.close()


def test_an_upgrade_that_is_killed_anywhere_is_all_or_nothing(stored, second):
    second()
    original = stored.database.read_bytes()
    whole = Moments()

    def upgrade(say, moment=whole):
        with moment.watched():
            migrations.upgrade(stored)
        say(str(moment.count))

    def restore():
        for path in stored.home.glob("lab.db*"):
            path.unlink()
        stored.database.write_bytes(original)

    moments = int(forked(upgrade)[1][0])
    assert moments >= 3
    seen = set()
    for at in range(moments):
        for after in (False, True):
            restore()
            moment = Moments(at, after=after)
            assert forked(lambda say, moment=moment: upgrade(say, moment))[0] == -9
            done = migrations.upgrade(stored)
            seen.add(done.before)
            assert done.after == "0002" and len(runs(stored)) == 5 and sound(stored)
    assert seen == {"0001", "0002"}


def test_a_record_of_a_newer_version_is_refused_and_left_alone(stored):
    with sqlite3.connect(stored.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = stored.database.read_bytes()
    for work in (runs, migrations.upgrade, lambda place: opened(place).open()):
        with pytest.raises(LabError, match=r"newer version \(schema 9999\)"):
            work(stored)
    assert not examine(stored).ok and stored.database.read_bytes() == before


def test_nothing_is_upgraded_where_nothing_was_recorded(tmp_path):
    place = project(tmp_path)
    with pytest.raises(LabError, match="nothing was recorded"):
        migrations.upgrade(place)
    assert not place.database.exists()
