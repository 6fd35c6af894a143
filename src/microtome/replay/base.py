"""A base run that can be continued from any layer and any position.

Three ways, tried in this order and kept only when they reproduce the model (`check.py`): "packed" puts all tokens of
all rows behind one another in one layer call and splits them only inside attention; "sliced" calls a layer once per
first position; "layers" recomputes whole prompts from a layer upwards, for state that is not a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from microtome.errors import ModelError
from microtome.model.binding import Binding
from microtome.trace.layers import LayerCall, record
from microtome.trace.run import attention_for, device_of
from microtome.trace.scope import refuse_in_force
from microtome.trace.session import Read

Mode = Literal["packed", "sliced", "layers"]
MODES: tuple[Mode, ...] = ("packed", "sliced", "layers")

PER_TOKEN = {"position_embeddings": 1, "position_ids": -1, "cache_position": -1}
CACHES = ("past_key_values", "layer_past", "past_key_value")
HANDLED = {*PER_TOKEN, *CACHES, "attention_mask", "alibi", "use_cache", "output_attentions"}


@dataclass(frozen=True)
class Base:
    """One recorded run of rows of equal width.

    Shapes: ids [row, pos]; resid[l] [row, pos, d_model] is what layer l received, resid[n_layers] what the final norm
    received.
    """

    binding: Binding
    ids: Tensor
    attention: str
    mode: Mode
    calls: tuple[LayerCall, ...]
    resid: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.ids.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.ids.shape[1])

    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = [
            *self.resid,
            *(t for c in self.calls for t in (c.key, c.value, *(c.cached or ())) if t is not None),
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


def replay_attention(binding: Binding, eager: bool = False) -> str:
    """The implementation under which base, donor and patched runs of a sweep run: masks explicit."""
    registry = any(s.registry for s in binding.slots)
    if not registry:
        return "eager"
    from microtome.trace.seam import base_implementation

    name = attention_for(binding, set(), "eager" if eager else base_implementation(binding.hf))
    assert name is not None
    return name


def possible(binding: Binding) -> list[Mode]:
    """The ways this model's structure admits, fastest first; which one is right is decided by numbers."""
    if not binding.causal:
        return ["layers"]
    attention = [s.kind == "attention" for s in binding.slots]
    registry = [s.registry for s in binding.slots]
    out: list[Mode] = []
    if all(attention) and all(registry):
        out.append("packed")
    if all(attention):
        out.append("sliced")
    return [*out, "layers"]


def make_base(binding: Binding, ids: Tensor, reads: list[Read], *, mode: Mode, eager: bool = False) -> Base:
    """Record a base run. Shapes: ids [row, pos], no padding before a scored position.

    Raises
    ------
    ModelError: a layer takes an argument whose slices are unknown (then another mode is tried).
    EditError: inside `model.editing`, whose edits a replay would leave out.
    """
    refuse_in_force(binding.hf)
    attention = replay_attention(binding, eager)
    calls, final = record(binding, ids.to(device_of(binding)), reads, attention, cache=mode != "layers")
    if mode != "layers":
        for index, call in enumerate(calls):
            _known_arguments(index, call.kwargs)
    return Base(binding, ids, attention, mode, tuple(calls), (*(c.hidden for c in calls), final))


def _known_arguments(index: int, kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        tensors = value if isinstance(value, tuple | list) else [value]
        if name not in HANDLED and any(isinstance(t, Tensor) for t in tensors):
            raise ModelError(f"layer {index} takes {name}, whose slices are unknown", why="a wrong slice would be a wrong number",
                             instead="the sweep recomputes whole layers instead")  # fmt: skip


def pick_rows(value: Tensor, rows: Tensor, n: int) -> Tensor:
    """The rows of a recorded argument; one row for all is left to broadcast."""
    return (
        value
        if value.shape[0] == 1 and n != 1
        else value.index_select(0, rows)
        if value.shape[0] == n
        else value
    )


def per_token(value: Any, rows: Tensor, cols: Tensor) -> Any:
    """A recorded per-token argument at (row, column) pairs, as one row of tokens.

    Shapes: [1 or row, pos, ...] -> [1, pair, ...]; [pos] -> [pair].
    """
    if isinstance(value, tuple):
        return tuple(per_token(v, rows, cols) for v in value)
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 1:
        return value[cols]
    return (value[0, cols] if value.shape[0] == 1 else value[rows, cols])[None]


def mask_slice(mask: Tensor | None, rows: Tensor, start: int, stop: int, n: int) -> Tensor | None:
    """Queries start..stop, keys 0..stop of a recorded mask. Shapes: [1 or row, 1, pos, pos]."""
    if mask is None:
        return None
    part = mask[..., start:stop, :stop]
    return part if part.shape[0] == 1 else pick_rows(part, rows, n)
