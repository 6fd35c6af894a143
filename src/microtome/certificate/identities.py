"""The identities that hold in every transformer, written against names only.

Each compares a point as the model computed it (`v.before`, the value before any edit at that point) with the same
thing recomputed from points upstream as they are after their edits. On an unedited run this checks what is read; on a
run where each row edits one point it checks that the edit landed where the name says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import MicrotomeError
from microtome.model.binding import Binding
from microtome.model.family import PARALLEL, POST, SANDWICH
from microtome.model.slots import Slots
from microtome.model.weights import Weights
from microtome.points import POINTS
from microtome.trace.trace import Trace

_MASKED = -1e4


@dataclass(frozen=True)
class Pair:
    """Observed against expected, and the size of the numbers whose rounding separates them. Shapes: [row, pos, ..., d]."""

    observed: Tensor
    expected: Tensor
    size: Tensor

    def errors(self) -> Tensor:
        """Largest error of each row, relative to the size at its own place. Shapes: [row]."""
        difference = (self.observed - self.expected).abs().double()
        size = self.size.abs().double().expand_as(difference).amax(-1, keepdim=True)
        ratio = difference / (size + 1e-4 * size.max() + torch.finfo(torch.float64).tiny)
        return ratio.nan_to_num(nan=float("inf")).flatten(1).amax(-1)


def pair(observed: Tensor, expected: Tensor, *terms: Tensor) -> Pair:
    """A pair whose size is the sum of absolute terms (default: of both sides)."""
    size = sum((t.abs() for t in (terms or (observed, expected))), torch.zeros_like(expected))
    return Pair(observed, expected, size)


class View:
    """One layer of one run, by names. Values in float32 (float64 stays)."""

    def __init__(self, binding: Binding, trace: Trace, layer: int | None, *, edited: bool = False) -> None:
        self.binding, self.trace, self.layer, self.edited = binding, trace, layer, edited
        self.weights = Weights(binding)

    @property
    def slots(self) -> Slots:
        """The layer's slots."""
        assert self.layer is not None
        return self.binding.slots[self.layer]

    def has(self, *points: str) -> bool:
        """True when this layer (or the model, for stream points) has all of them."""
        return all(
            self.binding.lacking(p, self.layer if POINTS[p].scope == "layer" else None) is None
            for p in points
        )

    def __call__(self, point: str) -> Tensor:
        """The value, after edits."""
        return wide(self.trace[self._site(point)])

    def before(self, point: str) -> Tensor:
        """The value as the model computed it."""
        return wide(self.trace[self._site(point) + ("!before" if self.edited else "")])

    def _site(self, point: str) -> str:
        return f"L{self.layer}.{point}" if POINTS[point].scope == "layer" else point

    def normed(self, part: str, x: Tensor, scale: str) -> Tensor:
        """x through the layer's norm: by its scale where the point exists, else by the module itself."""
        path = self.slots.at(part) if self.layer is not None else self.binding.stack_path(part)
        assert path is not None
        if not self.has(scale):
            module = self.binding.module(path)
            weight = next(iter(module.parameters()), None)
            return wide(module(x if weight is None else x.to(weight.dtype)))
        norm = self.binding.norm(path)
        return norm.linear(x, self(scale)) + norm.bias.to(x.dtype)


@dataclass(frozen=True)
class Identity:
    """fn gives a Pair, or None where it does not apply; `concerns` are the points withdrawn when it fails."""

    name: str
    rules_out: str
    needs: tuple[str, ...]
    concerns: tuple[str, ...]
    fn: Callable[[View], Pair | None]


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _sum_mid(v: View) -> Pair:
    a, b = v("resid_pre"), v("attn_out")
    return pair(v.before("resid_mid"), a + b, a, b)


def _sum_post(v: View) -> Pair:
    a, b = v("resid_mid"), v("mlp_out")
    return pair(v.before("resid_post"), a + b, a, b)


def _sum_whole(v: View) -> Pair | None:
    if v.has("resid_mid"):
        return None
    parts = [v("resid_pre"), v("attn_out")]
    if v.slots.mlp_kind != "none":
        if not v.has("mlp_out"):
            return None
        parts.append(v("mlp_out"))
    return pair(v.before("resid_post"), sum(parts, torch.zeros_like(parts[0])), *parts)


