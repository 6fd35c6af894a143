"""Attribution to nodes on recorded runs: the gradient of the whole model times the difference, at every point, and what repairs it."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.errors import TaskError
from microtome.graph.node_runs import NodeRuns
from microtome.graph.node_scores import Node, node_scores
from microtome.graph.nodes import graph_of
from microtome.graph.scores import edge_scores
from microtome.metrics import metric, scoring
from microtome.replay.bench import Bench
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts
from microtome.replay.sweep import sweep
from microtome.sites import At, Site
from test_graph_runs import SINGLE, TAILS, _prompts
from test_graph_scores import _runs

POINTS = (
    "resid_pre",
    "resid_mid",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "q_pre",
    "neurons",
    "ln2_out",
    "pattern",
)


def _bench(name, answers=SINGLE, what="logit_diff", shared=4, dtype=torch.float64):
    base, donor = _prompts(shared)
    binding = tiny.bound(name, None, dtype)
    return Bench(binding, base, scoring(*answers), (metric(what),)), donor


def _have(binding, layer=1):
    return [p for p in POINTS if binding.lacking(p, layer) is None]


def _whole(model, base, donor, points):
    """Gradient times difference by whole runs of the model. Shapes: [point, prompt, pos]."""
    rows = torch.arange(3)

    def value(logits):
        return logits[rows, -1, torch.tensor([5, 6, 7])] - logits[rows, -1, torch.tensor([8, 9, 4])]

    names = [f"L1.{p}" for p in points]
    b, d, g = model.run(base, names), model.run(donor, names), model.grad(base, value, names)
    out = []
    for name, point in zip(names, points, strict=True):
        product = g[name] * (d[name] - b[name])
        if point == "pattern":
            product = product.transpose(1, 2)
        out.append(product.flatten(2).sum(2))
    return torch.stack(out)


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma2", "olmo2", "gpt_neox", "falcon", "olmo-clip", "gptj"]
)
def test_a_nodes_score_is_the_models_own_gradient_times_the_difference(name):
    model = tiny.loaded(name, None, torch.float64)
    bench, donor = _bench(name)
    points = _have(bench.binding)
    runs = NodeRuns(bench, donor, {(p, 1) for p in points})
    length = len(bench.ids[0])
    at = Bench(
        bench.binding,
        bench.ids,
        bench.scoring,
        bench.metrics,
        [{f"p{i}": (i, i + 1) for i in range(length)}] * 3,
    )
    runs = NodeRuns(at, donor, {(p, 1) for p in points})
    columns = [(f"p{i}",) for i in range(length)]
    found = node_scores(runs, [Node(p, 1) for p in points], [None, *columns])
    expected = _whole(model, bench.ids, donor, points)
    scale = float(expected.abs().max())
    torch.testing.assert_close(
        found.values[:, 1:].double().transpose(1, 2), expected, atol=2e-5 * scale, rtol=1e-3
    )
    torch.testing.assert_close(found.values[:, 0].double(), expected.sum(2), atol=2e-5 * scale, rtol=1e-3)


def test_heads_neurons_and_the_streams_at_both_ends():
    bench, donor = _bench("llama")
    nodes = [Node("z", 1, h) for h in range(4)] + [
        Node("neurons", 2, 7),
        Node("neurons", 2),
        Node("resid_pre", 0),
        Node("resid_pre", 3),
    ]
    runs = NodeRuns(bench, donor, {n.where for n in nodes} | {("z", 1)})
    found = node_scores(runs, [*nodes, Node("z", 1)]).values[:, 0]
    torch.testing.assert_close(found[:4].sum(0), found[-1])
    graph = graph_of(bench.binding)
    edges = edge_scores(_runs("llama")).values
    for name, row in (("L1H2.z", 2), ("embed", 6)):
        mine = torch.tensor(graph.writer_of) == graph.writer_number[name]
        torch.testing.assert_close(edges[mine].sum(0), found[row], atol=1e-6, rtol=1e-4)


def test_outgoing_edges_add_up_for_integrated_inputs_too_and_need_not_for_others():
    bench, donor = _bench("llama")
    node = [Node("z", 1, 2), Node("mlp_out", 0)]
    runs, edges = NodeRuns(bench, donor, {n.where for n in node}), _runs("llama")
    writers = [
        torch.tensor(edges.graph.writer_of) == edges.graph.writer_number[w] for w in ("L1H2.z", "L0.mlp_out")
    ]
    gaps = {}
    for how in ("gradient", "ig-inputs", "relp", "atp*"):
        mine = node_scores(runs, node, how=how, steps=8, tolerance=1.0).values[:, 0]
        theirs = torch.stack(
            [edge_scores(edges, how, steps=8, tolerance=1.0).values[w].sum(0) for w in writers]
        )
        gaps[how] = float((mine - theirs).abs().max() / mine.abs().max())
    assert gaps["gradient"] < 1e-4 and gaps["ig-inputs"] < 1e-4
    assert gaps["atp*"] > 1e-3  # its edges see the softmax, its heads' outputs do not


def test_integrated_gradients_of_nodes_are_complete_over_their_cut():
    bench, donor = _bench("llama")
    points = [("z", 1), ("mlp_out", 1), ("resid_pre", 2), ("pattern", 2)]
    runs = NodeRuns(bench, donor, set(points))
    found = node_scores(runs, [Node(*p) for p in points], how="ig-activations", steps=8, tolerance=0.01)
    cells = [Cell((Change(Site(p, i)),)) for p, i in points]
    exact = sweep(bench, cells, {"donor": Prompts(donor)}).effects[..., 0]
    assert found.gap <= 0.01 or found.steps == 64
    torch.testing.assert_close(
        found.values[:, 0].double(), exact, atol=0.02 * float(exact.abs().max()), rtol=0.02
    )
    inputs = node_scores(runs, [Node("resid_pre", 0)], how="ig-inputs", steps=8, tolerance=0.01)
    assert inputs.gap <= 0.01
    change = float((inputs.end - inputs.base).mean())
    assert abs(float(inputs.values.double().sum((0, 1)).mean()) - change) <= 0.01 * abs(change)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere-qknorm"])
def test_recomputed_patterns_are_those_of_the_models_own_patched_runs(name):
    """AtP* for a query (key): the pattern's change in a run with that query patched, times the pattern's gradient."""
    from microtome.trace.edits import Patch

    model = tiny.loaded(name, None, torch.float64)
    bench, donor = _bench(name)
    kv = model.facts.layers[1].n_kv_heads != model.facts.layers[1].n_heads
    sites = ["L1H2.q", f"L1{'KV' if kv else 'H'}1.k"]
    rows = torch.arange(3)

    def value(logits):
        return logits[rows, -1, torch.tensor([5, 6, 7])] - logits[rows, -1, torch.tensor([8, 9, 4])]

    g, clean = (
        model.grad(bench.ids, value, ["L1.pattern"])["L1.pattern"],
        model.run(bench.ids, ["L1.pattern"])["L1.pattern"],
    )
    expected = []
    for site in sites:
        patched = model.run(
            bench.ids, ["L1.pattern"], edits=[Patch(site, model.run(donor, [site], attention="eager"))]
        )["L1.pattern"]
        expected.append(((patched - clean) * g).flatten(1).sum(1))
    nodes = [Node("q", 1, 2), Node("k", 1, 1)]
    runs = NodeRuns(bench, donor, {n.where for n in nodes}, eager=True)
    found = node_scores(runs, nodes, how="atp*").values[:, 0].double()
    torch.testing.assert_close(found, torch.stack(expected).double(), atol=1e-5, rtol=1e-3)
    plain = node_scores(runs, nodes).values[:, 0].double()
    assert float((plain - found).abs().max()) > 1e-4


def test_edges_into_queries_and_keys_by_recomputed_patterns():
    """All of a reader's writers together are not the sum of each; one edge alone is held against the pattern of its own run."""
    for name in ("llama", "olmo2"):
        runs = _runs(name)
        found, plain = edge_scores(runs, "atp*").values, edge_scores(runs).values
        kinds = [runs.graph.readers[r].kind for r in runs.graph.reader_of]
        same = torch.tensor([k not in "qk" for k in kinds])
        torch.testing.assert_close(found[same], plain[same], atol=1e-6, rtol=1e-4)
        assert float((found[~same] - plain[~same]).abs().max()) > 1e-3
        first = torch.tensor(
            [
                runs.graph.readers[r].layer == 0 and k in "qk"
                for r, k in zip(runs.graph.reader_of, kinds, strict=True)
            ]
        )
        # in layer 0 there is one writer: patching it into a query is patching that query
        bench, donor = _bench(name)
        if not runs.reading.joint(0, "q"):
            point = "q_pre"
            nodes = NodeRuns(bench, donor, {(point, 0), ("k_pre", 0)}, eager=True)
            heads, groups = runs.graph.shape[0][:2]
            asked = [Node(point, 0, h) for h in range(heads)] + [Node("k_pre", 0, h) for h in range(groups)]
            mine = node_scores(nodes, asked, how="atp*").values[:, 0]
            torch.testing.assert_close(found[first], mine, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("how", ["gradient", "ig-activations"])
def test_continuations_of_several_tokens_and_prompts_of_several_lengths(how):
    base, donor = _prompts(3)
    base[1], donor[1] = base[1][:-2], donor[1][:-2]
    binding = tiny.bound("llama", None, torch.float64)
    spans = [{"two": (3, 5)}] * 3
    bench = Bench(binding, base, scoring(*TAILS), (metric("logprob_diff"),), spans)
    nodes = [Node("z", 2, 1), Node("mlp_out", 2), Node("resid_pre", 1)]
    runs = NodeRuns(bench, donor, {n.where for n in nodes})
    found = node_scores(runs, nodes, [None, ("two",)], how, steps=8, tolerance=0.01)
    small = NodeRuns(bench, donor, {n.where for n in nodes}, memory=900_000)
    assert len(small.groups) > len(runs.groups)
    again = node_scores(small, nodes, [None, ("two",)], how, steps=found.steps, tolerance=1.0)
    torch.testing.assert_close(found.values, again.values, atol=1e-5, rtol=1e-3)
    if how == "ig-activations":
        cells = [
            Cell((Change(Site("mlp_out", 2)),)),
            Cell((Change(Site("resid_pre", 1)),)),
            Cell((Change(Site("resid_pre", 1), At(span="two")),)),
        ]
        exact = sweep(bench, cells, {"donor": Prompts(donor)}).effects[..., 0]
        torch.testing.assert_close(
            found.values[1:, 0].double(), exact[:2], atol=0.03 * float(exact.abs().max()), rtol=0.03
        )


def test_refusals():
    bench, donor = _bench("llama")
    runs = NodeRuns(bench, donor, {("z", 1)})
    with pytest.raises(TaskError, match="no way to attribute"):
        node_scores(runs, [Node("z", 1)], how="magic")
    with pytest.raises(TaskError, match="minimum"):
        node_scores(
            NodeRuns(Bench(bench.binding, bench.ids, bench.scoring, (metric("kl"),)), donor, {("z", 1)}),
            [Node("z", 1)],
        )
    with pytest.raises(TaskError, match="donor 0"):
        NodeRuns(bench, [row[:-1] for row in donor], {("z", 1)})
