"""The zoo's module: every combination of its parts passes the certificate, replays exactly, saves and loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import microtome as mt
import tiny
from microtome.errors import ModelError, SiteError
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts
from microtome.replay.sweep import Bench, sweep
from microtome.sites import At, parse
from microtome.zoo import module as zoo
from microtome.zoo.words import word_tokenizer

BASE = {
    "vocab_size": 23, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 5, "intermediate_size": 40,
    "max_position_embeddings": 20,
}  # fmt: skip
KINDS = {
    "bare": {"intermediate_size": 0},
    "bare-nopos": {"intermediate_size": 0, "learned_positions": False},
    "mlp": {},
    "biases": {"attention_bias": True, "head_bias": True, "attention_scale": 0.9},
    "layernorm": {"norm": "layernorm", "hidden_act": "gelu"},
    "rms": {"norm": "rms", "mlp_bias": False, "hidden_act": "silu"},
    "rms-bare": {"norm": "rms", "intermediate_size": 0},
    "square": {"hidden_act": "square", "num_hidden_layers": 1},
    "linear": {"hidden_act": "linear"},
    "both-ways": {"causal": False},
    "both-ways-norm": {"causal": False, "norm": "layernorm"},
    "both-ways-bare": {"causal": False, "intermediate_size": 0},
}


def build(kind: str, dtype: torch.dtype = torch.float32) -> zoo.ZooForCausalLM:
    module = zoo.make(zoo.ZooConfig(**{**BASE, **KINDS[kind]}), seed=3, dtype=dtype)
    tiny.randomise(module, 3)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_known_family_and_passes_the_certificate(kind: str) -> None:
    model = mt.load(build(kind))
    facts = model.facts
    assert facts.known_family and facts.family == "microtome_zoo" and facts.additive
    certificate = model.certificate()
    assert certificate.passed, [(c.name, c.observed, c.detail) for c in certificate.failed]
    ran = {c.name for c in certificate.checks if c.passed}
    needed = {
        "parity",
        "norms",
        "residual sum",
        "readout",
        "pattern @ v",
        "projections",
        "causal",
        "replay",
        "total",
    }
    assert needed <= ran
    normless = "norm" not in KINDS[kind]
    assert ("final_scale" in facts.lacks) == normless and "final_norm_out" not in facts.lacks
    for layer in facts.layers:
        assert ("ln1_scale" in layer.lacks) == normless and "ln1_out" not in layer.lacks
        assert ("resid_mid" in layer.lacks) == (KINDS[kind].get("intermediate_size") == 0)
        assert ("ln2_out" in layer.lacks) == (KINDS[kind].get("intermediate_size") == 0)
    assert ("pos_embed" in facts.lacks) == (kind == "bare-nopos")
    if kind == "bare-nopos":
        assert facts.positions == "none" and "positions: none" in facts.lacks["pos_embed"]


def test_what_is_not_there_is_refused_with_a_sentence() -> None:
    model = mt.load(build("bare"))
    for site, sentence in (
        ("L0.ln1_scale", "no norm there"),
        ("L1.mlp_out", "no MLP"),
        ("final_scale", "no final norm"),
    ):
        with pytest.raises(SiteError, match=sentence):
            model.run([[1, 2, 3]], capture=site)


def test_without_norms_the_names_are_the_same_tensor() -> None:
    model = mt.load(build("mlp"))
    names = ["L1.resid_pre", "L1.ln1_out", "L1.resid_mid", "L1.ln2_out", "final_resid", "final_norm_out"]
    t = model.run([[1, 2, 3, 4]], capture=names)
    for a, b in zip(names[::2], names[1::2], strict=True):
        assert torch.equal(t[a], t[b])
    assert torch.allclose(t["final_norm_out"] @ model.weights.W_U, t.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("outer", "inner", "same"),
    [("L1.resid_mid", "L1.ln2_out", False), ("final_resid", "final_norm_out", True)],
)
def test_an_edit_lands_where_its_name_says(outer: str, inner: str, same: bool) -> None:
    """resid_mid reaches the stream and the MLP; ln2_out the MLP only."""
    model = mt.load(build("mlp"))
    prompt = [[1, 2, 3, 4]]
    plain = model.run(prompt, capture=["L1.resid_mid", "L1.mlp_out", "L1.resid_post", outer])
    a, b = (
        model.run(prompt, capture=["L1.mlp_out", "L1.resid_post"], edits=[mt.Ablate(s, by="zero")])
        for s in (outer, inner)
    )
    assert torch.equal(a["L1.mlp_out"], b["L1.mlp_out"])
    if same:
        assert torch.equal(a.logits, b.logits) and not torch.allclose(a.logits, plain.logits)
    else:
        assert torch.allclose(b["L1.resid_post"] - a["L1.resid_post"], plain["L1.resid_mid"], atol=1e-6)


def _bench(model: object, ids: list[list[int]]) -> Bench:
    plan = scoring([((5,),)] * len(ids), [((6,),)] * len(ids))
    return Bench(model.binding, [list(i) for i in ids], plan, (metric("logit_diff"),))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["bare", "rms", "mlp", "both-ways", "both-ways-norm"])
def test_a_sweep_equals_a_run_with_the_same_patch(kind: str) -> None:
    """Also where clean and corrupt differ at the last token only: what sees both ways must not skip what stands before."""
    model = mt.load(build(kind, torch.float64))
    clean = [[0, 3, 4, 5, 6, 7], [0, 8, 9, 10, 11, 12]]
    corrupt = [[0, 3, 4, 5, 6, 13], [0, 8, 9, 10, 11, 14]]
    cells = [
        Cell((Change(parse(f"L{layer}.{point}"), At(at, single=True)),))
        for layer in range(3) for point in ("resid_pre", "attn_out", "z") for at in (0, 2, 5)
    ]  # fmt: skip
    out = sweep(_bench(model, clean), cells, {"donor": Prompts([tuple(c) for c in corrupt])})
    base, donor = model.run(clean), model.run(corrupt, capture=["L*.resid_pre", "L*.attn_out", "L*.z"])
    moved = 0
    for c, cell in enumerate(cells):
        site = cell.changes[0]
        assert site.at is not None
        at = int(str(site.at))
        address = f"{site.site}@{at}"
        patched = model.run(clean, edits=[mt.Patch(address, donor)])
        diff = (patched.logits - base.logits)[:, -1]
        expected = diff[:, 5] - diff[:, 6]
        assert torch.allclose(out.effects[c, :, 0], expected, atol=1e-9), address
        moved += int(at < 5 and bool(expected.abs().max() > 1e-6))
    if model.binding.causal:
        assert moved == 0 and bool(out.zero.any())
    else:
        assert out.mode == "layers" and moved > 3 and not bool(out.zero.any())


def test_a_model_that_sees_both_ways_does_not_continue_prompts() -> None:
    model = mt.load(build("both-ways"))
    with pytest.raises(ModelError, match="does not continue prompts"):
        model.generate([[1, 2]], max_new_tokens=1)
    bench = Bench(model.binding, [[1, 2, 3]], scoring([((5, 6),)], [((7, 8),)]), (metric("logit_diff"),))
    with pytest.raises(ModelError, match="several tokens"):
        sweep(bench, [Cell((Change(parse("L0.z")),))], {"donor": Prompts([(1, 2, 4)])})


@pytest.mark.parametrize(("kind", "says"), [("mlp", False), ("both-ways", True)])
def test_the_certificate_catches_a_wrong_word_about_causality(kind: str, says: bool) -> None:
    model = mt.load(build(kind))
    assert model.certificate().check("causal").passed
    lying = mt.load(build(kind))
    lying.binding.family = replace(lying.binding.family, causal=lambda c: says)
    assert lying.certificate().check("causal").passed is False


@pytest.mark.parametrize("kind", ["bare", "layernorm", "both-ways"])
def test_saving_and_loading_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    module = build(kind)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = module.config.to_dict()
    folder = zoo.save(module, tmp_path / "m")
    assert module.config.to_dict() == before
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = zoo.read(folder)
    assert all(
        getattr(again.config, k) == getattr(module.config, k)
        for k in (*BASE, "norm", "causal", "learned_positions")
    )
    assert torch.equal(again(ids).logits, module(ids).logits)
    assert not any(p.requires_grad for p in again.parameters())
    loaded = mt.load(folder, tokenizer=word_tokenizer([f"w{i}" for i in range(22)]))
    assert torch.equal(loaded.run(ids.tolist()).logits, module(ids).logits)
    by_transformers = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert torch.equal(by_transformers(ids).logits, module(ids).logits)


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no zoo model"):
        zoo.read(tmp_path)
    folder = zoo.save(build("bare"), tmp_path / "a")
    zoo.save(build("mlp"), tmp_path / "b")
    (folder / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="not this config's"):
        zoo.read(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="gpt2"):
        zoo.read(folder)


@pytest.mark.parametrize(("field", "value"), [("norm", "batch"), ("hidden_act", "sine")])
def test_unknown_parts_are_refused(field: str, value: str) -> None:
    with pytest.raises(ModelError, match=value):
        zoo.ZooConfig(**{field: value})


def test_prompts_are_words_and_unknown_ones_are_refused() -> None:
    tokenizer = word_tokenizer([f"w{i}" for i in range(22)])
    model = mt.load(build("mlp"), tokenizer=tokenizer)
    assert model.tokens("w0 w2").ids.tolist() == [[0, 1, 3]]
    assert model.strings([0, 1, 3]) == ["<bos>", "w0", "w2"]
    assert torch.equal(model.run("w0 w2").logits, model.run([[0, 1, 3]]).logits)
    assert model.single_token("w3") == 4
    with pytest.raises(ModelError):
        model.run("w0 nothing")
    with pytest.raises(ModelError, match="cannot be tokens"):
        word_tokenizer(["a", "a"])
    with pytest.raises(ModelError, match="split at spaces"):
        word_tokenizer(["a b"])


def test_padded_rows_and_generation_with_and_without_a_cache() -> None:
    model = mt.load(build("mlp"))
    a = model.generate([[0, 1, 2], [0, 4]], max_new_tokens=4)
    b = model.generate([[0, 1, 2], [0, 4]], max_new_tokens=4, cache=False)
    assert a.sequences == b.sequences
    both = mt.load(build("both-ways"))
    for padding in ("left", "right"):
        t = both.run([[0, 1, 2, 5], [0, 4]], padding=padding)
        short = both.run([[0, 4]]).logits[0]
        assert torch.allclose(t.logits[1][t.mask[1]], short, atol=1e-5)
