"""The numbers to read first: every technique that is no stage of a dissection has some, each beside its null, and both are shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import diffed
import planted
import toy_results
from microtome import methods
from microtome.cli import summary
from microtome.methods.headlines import headline_table, headlined
from microtome.report import write_report
from microtome.results import open_result
from test_methods_every import RECIPES

KINDS = ("chain_of_thought", "composition", "cross_model_patching", "directional_ablation", "function_vector", "generalisation", "head_roles",
         "lenses", "max_activating", "model_diff", "probe", "prompt_grid", "score_description", "steering", "token_attribution", "unsupervised")  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


@pytest.mark.parametrize("kind", KINDS)
def test_two_to_four_numbers_each_beside_its_null_saved_and_shown(kind, model, task, tmp_path, capsys):
    result = RECIPES[kind](model, task, None)
    told = result.tables["headline"]
    assert 1 <= len(told) <= 4 and told["label"].is_unique
    assert np.isfinite(told[["value", "null_low", "null_high"]]).all().all()
    assert (told["null_low"] <= told["null_high"]).all() and (told["null"].str.len() > 3).all()
    assert not told["label"].str.contains(r"(?<![.\w])[a-z]+_[a-z]").any(), "names of columns are no words"
    known = told["low"].notna()
    assert (told.loc[known, "low"] <= told.loc[known, "value"] + 1e-9).all()
    assert (told.loc[known, "high"] >= told.loc[known, "value"] - 1e-9).all()
    again = open_result(result.save(tmp_path / "r"))
    assert again.tables["headline"].equals(told)
    page = write_report(again, tmp_path / "report.html").read_text("utf-8")
    summary.show(again)
    said = capsys.readouterr().out
    for label in told["label"]:
        assert label in said
    assert page.count('class="mini"') >= len(told)


def test_a_number_without_a_null_is_left_out(model, task):
    result = RECIPES["token_attribution"](model, task, None)
    areas = result.tables["areas"].assign(null_high=np.nan)
    bare = replace(result, tables={k: v for k, v in {**result.tables, "areas": areas}.items() if k != "headline"})  # fmt: skip
    assert "headline" not in headlined(bare).tables


def test_a_kind_without_numbers_stays_as_it_is(model, task):
    result = RECIPES["behaviour"](model, task, None)
    assert headlined(result) is result


def test_every_column_is_there_whatever_the_rows_say():
    made = headline_table([{"label": "a", "value": 1.0}])
    assert made.loc[0, "null"] == "" and np.isnan(made.loc[0, "n"]) and made["n"].dtype == float


def test_a_real_difference_of_two_models_is_told_where_it_stands_out():
    without, having, texts, _ = diffed.backdoored()
    told = methods.model_diff(without, having, texts, options=diffed.FEW, seed=0).tables["headline"].set_index("label")  # fmt: skip
    inside = next(name for name in told.index if name.startswith("difference inside"))
    assert told.loc[inside, "value"] > 0 and told.loc["difference of the outputs", "value"] > 0
    assert told.loc["difference of the outputs", "unit"] == "KL divergence (nats)"


def test_the_numbers_of_steering_are_those_of_the_reported_dose(model, task):
    result = RECIPES["steering"](model, task, None)
    dose = result.tables["dose"].query("reported").iloc[0]
    told = result.tables["headline"].set_index("label")
    at = f"at dose {dose['coefficient']:g}"
    assert told.index[0].endswith(at) and told["value"].iloc[0] == float(result.frame()["value"].iloc[0])
    fluent = told.loc[f"perplexity of its text {at}"]
    assert fluent["value"] == dose["perplexity"] and fluent["null"] == "unsteered text"


def test_asking_in_words_is_a_band_beside_the_change():
    told = headlined(toy_results.steering()).tables["headline"]
    words = told[told["label"].str.endswith("in words")].iloc[0]
    assert (words["null_low"], words["null_high"]) == (1.5, 2.3) and words["null"].startswith("system prompt")


def test_a_sibling_concept_stands_apart_from_the_words_that_ask_for_it():
    result = toy_results.steering()
    base = result.tables["baselines"]
    base.loc[base["kind"] == "sibling", ["value", "low", "high"]] = 2.0, 1.8, 2.2
    told = headlined(replace(result, tables={**result.tables, "baselines": base})).tables["headline"]
    by = told.set_index(told["label"].str.split(" ").str[-1])["null"]
    assert by["words"].startswith("system prompt") and by["concept"].startswith("sibling: calm")
