"""Whoever reads a model by hand has looked: run, grad, stream and generate tell observers of it, each once."""

from __future__ import annotations

import torch

import tiny
from microtome.model.load import load_module
from microtome.results import observe


def looks(work):
    heard: list = []
    with observe(heard.append):
        work()
    assert {e.kind for e in heard} <= {"look"} and all(e.parent is None for e in heard)
    return [(e.look.sites, e.arguments["prompts"]) for e in heard]


def test_every_way_of_reading_is_a_look():
    from microtome.facade import Model

    model = Model(load_module(tiny.model("llama")))
    ids = [[1, 2, 3]]
    assert looks(lambda: model.run(ids, capture=["L0.z"])) == [(("L0.z",), ids)]
    assert looks(lambda: model.run(ids)) == [((), ids)]
    assert looks(lambda: model.grad(ids, lambda logits: logits[:, -1, 0], sites="L1.z")) == [(("L1.z",), ids)]
    assert looks(lambda: model.generate(ids, max_new_tokens=2)) == [((), ids)]
    assert len(looks(lambda: list(model.stream([[1, 2], [3, 4]], "L0.z", batch=1)))) == 2
    assert looks(lambda: model.tokens(ids)) == []


def test_nobody_listening_costs_no_description(monkeypatch):
    from microtome.facade import Model
    from microtome.results import stamp

    model = Model(load_module(tiny.model("llama")))
    monkeypatch.setattr(stamp, "describe", lambda *_: (_ for _ in ()).throw(AssertionError("described")))
    assert isinstance(model.run([[1, 2]]).logits, torch.Tensor)