def _chain(v: View) -> Pair:
    if v.layer == 0:
        return pair(v.before("resid_pre"), v("embed"))
    assert v.layer is not None
    return pair(v.before("resid_pre"), wide(v.trace[f"L{v.layer - 1}.resid_post"]))


def _head_out(v: View) -> Pair:
    assert v.layer is not None
    z, w = v("z"), wide(v.weights.W_O(v.layer))
    expected = torch.einsum("bphd,hdm->bphm", z, w)
    return pair(v.before("head_out"), expected, z.norm(dim=-1, keepdim=True) * w.norm(dim=1))


def _attn_raw(v: View) -> Pair:
    assert v.layer is not None
    heads, bias = v("head_out"), v.weights.b_O(v.layer)
    expected = heads.sum(2) + (0 if bias is None else wide(bias))
    return pair(v.before("attn_raw"), expected, heads.abs().sum(2), expected)


def _out(v: View, raw: str, out: str, part: str, scale: float) -> Pair:
    x = v(raw)
    if v.slots.style in (SANDWICH, POST):
        x = v.normed(part, x, f"{part}_scale")
    return pair(v.before(out), x * scale)


def _neurons(v: View) -> Pair:
    assert v.layer is not None
    x, w, bias = v("neurons"), wide(v.weights.W_out(v.layer)), v.weights.b_out(v.layer)
    expected = x @ w + (0 if bias is None else wide(bias))
    return pair(v.before("mlp_raw"), expected, _bound(x, w), expected)


def _bound(x: Tensor, w: Tensor) -> Tensor:
    """The size of the terms of x @ w, by Cauchy-Schwarz: the rounding of a product grows with it, not with the result."""
    return x.norm(dim=-1, keepdim=True) * w.norm(dim=0)


def _ln1(v: View) -> Pair | None:
    x = v("resid_pre")
    if v.slots.style == POST or "ln1_scale" in v.slots.block.refuse:  # norms act on what was added instead
        return pair(v.before("ln1_out"), x)
    if v.slots.at("ln1") is None:  # an unknown family may call its norm otherwise
        return pair(v.before("ln1_out"), x) if v.binding.known else None
    return pair(v.before("ln1_out"), v.normed("ln1", x, "ln1_scale"))


def _ln2(v: View) -> Pair | None:
    style = v.slots.style
    if style == PARALLEL and v.slots.at("ln2") is None:
        return None if v.slots.at("ln1") is None else pair(v.before("ln2_out"), v.before("ln1_out"))
    if style != PARALLEL and not v.has("resid_mid"):
        return None
    x = v("resid_pre") if style == PARALLEL else v("resid_mid")
    if style == POST:
        return pair(v.before("ln2_out"), x)
    if v.slots.at("ln2") is None:
        return pair(v.before("ln2_out"), x) if v.binding.known else None
    return pair(v.before("ln2_out"), v.normed("ln2", x, "ln2_scale"))


def _scale(v: View, part: str) -> Pair | None:
    point = f"{part}_scale"
    parallel = v.slots.style == PARALLEL
    source = {"ln1": "resid_pre", "ln2": "resid_pre" if parallel else "resid_mid", "ln1_post": "attn_raw",
              "ln2_post": "mlp_raw"}[part]  # fmt: skip
    path = v.slots.at(part)
    if not v.has(point, source) or path is None:
        return None
    return pair(v.before(point), v.binding.norm(path).scale(v(source)))


