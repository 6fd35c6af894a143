"""Strictly trained models: each node holds its variables and nothing else, no other edge matters, and what fails is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import ModelError, TrainingError
from microtome.zoo import catalog, interchanged, oracle, shipped, training
from microtome.zoo import interchange as ic
from microtome.zoo.exchange import Places, run
from microtome.zoo.mechanism import Mechanism
from microtome.zoo.module import ZooConfig, make
from microtome.zoo.specimen import Specimen

NAMES = [name.removeprefix("interchange_") for name in shipped.names() if name.startswith("interchange_")]


@cache
def built(name: str) -> Specimen:
    return zoo.build(f"interchange_{name}", seed=0, n=16)


@cache
def data(name: str) -> ic.Interchange:
    return ic.Interchange(ic.recipe(name, seed=0))


# ---------------------------------------------------------------------------- exchanges


def test_an_exchange_of_one_edge_or_node_in_each_row_is_what_the_oracle_gives_for_all_rows() -> None:
    d = data("induction")
    module = make(ZooConfig(**d.recipe.config), seed=1, dtype=torch.float64)
    ids, source = d.ids[:4], d.ids[30:34]
    with torch.no_grad():
        base, own = run(module, ids)
        written = run(module, source)[1]
        logits, parts = oracle.forward(module, ids)
        torch.testing.assert_close(base, logits)
        for i, name in enumerate(d.graph.sources):
            torch.testing.assert_close(own[i], parts[name])
        edges = list(d.graph.edges)
        rows = torch.arange(len(edges)) % 4
        cut = torch.tensor([d.graph.edge(e) for e in edges])
        found = run(module, ids[rows], written[:, rows], None, cut)[0]
        theirs = oracle.parts(module, source)
        for k, edge in enumerate(edges):
            one = int(rows[k])
            other = {name: t[[one]] for name, t in theirs.items()}
            torch.testing.assert_close(found[[k]], oracle.forward(module, ids[[one]], (edge,), other)[0])
        for node in d.graph.sources:
            every = [e for e in edges if e.startswith(f"{node}->")]
            whole = run(module, ids, written, d.nodes([node] * 4))[0]
            torch.testing.assert_close(whole, oracle.forward(module, ids, every, theirs)[0])


def test_the_places_are_the_graphs() -> None:
    graph = Places(2, 4)
    assert len(graph.sources) == 11 and len(graph.readers) == 27 and len(set(graph.readers)) == 27
    assert {e.split("->")[1] for e in graph.edges} == set(graph.readers)
    with pytest.raises(ModelError, match="row by row"):
        run(make(ZooConfig(norm="rms", intermediate_size=4), seed=0), torch.zeros(1, 2, dtype=torch.long))


def test_labels_are_what_the_program_gives_with_another_inputs_variable() -> None:
    """Of induction with the previous tokens of another input: by hand."""
    d = data("induction")
    node = next(n for n, names in d.holds.items() if names == ("previous",))
    test = d.testing[node]
    seen = 0
    for base, source, label in zip(test.base[:50].tolist(), test.source.tolist(), test.label, strict=False):
        tokens, previous = d.program.domain[base], ("none", *d.program.domain[source][:-1])
        for i, word in enumerate(tokens):
            places = [k for k in range(i + 1) if previous[k] == word]
            expected = tokens[places[0]] if places else "none"
            assert d.words[int(label[i])] == expected
            seen += bool(places)
    assert seen > 20
    assert set(d.held_out.tolist()).isdisjoint(d.kept.tolist())
    assert set(test.base.tolist()) | set(test.source.tolist()) <= set(d.held_out.tolist())
    train = d.training[node]
    assert set(train.base.tolist()) | set(train.source.tolist()) <= set(d.kept.tolist())


@pytest.mark.parametrize("name", ic.NAMES)
def test_each_node_is_in_its_layer_and_the_rest_holds_nothing(name: str) -> None:
    d = data(name)
    assert set(d.holds) | set(d.empty) | {"embed"} == set(d.graph.sources)
    assert len(d.edges) + len(d.null_edges) == len(d.graph.edges)
    assert {e.split("->")[0] for e in d.edges} == {*d.holds, "embed"}
    assert ic.Interchange(ic.recipe(name, seed=0)).places == d.places


# ---------------------------------------------------------------------------- what ships


def test_models_ship() -> None:
    assert set(NAMES) == set(ic.NAMES) and all(f"interchange_{n}" in catalog.entries() for n in NAMES)
    size = sum(f["bytes"] for n in NAMES for f in shipped.read(f"interchange_{n}").files.values())
    assert size < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_held_out_interchanges_confirm_every_node_and_edge(name: str) -> None:
    note, d = shipped.read(f"interchange_{name}"), data(name)
    assert note.recipe == d.recipe and note.outcome == "reached"
    found = d.measure(note.module())
    assert min(v for k, v in found.items() if k != "moved") >= 0.99 and {*d.holds, "empty", "edges"} <= set(
        found
    )
    assert found == pytest.approx(dict(note.measured), abs=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_interchanges_through_microtome_give_what_the_program_says(name: str) -> None:
    """By other means: captured and patched at addresses, labels from the specimen's own counterfactual."""
    z = built(name)
    d = data(name)
    rows = [d.held_out[k] for k in range(24)]
    texts = [" ".join(z.program.domain[k]) for k in rows]
    hits, total = 0, 0
    for node, names in d.holds.items():
        site = node
        source = z.model.run(texts, capture=[site])
        order = list(range(1, 24)) + [0]
        for base in range(24):
            try:
                expected = z.counterfactual(names[-1], texts[base], texts[order[base]])
            except ModelError:
                continue
            value = source[site][[order[base]]]
            logits = z.model.run([texts[base]], edits=[mt.Patch(site, value)]).logits[0, 1:]
            hits += sum(z.words[int(k)] == str(v) for k, v in zip(logits.argmax(-1), expected, strict=True))
            total += len(expected)
    assert total > 100 and hits / total >= 0.98


