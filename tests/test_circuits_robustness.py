"""The six choices swept: each is changed, what cannot be measured says why, and a fragile circuit is called so."""

from __future__ import annotations

import numpy as np
import pytest

import planted
import tiny
from microtome import circuits
from microtome.circuits import Choices, Circuit
from microtome.circuits.judged import SIX
from microtome.errors import SiteError

TRUE = ("embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits")


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


@pytest.fixture(scope="module")
def swept(model, task):
    circuit = Circuit(TRUE, circuits.graph(model).shape, model.hash)
    return circuit.robustness(model, task, sets={"others": planted.pairs_done(model, seed=3)})


def test_all_six_are_changed_and_stored(swept):
    table = swept.tables["settings"]
    assert swept.query.method == "circuit_robustness"
    assert set(table["choice"]) == {"", *SIX} and set(SIX) <= set(table.columns)
    assert swept.control("all_six").passed is True
    by = table.set_index("setting")
    assert (
        list(by.loc[["node", "heads", "zero", "denoise", "others", "only @subject"], "value"].notna())
        == [True] * 6
    )
    assert by.loc["zero", "ablation"] == "zero" and by.loc["denoise", "direction"] == "denoise"
    assert by.loc["node", "granularity"] == "node" and by.loc["heads", "component"] == "heads"
    assert (
        by.loc["only @end", "positions"] == "spans"
        and by.loc["others", "prompts"] != by.loc["node", "prompts"]
    )


def test_the_planted_circuit_is_whole_wherever_the_donor_is_the_pairs_own(swept):
    table = swept.tables["settings"].query("ablation == 'corrupt'")
    done = table[table["value"].notna()]
    np.testing.assert_allclose(done["value"], 1, atol=1e-3)
    whole = done[(done["direction"] == "noise") & ~done["setting"].str.startswith("only")]
    assert (whole["null_high"] < 0.95).all() and (whole["p"] <= 0.05).all()
    # with all else left in at the other positions, one edge alone is enough, and random circuits that have it (one in
    # twelve) do as well
    assert done.set_index("setting").loc["only @end", "null_high"] == pytest.approx(1, abs=1e-3)
    assert "only @end" in swept.control("random_circuits").detail


def test_what_cannot_be_measured_says_why(swept):
    table = swept.tables["settings"].set_index("setting")
    assert "reference" in table.loc["mean", "why"] and np.isnan(table.loc["mean", "value"])
    assert (
        "constant" in table.loc["mlps", "why"]
    )  # only heads write here: with all of them in, nothing can be lost


def test_effects_are_per_prompt_on_the_tasks_own_prompts(swept, task):
    sites = swept.effects.coords["site"]
    assert sites[0] == "as found" and not any(s.startswith("prompts") for s in sites)
    assert swept.effects.values.shape == (len(sites), task.n, 1)


def test_a_circuit_that_depends_on_a_choice_is_called_fragile(model, task):
    """Without the keys it is faithful where nodes are kept whole, not where edges are."""
    part = Circuit(("embed->L1KV1.v", "L1H2.z->logits"), circuits.graph(model).shape, model.hash)
    result = part.robustness(model, task)
    table = result.tables["settings"].set_index("setting")["value"]
    assert table["node"] == pytest.approx(1, abs=1e-3) and abs(1 - table["as found"]) > 0.2
    assert result.control("robust").passed is False
    assert result.verdict.word == "not distinguishable from its null"
    assert "fails robust" in result.figure().layout.title.text.replace("<br>", " ").replace("</b> <b>", " ")


def test_a_grid_takes_every_possible_combination(model, task):
    circuit = Circuit(TRUE, circuits.graph(model).shape, model.hash)
    result = circuits.circuit_robustness(model, circuit, task, grid=True, draws=0, prompts=4)
    table = result.tables["settings"]
    swept = table[~table["choice"].isin(["", "prompts"]) & ~table["setting"].str.startswith("only")]
    assert len(swept) == 2 * 3 * 2 * 5 - 1  # denoising goes with one of the four ablations
    assert result.control("random_circuits").passed is None and result.verdict.word == "unchecked"


def test_prompts_without_spans_cannot_be_swept_by_position(model, task):
    from dataclasses import replace

    bare = replace(task, clean=replace(task.clean, spans={}), corrupt=replace(task.corrupt, spans={}))
    circuit = Circuit(TRUE, circuits.graph(model).shape, model.hash)
    result = circuit.robustness(model, bare)
    control = result.control("all_six")
    assert control.passed is False and "no spans in common" in control.detail


def test_refusals(model, task):
    circuit = Circuit(TRUE, circuits.graph(model).shape, model.hash)
    with pytest.raises(SiteError, match="another model"):
        circuit.robustness(tiny.loaded("llama"), task)
    with pytest.raises(SiteError, match="denoise"):
        Choices(direction="denoise", ablation="zero")