def _projected(v: View, which: str) -> Pair | None:
    assert v.layer is not None
    x, (w, b) = v("ln1_out"), _weights(v, which)
    if w is None:
        return None
    out = torch.einsum("bpm,hmd->bphd", x, wide(w)) + (0 if b is None else wide(b))
    size = x.norm(dim=-1)[..., None, None] * wide(w).norm(dim=1)
    clip = getattr(v.binding.config, "clip_qkv", None)
    out = out if clip is None else out.clamp(-clip, clip)
    kind = v.slots.block.qk_norm if which in "qk" else ""
    point = "v" if which == "v" else f"{which}_pre"
    if not kind:
        return Pair(v.before(point), out, size + out.abs())
    if not v.has(f"{which}_scale"):
        return None
    norm = v.binding.norm(v.slots.at(f"{which}_norm") or "")
    shape = out.shape
    flat = out.flatten(2) if kind == "flat" else out
    scale = v(f"{which}_scale")
    if kind == "flat":
        scale = scale.expand(shape).flatten(2)
    normed = norm.linear(flat, scale) + norm.bias.to(out.dtype)
    size = (size.flatten(2) if kind == "flat" else size) / scale * norm.gain.abs().to(out.dtype)
    return pair(v.before(point), normed.reshape(shape), size.reshape(shape), normed.reshape(shape))


def _weights(v: View, which: str) -> tuple[Tensor | None, Tensor | None]:
    assert v.layer is not None
    try:
        weight = getattr(v.weights, f"W_{which.upper()}")(v.layer)
    except MicrotomeError:  # latent attention has no such matrix
        return None, None
    return weight, getattr(v.weights, f"b_{which.upper()}")(v.layer)


def _rotated(v: View, which: str) -> Pair | None:
    """Rotary turns pairs of coordinates: the length of a head's vector stays, and position 0 is not turned at all."""
    before, after = v(f"{which}_pre"), v.before(which)
    if not v.slots.block.rotates:  # opt multiplies queries by a number of its own
        size = before.square().sum().clamp_min(torch.finfo(before.dtype).tiny)  # a head may ask nothing
        return pair(after, before * ((after * before).sum() / size))
    start, first = before[:, :1], after[:, :1]
    size = first.norm(dim=-1, keepdim=True).expand_as(first)
    factor = _rotary_factor(v.binding)
    # yarn and its kin make the turned coordinates longer; which ones turn is not known here
    if factor != 1.0:
        longer = (first - factor * start).abs() < (first - start).abs()
        return Pair(first.flatten(1)[..., None], start.where(~longer, factor * start).flatten(1)[..., None], size.flatten(1)[..., None])  # fmt: skip
    lengths = pair(after.norm(dim=-1, keepdim=True), before.norm(dim=-1, keepdim=True))
    sides = ((first, lengths.observed), (start, lengths.expected), (size, lengths.size))
    return Pair(*(torch.cat([one.flatten(1), other.flatten(1)], 1)[..., None] for one, other in sides))


def _rotary_factor(binding: Binding) -> float:
    """What rotary modules multiply sine and cosine by (1 except in yarn and its kin)."""
    found = (getattr(m, "attention_scaling", 1.0) for m in binding.hf.modules())
    factors = {float(f) for f in found if isinstance(f, float | int)} - {1.0}
    return factors.pop() if factors else 1.0


def _scores(v: View) -> Pair:
    """Scores are q . k times one number per head, plus a bias of the key (alibi), inside any softcap.

    Compared as differences to the query's own key, since some families subtract a number from every row first.
    """
    q, k, scores = v("q").double(), v("k").double(), v.before("scores").double()
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    products = torch.einsum("bqhd,bkhd->bhqk", q, k)
    sizes = q.norm(dim=-1).permute(0, 2, 1)[..., None] * k.norm(dim=-1).permute(0, 2, 1)[:, :, None]
    n = scores.shape[-1]
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril() & (scores > _MASKED)
    cap = getattr(v.binding.config, "attn_logit_softcapping", None)
    linear = torch.atanh((scores / cap).clamp(-1 + 1e-12, 1 - 1e-12)) * cap if cap else scores
    keys = torch.eye(n, dtype=torch.float64, device=q.device)
    keys = (keys[None] - keys[:, None]).expand(*scores.shape, n)  # [.., query, key, which key]
    observed, expected, size = (torch.zeros_like(scores) for _ in range(3))
    for head in range(scores.shape[1]):
        where = seen[:, head]
        design = torch.cat([_beside(products[:, head])[where][:, None], keys[:, head][where]], -1)
        target = _beside(linear[:, head])[where]
        fit = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution
        observed[:, head][where], expected[:, head][where] = target, (design @ fit)[:, 0]
        size[:, head][where] = sizes[:, head][where] * fit[0].abs() + target.abs()
    slack = torch.cosh(linear.where(seen, 0) / cap).square() if cap else 1.0  # what atanh does to a rounding
    return Pair(observed, expected, size * slack)


