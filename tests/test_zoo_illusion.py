"""The subspace illusion: a search succeeds on neurons that carry nothing, and its controls say so."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome import methods
from microtome.zoo import illusion, oracle
from microtome.zoo.mechanism import CHANGES
from microtome.zoo.specimen import Specimen

NEURONS = "L1.neurons@-1"


@cache
def built(carried: bool = False) -> Specimen:
    return zoo.build("subspace_illusion", seed=0, carried=carried)


@cache
def searched(carried: bool):
    z = built(carried)
    return methods.das(z.model, z.task, variable="word", site=NEURONS, k=1, steps=80, placebos=1, seed=0)


def accuracy(result, what: str) -> float:
    table = result.tables["accuracy"]
    return float(table[(table["what"] == what) & (table["part"] == "entity")]["value"].iloc[0])


def test_one_neuron_follows_the_word_unread_and_one_is_read_and_never_fires() -> None:
    z = built()
    words = [v["word"] for v in z.task.clean.variables]
    trace = z.model.run(z.task.clean.texts, capture=["L1.neurons"])
    follows, dormant = trace["L1.neurons"][:, -1, 0], trace["L1.neurons"][:, -1, 1]
    assert all((float(x) > 1) == (word == "amber") for x, word in zip(follows, words, strict=True))
    assert float(dormant.abs().max()) == 0
    out = z.model.hf.model.layers[1].mlp.down_proj.weight
    assert float(out[:, 0].abs().max()) == 0 and float(out[:, 1].abs().max()) == 4
    assert (illusion.FOLLOWS, illusion.DORMANT) == ("L1N0.neurons", "L1N1.neurons")


@pytest.mark.parametrize("carried", [False, True])
def test_the_mlp_belongs_to_the_mechanism_only_where_it_carries_the_word(carried: bool) -> None:
    z = built(carried)
    m = z.mechanism
    ids = torch.tensor([*z.task.clean.ids, *z.task.corrupt.ids])
    found = {e for e, (far, _) in oracle.changes(z.model.hf, ids, m.all_edges).items() if far > CHANGES}
    assert found == set(m.edges)
    assert ("L1.mlp_out" in m.nodes) is carried and ("L1.mlp_out" in m.decoys) is not carried
    base, gone = (
        z.model.run(z.task.clean.texts, edits=edits, logits="last").logits[:, -1, 1:3]
        for edits in ([], [mt.Ablate("L1.mlp_out", by="zero")])
    )
    assert (float((base - gone).abs().max()) > 1) is carried


def test_half_of_each_neuron_is_exchanged_with_the_effect_of_the_word() -> None:
    """By hand: the direction (1, 1) / sqrt 2 of the two neurons, taken from the other word's run, turns the answer round."""
    z = built()
    u = torch.zeros(42)
    u[:2] = 0.5**0.5
    both = [z.model.run(side.texts, capture=[NEURONS]) for side in (z.task.clean, z.task.corrupt)]
    clean, corrupt = (t[NEURONS] for t in both)
    moved = clean + ((corrupt - clean) @ u)[:, None] * u
    logits = z.model.run(z.task.clean.texts, edits=[mt.Patch(NEURONS, moved)], logits="last").logits[:, -1]
    right = [words[0][0] for words in z.task.wrong]
    assert logits.argmax(-1).tolist() == right
    whole = z.model.run(z.task.clean.texts, edits=[mt.Patch(NEURONS, corrupt)], logits="last").logits[:, -1]
    assert whole.argmax(-1).tolist() == [words[0][0] for words in z.task.answers]


def test_the_search_succeeds_and_its_controls_see_the_illusion() -> None:
    r = searched(False)
    assert (
        accuracy(r, "subspace") == 1.0 and accuracy(r, "full vector") == accuracy(r, "no intervention") < 0.6
    )
    assert r.verdict == "not distinguishable from its null"
    for name in ("row_space", "natural_variance", "ceiling"):
        assert not r.control(name).passed, name
    basis = np.abs(r.tensors["basis"][:, 0])
    assert min(basis[0], basis[1]) > np.quantile(basis, 0.9)


def test_where_neurons_do_carry_the_word_the_same_search_is_supported() -> None:
    r = searched(True)
    assert r.verdict == "supported" and accuracy(r, "full vector") == 1.0
    assert r.control("row_space").passed and r.control("natural_variance").passed
    basis = r.tensors["basis"][:, 0]
    assert abs(basis[0] - basis[1]) / 2**0.5 > 0.95  # the difference of the two neurons
