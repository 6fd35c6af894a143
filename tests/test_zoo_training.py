"""Training of zoo models: the same bits from a seed, an error with the curve, checkpoints that survive, hashes that are checked."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from microtome.errors import ModelError, TrainingError
from microtome.zoo import shipped
from microtome.zoo.training import Interrupted, Optimiser, Recipe, Trained, train

CONFIG = {"vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
RECIPE = Recipe("copy", CONFIG, 0, steps=60, target=1.0, batch=16, every=20, optimiser=Optimiser(lr=3e-2), checkpoints=(0, 20))  # fmt: skip


def loss(module: Any, generator: torch.Generator) -> torch.Tensor:
    """Say the token that is read."""
    ids = torch.randint(0, 5, (16, 3), generator=generator)
    return nn.functional.cross_entropy(module(ids).logits.flatten(0, 1), ids.flatten())


def measure(module: Any) -> dict[str, float]:
    ids = torch.arange(5)[:, None].repeat(1, 3)
    return {"accuracy": float((module(ids).logits.argmax(-1) == ids).float().mean())}


def same(a: Trained, b: Trained) -> bool:
    return a.curve[1:] == b.curve[1:] and all(
        torch.equal(a.checkpoints[s][k], b.checkpoints[s][k]) for s in a.checkpoints for k in a.checkpoints[s]
    )


def test_the_seed_decides_every_bit_and_the_global_state_none() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = train(RECIPE, loss, measure)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same(first, train(RECIPE, loss, measure)) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not same(first, train(replace(RECIPE, seed=1), loss, measure))
    assert first.accuracy == 1 and first.step == 60 and sorted(first.checkpoints) == [0, 20, 60]
    assert not first.module.training and not any(p.requires_grad for p in first.module.parameters())


def test_a_target_that_is_not_reached_raises_with_the_curve() -> None:
    with pytest.raises(
        TrainingError, match=r"copy did not reach its accuracy: 0\.\d+ of 1 after 2 steps"
    ) as caught:
        train(replace(RECIPE, steps=2, every=1, checkpoints=()), loss, measure)
    curve = caught.value.curve
    assert [p["step"] for p in curve] == [0, 1, 2] and all(0 <= p["accuracy"] < 1 for p in curve)
    assert f"2: {curve[-1]['accuracy']:.3f}" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.curve[-1] == curve[-1] and str(again) == str(caught.value)


def test_a_loss_that_is_not_finite_raises_with_the_curve() -> None:
    def broken(module: Any, generator: torch.Generator) -> torch.Tensor:
        return loss(module, generator) * float("nan")

    with pytest.raises(TrainingError, match="is nan at step 0") as caught:
        train(RECIPE, broken, measure)
    assert len(caught.value.curve) == 1


def test_ctrl_c_keeps_the_checkpoints_in_memory_and_on_disk(tmp_path: Any) -> None:
    calls = iter(range(100))

    def stopped(module: Any, generator: torch.Generator) -> torch.Tensor:
        if next(calls) == 30:
            raise KeyboardInterrupt
        return loss(module, generator)

    with pytest.raises(Interrupted, match="steps 0, 20") as caught:
        train(RECIPE, stopped, measure, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-000000.safetensors",
        "step-000020.safetensors",
    ]
    whole = train(RECIPE, loss, measure)
    kept = caught.value.checkpoints[20]
    assert all(torch.equal(kept[k], whole.checkpoints[20][k]) for k in kept)


def test_training_ends_early_where_the_recipe_says() -> None:
    early = train(replace(RECIPE, stop_at=1.0, steps=500), loss, measure)
    assert early.step < 500 and early.step % 20 == 0 and max(early.checkpoints) == early.step


def test_a_recipe_that_cannot_be_followed_is_refused() -> None:
    for wrong in (
        {"steps": 0},
        {"target": 1.5},
        {"checkpoints": (61,)},
        {"optimiser": Optimiser(schedule="step")},
    ):
        with pytest.raises(ModelError, match="cannot be followed"):
            replace(RECIPE, **wrong)
    assert Recipe.from_dict(RECIPE.to_dict()) == RECIPE


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_shipped_is_what_was_trained(tmp_path: Any, dtype: str) -> None:
    done = train(RECIPE, loss, measure)
    note = shipped.write(done, measure, seconds=1.0, dtype=dtype, keep=(0, 20), folder=tmp_path)
    again = shipped.read("copy", tmp_path)
    assert again.recipe == RECIPE and again.measured == {"accuracy": 1} and again.outcome == "reached"
    assert [p["accuracy"] for p in again.curve] == pytest.approx(
        [p["accuracy"] for p in done.curve], abs=1e-5
    )
    assert sorted(again.checkpoints) == [0, 20, 60] and note.versions.keys() == {
        "python",
        "torch",
        "transformers",
    }
    for name, t in again.weights().items():
        exact = done.checkpoints[60][name]
        assert torch.equal(t, exact.to(shipped.DTYPES[dtype]).float())
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again.module()(ids).logits, done.module(ids).logits)


def test_a_file_that_is_not_the_shipped_one_is_refused(tmp_path: Any) -> None:
    note = shipped.write(train(RECIPE, loss, measure), measure, seconds=1.0, folder=tmp_path)
    path = tmp_path / "copy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="not the file that was shipped"):
        note.weights()
    path.unlink()
    with pytest.raises(ModelError, match="are missing"):
        note.module()
    with pytest.raises(ModelError, match="no training called 'other' ships"):
        shipped.read("other", tmp_path)


def test_weights_that_rounding_spoils_are_not_shipped(tmp_path: Any) -> None:
    def strict(module: Any) -> dict[str, float]:
        return {"accuracy": float(module.lm_head.weight[0, 0] != module.lm_head.weight[0, 0].half().float())}

    with pytest.raises(TrainingError, match="stored as float16 has accuracy 0"):
        shipped.write(train(RECIPE, loss, measure), strict, seconds=1.0, dtype="float16", folder=tmp_path)


def test_a_failed_training_ships_its_curve_and_no_weights(tmp_path: Any) -> None:
    short = replace(RECIPE, steps=2, every=1, checkpoints=())
    with pytest.raises(TrainingError) as caught:
        train(short, loss, measure)
    note = shipped.record_failure(short, caught.value, seconds=0.1, folder=tmp_path)
    assert note.outcome == "failed" and len(note.curve) == 3 and shipped.names(tmp_path) == ("copy",)
    with pytest.raises(ModelError, match="ships without weights"):
        note.weights()
