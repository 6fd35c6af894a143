"""Edge-patched runs against the model's own edited runs: none, all, all of a reader, all of a writer, on every family."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import tiny
from microtome.errors import MicrotomeError, SiteError, TaskError
from microtome.graph.donors import Prompts, Reference, Zero
from microtome.graph.nodes import graph_of
from microtome.graph.patched import EdgeRuns
from microtome.graph.stack import Stack
from microtome.metrics import metric, scoring
from microtome.replay.base import replay_attention
from microtome.replay.bench import Bench
from microtome.trace.edits import Ablate, Patch

LENGTH, SHARED = 9, 4
SINGLE = ([((5,),), ((6,),), ((7,),)], [((8,),), ((9,),), ((4,),)])
TAILS = ([((5,), (7, 9)), ((6,),), ((5, 11),)], [((8,),), ((9, 13, 2),), ((4,),)])
NO_GRAPH = {"olmo-clip", "deepseek_v3"}


def _prompts(shared: int = SHARED, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    g = torch.Generator().manual_seed(seed)
    base = torch.randint(1, tiny.VOCAB, (3, LENGTH), generator=g).tolist()
    donor = [
        row[:shared] + torch.randint(1, tiny.VOCAB, (LENGTH - shared,), generator=g).tolist() for row in base
    ]
    return base, donor


def _runs(model, base, donor, answers=SINGLE, name="logit_diff") -> EdgeRuns:
    bench = Bench(model.binding, base, scoring(*answers), (metric(name),))
    return EdgeRuns(bench, donor if not isinstance(donor, list) else Prompts(donor))


def _diff(logits: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(3)
    return (logits[rows, -1, torch.tensor([5, 6, 7])] - logits[rows, -1, torch.tensor([8, 9, 4])]).double()


def _has_graph(model) -> bool:
    try:
        graph_of(model.binding)
    except SiteError:
        return False
    return True


FAMILIES = [name for name in tiny.KNOWN if name not in NO_GRAPH and not name.startswith("deepseek")]


@pytest.mark.parametrize("name", FAMILIES)
def test_edges_agree_with_the_models_own_edited_runs(name):
    model = tiny.loaded(name)
    if not _has_graph(model):
        assert not model.facts.additive  # nothing else keeps a family from having edges
        return
    base, donor = _prompts()
    numerics = replay_attention(model.binding).removeprefix(
        "microtome_"
    )  # falcon's alibi differs between the two
    run = partial(model.run, attention=numerics)
    runs = _runs(model, base, donor)
    graph = runs.graph
    reader_of, writer_of = torch.tensor(graph.reader_of), torch.tensor(graph.writer_of)
    layer = model.facts.n_layers - 1
    kv = model.facts.layers[layer].n_kv_heads != model.facts.layers[layer].n_heads
    reader = f"L{layer}{'KV' if kv else 'H'}0.v"
    query = f"L{layer}H1.q"
    writer = "L1H2.z"
    masks = torch.stack([
        torch.zeros(len(graph.edges), dtype=torch.bool), torch.ones(len(graph.edges), dtype=torch.bool),
        reader_of == graph.reader_number[reader], writer_of == graph.writer_number[writer],
    ])  # fmt: skip
    found = runs.measure(masks)[..., 0]
    trace = run(donor, [reader, writer, query.replace(".q", ".q_pre")])
    clean = _diff(run(base).logits)
    corrupt = _diff(trace.logits)
    assert not torch.allclose(clean, corrupt, atol=1e-4)
    expected = [clean, corrupt, _diff(run(base, edits=[Patch(reader, trace)]).logits)]
    if not runs.reading.post_norm(1):  # else a head's share of a normed output is no edit of z
        expected.append(_diff(run(base, edits=[Patch(writer, trace)]).logits))
    for one, other in zip(expected, found, strict=False):
        torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-4)
    if not runs.reading.joint(layer, "q"):
        mask = (reader_of == graph.reader_number[query])[None]
        edit = Patch(query.replace(".q", ".q_pre"), trace)
        torch.testing.assert_close(
            runs.measure(mask)[0, :, 0], _diff(run(base, edits=[edit]).logits), atol=2e-5, rtol=2e-4
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_teacher_forced_tails_go_along(name):
    model = tiny.loaded(name)
    base, donor = _prompts()
    runs = _runs(model, base, donor, TAILS, "logprob_diff")
    every = torch.ones(1, len(runs.graph.edges), dtype=torch.bool)
    other = _runs(model, donor, base, TAILS, "logprob_diff")
    torch.testing.assert_close(runs.measure(every)[0], other.base(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(runs.measure(~every)[0], runs.base(), atol=1e-6, rtol=1e-6)


def test_masks_in_one_batch_equal_masks_alone_and_memory_changes_nothing():
    model = tiny.loaded("llama")
    base, donor = _prompts()
    runs = _runs(model, base, donor)
    g = torch.Generator().manual_seed(1)
    masks = (
        torch.rand(7, len(runs.graph.edges), generator=g)
        < torch.tensor([0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])[:, None]
    )
    together = runs.measure(masks)
    alone = torch.cat([runs.measure(mask[None]) for mask in masks])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
    small = EdgeRuns(runs.bench, runs.donor, memory=300_000)
    assert len(small.groups) > 1
    torch.testing.assert_close(small.measure(masks), together, atol=1e-6, rtol=1e-6)


def test_a_single_edge_is_the_writers_difference_added_to_one_readers_stream():
    """An oracle of its own: MLP of layer 2 reads layer 0's MLP from the donor, and nothing else changes."""
    model = tiny.loaded("llama")
    base, donor = _prompts()
    runs = _runs(model, base, donor)
    mask = torch.zeros(1, len(runs.graph.edges), dtype=torch.bool)
    mask[0, runs.graph.number("L0.mlp_out->L2.ln2_out")] = True
    t, d = model.run(base, ["L2.resid_mid", "L0.mlp_out"]), model.run(donor, ["L0.mlp_out"])
    stream = t["L2.resid_mid"] + d["L0.mlp_out"] - t["L0.mlp_out"]
    with torch.no_grad():
        value = model.hf.model.layers[2].post_attention_layernorm(stream)
    expected = _diff(model.run(base, edits=[Patch("L2.ln2_out", value)]).logits)
    torch.testing.assert_close(runs.measure(mask)[0, :, 0], expected, atol=1e-5, rtol=1e-4)
    assert float((expected - runs.base()[:, 0]).abs().max()) > 1e-5


