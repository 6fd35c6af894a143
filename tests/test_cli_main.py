"""The command line as a whole: what it loads, how it ends, what it lets through to a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

import cli_toys
from microtome.cli import failures, main, output
from microtome.errors import TaskError

HEAVY = ("torch", "numpy", "pandas", "scipy", "transformers", "plotly", "huggingface_hub")


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def loaded_after(code):
    said = python(code + "\nimport sys, json; print('\\n' + json.dumps(sorted(sys.modules)))")
    assert said[0] == 0, said[2]
    return json.loads(said[1].splitlines()[-1])


def test_importing_the_package_loads_nothing():
    own = [m for m in loaded_after("import microtome") if m.startswith("microtome")]
    assert own == ["microtome"]
    assert not set(HEAVY) & set(loaded_after("import microtome; dir(microtome)"))


def test_help_starts_without_anything_heavy():
    code = """
from microtome.cli.main import main
for arguments in ("--help", "--version", "models --help", "tasks show --help", "dissect --help"):
    try:
        main(arguments.split())
    except SystemExit as end:
        assert not end.code
    assert "dissect" in arguments or not {"numpy", "rich.table"} & set(sys.modules), arguments
"""
    assert set(HEAVY) & set(loaded_after("import sys" + code)) <= {"numpy"}  # dissect's help lists the tasks


def test_what_starts_without_torch():
    code = """
import importlib, sys
for name in ("errors", "points", "sites", "results", "metrics", "model.families", "tasks", "cli.main"):
    importlib.import_module("microtome." + name)
    assert not {"torch", "transformers"} & set(sys.modules), name
"""
    loaded_after(code)


def test_help_names_the_commands_and_the_tasks():
    said = cli_toys.run("--help").stdout
    assert all(name in said for name in ("dissect", "models", "tasks", "--version", "Plug-ins"))
    assert "ioi" in cli_toys.run("dissect", "--help").stdout


def test_wrong_usage_ends_with_2_and_the_nearest_name():
    done = cli_toys.run("dissekt", "ioi")
    assert done.exit_code == 2 and "dissect" in done.stderr and "Traceback" not in done.stderr
    for arguments in (
        ["dissect"],
        ["dissect", "ioi", "--clean", "a"],
        ["dissect", "--clean", "a"],
        ["dissect", "ioi", "--pairs", "0"],
    ):
        assert cli_toys.run(*arguments).exit_code == 2, arguments


def test_a_users_error_is_one_screen_on_stderr():
    done = cli_toys.run("tasks", "show", "iou")
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "instead:" in done.stderr and "ioi" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) < 10


def test_a_traceback_for_who_asks(monkeypatch):
    monkeypatch.setenv(failures.TRACEBACK, "1")
    with pytest.raises(LookupError):
        cli_toys.run("tasks", "show", "iou")


def test_a_defect_says_how_to_report_it(monkeypatch, capsys):
    def broken(*a, **k):
        raise ZeroDivisionError("deep\ninside")

    monkeypatch.setattr("microtome.tasks.describe", broken)
    with pytest.raises(SystemExit) as end:
        main.main(["tasks", "list"])
    said = capsys.readouterr()
    assert end.value.code == failures.DEFECT and said.out == ""
    assert "unexpected ZeroDivisionError: deep" in said.err and failures.TRACEBACK in said.err
    assert "inside" not in said.err and len(said.err.splitlines()) == 3


@pytest.mark.parametrize(
    "error, word",
    [
        (OSError(28, "No space left on device", "/x"), "No space left"),
        (MemoryError(), "Memory ran out"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nat x"),
            "Memory ran out",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB"), "Memory ran out"),
    ],
)
def test_the_systems_refusals_are_explained(monkeypatch, error, word):
    def refuse(*a, **k):
        raise error

    monkeypatch.setattr("microtome.tasks.describe", refuse)
    done = cli_toys.run("tasks", "list")
    assert done.exit_code == 1 and word in done.stderr and "instead:" in done.stderr


def test_an_error_without_a_stderr_does_not_stand_in_the_results():
    code = "import os, sys; os.close(2); sys.stderr = None\nfrom microtome.cli.main import main\nmain(['tasks', 'show', 'iou'])"
    assert python(code)[:2] == (1, "")


def test_ctrl_c_ends_with_130(monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr("microtome.tasks.describe", stop)
    done = cli_toys.run("tasks", "list")
    assert done.exit_code == 130 and "interrupted; nothing was kept" in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    code = "from microtome.cli.main import main; main(['tasks', 'list'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == failures.PIPE
    process.stderr.close()


def test_nothing_that_a_terminal_would_obey_gets_through(capsys):
    evil = "a\x1b[2Jb\u202ec\x07\n"
    failures.show(TaskError(evil, why=evil, instead="[bold]x[/bold]"))
    output.say(evil)
    output.table(("head",), [(evil,), ("[red]y[/red]",)])
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert not {"\x1b", "\u202e", "\x07"} & set(text)
    assert "[bold]x[/bold]" in said.err and "[red]y[/red]" in said.out


def test_tables_in_a_pipe_are_aligned_and_whole(capsys):
    long = "x" * 300
    output.table(("a", "b"), [("日本", long), ("c", "d")], title="T")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "T" and lines[2] == "日本  " + long and lines[3] == "c     d"


def test_a_terminal_gets_a_drawn_table_with_numbers_to_the_right():
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=40, markup=False, no_color=True)
    output.table(("name", "value"), [("a", "1"), ("b", "-12.5")], to=console)
    lines = [line.rstrip() for line in cli_toys.ANSI.sub("", screen.getvalue()).splitlines()]
    assert any(line.endswith("    1") for line in lines) and any("─" in line for line in lines)


def test_a_narrow_terminal_cuts_no_words():
    from rich.console import Console

    head, rows = (
        ("check", "verdict", "rules out"),
        [("projections", "passed", "a fused projection cut wrongly")] * 2,
    )
    for width, drawn in ((60, True), (30, False)):
        screen = io.StringIO()
        output.table(head, rows, to=Console(file=screen, force_terminal=True, width=width, no_color=True))
        shown = cli_toys.ANSI.sub("", screen.getvalue())
        assert ("\u2500" in shown) is drawn and max(map(len, shown.splitlines())) <= width
        assert all(shown.count(word) == 2 for word in ("projections", "passed", "projection cut", "wrongly"))


def test_json_has_no_nan_and_no_objects():
    from pathlib import Path

    import numpy as np
    import pandas as pd

    told = output.plain(
        {
            "a": float("nan"),
            "b": np.float32(1.5),
            "c": pd.DataFrame({"x": [1]}),
            "d": {Path("p")},
            3: (1, None),
        }
    )
    assert told == {"a": None, "b": 1.5, "c": [{"x": 1}], "d": ["p"], "3": [1, None]}
    json.dumps(told, allow_nan=False)
