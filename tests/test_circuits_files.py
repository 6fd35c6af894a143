"""Circuit files: ours and MIB's, round trips, a file as their code writes it, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import planted
import tiny
from microtome import circuits
from microtome.circuits import Circuit, mib
from microtome.errors import ResultError, SiteError
from microtome.graph.nodes import nodes_of


@pytest.fixture(scope="module")
def found():
    model = planted.one_head()
    return model, circuits.discover(model, planted.pairs_done(model), "eap", size=20)


def test_our_own_file_is_the_circuit(found, tmp_path):
    model, circuit = found
    path = circuits.save_circuit(circuit, tmp_path / "here" / "c.json")
    again = circuits.open_circuit(path, model)
    assert again == circuit and again.result is None and again.choices == circuit.choices
    raw = json.loads(path.read_text())
    assert (
        raw["schema_version"] == 1
        and raw["model"] == model.hash
        and raw["shape"] == [[4, 2, True, False]] * 3
    )
    with pytest.raises(ResultError, match="there already"):
        circuits.save_circuit(circuit, path)
    assert circuits.save_circuit(circuit.without(circuit.edges[:1]), path, overwrite=True) == path
    assert len(circuits.open_circuit(path)) == len(circuit) - 1
    assert not list(path.parent.glob("*.part"))


def test_our_own_file_of_another_model_or_kind(found, tmp_path):
    model, circuit = found
    path = circuits.save_circuit(circuit, tmp_path / "c.json")
    with pytest.raises(SiteError, match="layer 0: key/value heads: 2 in the circuit, 4"):
        circuits.open_circuit(path, tiny.loaded("llama-mha"))
    with pytest.raises(SiteError, match="the weights are not"):
        circuits.open_circuit(path, tiny.loaded("llama"))
    assert circuits.open_circuit(path, tiny.loaded("llama"), other_weights=True) == circuit
    raw = json.loads(path.read_text())
    for change, error, words in (
        ({"edges": ["embed->L9H0.q"]}, SiteError, "no reader"),
        ({"edges": [*circuit.edges, circuit.edges[0]]}, ResultError, "twice"),
        ({"schema_version": 2}, ResultError, "version 2"),
        ({"kind": "result"}, ResultError, "'result'"),
        ({"choices": {"granularity": "atom"}}, SiteError, "no choice"),
        ({"choices": {"colour": "red"}}, ResultError, "another form"),
        ({"scores": {"a": "much"}}, ResultError, "another form"),
    ):
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**raw, **change}))
        with pytest.raises(error, match=words):
            circuits.open_circuit(other, model)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ResultError, match="no JSON"):
        circuits.open_circuit(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ResultError, match="has no kind"):
        circuits.open_circuit(tmp_path / "bad.json")
    with pytest.raises(ResultError, match="there is no"):
        circuits.open_circuit(tmp_path / "none.json")


def their_json(layers, heads, d_model, edges, *, parallel=False):
    """As EAP-IG's Graph.to_json writes: every node and edge of its own graph, edges without grouped queries."""
    stream, nodes, told = ["input"], {"input": {"in_graph": True}}, {}
    for layer in range(layers):
        attention = [f"a{layer}.h{h}" for h in range(heads)]
        for node in stream:
            for head in attention:
                for letter in "qkv":
                    told[f"{node}->{head}<{letter}>"] = None
            if parallel:
                told[f"{node}->m{layer}"] = None
        stream += attention
        if not parallel:
            for node in stream:
                told[f"{node}->m{layer}"] = None
        stream.append(f"m{layer}")
        nodes |= {name: {"in_graph": False} for name in (*attention, f"m{layer}")}
    for node in stream:
        told[f"{node}->logits"] = None
    nodes["logits"] = {"in_graph": True}
    scores = {name: 0.01 * i for i, name in enumerate(told)}
    cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": d_model}
    return {
        "cfg": cfg,
        "nodes": nodes,
        "edges": {n: {"score": scores[n], "in_graph": n in edges} for n in told},
    }


