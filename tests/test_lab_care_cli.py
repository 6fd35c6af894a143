"""`sql`, `gc` and `doctor` as commands: tables, JSON, exit codes, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import sqlite3

import pytest
import typer
from typer.testing import CliRunner

from lab_tools import Model, leaf, opened, project
from microtome.cli import lab_care
from microtome.errors import LabError

app = typer.Typer()
app.command("sql")(lab_care.sql)
app.command("gc")(lab_care.gc)
app.command("doctor")(lab_care.doctor)


@pytest.fixture
def place(fast_path, monkeypatch):
    place = project(fast_path)
    with opened(place, "red \x1b[31m <b>"):
        leaf(Model())
    monkeypatch.chdir(fast_path)
    return place


def run(*words, code=0):
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def test_sql_shows_a_table_and_control_characters_as_text(place):
    shown = run("sql", "SELECT number, title, NULL AS none FROM study")
    assert "red \\x1b[31m <b>" in shown and "\x1b" not in shown
    told = json.loads(
        run("sql", "--json", "--limit", "1", "SELECT title, title, x'00ff' FROM study, run_file")
    )
    assert told["rows"] == [["red \x1b[31m <b>"] * 2 + ["00ff"]] and told["more"] and told["columns"][:2] == ["title"] * 2  # fmt: skip
    with pytest.raises(LabError, match="would change"):
        run("sql", "DELETE FROM run")


def test_gc_says_what_it_removed(place):
    from microtome.lab.files import Files

    Files(place.files).put(b"garbage")
    assert json.loads(run("gc", "--json")) == {"files": 0, "bytes": 0, "leftovers": 0, "removed": True}
    assert run("gc", "--now", "--dry-run").startswith("1 files (0.0 MB) and 0 leftovers would be removed")
    assert run("gc", "--now").startswith("1 files")
    assert json.loads(run("gc", "--now", "--json"))["files"] == 0


def test_a_doctor_is_asked_and_ends_with_one_where_something_is_wrong(place):
    assert "nothing is wrong" in run("doctor") and "1 runs" in run("doctor", "--deep")
    told = json.loads(run("doctor", "--json"))
    assert told["ok"] and told["runs"] == 1 and told["schema"] == "0001" and told["findings"] == []
    assert json.loads(run("doctor", "--json", "--upgrade"))["upgraded"] == {"from": "0001", "to": "0001", "copy": None}  # fmt: skip
    with pytest.raises(LabError, match="not damaged"):
        run("doctor", "--recover")
    assert run("doctor", "--recover", "--upgrade", code=2) == ""
    place.database.write_bytes(b"\0" * 9000)
    assert "wrong" in run("doctor", code=1) and not json.loads(run("doctor", "--json", code=1))["ok"]
    told = json.loads(run("doctor", "--recover", "--json"))
    assert told["ok"] and told["recovered"]["runs made from files"] == [1]
    assert sqlite3.connect(place.database).execute("SELECT count(*) FROM run").fetchone() == (1,)
    place.database.write_bytes(b"\0" * 9000)
    assert "runs made from files: 1" in run("doctor", "--recover")
