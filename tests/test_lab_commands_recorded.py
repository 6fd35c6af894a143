"""Commands that measure something are recorded in a project folder, nowhere else, and never stopped by a record that fails."""

from __future__ import annotations

import json

import pytest

import cli_toys
import microtome as mt
from cli_toys import run
from cli_words import FAST, Words
from lab_tools import opened, project, runs, sqlite
from microtome.cli import inputs
from microtome.errors import LabError
from microtome.lab.predicting import predictions
from microtome.lab.questions import Question
from microtome.lab.reading import Record
from microtome.lab.study import study

CSV = "clean,corrupt,answer,wrong\na b,a c, x, y\n"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)


@pytest.fixture
def toys(monkeypatch):
    return cli_toys.install(monkeypatch)


@pytest.fixture
def place(fast_path, monkeypatch):
    made = project(fast_path)
    (fast_path / "below").mkdir()
    monkeypatch.chdir(fast_path / "below")
    return made


def test_a_dissection_in_a_project_is_recorded_with_its_stages_and_its_report(toys, place):
    done = run("dissect", "ioi", "--out", "o")
    assert done.exit_code == 0 and "record: run 1   (microtome lab show 1)" in done.stdout
    first, *stages = runs(place)
    assert (first.method, first.title, first.person, first.state) == (
        "toy_dissect",
        "dissect ioi",
        "ada",
        "finished",
    )
    assert [s.parent for s in stages] == [1, 1]
    record = Record(place)
    (report,) = record.files_of(1, "report")
    assert report.name == "report.html" and record.files.get(report.key) == b"<html></html>"
    assert record.result(1) == mt.open(place.folder / "below" / "o" / "result")
    told = json.loads(run("dissect", "ioi", "--json", "--out", "o2").stdout)
    assert told["run"] == 4 and [s.title for s in record.studies()] == ["dissect ioi"]
    assert record.studies()[0].closed_at and record.studies()[0].runs == 2
    run("dissect", "induction", "--out", "o3")
    assert [s.title for s in record.studies()] == ["dissect ioi", "dissect induction"]


