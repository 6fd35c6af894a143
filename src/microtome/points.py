"""The table of points: every name a tensor can have, what it means and what shape it has.

A row is data. The parser, the binding, the refusals and the reference page are all made from it.
Axes: `prompt`, `pos` (the prompt's own tokens), `head` (query heads), `kv_head`, `query`, `key`, `one`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from microtome.errors import SiteError

STREAM, LAYER = "stream", "layer"

_RESID = ("prompt", "pos", "d_model")
_HEADS = ("prompt", "pos", "head", "d_head")
_KV = ("prompt", "pos", "kv_head", "d_head")
_SQUARE = ("prompt", "head", "query", "key")
_MLP = ("prompt", "pos", "neuron")
_ONE = ("prompt", "pos", "one")


@dataclass(frozen=True)
class Point:
    """One named point of the residual-stream computation.

    `local` is True when changing the point at one position leaves the layer's output at every other
    position as it was (keys and values are read by later positions, so they are not local).
    """

    name: str
    scope: str
    group: str
    axes: tuple[str, ...]
    meaning: str
    unit: str = "residual units"
    writable: bool = True
    local: bool = True

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters that may narrow this point: H (query head), KV (key/value head), N (neuron)."""
        found = []
        for axis, letter in (("head", "H"), ("kv_head", "KV"), ("neuron", "N")):
            if axis in self.axes:
                found.append(letter)
        return tuple(found)

    @property
    def square(self) -> bool:
        """True for query x key points (`scores`, `pattern`)."""
        return "query" in self.axes


def _layer(group: str, name: str, axes: tuple[str, ...], meaning: str, **kw: object) -> Point:
    return Point(name, LAYER, group, axes, meaning, **kw)  # type: ignore[arg-type]


_ROWS = (
    Point("tok_embed", STREAM, "Stream", _RESID, "the token's row of W_E as it enters the stream", local=False),
    Point("pos_embed", STREAM, "Stream", _RESID, "the learned position's row of W_pos", local=False),
    Point("embed", STREAM, "Stream", _RESID, "what enters the first layer", local=False),
    _layer("Stream", "resid_pre", _RESID, "the stream as the layer receives it", local=False),
    _layer("Stream", "resid_mid", _RESID, "the stream between attention and MLP"),
    _layer("Stream", "resid_post", _RESID, "the stream as the layer leaves it"),
    Point("final_resid", STREAM, "Stream", _RESID, "what enters the final norm"),
    Point("final_norm_out", STREAM, "Stream", _RESID, "what enters the unembedding", "normed units"),
    Point("logits", STREAM, "Stream", ("prompt", "pos", "d_vocab"), "the model's output, after any softcap", "nats, unnormalised"),
    _layer("Attention", "ln1_out", _RESID, "what attention reads", unit="normed units", local=False),
    _layer("Attention", "q_pre", _HEADS, "queries before rotary, after any query norm", unit="head units"),
    _layer("Attention", "k_pre", _KV, "keys before rotary, after any key norm", unit="head units", local=False),
    _layer("Attention", "q", _HEADS, "queries as attention uses them", unit="head units"),
    _layer("Attention", "k", _KV, "keys as attention uses them and the cache keeps them", unit="head units", local=False),
    _layer("Attention", "v", _KV, "values as attention uses them and the cache keeps them", unit="head units", local=False),
    _layer("Attention", "scores", _SQUARE, "what enters the softmax: after scale, softcap and mask (a sink's column left out)", unit="nats"),
    _layer("Attention", "pattern", _SQUARE, "what leaves the softmax; rows sum to 1 (to less with a sink)", unit="probability"),
    _layer("Attention", "z", _HEADS, "pattern times values: what enters W_O, per head", unit="head units"),
    _layer("Attention", "head_out", ("prompt", "pos", "head", "d_model"), "z through W_O, per head, without bias"),
    _layer("Attention", "attn_raw", _RESID, "attention after W_O and bias"),
    _layer("Attention", "attn_out", _RESID, "what attention adds to the stream: after any post-norm and multiplier"),
    _layer("MLP", "ln2_out", _RESID, "what the MLP reads", unit="normed units"),
    _layer("MLP", "mlp_pre", _MLP, "x W_in + b_in: the pre-activation, or in a gated MLP the linear branch", unit="pre-activation units"),
    _layer("MLP", "mlp_gate", _MLP, "x W_gate + b_gate: the gated branch before its activation", unit="pre-activation units"),
    _layer("MLP", "neurons", _MLP, "what enters W_out", unit="activation units"),
    _layer("MLP", "mlp_raw", _RESID, "the MLP after W_out and bias"),
    _layer("MLP", "mlp_out", _RESID, "what the MLP adds to the stream: after any post-norm and multiplier"),
    _layer("Scales", "ln1_scale", _ONE, "divisor of the norm before attention, eps included", unit="residual units", local=False),
    _layer("Scales", "ln2_scale", _ONE, "divisor of the norm before the MLP, eps included"),
    _layer("Scales", "ln1_post_scale", _ONE, "divisor of the norm after attention, eps included"),
    _layer("Scales", "ln2_post_scale", _ONE, "divisor of the norm after the MLP, eps included"),
    _layer("Scales", "q_scale", ("prompt", "pos", "head", "one"), "divisor of the query norm, eps included", unit="head units"),
    _layer("Scales", "k_scale", ("prompt", "pos", "kv_head", "one"), "divisor of the key norm, eps included", unit="head units", local=False),
    Point("final_scale", STREAM, "Scales", _ONE, "divisor of the final norm, eps included"),
)  # fmt: skip

POINTS: dict[str, Point] = {p.name: p for p in _ROWS}

RESERVED = {
    "router": "mixture-of-experts routers are not addressed yet",
    "ssm_state": "state-space layers are not addressed yet",
}


def point(name: str) -> Point:
    """The row of a point.

    Raises
    ------
    SiteError: unknown or reserved name; the nearest names are suggested.
    """
    if name in POINTS:
        return POINTS[name]
    if name in RESERVED:
        raise SiteError(
            f'the point "{name}" is reserved',
            why=RESERVED[name],
            instead="read mlp_out (the layer's whole MLP output) or resid_post",
        )
    near = difflib.get_close_matches(name, POINTS, n=3, cutoff=0.5)
    raise SiteError(
        f'there is no point called "{name}"',
        why="a point is one name of the table of points",
        instead=f"did you mean {' or '.join(near)}?" if near else f"one of: {', '.join(POINTS)}",
    )
