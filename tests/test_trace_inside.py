"""Runs inside runs and beside them: hooks are on the module, which an edit's own function and other threads use too."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import planted
import tiny
from microtome import methods
from microtome.errors import EditError
from microtome.model.binding import bind
from microtome.model.tokens import pack
from microtome.trace.edits import Ablate, Edit, Patch
from microtome.trace.generate import generate
from microtome.trace.run import run

ROWS = tiny.prompts(2, 6)
FAMILIES = ("llama", "gptj")  # on the attention registry, and off it


@pytest.mark.parametrize(
    ("name", "site"),
    [*((n, s) for n in FAMILIES for s in ("L1.z", "L1.pattern", "L1.ln1_scale")), ("llama", "L0.resid_mid")],
)
def test_a_run_inside_an_edit_is_as_it_is_alone(name: str, site: str) -> None:
    model = tiny.loaded(name)
    alone = {"L1.z": model.run(ROWS, ["L1.z"]), "L2.scores": model.run(ROWS, ["L2.scores"])}
    seen: dict[str, Any] = {}

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.update({s: model.run(ROWS, [s]) for s in alone})
        seen["last"] = model.run(ROWS[:1], logits="last").logits
        return 0.5 * x

    outer = model.run(ROWS, [site], [Edit(site, look)], logits="last")
    assert outer.receipts[0].times == 1
    for s, t in alone.items():
        assert torch.equal(seen[s][s], t[s]) and torch.equal(seen[s].logits, t.logits)
        assert seen[s].numerics == t.numerics
    assert torch.equal(seen["last"], model.run(ROWS[:1], logits="last").logits)
    half = model.run(ROWS, [site], [Edit(site, lambda x: 0.5 * x)], logits="last")
    assert torch.equal(outer.logits, half.logits) and torch.equal(outer[site], half[site])


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_do_not_see_each_others_edits(name: str) -> None:
    model = tiny.loaded(name)
    own = str(model.hf.config._attn_implementation)
    calls = (
        lambda: model.run(ROWS).logits,
        lambda: model.run(ROWS, edits=[Ablate("L0.mlp_out")]).logits,
        lambda: model.run(ROWS, ["L1.pattern"])["L1.pattern"],
        lambda: model.generate(ROWS, max_new_tokens=2, stop=False).logits,
        lambda: model.grad(ROWS, lambda logits: logits[:, -1].sum(-1), ["L1.z"])["L1.z"],
    )
    alone = [call() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: calls[i % len(calls)](), range(8 * len(calls))))
    assert all(torch.equal(value, alone[i % len(calls)]) for i, value in enumerate(found))
    assert model.hf.config._attn_implementation == own


def test_techniques_refuse_to_run_where_edits_are_in_force() -> None:
    """A sweep would leave them out, and a result does not say that they were there."""
    model = planted.one_head()
    task = planted.pairs(model, n=4)
    with model.editing(Ablate("L1H2.z")):
        assert model.run(ROWS).receipts[0].places == 12
        for technique in (methods.activation_patching, methods.logit_lens, methods.direct_logit_attribution):
            with pytest.raises(EditError, match="while edits are in force"):
                technique(model, task)
    methods.logit_lens(model, task)


# attention to what a query does not see --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral", "gptj", "gpt_oss"])
def test_an_edit_of_scores_or_pattern_does_not_open_masked_keys(name: str) -> None:
    """Zero scores would mean attention to later tokens, where the mask's number stood."""
    binding = tiny.bound(name)
    short = [row[:4] for row in ROWS]
    for edit in (Ablate("L1.scores"), Edit("L1H0.scores@0:3", torch.zeros_like), Edit("L1.pattern@0:3", torch.ones_like)):  # fmt: skip
        at = edit.site.with_at("0:4") if edit.site.at is None else edit.site
        twin = type(edit)(at, edit.fn) if isinstance(edit, Edit) else Ablate(at)
        long = run(binding, pack(ROWS), capture=["L1.pattern"], edits=[twin])
        cut = run(binding, pack(short), capture=["L1.pattern"], edits=[twin])
        assert float(long["L1.pattern"].triu(1).abs().max()) == 0
        torch.testing.assert_close(long.logits[:, :4], cut.logits, rtol=1e-4, atol=1e-4)
    plain = run(binding, pack(ROWS), capture=["L1.pattern"], attention="eager")["L1.pattern"] == 0
    flat = run(binding, pack(ROWS), capture=["L1.pattern"], edits=[Ablate("L1.scores")])["L1.pattern"]
    assert bool((flat[plain] == 0).all())  # a sliding window stays one


def test_a_source_that_attends_to_what_the_query_does_not_see_is_refused() -> None:
    binding = tiny.bound("llama")
    donor = run(binding, pack(tiny.prompts(2, 6, 1)), capture=["L1.pattern"], logits=None)
    short = pack([row[:4] for row in ROWS])
    ragged = pack([ROWS[0], ROWS[1][:4]])  # the second's keys end before the source's do
    for edit in (Patch("L1.pattern@-1", donor), *(Ablate(f"L1.{p}@-1", "mean", over=tiny.prompts(3, 6, 2)) for p in ("pattern", "scores"))):  # fmt: skip
        for prompts in (short, ragged):
            with pytest.raises(EditError, match="does not see"):
                run(binding, prompts, edits=[edit])
            with pytest.raises(EditError, match="does not see"):
                generate(binding, prompts, edits=[edit], when="prompt", max_new_tokens=2)
    run(binding, pack(ROWS), edits=[Patch("L1.pattern@-1", donor)])
    run(binding, short, edits=[Patch("L1.pattern@-1<-0:3", donor)])  # named keys are both prompts' own


def test_a_tensor_says_every_key_itself() -> None:
    binding = tiny.bound("llama")
    uniform = torch.full((2, 4, 6, 6), 1 / 6)
    t = run(binding, pack(ROWS), capture=["L1.pattern"], edits=[Patch("L1.pattern", uniform)])
    assert torch.equal(t["L1.pattern"], uniform)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_keys_that_are_pads_are_nan_at_a_position_too(padding: Any) -> None:
    model = tiny.loaded("llama")
    t = model.run([ROWS[0], ROWS[1][:3]], ["L1.pattern", "L1.scores"], padding=padding)
    for point in ("pattern", "scores"):
        whole, last = t[f"L1.{point}"], t[f"L1.{point}@-1"]
        column = -1 if padding == "left" else 2
        assert torch.equal(last[1].isnan(), ~t.mask[1].expand(4, -1))
        assert torch.equal(last[1].nan_to_num(7), whole[1, :, column].nan_to_num(7))
        assert torch.equal(t[f"L1H2.{point}@0:2"].nan_to_num(7)[0], whole[0, 2, 0:2].nan_to_num(7))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_pads_hold_nothing_that_could_leak(padding: Any) -> None:
    """0 times NaN is NaN: a pad's embedding must not be one that the prompt does not have."""
    hf = tiny.build("llama")
    with torch.no_grad():
        hf.model.embed_tokens.weight[[0, 9]] = float("nan")
    binding = bind(hf)
    rows = [[5, 6, 7, 8], [10, 11]]
    together = run(binding, pack(rows, pad=9, padding=padding))
    for i, row in enumerate(rows):
        alone = run(binding, pack([row])).logits[0]
        torch.testing.assert_close(together.logits[i][together.mask[i]], alone, rtol=1e-4, atol=1e-4)
