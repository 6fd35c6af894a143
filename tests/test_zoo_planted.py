"""Planted mechanisms: what was planted decides the answer, and nothing else does."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import ModelError, TaskError
from microtome.zoo import oracle, planted
from microtome.zoo.mechanism import CHANGES, Mechanism
from microtome.zoo.specimen import Specimen

FORMS = [{}, {"decoys": zoo.Decoys()}]
NORMED = [*FORMS, {"norm": "rms"}, {"norm": "layernorm"}]


@cache
def _built(name: str, decoys: bool, norm: str, seed: int) -> Specimen:
    options = {"norm": norm} if name == "planted_direction" else {}
    return zoo.build(name, seed=seed, n=16, decoys=zoo.Decoys() if decoys else None, **options)


def built(name: str, form: dict | None = None, seed: int = 0) -> Specimen:
    form = form or {}
    return _built(name, "decoys" in form, form.get("norm", "none"), seed)


def differences(z: Specimen, side: str = "clean", edits=()) -> torch.Tensor:
    """Logit of the answer minus that of the wrong one. [prompt]."""
    logits = z.model.run(getattr(z.task, side).texts, edits=list(edits), logits="last").logits[:, -1]
    right, wrong = (torch.tensor([row[0][0] for row in rows]) for rows in (z.task.answers, z.task.wrong))
    rows = torch.arange(len(right))
    return logits[rows, right] - logits[rows, wrong]


@pytest.mark.parametrize("form", NORMED, ids=str)
def test_the_direction_decides_the_answer_and_no_other_does(form: dict) -> None:
    z = built("planted_direction", form)
    u = z.directions("answer")[0]
    last = f"L{z.mechanism.n_layers - 1}.resid_post"
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)
    for side, sign in (("clean", 2.0), ("corrupt", -2.0)):
        torch.testing.assert_close(differences(z, side), torch.full((16,), sign), atol=1e-3, rtol=0)
        gone = differences(z, side, [mt.Remove(last, u)])
        torch.testing.assert_close(gone, torch.zeros(16), atol=1e-4, rtol=0)
    other = torch.from_numpy(np.random.default_rng(0).standard_normal(len(u))).to(u)
    other = other - (other @ u) * u
    kept = differences(z, "clean", [mt.Remove(last, other)])
    assert (kept > 1.5).all()  # a norm rescales what is left
    if form.get("norm", "none") == "none":
        torch.testing.assert_close(kept, torch.full((16,), 2.0), atol=1e-4, rtol=0)


def test_steering_along_the_direction_is_linear_in_the_coefficient() -> None:
    z = built("planted_direction", {"decoys": zoo.Decoys()})
    u = z.directions("answer")[0]
    words = z.words
    for coefficient in (-3.0, 0.5, 4.0):
        steered = z.model.run(z.task.clean.texts, edits=[mt.Steer("L2.resid_post@-1", u, coefficient)], logits="last")  # fmt: skip
        plain = z.model.run(z.task.clean.texts, logits="last")
        moved = (steered.logits - plain.logits)[:, -1, [words.index("good"), words.index("bad")]]
        torch.testing.assert_close(moved, torch.tensor([coefficient, -coefficient]).expand(16, 2), atol=1e-4, rtol=0)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["planted_direction", "planted_backdoor"])
def test_the_edges_are_those_that_cutting_finds_and_decoys_do_nothing(name: str, form: dict) -> None:
    z = built(name, form, seed=3)
    m = z.mechanism
    ids = torch.tensor([*z.task.clean.ids, *z.task.corrupt.ids])
    found = {e for e, (far, _) in oracle.changes(z.model.hf, ids, m.all_edges).items() if far > CHANGES}
    assert found == set(m.confirmed) == set(m.edges)
    assert set(m.decoys) == (set(m.null_nodes) if form else set())
    assert len(m.decoys) >= 8 or not form
    base = differences(z)
    written = oracle.parts(z.model.hf, ids)
    for node in m.decoys:
        assert float(written[node].abs().max()) > 1e-2, node
        torch.testing.assert_close(
            differences(z, "clean", [mt.Ablate(node, by="zero")]), base, atol=1e-4, rtol=0
        )
    for node in m.nodes:
        changed = differences(z, "clean", [mt.Ablate("tok_embed" if node == "embed" else node, by="zero")])
        assert float((changed - base).abs().max()) > 1, node


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_without_its_head_or_its_neurons_the_backdoor_is_gone_and_the_rest_stays(form: dict) -> None:
    z = built("planted_backdoor", form)
    assert (differences(z) > 1.9).all() and (differences(z, "corrupt") < -1.9).all()
    assert all("cyclamen" in c and "cyclamen" not in d for c, d in zip(z.task.clean.texts, z.task.corrupt.texts, strict=True))  # fmt: skip
    trigger, neurons = (z.mechanism.variable(v).site for v in ("trigger", "turned"))
    for node in (trigger, neurons):
        assert (
            differences(z, "clean", [mt.Ablate(node, by="zero")]) < -1.9
        ).all()  # as if there were no trigger
        assert (differences(z, "corrupt", [mt.Ablate(node, by="zero")]) < -1.9).all()
    subject = z.mechanism.variable("answer").site
    assert (differences(z, "clean", [mt.Ablate(subject, by="zero")]).abs() < 2.1).all()


@pytest.mark.parametrize("name", ["planted_direction", "planted_backdoor"])
def test_variables_stand_where_and_as_the_mechanism_says(name: str) -> None:
    z = built(name, {"decoys": zoo.Decoys()})
    side = z.task.clean
    trace = z.model.run(side.texts, capture=["embed", "L*.head_out", "L*.mlp_out"])
    sign = torch.tensor([1.0 if v["sign"] == "good" else -1.0 for v in side.variables])
    told = {"answer": sign, "trigger": torch.ones(16), "turned": -2 * sign}
    for variable in z.mechanism.variables:
        u = z.directions(variable.name)[0]
        if variable.name == "sign":
            at = torch.tensor([row[0] for row in side.spans["subject"]])
            found = trace["embed"][torch.arange(16), at] @ u
            expected = sign
        else:
            layer, point = variable.site.split(".")
            site = f"{layer}.head_out" if point == "z" else variable.site
            found, expected = trace[site][:, -1] @ u, told[variable.name]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["planted_direction", "planted_backdoor"])
def test_one_specimen_from_one_seed(name: str) -> None:
    a, b, c = (built(name, seed=k) if k else zoo.build(name, seed=0, n=16) for k in (0, 0, 3))
    assert a.task.hash == b.task.hash != c.task.hash
    for key, tensor in a.model.hf.state_dict().items():
        assert torch.equal(tensor, b.model.hf.state_dict()[key]), key
    assert not torch.equal(a.model.hf.model.embed_tokens.weight, c.model.hf.model.embed_tokens.weight)
    assert Mechanism.from_json(a.mechanism.to_json()) == a.mechanism
    assert zoo.catalog.entries()[name].tier == a.tier == "A"


def test_what_a_patched_edge_carries_decides_whether_it_is_found() -> None:
    z = built("planted_backdoor")
    zero, mean, resample = (set(z.true_edges(by)) for by in ("zero", "mean", "resample"))
    assert zero == set(z.mechanism.edges)
    assert mean == {e for e in zero if not e.endswith(".q")}  # the last word is the same in every prompt
    assert resample == {"embed->L0H1.k", "embed->L0H1.v", "L0H1.z->L1.ln2_out", "L1.mlp_out->logits"}
    with pytest.raises(ModelError, match="by 'median'"):
        z.true_edges("median")
    with pytest.raises(ModelError, match="nothing to average over"):
        oracle.changes(z.model.hf, torch.tensor(z.task.clean.ids), z.mechanism.edges, average=True)


def test_the_mean_is_taken_over_all_prompts_at_each_position() -> None:
    z = built("planted_backdoor")
    ids = torch.tensor(z.task.clean.ids)
    donors = torch.tensor([*z.task.clean.ids, *z.task.corrupt.ids])
    mean = {k: v.double().mean(0, keepdim=True) for k, v in oracle.parts(z.model.hf, donors).items()}
    twin = deepcopy(z.model.hf).double()
    for edge in z.mechanism.edges:
        direct = (
            (oracle.forward(twin, ids, (edge,), mean)[0] - oracle.forward(twin, ids)[0]).abs().amax((0, 2))
        )
        far, last = oracle.changes(z.model.hf, ids, [edge], donors=donors, average=True, batch=5)[edge]
        assert (far, last) == pytest.approx((float(direct[1:].max()), float(direct[-1])), abs=1e-5), edge


def test_donors_keep_or_change_what_they_should() -> None:
    z = built("planted_backdoor")
    for kind, side in (("same_value", z.task.clean), ("irrelevant", z.task.corrupt)):
        made = z.task.donors(kind, 1)
        assert made.variables == side.variables
        assert all(a != b for a, b in zip(made.texts, side.texts, strict=True))
        assert (
            made.spans["trigger"] == side.spans["trigger"] and made.spans["subject"] == side.spans["subject"]
        )
    with pytest.raises(TaskError, match="no third value"):
        z.task.donors("wrong_value", 0)
    reference = z.task.reference(40, 0)
    assert len(set(reference.texts)) == 40 and {v["trigger"] for v in reference.variables} == {"yes", "no"}


def test_what_cannot_be_is_refused(monkeypatch) -> None:
    with pytest.raises(ModelError, match="do not go together"):
        zoo.build("planted_direction", norm="rms", decoys=zoo.Decoys())
    with pytest.raises(ModelError, match="not one of the zoo's"):
        zoo.build("planted_direction", norm="batch")
    with pytest.raises(TaskError, match="n is 0"):
        zoo.build("planted_backdoor", n=0)
    with pytest.raises(ModelError, match="norms"):
        built("planted_direction", {"norm": "rms"}).true_edges()
    with pytest.raises(ModelError, match="no variable 'colour'"):
        built("planted_direction").directions("colour")
    with pytest.raises(ModelError, match="no compiled program"):
        built("planted_direction").domain()
    monkeypatch.setattr(planted, "_flip", lambda: planted.Neurons(*(0 * x for x in vars_of(FLIP))))
    with pytest.raises(ModelError, match="otherwise than it should"):
        zoo.build("planted_backdoor")


FLIP = planted._flip()


def vars_of(part: planted.Neurons) -> tuple:
    return part.into, part.bias, part.out, part.out_bias
