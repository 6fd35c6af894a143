"""Trained specimens: shipped weights are what they are said to be, their mechanism is confirmed, and what fails says so."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import ModelError, TaskError, TrainingError
from microtome.zoo import shipped
from microtome.zoo.catalog import subjects
from microtome.zoo.modular_addition import ModularAddition, last_logits, margin, pairs, split
from microtome.zoo.specimen import Specimen
from microtome.zoo.trained import LOST, accuracy_without, losses
from microtome.zoo.training import Trained, fresh

SUBJECTS = {s.name: s for s in subjects()}
SHIPPED = [name for name in SUBJECTS if name in shipped.names()]
FAILED = [name for name in shipped.names() if shipped.read(name).outcome == "failed"]


@cache
def built(name: str) -> Specimen:
    return zoo.build(name, n=16)


def test_every_subject_ships_and_all_of_it_is_small() -> None:
    assert set(SUBJECTS) == set(SHIPPED)
    assert sum(p.stat().st_size for p in shipped.FOLDER.iterdir()) < 5_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_of_the_recipe_and_reaches_its_stated_accuracy(name: str) -> None:
    note, subject = shipped.read(name), SUBJECTS[name]
    assert note.outcome == "reached" and note.recipe == subject.recipe(seed=0)
    with torch.no_grad():
        found = subject.measure(note.recipe)(note.module())
    assert {k: note.measured[k] for k in found} == pytest.approx(found, rel=1e-3, abs=2e-4)
    assert note.accuracy >= note.recipe.target and note.curve[-1]["accuracy"] >= note.recipe.target
    assert note.curve[0]["step"] == 0 and note.curve[0]["accuracy"] < 0.5


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_model_does_its_task(name: str) -> None:
    z = built(name)
    assert z.tier == "B" and z.training is not None and isinstance(z.training, shipped.Shipped)
    for side, right, wrong in (
        (z.task.clean, z.task.answers, z.task.wrong),
        (z.task.corrupt, z.task.wrong, z.task.answers),
    ):
        logits = z.model.run(side, logits="last").logits[:, -1]
        gaps = [float(logits[i, right[i][0][0]] - logits[i, wrong[i][0][0]]) for i in range(z.task.n)]
        assert sum(g > 0 for g in gaps) >= 15


@pytest.mark.parametrize("name", SHIPPED)
def test_confirmed_edges_are_those_that_cost_answers(name: str) -> None:
    """By another road: the edge's term taken out of what its reader reads, through the model itself."""
    m = built(name).mechanism
    assert set(m.lost) == set(m.all_edges) and m.whole is not None
    assert m.confirmed == tuple(e for e in m.edges if m.lost[e] > LOST)
    assert set(m.nodes) <= set(m.all_nodes)
    assert type(m).from_json(m.to_json()) == m


def test_the_losses_are_those_of_ablating_through_the_model() -> None:
    """All edges out of a node at once, against zero ablation by Microtome's own edits."""
    z = built("symbolic_ioi")
    ids, answers = SUBJECTS["symbolic_ioi"].examples(z.training.recipe)  # type: ignore[union-attr]
    for head in ("L0H0", "L0H1"):
        run = z.model.run(ids.tolist(), edits=[mt.Ablate(f"{head}.z", by="zero")], logits="last")
        kept = float((run.logits[:, -1].argmax(-1) == answers).float().mean())
        assert z.mechanism.lost[f"{head}.z->logits"] == pytest.approx(1 - kept, abs=1e-6)


def test_the_published_mechanisms_hold_on_these_weights() -> None:
    for name in ("symbolic_ioi", "induction_heads", "max_of_k"):
        m = built(name).mechanism
        assert not m.unconfirmed or m.unconfirmed == ("embed->L0H0.q",), name
        assert m.whole is not None and m.whole > 0.95, name


def test_an_edge_outside_the_mechanism_that_matters_shows_in_the_whole() -> None:
    """Were a true edge left out of the claim, the rest would not do: the check can fail."""
    z = built("induction_heads")
    ids, answers = SUBJECTS["induction_heads"].examples(z.training.recipe)  # type: ignore[union-attr]
    others = [*z.mechanism.null_edges, "L0H0.z->L1H0.k"]
    assert accuracy_without(z.model.hf, ids, answers, others) < 0.5
    assert losses(z.model.hf, ids, answers, ("L0H0.z->L1H0.k",))["L0H0.z->L1H0.k"] > 0.5


