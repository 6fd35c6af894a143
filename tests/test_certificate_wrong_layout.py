"""The wrong layout fails: each fault is planted in the binding (or the model) and a named check must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from microtome.certificate import certify
from microtome.certificate.bench import row
from microtome.certificate.issue import inside
from microtome.errors import ModelError
from microtome.model import taps as where
from microtome.model.binding import Binding, bind
from microtome.model.family import Fused, concatenated, grouped, interleaved
from microtome.model.layout import Layout
from microtome.model.taps import Tap, projection

Fault = Callable[[Binding], None]


@dataclass(frozen=True)
class Transposed(Layout):
    """Heads and d_head exchanged, in reading and writing."""

    def read(self, raw: Tensor, batch: int, pos: int) -> Tensor:
        return raw.reshape(batch, pos, self.d, self.n).transpose(-1, -2)

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return value.transpose(-1, -2).reshape(raw.shape)


@dataclass(frozen=True)
class Crossed(Layout):
    """The same where the two are equal, on top of any layout."""

    def read(self, raw: Tensor, batch: int, pos: int) -> Tensor:
        return super().read(raw, batch, pos).transpose(-1, -2)

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return super().write(raw, value.transpose(-1, -2), batch, pos)


@dataclass(frozen=True)
class Turned(Layout):
    """The heads in another order."""

    def read(self, raw: Tensor, batch: int, pos: int) -> Tensor:
        return super().read(raw, batch, pos).flip(2)

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return super().write(raw, value.flip(2), batch, pos)


@dataclass(frozen=True)
class Deaf(Layout):
    """Reads well, loses what is written."""

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        return raw.clone()


@dataclass(frozen=True)
class Shifted(Layout):
    """Reads well, writes the head beside the one that was meant."""

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        old = self.read(raw, batch, pos)
        return super().write(raw, old + (value - old).roll(1, 2), batch, pos)


def _as(kind: type[Layout], tap: Tap) -> Tap:
    layout = kind(**vars(tap.layout))
    return replace(tap, layout=layout)


def taps(change: Callable[[Tap], Tap], *points: str) -> Fault:
    """Touch these points elsewhere."""

    def fault(binding: Binding) -> None:
        original = binding._place

        def place(point: str, layer: int | None) -> Tap:
            tap = original(point, layer)
            return change(tap) if point in points else tap

        binding._place = place  # type: ignore[method-assign]

    return fault


def at(part: str, how: str, *points: str) -> Fault:
    """Touch these points at another module of the same layer."""

    def fault(binding: Binding) -> None:
        taps(
            lambda t: Tap(t.point, t.layer, how, binding.slots[t.layer or 0].at(part) or "", t.layout),
            *points,
        )(binding)

    return fault


def next_layer(*points: str) -> Fault:
    """Touch these points one layer too high (the last layer at itself)."""

    def fault(binding: Binding) -> None:
        original = binding._place

        def place(point: str, layer: int | None) -> Tap:
            if point in points and layer is not None:
                return replace(original(point, min(layer + 1, len(binding.slots) - 1)), layer=layer)
            return original(point, layer)

        binding._place = place  # type: ignore[method-assign]

    return fault


def slots(**changes: Any) -> Fault:
    """Other semantics of the block."""

    def fault(binding: Binding) -> None:
        binding.slots = [
            replace(s, block=replace(s.block, **{k: v(s) if callable(v) else v for k, v in changes.items()}))
            for s in binding.slots
        ]

    return fault


def family(**changes: Any) -> Fault:
    """Other semantics of the model."""

    def fault(binding: Binding) -> None:
        binding.family = replace(binding.family, **changes)

    return fault


def swap(one: str, other: str) -> Fault:
    """Exchange two module paths, for taps and weights alike."""

    def fault(binding: Binding) -> None:
        binding.slots = [
            replace(s, paths={**s.paths, one: s.paths[other], other: s.paths[one]}) for s in binding.slots
        ]

    return fault


def eps(binding: Binding) -> None:
    """A norm with another eps."""
    for s in binding.slots:
        path = s.at("ln1") or ""
        binding._norms[path] = replace(binding.norm(path), eps=0.05)


def no_centre(binding: Binding) -> None:
    """A LayerNorm read as an RMSNorm."""
    for s in binding.slots:
        path = s.at("ln2") or ""
        binding._norms[path] = replace(binding.norm(path), centred=False)


def _exchanged(s: Any) -> Fused:
    f = s.block.fused
    return replace(f, q=f.k, k=f.q)


_FAULTS: list[tuple[str, str, Fault, str]] = [
    ("queries and keys exchanged in the tap", "gpt2", taps(lambda t: replace(t, layout=replace(t.layout, slot=(4, 8, 0, 1))), "q_pre"), "projections"),
    ("queries and keys exchanged in the family's row", "gpt2", slots(fused=_exchanged), "rotary"),
    ("the same where positions rotate", "gpt_neox", slots(fused=_exchanged), "rotary"),
    ("the same off the registry", "bloom", slots(fused=_exchanged), "scores"),
    ("the same in a group", "falcon-mha", slots(fused=_exchanged), "rotary"),
    ("queries and keys exchanged as modules", "llama-mha", swap("q", "k"), "rotary"),
    ("queries and keys exchanged as used", "llama-mha", taps(lambda t: replace(t, how=where.KEY, layout=Layout("bhsd")), "q"), "rotary"),
    ("values taken for keys", "llama", taps(lambda t: replace(t, how=where.CACHE_V), "k"), "rotary"),
    ("keys before rotary taken for keys as used", "llama", lambda b: taps(lambda t: projection("k", b.slots[t.layer or 0]) and Tap(t.point, t.layer, where.OUTPUT, *projection("k", b.slots[t.layer or 0])), "k")(b), "scores"),
    ("interleaved read as concatenated", "gpt_neox", slots(fused=concatenated(4, 4)), "rotary"),
    ("concatenated read as interleaved", "gpt2", slots(fused=interleaved(4)), "rotary"),
    ("concatenated read as grouped", "phi3", slots(fused=grouped(2, 2)), "rotary"),
    ("grouped read as concatenated", "falcon-new", slots(fused=concatenated(4, 2)), "rotary"),
    ("heads and d_head exchanged", "llama", taps(lambda t: _as(Transposed, t), "z"), "heads"),
    ("heads and d_head exchanged where they are equal", "llama-equal", taps(lambda t: _as(Transposed, t), "z"), "heads"),
    ("heads and d_head exchanged in queries", "gpt2-equal", taps(lambda t: _as(Crossed, t), "q_pre"), "projections"),
    ("key/value heads in another order", "llama", taps(lambda t: _as(Turned, t), "v"), "pattern @ v"),
    ("key/value heads in another order, for keys", "gemma2-equal", taps(lambda t: _as(Turned, t), "k"), "scores"),
    ("repeated key/value heads read as they lie", "falcon-new", slots(kv_repeat=1), "captures"),
    ("attention's output before its post-norm", "gemma2", at("o", where.OUTPUT, "attn_out"), "residual sum"),
    ("the MLP's output before its post-norm", "gemma2-equal", at("out", where.OUTPUT, "mlp_out"), "residual sum"),
    ("attention's output before its norm", "olmo2", at("o", where.OUTPUT, "attn_out"), "residual sum"),
    ("a residual multiplier forgotten", "granite", slots(attn_scale=1.0, mlp_scale=1.0), "residual sum"),
    ("a residual multiplier for raw and out alike", "granite", taps(lambda t: replace(t, layout=Layout(scale=0.4)), "attn_raw"), "outputs"),
    ("an embedding multiplier forgotten", "granite", family(embed_scale=lambda c: 1.0), "embedding"),
    ("a logit scale forgotten", "cohere", family(logit_scale=lambda c: 1.0), "readout"),
    ("a final softcap forgotten", "gemma2", family(softcap=lambda c: None), "readout"),
    ("ln2_out read at ln1", "llama", at("attn", where.INPUT, "ln2_out"), "norms"),
    ("ln1_out read before the norm", "gpt2", at("ln1", where.INPUT, "ln1_out"), "norms"),
    ("an eps that is not the norm's", "llama", eps, "norms"),
    ("a LayerNorm taken for an RMSNorm", "gpt2", no_centre, "norms"),
    ("a divisor of the other norm", "llama", at("ln2", where.NORM, "ln1_scale"), "scales"),
    ("outputs of the next layer", "llama", next_layer("attn_out"), "residual sum"),
    ("patterns of the next layer", "gpt2", next_layer("pattern"), "pattern"),
    ("MLP inputs of the next layer", "llama", next_layer("mlp_pre"), "projections"),
    ("the stream of the next layer", "llama", next_layer("resid_post"), "stream"),
    ("the stream one layer late", "gemma2", next_layer("resid_pre"), "stream"),
    ("pre-activation and gate exchanged", "llama", swap("up", "gate"), "edits land"),
    ("a fused gate and pre-activation exchanged", "phi3", taps(lambda t: replace(t, layout=replace(t.layout, start=(t.layout.start + 40) % 80, stop=(t.layout.start + 40) % 80 + 40)), "mlp_pre", "mlp_gate"), "projections"),
    ("neurons before the gate", "llama", at("gate", where.OUTPUT, "neurons"), "neurons"),
    ("neurons before the activation", "gpt2", at("up", where.OUTPUT, "neurons"), "neurons"),
    ("scores in place of the pattern", "llama", taps(lambda t: replace(t, how=where.SCORES), "pattern"), "pattern"),
    ("the final norm's input in place of its output", "gpt2", taps(lambda t: replace(t, how=where.INPUT), "final_norm_out"), "readout"),
    ("a write that is lost", "llama", taps(lambda t: _as(Deaf, t), "z"), "writes"),
    ("a write into the next head", "llama", taps(lambda t: _as(Shifted, t), "z"), "edits land"),
    ("a write into the next key/value head", "llama", taps(lambda t: _as(Shifted, t), "v"), "edits land"),
    ("a write into the next head of a fused projection", "gpt_neox", taps(lambda t: _as(Shifted, t), "q_pre"), "edits land"),
    ("a middle of the stream that only the MLP sees", "llama", taps(lambda t: replace(t, how=where.INPUT), "resid_mid"), "edits land"),
    ("a cache edit in place of a query edit", "gpt_oss", taps(lambda t: replace(t, how=where.KEY, layout=Layout("bhsd")), "q"), "captures"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fault", "check"), [f[1:] for f in _FAULTS], ids=[f"{f[1]}: {f[0]}" for f in _FAULTS]
)
def test_a_wrong_layout_fails(name: str, fault: Fault, check: str) -> None:
    binding = bind(tiny.model(name))
    fault(binding)
    with torch.no_grad():
        bench = inside(binding)
    failed = {n for n, found in bench.found.items() if found.bad}
    assert check in failed, {n: f.worst for n, f in bench.found.items()}
    assert "fails at" in row(bench, check, "").detail
    assert bench.failures


def test_every_identity_has_a_fault_that_it_finds() -> None:
    """A check that never fails is a defect."""
    from microtome.certificate.identities import WHY

    behaviour = {"captures", "writes", "edits land"}
    assert set(WHY) | behaviour == {f[3] for f in _FAULTS}


def test_a_fault_in_an_unknown_family_withdraws_the_point_and_nothing_else() -> None:
    for name, fault, point in (
        ("vaultgemma", taps(lambda t: _as(Turned, t), "q_pre"), "q_pre"),
        ("nemotron", next_layer("mlp_pre"), "mlp_pre"),
        ("nemotron", taps(lambda t: _as(Deaf, t), "z"), "z"),
    ):
        plain, _ = tiny.certified(name)
        faulty = bind(tiny.model(name))
        fault(faulty)
        certificate = certify(faulty, withdraw=True)
        assert certificate.passed, certificate.failed
        lost = [
            set(a.lacks) - set(b.lacks) for a, b in zip(faulty.facts.layers, plain.facts.layers, strict=True)
        ]
        assert set().union(*lost) == {point}, (name, lost)
        assert "certificate" in next(
            layer.lacks[point] for layer in faulty.facts.layers if point in layer.lacks
        )


def test_a_stream_that_is_not_found_is_a_model_error() -> None:
    binding = bind(tiny.model("nemotron"))
    next_layer("resid_post")(binding)
    with pytest.raises(ModelError, match="residual stream"):
        certify(binding, withdraw=True)


def test_outputs_that_do_not_add_up_are_said_not_to() -> None:
    binding = bind(tiny.model("granitemoe"))
    binding.slots = [replace(s, block=replace(s.block, attn_scale=1.0)) for s in binding.slots]
    certificate = certify(binding, withdraw=True)
    assert certificate.passed and not binding.facts.additive
    assert "attn_out" in binding.facts.not_additive and "certificate" in binding.facts.not_additive
    assert {"attn_out"} == {lack.point for lack in certificate.lacks if "withdrawn" in lack.reason}


# faults of the model or of the machinery, not of the layout ------------------------------------------------------------


def _leaky(args: Any, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda h: h + 0.1 * h.flip(1), {"causal"}),
        (lambda h: h + 0.1 * h.mean(0, keepdim=True), {"rows, padded right", "rows, padded left"}),
        (lambda h: h + 0.1 * h.mean(1, keepdim=True), {"causal", "rows, padded right", "generation"}),
    ],
    ids=["looks ahead", "mixes prompts", "mixes positions"],
)
def test_a_model_that_leaks_fails(change: Callable[[Tensor], Tensor], failing: set[str]) -> None:
    hf = tiny.build("llama")
    hf.model.layers[1].register_forward_hook(lambda m, a, o: _leaky(a, o, change))
    certificate = certify(bind(hf))
    assert failing <= {c.name for c in certificate.failed}


def test_a_cache_that_loses_a_token_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.trace.session import Session

    original = Session.cached

    def late(self: Session, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key, value = original(self, layer, key, value)
        return key, value * 0 if self.frame.start else value

    monkeypatch.setattr(Session, "cached", late)
    assert {c.name for c in certify(bind(tiny.model("llama"))).failed} == {"generation"}


def test_a_seam_that_is_not_the_family_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from microtome.trace import seam

    original = seam._delegate

    def wrong(implementation: str, module: Any) -> Any:
        call = original(implementation, module)
        return lambda *args, **kwargs: call(*args, **{**kwargs, "scaling": 1.1 * kwargs["scaling"]})

    monkeypatch.setattr(seam, "_delegate", wrong)
    assert "parity" in {c.name for c in certify(bind(tiny.model("llama"))).failed}


def test_a_part_of_the_stream_without_a_name_fails() -> None:
    hf = tiny.build("llama")
    hf.model.layers[1].register_forward_hook(lambda m, a, o: _leaky(a, o, lambda h: h + 1.0))
    failed = {c.name for c in certify(bind(hf)).failed}
    assert {"total", "residual sum"} & failed or "stream" in failed


def test_a_replay_that_is_not_exact_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import microtome.replay.check as check

    monkeypatch.setattr(check, "replay_error", lambda binding, ids: 1e-3)
    assert {c.name for c in certify(bind(tiny.model("gpt2"))).failed} == {"replay"}


def test_without_an_engine_replay_is_said_not_to_have_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "microtome.replay.check", None)
    certificate = certify(bind(tiny.model("gpt2")))
    assert certificate.passed and certificate.check("replay").passed is None
    assert ("replay", "did not run") in {row[:2] for row in certificate.table()}


def test_modules_that_run_twice_are_refused() -> None:
    hf = tiny.build("seed_oss")
    hf.model.layers[2].mlp = hf.model.layers[0].mlp
    binding = bind(hf)
    certificate = certify(binding, withdraw=True)
    assert certificate.passed
    assert "runs 2 times" in binding.facts.layers[0].lacks["mlp_out"]
    assert "mlp_out" not in binding.facts.layers[1].lacks
    assert torch.is_grad_enabled()
