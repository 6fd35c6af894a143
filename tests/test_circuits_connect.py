"""Paths from the embedding to the logits, and the orders in which edges join a circuit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from microtome.circuits.connect import all_on_paths, connected, leading, reached, require_path
from microtome.circuits.units import Units, first, ranked
from microtome.errors import ControlError
from microtome.graph.nodes import nodes_of
from microtome.results.arguments import ArgumentError

FACTS = tiny.bound("llama").facts
GRAPH = nodes_of(FACTS)
PARALLEL = nodes_of(replace(FACTS, layers=tuple(replace(x, parallel=True) for x in FACTS.layers)))


def mask(*edges, graph=GRAPH):
    out = np.zeros(len(graph.edges), dtype=bool)
    out[[graph.number(e) for e in edges]] = True
    return out


def names(kept, graph=GRAPH):
    return {graph.name(i) for i in np.flatnonzero(kept)}


def by_walking(graph, kept):
    """An oracle: every path through kept edges, one step at a time, as a set of names."""
    edges = [
        (graph.writers[graph.writer_of[i]].name, int(graph.reader_of[i]), i) for i in np.flatnonzero(kept)
    ]
    feeds = {r: [graph.writers[w].name for w in graph.fed_by(r)] for r in range(len(graph.readers))}
    used = set()

    def leads(reader, path):
        if graph.readers[reader].kind == "logits":
            used.update(path)
            return
        for name in feeds[reader]:
            for writer, to, i in edges:
                if writer == name:
                    leads(to, [*path, i])

    for writer, reader, i in edges:
        if writer == "embed":
            leads(reader, [i])
    return used


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, len(GRAPH.edges) - 1), max_size=25), st.booleans())
def test_connected_is_what_walking_every_path_finds(chosen, parallel):
    graph = PARALLEL if parallel else GRAPH
    kept = np.zeros(len(graph.edges), dtype=bool)
    kept[[c for c in chosen if c < len(kept)]] = True
    assert set(np.flatnonzero(connected(graph, kept)).tolist()) == by_walking(graph, kept)


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(0, 2 * len(GRAPH.edges) - 1), max_size=12), st.integers(1, 2))
def test_few_edges_are_all_on_paths_where_none_is_taken_out(chosen, spans):
    kept = np.zeros(spans * len(GRAPH.edges), dtype=bool)
    kept[[c for c in chosen if c < len(kept)]] = True
    useful = connected(GRAPH, kept)
    assert all_on_paths(GRAPH, np.flatnonzero(kept)) == bool(kept.any() and (useful == kept).all())
    assert all_on_paths(GRAPH, np.flatnonzero(useful)) == bool(useful.any())


def test_a_key_of_a_group_feeds_all_its_heads():
    chain = ("embed->L1KV1.k", "L1H2.z->logits", "L1H1.z->logits", "embed->L0H0.q")
    assert names(connected(GRAPH, mask(*chain))) == {"embed->L1KV1.k", "L1H2.z->logits"}
    query = ("embed->L1H3.q", "L1H2.z->logits")  # a query feeds its own head only
    assert not connected(GRAPH, mask(*query)).any()


def test_no_path_is_said():
    with pytest.raises(ControlError, match="no path from the embedding to the logits"):
        require_path(GRAPH, mask("L0H0.z->logits", "embed->L2.ln2_out"))
    require_path(GRAPH, mask("embed->logits"))


def test_spans_keep_queries_and_mlps_apart_and_let_keys_cross():
    size = len(GRAPH.edges)
    two = np.zeros((2, size), dtype=bool)
    two[0, GRAPH.number("embed->L0.ln2_out")] = True
    two[1, GRAPH.number("L0.mlp_out->logits")] = True
    assert not connected(GRAPH, two.reshape(-1)).any()  # the MLP's output stays in the span that it read
    two[0, GRAPH.number("L0.mlp_out->L1KV0.v")] = True
    two[1, GRAPH.number("L1H1.z->logits")] = True
    found = connected(GRAPH, two.reshape(-1)).reshape(2, -1)
    assert names(found[0]) == {"embed->L0.ln2_out", "L0.mlp_out->L1KV0.v"}
    assert names(found[1]) == {"L1H1.z->logits"}
    assert reached(GRAPH, two.reshape(-1))[1, GRAPH.writer_number["L1H1.z"]]
    assert leading(GRAPH, two.reshape(-1))[0, GRAPH.writer_number["L0.mlp_out"]]


def units(granularity="edge", fixed=None, spans=1):
    none = np.zeros(spans * len(GRAPH.edges), dtype=bool)
    return Units(GRAPH, spans, granularity, none if fixed is None else fixed)


def test_greedy_grows_from_the_logits_and_keeps_only_what_is_connected():
    u = units()
    scores = np.zeros(len(GRAPH.edges))
    for edge, value in {
        "embed->L0.ln2_out": 9.0,
        "L0.mlp_out->logits": 0.5,
        "L1H2.z->logits": 1.0,
        "embed->L1KV1.v": -3.0,
    }.items():
        scores[GRAPH.number(edge)] = value
    greedy = ranked(u, scores, "greedy", absolute=True)
    assert names(first(u, greedy, 3)) == {"L1H2.z->logits", "embed->L1KV1.v", "L0.mlp_out->logits"}
    assert names(first(u, greedy, 4)) >= {
        "embed->L0.ln2_out"
    }  # the best score of all, once its MLP is connected
    top = ranked(u, scores, "top-n", absolute=True)
    assert names(first(u, top, 2)) == {"embed->L0.ln2_out", "embed->L1KV1.v"}
    assert not connected(GRAPH, first(u, top, 2)).any()
    signed = ranked(u, scores, "top-n", absolute=False)
    assert names(first(u, signed, 3)) == {"embed->L0.ln2_out", "L1H2.z->logits", "L0.mlp_out->logits"}
    assert GRAPH.name(int(signed[-1])) == "embed->L1KV1.v"
    for size in (1, 5, 60, len(GRAPH.edges)):  # each of its edges goes into a node that leads to the logits
        chosen = first(u, greedy, size)
        assert names(chosen) == names(chosen & _useful(chosen))


def _useful(kept):
    from microtome.circuits.connect import live_readers

    leads = leading(GRAPH, kept)
    live = np.array([live_readers(GRAPH, leads, i)[0] for i in range(len(GRAPH.readers))])
    return live[GRAPH.reader_of]


def test_sizes_and_selections_that_do_not_exist_are_refused():
    u = units()
    order = ranked(u, np.arange(len(GRAPH.edges), dtype=float), "top-n", absolute=True)
    with pytest.raises(ControlError, match="there are 190"):
        first(u, order, 191)
    with pytest.raises(ArgumentError, match="greedy"):
        ranked(u, np.zeros(len(GRAPH.edges)), "greedey", absolute=True)
    with pytest.raises(ArgumentError, match="nodes"):
        ranked(units("node"), np.zeros(13), "greedy", absolute=True)


def test_nodes_own_the_edges_that_leave_them_and_what_is_fixed_stays():
    u = units("node")
    head = GRAPH.writer_number["L1H2.z"]
    assert {GRAPH.name(int(i)).split("->")[0] for i in u.members(head)} == {"L1H2.z"}
    values = np.random.default_rng(0).normal(size=len(GRAPH.edges))
    assert u.scores(values)[head] == pytest.approx(values[GRAPH.writer_of == head].sum())
    fixed = np.array([GRAPH.writers[w].kind != "head" for w in GRAPH.writer_of])
    heads = units("node", fixed)
    assert u.name(head) == "L1H2.z" and heads.free.sum() == 12
    kept = first(heads, ranked(heads, heads.scores(values), "top-n", absolute=True), 1)
    assert kept[fixed].all() and len({GRAPH.writer_of[i] for i in np.flatnonzero(kept & ~fixed)}) == 1


def test_the_walk_goes_from_the_logits_down():
    order = units(spans=2).walk()
    edges = [int(u) % len(GRAPH.edges) for u in order]
    assert edges == sorted(edges, reverse=True) and sorted(order) == list(range(2 * len(GRAPH.edges)))
    assert GRAPH.name(edges[0]) == "L2.mlp_out->logits" and GRAPH.name(edges[-1]) == "embed->L0H0.q"


def test_the_walk_reaches_every_linked_circuit_of_the_shape_and_nothing_else():
    """Key, value and output of one head: 12 linked circuits of these kinds, found by enumeration."""
    from itertools import product

    from microtome.circuits.linked import Walk
    from microtome.controls.sampling import Strata

    start = np.array([GRAPH.number(e) for e in ("embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits")])
    pool = np.arange(len(GRAPH.edges))
    kinds = units().kinds
    by_kind = [[e for e in pool if kinds[e] == kinds[s]] for s in start]
    linked = {tuple(sorted(map(int, t))) for t in product(*by_kind) if all_on_paths(GRAPH, np.array(t))}
    assert len(linked) == 12
    strata = Strata.of([0] * len(pool), kinds, 3)
    walk = Walk(GRAPH, pool, strata, start, 0)
    first_time = [s.tolist() for s in walk.sets(40)]
    assert [s.tolist() for s in walk.sets(40)] == first_time
    found = set(map(tuple, first_time))
    assert found == linked - {tuple(sorted(start.tolist()))}


@given(st.integers(0, 2**31), st.sampled_from([1, 3]))
@settings(max_examples=60, deadline=None)
def test_links_after_a_change_are_those_of_the_whole_circuit(seed, spans):
    """Counts at a few writers and readers against a look at every edge; what is refused leaves no trace."""
    from microtome.circuits.links import Links

    rng = np.random.default_rng(seed)
    size = len(GRAPH.edges) * spans
    here = np.flatnonzero(connected(GRAPH, rng.random(size) < rng.choice([0.05, 0.2, 0.6])))
    links = Links(GRAPH, here, spans)
    taken = set()
    for _ in range(30):
        out = rng.choice(here, size=min(len(here), 1 + int(rng.integers(3))), replace=False)
        free = np.setdiff1d(np.arange(size), here)
        new = rng.choice(free, size=min(len(free), int(rng.integers(3))), replace=False)
        after = np.union1d(np.setdiff1d(here, out), new)
        fine = not len(after) or all_on_paths(GRAPH, after)
        assert links.change(out.tolist(), new.tolist()) == fine
        taken.add(fine)
        here = after if fine else here
        if not len(here):
            break
    assert links.out == Links(GRAPH, here, spans).out and links.supply == Links(GRAPH, here, spans).supply