def test_one_cheap_model_trains_to_the_shipped_accuracy_from_its_seed() -> None:
    z = zoo.build("symbolic_ioi", train=True, n=8)
    assert isinstance(z.training, Trained) and z.training.accuracy == 1
    assert z.mechanism.confirmed == built("symbolic_ioi").mechanism.confirmed
    steps = [step for step, _ in z.checkpoints()]
    assert steps == [*range(0, 1000, 100), 1000]
    first, last = z.checkpoints()[0][1], z.checkpoints()[-1][1]
    prompt = z.task.clean.ids[:1]
    assert torch.equal(last.run(prompt).logits, z.model.run(prompt).logits)
    assert not torch.equal(first.run(prompt).logits, z.model.run(prompt).logits)


def test_one_head_fails_with_the_curve_and_gives_no_model() -> None:
    with pytest.raises(TrainingError, match=r"symbolic_ioi\.1l1h did not reach its accuracy") as caught:
        zoo.build("symbolic_ioi", n_heads=1, seed=1)
    curve = caught.value.curve
    assert curve[-1]["step"] == 1000 and all(p["accuracy"] < 1 for p in curve)
    note = shipped.read(
        "symbolic_ioi.1l1h"
    )  # machines of another kind round differently: only the start is the same
    assert note.curve[0]["accuracy"] == pytest.approx(curve[0]["accuracy"], abs=1e-5) and len(
        note.curve
    ) == len(curve)


@pytest.mark.parametrize("name", FAILED)
def test_what_failed_ships_a_curve_and_no_weights(name: str) -> None:
    note = shipped.read(name)
    assert note.accuracy < note.recipe.target and len(note.curve) > 10 and not note.files
    with pytest.raises(ModelError, match="ships without weights"):
        note.weights()


def test_a_tampered_weight_is_refused_by_build(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in shipped.FOLDER.glob("max_of_k*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "max_of_k.safetensors").read_bytes())
    content[-3] ^= 4
    (tmp_path / "max_of_k.safetensors").write_bytes(bytes(content))
    good = shipped.read
    monkeypatch.setattr(shipped, "read", lambda name: good(name, tmp_path))
    with pytest.raises(ModelError, match="not the file that was shipped"):
        zoo.build("max_of_k")


def test_an_option_that_a_recipe_does_not_take_is_refused() -> None:
    with pytest.raises(ModelError, match="takes no 'heads'"):
        zoo.build("symbolic_ioi", heads=1)


def test_modular_addition_by_cosines_has_its_published_margin() -> None:
    assert margin(113, (14, 35, 41, 42, 52)) == pytest.approx(2.410176, abs=5e-7)
    assert margin(113, ()) == 0  # nothing tells the sums apart


def test_the_margin_is_that_of_all_pairs_one_by_one() -> None:
    p, ks = 11, (2, 5)
    worst = float("inf")
    for a, b in product(range(p), repeat=2):
        said = [sum(float(torch.tensor(2 * torch.pi * k * (a + b - c) / p, dtype=torch.float64).cos()) for k in ks) for c in range(p)]  # fmt: skip
        right = said.pop((a + b) % p)
        worst = min(worst, right - max(said))
    assert margin(p, ks) == pytest.approx(worst, abs=1e-12)


@pytest.mark.parametrize("p", [59, 113])
def test_the_quick_forward_of_modular_addition_is_the_models_own(p: int) -> None:
    recipe = ModularAddition(p).recipe(seed=3)
    module = fresh(recipe).double()
    a, b = pairs(p)
    a, b = a[::97], b[::97]
    ids = torch.stack([a, b, torch.full_like(a, p)], 1)
    assert torch.allclose(last_logits(module, a, b), module(ids).logits[:, -1], atol=1e-12)


def test_the_pairs_trained_on_and_held_out_are_all_pairs_once() -> None:
    recipe = ModularAddition(59).recipe(seed=0)
    (a, b), (c, d) = split(recipe)
    both = torch.cat([a, c]) * 59 + torch.cat([b, d])
    assert len(a) == int(0.4 * 59 * 59) and both.sort().values.tolist() == list(range(59 * 59))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(SUBJECTS) - {"symbolic_ioi"}))