def their_pt(raw):
    """As EAP-IG's Graph.to_pt writes the same graph; entries that are no edge may say anything."""
    layers, heads = raw["cfg"]["n_layers"], raw["cfg"]["n_heads"]
    sources = [n for n in raw["nodes"] if n != "logits"]
    to = []
    for layer in range(layers):
        to += [f"a{layer}.h{h}<{letter}>" for letter in "qkv" for h in range(heads)] + [f"m{layer}"]
    to.append("logits")
    scores, inside = torch.zeros(len(sources), len(to)), torch.zeros(len(sources), len(to), dtype=torch.bool)
    for i, source in enumerate(sources):
        for j, name in enumerate(to):
            edge = raw["edges"].get(f"{source}->{name}")
            scores[i, j] = 0.0 if edge is None else edge["score"]
            inside[i, j] = True if edge is None else edge["in_graph"]
    return {"cfg": raw["cfg"], "src_nodes": sources, "dst_nodes": to, "edges_scores": scores, "edges_in_graph": inside,
            "nodes_in_graph": torch.tensor([raw["nodes"][n]["in_graph"] for n in sources])}  # fmt: skip


IN = ["input->a1.h2<v>", "a1.h2->logits", "m0->a2.h1<q>", "a0.h3->m0"]
OURS = ("a0.h3->m0", "m0->a2.h1<q>")


@pytest.mark.parametrize("ending", ["json", "pt"])
@pytest.mark.parametrize("name", ["llama-mha", "gpt_neox"])
def test_a_file_as_their_code_writes_it(name, ending, tmp_path):
    model = tiny.loaded(name)
    parallel = name == "gpt_neox"
    inside = [e for e in IN if not (parallel and e == "a0.h3->m0")]
    raw = their_json(3, 4, model.facts.d_model, inside, parallel=parallel)
    path = tmp_path / f"theirs.{ending}"
    path.write_text(json.dumps(raw)) if ending == "json" else torch.save(their_pt(raw), path)
    circuit = circuits.read_mib(path, model)
    expected = {"embed->L1H2.v", "L1H2.z->logits", "L0.mlp_out->L2H1.q"} | (
        set() if parallel else {"L0H3.z->L0.ln2_out"}
    )
    assert set(circuit.edges) == expected
    assert set(circuit.scores) == set(circuits.graph(model).edges) and len(circuit.scores) == len(
        raw["edges"]
    )
    assert circuit.scores["L1H2.z->logits"] == pytest.approx(raw["edges"]["a1.h2->logits"]["score"], rel=1e-6)
    # and written again it is theirs
    back = circuits.write_mib(circuit, tmp_path / "ours.json", model)
    mine = json.loads(back.read_text())
    assert (
        mine["cfg"] == raw["cfg"]
        and set(mine["edges"]) == set(raw["edges"])
        and list(mine["nodes"]) == list(raw["nodes"])
    )
    for edge, told in raw["edges"].items():
        assert mine["edges"][edge]["in_graph"] == told["in_graph"]
        assert mine["edges"][edge]["score"] == pytest.approx(told["score"], rel=1e-6)


def test_grouped_queries_are_repeated_and_read_back(found, tmp_path):
    model, circuit = found
    for ending in ("json", "pt"):
        path = circuits.write_mib(circuit, tmp_path / f"c.{ending}", model)
        again = circuits.read_mib(path, model)
        assert again.edges == circuit.edges
        edges = circuit.result.tables["edges"].set_index("edge")["score"]
        np.testing.assert_allclose([again.scores[e] for e in edges.index], edges, rtol=1e-5, atol=1e-12)
    raw = json.loads((tmp_path / "c.json").read_text())
    assert (
        raw["edges"]["input->a1.h2<v>"] == raw["edges"]["input->a1.h3<v>"]
        and raw["edges"]["input->a1.h2<v>"]["in_graph"]
    )
    assert raw["nodes"]["a1.h2"]["in_graph"] and not raw["nodes"]["m2"]["in_graph"]
    theirs = torch.load(tmp_path / "c.pt", weights_only=True)
    assert theirs["edges_in_graph"].shape == (16, 40) and theirs["dst_nodes"][:5] == ["a0.h0<q>", "a0.h1<q>", "a0.h2<q>", "a0.h3<q>", "a0.h0<k>"]  # fmt: skip


