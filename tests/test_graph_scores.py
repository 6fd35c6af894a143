"""Edge attribution: equal to mask gradients, additive where it must be, complete over the interpolated cut, exact when linear."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.graph.donors import Prompts
from microtome.graph.gradients import pull_back
from microtome.graph.patched import EdgeRuns
from microtome.graph.pulling import Sum
from microtome.graph.reading import Reading
from microtome.graph.runs import run_patched
from microtome.graph.scores import edge_scores
from microtome.metrics import metric, scoring
from microtome.replay.bench import Bench, columns_of, logits_of
from microtome.trace import seam
from microtome.trace.grad import rooted
from test_graph_runs import SINGLE, TAILS, _prompts

FAMILIES = ("llama", "gpt2", "gemma2", "qwen3", "olmo2", "gpt_neox", "cohere-qknorm", "phi-qknorm", "granite", "falcon", "opt")  # fmt: skip


def _runs(name, answers=SINGLE, metric_name="logit_diff", dtype=torch.float64, shared=4):
    binding = tiny.bound(name, None, dtype)
    base, donor = _prompts(shared)
    return EdgeRuns(Bench(binding, base, scoring(*answers), (metric(metric_name),)), Prompts(donor))


def _mask_gradient(runs, at=0.0):
    """d metric / d mask of every edge, through the edge-patched run itself. Shapes: [edge, prompt]."""
    out = torch.zeros(len(runs.graph.edges), runs.n)
    for recorded in runs.recorded():
        bench = runs.bench
        for i, prompt in enumerate(recorded.group.prompts):
            with rooted(bench.binding), seam.implementation(bench.binding.hf, recorded.ground.base.attention):
                mask = torch.full((1, len(out)), at, dtype=recorded.ground.clean.dtype, requires_grad=True)
                hidden = run_patched(recorded.ground, mask, recorded.group.scored)[0]
                part = bench.scoring.select(recorded.group.prompts)
                value = bench.metrics[0](logits_of(bench, hidden), part, columns_of(bench), recorded.logits)[
                    i
                ]
                out[:, prompt] = torch.autograd.grad(value, mask)[0][0].float()
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mask_gradient_at_zero_is_edge_attribution(name):
    runs = _runs(name)
    torch.testing.assert_close(edge_scores(runs).values, _mask_gradient(runs), atol=1e-5, rtol=2e-3)


def test_the_same_with_several_scored_rows_per_prompt():
    runs = _runs("llama", TAILS, "logprob_diff")
    torch.testing.assert_close(edge_scores(runs).values, _mask_gradient(runs), atol=1e-6, rtol=1e-4)


def _node_scores(runs, how):
    """Difference of z times its gradient, on the model's own graph of computation. Shapes: [prompt] for L1H2."""
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    rows = torch.arange(3)

    def value(logits):
        return logits[rows, -1, torch.tensor([5, 6, 7])] - logits[rows, -1, torch.tensor([8, 9, 4])]

    change = model.run(donor, ["L1H2.z"])["L1H2.z"] - model.run(base, ["L1H2.z"])["L1H2.z"]
    return (change * model.grad(base, value, ["L1H2.z"])["L1H2.z"]).flatten(1).sum(1)


