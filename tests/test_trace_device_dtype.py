"""Half precision, and CUDA where there is one: the same meaning, device and dtype of the model, nothing assumed."""

from __future__ import annotations

import pytest
import torch

import planted
import tiny
from microtome import methods
from microtome.facade import Model
from microtome.metrics import metric, scoring
from microtome.model.load import load_module
from microtome.model.tokens import pack
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts, Zero
from microtome.replay.sweep import Bench, sweep
from microtome.sites import At, parse
from microtome.trace.edits import Patch, Steer
from microtome.trace.run import run

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@pytest.fixture(scope="module", params=[(d, t) for d in DEVICES for t in ROUNDING], ids=str)
def model(request) -> Model:
    device, dtype = request.param
    hf = tiny.build("llama").to(device=device, dtype=dtype).eval()
    return Model(load_module(hf))


def _scale(model: Model) -> float:
    return ROUNDING[next(model.hf.parameters()).dtype]


def test_captures_are_on_the_models_device_in_its_dtype(model) -> None:
    weight = next(model.hf.parameters())
    t = model.run(tiny.prompts(2, 6), ["L*.resid_pre", "L1.pattern", "L1H1.z@-1"])
    for site in ("L1.resid_pre", "L1.pattern", "L1H1.z@-1"):
        assert t[site].device.type == weight.device.type, site
    assert t["L1.resid_pre"].dtype == t["L1H1.z@-1"].dtype == weight.dtype
    assert t["L1.pattern"].dtype == torch.float32  # the family's own softmax leaves in float32
    assert t.numerics["dtype"] == str(weight.dtype).removeprefix("torch.")


def test_logits_are_the_modules_own_to_the_bit(model) -> None:
    ids = torch.tensor(tiny.prompts(2, 6), device=next(model.hf.parameters()).device)
    with torch.no_grad():
        plain = model.hf(ids).logits
    assert torch.equal(model.run(ids.tolist(), ["L*.resid_mid"]).logits, plain)


def test_the_stream_adds_up_within_the_rounding_of_the_type(model) -> None:
    t = model.run(tiny.prompts(2, 6), ["L1.resid_pre", "L1.attn_out", "L1.mlp_out", "L1.resid_post"])
    total = t["L1.resid_pre"].float() + t["L1.attn_out"].float() + t["L1.mlp_out"].float()
    size = float(t["L1.resid_post"].float().abs().max())
    assert float((total - t["L1.resid_post"].float()).abs().max()) <= _scale(model) * size


def test_a_sweep_equals_whole_edited_runs_within_the_rounding_of_the_type(model) -> None:
    ids, donor = tiny.prompts(2, 7), tiny.prompts(2, 7, seed=1)
    bench = Bench(model.binding, ids, scoring([((5,),)] * 2, [((6,),)] * 2), (metric("logit_diff"),))
    sites = ["L0.resid_pre@3", "L1.attn_out@-1", "L1H1.z@4", "L1.mlp_out@2"]
    parsed = [parse(s) for s in sites]
    cells = [Cell((Change(s.bare, s.at),)) for s in parsed]
    out = sweep(bench, cells, {"donor": Prompts(donor)})
    trace = run(model.binding, pack(donor), capture=parsed, logits=None)
    for number, site in enumerate(parsed):
        logits = run(model.binding, pack(ids), edits=[Patch(site, trace)]).raw_logits[:, -1].double().cpu()
        expected = logits[:, 5] - logits[:, 6] - out.base[:, 0]
        size = max(1.0, float(logits.abs().max()))
        assert torch.allclose(out.effects[number, :, 0], expected, atol=4 * _scale(model) * size), site


def test_edits_and_generation_run_where_the_model_is(model) -> None:
    d = model.facts.d_model
    steer = Steer("L1.resid_post", torch.ones(d), 3.0)
    edited = model.generate(tiny.prompts(2, 5), edits=[steer], when="both", max_new_tokens=4)
    assert edited.receipts[0].places >= 2 * 5 and bool(torch.isfinite(edited.logits).all())
    zeroed = sweep(
        Bench(model.binding, tiny.prompts(2, 5), scoring([((5,),)] * 2, [((6,),)] * 2), (metric("logit_diff"),)),
        [Cell((Change(parse("L1H1.z"), At(-1, single=True), "zero"),))],
        {"zero": Zero()},
    )  # fmt: skip
    assert torch.isfinite(zeroed.effects).all()


def test_a_method_names_its_numerics(model) -> None:
    task = planted.pairs(model, n=4)
    r = methods.activation_patching(model, task, sites="L*.mlp_out", positions="all", controls="none", seed=0)
    weight = next(model.hf.parameters())
    assert r.query.numerics["dtype"] == str(weight.dtype).removeprefix("torch.")
    assert r.query.numerics["device"] == weight.device.type
