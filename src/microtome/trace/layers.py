"""One forward that remembers how each decoder layer was called, so that layers can be called again."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from microtome.model.binding import Binding
from microtome.trace import seam
from microtome.trace.frame import Frame
from microtome.trace.session import Read, Session, cache_kinds


@dataclass
class LayerCall:
    """How one layer was called, by parameter name, and what its attention and cache received.

    Shapes: hidden [row, pos, d_model]; key, value [row, kv_head, pos, d] as the attention function got them (None off
    the registry); mask [1 or row, 1, pos, pos] or None; cached: the pair its cache received.
    """

    hidden: Tensor
    kwargs: dict[str, Any]
    key: Tensor | None = None
    value: Tensor | None = None
    mask: Tensor | None = None
    cached: tuple[Tensor, Tensor] | None = None


class _Recorder(Session):
    """A session that also keeps the arguments of every attention call."""

    def __init__(self, binding: Binding, reads: list[Read], frame: Frame, calls: list[LayerCall]) -> None:
        super().__init__(binding, reads, [], frame)
        self.calls = calls

    def attend(self, call: Callable[..., Any], module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None,
               kwargs: dict[str, Any]) -> Any:  # fmt: skip
        layer = self.calls[self.binding.layer_of_attention[id(module)]]
        layer.key, layer.value, layer.mask = qkv[1], qkv[2], mask
        return super().attend(call, module, qkv, mask, kwargs)

    def cached(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key, value = super().cached(layer, key, value)
        self.calls[layer].cached = (key, value)
        return key, value


class _Passing(DynamicCache):
    """A cache that shows what it receives and keeps nothing."""

    def __init__(self, session: Session) -> None:
        super().__init__(**cache_kinds(session.binding))
        self.session = session

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Show and pass on."""
        return self.session.cached(layer_idx, key_states, value_states)

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Nothing is kept."""
        return 0


def record(
    binding: Binding, ids: Tensor, reads: list[Read], attention: str, *, cache: bool
) -> tuple[list[LayerCall], Tensor]:
    """Run rows of equal width once, remembering every layer call.

    Shapes: ids [row, pos] -> (one LayerCall per layer, final_resid [row, pos, d_model]). Reads are filled on the way.
    """
    calls = [LayerCall(ids, {}) for _ in binding.slots]
    final: list[Tensor] = []
    session = _Recorder(binding, reads, Frame(*ids.shape), calls)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(seam.implementation(binding.hf, attention))
        stack.enter_context(session)
        for index, layer in enumerate(binding.layers):
            handle = layer.register_forward_pre_hook(_remember(calls, index), with_kwargs=True)
            stack.callback(handle.remove)
        norm = binding.module(binding.end)
        handle = norm.register_forward_pre_hook(lambda m, a: final.append(a[0].reshape(*ids.shape, -1)))
        stack.callback(handle.remove)
        handle = binding.module(binding.stack_path("head")).register_forward_pre_hook(_stop)
        stack.callback(handle.remove)
        kwargs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if cache or session.needs_cache:
            kwargs |= {"past_key_values": _Passing(session), "use_cache": True}
        with suppress(_Enough):
            binding.hf(**kwargs)
    return calls, final[0]


class _Enough(Exception):
    pass


def _stop(module: nn.Module, args: Any) -> None:
    raise _Enough


def _remember(calls: list[LayerCall], index: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        named = {}
        for name, value in bound.arguments.items():
            if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            else:
                named[name] = value
        calls[index].hidden = named.pop("hidden_states")
        # the cache would tie the recorded run into a cycle, and a replay brings its own
        calls[index].kwargs = {k: None if isinstance(v, DynamicCache) else v for k, v in named.items()}

    return hook
