"""What a run shows follows from its technique, its verdict and its controls, and every technique has a place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.lab.evidence import (
    CAUSAL,
    CORRELATIONAL,
    KINDS,
    LEVELS,
    NOTHING,
    OBSERVATIONAL,
    Check,
    Ran,
    shows,
)
from microtome.results import registry
from microtome.results.verdicts import VERDICTS


def test_every_registered_technique_is_placed_and_nothing_else_is():
    own = {n for n in registry.names("techniques")
           if (registry.module_of("techniques", n) or "").startswith("microtome.")}  # fmt: skip
    assert own == set(KINDS)


@pytest.mark.parametrize("method", sorted(KINDS))
def test_the_controls_that_the_table_names_are_declared(method):
    declared = set(registry.get("techniques", method).spec.controls)
    kind = KINDS[method]
    assert {*kind.causal_by, *kind.held_out} <= declared
    assert kind.why and kind.level in LEVELS[1:]


def test_no_technique_with_a_control_on_held_out_prompts_is_forgotten():
    named = {m for m in KINDS for c in registry.get("techniques", m).spec.controls if c.startswith("held_out")}  # fmt: skip
    assert named - {"lenses"} == {m for m, k in KINDS.items() if any(c.startswith("held_out") for c in k.held_out)}  # fmt: skip


def test_a_supported_intervention_is_causal_and_held_out_only_where_its_control_passed():
    def run(passed):
        return shows(Ran("activation_patching", "supported", (Check("identity", True, True, True), Check("held_out", passed))))  # fmt: skip

    assert run(True).level == run(None).level == run(False).level == CAUSAL
    assert [run(x).held_out for x in (True, None, False)] == [True, False, False]
    assert "held_out did not run" in run(None).why[0] and "held_out failed" in run(False).why[0]


def test_alignment_needs_one_kind_of_held_out_prompts_and_no_failure():
    def run(entities, templates):
        checks = (Check("held_out_entities", entities), Check("held_out_templates", templates))
        return shows(Ran("distributed_alignment_search", "supported", checks)).held_out

    assert run(True, None) and run(None, True) and run(True, True)
    assert not run(None, None) and not run(True, False) and not run(False, True)


@pytest.mark.parametrize(("verdict", "level"), [("supported", CAUSAL), ("unchecked", OBSERVATIONAL), ("underpowered", OBSERVATIONAL),
                                                ("not distinguishable from its null", NOTHING), ("invalid", NOTHING), (None, NOTHING),
                                                ("splendid", NOTHING)])  # fmt: skip
def test_the_verdict_decides_what_is_left(verdict, level):
    shown = shows(Ran("ablation", verdict))
    assert shown.level == level
    assert shown.why  # the reason is shown, also of a supported one: no held-out prompts


@pytest.mark.parametrize(("check", "level", "said"), [
    (Check("off_task", None, True, detail="none were given"), OBSERVATIONAL, "the mandatory control off_task did not run: none were given"),
    (Check("off_task", False, True), NOTHING, "the mandatory control off_task failed"),
    (Check("identity", False, False, True), NOTHING, "the deterministic check identity failed"),
    (Check("other", False), CAUSAL, None),
])  # fmt: skip
def test_a_mandatory_control_that_failed_or_did_not_run_bites_whatever_the_verdict_says(check, level, said):
    shown = shows(Ran("ablation", "supported", (check,)))
    assert shown.level == level
    assert said is None or said in shown.why


@pytest.mark.parametrize(("method", "controls"), [("probe", ("causal",)), ("head_roles", ("ablation",)),
                                                  ("attribution_patching", ("approximation", "missed"))])  # fmt: skip
def test_what_only_its_own_causal_control_makes_causal(method, controls):
    passed = tuple(Check(c, True) for c in controls)
    assert shows(Ran(method, "supported", passed)).level == CAUSAL
    for k in range(len(controls)):
        for outcome in (False, None):
            checks = tuple(Check(c, outcome if i == k else True) for i, c in enumerate(controls))
            shown = shows(Ran(method, "supported", checks))
            assert shown.level == CORRELATIONAL
            assert controls[k] in shown.why[0]
    assert shows(Ran(method, "supported")).level == CORRELATIONAL


def test_a_probe_is_on_held_out_texts_only_together_with_its_causal_test():
    both = (Check("causal", True), Check("split", True, True, True))
    assert shows(Ran("probe", "supported", both)).held_out
    assert not shows(Ran("probe", "supported", both[1:])).held_out


def test_what_varies_prompts_is_causal_of_prompts_and_not_of_the_inside():
    for method in ("prompt_grid", "chain_of_thought", "token_attribution"):
        shown = shows(Ran(method, "supported"))
        assert (shown.level, shown.inside) == (CAUSAL, False)
    assert shows(Ran("ablation", "supported")).inside


def test_a_plugin_counts_as_observational_and_that_is_said():
    shown = shows(Ran("brand_new", "supported", (Check("held_out", True),)))
    assert (shown.level, shown.held_out) == (OBSERVATIONAL, False)
    assert "plug-in" in shown.why[-1]
    assert shows(Ran("brand_new", "invalid")).level == NOTHING


def test_a_look_is_an_observation():
    shown = shows(Ran("look", None))
    assert shown.level == OBSERVATIONAL and "raw look" in shown.why[0]


def test_dissect_shows_what_its_stages_show():
    patched = Ran("activation_patching", "supported", (Check("held_out", True),))
    lens = Ran("logit_lens", "supported")
    failed = Ran(
        "component_set", "not distinguishable from its null", (Check("held_out_faithfulness", False, True),)
    )
    whole = shows(Ran("dissect", "supported", children=(lens, patched)))
    assert (whole.level, whole.held_out, whole.methods) == (CAUSAL, True, ("activation_patching",))
    assert shows(Ran("dissect", "supported", children=(lens,))).level == CORRELATIONAL
    worse = shows(Ran("dissect", "supported", children=(lens, patched, failed)))
    assert worse.level == CAUSAL and not worse.held_out
    assert shows(Ran("dissect", "unchecked", children=(patched,))).level == OBSERVATIONAL
    assert shows(Ran("dissect", "supported")).level == OBSERVATIONAL  # nothing is known of what it called


CHECKS = st.builds(Check, st.sampled_from(["held_out", "causal", "approximation", "missed", "split", "identity", "other"]),
                   st.sampled_from([True, False, None]), st.booleans(), st.booleans())  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*sorted(KINDS), "brand_new"]), st.sampled_from([*VERDICTS, None]),
       st.lists(CHECKS, max_size=4, unique_by=lambda c: c.name), st.booleans(), st.booleans(), st.integers(0, 4))  # fmt: skip
def test_a_failed_control_never_raises_what_is_shown(method, verdict, checks, mandatory, gates, at):
    before = shows(Ran(method, verdict, tuple(checks)))
    names = ["held_out", "causal", "approximation", "missed", "split"]
    fresh = Check(names[at], False, mandatory, gates)
    worse = (
        *(c for c in checks if c.name != fresh.name),
        fresh,
    )  # added, or in the place of one that ran better
    after = shows(Ran(method, verdict, worse))
    if any(c.name == fresh.name and (c.mandatory > mandatory or c.gates > gates) for c in checks):
        return  # not the same control
    assert LEVELS.index(after.level) <= LEVELS.index(before.level)
    assert after.held_out <= before.held_out
