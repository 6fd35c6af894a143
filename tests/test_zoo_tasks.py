"""Pairs on compiled models: the model does the task, donors are what they say, and patching finds the known place."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import TaskError
from microtome.tasks.pairs import Side
from microtome.zoo.programs import NAMES, program
from microtome.zoo.specimen import Specimen


@cache
def built(name: str, n: int = 16) -> Specimen:
    return zoo.build(name, n=n)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "shuffle_dyck2"])
def test_the_model_does_its_task_at_the_last_position(name: str) -> None:
    z = built(name)
    task = z.task
    assert task.n == 16 and task.metric == "logit_diff"
    gaps = []
    for side in (task.clean, task.corrupt):
        logits = z.model.run(side, logits="last").logits[:, -1]
        gaps.append(
            [float(logits[i, task.answers[i][0][0]] - logits[i, task.wrong[i][0][0]]) for i in range(task.n)]
        )
    if program(name).output.kind == "numerical":
        values = [z.program.reference(t)[-1] for t in z.program.domain]  # type: ignore[union-attr]
        spread = float(max(values) - min(values))
        for a, b, clean, corrupt in zip(*gaps, task.clean.variables, task.corrupt.variables, strict=True):
            assert a - b >= spread / 4 - 1e-6
            assert abs(a - _number(clean["answer"])) < 1e-5 and abs(b - _number(corrupt["answer"])) < 1e-5
    else:
        assert all(abs(a - 1) < 1e-5 for a in gaps[0]) and all(abs(b + 1) < 1e-5 for b in gaps[1])


def _number(text: str) -> float:
    from fractions import Fraction

    return float(Fraction(text))


def test_the_seed_decides_the_pairs() -> None:
    a, b, c = (zoo.build("reverse", seed=s, n=8).task.hash for s in (0, 0, 1))
    assert a == b != c


@pytest.mark.parametrize("name", ["reverse", "shift", "increment"])
@pytest.mark.parametrize("kind", ["same_value", "irrelevant", "wrong_value"])
def test_donors_are_what_they_say(name: str, kind: str) -> None:
    """`PairTask.donors` checks variables and alignment; here the model says that they are so."""
    z = built(name)
    donors = z.task.donors(kind, 3)
    outputs = [z.words[int(t)] for t in z.model.run(donors, logits="last").logits[:, -1].argmax(-1)]
    clean, corrupt = ([v["answer"] for v in side.variables] for side in (z.task.clean, z.task.corrupt))
    for i, out in enumerate(outputs):
        if kind == "wrong_value":
            assert out not in (clean[i], corrupt[i]) and donors.answers[i] == ((z.words.index(out),),)
            assert donors.wrong[i] == ((z.words.index(corrupt[i]),),)
        else:
            assert out == (clean[i] if kind == "same_value" else corrupt[i])


@pytest.mark.parametrize("name", ["hist", "frac_prevs", "induction"])
def test_programs_with_more_variables_than_their_output_have_no_donors(name: str) -> None:
    with pytest.raises(TaskError, match="has no same_value donors"):
        built(name).task.donors("same_value", 0)


def test_reference_prompts_come_from_the_whole_domain() -> None:
    z = built("reverse")
    side = z.task.reference(100, 0)
    assert len(set(side.ids)) == 100 and not set(side.ids) & {*z.task.clean.ids, *z.task.corrupt.ids}
    with pytest.raises(TaskError, match="domain has 243"):
        z.task.reference(244, 0)


def test_more_pairs_than_there_are_is_refused() -> None:
    with pytest.raises(TaskError, match="no 3000 different pairs"):
        zoo.build("palindrome", n=3000)


def test_patching_finds_where_reverse_reads_its_first_token_and_controls_pass() -> None:
    """The answer at the last position is token 1; it moves there in the last head."""
    z = built("reverse", 24)
    r = mt.methods.activation_patching(z.model, z.task, sites="L*.resid_pre")
    frame = r.frame()
    hit = frame[frame.value.abs() > 1e-6]
    assert set(hit.position) == {1} and len(hit) == 3 and all(abs(hit.value - 2) < 1e-5)
    names = {c.name: c.passed for c in r.controls}
    assert all(
        names[n] for n in ("identity", "same_value", "irrelevant", "wrong_value", "value_matters", "noise")
    )
    heads = mt.methods.activation_patching(z.model, z.task, sites="L*H*.z").frame()
    found = heads[heads.value.abs() > 1e-6]
    assert list(zip(found.site, found.position, strict=True)) == [("L2H0.z", 5)]


def test_lens_and_attribution_work_without_norms() -> None:
    z = built("reverse", 24)
    lens = mt.methods.logit_lens(z.model, z.task).frame()
    last = lens[lens.position == lens.position.iloc[-1]]
    assert list(last.value.abs() > 0.5) == [False, False, False, True]
    r = mt.methods.direct_logit_attribution(z.model, z.task)
    parts = r.frame().set_index("site").value
    assert abs(parts["L2H0.head_out"] - 1) < 1e-5 and parts.drop("L2H0.head_out").abs().max() < 1e-5
    assert all(next(c.passed for c in r.controls if c.name == name) for name in ("sums", "corrupt_side"))


def test_a_writer_that_does_not_turn_fails_the_corrupt_side_however_few_writers_there_are() -> None:
    """One head writes; on prompts whose own answer it is not asked for, it writes the same."""
    z = built("reverse", 24)
    donors = z.task.donors("same_value", 0)
    sides = [Side(side.texts, side.ids, side.spans) for side in (z.task.clean, donors)]
    same = replace(z.task, clean=sides[0], corrupt=sides[1], differs=frozenset(), source=None)
    r = mt.methods.direct_logit_attribution(z.model, same)
    assert not next(c.passed for c in r.controls if c.name == "corrupt_side")
