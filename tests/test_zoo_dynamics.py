"""Methods over checkpoints: the published progress shows, untrained networks show nothing, and the controls can fail."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import ModelError
from microtome.figures import pictures_of
from microtome.zoo.checkpoints import scrambled
from microtome.zoo.modular_addition import pairs
from microtome.zoo.progress import Grokking, gini, key_frequencies, named, part
from microtome.zoo.specimen import Specimen


@cache
def built(name: str) -> Specimen:
    return zoo.build(name, n=8)


def curve(result: Any, measure: str) -> list[float]:
    table = result.tables["progress"]
    return [float(v) for v in table[table.measure == measure].sort_values("step").value]


def test_grokking_shows_in_the_progress_measures_before_the_held_out_loss() -> None:
    """Nanda et al. 2023, figure 7: restricted loss falls and excluded loss rises while the test loss still stands."""
    r = zoo.dynamics(built("modular_addition_59"), "grokking")
    assert r.verdict == "supported" and r.kind == "training_dynamics"
    restricted, excluded, test, train = (
        curve(r, f"{m}_loss") for m in ("restricted", "excluded", "test", "train")
    )
    steps = sorted(set(r.tables["progress"].step))
    at = steps.index(1000)
    assert train[at] < 0.01 and test[at] > 4  # memorised, not yet general
    assert (
        restricted[at] < 0.2 and excluded[at] > 2 * excluded[steps.index(400)]
    )  # and the mechanism is there
    assert test[-1] < 1e-3 and restricted[-1] < 1e-3 and excluded[-1] > 4
    assert min(curve(r, "random_frequencies_loss")) > 4  # as many other frequencies do nothing
    assert curve(r, "key_embedding")[-1] > 0.9 > 2 * curve(r, "key_embedding")[0]
    assert curve(r, "embedding_gini")[-1] > 0.8


def test_induction_forms_abruptly() -> None:
    r = zoo.dynamics(built("induction_heads"), "induction")
    assert r.verdict == "supported"
    prefix = curve(r, "prefix_matching")
    assert prefix[0] < 0.15 and prefix[-1] > 0.95
    table = r.tables["progress"]
    null = table[table.measure == "prefix_matching"].iloc[0]
    assert null.null_low <= prefix[0] * 1.1 and null.null_high < 0.2
    assert curve(r, "in_context")[-1] < -5 < curve(r, "in_context")[0] + 4.9


def test_a_network_that_was_not_trained_is_not_supported() -> None:
    """Planted fault: every checkpoint is noise, so the last one does what scrambled weights do."""
    z = built("induction_heads")
    first = z.checkpoints()[0][1]
    models = [(step, scrambled(first, seed)) for step, seed in ((0, 11), (10, 12), (20, 13))]
    r = zoo.dynamics(models, named("induction", z))
    assert r.verdict != "supported" and not r.control("scrambled_weights").passed


PULLS, NAMES = iter(range(1000)), iter("abcdefgh")


def noise(model: Any) -> dict[str, float]:
    return {"noise": float(next(PULLS))}


def renamed(model: Any) -> dict[str, float]:
    return {next(NAMES): 0.0}


def test_a_method_that_answers_differently_each_time_is_invalid() -> None:
    models = built("induction_heads").checkpoints()[:2]
    r = zoo.dynamics(models, noise, nulls=1)
    assert r.verdict == "invalid" and r.control("repeat").passed is False


def accuracy(model: Any) -> dict[str, float]:
    """Any function of a model."""
    task = built("induction_heads").task
    logits = model.run(task.clean, logits="last").logits[:, -1]
    return {
        "right": float(
            sum(int(x) == a[0][0] for x, a in zip(logits.argmax(-1), task.answers, strict=True)) / task.n
        )
    }


def test_any_function_of_a_model_is_followed() -> None:
    r = zoo.dynamics(built("induction_heads"), accuracy)
    assert curve(r, "right")[0] < 0.3 and curve(r, "right")[-1] == 1 and r.verdict == "supported"


def test_any_technique_is_followed_and_few_nulls_are_underpowered() -> None:
    z = built("induction_heads")
    task, models = z.task, [c for c in z.checkpoints() if c[0] in (0, 300, 1500)]
    r = zoo.dynamics(models, lambda model: mt.methods.logit_lens(model, task), nulls=1)
    last = curve(r, "final_resid@-1")
    assert abs(last[0]) < 1 and last[-1] > 5 and r.verdict == "underpowered"


def test_a_result_is_saved_opened_and_drawn(tmp_path: Any) -> None:
    r = zoo.dynamics(built("induction_heads").checkpoints()[:3], accuracy, nulls=1)
    r.save(tmp_path / "r")
    again = mt.open(tmp_path / "r")
    assert again.tables["progress"].equals(r.tables["progress"])
    assert pictures_of(again)[0].draw().layout.height > 100


def test_what_cannot_be_followed_is_refused() -> None:
    z = built("induction_heads")
    models = z.checkpoints()
    with pytest.raises(ModelError, match="no progress measures called 'groking'"):
        zoo.dynamics(z, "groking")
    with pytest.raises(ModelError, match="need a specimen of modular_addition"):
        zoo.dynamics(z, "grokking")
    with pytest.raises(ModelError, match="no checkpoints to follow"):
        zoo.dynamics(models[:1], accuracy)
    with pytest.raises(ModelError, match="no checkpoints to follow"):
        zoo.dynamics(models[::-1], accuracy)
    with pytest.raises(ModelError, match="compiled, not trained"):
        zoo.dynamics(zoo.build("hist", n=4), accuracy)
    with pytest.raises(ModelError, match="same measures at every step"):
        zoo.dynamics(models[:2], renamed)
    with pytest.raises(ModelError, match="nulls is 0"):
        zoo.dynamics(models[:2], accuracy, nulls=0)


def test_scrambled_weights_keep_every_norm_and_leave_the_model_alone() -> None:
    model = built("induction_heads").model
    before = model.hash
    twin = scrambled(model, 3)
    for (name, a), (_, b) in zip(model.hf.named_parameters(), twin.hf.named_parameters(), strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values), name
        assert not torch.equal(a, b)
    assert model.hash == before != twin.hash


def test_the_parts_of_frequencies_add_up_and_find_planted_ones() -> None:
    """Logits that are cosines of two frequencies: these are found, their part is all, and others' part is nothing."""
    p = 13
    a, b = pairs(p)
    c = torch.arange(p)
    angle = 2 * torch.pi / p * ((a + b)[:, None] - c[None]).double()
    logits = 3 * (2 * angle).cos() + (5 * angle).cos()
    assert torch.allclose(part(logits, (2, 5)), logits, atol=1e-10)
    assert part(logits, (1, 3)).abs().max() < 1e-10
    whole = part(logits, tuple(range(1, p // 2 + 1)))
    assert torch.allclose(whole, logits, atol=1e-10)
    assert gini(torch.ones(6, dtype=torch.float64)) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 0, 1.0], dtype=torch.float64)) == pytest.approx(0.75)


def test_the_key_frequencies_are_of_the_model_that_the_method_is_fitted_to() -> None:
    z = built("modular_addition_59")
    assert z.training is not None
    found = key_frequencies(z.model.hf)
    assert 2 <= len(found) <= 8
    assert Grokking(z.training.recipe).fit(z.model).frequencies == found
