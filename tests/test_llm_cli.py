"""`microtome tutor` and `microtome quiz`, without an endpoint, with one, and at a terminal."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from fake_endpoint import chunk, completion, serving
from microtome.cli import learning, main
from microtome.lab.place import init
from microtome.llm import quiz
from microtome.llm.curriculum import curriculum
from microtome.llm.progress import read
from test_llm_exercises import GOOD, SOLUTION
from test_llm_learning import ROW, SOURCE, SUMMARY

KEY = "sk-planted-0123456789abcdef"
SCRIPT = (
    "import typer\nfrom microtome.cli import learning, main\n"
    "app = typer.Typer(cls=main._Guarded)\napp.command('quiz')(learning.quiz)\napp.command('tutor')(learning.tutor)\napp()\n"
)
ESCAPE = "\x1b[31mred\x07 <script>alert(1)</script>"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home without an endpoint, and a project in it that is the current folder."""
    for name in [n for n in os.environ if n.startswith(("MICROTOME_LLM_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    init(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def app():
    made = typer.Typer(cls=main._Guarded, rich_markup_mode=None)
    made.command("tutor")(learning.tutor)
    made.command("quiz")(learning.quiz)
    return made


def run(*arguments, code=0, stdin=""):
    done = CliRunner().invoke(app(), [str(a) for a in arguments], input=stdin)
    assert done.exit_code == code, done.output
    assert KEY not in done.output
    return done


def kept(home):
    return read(home / "notebook" / "learning.yaml")


def test_the_curriculum_is_shown_with_what_is_next_and_without_a_model(home):
    said = run("tutor").stdout
    assert "linear-algebra" in said and "next: microtome tutor linear-algebra" in said
    told = json.loads(run("tutor", "--json").stdout)
    assert len(told["topics"]) == len(curriculum().topics) and told["next"] == "linear-algebra"
    assert told["limits"] == {"days": 30, "hours": 200}
    said = run("tutor", "steering").stdout
    assert "to know: sweep the coefficient" in said
    assert json.loads(run("tutor", "steering", "--json").stdout)["state"] == "not begun"
    assert "did you mean 'steering'" in run("tutor", "stearing", code=1).stderr


def test_reading_is_kept_and_does_not_count(home):
    assert "does not count yet" in run("tutor", "compute", "--read", "30").stdout
    assert kept(home)[0].minutes == 30 and not kept(home)[0].passed
    assert "only read, which does not count: compute" in run("tutor").stdout


def test_a_quiz_is_printed_then_graded_kept_and_not_asked_again_today(home):
    told = json.loads(run("quiz", "transformer", "--json").stdout)
    assert len(told["items"]) == 5 and set(told["items"][0]) == {"id", "topic", "question", "options"}
    said = run("quiz", "transformer").stdout
    assert f"--answers {told['code']}:-----" in said
    right = {i.id: i.right for i in quiz.bank()}
    key = "".join(next(k for k, v in i["options"].items() if v == right[i["id"]]) for i in told["items"])
    graded = json.loads(
        run("quiz", "transformer", "--json", "--answers", f"{told['code']}:{key[:4]}-").stdout
    )
    assert (graded["right"], graded["n"], graded["passed"]) == (4, 5, True)
    assert graded["items"][4]["chosen"] is None and graded["items"][0]["because"]
    entry = kept(home)[0]
    assert (
        entry.passed
        and entry.topic == "transformer"
        and sorted(entry.answers) == sorted(i["id"] for i in told["items"])
    )
    again = run("quiz", "transformer", "--answers", f"{told['code']}:{key}", code=1).stderr
    assert "these questions are" in again, "the same answers are not held against other questions"
    left = json.loads(run("quiz", "transformer", "--json").stdout)
    assert len(left["items"]) == 1, "one of the six is new; nothing else is due today"
    run("quiz", "transformer", "--answers", "-", stdin=f"{left['code']}:a\n")
    assert "no question is due" in run("quiz", "transformer", code=1).stderr
    assert json.loads(run("tutor", "transformer", "--json").stdout)["state"] == "begun"


def test_the_seed_decides_what_is_asked_and_in_which_order():
    told = [run("quiz", "--json", "--seed", s).stdout for s in (1, 1, 2)]
    assert told[0] == told[1] != told[2]


def test_without_a_project_nothing_is_kept_and_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("quiz", "tokens", "-n", 2, "--answers", "ab")
    assert "not kept" in done.stderr and "not passed" in done.stdout
    assert list((tmp_path / "elsewhere").iterdir()) == []
    run("quiz", "tokens", "-n", 2, "--answers", "ab", "--progress", "mine.yaml")
    assert read(tmp_path / "elsewhere" / "mine.yaml")[0].kind == "quiz"


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        (["quiz", "tokens", "--answers", "abcz"], 1, "the answer 'z'"),
        (["quiz", "tokens", "--answers", "ab"], 1, "2 answers to 4 items"),
        (["quiz", "tokens", "--answers", "\x1b[31m:ab"], 1, "\\x1b[31m"),
        (["quiz", "nonsense"], 1, "no topic 'nonsense'"),
        (["quiz", "-n", "0"], 2, "-n"),
        (["quiz", "--offline", "--source", "x"], 2, "--offline"),
        (["quiz", "--prompt-to", "p", "--answer-from", "a"], 2, "name a topic or a --source"),
        (["quiz", "--file", "f"], 2, "there is no f yet"),
        (["quiz", "tokens", "--file", "f"], 1, "nobody is there"),
        (["quiz", "--source", "not-there.txt"], 1, "No such file"),
        (["tutor", "--say", "hello"], 2, "name a topic"),
        (["tutor", "--run"], 2, "name a topic"),
        (["tutor", "--prompt-to", "p", "--answer-from", "a"], 2, "name a topic"),
        (["tutor", "tokens", "--run"], 2, "--exercise FOLDER"),
        (["tutor", "tokens", "--prompt-to", "p", "--answer-from", "a"], 2, "files carry one question"),
        (["tutor", "tokens", "--say", "a", "--read", "3"], 2, "only one"),
        (["tutor", "tokens", "--read", "100000"], 1, "no time spent on one day"),
        (["tutor", "tokens", "--say", "hello"], 1, "nobody is there to answer"),
        (["tutor", "tokens", "--say", "hello", "--prompt-to", "p"], 1, "one of two files"),
        (["tutor", "tokens", "--exercise", "e", "--run"], 1, "nobody is there"),
        (["tutor", "tokens", "--exercise", "."], 1, "is not empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(arguments, code, match):
    assert match in run(*arguments, code=code).stderr


def test_a_broken_progress_file_stops_everything_that_reads_it(home):
    (home / "notebook").mkdir()
    (home / "notebook" / "learning.yaml").write_text("- {date: soon}", encoding="utf-8")
    for arguments in (["tutor"], ["quiz"], ["tutor", "compute"]):
        assert "entry 1 is wrong" in run(*arguments, code=1).stderr


@pytest.fixture
def asked(monkeypatch):
    """Configure a server that answers in turn what the test gives it."""

    def use(server):
        monkeypatch.setenv("MICROTOME_LLM_URL", server.url)
        monkeypatch.setenv("MICROTOME_LLM_MODEL", "small")
        monkeypatch.setenv("MICROTOME_LLM_KEY", KEY)

    return use


def answering(*answers):
    def answer(h, n):
        text = answers[n - 1] if isinstance(answers[n - 1], str) else json.dumps(answers[n - 1])
        h.events(chunk(text), chunk(finish="stop")) if h.server.asked[-1]["body"].get("stream") else h.json(
            completion(text)
        )

    return serving(answer)


def test_the_tutor_answers_and_escapes_are_shown_as_text(asked):
    with answering(ESCAPE, ESCAPE) as server:
        asked(server)
        done = run("tutor", "tokens", "--say", "Why a space?")
        assert "\\x1b[31mred\\x07 <script>alert(1)</script>" in done.stdout and "\x1b" not in done.output
        assert f"asking small at 127.0.0.1:{server.server_port} (from the environment)" in done.stderr
        told = json.loads(run("tutor", "tokens", "--say", "Why?", "--json").stdout)
    assert told["reply"]["text"] == ESCAPE and told["reply"]["prompt_tokens"] == 7
    assert server.asked[0]["body"]["messages"][1]["content"] == "Why a space?"


def test_a_summary_is_criticised_and_kept(asked, home, tmp_path):
    (tmp_path / "source.txt").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "summary.txt").write_text(SUMMARY, encoding="utf-8")
    said = {
        "missing": [{"point": ESCAPE, "quote": "no other number can be trusted"}],
        "wrong": [],
        "well": ["rounding errors"],
    }
    with answering(said, said) as server:
        asked(server)
        arguments = [
            "tutor",
            "gotchas",
            "--source",
            tmp_path / "source.txt",
            "--summary",
            tmp_path / "summary.txt",
        ]
        done = run(*arguments)
        told = json.loads(run(*arguments, "--json").stdout)
    assert (
        "missing: \\x1b[31m" in done.stdout
        and "passed: 1 missing, 0 wrong" in done.stdout
        and "\x1b" not in done.output
    )
    assert told["passed"] and told["missing"][0]["quote"] == "no other number can be trusted"
    assert [(e.kind, e.passed) for e in kept(home)] == [("summary", True)] * 2
    text = (home / "notebook" / "learning.yaml").read_text(encoding="utf-8")
    assert KEY not in text and "\x1b" not in text


def test_a_models_quiz_is_printed_with_what_was_dropped(asked, tmp_path):
    (tmp_path / "source.txt").write_text(SOURCE, encoding="utf-8")
    rows = {
        "items": [{**ROW, "question": ROW["question"] + ESCAPE}, {**ROW, "quote": "This was made up by me."}]
    }
    with answering(rows, rows) as server:
        asked(server)
        done = run("quiz", "--source", tmp_path / "source.txt")
        assert (
            "1 question by small" in done.stderr and "1 dropped" in done.stderr and "\x1b" not in done.output
        )
        assert (
            "dropped: its quote is not in the source" in done.stderr
            and "What should the identity patch" in done.stdout
        )
        assert (
            "may ask something else"
            in run("quiz", "--source", tmp_path / "source.txt", "--answers", "a", code=1).stderr
        )
    assert len(server.asked) == 1


def test_a_models_quiz_is_kept_in_a_file_and_graded_from_it(asked, home, monkeypatch):
    (home / "source.txt").write_text(SOURCE, encoding="utf-8")
    with answering({"items": [ROW]}) as server:
        asked(server)
        arguments = ["quiz", "--source", "source.txt", "--file", "made.json", "--json"]
        first = json.loads(run(*arguments).stdout)
    monkeypatch.delenv("MICROTOME_LLM_URL")
    monkeypatch.delenv("MICROTOME_LLM_KEY")
    assert json.loads(run("quiz", "--file", "made.json", "--json").stdout) == first, "no model is asked again"
    right = next(k for k, v in first["items"][0]["options"].items() if v == ROW["right"])
    told = json.loads(
        run("quiz", "--file", "made.json", "--json", "--answers", f"{first['code']}:{right}").stdout
    )
    assert told["right"] == 1 and told["items"][0]["quote"] == ROW["quote"]
    text = (home / "made.json").read_text(encoding="utf-8")
    for bad, match in ((text.replace(ROW["wrong"][0], "All of the above"), "the other options"), ("{}", "has no 'items'"), (text[:-9], "no JSON"),
                       (json.dumps({"items": json.loads(text)["items"] * 2}), "stands there twice")):  # fmt: skip
        (home / "made.json").write_text(bad, encoding="utf-8")
        assert match in run("quiz", "--file", "made.json", code=1).stderr


def test_a_model_that_answers_nonsense_gives_no_quiz_and_the_offline_one_still_works(asked):
    with answering("Once upon a time", "there was a model.") as server:
        asked(server)
        done = run("quiz", "tokens", code=1)
        assert "no answer that can be used, in 2 tries" in done.stderr and "1." not in done.stdout
        assert "the built-in questions need no model: --offline" in done.stderr
        assert "1." in run("quiz", "tokens", "--offline").stdout
    assert len(server.asked) == 2


def test_an_exercise_is_written_unchecked_and_its_tests_wait_for_run(asked, home):
    with answering(GOOD) as server:
        asked(server)
        assert "unchecked" in run("tutor", "transformer", "--exercise", "mask").stdout
    assert (home / "mask" / "exercise.py").is_file()
    assert "were not run" in run("tutor", "transformer", "--exercise", "mask", code=1).stderr
    assert "was named" in run("tutor", "tokens", "--exercise", "mask", "--run", code=1).stderr
    assert "failed: test_shape" in run("tutor", "transformer", "--exercise", "mask", "--run", code=1).stdout
    (home / "mask" / "exercise.py").write_text(SOLUTION, encoding="utf-8")
    said = run("tutor", "transformer", "--exercise", "mask", "--run").stdout
    assert "2 passed, 0 failed" in said and "does not count: unchecked" in said
    assert [(e.kind, e.passed) for e in kept(home)] == [("exercise", False)] * 2


def test_an_exercise_that_was_checked_counts(asked, home):
    with answering(GOOD) as server:
        asked(server)
        told = json.loads(run("tutor", "transformer", "--exercise", "mask", "--run", "--json").stdout)
    assert told["state"].startswith("checked")
    (home / "mask" / "exercise.py").write_text(SOLUTION, encoding="utf-8")
    assert (
        json.loads(run("tutor", "transformer", "--exercise", "mask", "--run", "--json").stdout)["counts"]
        is True
    )
    assert kept(home)[-1].passed


def test_files_carry_prompt_and_answer_where_there_is_no_endpoint(home, tmp_path):
    (home / "summary.txt").write_text(SUMMARY, encoding="utf-8")
    (home / "source.txt").write_text(SOURCE, encoding="utf-8")
    arguments = [
        "tutor",
        "gotchas",
        "--source",
        "source.txt",
        "--summary",
        "summary.txt",
        "--prompt-to",
        "p.txt",
        "--answer-from",
        "a.txt",
    ]
    assert "the prompt waits for its answer" in run(*arguments, code=1).stderr
    assert SOURCE in (home / "p.txt").read_text(encoding="utf-8")
    (home / "a.txt").write_text(
        'Of course!\n```json\n{"missing": [], "wrong": [], "well": ["rounding errors"]}\n```',
        encoding="utf-8",
    )
    assert "passed: 0 missing, 0 wrong, by pasted" in run(*arguments).stdout
    rows = json.dumps({"items": [ROW]})
    arguments = ["quiz", "--source", "source.txt", "--prompt-to", "q.txt", "--answer-from", "b.txt"]
    run(*arguments, code=1)
    (home / "b.txt").write_text(rows, encoding="utf-8")
    told = json.loads(run(*arguments, "--json").stdout)
    right = next(k for k, v in told["items"][0]["options"].items() if v == ROW["right"])
    assert "1 of 1: not passed" in run(*arguments, "--answers", f"{told['code']}:{right}").stdout
    assert kept(home)[-1].answers == {}, "a model's question is in no box"


def test_at_a_terminal_the_questions_are_asked_one_by_one(home):
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "quiz", "tokens", "-n", "2"], stdin=theirs, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(theirs)
    os.write(ours, b"z\na\n-\n")
    out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, err
    assert out.count("or - for I do not know") == 3, "z is no answer and is asked again"
    assert "you said: nothing" in out and "of 2: not passed" in out
    flat = " ".join(out.split())
    asked = [i for i in quiz.bank() if " ".join(i.question.split()) in flat]
    assert len(asked) == 2 and all(
        f"right is: {i.right}" in flat or f"right: {i.question}" in flat for i in asked
    )
    assert kept(home)[0].date <= datetime.date.today() and len(kept(home)[0].answers) == 2


def test_a_conversation_survives_an_answer_that_cannot_be_used(home, asked):
    import pty

    def answer(h, n):
        if n == 2:
            h.events(chunk("Half of an ans"))
        else:
            h.events(chunk(f"Answer {n}."), chunk(finish="length" if n == 3 else "stop"))

    ours, theirs = pty.openpty()
    with serving(answer) as server:
        asked(server)
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, "tutor", "tokens", "--max-tokens", "9"], stdin=theirs,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        os.close(theirs)
        os.write(ours, b"first\nsecond\nquit\n")
        out, err = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0, err
    assert (
        "Answer 1." in out
        and "Answer 3." in out
        and "cut after 14 characters" in err
        and "\nthe answer was cut by its length" in err
        and "an empty line, quit or exit ends it" in err
    )
    said = [m["content"] for m in server.asked[2]["body"]["messages"][1:]]
    assert said == ["Begin.", "Answer 1.", "second\n"], "what got no answer is not kept"
    assert server.asked[0]["body"]["max_tokens"] == 9
    assert [(e.kind, e.passed) for e in kept(home)] == [("talk", False)] and KEY not in out + err


def test_a_paper_is_predicted_and_scored_by_what_a_person_says_of_it(home):
    def lab(*words):
        done = CliRunner().invoke(main.app, ["lab", "predict", *words])
        assert done.exit_code == 0, done.output
        return done.stdout

    about = ["--task", "paper: Interpretability in the wild", "--study", "papers"]
    said = lab("new", "they patch single heads", "0.7", *about)
    assert "microtome lab predict resolve 1 true|false|void --reason TEXT" in said and "post hoc" not in said
    lab("new", "the loss is reported", "0.6", *about)
    lab("resolve", "1", "true", "--reason", "section 3.1")
    lab("resolve", "2", "false", "--reason", "it is not")
    scored = json.loads(lab("score", "--json"))
    assert [(s["kind"], s["n"]) for s in scored] == [("judged", 2)]
    assert scored[0]["brier"] == pytest.approx((0.3**2 + 0.6**2) / 2)


def test_the_commands_import_nothing_heavy():
    code = "import sys, microtome.cli.learning, microtome.llm.quiz, microtome.llm.endpoint, microtome.llm.exercises; print([m for m in ('torch', 'pandas', 'plotly', 'alembic', 'openai', 'numpy', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
