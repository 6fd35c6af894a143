"""`microtome dissect`: what is said when, what is written, and what is left after every way of ending."""

from __future__ import annotations

import io
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli_toys
import microtome
from cli_toys import FakeModel, FakeTask, run, toy_stage
from microtome.cli import main, summary, watch


@pytest.fixture
def state(monkeypatch):
    return cli_toys.install(monkeypatch)


def test_the_plan_comes_before_the_work_and_the_result_is_kept(state, tmp_path):
    done = run("dissect", "ioi", "--out", tmp_path / "o", "--pairs", 4, "--seed", 3)
    assert done.exit_code == 0, done.stderr
    said = done.stdout
    assert said.index("Plan: about 1.7 min") < said.index("Stages") < said.index("report: ")
    assert "L1H2.z" in said and "-2.5 logit" in said and "A toy." in said
    assert "any change of this size would do" in said.split("Controls that failed")[1]
    assert (tmp_path / "o" / "report.html").exists()
    assert microtome.open(tmp_path / "o" / "result").kind == "toy_dissect"
    assert state.calls == [("ioi", 4, 3)]
    assert (
        "reading weights" in done.stderr
        and "done: residual stream, " in done.stderr
        and "done: attention outputs, " in done.stderr
        and done.stderr.count("\n") < 6
    )


def test_the_command_in_the_report_asks_for_the_same_again(state, tmp_path):
    lists = ["--clean", "It's a", "--corrupt", "It's b", "--answer", " x", "--wrong", ' "y"']
    run("dissect", *lists, *lists, *lists, "--model", "toy", "--out", tmp_path / "one")
    again = shlex.split(state.reports[0])[1:]
    assert "--seed" in again and "--model" in again
    run(*again, "--out", tmp_path / "two")
    assert state.made[0] == state.made[1] and state.made[0][1]["clean"] == ["It's a"] * 3
    assert state.reports[0] == state.reports[1] and state.calls[0] == state.calls[1]


def test_json_is_alone_on_stdout(state, tmp_path):
    done = run("dissect", "ioi", "--json", "--out", tmp_path / "o")
    told = json.loads(done.stdout)
    assert told["verdict"]["word"] == "unchecked" and len(told["stages"]) == 2
    assert any("L1H2.z" in n["label"] and n["value"] == -2.5 and n["n"] == 3 for n in told["numbers"])
    assert [c["outcome"] for c in told["stages"][1]["controls"]] == ["passed", "failed"]
    assert told["query"]["seed"] == 0 and told["command"].startswith("microtome dissect ioi")
    assert "Plan:" in done.stderr


