"""Gradients: against finite differences made through edits, and against autograd through hooks by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from microtome.errors import EditError, SiteError
from microtome.model.tokens import pack
from microtome.points import POINTS
from microtome.trace.edits import Ablate, Edit, Patch, Steer
from microtome.trace.grad import grad
from microtome.trace.run import run

ROWS = tiny.prompts(2, 5)
_W = torch.randn(tiny.VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def metric(logits: Tensor) -> Tensor:
    """A smooth number per prompt that uses every logit of the last two positions."""
    return (torch.log_softmax(logits.double(), -1)[:, -2:] @ _W.to(logits.device)).sum(-1)


def _double(name: str) -> Any:
    return tiny.bound(name, "eager", torch.float64)


def _sites(binding: Any, layer: int) -> list[str]:
    out = [
        p.name
        for p in POINTS.values()
        if p.scope == "stream" and binding.lacking(p.name, None) is None and p.name != "logits"
    ]
    out += [
        f"L{layer}.{p.name}"
        for p in POINTS.values()
        if p.scope == "layer" and binding.lacking(p.name, layer) is None
    ]
    return out


# transformers computes RMSNorms in float32 also in a float64 model: finite differences see that rounding
_FAMILIES = {"gpt2": 1e-6, "gpt_neox": 2e-2, "bloom": 2e-2, "opt": None, "llama": 2e-2, "gemma2": 2e-2, "olmo2": 2e-2, "cohere-qknorm": 2e-2,
             "gpt_oss": None, "falcon-new": 2e-2, "deepseek_v3": None}  # fmt: skip


@pytest.mark.parametrize("name", [n for n, tolerance in _FAMILIES.items() if tolerance])
def test_every_point_against_finite_differences(name: str) -> None:
    """Along a random direction at every place of the point, in float64."""
    binding, tokens = _double(name), pack(ROWS)
    sites = _sites(binding, 1)
    gradient = grad(binding, tokens, metric, sites=sites)
    base = run(binding, tokens, capture=sites)
    tolerance = _FAMILIES[name] or 0
    for seed, site in enumerate(sites):
        value = base[site].double()
        finite = value.abs() < 1e4  # masked scores
        direction = (
            torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            * value.where(finite, 0).abs().mean()
        )
        if site.endswith("pattern"):
            direction = direction * (value > 0)
        step = 1e-4 if tolerance < 1e-3 else 3e-3
        moved = [
            metric(run(binding, tokens, edits=[_shift(site, s * step * direction)]).logits).sum()
            for s in (-1, 1)
        ]
        numeric = float(moved[1] - moved[0]) / (2 * step)
        exact = float((gradient[site].double().nan_to_num() * direction).sum())
        assert exact == pytest.approx(numeric, rel=tolerance, abs=tolerance * 3e-1), site
        assert abs(exact) > 0, site


def _shift(site: str, by: Tensor) -> Edit:
    """Add a tensor of the site's shape, places in the order in which an edit sees them."""
    if POINTS[site.rpartition(".")[2]].square:
        by = by.transpose(1, 2)
    return Edit(site, lambda x: x + by.reshape(x.shape).to(x.dtype))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "deepseek_v3"])
def test_the_stream_against_autograd_by_hand(name: str) -> None:
    binding, hf = tiny.bound(name, "eager"), tiny.model(name, "eager")
    layer = hf.model.layers[1]
    delta = torch.zeros(2, 5, binding.facts.d_model, requires_grad=True)

    def pre(module: Any, args: Any, kwargs: Any) -> Any:
        return (
            ((args[0] + delta, *args[1:]), kwargs)
            if args
            else (args, {**kwargs, "hidden_states": kwargs["hidden_states"] + delta})
        )

    def post(module: Any, args: Any, out: Any) -> Any:
        return (out[0] + delta, *out[1:]) if isinstance(out, tuple) else out + delta

    for point, hook in (
        ("resid_pre", lambda: layer.register_forward_pre_hook(pre, with_kwargs=True)),
        ("resid_post", lambda: layer.register_forward_hook(post)),
    ):
        handle = hook()
        try:
            with torch.enable_grad():
                metric(hf(torch.tensor(ROWS), use_cache=False).logits).sum().backward(inputs=[delta])
        finally:
            handle.remove()
        found = grad(binding, pack(ROWS), metric, sites=[f"L1.{point}"])[f"L1.{point}"]
        torch.testing.assert_close(found, delta.grad, rtol=1e-4, atol=1e-5)
        delta.grad = None


