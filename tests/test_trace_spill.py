"""Captures beyond a memory budget: the same numbers from files, nothing overwritten, nothing left behind."""

from __future__ import annotations

import gc

import pytest
import torch

import tiny
from microtome.errors import ResourceError
from microtome.facade import Model

SITES = ["L*.resid_pre", "L*.pattern", "L0H1.z@-1", "L1.mlp_out!before"]
PROMPTS = [[3, 4, 5, 6], [7, 8]]


@pytest.fixture
def model():
    return tiny.loaded("llama")


def test_spilled_captures_are_the_same_numbers(model: Model) -> None:
    held = model.run(PROMPTS, SITES)
    spilled = model.run(PROMPTS, SITES, memory=0)
    assert not held.files and len(spilled.files) == len(held.reads)
    for site in ("L0.resid_pre", "L1.resid_pre@-1", "L1H1.pattern", "L0H1.z@-1", "L1.mlp_out!before"):
        torch.testing.assert_close(spilled[site], held[site], rtol=0, atol=0, equal_nan=True)


def test_the_budget_is_used_before_the_disk(model: Model) -> None:
    one = 2 * 4 * model.facts.d_model * 4
    trace = model.run(PROMPTS, "L*.resid_pre", memory=one)
    assert [path.name for path in trace.files] == [f"L{i}.resid_pre.safetensors" for i in range(1, model.facts.n_layers)]  # fmt: skip


def test_what_goes_to_disk_is_said_once_and_by_the_trace(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    held = model.run(PROMPTS, SITES)
    assert (
        not caplog.records
        and "3 captures" in repr(model.run(PROMPTS, "L*.resid_pre"))
        and "disk" not in repr(held)
    )
    spilled = model.run(PROMPTS, SITES, memory=0)
    (record,) = caplog.records
    folder = str(spilled.files[0].parent)
    assert "memory budget" in record.getMessage() and folder in record.getMessage()
    assert f"{len(spilled.files)} of them on disk in {folder}" in repr(spilled)


def test_temporary_files_go_with_the_trace_and_given_ones_stay(model: Model, tmp_path) -> None:
    trace = model.run(PROMPTS, "L0.resid_pre", memory=0)
    (path,) = trace.files
    value = trace["L0.resid_pre"]
    assert path.exists()
    del trace
    gc.collect()
    assert not path.parent.exists() and bool(torch.isfinite(value[0]).all())
    kept = model.run(PROMPTS, "L0.resid_pre", memory=0, folder=tmp_path / "kept").files
    gc.collect()
    assert [p.exists() for p in kept] == [True]


def test_an_earlier_runs_files_are_never_overwritten(model: Model, tmp_path) -> None:
    model.run(PROMPTS, "L0.resid_pre", memory=0, folder=tmp_path)
    with pytest.raises(ResourceError, match="there already"):
        model.run(PROMPTS, "L0.resid_pre", memory=0, folder=tmp_path)


def test_a_full_disk_is_said_before_anything_is_written(model: Model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("microtome.model.paths.free_bytes", lambda path: 10)
    with pytest.raises(ResourceError, match="free disk"):
        model.run(PROMPTS, "L0.resid_pre", memory=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())
