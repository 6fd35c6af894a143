"""Where each point is touched: which side of which module, and how its tensor lies there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.model.family import POST, SANDWICH
from microtome.model.layout import Layout
from microtome.model.slots import Slots
from microtome.points import POINTS

if TYPE_CHECKING:
    from microtome.model.binding import Binding

INPUT, OUTPUT, INPLACE = "input", "output", "inplace"
NORM, HEADS = "norm", "heads"
QUERY, KEY, VALUE = "query", "key", "value"
CACHE_K, CACHE_V = "cache_k", "cache_v"
SCORES, PATTERN = "scores", "pattern"


@dataclass(frozen=True)
class Tap:
    """Where a point can be touched.

    how: "input" / "output" of a module, "inplace" (an input that the module's caller keeps using), "norm" (the
    divisor of a norm module), "heads" (derived at W_O), "query" / "key" / "value" (arguments of the attention
    function), "cache_k" / "cache_v" (what the cache receives), "scores" / "pattern" (around the softmax).
    """

    point: str
    layer: int | None
    how: str
    module: str
    layout: Layout = Layout()


def place(b: Binding, point: str, layer: int | None) -> Tap:
    """Where a point is touched. Its module path is empty where no module was found."""
    if layer is None:
        return _stream(b, point)
    s = b.slots[layer]
    if POINTS[point].group == "Attention":
        return _attention(point, layer, s)
    return _other(point, layer, s)


def _stream(b: Binding, point: str) -> Tap:
    scale = b.family.embed_scale(b.config)
    match point:
        case "tok_embed":
            return Tap(point, None, OUTPUT, b.stack_path("embed"), Layout(scale=scale))
        case "pos_embed":
            return Tap(point, None, OUTPUT, b.stack_path("pos"), Layout("shared"))
        case "embed":
            return Tap(point, None, INPUT, b.slots[0].path)
        case "final_resid":
            return Tap(point, None, INPUT, b.end)
        case "final_norm_out":
            norm = b.stack.get("final_norm")
            return Tap(point, None, OUTPUT, norm) if norm else Tap(point, None, INPUT, b.end)
        case "final_scale":
            return Tap(point, None, NORM, b.stack_path("final_norm"))
        case _:
            return Tap(point, None, OUTPUT, "")


def _attention(point: str, layer: int, s: Slots) -> Tap:
    heads = Layout("heads", s.n_heads, s.d_value)
    o = s.at("o") or ""
    match point:
        case "ln1_out":
            return Tap(point, layer, INPUT, s.at("attn") or "")
        case "q_pre" | "k_pre":
            return Tap(point, layer, OUTPUT, *projection(point[0], s))
        case "q":
            if s.registry:
                return Tap(point, layer, QUERY, s.at("attn") or "", Layout("bhsd"))
            return Tap(point, layer, OUTPUT, *projection("q", s))
        case "k" | "v":
            if s.block.latent:
                return Tap(point, layer, KEY if point == "k" else VALUE, s.at("attn") or "", Layout("bhsd"))
            layout = Layout("repeated", repeat=s.block.kv_repeat) if s.block.kv_repeat > 1 else Layout("bhsd")
            return Tap(point, layer, CACHE_K if point == "k" else CACHE_V, s.at("attn") or "", layout)
        case "scores" | "pattern":
            return Tap(
                point,
                layer,
                SCORES if point == "scores" else PATTERN,
                s.at("attn") or "",
                Layout("square"),
            )
        case "z":
            return Tap(point, layer, INPUT, o, heads)
        case "head_out":
            return Tap(point, layer, HEADS, o, heads)
        case "attn_out" if s.style in (SANDWICH, POST):
            return Tap(point, layer, OUTPUT, s.at("ln1_post") or "", Layout(scale=s.block.attn_scale))
        case _:  # attn_raw, and attn_out where only a multiplier lies between
            return Tap(
                point, layer, OUTPUT, o, Layout(scale=s.block.attn_scale if point == "attn_out" else 1.0)
            )


def _other(point: str, layer: int, s: Slots) -> Tap:
    mlp_in = s.at("mlp") or s.at("up") or ""
    match point:
        case "resid_pre":
            return Tap(point, layer, INPUT, s.path)
        case "resid_post":
            return Tap(point, layer, OUTPUT, s.path)
        case "resid_mid":
            return Tap(point, layer, INPLACE, mlp_in if s.style == POST else s.at("ln2") or mlp_in)
        case "ln2_out":
            return Tap(point, layer, INPUT, mlp_in)
        case "mlp_pre" | "mlp_gate" if s.at("gate_up") is not None:
            start = 0 if point == "mlp_gate" else s.d_mlp
            return Tap(
                point,
                layer,
                OUTPUT,
                s.at("gate_up") or "",
                Layout("columns", start=start, stop=start + s.d_mlp),
            )
        case "mlp_pre":
            return Tap(point, layer, OUTPUT, s.at("up") or "")
        case "mlp_gate":
            return Tap(point, layer, OUTPUT, s.at("gate") or "")
        case "neurons":
            return Tap(point, layer, INPUT, s.at("out") or "")
        case "mlp_raw":
            return Tap(point, layer, OUTPUT, s.at("out") or s.at("mlp") or "")
        case "mlp_out":
            if s.style in (SANDWICH, POST):
                return Tap(point, layer, OUTPUT, s.at("ln2_post") or "", Layout(scale=s.block.mlp_scale))
            return Tap(
                point, layer, OUTPUT, s.at("out") or s.at("mlp") or "", Layout(scale=s.block.mlp_scale)
            )
        case "q_scale" | "k_scale":
            n = s.n_heads if point == "q_scale" else s.n_kv
            kind = s.block.qk_norm if s.block.qk_norm != "flat" else "shared_heads"
            return Tap(
                point,
                layer,
                NORM,
                s.at("q_norm" if point == "q_scale" else "k_norm") or "",
                Layout(kind, n, 1),
            )
        case _:  # ln1_scale, ln2_scale and their post versions
            return Tap(point, layer, NORM, s.at(point.removesuffix("_scale")) or "")


def projection(which: str, s: Slots) -> tuple[str, Layout]:
    """Module path and layout of queries ("q") or keys ("k") before rotary."""
    n = s.n_heads if which == "q" else s.n_kv
    if s.block.qk_norm and which in "qk":
        kind = {"flat": "heads", "bshd": "bshd", "bhsd": "bhsd"}[s.block.qk_norm]
        return s.at(f"{which}_norm") or "", Layout(kind, n, s.d_head)
    if s.block.fused is not None:
        f = s.block.fused
        return s.at("qkv") or "", Layout("fused", n, s.d_head, f.groups, f.width, getattr(f, which))
    return s.at(which) or "", Layout("heads", n, s.d_head)
