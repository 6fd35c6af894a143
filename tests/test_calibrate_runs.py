"""Running a calibration: every technique has a setting, a killed run goes on, a stale entry is noticed, errors fit a screen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from cli_toys import run
from microtome.errors import ModelError, ResultError, TaskError
from microtome.results import calibration, registry
from microtome.results.arguments import ArgumentError
from microtome.results.source import reach_hash
from microtome.zoo.calibrate import SILENT, Reading, calibrate, cases, jobs, plan, settings, table
from microtome.zoo.calibrate import runs as runs_module

ROOT = Path(__file__).parents[1]
TINY = ("ablation", "direct_logit_attribution")
COMMAND = "microtome calibrate --workers 2 --write && make docs"


def few():
    """Nine jobs that take a second: two techniques on two models."""
    return tuple(j for j in jobs(TINY, ("shift", "hist")) if j.case.seed == 0 and j.case.decoys)[:9]


def test_every_technique_has_a_setting_or_a_reason_why_it_flags_nothing():
    ours = {
        name
        for name in registry.names("techniques")
        if registry.get("techniques", name).__module__.startswith("microtome.")
    }
    marked = {s.technique for s in settings()}
    assert marked | set(SILENT) == ours and not marked & set(SILENT)
    assert all(why.startswith("it ") for why in SILENT.values())
    ids = [s.id for s in settings()]
    assert len(set(ids)) == len(ids)


def test_a_setting_answers_for_the_parameters_that_its_technique_has():
    import inspect

    for s in settings():
        known = inspect.signature(registry.get("techniques", s.technique)).parameters
        assert {name.split(".")[0] for name in s.match} <= set(known), s.id


def test_a_setting_runs_where_its_truth_is_known():
    from microtome.zoo import catalog

    assert {j.case.name for j in jobs(["model_diff"])} == {"planted_backdoor"}
    assert all(set(s.where) <= set(catalog.entries()) for s in settings())


def test_the_plan_takes_whatever_the_zoo_has(monkeypatch):
    from microtome.zoo import catalog

    every = cases()
    assert {c.name for c in every} == set(catalog.entries()) and len({c.id for c in every}) == len(every)
    assert {c.tier for c in every} <= {"A", "B"}
    trained = catalog.Entry("trained", "B", "a model", lambda **_: None)
    monkeypatch.setitem(catalog._TABLE, "trained", trained)
    new = [c for c in cases() if c.name == "trained"]
    assert [(c.tier, c.seed, c.decoys, c.slow) for c in new] == [("B", 0, False, True)]
    slow = {j.case.id for j in jobs() if j.setting.slow}
    assert {c.id for c in cases() if c.slow} == slow and len(jobs(quick=True)) < 150


def test_a_run_that_goes_on_gives_the_same_table(tmp_path):
    every = few()
    whole = calibrate(every, tmp_path / "whole")
    again = calibrate(every, tmp_path / "whole")
    assert again == whole and [x["job"] for x in whole] == [j.id for j in every]
    # what a kill in the middle of a line leaves behind
    text = (tmp_path / "whole" / "marks.jsonl").read_text()
    (tmp_path / "cut").mkdir()
    cut = tmp_path / "cut" / "marks.jsonl"
    cut.write_text(text[: len(text) // 2])
    done = []
    on = calibrate(
        every, tmp_path / "cut", progress=lambda done_, total, last: done.append((done_, total, last))
    )
    assert done[0][0] == text[: len(text) // 2].count("\n") and done[-1][0] == len(every) == done[-1][1]
    assert without_seconds(on) == without_seconds(whole)
    assert rates(on) == rates(whole) and all(json.loads(line) for line in cut.read_text().splitlines())


def without_seconds(lines):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def rates(lines):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in table.summarise(lines)]


SCRIPT = """
import sys
from microtome.zoo.calibrate import calibrate, jobs
if __name__ == "__main__":
    every = tuple(j for j in jobs(("ablation", "direct_logit_attribution"), ("shift", "hist")) if j.case.seed == 0 and j.case.decoys)[:9]
    calibrate(every, sys.argv[1], workers=2, progress=lambda *what: print(*what, flush=True))
