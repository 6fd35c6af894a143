"""Weights in the standard orientation: they reproduce the activations, they are views, groups are kept."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.errors import SiteError
from microtome.model.tokens import pack
from microtome.model.weights import Weights
from microtome.trace.run import run

ROWS = tiny.prompts(2, 5)
NAMES = ["llama-bias", "gpt2", "gpt_neox", "bloom", "falcon", "falcon-new", "falcon-mha", "phi3", "gptj", "gpt_neo", "opt", "starcoder2", "gemma2", "stablelm-parallel", "qwen2"]  # fmt: skip


def _affine(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    out = torch.einsum("bpm,hmd->bphd", x, w)
    return out if b is None else out + b


@pytest.mark.parametrize("name", NAMES)
def test_weights_reproduce_the_activations(name: str) -> None:
    binding = tiny.bound(name)
    w, facts = Weights(binding), binding.facts.layers[1]
    qk = binding.slots[1].block.qk_norm
    points = [
        p
        for p in (
            "ln1_out",
            "q_pre",
            "k_pre",
            "v",
            "z",
            "head_out",
            "attn_raw",
            "ln2_out",
            "mlp_pre",
            "mlp_gate",
            "neurons",
            "mlp_raw",
        )
        if p not in facts.lacks
    ]
    t = run(binding, pack(ROWS), capture=[f"L1.{p}" for p in points])
    heads, kv, d, m = facts.n_heads, facts.n_kv_heads, facts.d_head, binding.facts.d_model
    assert (
        w.W_Q(1).shape == (heads, m, d)
        and w.W_K(1).shape == (kv, m, d) == w.W_V(1).shape
        and w.W_O(1).shape == (heads, d, m)
    )
    close = {"rtol": 1e-4, "atol": 1e-5}
    if not qk:
        torch.testing.assert_close(_affine(t["L1.ln1_out"], w.W_Q(1), w.b_Q(1)), t["L1.q_pre"], **close)
        torch.testing.assert_close(_affine(t["L1.ln1_out"], w.W_K(1), w.b_K(1)), t["L1.k_pre"], **close)
    torch.testing.assert_close(_affine(t["L1.ln1_out"], w.W_V(1), w.b_V(1)), t["L1.v"], **close)
    torch.testing.assert_close(torch.einsum("bphd,hdm->bphm", t["L1.z"], w.W_O(1)), t["L1.head_out"], **close)
    b_o = w.b_O(1)
    torch.testing.assert_close(
        t["L1.head_out"].sum(2) + (0 if b_o is None else b_o), t["L1.attn_raw"], **close
    )
    for point, weight, bias in (("mlp_pre", w.W_in, w.b_in), ("mlp_gate", w.W_gate, w.b_gate)):
        if point in points:
            b = bias(1)
            torch.testing.assert_close(
                t["L1.ln2_out"] @ weight(1) + (0 if b is None else b), t[f"L1.{point}"], **close
            )
    b = w.b_out(1)
    torch.testing.assert_close(
        t["L1.neurons"] @ w.W_out(1) + (0 if b is None else b), t["L1.mlp_raw"], **close
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_weights_are_views_of_the_models_own_parameters(name: str) -> None:
    binding = tiny.bound(name)
    w = Weights(binding)
    owned = {p.untyped_storage().data_ptr() for p in binding.hf.parameters()}
    matrices = [w.W_E, w.W_U, w.W_O(1), w.W_out(1), w.W_in(1)]
    if name in ("llama", "gpt2", "phi3"):  # interleaved heads cannot be one view
        matrices += [w.W_Q(1), w.W_K(1), w.W_V(1)]
    assert all(m.untyped_storage().data_ptr() in owned for m in matrices)


def test_embedding_and_unembedding() -> None:
    for name in ("gpt2", "llama", "opt-projected", "gptj"):
        binding = tiny.bound(name)
        w = Weights(binding)
        t = run(
            binding,
            pack(ROWS),
            capture=["final_norm_out", *(["tok_embed"] if name in ("gpt2", "llama") else [])],
        )
        if name != "opt-projected":
            b_u = w.b_U
            torch.testing.assert_close(
                t["final_norm_out"] @ w.W_U + (0 if b_u is None else b_u), t.logits, rtol=1e-4, atol=1e-4
            )
        assert w.W_E.shape[0] == tiny.VOCAB and w.W_U.shape[1] == tiny.VOCAB
        if "tok_embed" in t:
            assert torch.equal(t["tok_embed"], w.W_E[torch.tensor(ROWS)])
    assert Weights(tiny.bound("gpt2")).W_pos.shape == (64, 24)
    assert tiny.bound("gpt2").facts.tied and not tiny.bound("llama").facts.tied
    with pytest.raises(SiteError, match="no pos"):
        _ = Weights(tiny.bound("llama")).W_pos


def test_an_embedding_multiplier_is_not_folded_in() -> None:
    binding = tiny.bound("granite")
    t = run(binding, pack(ROWS), capture=["tok_embed", "embed"])
    torch.testing.assert_close(t["tok_embed"], 2.5 * Weights(binding).W_E[torch.tensor(ROWS)])
    assert torch.equal(t["tok_embed"], t["embed"])


@pytest.mark.parametrize(
    ("name", "call", "match"),
    [
        ("deepseek_v3", lambda w: w.W_Q(1), "latent"), ("mixtral", lambda w: w.W_out(1), "router"), ("gpt2", lambda w: w.W_gate(1), "no gate"), ("mixtral", lambda w: w.b_in(1), "router"),
        ("jamba", lambda w: w.W_Q(0), "no such projection"), ("olmo2", lambda w: w.norm_gain(1, "ln1"), "no norm"), ("llama", lambda w: w.norm_gain(1, "ln2_post"), "no norm"),
        ("opt-after", lambda w: w.norm_gain(None), "final_norm"),
    ],
)  # fmt: skip
def test_weights_that_are_not_there_are_refused_with_the_reason(name: str, call: object, match: str) -> None:
    with pytest.raises(SiteError) as caught:
        call(Weights(tiny.bound(name)))  # type: ignore[operator]
    assert match in str(caught.value)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2", "cohere"])
def test_norm_gains_are_effective_gains(name: str) -> None:
    """Gemma keeps the gain as 1 + w, cohere centres without a bias: what counts is what the norm does."""
    binding = tiny.bound(name)
    w = Weights(binding)
    which, point, source = (
        ("ln1_post", "attn_out", "attn_raw") if name == "olmo2" else ("ln1", "ln1_out", "resid_pre")
    )
    t = run(binding, pack(ROWS), capture=[f"L1.{point}", f"L1.{source}", f"L1.{which}_scale"])
    x = t[f"L1.{source}"]
    if name in ("gpt2", "cohere"):
        x = x - x.mean(-1, keepdim=True)
    made = x / t[f"L1.{which}_scale"] * w.norm_gain(1, which) + w.norm_bias(1, which)
    torch.testing.assert_close(made, t[f"L1.{point}"], rtol=1e-4, atol=1e-5)
    assert w.norm_gain(None).shape == (binding.facts.d_model,)


def test_weights_follow_the_module_when_it_is_trained_on() -> None:
    from microtome.model.binding import bind

    hf = tiny.build("llama")
    w = Weights(bind(hf))
    with torch.no_grad():
        hf.model.layers[1].self_attn.v_proj.weight.zero_()
    assert not w.W_V(1).any()
