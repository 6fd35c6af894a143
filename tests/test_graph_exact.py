"""Exact single edges by replay: equal to one-edge masks on every family, and nothing that can matter is left out."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.errors import SiteError
from microtome.graph.donors import Reference, Zero
from microtome.graph.exact import edge_tokens, exact_edges
from microtome.replay.sweep import Interrupted, Settings
from test_graph_runs import FAMILIES, TAILS, _has_graph, _prompts, _runs


def _masked(runs, edges):
    """The same by masks. Shapes: [edge, prompt, metric]."""
    masks = torch.zeros(len(edges), len(runs.graph.edges), dtype=torch.bool)
    masks[torch.arange(len(edges)), torch.tensor(edges)] = True
    return runs.measure(masks) - runs.base()


def _some(runs, n=60, seed=0):
    """Edges of every kind of reader, first and last layer included, in no order."""
    graph = runs.graph
    gen = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(graph.edges), generator=gen)[:n].tolist()
    last = graph.offsets[-1]
    return [*some, 0, int(last) - 1, int(last) - len(graph.writers), *map(int, graph.offsets[-4:-1] - 1)]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_row_per_edge_equals_one_mask_per_edge(name):
    model = tiny.loaded(name)
    if not _has_graph(model):
        with pytest.raises(SiteError):
            _runs(model, *_prompts()).base()
        return
    runs = _runs(model, *_prompts())
    edges = list(dict.fromkeys(_some(runs)))
    found, expected = exact_edges(runs, edges), _masked(runs, edges)
    torch.testing.assert_close(found.effects, expected, atol=2e-5, rtol=1e-4)
    assert found.complete and float(expected.abs().max()) > 1e-3
    assert float(found.effects[found.zero].abs().sum()) == 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "gpt_neox"])
def test_every_edge_in_float64_with_several_rows_per_prompt(name):
    model = tiny.loaded(name, None, torch.float64)
    base, donor = _prompts(5)
    runs = _runs(model, base, donor, TAILS, "logprob_diff")
    edges = list(range(len(runs.graph.edges)))
    found = exact_edges(runs, edges, Settings(tokens=128))
    torch.testing.assert_close(found.effects, _masked(runs, edges), atol=1e-6, rtol=1e-5)
    every = exact_edges(runs, edges, skip=False)
    torch.testing.assert_close(found.effects, every.effects, atol=1e-6, rtol=1e-5)
    assert found.tokens == edge_tokens(runs, edges) < every.tokens


def test_donors_of_other_kinds_and_a_prompt_that_differs_late():
    model = tiny.loaded("llama")
    base, donor = _prompts(2)
    donor[1] = [*base[1][:-1], donor[1][-1]]
    for made in (donor, Zero(), Reference(donor, "mean")):
        runs = _runs(model, base, made)
        edges = list(range(0, len(runs.graph.edges), 3))
        found = exact_edges(runs, edges)
        torch.testing.assert_close(found.effects, _masked(runs, edges), atol=2e-5, rtol=1e-4)


def test_an_edge_whose_writer_does_not_differ_is_an_exact_zero_and_costs_nothing():
    model = tiny.loaded("llama")
    base, _ = _prompts()
    donor = [[*row[:6], (row[6] + 1) % tiny.VOCAB, *row[7:]] for row in base]
    runs = _runs(model, base, donor)
    number = runs.graph.number(
        "embed->L2.ln2_out"
    )  # the last layer's MLP at the last token: the embedding is the same there
    found = exact_edges(runs, [number, runs.graph.number("embed->logits")])
    assert bool(found.zero.all()) and found.tokens == 0 and float(found.effects.abs().max()) == 0
    torch.testing.assert_close(_masked(runs, [number]), found.effects[:1], atol=1e-6, rtol=0)


def test_progress_and_the_finished_part_of_an_interrupted_sweep():
    model = tiny.loaded("llama")
    runs = _runs(model, *_prompts())
    edges = list(range(len(runs.graph.edges)))
    seen = []

    def progress(done, total):
        seen.append(done / total)
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        exact_edges(runs, edges, Settings(tokens=64, progress=progress))
    part = caught.value.outcome
    assert seen == sorted(seen) and 0 < int(part.done.sum()) < part.done.numel() and not part.complete
    whole = exact_edges(runs, edges)
    torch.testing.assert_close(part.effects[part.done], whole.effects[part.done], atol=1e-5, rtol=1e-4)
    assert bool(part.effects[~(part.done | part.zero)].isnan().all())


def test_a_number_that_is_no_edge():
    runs = _runs(tiny.loaded("llama"), *_prompts())
    with pytest.raises(SiteError, match="no edge"):
        exact_edges(runs, [len(runs.graph.edges)])
