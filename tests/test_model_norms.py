"""A norm is read off its module by probing; whatever is neither LayerNorm nor RMSNorm is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tiny
from microtome.errors import ModelError, SiteError
from microtome.model.binding import bind
from microtome.model.norms import probe
from microtome.model.tokens import pack
from microtome.trace.run import run


class _Root(nn.Module):
    """RMSNorm with a gain of 1 + w, in float32 whatever the input."""

    def __init__(self, d: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = (
            nn.Parameter(torch.randn(d, generator=torch.Generator().manual_seed(0))),
            eps,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return (y * (1 + self.weight.float())).to(x.dtype)


class _Other(nn.Module):
    """Divides by the largest entry."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True) * self.weight


class _Gated(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


def _layer_norm(d: int, **kw: object) -> nn.LayerNorm:
    norm = nn.LayerNorm(d, **kw)  # type: ignore[arg-type]
    gen = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in norm.parameters():
            p.add_(0.5 * torch.randn(d, generator=gen))
    return norm


@pytest.mark.parametrize("d", [2, 3, 7, 24, 576, 4097])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [_layer_norm, _Root])
def test_the_probed_numbers_are_the_modules(make: type[nn.Module], d: int, dtype: torch.dtype) -> None:
    if d <= 2 and make is _layer_norm:
        return  # two centred numbers are always the same two
    module = make(d).to(dtype)
    norm = probe(module, (d,), "norm")
    assert norm.centred == (make is _layer_norm)
    assert norm.gain.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(3, d, generator=torch.Generator().manual_seed(2)).to(dtype)
    made = norm.linear(x.to(norm.gain.dtype), norm.scale(x)) + norm.bias
    close = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float64: 1e-5}[dtype]
    torch.testing.assert_close(made, module(x).to(made.dtype), rtol=close, atol=close)


def test_gains_of_a_half_precision_norm_are_exact() -> None:
    module = _layer_norm(64).to(torch.bfloat16)
    norm = probe(module, (64,), "norm")
    torch.testing.assert_close(norm.gain, module.weight.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(norm.bias, module.bias.float(), rtol=1e-6, atol=1e-6)


def test_a_gain_of_zero_and_a_negative_gain_are_found() -> None:
    module = _layer_norm(8)
    with torch.no_grad():
        module.weight[:2] = torch.tensor([0.0, -1.5])
    assert probe(module, (8,), "norm").gain[:2].tolist() == pytest.approx([0.0, -1.5], abs=1e-6)


def test_a_norm_without_parameters_and_one_with_a_gain_per_head() -> None:
    bare = nn.LayerNorm(8, elementwise_affine=False)
    assert torch.allclose(probe(bare, (8,), "norm").gain, torch.ones(8))
    hf = tiny.bound("cohere-qknorm")
    assert hf.norm(hf.slots[1].at("q_norm") or "").gain.shape == (4, 8)


@pytest.mark.parametrize(
    "module",
    [_Other(8), _Gated(8), nn.Sequential(nn.LayerNorm(8)), nn.Linear(8, 8), nn.Identity(), nn.Tanh()],
)
def test_what_is_no_norm_is_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match="neither a LayerNorm nor an RMSNorm"):
        probe(module, (8,), "model.norm")


def test_a_model_with_another_norm_loses_its_scale_and_keeps_the_rest() -> None:
    hf = tiny.build("llama")
    hf.model.layers[1].input_layernorm = _Other(24).eval()
    binding = bind(hf)
    lacks = [set(layer.lacks) for layer in binding.facts.layers]
    assert lacks[1] - lacks[0] == {"ln1_scale"} and lacks[0] == lacks[2]
    with pytest.raises(SiteError, match=r"no L1\.ln1_scale"):
        run(binding, pack([[3, 4]]), capture=["L1.ln1_scale"])
    assert run(binding, pack([[3, 4]]), capture=["L*.ln1_scale", "L1.ln1_out"])["L1.ln1_out"].isfinite().all()


def test_probing_leaves_the_module_alone() -> None:
    module = _layer_norm(8).to(torch.float16)
    before = module.weight.clone()
    probe(module, (8,), "norm")
    assert (
        module.weight.dtype == torch.float16
        and torch.equal(module.weight, before)
        and module.weight.grad is None
    )