def test_copies_that_contradict_each_other_are_refused_or_added_up(found, tmp_path):
    model, _ = found
    raw = their_json(3, 4, model.facts.d_model, ["input->a1.h2<v>", "input->a1.h3<v>", "a1.h2->logits"])
    path = tmp_path / "c.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(SiteError, match="contradict each other"):  # every copy has a score of its own
        circuits.read_mib(path, model)
    circuit = circuits.read_mib(path, model, copies="sum")
    assert set(circuit.edges) == {"embed->L1KV1.v", "L1H2.z->logits"}
    copies = [raw["edges"][f"input->a1.h{h}<v>"]["score"] for h in (2, 3)]
    assert circuit.scores["embed->L1KV1.v"] == pytest.approx(sum(copies))
    raw["edges"]["input->a1.h3<v>"]["in_graph"] = False
    path.write_text(json.dumps(raw))
    with pytest.raises(SiteError, match="input->a1.h3<v> is out"):
        circuits.read_mib(path, model, copies="sum")


def test_files_of_other_models_and_forms_are_refused(found, tmp_path):
    model, circuit = found
    good = their_json(3, 4, model.facts.d_model, [])

    def read(raw, ending="json"):
        path = tmp_path / f"x.{ending}"
        path.write_text(json.dumps(raw)) if ending == "json" else torch.save(raw, path)
        return circuits.read_mib(path, model, copies="sum")

    assert len(read(good)) == 0 and len(read(their_pt(good), "pt")) == 0
    for raw, error, words in (
        (their_json(4, 4, 24, []), SiteError, "n_layers: 4 in the file, 3 in this model"),
        (their_json(3, 4, 768, []), SiteError, "d_model: 768"),
        (their_json(3, 4, 24, [], parallel=True), SiteError, "parallel_attn_mlp: True"),
        (
            {**good, "edges": {**good["edges"], "a0.h9->logits": {"score": 0, "in_graph": True}}},
            SiteError,
            '"a0.h9" is no node',
        ),
        (
            {**good, "edges": {**good["edges"], "m2->a0.h1<q>": {"score": 0, "in_graph": True}}},
            SiteError,
            "backwards",
        ),
        ({**good, "edges": {"input->m0": {"score": 0, "in_graph": True}}}, SiteError, "lacks edges"),
        ({**good, "edges": {"input->m0": True}}, ResultError, "whether it is in"),
        (
            {**good, "nodes": {**good["nodes"], "m0": {"in_graph": True, "neurons": [True]}}},
            ResultError,
            "neurons",
        ),
        ({"cfg": good["cfg"]}, ResultError, "has no nodes, edges"),
    ):
        with pytest.raises(error, match=words):
            read(raw)
    wrong = their_pt(good)
    wrong["edges_in_graph"] = wrong["edges_in_graph"][:, :-1]
    with pytest.raises(ResultError, match=r"edges_in_graph has the shape \(16, 39\)"):
        read(wrong, "pt")
    with pytest.raises(ResultError, match="masks neurons"):
        read({**their_pt(good), "neurons_in_graph": torch.ones(16, 24)}, "pt")
    with pytest.raises(ResultError, match="has no src_nodes"):
        read({"cfg": {}}, "pt")
    with pytest.raises(ResultError, match="no MIB file"):
        circuits.write_mib(circuit, tmp_path / "c.txt", model)
    with pytest.raises(ResultError, match="spans"):
        circuits.write_mib(Circuit((), circuit.shape, spans=("end",)), tmp_path / "c.json", model)


class Bomb:
    """What a pickle may do when it is loaded."""

    def __reduce__(self):
        return (open, ("/nowhere", "w"))


def test_a_pickle_is_never_run(found, tmp_path):
    torch.save({"cfg": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ResultError, match="never loaded"):
        circuits.read_mib(tmp_path / "bomb.pt", found[0])
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ResultError, match="cannot be read"):
        circuits.read_mib(tmp_path / "cut.pt", found[0])


def test_a_model_that_the_format_cannot_say_is_refused():
    facts = tiny.bound("llama").facts
    bare = replace(facts, layers=tuple(replace(x, mlp="none") for x in facts.layers))
    with pytest.raises(ResultError, match="no place for this model") as error:
        mib._format(nodes_of(bare))
    assert "no MLP" in error.value.why
    uneven = replace(facts, layers=(replace(facts.layers[0], n_heads=2), *facts.layers[1:]))
    with pytest.raises(ResultError, match="no place for this model") as error:
        mib._format(nodes_of(uneven))
    assert "differ" in error.value.why