"""


def test_two_processes_killed_in_the_middle_leave_what_another_run_finishes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True, env=env
    )
    for line in child.stdout:
        if int(line.split()[0]) >= 2:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    kept = (tmp_path / "out" / "marks.jsonl").read_text().count("\n")
    assert 2 <= kept < 9 or kept == 9
    on = calibrate(few(), tmp_path / "out")
    assert without_seconds(on) == without_seconds(calibrate(few(), tmp_path / "other"))


def test_ctrl_c_says_what_is_kept(tmp_path):
    def stop(done, total, last):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        calibrate(few(), tmp_path, progress=stop)
    assert "2 of" in stopped.value.__notes__[0] and (tmp_path / "marks.jsonl").read_text().count("\n") == 2


def test_lines_of_other_code_are_not_used(tmp_path, monkeypatch):
    job = few()[:1]
    calibrate(job, tmp_path)
    monkeypatch.setattr(runs_module, "identity", lambda technique: ("99", "other"))
    seen = []
    line = calibrate(job, tmp_path, progress=lambda done, *_: seen.append(done))[0]
    assert seen == [0, 1] and line["version"] == "99"


def test_a_refusal_is_counted_and_said_and_any_other_error_is_not_swallowed(tmp_path):
    def refuses(z, seed):
        raise TaskError("no donors", why="none are known")

    job = few()[0]
    line = calibrate([replace(job, setting=replace(job.setting, run=refuses))], tmp_path)[0]
    row = table.summarise([line])[0]
    assert (
        line["refused"] == "no donors: none are known"
        and row["models"] == 0
        and row["refused"] == {line["refused"]: 1}
    )

    def breaks(z, seed):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        calibrate([replace(job, setting=replace(job.setting, run=breaks))], tmp_path / "x")


def test_an_oracle_and_a_blind_technique_in_the_table(tmp_path):
    from microtome.zoo.calibrate import truth

    def oracle(z, seed):
        t = truth(z, "nodes", "zero")
        names = tuple(sorted(t.true | t.null))
        flags = np.array([n in t.true for n in names])
        return Reading(names, flags.astype(float), flags)

    def blind(z, seed):
        names = oracle(z, seed).names
        rng = np.random.default_rng(len(names))
        return Reading(names, rng.random(len(names)), rng.random(len(names)) < 0.5)

    zero = next(j.setting for j in few() if j.setting.name == "zero, nodes")
    every = [c for c in cases(("shift", "hist", "reverse", "mode", "induction", "parity")) if c.decoys]
    found = {}
    for name, runner in (("oracle", oracle), ("blind", blind)):
        made = [plan.Job(replace(zero, run=runner), c) for c in every]
        found[name] = table.summarise(calibrate(made, tmp_path / name))[0]["rates"]
    perfect = {k: found["oracle"][k] for k in ("recall", "auroc")}
    assert all(
        r["value"] == r["high"] == 1 and r["clusters"] == 6 and 0.5 < r["low"] < 0.6 for r in perfect.values()
    )
    assert found["oracle"]["false discoveries"]["value"] == found["oracle"]["false alarms"]["value"] == 0
    assert all(
        found["blind"][k]["low"] < 0.5 < found["blind"][k]["high"]
        for k in ("recall", "false alarms", "auroc")
    )


# ------------------------------------------------------------------------------------------- the shipped file


def test_the_shipped_calibration_is_of_this_code():
    """Measured anew by the command in the message; takes half an hour. Before the first run no result claims anything."""
    if not calibration.shipped()["date"]:
        assert calibration.shipped()["entries"] == {} and "Nothing has been measured yet" in table.page()
        return
    assert not table.stale(), f"{table.stale()}: run `{COMMAND}`"


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    path = tmp_path / "calibration.json"
    path.write_text(
        json.dumps(
            {"schema_version": 2, "date": "", "coverage": [], "quick": {}, "entries": {"gone": {"1": {}}}}
        )
    )
    monkeypatch.setattr(calibration, "_FILE", path)
    return path


def test_what_is_written_is_shown_and_goes_stale(own_file, tmp_path, monkeypatch):
    lines = calibrate(few(), tmp_path)
    assert set(table.stale()) == {s.technique for s in settings()} | set(SILENT)
    table.write(lines, [], "2025-01-02")
    assert not {*SILENT, "direct_logit_attribution"} & set(table.stale())
    assert "gone" not in json.loads(own_file.read_text())["entries"]
    code = calibration.technique_hash("ablation")
    line = calibration.calibration_line("ablation", "2", code, {"by": "zero"})
    assert line.startswith("On 2 constructed models: recall 1 [") and "(zero, nodes)" in line
    assert "mean, nodes" in calibration.calibration_line("ablation", "2", code)
    assert calibration.calibration_line("behaviour", "2", calibration.technique_hash("behaviour")).startswith(
        "not calibrated: it asks"
    )
    assert "## Tier A" in table.page() and "| ablation | zero, nodes | nodes | zero |" in table.page()
    assert table.differences([x for x in lines if x["job"] in table.counts(lines)]) == []
    moved = [{**x, "mark": {**x["mark"], "alarms": 7}} for x in lines if x["job"] in table.counts(lines)]
    assert len(table.differences(moved)) == len(moved) > 0
    monkeypatch.setattr(table, "identity", lambda technique: (runs_module.identity(technique)[0], "changed"))
    assert "code has changed since the calibration of 2025-01-02" in table.stale()["ablation"]


def test_a_result_shows_its_sentence_everywhere(own_file, tmp_path):
    from microtome import methods
    from microtome.zoo import build

    table.write(calibrate(few(), tmp_path), [], "2025-01-02")
    z = build("hist")
    result = methods.ablation(z.model, z.task, by="zero")
    assert result.calibration.startswith("On 2 constructed models: recall")
    assert result.calibration in repr(result) and result.calibration in unescape(result._repr_html_())
    texts = " ".join(a.text for a in result.figure().layout.annotations).replace("<br>", " ")
    assert result.calibration in unescape(texts)
    assert (
        methods.activation_patching(z.model, z.task, sites="L0.resid_pre", controls="none").calibration
        == "not calibrated"
    )


# ------------------------------------------------------------------------------------------- what the hash covers


def test_the_hash_follows_what_decides_and_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "toy_calibrated"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    from microtome.results import source

    def hashed(text, name=[0]):  # noqa: B006 - counts the modules
        name[0] += 1
        (tmp_path / f"toy_hash_{name[0]}.py").write_text(text)
        return reach_hash(f"toy_hash_{name[0]}").replace(f"toy_hash_{name[0]}", "")

    assert reach_hash("microtome.methods.patching") == reach_hash("microtome.methods.patching") != ""
    assert reach_hash("microtome.no_such") == reach_hash("toy_calibrated") == ""
    bare = [
        source._bare(t, __import__("ast").parse(t))
        for t in ("X = 1\n", '"""Doc."""\n\n# why\nX = 1  \n', "if TYPE_CHECKING:\n    import a\nX = 1\n")
    ]
    assert bare[0] == bare[1] == bare[2] == "X = 1"
    text = 'X = """\n# kept\n"""\n'
    assert "# kept" in source._bare(text, __import__("ast").parse(text))
    assert hashed("X = 1\n") != hashed("X = 2\n")


