"""Does replay reproduce the model? Numbers decide which mode a model gets, never its name."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from microtome.errors import ModelError
from microtome.model.binding import Binding
from microtome.replay.base import Base, Mode, make_base, possible
from microtome.replay.climb import Rows, climb
from microtome.trace import seam
from microtome.trace.layers import record
from microtome.trace.session import Write

WIDTH = 6
"""Tokens of the shortest rows on which a mode is tried."""

_modes: WeakKeyDictionary[nn.Module, dict[bool, Mode]] = WeakKeyDictionary()


def probe_error(base: Base) -> tuple[float, float]:
    """Replay two edited rows and compare with whole runs in which the same edit was made by hand.

    Returns (largest difference of the final stream, its largest magnitude).
    """
    n_layers = len(base.binding.slots)
    worst, size = 0.0, 0.0
    for entry, start in (
        (0, base.width // 2),
        (n_layers // 2, min(max(1, base.width // 3), base.width - 1)),
        (n_layers - 1, base.width - 1),
    ):
        row = base.n - 1
        value = base.resid[entry][row, start] * 1.5 + 0.1 * base.resid[entry].std()
        write = Write(
            "resid_pre", entry, torch.tensor([0]), torch.tensor([start]), None, partial(_constant, value)
        )
        whole = torch.tensor([False])
        first = 0 if base.mode == "layers" else start
        rows = Rows(
            torch.tensor([row]),
            torch.tensor([entry]),
            torch.tensor([first]),
            torch.tensor([start + 1]),
            torch.tensor([base.width]),
            whole,
        )
        columns = torch.arange(base.width).expand(base.n, -1)
        replayed = climb(base, rows, [write], columns)[0]
        expected = _whole(base, entry, row, start, value)
        # NaN agrees with nothing, and max() would drop it
        worst = max(worst, float((replayed - expected).abs().max().nan_to_num(nan=float("inf"))))
        size = max(size, float(expected.abs().max()))
    return worst, size


def _constant(value: Tensor, old: Tensor, keep: Tensor | None) -> Tensor:
    return value.expand_as(old)


def _whole(base: Base, entry: int, row: int, start: int, value: Tensor) -> Tensor:
    """The final stream of a whole run with the stream set by a hook of its own."""

    def put(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[0, start] = value
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    with seam.exclusive(base.binding.hf):
        handle = base.binding.layers[entry].register_forward_pre_hook(put, with_kwargs=True)
        try:
            _, final = record(
                base.binding, base.ids[row : row + 1], [], base.attention, cache=base.mode != "layers"
            )
        finally:
            handle.remove()
    return final[0]


def tolerance(base: Base) -> float:
    """Allowed difference relative to the largest entry of the final stream, per dtype.

    Families compute norms, softmax or rotary products in float32 also where the model is float64, so a float64 replay
    whose matrices have another shape agrees to float32's rounding and no further.
    """
    return {torch.float64: 64 * torch.finfo(torch.float32).eps, torch.float32: 5e-5}.get(
        base.resid[-1].dtype, 3e-2
    )


def _wide(binding: Binding, ids: Tensor) -> Tensor:
    """The rows, repeated to a few tokens where they are shorter: one token has no prefix whose replay could be seen to fail."""
    width = min(WIDTH, binding.facts.n_ctx or WIDTH)
    if ids.shape[1] >= width:
        return ids
    return ids.repeat(1, -(-width // ids.shape[1]))[:, :width]


def mode_of(binding: Binding, ids: Tensor, *, eager: bool = False) -> Mode:
    """The fastest mode that reproduces this model, found once per model on these rows.

    Raises
    ------
    ModelError: none does.
    """
    known = _modes.setdefault(binding.hf, {})
    if eager in known:
        return known[eager]
    tried = []
    for mode in possible(binding):
        try:
            base = make_base(binding, _wide(binding, ids[-2:]), [], mode=mode, eager=eager)
            if not bool(torch.isfinite(base.resid[-1]).all()):
                return mode  # nothing to compare, nothing to remember: whoever reads the base refuses it with its site
            error, size = probe_error(base)
        except (
            ModelError,
            RuntimeError,
            TypeError,
            KeyError,
            IndexError,
            ValueError,
            AttributeError,
        ) as failed:
            tried.append(f"{mode}: {type(failed).__name__}: {str(failed).splitlines()[0][:80]}")
            continue
        if error <= tolerance(base) * size:
            known[eager] = mode
            return mode
        tried.append(f"{mode}: off by {error:.1e}")
    raise ModelError(
        "this model's layers cannot be replayed",
        why="; ".join(tried),
        instead="run edits one forward at a time: model.run(..., edits=...)",
    )


def replay_error(binding: Binding, ids: Tensor) -> float:
    """Largest difference between replayed and whole runs, relative to the stream's largest entry."""
    base = make_base(binding, ids, [], mode=mode_of(binding, ids))
    error, size = probe_error(base)
    return error / size
