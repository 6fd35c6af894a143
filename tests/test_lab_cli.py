"""`microtome lab`: what each command says to a person and to a program, and what it does with bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import typer
from sqlalchemy import insert, update

import microtome as mt
from cli_toys import run
from lab_tools import opened, project, sqlite
from measured import SITES, Model, Task, during, measure, stages
from microtome.cli.main import app
from microtome.lab import place as places
from microtome.lab import schema
from microtome.lab.expecting import expect
from microtome.lab.files import Files
from microtome.lab.place import CEILING, URL
from microtome.lab.questions import Question
from microtome.lab.reading import Record, Wanted
from microtome.results import emit_look

EVIL = "red \x1b[31m\u202e<script>alert(1)</script> & \x07 [bold]x[/]"
ABOUT = Question(method="toy_effects", family="ioi", sites=("L9H6.z",))


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv(URL, raising=False)


@pytest.fixture
def place(fast_path, monkeypatch):
    """A project in which something happened; its folder is the current one."""
    made = project(fast_path)
    with opened(made, EVIL) as one:
        one.predict(EVIL, 0.8, ABOUT, expect("effects", site="L9H6.z", high=0.0))
        measure(Model(EVIL), Task())
        measure(Model(EVIL), Task(), size=np.full((3, 4), 0.25), by="zero")
        stages(Model(EVIL), Task("sva", "1111" * 8))
        emit_look(Model(EVIL), ["w4"], ["L0.z"])
        emit_look(Model(EVIL), ["w4"], ["L0.z"])
        with pytest.raises(ValueError, match="script"):
            measure(Model(EVIL), Task(), fail=EVIL)
        one.predict("judged\nby hand", 0.4, ABOUT)
    monkeypatch.chdir(fast_path)
    return made


def told(*words, code=0):
    """What a program reads: JSON on stdout, and nothing else."""
    done = run(*words, "--json")
    assert done.exit_code == code, (done.stdout, done.stderr)
    assert done.stdout.isascii()
    return json.loads(done.stdout)


def said(*words, code=0):
    """What a person reads; nothing in it moves a cursor or colours a terminal."""
    done = run(*words)
    assert done.exit_code == code, (done.stdout, done.stderr)
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]*", done.stdout + done.stderr)
    return done.stdout


def refused(*words, code=1):
    """The three lines of a refusal, or the one of a wrong option."""
    for more in ((), ("--json",)):
        done = run(*words, *more)
        assert done.exit_code == code and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
        assert "\x1b[31m" not in done.stderr and "\x07" not in done.stderr
        if code == 1:
            assert all(line in done.stderr for line in ("error: ", "why: ", "instead: "))
    return done.stderr


def leaves(command, path=()):
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


LAB = dict(leaves(typer.main.get_command(app).commands["lab"], ("lab",)))


# ------------------------------------------------------------------------------------------------- init


def test_init_makes_a_project_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said("lab", "init").startswith(f"project: {tmp_path}")
    assert said("lab", "init").startswith("a project already")
    made = told("lab", "init", str(tmp_path / "deep" / "er"), "--name", EVIL)
    assert made["folder"] == str(tmp_path / "deep" / "er") and made["record"].endswith("lab.db")
    assert places.here(tmp_path / "deep" / "er").name == EVIL
    assert told("lab", "runs") == [] and "nothing ran yet" in said("lab", "runs")


def test_init_refuses_passwords_other_databases_and_a_server_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "secret" not in refused("lab", "init", "--url", "postgresql://a:secret@h/x")
    assert "PostgreSQL and SQLite" in refused("lab", "init", "--url", "mysql://h/x")
    assert not (tmp_path / ".microtome").exists()
    assert "does not answer" in refused("lab", "init", "--url", "postgresql://nobody@127.0.0.1:1/x")


GIVEN = {
    ("predict", "new"): ["x", "0.5", "--task", "ioi"], ("predict", "resolve"): ["1", "true", "--reason", "x"], ("predict", "list"): [],
    ("claim", "new"): ["x", "--alternative", "y", "--falsifier", "z"], ("sql",): ["SELECT 1"], ("did",): ["reading", "x"],
    ("decide",): ["x", "--why", "y"], ("goals",): ["objective", "x"], ("plan",): ["x", "--hours", "2"], ("stage",): ["exploration"],
    ("gate",): ["40", "x"], ("rate",): ["x", "5", "--by", "ada"], ("reveal",): ["x", "--by", "ada"], ("belief",): ["x", "0.5"], ("claim", "withdraw"): ["1", "--why", "x"],
}  # fmt: skip


def _arguments(words):
    return sum(
        p.param_type_name == "argument" and (p.required or p.metavar == "SQL") for p in LAB[words].params
    )


@pytest.mark.parametrize(
    "words", [p for p in LAB if p[1] not in ("init", "report", "reproduce")], ids=" ".join
)
def test_outside_a_project_every_command_says_how_to_make_one(words, tmp_path, monkeypatch):
    monkeypatch.setenv(CEILING, str(tmp_path))
    (tmp_path / "x").mkdir()
    monkeypatch.chdir(tmp_path / "x")
    done = run(*words, *GIVEN.get(words[1:], ["1"] * _arguments(words)), "--json")
    assert done.exit_code == 1 and done.stdout == "", done.stderr
    assert "no project" in done.stderr and "microtome lab init" in done.stderr
    assert list((tmp_path / "x").iterdir()) == []


def test_every_command_speaks_json():
    assert len(LAB) > 25
    for words, command in LAB.items():
        assert any("--json" in p.opts for p in command.params), words
        assert command.help, words


# ------------------------------------------------------------------------------------------------- runs


def test_runs_are_listed_newest_first_and_chosen(place):
    rows = told("lab", "runs")
    assert [r["method"] for r in rows] == ["toy_effects", "look", "toy_stages", "toy_effects", "toy_effects"]
    assert [r["state"] for r in rows] == ["failed", *["finished"] * 4] and rows[1]["times"] == 2
    assert rows[-1]["model_name"] == EVIL and rows[2]["children"] == 1 and rows[0]["stale"] == []
    assert len(told("lab", "runs", "--nested")) == 6
    for words, numbers in (
        (("--state", "failed"), [6]), (("--method", "look"), [5]), (("--task", "sva"), [3]), (("--study", "1"), [6, 5, 3, 2, 1]),
        (("--study", EVIL), [6, 5, 3, 2, 1]), (("--model", EVIL), [6, 5, 3, 2, 1]), (("--model", "abcdabcdab"), [6, 5, 3, 2, 1]),
        (("--model", "abcdabcd9"), []), (("--person", "bob"), []), (("--below", "3"), [4]), (("--before", "3"), [2, 1]),
        (("-n", "1"), [6]), (("--verdict", told("lab", "show", "1")["verdict"]), [2, 1]),
    ):  # fmt: skip
        found = [r["number"] for r in told("lab", "runs", *words)]
        assert found == numbers or (words[0] == "--verdict" and set(numbers) <= set(found)), words
    shown = said("lab", "runs", "-n", "2")
    assert "more: microtome lab runs --before 5" in shown and "look x2" in shown and "\\x1b[31m" in shown
    assert "red" in refused("lab", "runs", "--study", "red") and "--state" in refused(
        "lab", "runs", "--state", "done", code=2
    )
    refused("lab", "runs", "--before", "99999999999999999999", code=2)


def test_a_run_that_was_cut_off_is_listed_as_interrupted_before_anybody_settles_it(place):
    with opened(place):
        during(lambda: shutil.copytree(place.home, place.folder / "copy" / ".microtome"), Model(), Task())
    copy = place.folder / "copy"
    lost = [r["number"] for r in told("lab", "runs", "--folder", str(copy), "--state", "running")]
    assert lost == [8] or lost == [7]  # its process lives: it runs
    with sqlite(places.here(copy)) as connection:
        connection.execute("UPDATE process SET pid = 999999999")
    assert told("lab", "runs", "--folder", str(copy), "--state", "running") == []
    (row,) = told("lab", "runs", "--folder", str(copy), "--state", "interrupted")
    assert row["number"] == lost[0] and "killed" in row["error"]
    assert "interrupted" in said("lab", "show", str(lost[0]), "--folder", str(copy))


def test_rows_say_what_they_are_and_no_escape_gets_through(place):
    record = Record(place)
    shown = repr(record.runs())
    assert "<Run 2: toy_effects on ioi in " in shown and "<Run 5: look" in shown
    assert "\x1b" not in shown and "\\x1b[31m" in shown
    with opened(place, "words") as one:
        made = one.claim(EVIL, about=ABOUT, evidence=[2], alternatives=["x"], falsifiers=["y"])
    assert (
        repr(made).startswith("<Claim 1: ")
        and "not higher: run 2: " in repr(made)
        and made.rung.name in repr(made.rung)
    )
    assert "\x1b" not in repr(made) + repr(made.rung)
    record.close()


def test_show_tells_all_of_one_run_and_writes_its_result(place):
    row = told("lab", "show", "2")
    assert (row["number"], row["stale"], row["children"]) == (2, [], [])
    assert row["sites"] == sorted(SITES) and [c["name"] for c in row["controls"]] == ["identity"]
    assert {f["role"] for f in row["files"]} == {"argument", "result"}
    assert told("lab", "show", row["id"][:9])["number"] == 2
    with Record(place).database.writing() as connection:  # an id may begin with nothing but decimals
        connection.execute(update(schema.run).where(schema.run.c.number == 4).values(id="12345678" + "a" * 8))
    assert told("lab", "show", "12345678")["number"] == 4 == told("lab", "show", "4")["number"]
    assert "no run 12345" in refused("lab", "show", "12345")
    look = said("lab", "show", "5")
    assert "sites        L0.z" in look and 'prompts      "w4"' in look and "parameters" not in look
    assert (
        told("lab", "show", "5")["looked_at"]["prompts"] == ["w4"]
        and told("lab", "show", "2")["looked_at"] == {}
    )
    record = Record(place)
    record.files.path(record.run(5).arguments).unlink()
    record.close()
    assert "sites        L0.z" in said("lab", "show", "5") and "prompts" in said("lab", "show", "5")
    assert told("lab", "show", "1")["predictions"] == [1] and told("lab", "show", "2")["predictions"] == []
    assert "decided" in said("lab", "show", "1") and "prediction 1" in said("lab", "show", "1")
    assert told("lab", "show", "3")["children"] == [4]
    shown = said("lab", "show", "3")
    assert "Runs that it called" in shown and "\\x1b[31m" in shown and "certificate: none asked for" in shown
    assert "identity" in said("lab", "show", "2") and "ValueError: red \\x1b" in said("lab", "show", "6")
    assert "mt.open" in said("lab", "show", "2", "--out", str(place.folder / "kept"))
    assert mt.open(place.folder / "kept") == Record(place).result(2)
    refused("lab", "show", "2", "--out", str(place.folder / "kept"))
    for which in ("99", "", "²", "zzzz", "-1", "1; DROP TABLE run", "%", "_" * 16, "9" * 30):
        words = ("lab", "show", "--", which)
        done = run(*words)
        assert done.exit_code == 1 and "no run" in done.stderr, which


def test_compare_says_what_differs(place):
    found = told("lab", "compare", "1", "2")
    assert (
        {d["name"] for d in found["asked"]} == {"size", "by"}
        and len(found["cells"]) == 3
        and not found["same"]
    )
    assert all(c["flipped"] and c["first"] < 0 < c["second"] for c in found["cells"])
    shown = said("lab", "compare", "1", "2")
    assert "L9H6.z" in shown and "3 changed sign" in shown and "nan" not in shown.lower()
    with opened(place):
        measure(Model(EVIL), Task())
        for _ in range(2):
            measure(Model(EVIL), Task(), size=np.full((3, 4), np.nan))
    assert "every number is the same, to the bit" in said("lab", "compare", "1", "7")
    assert "both asked the same" in said("lab", "compare", "1", "7")
    assert "no cell is measured in both" in said("lab", "compare", "1", "8")
    assert told("lab", "compare", "8", "9")["same"]
    assert "no prompt has a partner" in said("lab", "compare", "1", "4")
    assert "compared with itself" in refused("lab", "compare", "1", "1")
    assert "raw look" in refused("lab", "compare", "1", "5") and "failed" in refused(
        "lab", "compare", "6", "1"
    )


def test_rerun_of_what_cannot_be_run_again_says_why(place):
    assert "measured.Model: values of this type have no written form" in refused(
        "lab", "rerun", "1"
    ) and "a look" in refused("lab", "rerun", "5")
    assert "no run 50" in refused("lab", "rerun", "50")
    assert len(told("lab", "runs", "--nested")) == 6


def test_the_log_has_everything_in_its_order(place):
    rows = told("lab", "log")
    kinds = [r["kind"] for r in rows]
    assert (
        kinds[0] == "prediction"
        and kinds.count("run") == 4
        and kinds.count("look") == 1
        and kinds[-1] == "prediction"
    )
    assert "came out true" in kinds and [r["at"] for r in rows] == sorted(r["at"] for r in rows)
    assert len(told("lab", "log", "-n", "2")) == 2 and told("lab", "log", "-n", "2") == rows[-2:]
    shown = said("lab", "log")
    assert "judged, with 0.4" not in shown and "\\x1b[31m" in shown  # one line of each
    with Record(place).database.writing() as connection:
        for table in (schema.run.c.begun_at, schema.prediction.c.made_at, schema.prediction.c.resolved_at):
            connection.execute(update(table.table).values({table.name: 1.0}))
    assert told("lab", "log", "--days", "1") == [] and "nothing in the last" in said(
        "lab", "log", "--days", "1"
    )


# ------------------------------------------------------------------------------------------ predictions


def test_predictions_are_made_listed_resolved_and_scored(place):
    words = ("lab", "predict", "new", EVIL, "0.7", "--method", "ablation", "--task", "greater_than", "--sites", "L9H6.z",
             "--field", "effects", "--site", "L9H6.z", "--position", "-1", "--high", "-0.3")  # fmt: skip
    made = told(*words)
    assert (made["number"], made["state"], made["kind"], made["probability"]) == (3, "open", "computed", 0.7)
    assert made["holds"]["position"] == -1 and made["about"]["family"] == "greater_than"
    assert "decided by ablation with greater_than at L9H6.z: effects of site L9H6.z" in said(*words)
    assert "post hoc, and scored apart: run 1" in said(
        "lab", "predict", "new", "seen", "0.7", "--task", "ioi"
    )
    assert [p["number"] for p in told("lab", "predict", "list", "--state", "open")] == [2, 3, 4, 5]
    shown = said("lab", "predict", "list")
    assert "\\x1b[31m" in shown and "run 1" in shown
    assert told("lab", "predict", "resolve", "2", "FALSE", "--reason", EVIL)["state"] == "false"
    assert "is void: a defect" in said("lab", "predict", "resolve", "3", "void", "--reason", "a defect")
    scores = told("lab", "predict", "score", "--out", str(place.folder / "curves"))
    assert {(s["person"], s["kind"], s["n"]) for s in scores} == {
        ("ada", "computed", 1),
        ("ada", "judged, post hoc", 1),
    }
    assert scores[0]["brier"] == pytest.approx(0.04)
    drawn = sorted(p.name for p in (place.folder / "curves").iterdir())
    assert len(drawn) == 2 and all(p.endswith(".svg") for p in drawn)
    assert "ada, computed: 1 forecast" in said("lab", "predict", "score")
    assert told("lab", "predict", "list", "--person", "nobody") == []


def test_two_people_whose_names_make_one_file_name_have_two_curves(place):
    for who in ("a b", "a-b"):
        with opened(place, "x", person=who) as one:
            one.resolve(one.predict("x", 0.5, ABOUT).number, True, reason="x")
    told("lab", "predict", "score", "--out", str(place.folder / "curves"))
    assert sorted(p.name for p in (place.folder / "curves").glob("a-b*")) == ["a-b-judged-post-hoc.2.svg", "a-b-judged-post-hoc.svg"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said_"),
    [
        (("x", "0"), "0 and 1 cannot be wrong"), (("x", "1"), "0 and 1 cannot be wrong"), (("x", "likely"), "words are not scored"),
        (("x", "nan"), "between 0 and 1"), (("x", "70"), "0.7 for 70 %"), (("x", "0,7"), "words are not scored"), (("", "0.5"), "nobody could tell"),
        (("x", "0.5", "--method", "ablatoin"), "ablation"), (("x", "0.5", "--sites", "L9H6.zz"), "zz"),
        (("x", "0.5", "--field", "effect", "--low", "0"), "effects"), (("x", "0.5", "--field", "effects", "--low", "inf"), "low is inf"),
        (("x", "0.5", "--field", "effects", "--site", "L9H6.z"), "nothing to compare with"), (("x", "0.5", "--claim", "7"), "claim 7 is not"),
        (("x", "0.5", "--field", "verdict", "--equals", "suported"), "supported"), (("x\0", "0.5"), "no database keeps"),
    ],
)  # fmt: skip
def test_a_prediction_that_could_not_be_scored_is_refused(place, words, said_):
    about = () if "--method" in words else ("--task", "ioi")
    assert said_ in refused("lab", "predict", "new", *words, *about)
    assert len(told("lab", "predict", "list")) == 2


def test_other_slips_of_predictions(place):
    refused("lab", "predict", "new", "x", "0.5")  # about nothing
    assert "--field" in refused("lab", "predict", "new", "x", "0.5", "--task", "ioi", "--low", "3", code=2)
    for position in ("--5", "²", "subject"):  # names of spans
        made = told(
            "lab",
            "predict",
            "new",
            "x",
            "0.5",
            "--task",
            "ioi",
            "--field",
            "effects",
            f"--position={position}",
            "--low",
            "0",
        )
        assert made["holds"]["position"] == position
    assert "say true, false or void" in refused(
        "lab", "predict", "resolve", "2", "yes", "--reason", "x", code=2
    )
    assert "no reason" in refused("lab", "predict", "resolve", "2", "true", "--reason", " ")
    assert "no prediction 77" in refused("lab", "predict", "resolve", "77", "true", "--reason", "x")
    refused("lab", "predict", "resolve", "9" * 20, "true", "--reason", "x", code=2)
    assert "is true already" in refused("lab", "predict", "resolve", "1", "false", "--reason", "x")
    assert "--state" in refused("lab", "predict", "list", "--state", "undecided", code=2)


def test_without_outcomes_there_is_nothing_to_score(fast_path):
    with opened(project(fast_path)):
        pass
    assert told("lab", "predict", "score", "--folder", str(fast_path)) == []
    assert "no prediction has an outcome yet" in said("lab", "predict", "score", "--folder", str(fast_path))
    assert "no such prediction" in said("lab", "predict", "list", "--folder", str(fast_path))


# -------------------------------------------------------------------------------------------- bad records

READERS = [("lab", "runs"), ("lab", "show", "1"), ("lab", "compare", "1", "2"), ("lab", "log"), ("lab", "predict", "list"),
           ("lab", "predict", "score"), ("lab", "claim", "list"), ("lab", "rerun", "1"), ("lab", "sql", "SELECT 1"),
           ("lab", "predict", "new", "x", "0.5", "--task", "ioi")]  # fmt: skip


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_a_newer_and_a_damaged_record_are_refused_and_stay_as_they_are(place, words):
    with sqlite(place) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    assert "newer version (schema 9999)" in refused(*words) and "upgrade microtome" in refused(*words)
    content = bytes(range(256)) * 60
    for path in place.home.glob("lab.db*"):
        path.unlink()
    place.database.write_bytes(content)
    assert "lab doctor" in refused(*words)
    assert place.database.read_bytes() == content


def test_sql_that_writes_is_refused(place):
    for sql in ("DELETE FROM run", "UPDATE prediction SET probability = 0.99", "DROP TABLE run", "SELECT 1; DELETE FROM run", "ATTACH '/tmp/x.db' AS x"):  # fmt: skip
        refused("lab", "sql", sql)
    assert told("lab", "sql", "SELECT count(*) AS n FROM run")["rows"] == [[6]]


def test_keys_of_files_that_lead_out_of_the_project_are_not_read(place):
    with Record(place).database.writing() as connection:
        connection.execute(update(schema.run_file).where(schema.run_file.c.role == "result").values(key="../../../../etc/passwd"))  # fmt: skip
        connection.execute(
            insert(schema.run_file),
            {"run": 5, "role": "report", "name": "../../x", "key": "0" * 32, "bytes": 1},
        )
        connection.execute(
            insert(schema.run_file),
            {
                "run": 2,
                "role": "figure",
                "name": "../../evil.svg",
                "key": Files(place.files).put(b"<svg/>", ".svg"),
                "bytes": 6,
            },
        )
    told("lab", "show", "2", "--figures", str(place.folder / "a" / "b" / "c"))
    assert [str(p.relative_to(place.folder)) for p in place.folder.rglob("*evil*")] == ["a/b/c/evil.svg"]
    assert "is no key of a file" in refused("lab", "show", "1", "--out", str(place.folder / "out"))
    assert "is no key of a file" in refused("lab", "compare", "1", "2")
    assert not (place.folder / "out").exists()


# ------------------------------------------------------------------------------------------------ imports

LIGHT = """
import sys
from microtome.cli.main import main
try:
    main()
finally:
    print([m for m in ("torch", "pandas", "alembic", "plotly", "transformers", "pyarrow", "scipy") if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("words", [("lab", "runs"), ("lab", "runs", "--json"), ("lab", "show", "1"), ("lab", "log"), ("lab", "predict", "list")], ids=" ".join)  # fmt: skip
def test_lists_import_nothing_heavy_also_where_runs_are_of_real_techniques_and_tasks(place, words):
    """Whether a run is out of date is asked of the code of its technique and the version of its task."""
    record = Record(place)
    with record.database.writing() as connection:
        connection.execute(
            update(schema.run)
            .where(schema.run.c.method == "toy_effects")
            .values(method="activation_patching", code="00" * 16)
        )
        connection.execute(insert(schema.material), {"hash": "77c0" * 8, "kind": "PairTask", "name": "ioi", "seen_at": 1.0, "recipe": '{"task": "ioi", "version": "1"}'})  # fmt: skip
    assert len(record.runs(Wanted(method="activation_patching"), None)) == 3
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], cwd=place.folder, env=env, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert "stale" in done.stdout or words[1] in ("log", "predict")
