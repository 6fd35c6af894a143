"""The mechanism of compiled models: edges by cutting every edge of the graph, variables by reading the stream."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import microtome as mt
import microtome.zoo as zoo
from microtome.errors import ModelError
from microtome.zoo import oracle
from microtome.zoo.mechanism import CHANGES, Mechanism
from microtome.zoo.programs import NAMES
from microtome.zoo.specimen import TOLERANCE, Specimen, worst_error

LARGE = ("shuffle_dyck1", "shuffle_dyck2")
LONG = [pytest.param(n, marks=pytest.mark.long) for n in LARGE]
UNCONFIRMED = {"shuffle_dyck1": 1, "shuffle_dyck2": 2}
"""BOS is left out of a mean of which only "is it 0" is read."""


@cache
def built(name: str, decoys: bool = False, seed: int = 0) -> Specimen:
    return zoo.build(name, seed=seed, decoys=zoo.Decoys() if decoys else None, n=8)


def found_by_cutting(z: Specimen, n: int = 5000) -> set[str]:
    ids = z.domain().ids
    moved = oracle.changes(z.model.hf, ids[:: max(1, len(ids) // n)], z.mechanism.all_edges)
    return {edge for edge, (anywhere, _) in moved.items() if anywhere > CHANGES}


@pytest.mark.parametrize("name", [*(n for n in NAMES if n not in LARGE), *LONG])
def test_the_edges_are_those_that_cutting_finds(name: str) -> None:
    z = built(name)
    m = z.mechanism
    assert found_by_cutting(z, 256 if name == "shuffle_dyck2" else 5000) == set(m.confirmed)
    assert len(m.unconfirmed) == UNCONFIRMED.get(name, 0)
    assert set(m.confirmed_last) <= set(m.confirmed)
    assert set(m.edges).isdisjoint(m.null_edges) and len(m.edges) + len(m.null_edges) == len(m.all_edges)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("reverse", 0),
        ("majority", 1),
        ("detect_abc", 2),
        ("hist", 3),
        *(pytest.param(n, 4, marks=pytest.mark.long) for n in NAMES if n not in LARGE),
    ],
)
def test_decoys_leave_the_outputs_and_the_edges(name: str, seed: int) -> None:
    plain, z = built(name), built(name, True, seed)
    assert worst_error(z.model.hf, z.domain()) < TOLERANCE
    m = z.mechanism
    assert len(m.edges) == len(plain.mechanism.edges) and len(m.confirmed) == len(plain.mechanism.confirmed)
    assert len(m.null_edges) > 5 * len(plain.mechanism.null_edges)
    assert found_by_cutting(z, 60) <= set(m.confirmed)


@pytest.mark.parametrize(("name", "seed"), [("reverse", 0), ("majority", 1), ("induction", 2)])
def test_decoys_are_busy_read_real_variables_and_carry_the_answer(name: str, seed: int) -> None:
    z = built(name, True, seed)
    domain, m = z.domain(), z.mechanism
    written = oracle.parts(z.model.hf, domain.ids)
    assert set(m.decoys) == set(m.null_nodes) and len(m.decoys) >= 8
    assert all(float(written[node].abs().max()) > 1e-2 for node in m.decoys)
    varying = [
        n for n in m.decoys if float(written[n].std(0).max()) > 1e-3
    ]  # a twin of "length" is the same everywhere
    assert len(varying) >= 0.8 * len(m.decoys)
    last = [row[-1] for row in domain.outputs]
    groups = [[i for i, v in enumerate(last) if v == value] for value in sorted(set(last))]
    within = {n: max(float(written[n][g, -1].std(0).max()) for g in groups) for n in m.decoys}
    between = {
        n: float(torch.stack([written[n][g, -1].mean(0) for g in groups]).std(0).max()) for n in m.decoys
    }
    if name == "reverse":  # a twin of the last head: what it writes says the answer and nothing else
        assert any(within[n] < 1e-3 and between[n] > 0.1 for n in m.decoys)
    # each source of the mechanism is heard by some decoy, whose inputs change when that edge is cut
    true = [n for n in m.nodes if n != "embed"]
    for source in true:
        heard = [e for e in m.null_edges if e.startswith(f"{source}->") and not e.endswith("logits")]
        assert any(_moves_a_decoy(z, domain.ids[:32], e) for e in heard) or source.startswith(
            f"L{m.n_layers - 1}"
        ), source


def _moves_a_decoy(z: Specimen, ids: torch.Tensor, edge: str) -> bool:
    base, cut = oracle.parts(z.model.hf, ids), oracle.forward(z.model.hf, ids, (edge,))[1]
    return any(float((base[n] - cut[n]).abs().max()) > 1e-3 for n in z.mechanism.decoys)


def test_a_true_edge_that_is_missing_or_false_is_noticed() -> None:
    z = built("reverse")
    found = found_by_cutting(z)
    for edge in z.mechanism.edges:
        less = replace(z.mechanism, edges=tuple(e for e in z.mechanism.edges if e != edge),
                       confirmed=tuple(e for e in z.mechanism.confirmed if e != edge), confirmed_last=())  # fmt: skip
        assert found - set(less.edges) == {edge}
    more = z.mechanism.null_edges[0]
    assert {*z.mechanism.edges, more} - found == {more}
    with pytest.raises(ModelError, match="edges that are none"):
        replace(z.mechanism, edges=("L2H0.z->L0H0.q",), confirmed=(), confirmed_last=())
    with pytest.raises(ModelError, match="confirmed but not true"):
        replace(z.mechanism, confirmed=(more,))


@pytest.mark.parametrize("decoys", [False, True])
def test_the_oracle_agrees_with_microtomes_ablation(decoys: bool) -> None:
    """A node without any of its edges is the node set to zero."""
    z = built("detect_abc", decoys)
    ids = z.domain().ids[::8]
    assert torch.allclose(oracle.forward(z.model.hf, ids)[0], z.model.run(ids.tolist()).logits, atol=1e-4)
    for node in z.mechanism.all_nodes:
        edges = [e for e in z.mechanism.all_edges if e.startswith(f"{node}->")]
        cut = oracle.forward(z.model.hf, ids, edges)[0]
        by_microtome = z.model.run(ids.tolist(), edits=[mt.Ablate(node, by="zero")]).logits
        assert torch.allclose(cut, by_microtome, atol=1e-4), node


@pytest.mark.parametrize(
    ("name", "decoys"),
    [*((n, False) for n in NAMES if n not in LARGE), ("sort_by_freq", True), ("majority", True)],
)
def test_every_variable_stands_where_and_as_the_mechanism_says(name: str, decoys: bool) -> None:
    z = built(name, decoys)
    domain = z.domain()
    rows = list(range(0, len(domain), 17))
    trace = z.model.run(
        domain.ids[rows].tolist(),
        capture=["embed", "final_resid", "L*.mlp_out", "L*.head_out"]
        if z.mechanism.mlp
        else ["embed", "final_resid", "L*.head_out"],
    )
    for variable in z.mechanism.variables:
        directions = z.directions(variable.name)
        layer, point = variable.site.partition(".")[::2]
        site = (
            "embed"
            if variable.site == "embed"
            else f"{layer}.mlp_out"
            if point == "mlp_out"
            else f"{layer}.head_out"
        )
        for where in (site, "final_resid"):
            found = (trace[where] @ directions.T)[:, 1:]
            for i, row in enumerate(rows):
                values = z.value(variable.name, " ".join(z.words[t] for t in domain.ids[row, 1:]))
                if variable.kind == "numerical":
                    expected = torch.tensor([[float(v)] for v in values])
                else:
                    expected = torch.tensor([[float(str(v) == x) for x in variable.values] for v in values])
                assert torch.allclose(found[i], expected, atol=1e-4), (variable.name, where)


def test_a_mechanism_is_data() -> None:
    m = built("induction", True, 2).mechanism
    assert Mechanism.from_json(m.to_json()) == m
    assert m.variable("previous").site in m.nodes
    with pytest.raises(ModelError, match="no variable"):
        m.variable("nothing")
    assert set(m.nodes) | set(m.null_nodes) == set(m.all_nodes)


def test_the_seed_decides_decoys_and_nothing_else_does() -> None:
    a, b, c = (zoo.build("shift", seed=s, decoys=zoo.Decoys(), n=4) for s in (5, 5, 6))
    assert a.model.hash == b.model.hash != c.model.hash and a.mechanism == b.mechanism
    assert zoo.build("shift", seed=5, n=4).model.hash == zoo.build("shift", seed=6, n=4).model.hash
    for wrong in ({"heads": -1}, {"width": 0}):
        with pytest.raises(ModelError):
            zoo.Decoys(**wrong)


def test_the_oracle_refuses_norms() -> None:
    from microtome.zoo.module import ZooConfig, make

    with pytest.raises(ModelError, match="norms"):
        oracle.forward(make(ZooConfig(norm="rms"), seed=0), torch.tensor([[0, 1]]))


def test_positions_that_nothing_reads_are_no_table() -> None:
    assert (
        built("hist").model.facts.positions == "none" and built("reverse").model.facts.positions == "learned"
    )


@pytest.mark.parametrize(
    ("name", "decoys"),
    [("reverse", True), ("sort_by_freq", False), ("detect_abc", False), ("majority", True)],
)
def test_the_graph_and_its_edge_runs_agree_with_the_oracle(name: str, decoys: bool) -> None:
    """Two implementations that share nothing, on every edge, causal and both ways."""
    from microtome.graph.donors import Zero
    from microtome.graph.patched import EdgeRuns
    from microtome.metrics import metric, scoring
    from microtome.replay.bench import Bench

    z = built(name, decoys)
    task = z.task
    bench = Bench(z.model.binding, task.clean.ids, scoring(task.answers, task.wrong), (metric("logit_diff"),))
    runs = EdgeRuns(bench, Zero())
    assert set(runs.graph.edges) == set(z.mechanism.all_edges)
    found = runs.measure(torch.eye(len(runs.graph.edges), dtype=torch.bool))[..., 0]
    ids, rows = torch.tensor(task.clean.ids), torch.arange(task.n)
    answer, wrong = (torch.tensor([c[0][0] for c in side]) for side in (task.answers, task.wrong))
    for edge, values in zip(runs.graph.edges, found, strict=True):
        logits = oracle.forward(z.model.hf, ids, (edge,))[0][:, -1].double()
        assert torch.allclose(values, logits[rows, answer] - logits[rows, wrong], atol=1e-4), edge


def test_every_entry_of_the_catalogue_says_what_it_is() -> None:
    entries = zoo.entries()
    assert set(NAMES) <= set(entries)
    assert all(e.tier in ("A", "B") and len(e.summary) > 10 for e in entries.values())
    from microtome.zoo.catalog import register

    with pytest.raises(ModelError, match="already has"):
        register(entries["hist"])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*LARGE, "increment")])
def test_interchanging_a_variable_does_what_the_program_says(name: str) -> None:
    """What heads write, patched from another input at all positions, against the interpreter with that variable's values."""
    z = built(name)
    ids = z.domain().ids
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    rows, others = ids[order[:24]], ids[order[-24:]]
    heads = [v for v in z.mechanism.variables if v.site.endswith(".z")]
    donor = z.model.run(others.tolist(), capture=[v.site for v in heads])
    plain, compared, moved = z.model.run(rows.tolist()).logits, 0, 0
    for variable in heads:
        logits = z.model.run(rows.tolist(), edits=[mt.Patch(variable.site, donor)]).logits[:, 1:]
        moved += int(not torch.allclose(logits, plain[:, 1:], atol=1e-4))
        for i, (own, other) in enumerate(zip(rows, others, strict=True)):
            texts = [" ".join(z.words[t] for t in r[1:]) for r in (own, other)]
            try:
                expected = z.counterfactual(variable.name, *texts)
            except ModelError:  # such values have no answer: two tokens for one place, say
                continue
            compared += 1
            for p, value in enumerate(expected):
                if value is None:
                    continue
                if z.program.output.kind == "numerical":  # type: ignore[union-attr]
                    assert abs(float(logits[i, p, z.words.index("#")]) - float(value)) < 1e-4
                else:
                    assert z.words[int(logits[i, p].argmax())] == str(value), (variable.name, texts)
    assert compared >= 8 and moved > 0


def test_which_edges_are_found_depends_on_what_a_patched_edge_carries() -> None:
    """The length is the same for every input: zeros find it, another prompt's value does not."""
    z = built("reverse")
    assert set(z.true_edges("zero")) == set(z.mechanism.confirmed_last)
    assert z.true_edges("resample") == ("embed->L2H0.v", "L2H0.z->logits")
    ids, other = (torch.tensor(s.ids) for s in (z.task.clean, z.task.corrupt))
    null = oracle.changes(z.model.hf, ids, z.mechanism.null_edges, donors=other)
    assert max(far for far, _ in null.values()) < 1e-6
    with pytest.raises(ModelError, match="by 'median'"):
        z.true_edges("median")