def test_shapes_narrowing_and_numerics() -> None:
    g = grad(tiny.bound("llama"), pack(ROWS), metric, sites=["L*.z", "L1.v", "L1.pattern", "embed"])
    assert g["L1.z"].shape == (2, 5, 4, 8) and g["L1H2.z@-1"].shape == (2, 8)
    assert g["L1.v"].shape == (2, 5, 2, 8) and g["L1.pattern"].shape == (2, 4, 5, 5)
    assert g.numerics["attention"] == "eager" and not g["L1.z"].requires_grad
    assert torch.equal(g["L1.z"][:, :, 2], g["L1H2.z"])
    narrowed = grad(tiny.bound("llama"), pack(ROWS), metric, sites=["L1H2.z"], attention="eager")
    torch.testing.assert_close(narrowed["L1H2.z"], g["L1H2.z"])
    base = run(tiny.bound("llama"), pack(ROWS), attention="eager")
    torch.testing.assert_close(g.logits, base.logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
def test_a_prompt_alone_batched_or_padded_has_the_same_gradient(name: str) -> None:
    rows = tiny.ragged([6, 3, 4])
    binding = tiny.bound(name)
    sites = ["L1.z", "L0.resid_post", "L2.mlp_out", "L1.pattern", "embed", "L1.v"]

    def last(tokens: Any) -> Any:
        cols = [tokens.column(i, n - 1) for i, n in enumerate(tokens.lengths)]
        return lambda logits: torch.stack(
            [logits[i, c].log_softmax(-1)[7] - logits[i, c, 9] for i, c in enumerate(cols)]
        )

    alone = [grad(binding, pack([row]), last(pack([row])), sites=sites) for row in rows]
    for padding in ("right", "left"):
        tokens = pack(rows, padding=padding)  # type: ignore[arg-type]
        together = grad(binding, tokens, last(tokens), sites=sites)
        for i in range(3):
            own = tokens.mask[i]
            for site in sites:
                value = together[site][i]
                value = value[:, own][..., own] if site.endswith("pattern") else value[own]
                torch.testing.assert_close(value, alone[i][site][0], rtol=1e-4, atol=1e-5)


def test_the_gradient_at_an_edited_site_is_that_of_the_edited_value() -> None:
    binding, tokens = _double("gpt2"), pack(ROWS)
    donor = run(binding, pack(tiny.prompts(2, 5, seed=1)), capture=["L1.z", "L1.head_out", "L0.mlp_out"])
    edits = [Patch("L1.z@-1", donor)]
    g = grad(binding, tokens, metric, sites=["L1.z", "L0.resid_post"], edits=edits)
    value = run(binding, tokens, capture=["L1.z"], edits=edits)["L1.z"]
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = [
        metric(run(binding, tokens, edits=[*edits, _shift("L1.z", s * 1e-4 * direction)]).logits).sum()
        for s in (-1, 1)
    ]
    assert float((g["L1.z"] * direction).sum()) == pytest.approx(float(moved[1] - moved[0]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize(
    "edits",
    [
        lambda d: [Patch("L1.z@-1", d)], lambda d: [Ablate("L1H2.head_out")], lambda d: [Patch("L1.head_out", d)], lambda d: [Ablate("L1.ln2_out@2")],
        lambda d: [Edit("L1.ln1_scale", lambda x: 2 * x)], lambda d: [Ablate("L1.k@1:3"), Ablate("L1.v@0")], lambda d: [Edit("L1.pattern@-1", lambda x: x * 0)],
        lambda d: [Patch("L1.resid_mid@1", d)], lambda d: [Steer("L1.resid_pre", torch.arange(24.0, dtype=torch.float64), 0.1)], lambda d: [Patch("L1.ln2_scale", d)],
        lambda d: [Ablate("L1.mlp_pre@0:3"), Edit("L1.scores@-1<-2", lambda x: x - 1)], lambda d: [Edit("L1.mlp_out", lambda x: x * x)],
    ],
)  # fmt: skip
def test_what_an_edit_cuts_off_is_cut_off_in_the_gradient_too(edits: Any) -> None:
    """Finite differences upstream of an edit, with the edit in force."""
    binding, tokens = _double("gpt2"), pack(ROWS)
    sites = ["L1.z", "L1.head_out", "L0.mlp_out", "L1.resid_mid", "L1.ln2_scale"]
    donor = run(binding, pack(tiny.prompts(2, 5, seed=1)), capture=sites)
    donor = (
        donor
        if "pattern" not in str(edits(donor))
        else run(binding, pack(tiny.prompts(2, 5, seed=1)), capture=[*sites, "L0.pattern"])
    )
    made = edits(donor)
    eager = "eager"
    upstream = (
        ["L0.resid_post", "L0.z", "L1.resid_mid"]
        if "resid_mid" not in str(made[0])
        else ["L0.resid_post", "L0.z"]
    )
    g = grad(binding, tokens, metric, sites=upstream, edits=made, attention=eager)
    base = run(binding, tokens, capture=upstream, attention=eager)
    for seed, site in enumerate(upstream):
        direction = torch.randn(
            base[site].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        moved = [
            metric(
                run(
                    binding, tokens, edits=[_shift(site, s * 1e-4 * direction), *made], attention=eager
                ).logits
            ).sum()
            for s in (-1, 1)
        ]
        assert float((g[site] * direction).sum()) == pytest.approx(
            float(moved[1] - moved[0]) / 2e-4, rel=1e-5, abs=1e-7
        ), site


def test_parameters_and_grad_mode_are_put_back() -> None:
    hf = tiny.build("llama")
    for p in list(hf.parameters())[::2]:
        p.requires_grad_(False)
    before = [p.requires_grad for p in hf.parameters()]
    from microtome.model.binding import bind

    binding = bind(hf)
    grad(binding, pack(ROWS), metric, sites=["L1.z"])
    assert [p.requires_grad for p in hf.parameters()] == before and all(
        p.grad is None for p in hf.parameters()
    )
    with pytest.raises(ZeroDivisionError):
        grad(binding, pack(ROWS), lambda logits: 1 / 0, sites=["L1.z"])  # type: ignore[arg-type, return-value]
    assert [p.requires_grad for p in hf.parameters()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    with torch.no_grad():
        assert grad(binding, pack(ROWS), metric, sites=["L1.z"])["L1.z"].abs().max() > 0
    with torch.inference_mode():
        assert grad(binding, pack(ROWS), metric, sites=["L1.z"])["L1.z"].abs().max() > 0


def test_what_cannot_be_differentiated_is_refused() -> None:
    binding, tokens = tiny.bound("llama"), pack(ROWS)
    with pytest.raises(EditError, match="does not depend"):
        grad(binding, tokens, lambda logits: torch.ones(2, requires_grad=True), sites=["L1.z"])
    with pytest.raises(EditError, match="does not depend"):
        grad(binding, tokens, lambda logits: torch.ones(2), sites=["L1.z"])
    with pytest.raises(EditError, match="not finite"):
        grad(binding, tokens, lambda logits: logits[:, -1, 5] * float("nan"), sites=["L1.z"])
    with pytest.raises(SiteError, match="no point called"):
        grad(binding, tokens, metric, sites=["L1.zz"])
    with pytest.raises(SiteError, match="no sites"):
        grad(binding, tokens, metric, sites=[])


def test_positions_that_the_metric_does_not_see_have_gradient_zero() -> None:
    g = grad(
        tiny.bound("llama"),
        pack(ROWS),
        lambda logits: logits[:, 1, 5],
        sites=["L1.resid_post", "L2.q", "embed"],
    )
    assert not g["L1.resid_post"][:, 2:].any() and g["L1.resid_post"][:, :2].any()
    assert not g["L2.q"][:, 2:].any() and not g["embed"][:, 2:].any()
    assert not g["L2.q"][:, 0].any()  # one key only: its pattern is 1 whatever the query


def test_before_and_after_an_edit_are_two_gradients() -> None:
    binding, tokens = _double("gpt2"), pack(ROWS)
    edits = [Edit("L1.mlp_out", lambda x: 3 * x)]
    g = grad(binding, tokens, metric, sites=["L1.mlp_out", "L1.mlp_out!before"], edits=edits)
    torch.testing.assert_close(g["L1.mlp_out!before"], 3 * g["L1.mlp_out"])
    unedited = grad(binding, tokens, metric, sites=["L1.mlp_out!before", "L1.mlp_out"])
    torch.testing.assert_close(unedited["L1.mlp_out!before"], unedited["L1.mlp_out"])
    alone = grad(binding, tokens, metric, sites=["L1.mlp_out!before"])
    torch.testing.assert_close(alone["L1.mlp_out!before"], unedited["L1.mlp_out"])
