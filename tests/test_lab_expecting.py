"""Expectations: the row that is meant and no other, bounds that include themselves, and what stays unresolved."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toy_results as toy
from microtome.errors import LabError, SiteError
from microtome.lab.expecting import Expectation, Outcome, evaluate, expect
from microtome.results import Control, Labelled, Result, verdict

HEADS = toy.heads(layers=4)
SPREAD = toy.patching(layers=6)
VALUE = float(HEADS.effects.values[1, :, 0].mean(dtype=np.float64))  # of L0H1.z


def test_the_toys_are_as_the_tests_take_them() -> None:
    assert HEADS.effects.coords["site"][1] == "L0H1.z" and SPREAD.effects.dims[:2] == ("site", "position")


def test_one_row_and_bounds_that_include_themselves() -> None:
    outcome = evaluate(expect("effects", site="L0H1.z", low=VALUE, high=VALUE), HEADS)
    assert outcome.held is True and outcome.observed == pytest.approx(VALUE)
    assert evaluate(expect("effects", site="L0H1.z", equals=VALUE), HEADS).held is True
    above, below = np.nextafter(VALUE, math.inf), np.nextafter(VALUE, -math.inf)
    assert evaluate(expect("effects", site="L0H1.z", low=above), HEADS).held is False
    assert evaluate(expect("effects", site="L0H1.z", high=below), HEADS).held is False
    assert "expected at most" in evaluate(expect("effects", site="L0H1.z", high=below), HEADS).why


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 11), st.floats(-1, 1), st.floats(-1, 1))
def test_it_holds_exactly_where_the_number_lies_within(row: int, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    value = float(HEADS.effects.values[row, :, 0].mean(dtype=np.float64))
    outcome = evaluate(expect("effects", site=f"L{row // 9}H{row % 9}.z", low=low, high=high), HEADS)
    assert outcome.held is (low <= value <= high) and outcome.observed == pytest.approx(value)


@pytest.mark.parametrize(
    "asked",
    [
        {"site": "L2.resid_pre", "position": 9}, {"site": "L2.resid_pre@9"}, {"site": "L2.resid_pre@9", "layer": 2}, {"layer": 2, "position": 9},
        {"site": "blocks.2.hook_resid_pre", "position": 9}, {"site": "L*.resid_pre", "layer": 2, "position": "9"},
    ],
)  # fmt: skip
def test_addresses_are_compared_by_meaning(asked: dict[str, object]) -> None:
    outcome = evaluate(expect("effects", **asked, metric="logit_diff", low=-99), SPREAD)  # type: ignore[arg-type]
    assert outcome.observed == pytest.approx(float(SPREAD.effects.values[2, 9, :, 0].mean(dtype=np.float64)))
    assert outcome.held


def test_a_head_in_a_column_is_the_head_in_the_address() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    coords = {"layer": (4, 9), "head": (0, 1, 6), "prompt": tuple(range(4)), "metric": ("kl",)}
    cells = pd.DataFrame({"site": "L*.z", "layer": [4, 9], "head": [6, 6], "metric": "kl", "low": 0.0, "high": 99.0})  # fmt: skip
    by_columns = Result("toy", effects=Labelled(values, ("layer", "head", "prompt", "metric"), coords))
    assert evaluate(expect("effects", layer=9, head=6, low=0), by_columns).observed == 21.5
    only = Result("toy", tables={"cells": cells.assign(value=[1.0, 2.0], n=4)})
    for asked in (
        {"site": "L9H6.z"},
        {"site": "L9.z", "head": 6},
        {"site": "L*H6.z", "layer": 9},
        {"layer": 9},
    ):
        assert evaluate(expect("effects", **asked, low=0), only).observed == 2.0, asked  # type: ignore[arg-type]
    assert evaluate(expect("effects", site="L9H5.z", low=0), only).held is None
    assert evaluate(expect("effects", site="L*H*.z", low=2, how="any"), only) == Outcome(True, "1 of 2 rows", "1 of 2 rows at least 2")  # fmt: skip


def test_a_key_value_head_is_not_the_head_of_its_number() -> None:
    cells = pd.DataFrame({"site": ["L9KV2.k", "L9.k"], "metric": "kl", "value": [1.0, 2.0], "n": 4})
    result = Result("toy", tables={"cells": cells})
    assert evaluate(expect("effects", site="L9KV2.k@:", low=0), result).observed is None
    assert evaluate(expect("effects", site="L9KV2.k", low=0), result).observed == 1.0
    assert evaluate(expect("effects", site="L9.k", low=0), result).observed == 2.0
    assert evaluate(expect("effects", site="L9H2.k", low=0), result).held is None
    query_head = Result("toy", tables={"cells": cells.assign(site=["L9H2.k", "L9H3.k"])})
    assert evaluate(expect("effects", site="L9KV2.k", low=0), query_head).held is None


def test_cells_that_are_no_sites_are_found_by_their_text() -> None:
    prompts = toy.prompts()
    assert evaluate(expect("effects", site="tone: polite - rude", low=-99, how="mean"), prompts).held
    lost = evaluate(expect("effects", site="tone: polit - rude", low=-99), prompts)
    assert lost.held is None and "'tone: polite - rude'" in lost.why


def test_every_part_of_a_row() -> None:
    row = HEADS.frame().iloc[1]
    for field in ("low", "high", "null_low", "null_high", "n"):
        assert evaluate(expect(field, site="L0H1.z", equals=float(row[field])), HEADS).held, field
        assert evaluate(expect(field, site="L0H1.z", low=float(row[field]) + 0.1), HEADS).held is False, field


def test_several_rows_are_ambiguous_unless_it_is_said_what_to_do_with_them() -> None:
    low, high, mean = (getattr(SPREAD.effects.values[2, :, :, 0].mean(1, dtype=np.float64), f)() for f in ("min", "max", "mean"))  # fmt: skip
    asked = {"site": "L2.resid_pre", "metric": "logit_diff"}
    several = evaluate(expect("effects", **asked, low=-99), SPREAD)
    assert several.held is None and "14 rows agree" in several.why and several.observed is None
    for how, value in (("min", low), ("max", high), ("mean", mean)):
        outcome = evaluate(expect("effects", **asked, low=value - 1e-6, high=value + 1e-6, how=how), SPREAD)
        assert outcome.held and outcome.observed == pytest.approx(value), how
    assert evaluate(expect("effects", **asked, low=low - 1e-6, how="every"), SPREAD).held is True
    assert evaluate(expect("effects", **asked, low=low + 1e-6, how="every"), SPREAD).held is False
    assert evaluate(expect("effects", **asked, low=high - 1e-6, how="any"), SPREAD).held is True
    assert evaluate(expect("effects", **asked, low=high + 1e-6, how="any"), SPREAD).held is False


def _with_gap() -> Result:
    """Three rows, the second of them not measured."""
    cells = pd.DataFrame({"site": ["L0H0.z", "L0H1.z", "L0H2.z"], "metric": "kl", "value": [1.0, np.nan, 3.0], "n": [4, 0, 4]})  # fmt: skip
    return Result("toy", tables={"cells": cells})


@pytest.mark.parametrize(
    ("asked", "held"),
    [
        ({"site": "L0H1.z", "low": 0}, None),
        ({"site": "L0H1.z", "high": 0}, None),
        ({"how": "every", "low": 0}, None),  # the gap may be below
        ({"how": "every", "low": 2}, False),  # one is, whatever the gap is
        ({"how": "any", "low": 3}, True),
        ({"how": "any", "low": 4}, None),
        ({"how": "mean", "low": -9}, None),
        ({"how": "max", "low": -9}, None),
        ({"site": "L0H0.z", "how": "every", "low": 1}, True),
    ],
)
def test_nan_is_never_true_nor_false(asked: dict[str, object], held: bool | None) -> None:
    outcome = evaluate(expect("effects", **asked), _with_gap())  # type: ignore[arg-type]
    assert outcome.held is held and outcome.why


@pytest.mark.parametrize(
    ("field", "asked", "said"),
    [
        ("effects", {"site": "L0H9.z"}, "did you mean"),
        ("effects", {"site": "L0H1.head_out"}, "'L0H1.z'"),
        ("effects", {"site": "L0H1.z", "metric": "logit_dif"}, "'logit_diff'"),
        ("effects", {"site": "L0H1.z@end"}, "positions there: known: none"),
        ("effects", {"layer": 44}, "no row has layer 44"),
        ("control:noize", {"equals": True}, "'noise'"),
        ("control:held_out", {"equals": True}, "did not run: no held-out prompts"),
        ("table:donor.value", {}, "'donors'"),
        ("table:donors.valeu", {}, "'value'"),
        ("table:donors.value", {"where": {"donr": "noise"}}, "'donor'"),
        ("table:donors.value", {"where": {"donor": "nobody"}}, "no row of the table donors has donor = 'nobody'"),
        ("table:donors.value", {}, "rows agree"),
        ("table:donors.donor", {"where": {"donor": "noise"}, "how": "mean"}, "hold no number"),
    ],
)  # fmt: skip
def test_what_a_result_does_not_answer_is_unresolved_with_the_reason(field, asked, said) -> None:
    result = SPREAD if field.startswith("table") else HEADS
    outcome = evaluate(expect(field, **({"low": 0} if "equals" not in asked else {}), **asked), result)
    assert outcome.held is None and said in outcome.why, outcome


def test_positions_that_are_there_are_named() -> None:
    outcome = evaluate(expect("effects", site="L2.resid_pre@-1", metric="logit_diff", low=0), SPREAD)
    assert outcome.held is None and "positions there: known: 0, 1, 2, 3 and 10 more" in outcome.why


def test_verdict_p_controls_and_tables() -> None:
    assert evaluate(expect("verdict", equals="supported"), HEADS) == Outcome(True, "supported", "observed 'supported', expected is 'supported'")  # fmt: skip
    assert evaluate(expect("verdict", equals="underpowered"), HEADS).held is False
    assert evaluate(expect("p", high=0.001), HEADS).held and not evaluate(expect("p", high=1e-9), HEADS).held
    untested = Result("toy", controls=HEADS.controls)
    assert evaluate(expect("p", high=0.5), untested) == Outcome(
        None, None, "no test was made, so there is no p"
    )
    assert evaluate(expect("control:identity", equals=True), HEADS).held is True
    assert evaluate(expect("control:irrelevant", equals=True), HEADS).held is False
    assert evaluate(expect("control:irrelevant", equals=False), HEADS).held is True
    donors = SPREAD.tables["donors"]
    value = float(donors[(donors["donor"] == "noise") & (donors["site"] == "L3.resid_pre")]["value"].iloc[0])
    outcome = evaluate(expect("table:donors.value", where={"donor": "noise", "site": "L3.resid_pre"}, equals=value), SPREAD)  # fmt: skip
    assert outcome.held is True and outcome.observed == value
    text = evaluate(expect("table:positions.label", where={"position": "0"}, equals="When"), SPREAD)
    assert text.held is True and text.observed == "When"
    other_kind = evaluate(expect("table:positions.label", where={"position": "0"}, low=0), SPREAD)
    assert other_kind.held is None and "compared with a number" in other_kind.why
    assert evaluate(expect("table:positions.label", where={"position": 0}, equals="When"), SPREAD).held is None, "0 is not '0'"  # fmt: skip


def test_a_result_without_effects_is_no_evidence_either_way() -> None:
    bare = Result("toy", controls=(Control("c", "x", "y", 1.0, True, 3),), verdict=verdict((Control("c", "x", "y", 1.0, True, 3),)))  # fmt: skip
    assert evaluate(expect("effects", low=0), bare) == Outcome(None, None, "this toy has no effects")


def test_evaluation_survives_saving_the_result(tmp_path) -> None:
    from microtome.results import open_result

    again = open_result(SPREAD.save(tmp_path / "saved"))
    for asked in ({"field": "effects", "site": "L2.resid_pre@9", "metric": "logit_diff", "low": 0}, {"field": "table:donors.value", "low": 0, "how": "every"}, {"field": "p", "low": 0}):  # fmt: skip
        assert evaluate(expect(**asked), again) == evaluate(expect(**asked), SPREAD)  # type: ignore[arg-type]


_numbers = st.floats(allow_nan=False, allow_infinity=False)
_expectations = st.one_of(
    st.builds(lambda a, b, site, how: expect("effects", site=site, low=min(a, b), high=max(a, b), how=how), _numbers, _numbers, st.sampled_from(["L9H6.z", "L*.resid_pre@-1", "final_bias"]), st.sampled_from(["one", "any", "mean"])),
    st.builds(lambda low, layer, position: expect("null_high", layer=layer, position=position, low=low), _numbers, st.integers(0), st.one_of(st.integers(), st.sampled_from(["subject", "end"]))),
    st.builds(lambda where, value: expect("table:donors.value", where=where, equals=value), st.dictionaries(st.text(max_size=4), st.one_of(st.text(max_size=4), st.booleans(), _numbers), max_size=2), st.one_of(_numbers, st.booleans(), st.text(max_size=4))),
    st.just(expect("verdict", equals="supported")), st.just(expect("control:x", equals=False)),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(_expectations)
def test_an_expectation_reads_back_from_json(made: Expectation) -> None:
    again = Expectation.from_json(json.loads(json.dumps(made.as_json())))
    assert again == made and again.text == made.text


def test_the_text_says_all() -> None:
    assert (
        expect("effects", site="L9H6.z", low=-0.6, high=-0.3).text
        == "effects of site L9H6.z from -0.6 to -0.3"
    )
    assert expect("table:donors.value", where={"donor": "noise"}, low=0, how="max").text == "max table:donors.value of donor = 'noise' at least 0"  # fmt: skip
    assert expect("verdict", equals="supported").text == "verdict is 'supported'"


@pytest.mark.parametrize(
    ("field", "asked", "said"),
    [
        ("effect", {"low": 0}, "did you mean 'effects'"),
        (3, {"low": 0}, "a field has a name"),
        ("control:", {"equals": True}, "fields are"),
        ("table:donors", {"low": 0}, "fields are"),
        ("effects", {}, "nothing to compare with"),
        ("effects", {"low": 0, "equals": 0}, "both bounds and equals"),
        ("effects", {"low": 0.2, "high": 0.1}, "low 0.2 is above high 0.1"),
        ("effects", {"low": math.nan}, "low is nan"),
        ("effects", {"high": math.inf}, "high is inf"),
        ("effects", {"low": "-0.6"}, "low is '-0.6'"),
        ("effects", {"low": True}, "low is True"),
        ("effects", {"equals": "large"}, "it is a number"),
        ("effects", {"equals": math.nan}, "equals is nan"),
        ("effects", {"low": 0, "how": "evry"}, "'every'"),
        ("effects", {"low": 0, "layer": -1}, "layer is -1"),
        ("effects", {"low": 0, "head": "6"}, "head is '6'"),
        ("effects", {"low": 0, "position": 1.5}, "position is 1.5"),
        ("effects", {"low": 0, "site": ""}, "site is ''"),
        ("effects", {"low": 0, "site": "L9H6.z", "head": 5}, "the address says head 6"),
        ("effects", {"low": 0, "site": "L9H6.z@-1", "position": 3}, "the address says position -1"),
        ("effects", {"low": 0, "where": {"donor": "noise"}}, "it finds rows of a table"),
        ("verdict", {"equals": "suported"}, "did you mean 'supported'"),
        ("verdict", {"low": 0}, "verdict is expected to be None"),
        ("p", {"equals": True}, "it is a number"),
        ("p", {"high": 0.01, "site": "L9H6.z"}, "leave site= out"),
        ("control:noise", {"low": 0}, "a control passes or does not"),
        ("control:noise", {"equals": "passed"}, "a control passes or does not"),
        ("table:donors.value", {"low": 0, "site": "L9H6.z"}, 'where={"site": ...}'),
        ("table:donors.value", {"low": 0, "where": {"n": math.nan}}, "where has n = nan"),
        ("table:donors.value", {"low": 0, "where": {"n": [1]}}, "where has n = (1,)"),
    ],
)  # fmt: skip
def test_what_could_not_be_scored_is_refused_at_once(field, asked, said) -> None:
    with pytest.raises(LabError) as caught:
        expect(field, **asked)
    assert said in str(caught.value) and caught.value.why and caught.value.instead


@pytest.mark.parametrize("site", ["L9H6.zz", "L9H6", "L5H3.zz->L9H6.q"])
def test_text_that_begins_as_an_address_must_be_one(site: str) -> None:
    with pytest.raises(SiteError, match="no point called"):
        expect("effects", site=site, low=0)


@pytest.mark.parametrize("stored", [None, [], {"low": 1}, {"field": "effects", "low": 0, "colour": 1}, {"field": "effects", "low": "0"}])  # fmt: skip
def test_a_stored_expectation_that_is_none_is_refused(stored: object) -> None:
    with pytest.raises(LabError):
        Expectation.from_json(stored)


def test_numpys_numbers_are_numbers() -> None:
    assert expect("effects", low=np.float32(0.5)) == expect("effects", low=0.5)
    assert expect("control:x", equals=np.bool_(True)) == expect("control:x", equals=True)  # type: ignore[arg-type]
    assert replace(expect("n", equals=8)).equals == 8.0


def test_a_real_run_is_asked_matched_and_evaluated() -> None:
    """A planted head: what techniques stamp and label is what questions and expectations read."""
    import planted
    from microtome import methods
    from microtome.lab.questions import query, seen

    model = planted.one_head()
    task = planted.pairs(model)
    site = f"L{planted.HEAD[0]}H{planted.HEAD[1]}.z"
    patched = methods.activation_patching(model, task, sites=[f"L{planted.HEAD[0]}H*.z"], seed=0)
    without = methods.ablation(model, task, sites=["L*H*.z", "L*.mlp_out"], by="zero", seed=0)
    question = query("ablation", model=model, task=task, sites=site, by="zero")
    about = {"model_name": model.name, "family": task.name}
    assert question.matches(without.query, **about, sites=["L*H*.z", "L*.mlp_out"]) is None
    assert question.matches(patched.query, **about, sites=["L*H*.z"]).part == "method"
    assert seen(
        question, model=patched.query.model, family=task.name, sites=patched.query.parameters["sites"]
    )

    frame = without.frame()
    effect = float(frame.loc[frame["site"] == site, "value"].iloc[0])
    assert evaluate(expect("effects", site=site, high=-0.1), without).held is True
    assert evaluate(expect("effects", site=site, equals=effect), without).held is True
    largest = evaluate(
        expect("effects", site="L*H*.z", how="min", low=effect - 1e-6, high=effect + 1e-6), without
    )
    assert largest.held is True, "no other head does more"
    spread = patched.frame()
    here = spread[spread["site"] == site]
    assert evaluate(expect("effects", site=site, low=0), patched).held is None, "a row per position"
    for position, value in zip(here["position"], here["value"], strict=True):
        assert (
            evaluate(expect("effects", site=f"{site}@{position}", equals=float(value)), patched).held is True
        )