def test_a_nodes_edges_add_up_to_the_node():
    runs = _runs("llama")
    scores = edge_scores(runs).values
    mine = torch.tensor(runs.graph.writer_of) == runs.graph.writer_number["L1H2.z"]
    torch.testing.assert_close(
        scores[mine].sum(0).double(), _node_scores(runs, "gradient"), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_integrated_gradients_are_complete_over_the_embedding(name):
    runs = _runs(name)
    found = edge_scores(runs, "ig-inputs", steps=8, tolerance=0.01)
    every = torch.ones(1, len(runs.graph.edges), dtype=torch.bool)
    change = (runs.measure(every)[0] - runs.base())[:, 0]
    torch.testing.assert_close(found.end - found.base, change, atol=1e-6, rtol=1e-6)
    embed = torch.tensor(runs.graph.writer_of) == 0
    total = found.values[embed].sum(0).double()
    assert float((total - change).mean().abs()) <= 0.01 * float(change.mean().abs()) + 1e-9
    assert found.gap <= 0.01
    plain = edge_scores(runs).values[embed].sum(0).double()
    assert float((plain - change).mean().abs()) > 0.02 * float(
        change.mean().abs()
    )  # one gradient is not complete


def test_integrated_gradients_along_each_layers_outputs():
    runs = _runs("llama")
    found = edge_scores(runs, "ig-activations", steps=8, tolerance=0.01)
    assert found.gap <= 0.05
    inputs = edge_scores(runs, "ig-inputs", steps=found.steps, tolerance=1.0)
    embed = torch.tensor(runs.graph.writer_of) == 0
    torch.testing.assert_close(found.values[embed], inputs.values[embed], atol=1e-5, rtol=1e-3)
    # heads of one layer, patched together, move the metric by what their edges add up to
    layer = torch.tensor(
        [
            runs.graph.writers[w].layer == 1 and runs.graph.writers[w].kind == "head"
            for w in runs.graph.writer_of
        ]
    )
    change = (runs.measure(layer[None])[0] - runs.base())[:, 0]
    torch.testing.assert_close(found.values[layer].sum(0).double(), change, atol=1e-4, rtol=0.02)
    # internal edges of the other interpolation need not: shown
    assert float((inputs.values[layer].sum(0).double() - change).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere-qknorm", "stablelm-parallel", "olmo2"])
def test_pulling_back_is_the_derivative_of_reading(name):
    binding = tiny.bound(name, None, torch.float64)
    reading = Reading(binding)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, binding.facts.d_model, generator=g, dtype=torch.float64)
    for kind in ("q", "k", "v", "mlp"):
        facts = binding.facts.layers[1]
        n = {"q": facts.n_heads, "mlp": 1}.get(kind, facts.n_kv_heads)
        streams = x[:, None].expand(-1, n, -1).clone().requires_grad_()
        with torch.enable_grad():
            out = reading.value(1, kind, streams)
            cotangent = torch.randn(out.shape, generator=g, dtype=torch.float64)
            expected = torch.autograd.grad(out, streams, cotangent)[0]
        found = pull_back(reading, 1, kind, x, cotangent.detach())
        torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere-qknorm", "stablelm-parallel", "olmo2", "gemma2"])
def test_passes_pulled_back_together_are_the_sum_of_each(name):
    binding = tiny.bound(name, None, torch.float64)
    reading = Reading(binding)
    g = torch.Generator().manual_seed(0)
    facts, d = binding.facts.layers[1], binding.facts.d_model
    for kind in ("q", "k", "v", "mlp"):
        n = {"q": facts.n_heads, "mlp": 1}.get(kind, facts.n_kv_heads)
        total, expected = Sum(reading), 0.0
        for weight in (0.25, 0.5, -1.0):
            x = torch.randn(6, d, generator=g, dtype=torch.float64)
            width = d if kind == "mlp" else reading.weight(1, kind)[0].shape[2]
            grad = torch.randn(6, n, width, generator=g, dtype=torch.float64)
            total.add(1, kind, x, grad, weight)
            expected = expected + weight * pull_back(reading, 1, kind, x, grad)
        found = total.pulled((2, 3))[1, kind]
        torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-9, rtol=1e-7)


def test_rules_leave_the_forward_alone_and_change_what_flows_back():
    runs = _runs("llama")
    relp, plain = edge_scores(runs, "relp"), edge_scores(runs)
    torch.testing.assert_close(relp.base, plain.base, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(relp.values, plain.values, atol=1e-4)
    logits = torch.tensor(runs.graph.reader_of) == len(runs.graph.readers) - 1
    assert float(relp.values[logits].abs().sum()) > 0
