"""Path patching as a technique: planted paths are found, each control can fail, what cannot be asked is refused with its reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import planted
import tiny
from microtome import methods
from microtome.errors import SiteError, TaskError
from microtome.facade import Model
from microtome.figures.paths import title_of
from microtome.graph import path_runs, paths
from microtome.graph.donors import Prompts
from microtome.graph.nodes import graph_of
from microtome.methods import path_controls
from microtome.methods.path_parts import Asked, resolve
from microtome.methods.paths import Question
from microtome.model.load import load_module

HEAD = "L1H2"


@pytest.fixture(scope="module")
def model():
    return planted.copier()


@pytest.fixture(scope="module")
def task():
    return planted.copied()


def _patch(model, task, sender, receiver, **more):
    return methods.path_patching(model, task, sender=sender, receiver=receiver, seed=0, **more)


@pytest.fixture(scope="module")
def mapped(model, task):
    return _patch(model, task, "L*H*.z", "logits")


def _mean(result):
    e = result.effects
    return dict(zip(e.coords["site"], e.values[..., 0].mean(1), strict=True))


def test_the_head_that_copies_is_found_and_supported(mapped) -> None:
    mean = _mean(mapped)
    total = mapped.tensors["total"][:, 0].mean()
    assert mean.pop(f"{HEAD}.z") == pytest.approx(total, rel=1e-4) and max(map(abs, mean.values())) < 1e-5
    assert mapped.verdict == "supported"
    ran = {c.name for c in mapped.controls if c.passed}
    assert {
        "identity",
        "receipts",
        "sums",
        "additivity",
        "same_value",
        "irrelevant",
        "value_matters",
        "sign_flip",
    } <= ran


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_tokens_go_through_values_and_not_through_queries(model, task, mode) -> None:
    total = float(_patch(model, task, "embed", "logits", through="all", mode=mode).tensors["total"].mean())
    assert total > 1 if mode == "denoise" else total < -1
    for receiver, share in ((f"{HEAD}.v", 1.0), (f"{HEAD}.q", 0.0), ("L1H0.v", 0.0), ("L2.mlp", 0.0)):
        found = _patch(model, task, "embed", receiver, mode=mode)
        assert _mean(found)["embed"] == pytest.approx(share * total, abs=1e-3 * abs(total)), receiver
    through = _patch(model, task, "embed", "logits", through=(HEAD,), mode=mode)
    direct = _patch(model, task, "embed", "logits", mode=mode)
    assert _mean(through)["embed"] == pytest.approx(total, rel=1e-4)
    assert abs(_mean(direct)["embed"]) < 0.9 * abs(total)
    assert through.control("additivity").passed is None and through.verdict == "supported"


def test_a_shared_key_value_head_receives_for_its_group() -> None:
    model = planted.one_head()  # heads 2 and 3 read KV1
    task = planted.pairs(model)
    all_of_it = _patch(model, task, "embed", (f"{HEAD}.q", "L1KV1.k", "L1KV1.v"))
    total = all_of_it.tensors["total"][:, 0].mean()
    last = float(
        _mean(_patch(model, task, "embed", "logits"))["embed"]
    )  # the embedding at the last token itself
    assert _mean(all_of_it)["embed"] == pytest.approx(float(total) - last, rel=1e-3)
    assert abs(_mean(_patch(model, task, "embed", "L1KV0.v"))["embed"]) < 1e-5
    assert all_of_it.verdict == "unchecked"  # no variables declared: no other donors


def test_nothing_is_reported_where_nothing_is_written() -> None:
    model = planted.nothing()
    found = _patch(model, planted.pairs(model), "L*H*.z", "logits")
    assert not np.abs(found.effects.values).max() and found.control("sign_flip").passed is False
    assert found.verdict != "supported"


def test_frozen_divisors_make_additivity_an_identity(model, task) -> None:
    for freeze, gates in (((), False), (("norms",), True)):
        control = _patch(tiny.loaded("llama"), planted.pairs(tiny.loaded("llama")), "L*H*.z", "logits", freeze=freeze).control("additivity")  # fmt: skip
        assert control.gates == gates
        if gates:
            assert control.passed and control.observed["relative gap"] < 1e-5
            assert abs(control.observed["all other writers together"]) > 1e-2


def test_a_fault_in_each_deterministic_control_is_seen(model, task, monkeypatch) -> None:
    clean = _patch(model, task, f"{HEAD}.z", "L2H1.v")
    assert all(clean.control(n).passed for n in ("identity", "receipts", "sums"))
    real = paths.carried
    with monkeypatch.context() as m:
        m.setattr(
            path_runs,
            "carried",
            lambda way, senders: {
                k: v + torch.linspace(0, 1, v.shape[-1]) for k, v in real(way, senders).items()
            },
        )
        leaking = _patch(model, task, f"{HEAD}.z", "logits")
        assert leaking.control("identity").passed is False and leaking.verdict == "invalid"
    with monkeypatch.context() as m:
        call = paths.call_layer
        m.setattr(
            paths,
            "call_layer",
            lambda base, layer, segments, writes, *rest: call(base, layer, segments, [], *rest),
        )
        silent = _patch(model, task, f"{HEAD}.z", "L2H1.v")
        assert silent.control("receipts").passed is False and silent.verdict == "invalid"
    with monkeypatch.context() as m:
        m.setattr(
            path_runs.Prompts if hasattr(path_runs, "Prompts") else Prompts,
            "writes",
            _without_the_head(Prompts.writes),
        )
        short = _patch(model, task, f"{HEAD}.z", "logits")
        assert short.control("sums").passed is False and short.verdict == "invalid"
    with monkeypatch.context() as m:
        m.setattr(path_runs, "logits_read", lambda way, bench, hidden, change: path_runs.logits_of(bench, (hidden + change).flatten(0, 1)))  # fmt: skip
        other = tiny.loaded("llama")
        bent = _patch(other, planted.pairs(other), "L*H*.z", "logits", freeze=("norms",))
        assert bent.control("additivity").passed is False and bent.verdict == "invalid"


def _without_the_head(real):
    def writes(self, graph, *rest):
        out = real(self, graph, *rest).clone()
        out[:, :, graph.writer_number[f"{HEAD}.z"]] = 0
        return out

    return writes


def _many_heads(planted_head: bool):
    hf = tiny.build("llama-mha", hidden_size=44, num_attention_heads=22, num_key_value_heads=22, head_dim=4)
    with torch.no_grad():
        for index, layer in enumerate(hf.model.layers):
            layer.mlp.down_proj.weight.mul_(0.1)
            if planted_head:
                keep = layer.self_attn.o_proj.weight[:, 8:12].clone()
                layer.self_attn.o_proj.weight.mul_(0.01)
                if index == 1:
                    layer.self_attn.o_proj.weight[:, 8:12] = 4 * keep
    return Model(load_module(hf.eval()))


def test_random_senders_of_the_same_kind_and_third() -> None:
    for planted_head, passes in ((True, True), (False, False)):
        model = _many_heads(planted_head)
        task = planted.pairs(model, n=16)
        control = _patch(model, task, f"{HEAD}.z", "logits").control("random_senders")
        assert control.passed is passes and control.n == 21
        every = _patch(model, task, "L*H*.z", "logits").control("random_senders")
        assert "one half" in every.detail and every.n == 21 and (every.passed or not planted_head)


def test_the_strongest_of_a_map_of_noise_does_not_pass_for_having_been_chosen() -> None:
    """Effects of pure noise: chosen and compared on the same prompts, the strongest would always win."""
    model = _many_heads(False)
    graph = graph_of(model.binding)
    asked = Asked("L1H*.z", "logits", (), (), "free")
    senders, found = resolve(graph, model.facts, asked)
    clusters = tuple(f"c{i}" for i in range(40))
    passed = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal((len(senders), 40))
        question = Question(_Clusters(clusters), graph, senders, found)
        passed += bool(path_controls.random_senders(question, None, noise, 0).passed)
    assert passed <= 4


class _Clusters:
    def __init__(self, clusters):
        self.clusters = clusters


@pytest.mark.parametrize(("sender", "receiver", "more", "says"), [
    ("L1H0.z", "L1H2.q", {}, "no receiver sees L1H0.z"),
    ("L2.mlp_out", "L0H1.q", {}, "no receiver sees"),
    (("L0H1.z", "L2H0.z"), "L1H2.q", {}, "no receiver sees L2H0.z"),
    ("L0H1.z", "L1H3.v", {}, "H3 reads KV1, shared with H2.*say L1KV1.v"),
    ("L0H1.z", "L1H9.q", {}, "head"),
    ("L0H1.z", "L1.resid_pre", {}, "is no receiver"),
    ("L0.resid_pre", "L1H2.q", {}, "is no sender"),
    ("L0H1.z@-1", "L1H2.q", {}, "names a position"),
    ((), "L1H2.q", {}, "there is no sender"),
    ("L0H1.z", ("logits", "L1H2.q"), {}, "logits are no receiver beside others"),
    ("L0H1.z", "logits", {"through": ("L7H2",)}, "layer"),
    ("L0H1.z", "logits", {"through": ("L1.attn_out",)}, "is no mediator"),
    ("L0H1.z", "logits", {"through": ("embed",)}, "embed is no mediator"),
    ("L0H1.z", "L1H2.q", {"through": ("L2.mlp",)}, "no path leads through L2.mlp.*after the receivers"),
    ("L1.mlp_out", "logits", {"through": ("L1H2",)}, "no path leads through L1H2.*before a sender"),
    ("L0H1.z", "logits", {"through": ("L1.mlp",), "freeze": ("mlps",)}, "to be frozen"),
    ("L0H1.z", "logits", {"through": "mlps", "freeze": ("mlps",)}, "to be frozen"),
    ("L0H1.z", "logits", {"freeze": ("scales",)}, "'scales' is not a choice"),
    ("L0H1.z", "logits", {"freeze": "norms"}, "is not a choice"),
    ("L0H1.z", "logits", {"downstream": "held"}, "is not a choice"),
])  # fmt: skip
def test_what_cannot_be_asked_says_why(sender, receiver, more, says) -> None:
    model = tiny.loaded("llama")
    with pytest.raises(SiteError, match=f"(?s){says}"):
        _patch(model, planted.pairs(model, n=4), sender, receiver, **more)


def test_a_family_without_a_graph_and_pairs_of_unequal_length_are_refused() -> None:
    model = tiny.loaded("olmo-clip")
    with pytest.raises(SiteError, match="no graph"):
        _patch(model, planted.pairs(model, n=4), "embed", "logits")
    model = tiny.loaded("llama")
    task = planted.pairs(model, n=4)
    short = replace(task.corrupt, ids=tuple(row[:-1] for row in task.corrupt.ids), spans={})
    with pytest.raises(TaskError):
        _patch(model, replace(task, corrupt=short), "embed", "logits")


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_half_precision_passes_the_deterministic_controls(name) -> None:
    model = tiny.loaded(name, None, torch.bfloat16)
    task = planted.pairs(model, n=6)
    for receiver, more in (
        ("logits", {"freeze": ("norms",)}),
        ("L2.mlp", {"through": "all", "freeze": ("norms", "patterns")}),
    ):
        found = _patch(model, task, "L0H*.z", receiver, **more)
        assert all(c.passed for c in found.controls if c.gates), [c for c in found.controls if c.gates]


def test_one_pair_and_several_metrics() -> None:
    model = tiny.loaded("llama")
    one = _patch(model, planted.pairs(model, n=1), "L*H*.z", "logits")
    assert one.verdict == "unchecked" and one.effects.shape == (12, 1, 1)
    several = _patch(model, planted.pairs(model, n=4), ("L*H*.z", "L*.mlp"), ("L2H*.q", "L2.mlp"), through="mlps", metrics=("logit_diff", "kl"), mode="noise")  # fmt: skip
    assert several.effects.dims == ("site", "prompt", "metric") and several.effects.shape == (14, 4, 2)
    assert several.effects.coords["site"][-1] == "L2H3.z"  # in model order; L2.mlp sees it


def test_parts_are_found_by_name() -> None:
    model = tiny.loaded("llama")
    graph = graph_of(model.binding)

    def parts(sender, receiver, through=(), freeze=(), downstream="free"):
        senders, found = resolve(graph, model.facts, Asked(sender, receiver, through, freeze, downstream))
        names = [[graph.writers[w].name for w in some] for some in (senders, found.mediators)]
        return (*names, [graph.readers[r].name for r in found.receivers])

    assert parts("L*H0", "L2KV1.k")[0] == ["L0H0.z", "L1H0.z"]
    assert parts("L0.mlp", "L2.mlp")[::2] == (["L0.mlp_out"], ["L2.ln2_out"])
    assert parts("L1H0", "L2H1.q", "all")[1] == ["L1.mlp_out"]
    assert parts("L0H0", "L2H1.q", "mlps")[1] == ["L0.mlp_out", "L1.mlp_out"]
    assert parts("L0H0", "L2.mlp", "all", ("mlps",))[1] == [f"L{i}H{h}.z" for i in (1, 2) for h in range(4)]
    assert parts("L0H0", "logits", ("L1H*", "L2.mlp"))[1][-1] == "L2.mlp_out"
    ungrouped = tiny.loaded("llama-mha")
    _, found = resolve(
        graph_of(ungrouped.binding), ungrouped.facts, Asked("embed", "L1KV2.k", (), (), "free")
    )
    assert [graph_of(ungrouped.binding).readers[r].name for r in found.receivers] == ["L1H2.k"]


def test_the_query_and_the_title_say_what_was_frozen(model, task) -> None:
    found = _patch(model, task, "embed", f"{HEAD}.v", through="all", freeze=("norms", "patterns"), downstream="frozen", mode="noise")  # fmt: skip
    asked = found.query.parameters
    assert (
        list(asked["freeze"]) == ["norms", "patterns"]
        and asked["downstream"] == "frozen"
        and asked["through"] == "all"
    )
    assert title_of(found) == (f"embed to {HEAD}.v through all heads and MLPs between (frozen on the path: norm divisors, "
                               "patterns of mediating heads; all behind it frozen; corrupt into clean)")  # fmt: skip
    title = found.figure().layout.title.text.replace("</b><br><b>", " ")
    assert "norm divisors" in title and "all behind it frozen" in title
    assert {"receiver", "mediator"} == set(found.tables["parts"]["role"])