def test_a_file_of_pairs_is_what_is_dissected(state, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("clean,corrupt,answer,wrong\na,b,c,d\n", encoding="utf-8")
    run("dissect", file, "--out", tmp_path / "one")
    run("dissect", file, "--pairs", 4, "--out", tmp_path / "two")
    assert [made[0] for made in state.made] == [str(file)] * 2
    assert state.calls == [(30, 16, 0), (30, 4, 0)]


@pytest.mark.parametrize("subject", ["iou", "missing.csv"])
def test_mistakes_are_found_before_a_model_is_loaded(state, tmp_path, subject):
    done = run("dissect", subject, "--out", tmp_path / "o")
    assert done.exit_code == 1 and state.loaded == [] and not (tmp_path / "o").exists()


def test_one_run_never_overwrites_another(state, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "precious").write_text("x", encoding="utf-8")
    done = run("dissect", "ioi", "--out", tmp_path / "o")
    assert done.exit_code == 1 and "not empty" in done.stderr and state.loaded == []
    assert (tmp_path / "o" / "precious").read_text(encoding="utf-8") == "x"


def test_without_out_the_folder_is_named_after_what_was_asked(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("dissect", "ioi", "--model", "some/model.gguf").exit_code == 0
    (made,) = (tmp_path / "runs").iterdir()
    assert made.name.startswith("ioi-model.gguf-20") and (made / "result").is_dir()


def test_ctrl_c_keeps_the_finished_stages_and_says_where(state, tmp_path):
    state.then = "interrupt"
    done = run("dissect", "ioi", "--out", tmp_path / "o")
    assert done.exit_code == 130 and "1 finished stage is kept in" in done.stderr
    kept = microtome.open(tmp_path / "o" / "stages" / "00-residual-stream")
    assert kept == toy_stage(FakeModel(), "ioi", 2.5)
    assert not (tmp_path / "o" / "result").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_real_signal_in_a_real_process(tmp_path, number, code):
    program = f"""
import signal, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does one under nohup
import cli_toys, pytest
cli_toys.install(pytest.MonkeyPatch()); cli_toys.STATE.then = "wait"
from microtome.cli.main import main
main(["dissect", "ioi", "--out", {str(tmp_path / "o")!r}])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith("done: residual stream"):
            process.send_signal(number)
            break
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == code and "kept in" in said and "Traceback" not in said
    assert (tmp_path / "o" / "stages" / "00-residual-stream" / "result.json").exists()


def test_a_refusal_in_the_middle_is_shown_as_one(state, tmp_path):
    state.then = "refuse"
    done = run("dissect", "ioi", "--out", tmp_path / "o")
    assert done.exit_code == 1 and "the way out" in done.stderr and "\x1b" not in done.stderr
    assert "failed" not in done.stderr  # the root is no stage: the error says it all


def test_a_crash_is_not_swallowed(state, tmp_path):
    state.then = "crash"
    with pytest.raises(ZeroDivisionError):
        run("dissect", "ioi", "--out", tmp_path / "o")


@pytest.mark.parametrize("then", ["refuse", "full", "crash"])
def test_whatever_ends_it_the_finished_stages_are_kept(state, tmp_path, then, capsys):
    state.then = then
    with pytest.raises(SystemExit) as end:
        main.main(["dissect", "ioi", "--out", str(tmp_path / "o")])
    assert end.value.code == (70 if then == "crash" else 1)
    assert "1 finished stage is kept in" in capsys.readouterr().err
    assert microtome.open(tmp_path / "o" / "stages" / "00-residual-stream") == toy_stage(
        FakeModel(), "ioi", 2.5
    )


def test_stages_that_cannot_be_kept_are_admitted(state, tmp_path, monkeypatch):
    state.then = "interrupt"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(microtome.Result, "save", full)
    done = run("dissect", "ioi", "--out", tmp_path / "o")
    assert done.exit_code == 130 and "could not be kept" in done.stderr


def test_a_report_that_fails_says_where_the_result_is(state, tmp_path, capsys):
    state.then = "no report"
    with pytest.raises(SystemExit):
        main.main(["dissect", "ioi", "--out", str(tmp_path / "o")])
    assert f"the result is safe in {tmp_path / 'o' / 'result'}" in capsys.readouterr().err
    assert microtome.open(tmp_path / "o" / "result").kind == "toy_dissect"


def test_the_metric_of_own_pairs_can_be_chosen(state, tmp_path):
    mine = ["--clean", "a", "--corrupt", "b", "--answer", "c d", "--wrong", "e"]
    run("dissect", *mine, "--metric", "logprob_diff", "--out", tmp_path / "one")
    assert state.made[0][1]["metric"] == "logprob_diff" and "--metric logprob_diff" in state.reports[0]
    named = run("dissect", "ioi", "--metric", "logprob_diff", "--out", tmp_path / "two")
    assert named.exit_code == 2 and "own metric" in named.stderr
    wrong = run("dissect", *mine, "--metric", "logprob_dif", "--out", tmp_path / "two")
    assert wrong.exit_code == 1 and "'logprob_diff'" in wrong.stderr and len(state.loaded) == 1


def test_what_looks_like_a_slip_in_the_pairs_is_said(state, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("clean,corrupt,answer,wrong\na,b,c,d\n", encoding="utf-8")
    done = run("dissect", file, "--out", tmp_path / "o")
    assert "note: line 4: no leading space" in done.stdout and "note: 25 more" in done.stdout
    told = run("dissect", file, "--json", "--out", tmp_path / "p")
    assert json.loads(told.stdout) and "note: line 0" in told.stderr


def test_a_folder_that_cannot_be_made_is_said_before_the_work_and_leaves_nothing(state, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for out, word in (("file", "is a file"), ("file/below", "cannot be written to")):
        done = run("dissect", "ioi", "--out", tmp_path / out)
        assert done.exit_code == 1 and word in done.stderr and state.loaded == []
    assert run("dissect", "nosuch", "--out", tmp_path / "a" / "b").exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_refused_stages_and_what_was_not_ruled_out_are_listed_once(capsys):
    import pandas as pd

    from microtome.results import Result

    child = toy_stage(FakeModel(), FakeTask("t", 3), fails=True)
    rows = [
        ("residual", "supported", ""),
        ("patterns", "refused", "no softmax here"),
        ("MLP", "supported", ""),
    ]
    table = pd.DataFrame([{"stage": s, "n": 3, "seconds": 1.0, "verdict": v, "note": n} for s, v, n in rows])
    summary.show(Result("toy", tables={"stages": table}, children=(child, child)))
    said = capsys.readouterr().out
    assert "refused: no softmax here" in said and "1/2" in said
    (line,) = [line for line in said.splitlines() if "any change of this size would do" in line]
    assert line.split("noise")[1].strip() == "residual, MLP"


def test_a_result_without_cells_has_a_summary(capsys):
    from microtome.results import Result

    summary.show(Result("empty"))
    assert "unchecked" in capsys.readouterr().out


def test_bars_appear_after_a_while_and_leave_nothing_behind(monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(watch, "AFTER", 0.05)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, no_color=True)

    @microtome.results.technique("slow_toy", "1")
    def slow(model):
        microtome.results.progress(3, 10, "cells", "\x1b[2Jhead 3")
        time.sleep(0.4)
        return microtome.Result("slow_toy")

    with watch.watching(console) as watched:
        slow(FakeModel())
    shown = screen.getvalue()
    assert "slow toy" in shown and "30%" in shown and "\\x1b[2Jhead 3" in shown
    assert watched._display is None and shown.rstrip("\r").endswith("\x1b[?25h")  # the cursor is back


def test_what_is_quick_shows_no_bar():
    from rich.console import Console

    screen = io.StringIO()
    with watch.watching(Console(file=screen, force_terminal=True)):
        toy_stage(FakeModel(), FakeTask("t", 3))
    assert "cells" not in screen.getvalue()


def test_only_stages_of_the_outermost_run_are_kept(state):
    with watch.watching() as watched:
        cli_toys.toy_dissect(FakeModel(), FakeTask("t", 3))
    assert [(name, r.query.method) for name, r in watched.finished] == [
        ("residual stream", "toy_stage"),
        ("attention outputs", "toy_stage"),
    ]
