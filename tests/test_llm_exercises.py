"""Exercises of a model: parsed before they are kept, run only when asked, and then elsewhere."""

from __future__ import annotations

import json
import time

import pytest

from microtome.errors import ChatError
from microtome.llm import exercises
from microtome.llm.chat import UnusableAnswer
from microtome.llm.curriculum import curriculum
from scripted import Scripted

TOPIC = curriculum().topic("transformer")
BLANK = '''def causal_mask(n):
    """n x n, True where position j may be seen from i."""
    raise NotImplementedError
'''
SOLUTION = '''def causal_mask(n):
    """n x n, True where position j may be seen from i."""
    return [[j <= i for j in range(n)] for i in range(n)]
'''
WRONG = """def causal_mask(n):
    print("here")
    return [[j < i for j in range(n)] for i in range(n)]
"""
TESTS = """from exercise import causal_mask

def test_shape():
    mask = causal_mask(5)
    assert [len(row) for row in mask] == [5] * 5, "it is square"

def test_first_row():
    assert causal_mask(3)[0] == [True, False, False], "off by one? a position sees itself"
"""
GOOD = {"title": "A causal mask", "task": "Write the mask that hides later positions.", "blank": BLANK, "tests": TESTS, "solution": SOLUTION}  # fmt: skip


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(exercises.subprocess, "Popen", lambda *a, **k: pytest.fail("code was run"))


def test_an_exercise_is_kept_unchecked_and_nothing_is_run(nothing_runs, tmp_path):
    made = exercises.generate(Scripted(GOOD), TOPIC)
    assert made.state == exercises.UNCHECKED and made.by == "scripted" and made.topic == "transformer"
    exercises.save(made, tmp_path / "mask")
    assert (tmp_path / "mask" / "exercise.py").read_text(encoding="utf-8") == BLANK
    assert (tmp_path / "mask" / ".solution" / "exercise.py").read_text(encoding="utf-8") == SOLUTION
    assert "Unchecked" in (tmp_path / "mask" / "README.md").read_text(encoding="utf-8")
    back = exercises.load(tmp_path / "mask")
    assert (back.blank, back.tests, back.title, back.state) == (BLANK, TESTS, made.title, made.state)
    with pytest.raises(ChatError, match="is not empty"):
        exercises.save(made, tmp_path / "mask")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"blank": SOLUTION}, "in blank is not blank"),
        ({"solution": BLANK}, "in solution is blank"),
        ({"blank": "def causal_mask(n:"}, "blank is no Python"),
        ({"blank": "x = 1\0"}, "blank is no Python"),
        ({"blank": "x = 1"}, "do not define the same functions"),
        ({"solution": SOLUTION.replace("causal_mask", "mask")}, "do not define the same functions"),
        ({"tests": TESTS.replace("test_first_row", "first_row")}, "under two functions"),
        ({"tests": TESTS.replace("test_shape()", "test_shape(fixture)")}, "takes arguments"),
        ({"tests": TESTS.replace('assert [len(row) for row in mask] == [5] * 5, "it is square"', "pass")}, "asserts nothing"),
        ({"tests": TESTS.replace("from exercise import causal_mask", "causal_mask = lambda n: []")}, "does not import"),
        ({"task": "Do it."}, "at least 20"),
    ],
)  # fmt: skip
def test_what_is_no_exercise_is_refused_unread_by_python(nothing_runs, change, match):
    bad = {**GOOD, **change}
    with pytest.raises(UnusableAnswer, match="no answer that can be used") as caught:
        exercises.generate(Scripted(bad, bad), TOPIC)
    assert match in caught.value.why


def test_a_checked_exercise_fails_blank_and_passes_solved():
    made = exercises.check(exercises.generate(Scripted(GOOD), TOPIC), seconds=30)
    assert made.state == exercises.CHECKED


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"solution": WRONG}, "off by one"),
        ({"tests": TESTS.replace("    mask = causal_mask(5)\n", "    mask = [[0] * 5] * 5\n")}, "on the blank test_shape passes"),
        ({"tests": TESTS + "\nimport not_there\n"}, "No module named 'not_there'"),
    ],
)  # fmt: skip
def test_an_exercise_whose_tests_are_wrong_is_not_offered(change, match):
    made = exercises.generate(Scripted({**GOOD, **change}), TOPIC)
    with pytest.raises(UnusableAnswer, match="the exercise is wrong") as caught:
        exercises.check(made, seconds=30)
    assert match in caught.value.why


def test_a_run_says_what_failed_where_and_what_was_printed():
    ran = exercises.run(WRONG, TESTS)
    assert ran.passed == ("test_shape",) and not ran.good and not ran.ended
    assert "off by one? a position sees itself (test_exercise.py, line 8)" in ran.failed["test_first_row"]
    assert ran.output == "here\nhere\n"
    assert exercises.run(SOLUTION, TESTS).good


def test_no_key_and_no_variable_of_ours_reaches_the_code(monkeypatch):
    monkeypatch.setenv("MICROTOME_LLM_KEY", "sk-planted-0123456789abcdef")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import os\ndef causal_mask(n):\n    print(sorted(os.environ), os.getcwd(), os.environ['HOME'])\n    return [[True] * n] * n\n"
    output = exercises.run(code, TESTS).output
    assert "MICROTOME" not in output and "PYTHONPATH" not in output and "microtome-exercise-" in output


def test_what_does_not_end_is_ended_with_what_it_started(tmp_path):
    mark = tmp_path / "mark"
    code = f"""import subprocess, sys, time
def causal_mask(n):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(4); open({str(mark)!r}, 'w')"])
    time.sleep(60)
"""
    began = time.monotonic()
    ran = exercises.run(code, TESTS, seconds=1.5)
    assert ran.ended == "it ran for more than 1.5 s and was ended" and not ran.good and not ran.failed
    time.sleep(max(0.0, began + 5.5 - time.monotonic()))
    assert not mark.exists(), "a child of the exercise went on"


@pytest.mark.parametrize(
    "code", ["import os\nos._exit(0)\n", "import os\nos.abort()\n", "raise SystemExit(0)\n"]
)
def test_code_that_ends_the_process_has_not_passed(code):
    ran = exercises.run(code, TESTS)
    assert not ran.good and (ran.ended or ran.failed)


def test_output_without_end_is_cut():
    code = "def causal_mask(n):\n    while True:\n        print('x' * 1_000_000)\n"
    ran = exercises.run(code, TESTS, seconds=20)
    assert not ran.good and len(ran.output) <= 4000


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("exercise.json", "{", "is broken"),
        ("exercise.json", json.dumps({"title": 3}), "is broken"),
        ("exercise.py", "#" * 200_001, "too large"),
        ("test_exercise.py", None, "holds no exercise"),
    ],
)
def test_a_folder_that_is_no_exercise_is_said(tmp_path, name, text, match):
    exercises.save(exercises.generate(Scripted(GOOD), TOPIC), tmp_path / "e")
    (tmp_path / "e" / name).unlink() if text is None else (tmp_path / "e" / name).write_text(
        text, encoding="utf-8"
    )
    with pytest.raises(ChatError, match=match):
        exercises.load(tmp_path / "e")
