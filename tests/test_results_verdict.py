"""The verdict: its order, against an independent statement of the rules."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import ControlError, ResultError
from microtome.results import VERDICTS, Control, Result, Verdict, verdict


def control(name, passed, *, gates=False):
    return Control(name, "something", "0", 0.5, passed, 4, detail="it was too dear", gates=gates)


GOOD = {"p": 0.0001, "alpha": 0.001, "smallest_p": 0.0001}


def test_supported_needs_p_and_every_mandatory_control():
    both = [control("donor", True), control("identity", True, gates=True)]
    assert verdict(both, ["donor", "identity"], **GOOD) == "supported"
    assert verdict([], [], **GOOD) == "supported"
    assert verdict(both, ["donor"], p=0.001, alpha=0.001, smallest_p=0) == "supported"  # at alpha counts
    assert (
        verdict(both, ["donor"], p=0.0011, alpha=0.001, smallest_p=0) == "not distinguishable from its null"
    )
    assert verdict([control("donor", False)], ["donor"], **GOOD) == "not distinguishable from its null"


def test_a_forgotten_and_an_idle_control_are_both_unchecked_and_told_apart():
    forgotten = verdict([], ["donor"], **GOOD)
    idle = verdict([control("donor", None)], ["donor"], **GOOD)
    assert forgotten == idle == "unchecked"
    assert forgotten.reasons == ("donor was not run",)
    assert idle.reasons == ("donor did not run: it was too dear",)


def test_each_verdict_hides_the_weaker_ones():
    gate, idle, lost = (
        control("sums", False, gates=True),
        control("donor", None),
        control("irrelevant", False),
    )
    weak = {"p": 0.5, "alpha": 0.001, "smallest_p": 0.25}
    assert verdict([gate, idle, lost], ["donor", "irrelevant"], **weak) == "invalid"
    assert verdict([idle, lost], ["donor", "irrelevant"], **weak) == "unchecked"
    under = verdict([lost], ["irrelevant"], **weak)
    assert under == "underpowered" and any("irrelevant failed" in r for r in under.reasons)
    assert verdict([lost], ["irrelevant"], **{**weak, "smallest_p": 0}) == "not distinguishable from its null"


def test_a_gate_is_mandatory_without_being_named():
    assert verdict([control("sums", False, gates=True)], [], **GOOD) == "invalid"
    assert verdict([control("sums", None, gates=True)], [], **GOOD) == "unchecked"


def test_no_number_without_its_null():
    untested = verdict([control("donor", True)], ["donor"])
    assert untested == "unchecked" and "no test" in untested.reasons[0]
    assert verdict([], [], smallest_p=0.25) == "underpowered"


def test_a_failed_optional_control_changes_nothing_and_is_named():
    made = verdict([control("off_task", False)], [], **GOOD)
    assert made == "supported" and any("off_task failed" in r for r in made.reasons)


@pytest.mark.parametrize(
    "numbers",
    [
        {"p": -0.1, "smallest_p": 0},
        {"p": 1.1, "smallest_p": 0},
        {"p": math.nan, "smallest_p": 0},
        {"p": 0.5, "smallest_p": math.nan},
        {"p": 0.5},
        {"p": 0.0, "smallest_p": 0.001},
        {"p": 0.5, "smallest_p": 0, "alpha": 0},
        {"p": 0.5, "smallest_p": 0, "alpha": math.nan},
    ],
)
def test_impossible_probabilities_are_refused(numbers):
    with pytest.raises(ControlError):
        verdict([], [], **numbers)


outcomes = st.sampled_from([True, False, None])


@settings(database=None, deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(outcomes, st.booleans(), st.booleans()), max_size=5),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.0005, 0.001, 0.5]),
    st.sampled_from([0.0, 0.0005, 0.01]),
)
def test_verdict_equals_a_plain_statement_of_the_rules(drawn, absent, p, smallest):
    controls = [control(f"c{i}", passed, gates=gates) for i, (passed, gates, _) in enumerate(drawn)]
    mandatory = [f"c{i}" for i, (_, _, wanted) in enumerate(drawn) if wanted] + (
        ["missing"] if absent else []
    )
    if p is not None and p < smallest:
        return
    made = verdict(controls, mandatory, p, 0.001, smallest)
    gates = [c.passed for c in controls if c.gates]
    must = [c.passed for c in controls if c.gates or c.name in mandatory] + ([None] if absent else [])
    soft = [c.passed for c in controls if not c.gates and c.name in mandatory]
    if False in gates:
        expected = "invalid"
    elif None in must:
        expected = "unchecked"
    elif smallest > 0.001:
        expected = "underpowered"
    elif p is None:
        expected = "unchecked"
    elif p <= 0.001 and all(soft):
        expected = "supported"
    else:
        expected = "not distinguishable from its null"
    assert made == expected and made.reasons and made in VERDICTS


def test_no_order_of_controls_matters():
    parts = [control("a", True), control("b", False), control("c", None), control("d", False, gates=True)]
    for k in range(len(parts) + 1):
        for chosen in itertools.combinations(parts, k):
            words = {verdict(order, ["a", "b"], **GOOD).word for order in itertools.permutations(chosen)}
            assert len(words) == 1


def test_a_verdict_is_computed_never_typed():
    with pytest.raises(ResultError, match="never typed"):
        Result("toy", verdict="supported")
    with pytest.raises(ResultError, match="follows from the controls"):
        Result("toy", verdict=verdict([], [], **GOOD), controls=(control("sums", False, gates=True),))
    forged = Verdict("supported", (), (), 0.5, 0.001, 0.0)
    with pytest.raises(ResultError, match="not distinguishable"):
        Result("toy", verdict=forged)
    with pytest.raises(ResultError, match="no verdict"):
        Verdict("splendid", (), (), None, 0.001, None)


def test_the_word_compares_as_text_and_survives_a_pickle():
    made = verdict([], ["donor"], **GOOD)
    again = pickle.loads(pickle.dumps(made))
    assert again == made == "unchecked" and again.reasons == made.reasons and again.p == made.p
    assert made.word == str(made) == f"{made}" and type(made.word) is str


def test_result_without_a_verdict_is_unchecked_and_says_so_in_its_title():
    result = Result("activation_patching")
    assert result.verdict == "unchecked"
    assert result.title("Heads") == "Heads: unchecked"
    good = Result("activation_patching", verdict=verdict([], [], **GOOD))
    assert good.title("Heads") == "Heads"
    for word, numbers in (
        ("underpowered", {"smallest_p": 0.1}),
        ("not distinguishable", {"p": 0.9, "smallest_p": 0}),
    ):
        assert word in Result("x", verdict=verdict([], [], **numbers)).title()
    broken = control("sums", False, gates=True)
    assert "invalid" in Result("x", controls=(broken,)).title()
