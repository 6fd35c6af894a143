"""A norm as numbers: kind, eps, effective gain and bias, found by probing the module, never by its class name.

This is the one recomputation the design permits: a norm with a frozen scale. The probe certifies it against the
module, so a norm that is neither LayerNorm nor RMSNorm is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from microtome.errors import ModelError

_EPS_NAMES = ("eps", "variance_epsilon", "norm_eps", "epsilon")


@dataclass(frozen=True)
class Norm:
    """out = (x - mean(x) if centred) / scale * gain + bias, with scale the root of variance or mean square + eps.

    Shapes: gain, bias [d], or [head, d] where each head has its own.
    """

    centred: bool
    eps: float
    gain: Tensor
    bias: Tensor

    def scale(self, x: Tensor) -> Tensor:
        """The divisor, eps included. Shapes: [..., d] -> [..., 1], in the dtype of the stream's float32."""
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(self, x: Tensor, scale: Tensor) -> Tensor:
        """The norm with a frozen scale and without its bias: linear in x. Shapes: [..., d], [..., 1] -> [..., d]."""
        gain = self.gain.to(x.dtype)
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x / scale.to(x.dtype) * gain


@dataclass(frozen=True)
class NoNorm(Norm):
    """Where a model has no norm: nothing is divided, so that what freezes a norm's scale works there too."""

    def scale(self, x: Tensor) -> Tensor:
        """Ones. Shapes: [..., d] -> [..., 1]."""
        return torch.ones_like(x[..., :1])


def no_norm(like: Tensor) -> NoNorm:
    """The identity as a norm. Shapes: like [d], of the stream's dtype and device."""
    return NoNorm(False, 0.0, torch.ones_like(like), torch.zeros_like(like))


def probe(module: nn.Module, width: tuple[int, ...], name: str) -> Norm:
    """Read a norm's numbers off a double-precision copy of the module by calling it on four fixed vectors.

    Shapes: width [d], or [head, d] for a norm with a gain per head.

    Raises
    ------
    ModelError: it is neither a LayerNorm nor an RMSNorm over its last axis.
    """
    if next(module.children(), None) is not None:
        raise _not_a_norm(name, "it is several norms in one module")
    weight = next((p for p in module.parameters(recurse=False)), None)
    device = weight.device if weight is not None else torch.device("cpu")
    dtype = weight.dtype if weight is not None else torch.float32
    twin = copy.deepcopy(module).double()
    gen = torch.Generator().manual_seed(0)
    signs = 1 - 2 * (
        torch.arange(width[-1]) % 2
    )  # far from 0 also when centred: the gain is found by division
    x = ((1 + torch.rand(width, generator=gen)) * signs).to(device=device, dtype=torch.float64)
    y = (torch.randn(width, generator=gen) * 3).to(x)
    eps = next((float(getattr(module, n)) for n in _EPS_NAMES if hasattr(module, n)), 1e-5)
    try:
        with torch.no_grad():
            out_x, out_y, bias, shifted = (
                twin(v[None, None])[0, 0] for v in (x, y, torch.zeros_like(x), x + 10)
            )
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _not_a_norm(name, f"calling it on one vector fails: {error}") from None
    centred = bool((shifted - out_x).abs().max() < 0.05 * out_x.abs().max().clamp_min(1e-6))
    blank = Norm(centred, eps, torch.ones_like(x), torch.zeros_like(x))
    norm = Norm(centred, eps, (out_x - bias) / blank.linear(x, blank.scale(x)), bias)
    off = (norm.linear(y, norm.scale(y)) + bias - out_y).abs().max()
    if not off <= 1e-4 * (1 + out_y.abs().max()):
        raise _not_a_norm(name, f"recomputing it from its own numbers is off by {float(off):.2g}")
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return Norm(centred, eps, norm.gain.to(kept), norm.bias.to(kept))


def _not_a_norm(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} is neither a LayerNorm nor an RMSNorm",
        why=why,
        instead="its scale and anything that freezes it are refused; the other points work",
    )
