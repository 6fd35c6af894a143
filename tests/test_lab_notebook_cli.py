"""The commands of the notebook, in a project folder, a folder below it, and outside any."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from microtome.cli import notebook, pace
from microtome.errors import LabError
from microtome.lab import place

app = typer.Typer()
app.add_typer(notebook.app)  # as `microtome lab` has them: side by side
app.add_typer(pace.app)


@pytest.fixture
def project(tmp_path, monkeypatch):
    place.init(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    return tmp_path


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, LabError) and code:
        return str(done.exception)
    assert done.exception is None and done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_a_day_with_the_notebook(project):
    run(
        "stage",
        "exploration",
        "--answer",
        "entering exploration, problem=names",
        "--answer",
        "entering exploration, replicates=not yet",
    )
    shown = run("stage")
    assert "stage: exploration" in shown and "answered not yet: entering exploration, replicates" in shown
    run("note", "odd", "--tried", "lens", "--observed", "it flips", "--run", "17")
    assert run("did", "reading", "papers", "--minutes", "301").strip().startswith("notebook/log/")
    found = json.loads(run("timers", "--project", "timed", "--json"))
    assert {"enough-reading", "zoom-out", "learned-anything"} <= {t["name"] for t in found}
    assert "at most 5 h (guide, M26)" in run("timers", "--project", "timed")
    assert "enough-reading" not in {t["name"] for t in json.loads(run("timers", "--json"))}  # a mini-project
    run("highlight", "it flips in L9", "--text", "twice")
    run("question", "why L9?")
    run("question", "why L9?", "--answer", "rotary")
    run("goals", "north star", "know who moves names")
    assert "know who moves names" in run("goals")
    run("plan", "patch", "--hours", "2")
    run("plan", "patch", "--took", "3")
    assert json.loads(run("plan", "--json")) == [{"text": "patch", "hours": 2.0, "took": 3.0}]
    run("belief", "L9H6 copies", "0.7")
    run("belief", "L9H6 copies", "0.2", "--experiment", "a null")
    assert "0.7 -> 0.2" in run("belief")
    run("decide", "drop it", "--why", "no null beaten", "--alternative", "more data")
    run("decide", "drop it", "--outcome", "good", "--because", "luck")
    assert "0 decisions" in run("decide", "drop", "--outcome", "x", "--because", "luck", code=1)
    audit = json.loads(run("audit", "--json"))
    assert audit["highlights"] == 1 and audit["total"] > 5 and audit["kinds"]["reading"] > 5
    review = json.loads(run("review", "--json"))
    file = project / "notebook" / review["path"]
    text = file.read_text(encoding="utf-8").replace("## Goal\n", "## Goal\n\nmine\n")
    file.write_text(text, encoding="utf-8")
    run("note", "more")
    run("review")
    assert "mine" in file.read_text(encoding="utf-8")
    run("postmortem", "Names")
    run("did", "project-begin", "full")
    assert "time-is-up" not in run("timers") and "change-approach" not in run("timers")
    pages = json.loads(run("index", "--json"))
    kinds = {
        "log",
        "stage",
        "highlights",
        "questions",
        "goals",
        "plan",
        "belief",
        "decision",
        "review",
        "post-mortem",
    }
    assert {p["kind"] for p in pages} == kinds and not any(p["problems"] for p in pages)
    assert "notebook" in os.listdir(project) and not os.listdir(project / "deep" / "er")


def test_ratings_stay_private_on_the_command_line(project, monkeypatch):
    run("idea", "gender", "--answer", "success=a direction")
    run("rate", "gender", "7", "--by", "Ada", "--why", "cheap-and-quick")
    refused = run("reveal", "gender", "--by", "Bo", code=1)
    assert "Bo has not rated" in refused and "7" not in refused and "cheap" not in refused
    assert "cheap" not in run("index") + run("index", "--json")
    run("rate", "gender", "2", "--by", "Bo")
    assert "worth a talk: gender: 2 by you, 7 by Ada" in run("reveal", "gender", "--by", "Bo")
    assert json.loads(run("reveal", "gender", "--by", "Bo", "--json"))["ratings"][1]["rating"] == 7
    monkeypatch.setenv("MICROTOME_PERSON", "Cy")  # without --by it is who the record says
    run("rate", "gender", "4")
    assert "Cy" in run("reveal", "gender")


def test_a_long_experiment_is_let_through_with_alternatives_or_a_recorded_reason(project):
    assert "0 alternatives" in run("gate", "45", "all heads", code=1)
    assert not (project / "notebook").exists()
    run("gate", "45", "all heads", "--reason", "the paper's setting")
    run("gate", "45", "all heads", "--alternative", "one layer", "--alternative", "8 prompts")
    (log,) = (project / "notebook" / "log").iterdir()
    text = log.read_text(encoding="utf-8")
    assert (
        "- overridden because: the paper's setting" in text and "- alternatives: one layer; 8 prompts" in text
    )
    (project / "notebook" / "limits.yaml").write_text("long_experiment: 1 h\n")
    run("gate", "60", "all heads")
    assert "changed from 30 min" in run("timers", "--limits")


def test_escapes_in_what_is_shown(project):
    run("goals", "objective", "a\x1b[31m<script>\nb")
    assert "\x1b" not in run("goals") and "a\\x1b[31m<script> b" in run("goals")


def test_outside_a_project_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no project in" in run("note", "x", code=1)
    place.init(tmp_path / "p")
    (tmp_path / "p" / "notebook").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "p")
    assert "leads out of the project" in run("note", "x", code=1)
    assert sorted(os.listdir(tmp_path)) == ["p"]


def test_bad_words_are_refused(project):
    assert "names no question" in run("idea", "x", "--answer", "success", code=1)
    assert "without a confidence" in run("belief", "x", code=1)
    assert "did you mean 'reading'" in run("did", "readin", code=1)
    assert "no stage called" in run("stage", "thinking", code=1)
    assert not (project / "notebook").exists()


def test_the_commands_start_light():
    code = "import sys, microtome.cli.notebook, microtome.cli.pace; print([m for m in ('torch', 'pandas', 'numpy', 'plotly', 'sqlalchemy', 'alembic', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
