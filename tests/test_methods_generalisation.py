"""The generalisation matrix: one planted direction serves other words, a coin does not, and shared groups are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import probed
from microtome import methods
from microtome.cli import summary
from microtome.errors import TaskError
from microtome.methods.probing.design import design
from microtome.methods.probing.generalising import _Set, fair
from microtome.methods.probing.options import ProbeOptions
from microtome.report.numbers import headline
from microtome.report.outline import outline

FAST = probed.FAST


@pytest.fixture(scope="module")
def model():
    return probed.model()


def test_one_direction_serves_both_datasets(model):
    result = methods.generalisation(model, probed.halves(), options=FAST, seed=0)
    assert result.verdict == "supported", result.verdict.reasons
    matrix = result.tables["matrix"].set_index(["trained", "tested"])
    assert (matrix["value"] > 0.99).all() and (matrix["p"] <= 0.05).all()
    cosines = result.tables["cosines"].set_index(["first", "second"])
    assert cosines.loc[("words 0", "words 1"), "value"] > 0.9
    assert cosines.loc[("words 0", "words 0"), "value"] == pytest.approx(1.0)


def test_a_dataset_with_coins_for_labels_neither_gives_nor_takes(model):
    one, two = probed.halves()
    result = methods.generalisation(model, [one, probed.relabelled(two, seed=1)], options=FAST, seed=0)
    assert result.verdict != "supported"
    off = result.tables["matrix"].query("trained != tested")
    assert (off["p"] > 0.001).any()


def test_opposite_labels_are_read_backwards(model):
    one, two = probed.halves()
    turned = replace(two, labels=tuple(1 - y for y in two.labels))
    result = methods.generalisation(model, [one, turned], options=FAST, seed=0)
    off = result.tables["matrix"].query("trained != tested")
    assert (off["value"] < 0.01).all() and (off["value"] <= off["null_low"]).all()
    assert result.tables["cosines"].query("first != second")["value"].max() < -0.9


def test_texts_about_a_group_of_the_rows_training_are_left_out():
    data = probed.texts()
    options = ProbeOptions.of(FAST)
    one, two = (
        _Set(design(d, options, seed), {}) for seed, d in enumerate((data, replace(data, name="again")))
    )
    rows = fair(one, two)
    met = {data.groups["word"][i] for i in one.d.train}
    assert len(rows) < len(two.d.test) and not met & {data.groups["word"][i] for i in rows}
    same = _Set(replace(one.d, test=one.d.train), {})
    assert len(fair(one, same)) == 0


def test_a_grouping_that_the_split_does_not_hold_apart_leaves_no_text_out():
    """One template over all texts: only the words are split, so the datasets are still tested on themselves."""
    both = [replace(d, groups={**d.groups, "template": ("the same",) * len(d)}) for d in probed.halves()]
    options = ProbeOptions.of({**FAST, "by": ("word",)})
    for data in both:
        one = _Set(design(data, options, 0), {})
        assert one.d.held == ("word",) and len(fair(one, one)) == len(one.d.test)
    found = methods.generalisation(
        probed.model(), both, options={**FAST, "by": ("word",), "twin": False}, seed=0
    )
    home = found.tables["matrix"].query("trained == tested")
    assert len(home) == 2 and (home["n"] > 0).all() and (home["value"] > 0.9).all()
    assert np.isfinite(home[["null_low", "null_high"]]).all().all()


def test_a_whole_with_probes_of_its_own_says_its_numbers_and_whose_they_are(model, capsys):
    result = methods.generalisation(
        model, probed.halves(), each=True, options={**FAST, "twin": False}, seed=0
    )
    stages = outline(result)
    assert [s.name for s in stages] == ["probe of words 0", "probe of words 1"]
    assert [n.label for n in headline(result, stages)] == result.tables["headline"]["label"].tolist()
    summary.show(result)
    said = capsys.readouterr().out
    assert "mean over pairs" in said and "probe of words 1" in said
    assert said.count(result.children[0].calibration[:30]) == 1


@pytest.mark.parametrize("data", [lambda: [probed.texts()], lambda: [probed.texts()] * 2])
def test_one_dataset_or_two_of_one_name_are_refused(model, data):
    with pytest.raises(TaskError, match="datasets called"):
        methods.generalisation(model, data(), options=FAST)


def test_effects_have_the_areas_as_their_means(model):
    result = methods.generalisation(model, probed.halves(), options={**FAST, "twin": False}, seed=0)
    assert result.verdict == "unchecked"
    for row in result.tables["matrix"].to_dict("records"):
        values = result.effects.sel(metric=f"{row['trained']} -> {row['tested']}").values
        assert np.nanmean(values) == pytest.approx(row["value"], abs=1e-6)