def _beside(x: Tensor) -> Tensor:
    """Differences to the diagonal. Shapes: [row, query, key]."""
    return x - x.diagonal(dim1=-2, dim2=-1)[..., None]


def _pattern(v: View) -> Pair:
    """The softmax of the scores; where a sink takes a share, what is left is in the same proportions."""
    scores, pattern = v("scores"), v.before("pattern")
    inner = v.binding.module(v.slots.at("attn") or "")
    if getattr(inner, "sinks", None) is not None:
        pattern = pattern / pattern.sum(-1, keepdim=True)
    return Pair(pattern, scores.softmax(-1), torch.ones_like(pattern))


def _z(v: View) -> Pair:
    values = v("v")
    pattern = v("pattern").to(
        values.dtype
    )  # transformers computes the softmax in float32 and casts afterwards
    values = values.repeat_interleave(v.slots.n_heads // v.slots.n_kv, 2)
    expected = torch.einsum("bhqk,bkhd->bqhd", pattern, values)
    return pair(v.before("z"), expected, torch.einsum("bhqk,bkhd->bqhd", pattern.abs(), values.abs()))


def _mlp_in(v: View, point: str) -> Pair | None:
    assert v.layer is not None
    part = "in" if point == "mlp_pre" else "gate"
    weight = getattr(v.weights, f"W_{part}")(v.layer)
    bias = getattr(v.weights, f"b_{part}")(v.layer)
    x, w = v("ln2_out"), wide(weight)
    expected = x @ w + (0 if bias is None else wide(bias))
    return pair(v.before(point), expected, _bound(x, w), expected)


def _embed(v: View) -> Pair | None:
    parts = [v("tok_embed")] + ([v("pos_embed")] if v.has("pos_embed") else [])
    total = sum(parts, torch.zeros_like(parts[0]))
    norm = v.binding.stack.get("embed_norm")
    if norm is not None:
        total = wide(v.binding.module(norm)(total.to(v.trace["tok_embed"].dtype)))
        parts = [total]
    return pair(v.before("embed"), total, *parts)


def _final(v: View) -> Pair | None:
    norm, x = v.binding.final_norm, v("final_resid")
    if v.binding.stack.get("final_norm") is None:
        return pair(v.before("final_norm_out"), x)
    if not v.has("final_scale"):
        return None
    return pair(v.before("final_norm_out"), norm.linear(x, v("final_scale")) + norm.bias.to(x.dtype))


def _last(v: View) -> Pair:
    return pair(v.before("final_resid"), wide(v.trace[f"L{len(v.binding.slots) - 1}.resid_post"]))


def _readout(v: View) -> Pair:
    normed = v.trace["final_norm_out"]
    return pair(v.before("logits"), wide(v.binding.readout(normed)))


LAYER_IDENTITIES = (
    Identity("stream", "a layer tapped off by one, or a stream that is not one tensor", ("resid_pre", "resid_post"), (), _chain),
    Identity("residual sum", "an output tapped before its post-norm or multiplier", ("resid_pre", "attn_out", "resid_mid"), ("attn_out",), _sum_mid),
    Identity("residual sum", "", ("resid_mid", "mlp_out", "resid_post"), ("mlp_out",), _sum_post),
    Identity("residual sum", "", ("resid_pre", "attn_out", "resid_post"), ("attn_out", "mlp_out"), _sum_whole),
    Identity("heads", "heads and d_head exchanged, or heads in another order", ("z", "head_out"), ("head_out",), _head_out),
    Identity("heads", "", ("head_out", "attn_raw"), ("head_out",), _attn_raw),
    Identity("outputs", "a post-norm or multiplier left out or taken twice", ("attn_raw", "attn_out"), ("attn_raw",), lambda v: _out(v, "attn_raw", "attn_out", "ln1_post", v.slots.block.attn_scale)),
    Identity("outputs", "", ("mlp_raw", "mlp_out"), ("mlp_raw",), lambda v: _out(v, "mlp_raw", "mlp_out", "ln2_post", v.slots.block.mlp_scale)),
    Identity("neurons", "neurons tapped on the wrong side of the activation or gate", ("neurons", "mlp_raw"), ("neurons",), _neurons),
    Identity("norms", "the wrong norm, or the wrong place beside a norm", ("resid_pre", "ln1_out"), ("ln1_out", "ln1_scale"), _ln1),
    Identity("norms", "", ("resid_pre", "ln2_out", "ln1_out"), ("ln2_out", "ln2_scale"), _ln2),
    *(Identity("scales", "a divisor without its eps, or of another tensor", (), (f"{p}_scale",), lambda v, p=p: _scale(v, p)) for p in ("ln1", "ln2", "ln1_post", "ln2_post")),  # type: ignore[misc]
    Identity("projections", "a fused projection cut in the wrong places, or a bias left out", ("ln1_out", "q_pre"), ("q_pre",), lambda v: _projected(v, "q")),
    Identity("projections", "", ("ln1_out", "k_pre"), ("k_pre",), lambda v: _projected(v, "k")),
    Identity("projections", "", ("ln1_out", "v"), ("v",), lambda v: _projected(v, "v")),
    Identity("projections", "", ("ln2_out", "mlp_pre"), ("mlp_pre",), lambda v: _mlp_in(v, "mlp_pre")),
    Identity("projections", "", ("ln2_out", "mlp_gate"), ("mlp_gate",), lambda v: _mlp_in(v, "mlp_gate")),
    Identity("rotary", "queries and keys exchanged or regrouped between projection and use", ("q_pre", "q"), ("q_pre",), lambda v: _rotated(v, "q")),
    Identity("rotary", "", ("k_pre", "k"), ("k_pre",), lambda v: _rotated(v, "k")),
    Identity("scores", "queries or keys that are not the ones attention uses", ("q", "k", "scores"), ("q", "k"), _scores),
    Identity("pattern", "scores that do not enter the softmax, a pattern that does not leave it", ("scores", "pattern"), ("scores", "pattern"), _pattern),
    Identity("pattern @ v", "the wrong grouping of key/value heads, or something between pattern and z", ("pattern", "v", "z"), ("pattern", "scores"), _z),
)  # fmt: skip

STREAM_IDENTITIES = (
    Identity("embedding", "an embedding scale or norm left out", ("tok_embed", "embed"), ("tok_embed", "pos_embed"), _embed),
    Identity("stream", "", ("final_resid",), (), _last),
    Identity("norms", "", ("final_resid", "final_norm_out"), ("final_scale",), _final),
    Identity("readout", "a logit scale, softcap or bias left out", ("final_norm_out", "logits"), ("final_norm_out",), _readout),
)  # fmt: skip

WHY = {i.name: i.rules_out for i in reversed(LAYER_IDENTITIES + STREAM_IDENTITIES) if i.rules_out}


def activation(v: View, base: int, row_of: dict[str, int]) -> Pair | None:
    """With mlp_pre (or mlp_gate) of one row rolled by one neuron, neurons move as act(gate) * pre says. Needs no
    knowledge of the activation: it acts on each neuron alone, and in a gated MLP the linear branch only multiplies."""
    if not v.has("neurons", "mlp_pre") or "mlp_pre" not in row_of:
        return None
    neurons, pre = v.before("neurons"), v("mlp_pre")
    pairs = []
    rolled = neurons[base].roll(1, -1)
    if not v.has("mlp_gate"):
        return pair(neurons[[row_of["mlp_pre"]]], rolled[None])
    row = row_of["mlp_pre"]
    pairs.append((neurons[row] * pre[base], neurons[base] * pre[row]))
    if "mlp_gate" in row_of:
        row = row_of["mlp_gate"]
        pairs.append((neurons[row] * pre[base].roll(1, -1), rolled * pre[base]))
    observed, expected = (torch.stack(side) for side in zip(*pairs, strict=True))
    return pair(observed, expected)
