"""`ask`, `diff`, `examples`, `heads`, `probe`, `steer`, `vector`: what is said, written and asked again; and every slip as three lines."""

from __future__ import annotations

import json
import shlex
import types

import pytest
import torch

import microtome as mt
import probed
import steerable
from cli_words import FAST, Words, run
from microtome.cli import estimate
from microtome.directions.direction import Direction
from microtome.results import observe
from microtome.sites import parse
from microtome.tasks.labelled import LabelledText

KINDS = {"ask": "prompt_grid", "diff": "model_diff", "examples": "max_activating", "heads": "head_roles", "probe": "probe", "steer": "steering",
         "vector": "function_vector"}  # fmt: skip


@pytest.fixture
def words(monkeypatch, tmp_path):
    return Words(monkeypatch, tmp_path)


@pytest.mark.parametrize("command", sorted(FAST))
def test_the_plan_comes_first_and_result_and_report_are_kept(words, tmp_path, command):
    out = tmp_path / "o"
    done = run(*words.ready(command), "--out", out)
    assert done.exit_code == 0, done.stderr
    said = done.stdout
    assert said.index("Plan: about ") < said.index("Numbers") < said.index("Stages") < said.index("report: ")
    result = mt.open(out / "result")
    assert result.kind == KINDS[command] and (out / "report.html").exists()
    for label in result.tables["headline"]["label"]:
        assert label in said
    assert "\x1b" not in said and done.stderr.count("\n") < 8


@pytest.mark.parametrize("command", sorted(set(FAST) - {"steer"}))  # the slow one is below
def test_the_command_in_the_report_asks_for_the_same_again(words, tmp_path, command):
    given = words.ready(command)
    first = run(*given, "--seed", 3, "--json", "--out", tmp_path / "one")
    told = json.loads(first.stdout)  # alone on stdout, so that a pipe is clean
    assert "Plan: about " in first.stderr
    again = shlex.split(told["command"])
    assert again[:2] == ["microtome", command] and "--seed" in again
    second = run(*again[1:], "--json", "--out", tmp_path / "two")
    assert second.exit_code == 0, second.stderr
    repeated = json.loads(second.stdout)
    assert repeated["command"] == told["command"] and repeated["query"] == told["query"]
    assert repeated["numbers"] == told["numbers"]
    page = (tmp_path / "one" / "report.html").read_text("utf-8")
    assert f"microtome {command}" in page


def test_steering_is_asked_for_again_by_its_own_command_too(words, tmp_path):
    told = json.loads(run(*words.ready("steer"), "--json", "--out", tmp_path / "one").stdout)
    again = shlex.split(told["command"])[1:]
    assert [again[i + 1] for i, a in enumerate(again) if a == "--dose"] == ["-1.0", "1.0"]
    assert json.loads(run(*again, "--json", "--out", tmp_path / "two").stdout)["numbers"] == told["numbers"]


@pytest.mark.parametrize("command", sorted(FAST))
def test_a_taken_folder_is_refused_before_a_model_is_loaded(words, tmp_path, command):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "precious").write_text("x", encoding="utf-8")
    done = run(*words.ready(command), "--out", tmp_path / "o")
    _refused(done, "not empty", "another --out")
    assert words.loaded == [] and (tmp_path / "o" / "precious").read_text(encoding="utf-8") == "x"


def _refused(done, *said):
    """One screen: what, why and instead, exit code 1, nothing on stdout that looks like a result."""
    assert done.exit_code == 1, done.output
    lines = done.stderr.rstrip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert lines[start + 1].startswith("why: ") and lines[start + 2].startswith("instead: "), done.stderr
    assert len(lines) - start <= 4 and "Traceback" not in done.stderr and "report:" not in done.stdout
    for part in said:
        assert part in " ".join(lines[start:]), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ask", "capital"), 'did you mean "capitals"'),
        (("ask", "missing.yaml"), "No such file"),
        (("probe", "citys"), "'cities'"),
        (("probe", "missing.csv"), "No such file"),
        (("steer", "happines", "--up", " x"), "'happiness'"),
        (("steer", "happiness", "--prompts", "missing.txt"), "No such file"),
        (("vector", "capital"), "'capitals'"),
        (("vector", "missing.csv"), "No such file"),
        (("examples", "L1.nurons"), "neurons"),
        (("examples", "L1.z", "--corpus", "missing"), "no file or folder"),
        (("heads", "--corpus", "missing"), "no file or folder"),
        (("diff", "a", "b", "--data", "missing.csv"), "No such file"),
    ],
)
def test_what_is_mistyped_is_found_before_a_model_is_loaded(words, tmp_path, arguments, said):
    words.ready("ask")
    _refused(run(*arguments, "--out", tmp_path / "o"), said)
    assert words.loaded == [] and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("command", "more", "said"),
    [
        ("ask", ["--read", "logprobs"], "logprob, first_token or samples"),
        ("diff", ["--level", "site"], "sites, outputs, words or text"),
        ("probe", ["--words", "good"], "NEGATIVE,POSITIVE"),
        ("steer", ["--when", "always"], "prompt, generated or both"),
        ("steer", ["--labels", "happiness"], "saved direction"),
    ],
)
def test_a_wrong_option_is_wrong_usage(words, tmp_path, command, more, said):
    done = run(*words.ready(command), *more, "--out", tmp_path / "o")
    assert done.exit_code == 2 and said in done.stderr and words.loaded == []