def test_patched_writers_pass_on_what_they_make_of_patched_readers():
    """Two edges in a row: the second writer's present value is what the second edge would replace, not the clean one."""
    model = tiny.loaded("llama")
    base, donor = _prompts()
    runs = _runs(model, base, donor)
    graph = runs.graph
    mask = torch.zeros(1, len(graph.edges), dtype=torch.bool)
    mask[0, graph.number("embed->L0.ln2_out")] = True
    mask[0, graph.number("L0.mlp_out->L2.ln2_out")] = True
    d = model.run(donor, ["embed", "L0.mlp_out"])
    t = model.run(base, ["embed", "L0.resid_mid"])
    with torch.no_grad():
        first = model.hf.model.layers[0].post_attention_layernorm(t["L0.resid_mid"] + d["embed"] - t["embed"])
    u = model.run(base, ["L2.resid_mid", "L0.mlp_out"], edits=[Patch("L0.ln2_out", first)])
    with torch.no_grad():
        second = model.hf.model.layers[2].post_attention_layernorm(
            u["L2.resid_mid"] + d["L0.mlp_out"] - u["L0.mlp_out"]
        )
    expected = _diff(model.run(base, edits=[Patch("L0.ln2_out", first), Patch("L2.ln2_out", second)]).logits)
    torch.testing.assert_close(runs.measure(mask)[0, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_zero_and_mean_donors():
    model = tiny.loaded("llama-bias")
    base, donor = _prompts()
    writers = _runs(model, base, donor).graph.writer_number
    for made, edits in (
        (Zero(), [Ablate("L1H2.z", by="zero")]),
        (Reference(donor, "mean"), [Ablate("L1H2.z", by="mean", over=donor)]),
    ):
        runs = _runs(model, base, made)
        mask = (torch.tensor(runs.graph.writer_of) == writers["L1H2.z"])[None]
        expected = _diff(model.run(base, edits=edits).logits)
        torch.testing.assert_close(runs.measure(mask)[0, :, 0], expected, atol=1e-5, rtol=1e-4)
    drawn = _runs(model, base, Reference(donor, "resample", seed=3))
    again = _runs(model, base, Reference(donor, "resample", seed=3))
    assert torch.equal(drawn.measure(mask), again.measure(mask))


def test_edge_counts_and_names():
    from microtome.graph.nodes import nodes_of

    facts = tiny.loaded("llama-mha").facts
    gpt2, smol = _shaped(facts, 12, 12, 12), _shaped(facts, 30, 9, 3)
    assert len(nodes_of(gpt2).edges) == 32_491
    assert len(nodes_of(smol).edges) == 70_651
    graph = nodes_of(smol)
    for number in (0, 1, 4_242, 70_650):
        assert graph.number(graph.edges[number]) == number
    assert list(graph.edges)[4_242] == graph.edges[4_242]
    assert "L5H3.z->L9KV2.k" in graph.edges and "embed->logits" in graph.edges
    with pytest.raises(SiteError, match="before"):
        graph.number("L9H3.z->L5KV2.k")
    with pytest.raises(SiteError, match="KV"):
        graph.number("L5H3.z->L9H2.k")


def _shaped(facts, layers, heads, groups):
    one = replace(facts.layers[0], n_heads=heads, n_kv_heads=groups)
    return replace(facts, n_layers=layers, layers=tuple(replace(one, index=i) for i in range(layers)))


def test_refusals():
    for name in ("olmo-clip", "deepseek_v3", "bloom-post"):
        if name in tiny.KNOWN:
            with pytest.raises(MicrotomeError, match="no graph"):
                graph_of(tiny.loaded(name).binding)
    base, donor = _prompts()
    with pytest.raises(TaskError, match="donor 0"):
        _runs(tiny.loaded("llama"), base, [row[:-1] for row in donor]).base()
    with pytest.raises(SiteError, match="do not fit"):
        _runs(tiny.loaded("llama"), base, donor).measure(torch.zeros(1, 5, dtype=torch.bool))


def test_nothing_left_of_a_stream_is_nothing_and_not_its_rounding():
    """Every writer taken out of what one reader sees: it sees 0, whatever the others still do.

    A norm divides what is left by its size: without care the rounding of stream - (sum of writers) comes out enlarged.
    """
    model = tiny.loaded("llama")
    base, _ = _prompts()
    runs = _runs(model, base, Zero())
    readers = [runs.graph.readers[r] for r in runs.graph.reader_of]
    logits, last = (torch.tensor([r.layer >= layer for r in readers]) for layer in (3, 2))
    found = runs.measure(torch.stack([logits, last]))[..., 0]
    nothing = model.binding.unembed(torch.zeros(1, model.facts.d_model), None)[0].detach()
    expected = (nothing[[5, 6, 7]] - nothing[[8, 9, 4]]).double()
    for values in found:
        torch.testing.assert_close(values, expected, atol=0, rtol=0)


@pytest.mark.parametrize("spans", [(), ("head", "rest")])
@pytest.mark.parametrize("few", [0.08, 1.0])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2", "qwen3", "gptj"])
def test_sums_from_the_nearer_end_are_the_same_sums(name, few, spans, monkeypatch):
    """Short sums of few edges, or of all but few from the donor's stream, against one product with every writer."""
    model = tiny.loaded(name)
    base, donor = _prompts()
    answers = scoring(*SINGLE)
    inside = [{"head": (5, 7)} for _ in base] if spans else ()
    bench = Bench(model.binding, base, answers, (metric("logit_diff"),), spans=inside)
    for made in (Prompts(donor), Zero()):
        runs = EdgeRuns(bench, made, spans=spans)
        g = torch.Generator().manual_seed(1)
        shares = torch.tensor([0.0, 0.002, 0.02, 0.3, 0.5, 0.7, 0.98, 0.998, 1.0])
        masks = torch.rand(10, runs.edges, generator=g) < torch.cat([shares, shares[2:3]])[:, None]
        for i in (1, 9):  # one reader alone reads the donor's stream
            masks[i].view(-1, len(runs.graph.edges))[:, slice(*runs.graph.offsets[20:22])] = True
        expected = runs.measure(masks)
        assert float((expected[1:] - expected[0]).abs().max()) > 1e-4
        with monkeypatch.context() as patch:
            patch.setattr("microtome.graph.stack.SMALL", 0)
            patch.setattr("microtome.graph.stack.FEW", few)
            torch.testing.assert_close(runs.measure(masks), expected, atol=2e-5, rtol=2e-5)
            for i in (1, 6, 8, 9):
                torch.testing.assert_close(runs.measure(masks[i : i + 1]), expected[i : i + 1], atol=2e-5, rtol=2e-5)  # fmt: skip


def test_readers_without_an_edge_of_their_own_share_the_donors_stream(monkeypatch):
    """Their norm is computed once, and what it is computed of is the donor's stream to the last rounding."""
    model = tiny.loaded("llama")
    base, donor = _prompts()
    runs = _runs(model, base, donor)
    mask = torch.ones(1, runs.edges, dtype=torch.bool)
    mask[0, runs.graph.number("L0H1.z->L2H3.q")] = False
    seen = []
    original = Stack.streams

    def watched(self, patched, stream):
        found = original(self, patched, stream)
        seen.append(found)
        return found

    monkeypatch.setattr(Stack, "streams", watched)
    monkeypatch.setattr("microtome.graph.stack.SMALL", 0)
    runs.measure(mask)
    assert sum(len(found.own) for found in seen) == 1 and all(f.shared is not None for f in seen)
    other = model.run(donor, ["L2.resid_pre"])["L2.resid_pre"]
    shared = next(found for found in seen if found.own).shared[0]
    torch.testing.assert_close(shared, other[:, -shared.shape[1] :], atol=1e-6, rtol=1e-6)
