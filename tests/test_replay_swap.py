"""A recorded site given other values: equal to a whole edited run, with the right gradient, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.errors import SiteError
from microtome.model.twin import twin
from microtome.replay.swap import record
from microtome.sites import parse
from microtome.trace.edits import Patch

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "bloom", "falcon", "gptj", "jamba")
SITES = ("L1.resid_post", "L2.resid_post", "L0.resid_pre", "L1.neurons", "L1H2.z", "L1.z", "L0.mlp_out")
NONE = ("jamba", "L1.neurons")  # its experts have no neurons of one layer
COLUMNS = torch.tensor([5, 6, 7, 11])


def _swaps(model, site, places=None, lengths=(9, 9, 7)):
    ids = [tiny.prompts(1, n, seed=i)[0] for i, n in enumerate(lengths)]
    places = places or tuple((n - 1, n) for n in lengths)
    return ids, record(model.binding, ids, places, parse(site), COLUMNS)


@pytest.mark.parametrize(("family", "site"), [(f, s) for f in FAMILIES for s in SITES if (f, s) != NONE])
def test_swapped_logits_equal_a_whole_edited_run(family, site) -> None:
    model = tiny.loaded(family)
    _, swaps = _swaps(model, site)
    gen = torch.Generator().manual_seed(0)
    new = swaps.values + torch.randn(swaps.values.shape, generator=gen)
    with torch.no_grad():
        got = swaps.logits(torch.tensor([2, 0, 1]), new[[2, 0, 1]])
        own = swaps.logits(torch.arange(3), swaps.values)
    for place, i in enumerate((2, 0, 1)):
        ids = tiny.prompts(1, (9, 9, 7)[i], seed=i)[0]
        plain = model.run([ids], [f"{site}@-1"], logits="last")
        value = new[i].reshape(plain[f"{site}@-1"].shape)
        whole = model.run([ids], edits=[Patch(f"{site}@-1", value)], logits="last").logits[0, -1, COLUMNS]
        torch.testing.assert_close(got[place], whole, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            swaps.values[i].reshape(-1), plain[f"{site}@-1"].reshape(-1), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(swaps.unpatched[i], plain.logits[0, -1, COLUMNS], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own, swaps.unpatched, rtol=1e-4, atol=1e-4)
    assert swaps.receipt.places == swaps.planned == 6


@pytest.mark.parametrize("site", ["L1.resid_pre", "L1KV1.v", "L0.k", "L1.q", "L2.ln1_out", "L1.neurons"])
def test_a_span_of_several_tokens_is_set_token_by_token(site) -> None:
    model = tiny.loaded("llama")
    ids, swaps = _swaps(model, site, ((2, 4), (3, 5), (1, 3)))
    new = swaps.values.roll(1, 0)
    with torch.no_grad():
        got = swaps.logits(torch.arange(3), new)
    for i, low in enumerate((2, 3, 1)):
        at = f"{site}@{low}:{low + 2}"
        value = new[i].reshape(model.run([ids[i]], [at], logits=None)[at].shape)
        whole = model.run([ids[i]], edits=[Patch(at, value)], logits="last").logits[0, -1, COLUMNS]
        torch.testing.assert_close(got[i], whole, rtol=1e-4, atol=1e-4)
        assert (got[i] - swaps.unpatched[i]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("site", ["L1.resid_post", "L1.neurons", "L1H2.z", "L2.resid_post"])
def test_the_gradient_is_that_of_finite_differences(family, site) -> None:
    model = tiny.loaded(family, dtype=torch.float64)
    _, swaps = _swaps(model, site)
    gen = torch.Generator().manual_seed(0)
    new = (
        swaps.values + 0.1 * torch.randn(swaps.values.shape, generator=gen, dtype=torch.float64)
    ).requires_grad_()
    weigh = torch.randn(3, 4, generator=gen, dtype=torch.float64)
    swaps.logits(torch.arange(3), new, live=True).mul(weigh).sum().backward()
    along = torch.randn(new.shape, generator=gen, dtype=torch.float64)
    with torch.no_grad():
        # families compute norms and rotary products in float32 also here: a smaller step would measure their rounding
        ends = [float((swaps.logits(torch.arange(3), new + s * 3e-3 * along) * weigh).sum()) for s in (1, -1)]
    assert float((new.grad * along).sum()) == pytest.approx((ends[0] - ends[1]) / 6e-3, rel=1e-3, abs=1e-4)
    assert all(p.grad is None for p in model.hf.parameters())


def test_parameters_that_want_gradients_get_none_and_still_want_them() -> None:
    model = tiny.loaded("llama")
    wanted = [p.requires_grad for p in model.hf.parameters()]
    assert all(wanted)
    _, swaps = _swaps(model, "L1.resid_post")
    new = swaps.values.clone().requires_grad_()
    swaps.logits(torch.arange(3), new, live=True).sum().backward()
    assert new.grad.abs().sum() > 0
    assert [p.requires_grad for p in model.hf.parameters()] == wanted and all(
        p.grad is None for p in model.hf.parameters()
    )


def test_inside_inference_mode_training_still_works() -> None:
    with torch.inference_mode():
        _, swaps = _swaps(tiny.loaded("llama"), "L1.resid_post")
    new = swaps.values.clone().requires_grad_()
    swaps.logits(torch.arange(3), new, live=True).sum().backward()
    assert new.grad is not None


def test_scores_and_patterns_have_no_basis() -> None:
    with pytest.raises(SiteError, match="no basis"):
        _swaps(tiny.loaded("llama"), "L1H2.pattern")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_twin_has_the_shape_and_none_of_the_weights(family) -> None:
    hf = tiny.model(family)
    one, again, other = twin(hf, 3), twin(hf, 3), twin(hf, 4)
    mine, theirs, fresh = (dict(m.named_parameters()) for m in (hf, one, other))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    matrices = [k for k, v in mine.items() if v.dim() == 2]
    assert all(not torch.equal(mine[k], theirs[k]) and not torch.equal(theirs[k], fresh[k]) for k in matrices)
    assert all(torch.equal(v, dict(again.named_parameters())[k]) for k, v in theirs.items())
    assert not one.training and {p.data_ptr() for p in one.parameters()}.isdisjoint(
        p.data_ptr() for p in hf.parameters()
    )
