"""Seeds, calibration, and what importing the package costs."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import microtome.results
from microtome.errors import ResultError
from microtome.results import calibration, calibration_line
from microtome.results.seeds import child, rng


def test_child_seeds_are_literal_constants():
    # changing these changes every number that was ever drawn
    assert child(0, "sign_flip") == 72980020762182729
    assert child(1, "sign_flip") == 4408587925808738510
    assert int(rng(0, "sign_flip").integers(1 << 62)) == 2175918724938909094


def test_child_seeds_depend_on_seed_and_name_alone():
    names = [f"n{i}" for i in range(200)] + ["", "0"][1:]
    seen = {child(seed, name) for seed in (0, 1, 10, 2**70) for name in names}
    assert len(seen) == 4 * len(names)
    assert child(1, "0/x") != child(10, "/x") and child(child(0, "a"), "b") != child(child(0, "b"), "a")
    assert all(0 <= s < 2**63 for s in seen) and child(np.int64(3), "x") == child(3, "x")
    assert np.array_equal(rng(0, "a").normal(size=5), rng(0, "a").normal(size=5))
    assert not np.array_equal(rng(0, "a").normal(size=5), rng(0, "b").normal(size=5))


@pytest.mark.parametrize(
    ("seed", "name"), [(None, "a"), (True, "a"), (-1, "a"), (0.0, "a"), ("0", "a"), (0, ""), (0, 3)]
)
def test_child_refuses(seed, name):
    with pytest.raises(ResultError):
        child(seed, name)


# --------------------------------------------------------------------------------------- calibration

RATES = {"recall": [0.9, 0.8, 0.97], "false discoveries": [0.1, 0.0, 0.2], "false alarms": [0.01, 0.0, 0.02]}
TIER = {
    "models": 12,
    "rates": {k: dict(zip(("value", "low", "high"), v, strict=True)) for k, v in RATES.items()},
}
SETTING = {"name": "noise", "threshold": "p <= 0.001", "match": {"mode": "noise"}, "tiers": {"A": TIER}}
DENOISE = {**SETTING, "name": "denoise", "match": {"mode": "denoise", "choices.ablation": "zero"}}
ENTRY = {"code_hash": "aa", "date": "2025-01-02", "settings": [SETTING, DENOISE]}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    def put(content):
        path = tmp_path / f"c{len(list(tmp_path.iterdir()))}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setattr(calibration, "_FILE", path)

    return put


def one(entry):
    return {"schema_version": 2, "entries": {"patching": {"1": entry}}}


def test_the_shipped_file_can_be_read():
    assert calibration_line("no_such_technique", "1", "aa") == "not calibrated"


def test_calibration_is_of_one_version_and_one_code(shipped):
    shipped(one(ENTRY))
    line = calibration_line("patching", "1", "aa")
    assert line == (
        "On 12 constructed models: recall 0.9 [0.8, 0.97], false discoveries 0.1 [0, 0.2], false alarms 0.01 [0, 0.02] "
        "at the threshold p <= 0.001 (noise). Small models: not a bound for yours."
    )
    assert calibration_line("patching", "2", "aa") == "not calibrated"
    assert calibration_line("ablation", "1", "aa") == "not calibrated"
    stale = calibration_line("patching", "1", "bb")
    assert stale.startswith("not calibrated") and "2025-01-02" in stale and "recall" not in stale


def test_a_rate_is_of_the_setting_that_was_called(shipped):
    shipped(one(ENTRY))
    called = {"mode": "denoise", "choices": {"ablation": "zero", "seed": 0}, "seed": 3}
    assert "(denoise)" in calibration_line("patching", "1", "aa", called)
    assert "(noise)" in calibration_line("patching", "1", "aa", {"mode": "noise"})
    other = calibration_line("patching", "1", "aa", {"mode": "denoise", "choices": {"ablation": "mean"}})
    assert other.startswith("not calibrated in this setting") and "noise; denoise" in other


def test_a_technique_that_flags_nothing_says_why_and_an_empty_rate_is_no_zero(shipped):
    shipped(one({"code_hash": "aa", "date": "2025-01-02", "silent": "it flags no part"}))
    assert calibration_line("patching", "1", "aa") == "not calibrated: it flags no part"
    empty = {**TIER, "rates": {**TIER["rates"], "false discoveries": dict.fromkeys(("value", "low", "high"))}}
    shipped(one({**ENTRY, "settings": [{**SETTING, "tiers": {"A": empty}}]}))
    assert "false discoveries unknown, false alarms 0.01" in calibration_line("patching", "1", "aa")
    shipped(one({**ENTRY, "settings": [{**SETTING, "tiers": {"B": TIER}}]}))
    assert calibration_line("patching", "1", "aa").startswith("not calibrated: no constructed model")


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        "{}",
        {"schema_version": 1, "entries": {}},
        {"schema_version": 2, "entries": []},
        {"schema_version": 2, "entries": {"patching": []}},
        one({}),
        one([]),
        one({**ENTRY, "settings": []}),
        one({**ENTRY, "settings": [{**SETTING, "tiers": {"A": {**TIER, "rates": {"recall": 0.9}}}}]}),
    ],
)
def test_a_damaged_calibration_file_is_an_error_not_a_blank(shipped, content):
    shipped(content)
    with pytest.raises(ResultError, match="calibration file"):
        calibration_line("patching", "1", "aa")


# --------------------------------------------------------------------------------------------- import


def run(script, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    script = """
        import sys, time
        start = time.perf_counter()
        import microtome.results
        spent = time.perf_counter() - start
        heavy = {"numpy", "pandas", "pyarrow", "plotly", "torch", "scipy", "safetensors", "inspect", "dataclasses"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        print(spent)
    """
    times = sorted(float(run(script)) for _ in range(3))
    # 50 ms is the budget with compiled bytecode on an idle machine; the module list above is what guards it
    assert times[0] < 0.25, times


def test_results_are_made_judged_and_seen_without_torch_or_plotly(tmp_path):
    script = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "plotly", "scipy"):
                    raise AssertionError("imported " + name)
        sys.meta_path.insert(0, Refuse())
        from microtome.results import Result, open_result, technique
        @technique("tiny", "1")
        def tiny():
            return Result("tiny")
        result = tiny()
        assert open_result(result.save({str(tmp_path / "r")!r})) == result
        result.frame()
    """
    run(script, "-W", "error")


def test_the_decorator_stays_a_function_whichever_import_comes_first():
    for first in (
        "microtome.results.technique",
        "microtome.results",
        "microtome.results.store",
        "microtome.results.html",
    ):
        run(f"import {first}\nfrom microtome.results import technique\nassert technique('x', '1')")


def test_every_public_name_is_there_and_typed():
    assert set(microtome.results.__all__) == set(microtome.results._HOME) | {"technique"}
    for name in microtome.results.__all__:
        assert getattr(microtome.results, name) is not None
        assert name in dir(microtome.results)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        microtome.results.nonsense  # noqa: B018
