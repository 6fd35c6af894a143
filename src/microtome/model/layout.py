"""Layouts: how a raw tensor of a module becomes a point's tensor, and how an edit goes back.

Every canonical tensor here starts with [batch, pos]; query x key points are kept as [batch, query, head, key] so
that batch and position are always the first two axes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One of a few shapes.

    kind: "flat" [b, s, d] or [b*s, d] · "shared" [1 or b, s, d], one row for all prompts · "heads" [b, s, n*d] · "bshd" · "bhsd" · "fused" [b, s, a*w*d], the slot
    (a0, a1, w0, w1) of groups x width · "columns" [b, s, start:stop] · "square" [b, h, q, k] (+ a sink column) ·
    "repeated" [b, n*r, s, d], every key/value head written r times · "shared_heads" [b, s, 1], one number for all
    n heads (of a norm over all of them together; written by the norm's own tap).
    """

    kind: str = "flat"
    n: int = 0
    d: int = 0
    groups: int = 0
    width: int = 0
    slot: tuple[int, int, int, int] = (0, 0, 0, 0)
    start: int = 0
    stop: int = 0
    repeat: int = 1
    scale: float = 1.0

    def read(self, raw: Tensor, batch: int, pos: int) -> Tensor:
        """The point's tensor: a view of `raw` where possible.

        Shapes: raw as the module has it -> [batch, pos, ...].
        """
        match self.kind:
            case "flat":
                out = raw.reshape(batch, pos, raw.shape[-1])
            case "shared":
                out = raw.expand(batch, pos, raw.shape[-1])
            case "heads" | "bshd":
                out = raw.reshape(batch, pos, self.n, self.d)
            case "shared_heads":
                out = raw.reshape(batch, pos, 1, 1).expand(-1, -1, self.n, 1)
            case "bhsd":
                out = raw.transpose(1, 2)
            case "repeated":
                out = raw[:, :: self.repeat].transpose(1, 2)
            case "columns":
                out = raw.reshape(batch, pos, raw.shape[-1])[..., self.start : self.stop]
            case "fused":
                a0, a1, w0, w1 = self.slot
                whole = raw.reshape(batch, pos, self.groups, self.width, self.d)
                out = whole[:, :, a0:a1, w0:w1].reshape(batch, pos, -1, self.d)
            case "square":
                out = raw.transpose(1, 2)[..., self.start : self.stop or None]
            case _:
                raise ValueError(self.kind)
        return out if self.scale == 1.0 else out * self.scale

    def write(self, raw: Tensor, value: Tensor, batch: int, pos: int) -> Tensor:
        """A new raw tensor in which the point has `value`; the rest of `raw` is kept."""
        if self.scale != 1.0:
            value = value / self.scale
        value = value.to(raw.dtype)
        match self.kind:
            case "shared":
                return value
            case "flat" | "heads" | "bshd":
                return value.reshape(raw.shape)
            case "bhsd":
                return value.transpose(1, 2)
            case "repeated":
                return value.transpose(1, 2).repeat_interleave(self.repeat, dim=1)
            case "columns":
                out = raw.clone()
                out.view(batch, pos, -1)[..., self.start : self.stop] = value
                return out
            case "fused":
                a0, a1, w0, w1 = self.slot
                out = raw.clone()
                whole = out.view(batch, pos, self.groups, self.width, self.d)
                whole[:, :, a0:a1, w0:w1] = value.reshape(batch, pos, a1 - a0, w1 - w0, self.d)
                return out
            case "square":
                out = raw.clone()
                out.transpose(1, 2)[..., self.start : self.stop or None] = value
                return out
            case _:
                raise ValueError(self.kind)
