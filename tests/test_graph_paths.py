"""Path-patched runs against naive oracles: the published three steps with edits, and one full run per mediator."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import tiny
from microtome.errors import SiteError
from microtome.graph.donors import Prompts
from microtome.graph.nodes import graph_of
from microtome.graph.patched import EdgeRuns
from microtome.graph.path_runs import PathRuns, sender_rows
from microtome.graph.paths import Paths
from microtome.graph.reading import Reading
from microtome.metrics import metric, scoring
from microtome.replay.base import replay_attention
from microtome.replay.bench import Bench
from microtome.trace.edits import Patch
from test_graph_runs import SINGLE, TAILS, _prompts

FAMILIES = ("llama", "llama-bias", "gpt2", "gemma2", "qwen3", "olmo2", "gpt_neox", "cohere-qknorm", "phi-qknorm", "granite",
            "falcon", "falcon-new", "opt", "mistral", "gptj")  # fmt: skip
POST = ("gemma2", "olmo2", "gemma3")
FLOAT32 = (
    "qwen3_moe",
    "gpt_oss",
    "bloom",
    "falcon-alibi",
    "smollm3",
    "phi3",
    "gemma3",
)  # experts know no float64
LOGITS = "logits"
CLOSE = {"atol": 2e-6, "rtol": 2e-6}  # many families compute norms in float32, whatever the model is in


def _bench(model, base, answers=SINGLE, name="logit_diff"):
    return Bench(model.binding, base, scoring(*answers), (metric(name),))


@dataclass
class Way:
    """One question in names: what the engine gets as numbers."""

    receivers: tuple[str, ...]
    mediators: tuple[str, ...] = ()
    norms: bool = False
    patterns: bool = False
    onwards: bool = True

    def paths(self, graph):
        return Paths(tuple(graph.reader_number[r] for r in self.receivers), tuple(graph.writer_number[w] for w in self.mediators),
                     self.norms, self.patterns, self.onwards)  # fmt: skip


def _found(model, base, donor, senders, way):
    """(metrics [sender, prompt], base metrics) of the engine, its receipts complete."""
    graph = graph_of(model.binding)
    runs = PathRuns(_bench(model, base), Prompts(donor), way.paths(graph))
    values, plain = runs.measure(sender_rows(graph, [graph.writer_number[s] for s in senders]))
    assert runs.count.planned == runs.count.fired
    return values[..., 0], plain[:, 0]


def _diff(logits):
    rows = torch.arange(3)
    return (logits[rows, -1, torch.tensor([5, 6, 7])] - logits[rows, -1, torch.tensor([8, 9, 4])]).double()


@dataclass
class Oracle:
    """Full runs of the model only: no replay, no batches, no graph."""

    model: object
    base: list
    donor: list
    run_: dict = field(default_factory=dict)

    def __post_init__(self):
        self.facts, self.binding = self.model.facts, self.model.binding
        self.attention = replay_attention(self.binding).removeprefix("microtome_")
        self.clean = self.run([], *self._everything())
        self.dirty = self.run([], *self._everything(), ids=self.donor)

    def run(self, edits, *points, ids=None):
        return self.model.run(self.base if ids is None else ids, list(points), edits=edits, attention=self.attention)  # fmt: skip

    def has(self, point):
        layer = int(point[1 : point.index(".")])
        return self.binding.lacking(point.split(".")[1], layer) is None

    def _everything(self):
        points = ["embed", "final_resid"]
        for i in range(self.facts.n_layers):
            names = "resid_pre resid_mid q_pre k_pre z ln1_out ln2_out ln1_scale ln2_scale ln1_post_scale ln2_post_scale mlp_raw mlp_out"
            points += [f"L{i}.{p}" for p in names.split() if self.has(f"L{i}.{p}")]
        return points

    def written(self, trace, name, scale_of=None):
        """What a writer adds to the stream."""
        if "H" not in name:
            return trace[name]
        layer, head = map(int, name[1:].split(".")[0].split("H"))
        out = trace[f"L{layer}.z"][:, :, head] @ self.model.weights.W_O(layer)[head]
        if self.has(f"L{layer}.ln1_post_scale"):
            gain = self.binding.norm(self.binding.slots[layer].at("ln1_post")).gain
            return out / (scale_of or trace)[f"L{layer}.ln1_post_scale"] * gain
        return out * self.binding.slots[layer].block.attn_scale

    def order(self, name):
        """(layer, after the heads) of a writer or reader: what is written before it is smaller."""
        if name == "embed":
            return (-1, 0)
        if name == LOGITS:
            return (99, 0)
        layer = int(name[1:].replace("KV", "H").split(".")[0].split("H")[0])
        late = ("mlp" in name or "ln2" in name) and not self.facts.layers[layer].parallel
        return (layer, int(late))

    def seen(self, changes, name):
        """The change of the stream that a part reads."""
        mine = [c for w, c in changes.items() if self.order(w) < self.order(name)]
        return sum(mine) if mine else torch.zeros_like(self.clean["embed"])

    def reads(self, layer, change, mlp, norms):
        """Edits that let a layer's attention or its MLP read a changed stream."""
        parallel = self.facts.layers[layer].parallel
        slot = self.binding.slots[layer]
        path = (slot.at("ln2") or slot.at("ln1")) if mlp and parallel else slot.at("ln2" if mlp else "ln1")
        if slot.style == "post":
            path = None
        stream = self.clean[f"L{layer}.{'resid_mid' if mlp and not parallel else 'resid_pre'}"]
        point = f"L{layer}.{'ln2_out' if mlp else 'ln1_out'}"
        if path is None:
            return [Patch(point if mlp else f"L{layer}.resid_pre", stream + change)]
        if not norms:
            with torch.no_grad():
                return [Patch(point, self.binding.module(path)(stream + change))]
        norm = self.binding.norm(path)
        centred = change - change.mean(-1, keepdim=True) if norm.centred else change
        x = stream - stream.mean(-1, keepdim=True) if norm.centred else stream
        scale = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        with torch.no_grad():
            return [Patch(point, self.binding.module(path)(stream) + centred / scale * norm.gain)]

    def mediated(self, name, change, way):
        """What a mediator writes, computed from its base stream plus a change, minus what it wrote."""
        layer = int(name[1:].split(".")[0].split("H")[0])
        if "mlp" in name:
            edits = self.reads(layer, change, True, way.norms)
            points = [p for p in (f"L{layer}.mlp_out", f"L{layer}.mlp_raw") if self.has(p)]
            return self.moved(self.run(edits, *points), name, way.norms)
        edits = self.reads(layer, change, False, way.norms)
        if way.patterns:
            edits += [Patch(f"L{layer}.{p}", self.clean[f"L{layer}.{p}"]) for p in ("q_pre", "k_pre")]
        others = [
            h for h in range(self.facts.layers[layer].n_heads) if f"L{layer}H{h}.z" not in way.mediators
        ]
        edits += [Patch(f"L{layer}H{h}.z", self.clean) for h in others]
        points = [f"L{layer}.z"] + [p for p in [f"L{layer}.ln1_post_scale"] if self.has(p)]
        trace = self.run(edits, *points)
        return self.moved(trace, name, way.norms)

    def moved(self, trace, name, norms):
        """What a writer writes in another run minus what it wrote, post-norms at their base divisors where norms are held."""
        layer = int(name[1:].split(".")[0].split("H")[0])
        if "mlp" not in name:
            return self.written(trace, name, self.clean if norms else None) - self.written(self.clean, name)
        if norms and self.has(f"L{layer}.ln2_post_scale"):
            gain = self.binding.norm(self.binding.slots[layer].at("ln2_post")).gain
            raw = trace[f"L{layer}.mlp_raw"] - self.clean[f"L{layer}.mlp_raw"]
            return raw / self.clean[f"L{layer}.ln2_post_scale"] * gain
        return trace[name] - self.clean[name]

    def expected(self, sender, way):
        together = (sender,) if isinstance(sender, str) else sender
        changes = {s: self.written(self.dirty, s) - self.written(self.clean, s) for s in together}
        for name in sorted(way.mediators, key=self.order):
            if name not in together:
                changes[name] = self.mediated(name, self.seen(changes, name), way)
        if way.receivers == (LOGITS,):
            return self.logits(sum(changes.values()), way.norms)
        edits = []
        for name in way.receivers:
            layer, mlp = self.order(name)[0], "ln2" in name
            patch = self.reads(layer, self.seen(changes, name), mlp, way.norms)
            if not mlp:
                point = name.replace(".q", ".q_pre").replace(".k", ".k_pre")
                patch = [Patch(point, self.run(patch, point))]
            edits += patch
        if way.onwards:
            return _diff(self.run(edits).logits)
        return self.logits(self.straight(edits, way), way.norms)

    def straight(self, edits, way):
        total = 0
        for name, edit in zip(way.receivers, edits, strict=True):
            layer = self.order(name)[0]
            point = "mlp_out" if "ln2" in name else "z"
            trace = self.run([edit], *self._everything())
            share = self.facts.layers[layer].n_heads // self.facts.layers[layer].n_kv_heads
            index = 0 if point == "mlp_out" else int(name.replace("KV", "H").split("H")[1].split(".")[0])
            mine = [f"L{layer}.mlp_out"] if point == "mlp_out" else [f"L{layer}H{index}.z"]
            if "KV" in name:
                mine = [f"L{layer}H{h}.z" for h in range(index * share, (index + 1) * share)]
            for writer in mine:
                total = total + self.moved(trace, writer, way.norms)
        return total

    def logits(self, change, norms):
        final = self.clean["final_resid"]
        if not norms:
            with torch.no_grad():
                return _diff(self.binding.unembed(final + change))
        norm = self.binding.final_norm
        centred = change - change.mean(-1, keepdim=True) if norm.centred else change
        x = final - final.mean(-1, keepdim=True) if norm.centred else final
        scale = (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        with torch.no_grad():
            out = self.binding.module(self.binding.stack["final_norm"])(final) + centred / scale * norm.gain
            return _diff(self.binding.readout(out))


def _names(model):
    """A sender, mediators between, and receivers of every kind in the last layer."""
    last = model.facts.n_layers - 1
    layer = model.facts.layers[last]
    kv = "KV" if layer.n_kv_heads != layer.n_heads else "H"
    some = ("L1H0.z", "L1H3.z", "L1.mlp_out", "L2H2.z")
    every = tuple(f"L{i}{p}" for i in range(last + 1) for p in (*(f"H{h}.z" for h in range(layer.n_heads)), ".mlp_out"))  # fmt: skip
    receivers = [
        (f"L{last}H1.q",),
        (f"L{last}{kv}0.k",),
        (f"L{last}{kv}0.v",),
        (f"L{last}.ln2_out",),
        (LOGITS,),
    ]
    return some, every, receivers


@pytest.mark.parametrize("name", FAMILIES)
def test_paths_agree_with_one_full_run_per_mediator(name):
    """Every kind of receiver, some mediators, everything that can be frozen or free, in float64."""
    model = tiny.loaded(name, None, torch.float64)
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    some, _, receivers = _names(model)
    joint = Reading(model.binding).joint(2, "q")
    moved = 0
    held = ((False, False), (True, True), (True, False), (False, True))
    for receiver, mediators, (norms, patterns) in itertools.product(receivers, ((), some), held):
        if norms != patterns and (receiver != (LOGITS,) or not mediators):
            continue
        if joint and receiver[0][-1] in "qk":
            continue  # a joint norm over heads: see the test on edges
        way = Way(receiver, mediators, norms, patterns)
        senders = ("L0H2.z", "L1H3.z", "embed")
        found, plain = _found(model, base, donor, senders, way)
        expected = torch.stack([oracle.expected(s, way) for s in senders])
        torch.testing.assert_close(found, expected, **CLOSE, msg=lambda m, way=way: f"{way}: {m}")
        moved = max(moved, float((found - plain).abs().max()))
    assert moved > 1e-2


@pytest.mark.parametrize("name", [*FAMILIES[::2], *FLOAT32])
def test_paths_agree_with_the_published_three_steps(name):
    """Donor run; base run with the sender patched and all but the mediators held; base run with the receivers set.

    Heads behind a post-norm are no sender here, nor some of them mediators: holding z holds no share of a joint divisor.
    """
    model = tiny.loaded(name, None, torch.float32 if name in FLOAT32 else torch.float64)
    close = {"atol": 2e-5, "rtol": 2e-4} if name in FLOAT32 else CLOSE
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    some, every, receivers = _names(model)
    for receiver, mediators in itertools.product(
        receivers, ((), every) if name in POST else ((), some, every)
    ):
        if receiver[0][-1] in "qk" and Reading(model.binding).joint(2, "q"):
            continue
        way = Way(receiver, mediators)
        senders = ("L0.mlp_out",) if name in POST else ("L0H2.z", "L0.mlp_out")
        found, _ = _found(model, base, donor, senders, way)
        for row, sender in zip(found, senders, strict=True):
            edits = [Patch(sender, oracle.dirty)]
            edits += [Patch(w, oracle.clean) for w in every if w not in mediators and w != sender]
            points = [r.replace(".q", ".q_pre").replace(".k", ".k_pre") for r in receiver if r != LOGITS]
            second = oracle.run(edits, *points)
            third = second if receiver == (LOGITS,) else oracle.run([Patch(p, second) for p in points])
            torch.testing.assert_close(row, _diff(third.logits), **close)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_paths_agree_with_one_full_run_per_mediator(data):
    """Family, sender, receivers, mediators, what is held and the prompts' first difference drawn at random."""
    name = data.draw(st.sampled_from(FAMILIES))
    model = tiny.loaded(name, None, torch.float64)
    graph = graph_of(model.binding)
    joint = Reading(model.binding).joint(2, "q")
    readers = [r for r in graph.readers if not (joint and r.kind in "qk")]
    onwards = data.draw(st.booleans())
    some = data.draw(
        st.lists(st.sampled_from(readers), min_size=1, max_size=3 if onwards else 1, unique=True)
    )
    if len(some) > 1:
        some = [r for r in some if r.kind != "logits"] or some[:1]
    reach = max(r.reach for r in some)
    sender = data.draw(st.sampled_from(graph.writers[:reach])).name
    mediators = data.draw(st.sets(st.sampled_from([w.name for w in graph.writers[1:]]), max_size=8))
    way = Way(
        tuple(r.name for r in some),
        tuple(sorted(mediators)),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
        onwards,
    )
    base, donor = _prompts(data.draw(st.integers(0, 8)))
    note(f"{name} {sender} {way}")
    reached = replace(way, mediators=tuple(graph.writers[w].name for w in way.paths(graph).between(graph)))
    found, _ = _found(model, base, donor, (sender,), way)
    torch.testing.assert_close(found[0], Oracle(model, base, donor).expected(sender, reached), **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_direct_path_is_one_patched_edge(name):
    model = tiny.loaded(name, None, torch.float64)
    base, donor = _prompts()
    edges = EdgeRuns(_bench(model, base), Prompts(donor))
    _, _, receivers = _names(model)
    for (receiver,), sender in itertools.product(receivers, ("embed", "L0H2.z", "L1.mlp_out")):
        mask = torch.zeros(1, len(edges.graph.edges), dtype=torch.bool)
        mask[0, edges.graph.number(f"{sender}->{receiver}")] = True
        found, _ = _found(model, base, donor, (sender,), Way((receiver,)))
        torch.testing.assert_close(found, edges.measure(mask)[..., 0], **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_embedding_through_everything_is_the_donor_run(name):
    """All paths together, nothing frozen: the receiver has its donor value, and the logits are the donor's."""
    model = tiny.loaded(name, None, torch.float64)
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    _, every, receivers = _names(model)
    joint = Reading(model.binding).joint(2, "q")
    for (receiver,) in receivers:
        if joint and receiver[-1] in "qk":
            continue
        found, _ = _found(model, base, donor, ("embed",), Way((receiver,), every))
        point = receiver.replace(".q", ".q_pre").replace(".k", ".k_pre")
        expected = oracle.dirty if receiver == LOGITS else oracle.run([Patch(point, oracle.run([], point, ids=donor))])  # fmt: skip
        torch.testing.assert_close(found[0], _diff(expected.logits), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_only_the_receivers_own_direct_effect(name):
    model = tiny.loaded(name, None, torch.float64)
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    some, _, receivers = _names(model)
    early = [("L1H1.q",), *receivers[:-1], ("L1.ln2_out",), ("L1H1.q", "L2.ln2_out")]
    for receiver in early:
        way = Way(receiver, some, onwards=False)
        found, plain = _found(model, base, donor, ("L0H2.z", "embed"), way)
        expected = torch.stack([oracle.expected(s, way) for s in ("L0H2.z", "embed")])
        torch.testing.assert_close(found, expected, **CLOSE)
        assert float((found - plain).abs().max()) > 1e-6


def test_several_receivers_are_set_together():
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    way = Way(("L1H1.q", "L1KV0.v", "L2H0.q", "L2.ln2_out"), ("L0.mlp_out", "L1.mlp_out"))
    found, _ = _found(model, base, donor, ("L0H2.z",), way)
    torch.testing.assert_close(found[0], oracle.expected("L0H2.z", way), **CLOSE)


def test_a_sender_among_several_is_never_recomputed_as_a_mediator():
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    graph = graph_of(model.binding)
    senders, way = ("L0H2.z", "L1H0.z", "L1.mlp_out"), Way(("L2H1.q",), ("L1H0.z", "L1H1.z", "L1.mlp_out"))
    runs = PathRuns(_bench(model, base), Prompts(donor), way.paths(graph))
    row = sender_rows(graph, [graph.writer_number[s] for s in senders]).any(0)
    found = runs.measure(row[None])[0][0, :, 0]
    torch.testing.assert_close(found, Oracle(model, base, donor).expected(senders, way), **CLOSE)


def test_frozen_paths_add_up_and_free_ones_need_not():
    """With divisors, patterns and MLPs held: all writers straight to the logits give the whole change at the base's divisor;
    two mediators of one layer add what each adds; with free norms they do not."""
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    oracle = Oracle(model, base, donor)
    writers = graph_of(model.binding).writer_number
    found, plain = _found(model, base, donor, tuple(writers), Way((LOGITS,), norms=True))
    whole = oracle.logits(oracle.dirty["final_resid"] - oracle.clean["final_resid"], True) - plain
    torch.testing.assert_close((found - plain).sum(0), whole, **CLOSE)
    free, _ = _found(model, base, donor, tuple(writers), Way((LOGITS,)))
    assert float(((free - plain).sum(0) - whole).abs().max()) > 1e-3
    sets = ((), ("L1H0.z",), ("L1H3.z",), ("L1H0.z", "L1H3.z"))
    for norms, same in ((True, True), (False, False)):
        none, one, other, both = (_found(model, base, donor, ("L0H2.z",), Way((LOGITS,), m, norms, True))[0] for m in sets)  # fmt: skip
        gap = float((both - none - (one - none) - (other - none)).abs().max())
        assert (gap < 1e-9) == same
        assert float((one - none).abs().max()) > 1e-4


def test_senders_in_one_batch_equal_senders_alone_whatever_the_memory():
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    some, every, _ = _names(model)
    graph = graph_of(model.binding)
    way = Way(("L2KV1.k", "L2H0.q"), every).paths(graph)
    senders = ["L1.mlp_out", "embed", "L0H2.z", "L1H0.z", "L0.mlp_out"]
    rows = sender_rows(graph, [graph.writer_number[s] for s in senders])
    runs = PathRuns(_bench(model, base), Prompts(donor), way)
    together = runs.measure(rows)[0]
    alone = torch.cat([runs.measure(row[None])[0] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-11, rtol=1e-9)
    assert runs.forwards == 2 * len(senders) * 3
    small = PathRuns(_bench(model, base), Prompts(donor), way, memory=400_000)
    assert len(small.edges.groups) > 1
    torch.testing.assert_close(small.measure(rows)[0], together, atol=1e-11, rtol=1e-9)


def test_teacher_forced_tails_go_along():
    model = tiny.loaded("llama", None, torch.float64)
    base, donor = _prompts()
    _, every, _ = _names(model)
    bench = _bench(model, base, TAILS, "logprob_diff")
    graph = EdgeRuns(bench, Prompts(donor)).graph
    runs = PathRuns(bench, Prompts(donor), Way((LOGITS,), every).paths(graph))
    other = PathRuns(_bench(model, donor, TAILS, "logprob_diff"), Prompts(base), Way((LOGITS,), every).paths(graph))  # fmt: skip
    row = sender_rows(graph, [0])
    torch.testing.assert_close(runs.measure(row)[0][0], other.measure(row)[1], **CLOSE)


def test_nothing_below_the_first_change_is_computed_again(monkeypatch):
    from microtome.graph import paths as module

    calls = []
    original = module.call_layer
    monkeypatch.setattr(module, "call_layer", lambda base, layer, segments, *a: calls.append((layer, segments[0].start, len(segments[0].number))) or original(base, layer, segments, *a))  # fmt: skip
    model = tiny.loaded("llama")
    base, donor = _prompts(shared=4)
    _found(model, base, donor, ("L1.mlp_out",), Way(("L2H1.q",)))
    assert calls == [(2, 4, 3)]
    calls.clear()
    _found(model, base, donor, ("L0H0.z", "L1H0.z"), Way((LOGITS,)))
    assert calls == []
    _found(model, base, donor, ("embed", "L1H0.z"), Way((LOGITS,), ("L1.mlp_out", "L2H0.z")))
    assert [n for layer, _, n in calls if layer == 1] == [3, 6] and {start for _, start, _ in calls} == {4}


def test_refusals():
    model = tiny.loaded("llama")
    base, donor = _prompts()
    graph = graph_of(model.binding)
    runs = PathRuns(_bench(model, base), Prompts(donor), Way(("L1H1.q",)).paths(graph))
    with pytest.raises(SiteError, match="do not fit"):
        runs.measure(torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(SiteError, match="no receiver sees"):
        runs.measure(sender_rows(graph, [graph.writer_number["L1H0.z"]]))
    with pytest.raises(SiteError, match="beside others"):
        PathRuns(_bench(model, base), Prompts(donor), Way(("L1H1.q", LOGITS)).paths(graph))