def test_one_class_is_refused(words, tmp_path):
    data = words.write("one.csv", "text,label\n" + "".join(f"text {i},good\n" for i in range(30)))
    words.ready("probe")
    _refused(run("probe", data, "-n", 20, "--out", tmp_path / "o"), "one class")
    _refused(run("steer", data, "--up", "glad0", "--out", tmp_path / "o"), "one class")
    assert words.loaded == []


def test_labels_that_are_no_labels_are_refused(words, tmp_path):
    words.ready("probe")
    for k, bad in enumerate(("", "nan", "0.37")):
        rows = "".join(f"text {i},{i % 2}\n" for i in range(30)) + f"text x,{bad}\n"
        done = run("probe", words.write(f"bad{k}.csv", "text,label\n" + rows), "-n", 31, "--out", tmp_path / "o")  # fmt: skip
        _refused(done, "label")
    assert words.loaded == []


def test_too_few_groups_are_refused(words, tmp_path):
    words.ready("probe")
    texts = probed.texts().texts[:40]
    data = LabelledText("few", texts, tuple(i % 2 for i in range(40)), ("bad", "good"), {"word": tuple("ab"[i % 2] for i in range(40))})  # fmt: skip
    done = run(
        "probe", words.labelled("few.jsonl", data), "-n", 40, "--site", "L2.resid_post@-1", "--kind", "mass_mean", "--out", tmp_path / "o",
    )  # fmt: skip
    _refused(done, "group")


def test_text_longer_than_the_context_is_refused_with_its_length(words, tmp_path):
    words.ready("probe")
    n = probed.model().facts.n_ctx
    assert n is not None
    rows = [{"text": " ".join(["good0"] * (n + 5)) if i == 3 else f"good{i} bad{i}", "label": i % 2} for i in range(30)]  # fmt: skip
    data = words.write("long.jsonl", "\n".join(map(json.dumps, rows)))
    done = run("probe", data, "-n", 30, "--site", "L2.resid_post@-1", "--kind", "mass_mean", "--out", tmp_path / "o")  # fmt: skip
    _refused(done, str(n), "text 3")


def test_a_text_that_is_cut_is_counted(words, tmp_path):
    given = words.ready("diff")
    words.corpus()
    long = words.write("long.jsonl", "\n".join(json.dumps({"text": " ".join([f"w{i + 4}"] * 200), "label": i % 2}) for i in range(4)) + "\n" + "\n".join(json.dumps({"text": f"w9 w{i + 14} w5", "label": i % 2}) for i in range(4)))  # fmt: skip
    done = run("diff", *given[1:3], "--data", long, "-n", 8, "--out", tmp_path / "o")
    if done.exit_code == 0:
        about = mt.open(tmp_path / "o" / "result").tables["about"].set_index("name")["value"]
        assert "cut" in about["texts"]
    else:
        _refused(done, "context")


@pytest.mark.parametrize(
    ("vector", "model", "said"), [(torch.ones(5), "", "components"), (torch.ones(24), "ab", "another model")]
)
def test_a_direction_of_another_width_or_model_is_refused(words, tmp_path, vector, model, said):
    saved = Direction(vector, parse("L1.resid_post"), model, "mine", {}).save(tmp_path / "saved")
    given = words.ready("examples")
    _refused(run("examples", saved, *given[2:], "--out", tmp_path / "o"), said)
    words.ready("steer")
    (tmp_path / "saved2").mkdir()
    wide = Direction(torch.ones(5 if not model else steerable.D), parse("L1.resid_post"), model, "mine", {}).save(tmp_path / "saved2")  # fmt: skip
    _refused(run("steer", wide, *FAST["steer"], "--out", tmp_path / "o"), said)


def test_a_folder_without_a_direction_is_refused(words, tmp_path):
    words.ready("steer")
    (tmp_path / "empty").mkdir()
    _refused(
        run("steer", tmp_path / "empty", "--up", "x", "--out", tmp_path / "o"), "it has no direction.json"
    )
    _refused(run("examples", tmp_path / "empty", "--out", tmp_path / "o"), "no saved direction")
    assert words.loaded == []


def test_a_saved_direction_is_steered_with_at_its_own_site(words, tmp_path):
    given = words.ready("steer")
    saved = Direction(steerable.mood(), parse(steerable.SITE), "", "mood", {}).save(tmp_path / "saved")
    done = run("steer", saved, "--labels", given[1], *given[2:], "--json", "--out", tmp_path / "o")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    result = mt.open(tmp_path / "o" / "result")
    assert result.effects.coords["site"] == (steerable.SITE,) and "--labels" in told["command"]
    assert any(n["null"] == "directions from shuffled labels" for n in told["numbers"])


