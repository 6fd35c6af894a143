"""The ladder: planted evidence reaches each rung, the nearest evidence that must not does not, and every cap bites and is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.lab.evidence import (
    CAUSAL,
    CORRELATIONAL,
    LEVELS,
    NOTHING,
    OBSERVATIONAL,
    Check,
    Ran,
    Shown,
    shows,
)
from microtome.lab.rungs import (
    BIG_IF_TRUE,
    HELD_OUT,
    HERE,
    OBSERVED,
    PREDICTIVE,
    REPLICATED,
    RUNGS,
    SANITY,
    UNSUPPORTED,
    WEAK,
    WEIGHTS,
    Foretold,
    Piece,
    Stated,
    climb,
)
from microtome.results.verdicts import VERDICTS

WHOLE = Stated(alternatives=1, falsifiers=1, inside=True)


def run(n=1, level=CAUSAL, held_out=False, method="activation_patching", inside=True, **more):
    more = {
        "model": "aa",
        "model_name": "A",
        "verdict": "supported" if more.pop("supported", True) else "unchecked",
        **more,
    }
    return Piece(f"run {n}", f"question {n}", Shown(level, held_out, inside, (method,)), **more)


def held(n=1, **more):
    return run(n, held_out=True, **more)


def told(n=1, outcome="true", probability=0.7, **more):
    return Foretold(f"prediction {n}", outcome, probability, **more)


def rung(*pieces, stated=WHOLE):
    return climb(pieces, stated)


def why(found, piece=None):
    return [c.why for c in found.caps if piece is None or c.piece == piece]


REACH = {
    UNSUPPORTED: ((), None),
    OBSERVED: ((run(level=OBSERVATIONAL),), (run(level=NOTHING, supported=False),)),
    CORRELATIONAL: ((run(level=CORRELATIONAL),), (run(level=OBSERVATIONAL),)),
    HERE: ((run(),), (run(level=CORRELATIONAL),)),
    HELD_OUT: ((held(),), (held(post_hoc="it began before the claim was made"),)),
    PREDICTIVE: ((held(), told()), (held(), told(post_hoc="run 3 had seen it"))),
    REPLICATED: ((held(), told(), run(2, method="ablation")), (held(), told(), run(2))),
}


@pytest.mark.parametrize("name", RUNGS)
def test_each_rung_is_reached_and_the_nearest_evidence_below_does_not_reach_it(name):
    enough, short = REACH[name]
    assert rung(*enough).name == name
    if short is not None:
        assert rung(*short).place == RUNGS.index(name) - 1


def test_a_prediction_lifts_a_causal_claim_and_no_other():
    found = rung(run(), told())
    assert (found.name, found.skipped) == (PREDICTIVE, (HELD_OUT,))
    assert rung(run(level=CORRELATIONAL), told()).name == CORRELATIONAL
    assert rung(told()).name == UNSUPPORTED


@pytest.mark.parametrize(("change", "said"), [
    ({"outcome": "open"}, "still open"), ({"outcome": "void"}, "could not be decided"),
    ({"made_from": "it was linked when its outcome was known"}, "outcome was known"), ({"post_hoc": "run 3 saw it"}, "post hoc: run 3 saw it"),
    ({"probability": 0.3}, "thought unlikely"), ({"by_result": False, "verdict": None}, "a person decided it"), ({"verdict": "unchecked"}, "is unchecked"),
    ({"verdict": "invalid"}, "is invalid"), ({"weight": WEAK}, "weak evidence"), ({"weight": SANITY}, "a sanity check"), ({"stale": "the code has changed"}, "out of date"),
    ({"supports": False, "outcome": "false"}, "supports nothing by itself"),
])  # fmt: skip
def test_a_prediction_that_does_not_lift_says_why(change, said):
    found = rung(held(), told(**change))
    assert found.name == HELD_OUT
    (cap,) = [c for c in found.caps if c.piece == "prediction 1"]
    assert said in cap.why and not cap.against


def test_a_prediction_of_no_effect_may_be_decided_by_a_null():
    assert rung(held(), told(verdict="not distinguishable from its null")).name == PREDICTIVE


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"post_hoc": "seen"},
        {"by_result": False, "verdict": None},
        {"made_from": "it was made before the claim"},
    ],
)
def test_a_false_prediction_caps_and_is_named_first_however_it_came_about(more):
    found = rung(held(), held(2, method="ablation"), told(1), told(2, "false", **more))
    assert (found.name, found.evidence) == (HERE, REPLICATED)
    assert found.caps[0].against and found.caps[0].piece == "prediction 2" and "is false" in found.caps[0].why


def test_what_was_not_expected_or_not_measured_does_not_speak_against_the_claim():
    assert rung(held(), told(1, "false", 0.3)).name == HELD_OUT
    assert rung(held(), told(1, "false", verdict="invalid")).name == HELD_OUT


def test_a_true_prediction_against_the_claim_caps_it():
    found = rung(held(), told(1, supports=False))
    assert found.name == HERE and "against the claim and is true" in found.caps[0].why


def test_replication_needs_another_model_or_another_technique():
    base = held()
    assert rung(base, run(2, method="ablation")).name == REPLICATED
    assert rung(base, run(2, model="bb", model_name="B")).name == REPLICATED
    assert (
        rung(base, run(2)).name == HELD_OUT
    )  # the same technique on the same model: another seed, or other prompts
    assert rung(base, run(2, model="bb", model_name="A")).name == HELD_OUT  # the same model in another dtype
    assert (
        rung(base, run(2, model="", model_name="", method="activation_patching")).name == HELD_OUT
    )  # a model that is not known


def test_two_runs_of_one_question_are_one_piece():
    again = replace(held(2, method="ablation"), question="question 1")
    assert rung(held(), again).name == HELD_OUT


@pytest.mark.parametrize("change", [
    {"post_hoc": "it began before the claim was made"}, {"supported": False, "level": OBSERVATIONAL}, {"level": CORRELATIONAL}, {"weight": WEAK},
    {"weight": SANITY}, {"stale": "the code has changed"}, {"null_again": ("run 9",)}, {"about": "it is about another task"}, {"inside": False},
])  # fmt: skip
def test_what_does_not_replicate(change):
    assert rung(held(), run(2, method="ablation", **change)).name == HELD_OUT


def test_a_replication_needs_more_than_one_set_of_prompts():
    assert rung(run(), run(2, method="ablation")).name == HERE
    found = rung(run(), run(2, method="ablation"), told())
    assert (found.name, found.skipped) == (REPLICATED, (HELD_OUT,))
    assert rung(held(), run(2, method="ablation")).skipped == (PREDICTIVE,)


def test_what_suggested_the_claim_is_replicated_only_where_a_prediction_confirmed_it():
    first = run(post_hoc="it began before the claim was made")
    assert rung(first, held(2, method="ablation")).name == HELD_OUT
    assert rung(first, run(2, method="ablation"), told()).name == REPLICATED


def test_a_technique_that_shares_stages_is_not_another():
    whole = Piece(
        "run 1", "q1", Shown(CAUSAL, True, True, ("activation_patching", "component_set")), True, model="aa"
    )
    assert rung(whole, run(2)).name == HELD_OUT
    assert rung(whole, run(2, method="ablation")).name == REPLICATED


def test_another_model_replicates_and_does_not_establish():
    other = held(2, model="bb", model_name="B", elsewhere=True)
    assert rung(other).name == UNSUPPORTED
    assert "it can replicate the claim" in why(rung(other), "run 2")[-1]
    assert rung(run(level=CORRELATIONAL), other).name == CORRELATIONAL
    assert rung(held(), other).name == REPLICATED
    assert rung(held(3), other).by == ("run 3", "run 2")  # first what is replicated


@pytest.mark.parametrize(("change", "at", "said"), [
    ({"weight": WEAK}, OBSERVED, "weak evidence"), ({"weight": SANITY}, OBSERVED, "a sanity check"),
    ({"weight": BIG_IF_TRUE, "supported": False, "level": OBSERVATIONAL, "held_out": False}, UNSUPPORTED, "big if true"),
    ({"stale": "the code of ablation has changed"}, OBSERVED, "out of date: the code of ablation has changed"),
    ({"null_again": ("run 7",)}, OBSERVED, "came out as its null in run 7"), ({"post_hoc": "it began before the claim was made"}, HERE, "post hoc"),
    ({"about": "it is about greater_than, the claim about ioi"}, UNSUPPORTED, "counts for nothing: it is about greater_than"),
    ({"inside": False}, OBSERVED, "changed prompts"), ({"nothing_at": ("L9H6.z",)}, UNSUPPORTED, "no effect beyond its null at L9H6.z"),
    ({"untested_at": ("L9H6.z",)}, OBSERVED, "ran on other cells than L9H6.z"), ({"elsewhere": True, "model_name": "B"}, UNSUPPORTED, "it is of B"),
])  # fmt: skip
def test_every_cap_on_a_piece_bites_and_is_shown(change, at, said):
    assert rung(held()).name == HELD_OUT
    found = rung(
        held(**{k: v for k, v in change.items() if k != "held_out"})
        if "held_out" not in change
        else run(**change)
    )
    assert found.name == at
    assert any(said in reason for reason in why(found, "run 1"))
    assert all(c.instead for c in found.caps)


def test_an_underpowered_run_asks_for_more_prompts():
    shown = shows(Ran("ablation", "underpowered"))
    found = rung(Piece("run 1", "q", shown, "underpowered"))
    assert found.name == OBSERVED and found.caps[0].instead == "more prompts, of more templates or entities"


def test_big_if_true_lifts_when_it_is_supported():
    assert rung(held(weight=BIG_IF_TRUE)).name == HELD_OUT


def test_evidence_about_prompts_serves_a_claim_that_names_no_site():
    assert rung(run(inside=False), stated=replace(WHOLE, inside=False)).name == HERE


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (Stated(0, 1), "no alternative is written"),
        (Stated(1, 0), "nothing is written that would show it wrong"),
    ],
)
def test_a_claim_without_alternatives_or_falsifiers_is_observed_at_most(stated, said):
    found = climb((held(), told()), stated)
    assert (found.name, found.evidence) == (OBSERVED, PREDICTIVE)
    assert [c.why for c in found.caps if not c.piece][0].startswith(said)
    assert climb((), stated).name == UNSUPPORTED  # a cap lifts nothing


@pytest.mark.parametrize(("change", "at"), [({}, OBSERVED), ({"weight": SANITY}, OBSERVED), ({"weight": WEAK}, HERE),
                                            ({"elsewhere": True}, PREDICTIVE), ({"post_hoc": "before"}, OBSERVED), ({"stale": "old"}, OBSERVED),
                                            ({"level": OBSERVATIONAL}, OBSERVED)])  # fmt: skip
def test_a_contradiction_caps_and_is_named_first(change, at):
    found = rung(held(), told(), run(2, method="ablation"), run(3, supports=False, **change))
    assert (found.name, found.evidence) == (at, REPLICATED)
    assert found.caps[0].against and found.caps[0].piece == "run 3"


def test_a_contradiction_that_shows_nothing_itself_or_is_about_something_else_caps_nothing_and_is_shown():
    for change, said in (
        ({"supported": False}, "not supported itself"),
        ({"about": "other task"}, "other task"),
    ):
        found = rung(held(), run(3, supports=False, **change))
        assert found.name == HELD_OUT
        assert said in why(found, "run 3")[0]


def test_reached_by_names_the_pieces_that_carry_the_rung():
    assert rung(held(2), run(1)).by == ("run 2",)
    assert rung(held(), told(4)).by == ("run 1", "prediction 4")
    assert set(rung(run(1), held(3, method="ablation")).by) == {"run 1", "run 3"}


# ------------------------------------------------------------------------------------------------ properties

SHOWN = st.builds(Shown, st.sampled_from(LEVELS), st.booleans(), st.booleans(),
                  st.lists(st.sampled_from(["ablation", "activation_patching", "steering"]), min_size=1, max_size=2, unique=True).map(tuple),
                  st.just(("its reason",))).map(lambda s: s if s.level == CAUSAL else replace(s, held_out=False))  # fmt: skip
REASON = st.sampled_from(["", "", "a reason"])
PIECES = st.builds(Piece, st.integers(1, 30).map("run {}".format), st.sampled_from("abcd"), SHOWN, st.sampled_from([*VERDICTS, None]), st.sampled_from(WEIGHTS),
                   st.booleans(), st.sampled_from(["", "aa", "bb"]), st.sampled_from(["", "A", "B"]), REASON, st.booleans(), REASON, REASON,
                   st.sampled_from([(), (), ("run 99",)]), st.sampled_from([(), (), ("L9H6.z",)]), st.sampled_from([(), (), ("L9H6.z",)]))  # fmt: skip
TOLD = st.builds(Foretold, st.integers(1, 30).map("prediction {}".format), st.sampled_from(["open", "true", "false", "void"]), st.sampled_from([0.2, 0.5, 0.9]),
                 REASON, REASON, st.booleans(), st.sampled_from(["supported", "unchecked", None]), st.booleans(), st.sampled_from(WEIGHTS), REASON)  # fmt: skip
MANY = st.lists(st.one_of(PIECES, TOLD), max_size=6)
STATED = st.builds(Stated, st.integers(0, 1), st.integers(0, 1), st.booleans())


@settings(max_examples=150, deadline=None)
@given(MANY, STATED, st.randoms(use_true_random=False))
def test_the_order_of_pieces_does_not_matter(pieces, stated, rng):
    shuffled = list(pieces)
    rng.shuffle(shuffled)
    assert climb(pieces, stated) == climb(shuffled, stated)


@settings(max_examples=150, deadline=None)
@given(MANY, PIECES, STATED)
def test_supporting_evidence_never_lowers(pieces, more, stated):
    more = replace(more, supports=True, verdict="supported", null_again=())
    assert climb([*pieces, more], stated).place >= climb(pieces, stated).place


@settings(max_examples=150, deadline=None)
@given(MANY, st.one_of(PIECES, TOLD), STATED)
def test_evidence_against_never_raises(pieces, more, stated):
    more = replace(more, supports=False)
    assert climb([*pieces, more], stated).place <= climb(pieces, stated).place


@settings(max_examples=150, deadline=None)
@given(MANY, STATED, st.integers(0, 2), st.booleans(), st.booleans(), st.booleans())
def test_a_failed_control_never_raises_a_claim(pieces, stated, at, mandatory, gates, other):
    checks = (Check("held_out", True), Check("identity", True, True, True))
    failed = Check(("held_out", "identity", "fresh")[at], False, mandatory or at == 1, gates or at == 1)
    method = "ablation" if other else "activation_patching"

    def claim(controls):
        shown = shows(Ran(method, "supported", controls))
        return climb(
            [*pieces, Piece("run 50", "new", shown, "supported", model="aa", model_name="A")], stated
        ).place

    assert claim((*(c for c in checks if c.name != failed.name), failed)) <= claim(checks)


@settings(max_examples=150, deadline=None)
@given(MANY, STATED)
def test_a_rung_below_the_top_always_comes_with_a_reason_or_without_evidence(pieces, stated):
    found = climb(pieces, stated)
    if found.place < RUNGS.index(found.evidence):
        assert any(RUNGS.index(c.at) == found.place and (c.against or not c.piece) for c in found.caps)
    assert found.by or found.evidence == UNSUPPORTED
