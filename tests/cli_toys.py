"""A dissection in miniature for the tests of the command line: real techniques, events and results, no model."""

from __future__ import annotations

import re
import sys
import time
import types

import numpy as np
from typer.testing import CliRunner

import microtome
from microtome.errors import TaskError
from microtome.results import Control, Labelled, Result, progress, technique, verdict

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class FakeModel:
    """What the commands themselves ask of a model."""

    hash = "ab12"
    name, source, card = "toy", "folder: toy", "A toy."
    reasons = {"dtype": "float32: the only one"}
    numerics = {"dtype": "float32", "attention": "sdpa", "device": "cpu"}

    def __repr__(self):
        return "Model('toy')"


class FakeTask:
    """n pairs."""

    def __init__(self, name, n):
        self.name, self.n, self.hash = name, n, f"{n:04x}"
        self.provenance = {"notes": tuple(f"line {i}: no leading space" for i in range(n))}


@technique("toy_stage", "1", controls=("identity", "noise"), mandatory=("noise",))
def toy_stage(model, task, size=1.0, fails=False):
    """Effects of `size` at two sites."""
    progress(1, 2, "cells", "L0.z")
    progress(2, 2, "cells", "L1.z")
    effects = Labelled(
        np.array([[[0.1 * size]] * 3, [[-size]] * 3], dtype=np.float32),
        ("site", "prompt", "metric"),
        {"site": ("L0.z@-1", "L1H2.z@-1"), "prompt": (0, 1, 2), "metric": ("logit_diff",)},
    )
    controls = (
        Control("identity", "a broken engine", "0", 0.0, True, 2, gates=True),
        Control("noise", "any change of this size would do", "0", 0.9, not fails, 4, null=(-0.1, 0.1)),
    )
    return Result("activation_patching", effects=effects, controls=controls, verdict=verdict(controls, ("noise",), 0.0005, 0.001, 0.0001))  # fmt: skip


@technique("toy_dissect", "1", random=True)
def toy_dissect(model, task, pairs=16, seed=0):
    """Two stages, the second of which breaks off or refuses where the test wants it to."""
    progress(0, None, "stages", "residual stream")
    first = toy_stage(model, task, 2.5)
    progress(1, None, "stages", "attention outputs")
    match STATE.then:
        case "interrupt":
            raise KeyboardInterrupt
        case "wait":
            time.sleep(60)
        case "refuse":
            raise TaskError("what \x1b[31mhappened", why="the reason", instead="the way out")
        case "full":
            raise OSError(28, "No space left on device")
        case "crash":
            raise ZeroDivisionError("in the middle")
    return Result("toy_dissect", children=(first, toy_stage(model, task, 1.0, fails=True)))


class State:
    """What the doubles were told and did."""

    def __init__(self):
        self.then, self.loaded, self.made, self.calls, self.reports = "", [], [], [], []


STATE = State()


def install(monkeypatch):
    """Put the doubles where the commands look."""
    STATE.__init__()

    def load(name, **options):
        STATE.loaded.append(name)
        options["progress"]("reading weights")
        return FakeModel()

    def dissect(model, task, *, pairs=16, seed=0):
        STATE.calls.append((task if isinstance(task, str) else task.n, pairs, seed))
        return toy_dissect(model, task, pairs=pairs, seed=seed)

    def write_report(result, path, *, command, folder):
        assert (folder / "result.json").exists()  # saved first
        if STATE.then == "no report":
            raise ValueError("cannot draw")
        STATE.reports.append(command)
        path.write_text("<html></html>", encoding="utf-8")
        return path

    def plan(model, task, pairs=16, seed=0):
        return [("where", pairs, 3.0), ("sets", 2 * pairs, 100.0)]

    module = types.SimpleNamespace(dissect=dissect, plan=plan)
    monkeypatch.setitem(sys.modules, "microtome.dissect", module)
    monkeypatch.setattr(microtome, "load", load)

    def pairs(model, source=None, **lists):
        STATE.made.append((source, lists))
        return FakeTask("pairs", 30 if source else len(lists["clean"]))

    monkeypatch.setattr("microtome.tasks.pairs", pairs)
    monkeypatch.setattr("microtome.report.write_report", write_report)
    return STATE


def run(*arguments):
    """One call of the command line inside this process; streams apart, without colours."""
    from microtome.cli.main import app

    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="microtome")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done