def test_the_dose_zero_alone_is_refused(words, tmp_path):
    given = words.ready("steer")[:4]
    _refused(run(*given, "--up", "glad0", "--dose", 0, "--out", tmp_path / "o"), "zero")


def test_nothing_to_make_likelier_is_wrong_usage(words, tmp_path):
    done = run(*words.ready("steer")[:4], "--out", tmp_path / "o")
    assert done.exit_code == 2 and "--up" in done.stderr


@pytest.mark.parametrize("command", ["examples", "heads", "diff"])
def test_a_corpus_without_text_is_refused(words, tmp_path, command):
    words.ready(command)
    empty = tmp_path / "empty"
    empty.mkdir()
    words.write("empty/a.txt", " \n")
    first = {"examples": ["L1.z", "--corpus"], "heads": ["--corpus"], "diff": ["first", "other", "--data"]}
    _refused(run(command, *first[command], empty, "--out", tmp_path / "o"), "text")


def test_models_whose_tokens_differ_are_refused_with_what_can_still_be_compared(words, tmp_path):
    given = words.ready("diff")
    words.models = {"other": lambda: probed.model()}
    _refused(run(*given, "--out", tmp_path / "o"), "text")


def test_pairs_are_words_and_answers(words, tmp_path):
    words.ready("vector")
    for name, body, said in (
        ("columns.csv", "country,capital\nFrance,Paris\n", "word"),
        ("twice.csv", "word,answer\nask0,say0\nask0,say1\n", "ask0"),
        ("few.csv", "word,answer\nask0,say0\nask1,say1\n", "2 pairs"),
        ("many.csv", "word,answer\nask0,say0\nask1,no such word here\n", "pair"),
    ):
        _refused(run("vector", words.write(name, body), "--out", tmp_path / "o"), said)
    _refused(run("vector", "capitals", "-n", 5000, "--out", tmp_path / "o"), "5000 capitals pairs")


def test_a_site_that_the_model_lacks_is_refused(words, tmp_path):
    given = words.ready("examples")
    _refused(run("examples", "L9.z", *given[2:], "--out", tmp_path / "o"), "layer 9")
    given = words.ready("probe")
    _refused(run(*given[:2], "--site", "L9.resid_post@-1", "--out", tmp_path / "o"), "layer 9")
    given = words.ready("steer")
    _refused(run(*given, "--site", "L9.resid_post", "--out", tmp_path / "o"), "layer 9")


def test_heads_are_listed_by_role_with_what_they_do(words, tmp_path):
    done = run(*words.ready("heads"), "--out", tmp_path / "o")
    assert "Heads, by what their weights say" in done.stdout and "measured, natural" in done.stdout
    told = json.loads(run(*words.ready("heads"), "--json", "--out", tmp_path / "p").stdout)
    (title,) = [k for k in told if k.startswith("Heads")]
    assert {row["role"] for row in told[title]} >= {"induction"}


def test_what_was_finished_of_several_datasets_is_kept_at_ctrl_c(words, tmp_path):
    words.ready("probe")
    files = [words.labelled(f"words{k}.jsonl", one) for k, one in enumerate(probed.halves())]
    stopped = []

    def stop(event):
        if event.kind == "end" and event.method == "probe" and not stopped:
            stopped.append(event)
        elif stopped and event.kind == "progress":
            raise KeyboardInterrupt

    with observe(stop):
        done = run("probe", *files, *FAST["probe"], "--out", tmp_path / "o")
    assert done.exit_code == 130 and "1 finished stage is kept in" in done.stderr
    (kept,) = (tmp_path / "o" / "stages").iterdir()
    assert kept.name == "00-words0" and mt.open(kept).kind == "probe"


@pytest.mark.parametrize("command", ["ask", "steer"])
def test_one_measurement_that_was_interrupted_says_that_nothing_is_kept(words, tmp_path, command):
    def stop(event):
        if event.kind == "begin":
            raise KeyboardInterrupt

    given = words.ready(command)
    with observe(stop):
        done = run(*given, "--out", tmp_path / "o")
    assert done.exit_code == 130 and "nothing was kept" in done.stderr and not (tmp_path / "o").exists()


def test_one_endless_text_is_not_what_the_machine_is_timed_on():
    seen = []

    class Model:
        facts = types.SimpleNamespace(n_ctx=None)

        def run(self, rows, logits):
            seen.append([len(r) for r in rows])

    rows = [[1] * k for k in (9000, 5, 6, 7, 5, 6, 7, 5, 6, 7, 8, 1)]
    assert estimate.rate(Model(), rows) > 0
    assert seen == [[5, 5, 6, 6, 6, 7, 7, 7]] * 2
    assert estimate.rate(Model(), [[1] * 9000]) > 0 and seen[-1] == [estimate.LONGEST]