def test_the_hash_reaches_below_the_techniques_own_file(monkeypatch):
    from microtome.results import source

    before = {
        t: calibration.technique_hash(t)
        for t in ("activation_patching", "direct_logit_attribution", "circuit_discovery")
    }
    real = source._read.__wrapped__

    def changed(name):
        found = real(name)
        return (found[0] + "\nX = 1", found[1]) if found and name == "microtome.graph.scores" else found

    source.reach_hash.cache_clear()
    monkeypatch.setattr(source, "_read", changed)
    after = {t: calibration.technique_hash(t) for t in before}
    source.reach_hash.cache_clear()
    assert after["circuit_discovery"] != before["circuit_discovery"]
    assert all(after[t] == before[t] for t in ("activation_patching", "direct_logit_attribution"))


def test_showing_a_result_needs_no_torch():
    code = (
        "import sys\nfrom microtome.results.calibration import technique_hash as h\n"
        "assert len(h('activation_patching')) == 32 and len(h('circuit_discovery')) == 32\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--only", "ablatio"], 1, "did you mean 'ablation'"),
        (["--only", "behaviour"], 1, "it asks whether"),
        (["--models", "rever"], 1, "did you mean 'reverse'"),
        (["--quick", "--write"], 2, "--write needs every model"),
        (["--check"], 2, "give --quick alone"),
        (["--workers", "0"], 2, "workers"),
    ],
)
def test_mistakes_fit_one_screen(words, code, said, tmp_path):
    done = run("calibrate", "--out", str(tmp_path), *words)
    assert done.exit_code == code and said in done.stderr.replace("\n", " "), done.stderr
    assert len(done.stderr.splitlines()) < 24 and not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "marks.jsonl").write_text("hello\n")
    with pytest.raises(ResultError, match="line 1 of .* is no finished job"):
        calibrate(few(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot be written to"):
        calibrate(few(), tmp_path / "file" / "below")
    with pytest.raises(ArgumentError):
        jobs(["nothing"])
    with pytest.raises(ModelError):
        cases(["nothing"])


def test_the_command_prints_a_table_and_the_same_as_json(tmp_path):
    words = ["calibrate", "--only", "direct_logit_attribution", "--models", "shift", "--out", str(tmp_path)]
    first, again = run(*words), run(*words, "--json")
    assert first.exit_code == again.exit_code == 0, first.stderr
    assert "Tier A: true by construction" in first.stdout and "writers to the logits" in first.stdout
    assert "3 jobs on 3 models, about" in first.stderr and "Coverage" in first.stdout
    told = json.loads(again.stdout)
    assert told["rows"][0]["rates"]["recall"]["value"] == 1 and len(told["coverage"]) >= 10