def test_every_recipe_trains_again(name: str) -> None:
    """What ships can be had from its recipe; modular_addition_113 takes half an hour on a small machine."""
    z = zoo.build(name, train=True, n=8)
    assert isinstance(z.training, Trained) and z.training.accuracy >= z.training.recipe.target
    assert z.mechanism.whole is not None and z.mechanism.whole > 0.9


def test_the_mechanism_that_ships_is_the_one_that_is_measured_again() -> None:
    for name in SHIPPED:
        m, told = built(name).mechanism, shipped.read(name).mechanism
        assert list(m.confirmed) == told["confirmed"] and m.whole == pytest.approx(
            told["whole"], abs=0.005
        ), name


def test_published_outcomes_stand_beside_ours_and_some_differ() -> None:
    from microtome.zoo.expectations import expectations, reached

    found = expectations()
    assert {e.model for e in found} >= set(SUBJECTS)
    assert any(e.agrees for e in found) and any(not e.agrees for e in found)
    assert all(e.published and e.source and any(c.isdigit() for c in e.ours + e.source) for e in found)
    by = {(e.model, e.published): e for e in found}
    two = by["symbolic_ioi", "one layer of two heads is right on all inputs"]
    one = by["symbolic_ioi", "one layer of one head fails"]
    assert two.agrees and not one.agrees and two.value > 0.5 > one.value
    late = by["modular_addition_113", "held-out pairs are learned long after the training pairs"]
    assert late.agrees and late.value == reached(shipped.read("modular_addition_113"))


@pytest.mark.parametrize("kind", ["same_value", "irrelevant", "wrong_value"])
def test_donors_of_induction_are_what_they_say(kind: str) -> None:
    z = built("induction_heads")
    donors = z.task.donors(kind, 0)
    said = z.model.run(donors, logits="last").logits[:, -1].argmax(-1)
    right = {"same_value": z.task.answers, "irrelevant": z.task.wrong}.get(kind, donors.answers)
    assert sum(int(s) == r[0][0] for s, r in zip(said, right, strict=True)) >= 15


def test_tasks_whose_every_token_is_a_variable_have_no_donors() -> None:
    with pytest.raises(TaskError, match="has no donors"):
        built("symbolic_ioi").task.donors("same_value", 0)


def test_reference_prompts_are_of_the_tasks_length() -> None:
    side = built("induction_heads").task.reference(20, 0)
    assert len(set(side.ids)) == 20 and set(side.lengths) == set(built("induction_heads").task.clean.lengths)


def test_more_pairs_than_there_are_is_refused() -> None:
    with pytest.raises(TaskError, match="no 100 different pairs"):
        zoo.build("symbolic_ioi", n=100)


def test_the_largest_of_k_is_counted_over_all_inputs_as_the_model_says_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tabulated sums against the module itself, on a network that is often wrong and has few numbers."""
    from microtome.zoo import max_of_k
    from microtome.zoo.module import ZooConfig, make

    config = {**SUBJECTS["max_of_k"].recipe(seed=0).config, "vocab_size": 5}
    module = make(ZooConfig(**config), seed=1, dtype=torch.float64)
    ids = torch.tensor(list(product(range(5), repeat=4)))
    with torch.no_grad():
        plain = float((module(ids).logits[:, -1].argmax(-1) == ids.amax(1)).double().mean())
    assert 0 < plain < 0.9 and max_of_k.exact_accuracy(module) == pytest.approx(plain, abs=1e-12)


def test_brackets_are_judged_by_their_two_conditions() -> None:
    from microtome.results.seeds import rng
    from microtome.zoo.balanced_brackets import CLOSE, OPEN, dyck, faults, sample

    words = {"()": 0, "(())": 0, "((": 1, ")(": 2, "())": 3, "())(": 2}
    for word, fault in words.items():
        ids = torch.tensor([[0, *(OPEN if c == "(" else CLOSE for c in word), 3]])
        assert int(faults(ids)) == fault, word
    drawn = sample(300, 12, torch.Generator().manual_seed(0))
    kinds = faults(drawn).bincount(minlength=4) / 300
    assert (kinds > 0.05).all() and (faults(drawn[:100]) == 0).all()
    assert all("".join(dyck(12, rng(i, "d"))).count("(") == 6 for i in range(5))