def test_outside_a_project_nothing_is_recorded_nor_said_of_it(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_CEILING", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    done = run("dissect", "ioi", "--out", "o", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["run"] is None and "record" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]
    assert "record:" not in run("dissect", "ioi", "--out", "o2").stdout


@pytest.mark.parametrize("then", ["refuse", "crash", "interrupt"])
def test_what_breaks_off_is_recorded_as_it_ended_with_the_stages_that_were_done(toys, place, then):
    toys.then = then
    if then == "crash":
        with pytest.raises(ZeroDivisionError):
            run("dissect", "ioi", "--out", "o")
    else:
        assert run("dissect", "ioi", "--out", "o").exit_code == (130 if then == "interrupt" else 1)
    first, stage = runs(place)
    assert first.state == ("interrupted" if then == "interrupt" else "failed") and stage.state == "finished"
    assert Record(place).studies()[0].closed_at
    toys.then = ""
    assert run("dissect", "ioi", "--out", "o2").exit_code == 0 and len(runs(place)) == 5


def damage_settings(place):
    (place.home / "lab.toml").write_text("name = ", encoding="utf-8")


def newer(place):
    with opened(place):
        pass
    with sqlite(place) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def damaged(place):
    place.database.write_bytes(bytes(range(256)) * 40)


def no_files(place):
    place.files.write_text("a file where the folder should be", encoding="utf-8")


FAULTS = {"settings": damage_settings, "newer": newer, "damaged": damaged, "no room for files": no_files}


@pytest.mark.filterwarnings("default::microtome.results.ObserverWarning")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_record_that_cannot_be_written_does_not_stop_a_measurement(toys, place, fault):
    FAULTS[fault](place)
    for more in ((), ("--json",)):
        done = run("dissect", "ioi", "--out", f"o{len(more)}", *more)
        assert done.exit_code == 0, done.stderr
        assert "not recorded: " in done.stderr and "Traceback" not in done.stderr
        assert mt.open(place.folder / "below" / f"o{len(more)}" / "result").kind == "toy_dissect"
        if more:
            assert json.loads(done.stdout)["run"] is None


def test_names_that_no_study_can_have_do_not_stop_a_measurement(toys, place):
    for number, name in enumerate(("half \udc80", "evil\x1b[31m")):
        path = place.folder / "below" / f"{name}.csv"
        path.write_text(CSV, encoding="utf-8")
        done = run("dissect", path, "--out", f"o{number}")
        assert done.exit_code == 0, done.stderr
        assert ("not recorded: " in done.stderr and "\\udc80" in done.stderr) == (number == 0)
    assert runs(place)[0].title == "dissect evil\x1b[31m"
    assert "\x1b" not in run("lab", "runs").stdout + run("lab", "show", "1").stdout


def test_a_person_who_is_an_agent_here_is_not_recorded_as_a_person(toys, place):
    with study("x", folder=place.folder, person="ada", agent=True):
        pass
    done = run("dissect", "ioi", "--out", "o")
    assert done.exit_code == 0 and "ada is an agent in this record" in done.stderr and runs(place) == ()


def test_what_a_command_shows_decides_a_prediction_and_makes_the_next_post_hoc(toys, place):
    from microtome.lab.expecting import expect

    one = study("mine", folder=place.folder)
    about = Question(method="toy_stage", sites=("L1H2.z",))
    first = one.predict("it hurts", 0.9, about, expect("effects", site="L1H2.z@-1", high=-2.0))
    assert not first.post_hoc
    run("dissect", "ioi", "--out", "o")
    (decided,) = predictions(one.database)
    assert (decided.state, decided.run) == ("true", 2)
    assert one.predict("again", 0.9, about, expect("effects", site="L1H2.z@-1", high=-2.0)).post_hoc


@pytest.mark.parametrize("command", ["ask", "heads", "probe"])
def test_other_commands_are_recorded_too_in_a_study_of_their_name(monkeypatch, place, command):
    words = Words(monkeypatch, place.folder / "below")
    assert command in FAST
    told = json.loads(run(*words.ready(command), "--json", "--out", "o").stdout)
    top = [r for r in runs(place) if r.parent is None]
    assert [r.number for r in top if r.method != "look"] == [told["run"]]
    row = next(r for r in top if r.number == told["run"])
    assert row.title.startswith(command) and row.state == "finished" and row.model
    assert Record(place).result(row.number) == mt.open(place.folder / "below" / "o" / "result")
    assert [f.name for f in Record(place).files_of(row.number, "report")] == ["report.html"]


def test_a_certificate_is_kept_with_its_model_and_makes_no_prediction_post_hoc(monkeypatch, place):
    import worded
    from planted import one_head

    model = worded.with_words(one_head())
    monkeypatch.setattr(inputs, "load", lambda *_: model)
    done = run("models", "check", "toy", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1 and not told["passed"], (
        done.stderr
    )  # writes to what is nothing change nothing in this model
    (row,) = runs(place)
    assert (row.method, row.state, row.model, row.result, row.verdict) == (
        "certificate",
        "finished",
        model.hash,
        None,
        None,
    )
    assert Record(place).certificate(model.hash)["checks"] == told["checks"]
    one = study("mine", folder=place.folder)
    asked = Question(model=model.hash, model_name=model.name, family="ioi", sites=("L1H2.z",))
    assert not one.predict("it hurts", 0.9, asked).post_hoc
    assert "certificate" in run("lab", "runs").stdout and run("lab", "show", "1").exit_code == 0
    assert "run 1 has no result" in run("lab", "show", "1", "--out", "x").stderr
    assert run("lab", "rerun", "1").exit_code == 1


# ------------------------------------------------------------------------------------------------ attached


def test_a_file_is_kept_with_the_last_run_and_replaces_the_one_of_its_name(lab, tmp_path):
    from lab_tools import Model, leaf, sound, tree

    report = tmp_path / "report.HTML"
    report.write_text("one", encoding="utf-8")
    with opened(lab) as one:
        assert one.last is None and one.attach(report) is None
        leaf(Model())
        tree(Model())
        assert one.last == 2 and one.attach(report) == 2
        report.write_text("two", encoding="utf-8")
        assert one.attach(report) == 2
        assert one.attach(report, role="figure") == 2
        with pytest.raises(LabError, match="cannot be read"):
            one.attach(tmp_path / "gone")
    for name in ("half \udc80.html", "odd.a b", "long." + "x" * 90, "none"):
        path = tmp_path / name
        path.write_text(name.encode("utf-8", "replace").decode(), encoding="utf-8")
        assert one.attach(path) == 2  # after it was closed too
    record = Record(lab)
    found = {f.name: f for f in record.files_of(2, "report")}
    assert set(found) == {"report.HTML", "half \\udc80.html", "odd.a b", "long." + "x" * 90, "none"}
    assert record.files.get(found["report.HTML"].key) == b"two" and found["report.HTML"].key.endswith(".html")
    assert sound(lab) >= {f.key for f in found.values()}
    record.close()
    one.database.close()


def test_a_title_is_the_commands_words_and_its_first_argument(toys, place, monkeypatch):
    from microtome.cli import recorded

    titles = []
    monkeypatch.setattr(recorded, "_opened", lambda: titles.append(recorded.title()))
    run("dissect", "ioi", "--out", "o1")
    (place.folder / "mine.csv").write_text(CSV, encoding="utf-8")
    run("dissect", "../mine.csv", "--out", "o2")
    run("dissect", "--clean", "a", "--corrupt", "b", "--answer", "c", "--wrong", "d", "--out", "o3")
    assert titles == ["dissect ioi", "dissect mine", "dissect"] and recorded.title() == "command line"
