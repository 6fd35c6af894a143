"""Each kind of edit does what it says, also at named keys, at neurons and on spans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from edit_tools import (
    DIRECTION,
    ROWS,
    SUBSPACE,
    close_to,
    on_point,
    plain_run,
    run_on,
)
from microtome.errors import EditError
from microtome.model.tokens import pack
from microtome.trace.edits import Ablate, BaseEdit, Edit, Keep, Patch, Remove, Steer
from microtome.trace.run import run


def _projector(rows: Tensor) -> Tensor:
    return torch.linalg.pinv(rows) @ rows


KINDS: dict[str, tuple[BaseEdit, Callable[[Tensor], Tensor]]] = {
    "zero": (Ablate("L1.mlp_out"), torch.zeros_like),
    "raw": (Steer("L1.mlp_out", DIRECTION, 2.0), lambda x: x + 2 * DIRECTION),
    "direction_norm": (Steer("L1.mlp_out", DIRECTION, 2.0, unit="direction_norm"), lambda x: x + 2 * DIRECTION / DIRECTION.norm()),
    "resid_norm": (Steer("L1.mlp_out", DIRECTION, 0.5, unit="resid_norm"), lambda x: x + 0.5 * x.norm(dim=-1, keepdim=True) * DIRECTION / DIRECTION.norm()),
    "remove": (Remove("L1.mlp_out", DIRECTION), lambda x: x - x @ _projector(DIRECTION[None])),
    "keep": (Keep("L1.mlp_out", SUBSPACE), lambda x: x @ _projector(SUBSPACE)),
    "keep of dependent rows": (Keep("L1.mlp_out", torch.cat([SUBSPACE, SUBSPACE[:1] * 3 - SUBSPACE[1:2]])), lambda x: x @ _projector(SUBSPACE)),
    "keep of more rows than there are axes": (Keep("L1.mlp_out", torch.cat([SUBSPACE] * 9)), lambda x: x @ _projector(SUBSPACE)),
    "function": (Edit("L1.mlp_out", torch.tanh), torch.tanh),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_does_what_it_says(kind: str) -> None:
    edit, fn = KINDS[kind]
    edited = run_on("llama", ROWS, [edit])
    for i, row in enumerate(ROWS):
        close_to(edited.logits[i][edited.mask[i]], plain_run("llama", row, [("L1.mlp_out", fn)]), 1e-4)


def test_mean_and_resample_take_their_reference() -> None:
    reference = tiny.ragged([6, 3, 8, 7, 5], seed=5)
    values = torch.stack(
        [oracle.run(tiny.model("llama", "eager"), r, ["L1.z"])[1]["L1.z"][-1] for r in reference]
    )
    mean = run_on("llama", ROWS, [Ablate("L1.z@-1", "mean", over=reference)])
    for i, row in enumerate(ROWS):
        close_to(
            mean.logits[i][mean.mask[i]],
            plain_run("llama", row, [("L1.z", lambda v: on_point(v, "z", -1, lambda _: values.mean(0)))]),
        )
    drawn = run_on("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=3)], capture=["L1.z"])
    chosen = [int((values - drawn["L1.z@-1"][i]).abs().amax((1, 2)).argmin()) for i in range(3)]
    close_to(drawn["L1.z@-1"], values[chosen])
    again = run_on("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=3)])
    assert torch.equal(again.logits[again.mask], drawn.logits[drawn.mask])
    draws = {tuple(_draws(reference, seed)) for seed in range(6)}
    assert len(draws) > 3 and any(len(set(d)) > 1 for d in draws)


def _draws(reference: list[list[int]], seed: int) -> list[float]:
    t = run_on("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=seed)], capture=["L1.z"])
    return [round(float(x), 4) for x in t["L1.z@-1"].sum((1, 2))]


def test_a_resampled_prompt_draws_the_same_alone_in_its_list() -> None:
    reference = tiny.prompts(6, 5, seed=5)
    edit = Ablate("L1.z@-1", "resample", over=reference, seed=3)
    together = run_on("llama", ROWS, [edit])
    lists = run_on("llama", ROWS, [[], [edit], []])
    assert torch.equal(together.logits[1][:4], lists.logits[1][:4])


def test_references_that_do_not_align_are_refused() -> None:
    with pytest.raises(EditError, match="do not align"):
        run_on("llama", ROWS, [Ablate("L1.z", "mean", over=tiny.prompts(3, 7))])
    with pytest.raises(EditError, match="do not align"):  # keys of other lengths cannot be averaged
        run_on("llama", ROWS, [Ablate("L1.pattern@-1", "mean", over=tiny.ragged([7, 5]))])
    run_on("llama", tiny.prompts(2, 7), [Ablate("L1.z", "mean", over=tiny.prompts(3, 7, seed=2))])


# keys, neurons, spans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_pattern_edit_can_name_its_keys(padding: str) -> None:
    spans = ({"subject": (1, 3)}, {"subject": (0, 1)}, {"subject": (2, 5)})
    tokens = pack(ROWS, padding=padding, spans=spans)  # type: ignore[arg-type]
    edited = run_on(
        "llama",
        tokens,
        [Ablate("L1H2.pattern@-1<-subject"), Edit("L1.scores@-2<-0", lambda x: x - 3)],
        ["L1.pattern"],
    )
    assert [r.places for r in edited.receipts] == [3, 3]
    for i, row in enumerate(ROWS):
        low, high = spans[i]["subject"]

        def knock(v: Tensor, low: int = low, high: int = high) -> Tensor:
            out = v.clone()
            out[2, -1, low:high] = 0
            return out

        def lower(v: Tensor) -> Tensor:
            out = v.clone()
            out[:, -2, 0] -= 3
            return out

        expected = plain_run("llama", row, [("L1.pattern", knock), ("L1.scores", lower)])
        close_to(edited.logits[i][edited.mask[i]], expected)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_function_of_a_pattern_sees_own_keys_only(padding: str) -> None:
    """Uniform attention is over the prompt's tokens, never over its pads."""

    def uniform(p: Tensor) -> Tensor:
        return torch.full_like(p, 1 / p.shape[-1])

    edited = run_on("llama", pack(ROWS, padding=padding), [Edit("L1.pattern@-1", uniform)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        close_to(
            edited.logits[i][edited.mask[i]],
            plain_run("llama", row, [("L1.pattern", lambda v: on_point(v, "pattern", -1, uniform))]),
        )


def test_patching_named_keys_from_a_trace_and_from_a_tensor() -> None:
    rows, donors = tiny.prompts(2, 6), tiny.prompts(2, 6, seed=1)
    source = run_on("llama", donors, capture=["L1.pattern"])
    whole = source["L1.pattern"]
    for site, tensor in (("L1H2.pattern@-1<-1", whole[:, 2, -1, 1]), ("L1H2.pattern@3:5<-0:2", whole[:, 2, 3:5, :2]),
                         ("L1.pattern@-1<-1:3", whole[:, :, -1, 1:3]), ("L1.pattern@3:5<-2", whole[:, :, 3:5, 2])):  # fmt: skip
        a, b = (
            run_on("llama", rows, [Patch(site, source)], ["L1.pattern"]),
            run_on("llama", rows, [Patch(site, tensor)], ["L1.pattern"]),
        )
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a[site], tensor)
        assert not torch.equal(a.logits, run_on("llama", rows).logits)


def test_neurons_and_spans() -> None:
    spans = ({"s": (1, 4)}, {"s": (0, 1)}, {"s": (2, 4)})
    edited = run_on(
        "llama",
        pack(ROWS, spans=spans),
        [Ablate("L1N7.neurons@s"), Edit("L1N3,9.mlp_gate@s[-1]", lambda x: x + 2)],
    )
    assert [r.places for r in edited.receipts] == [6, 6]
    for i, row in enumerate(ROWS):
        low, high = spans[i]["s"]

        def off(v: Tensor, low: int = low, high: int = high) -> Tensor:
            out = v.clone()
            out[low:high, 7] = 0
            return out

        def up(v: Tensor, high: int = high) -> Tensor:
            out = v.clone()
            out[high - 1, [3, 9]] += 2
            return out

        close_to(
            edited.logits[i][edited.mask[i]],
            plain_run("llama", row, [("L1.neurons", off), ("L1.mlp_gate", up)]),
        )


def test_patching_everything_with_itself_changes_nothing() -> None:
    for name in ("llama", "gemma2", "gpt_oss", "bloom", "falcon-new", "olmo2", "deepseek_v3", "gpt_neox"):
        binding = tiny.bound(name, "eager")
        sites = [f"L{i}.{p}" for i in range(3) for p in _points(binding, i)]
        for padding in ("right", "left"):
            tokens = pack(ROWS, padding=padding)  # type: ignore[arg-type]
            source = run(binding, tokens, capture=sites)
            again = run(binding, tokens, edits=[Patch(s, source) for s in sites])
            torch.testing.assert_close(again.logits, source.logits, equal_nan=True, rtol=1e-5, atol=1e-5)
            assert all(r.places == 16 and r.size < 1e-4 for r in again.receipts)


def _points(binding: Any, layer: int) -> list[str]:
    from microtome.points import POINTS

    return [
        p.name
        for p in POINTS.values()
        if p.scope == "layer" and p.name not in binding.facts.layers[layer].lacks
    ]