@pytest.mark.parametrize("name", NAMES)
def test_the_specimen_carries_its_mechanism_and_how_it_was_made(name: str) -> None:
    z = built(name)
    m, d = z.mechanism, data(name)
    assert z.tier == "A" and m.edges == d.edges and set(m.decoys) == set(d.empty)
    assert set(m.confirmed_last) <= set(m.confirmed) <= set(m.edges) and len(m.confirmed) >= len(m.edges) - 2
    # nothing is lost without an edge that the program does not use
    assert max(m.lost[e] for e in m.null_edges) < 0.002 < min(m.lost[e] for e in m.confirmed)
    assert Mechanism.from_json(json.dumps(dict(shipped.read(m.name).mechanism))) == m
    assert z.training.accuracy >= 0.99 and z.training.curve[-1]["step"] == d.recipe.steps
    assert set(z.true_edges("resample")) <= set(m.edges)
    outputs = z.domain().outputs
    logits = z.model.run(z.domain().ids[::40].tolist()).logits
    for row, values in zip(logits, outputs[::40], strict=True):
        assert [z.words[int(k)] for k in row[1:].argmax(-1)] == [str(v) for v in values]
    with pytest.raises(ModelError, match="nobody wrote its directions"):
        z.directions(m.variables[0].name)


# ---------------------------------------------------------------------------- what fails


def test_a_training_that_is_too_short_is_refused_with_its_curve() -> None:
    with pytest.raises(TrainingError, match="did not reach its accuracy") as caught:
        zoo.build("interchange_shift", train=True, steps=2)
    assert [point["step"] for point in caught.value.curve] == [0, 2]
    assert {"behaviour", "empty", "edges"} <= set(caught.value.curve[-1])


@pytest.mark.parametrize("name", ["shift", "induction"])
def test_a_model_that_moved_its_variable_elsewhere_is_not_confirmed(name: str) -> None:
    """The same weights with two heads of a layer exchanged compute the same and have another mechanism."""
    d, module = data(name), shipped.read(f"interchange_{name}").module()
    held = next(n for n in d.holds if "H" in n)
    layer, head = (int(x) for x in held.removeprefix("L").removesuffix(".z").split("H"))
    attention, other = module.model.layers[layer].self_attn, (head + 1) % d.heads
    before = run(module, d.ids)[0]
    order = torch.arange(d.heads * ic.HEAD_DIM).view(d.heads, -1)
    order[[head, other]] = order[[other, head]]
    with torch.no_grad():
        for project in (attention.q_proj, attention.k_proj, attention.v_proj):
            project.weight.copy_(project.weight[order.flatten()])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, order.flatten()])
    torch.testing.assert_close(run(module, d.ids)[0], before, atol=1e-4, rtol=0)
    found = d.measure(module)
    assert (
        found["behaviour"] >= 0.99 and found["accuracy"] < 0.6 and found[held] < 0.6 and found["empty"] < 0.99
    )


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ModelError, match="no program 'shfit'"):
        ic.recipe("shfit", seed=0)
    with pytest.raises(ModelError, match="puts out numbers"):
        ic.recipe("frac_prevs", seed=0)
    d = data("shift")
    node = next(iter(d.holds))
    with pytest.raises(ModelError, match="no answer for most"):
        broken = ic.Interchange(d.recipe)
        broken.words = ("<bos>",)  # no output is a word
        broken.triples(node, d.kept, 8, "test")


def test_one_training_from_one_seed() -> None:
    recipe = replace(ic.recipe("shift", seed=5, steps=2), target=1e-9)
    a, b = (training.train(recipe, d.loss, lambda m: {"accuracy": 1.0}) for d in (ic.Interchange(recipe), ic.Interchange(recipe)))  # fmt: skip
    for x, y in zip(a.module.parameters(), b.module.parameters(), strict=True):
        assert torch.equal(x, y)
    assert interchanged.recipe("shift", seed=5) != interchanged.recipe("shift", seed=6)
