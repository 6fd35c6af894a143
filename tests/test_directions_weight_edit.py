"""A direction taken out of weights: equal to taking it out at run time, undone to the bit, saved, refused where it is not exact."""

from __future__ import annotations

import pytest
import torch

import steerable as st
import tiny
from microtome.directions import weight_edit
from microtome.directions.estimate import given
from microtome.directions.weight_edit import orthogonalise, stream_sites
from microtome.errors import EditError, ModelError
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.trace.edits import Remove

EXACT = [
    "llama",
    "llama-bias",
    "gpt2",
    "gpt_neox",
    "gptj",
    "phi",
    "qwen2",
    "gemma",
    "granite",
    "opt",
    "cohere",
    "falcon",
]
REFUSED = {"gemma2": "norm after its parts", "olmo2": "norm after its parts", "bloom": "still lies along", "mixtral": "mixture of experts",
           "opt-projected": "projection", "opt-after": "no plain sum"}  # fmt: skip


def direction(model, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return given(model, torch.randn(model.facts.d_model, generator=gen), "L1.resid_post")


def removed(model, d, ids):
    return model.run(ids, edits=[Remove(s, d.vector) for s in stream_sites(model)]).logits


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("tied", [False, True])
def test_the_edited_weights_equal_run_time_ablation(family, tied):
    hf = tiny.build(family, tie_word_embeddings=tied)
    m = Model(load_module(hf))
    d, ids = direction(m), tiny.prompts(3, 7)
    before, whole = m.hash, m.run(ids).logits
    edit = orthogonalise(m, d)
    assert m.hash == before and torch.equal(m.run(ids).logits, whole)
    edited = edit.model.run(ids).logits
    assert torch.allclose(edited, removed(m, d, ids), atol=2e-4)
    assert (edited - whole)[:, 0].abs().max() > 1e-3
    assert (
        edit.record["before"] == before != edit.record["after"] == edit.model.hash
        and edit.record["untied"] == m.facts.tied
    )


@pytest.mark.parametrize("tied", [False, True])
def test_an_edit_in_place_is_undone_to_the_bit(tied):
    m = Model(load_module(tiny.build("llama", tie_word_embeddings=tied)))
    before, state = m.hash, {k: v.clone() for k, v in m.hf.state_dict().items()}
    with orthogonalise(m, direction(m), in_place=True) as edited:
        assert edited is m and m.hash != before and not m.facts.tied
    assert m.hash == before and m.facts.tied == tied
    assert (
        all(torch.equal(v, state[k]) for k, v in m.hf.state_dict().items())
        and state.keys() == m.hf.state_dict().keys()
    )
    with pytest.raises(ZeroDivisionError), orthogonalise(m, direction(m), in_place=True):
        raise ZeroDivisionError
    assert m.hash == before


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_edit_is_a_hugging_face_folder(tied, tmp_path):
    words = st.model().tokenizer
    hf = tiny.build(
        "llama",
        vocab_size=len(st.WORDS) + 1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    m = Model(load_module(hf, tokenizer=words))
    edit = orthogonalise(m, direction(m))
    folder = edit.save(tmp_path / "edited")
    again = Model(load_module(str(folder)))
    assert torch.allclose(again.run("open0 glad1").logits, edit.model.run("open0 glad1").logits, atol=1e-6)
    assert (folder / "weight_edit.json").exists() and list(folder.glob("*.safetensors"))
    edit.undo()
    assert torch.equal(edit.model.run("open0 glad1").logits, m.run("open0 glad1").logits)
    with pytest.raises(EditError, match="undone"):
        edit.save(tmp_path / "again")


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_in_which_it_is_not_exact_are_refused_and_left_as_they_were(family):
    m = Model(load_module(tiny.build(family)))
    before = m.hash
    with pytest.raises(ModelError, match=REFUSED[family]) as caught:
        orthogonalise(m, direction(m), in_place=True)
    assert "run time" in str(caught.value) and m.hash == before


def test_a_writer_that_was_forgotten_is_seen(monkeypatch):
    original = weight_edit.writers
    monkeypatch.setattr(weight_edit, "writers", lambda b: [w for w in original(b) if "2.mlp" not in w[0]])
    m = Model(load_module(tiny.build("llama")))
    with pytest.raises(ModelError, match=r"L2.resid_post still"):
        orthogonalise(m, direction(m))


def test_directions_of_another_width_or_model_are_refused():
    m, other = tiny.loaded("llama"), tiny.loaded("gpt2")
    with pytest.raises(EditError, match="another model"):
        orthogonalise(m, direction(other))
    head = given(m, torch.ones(8), "L1H2.z")
    with pytest.raises(EditError, match="components"):
        orthogonalise(m, head)
