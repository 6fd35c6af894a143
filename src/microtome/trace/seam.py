"""The attention seam: the family's own attention function, seen and edited, never rewritten.

Registered once under names of our own; each delegates to the family's eager attention or to the implementation
that the model runs with. Masks are always explicit there, so that queries of a part of the prompt can be replayed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from microtome.errors import ModelError

PREFIX = "microtome_"
EAGER = "eager"


class Attending(Protocol):
    """What the seam calls instead of the attention function."""

    def attend(
        self,
        call: Callable[..., Any],
        module: nn.Module,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run `call(module, q, k, v, mask, **kwargs)`, reading or editing on the way."""


_current: ContextVar[Attending | None] = ContextVar("microtome_attending", default=None)
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_own: WeakKeyDictionary[nn.Module, str] = (
    WeakKeyDictionary()
)  # what a model under way runs with when left alone
_guard = threading.Lock()


def current() -> Attending | None:
    """The session of the run under way in this thread. Hooks are on the module, which other threads and runs inside an
    edit's function use too: a hook acts only for its own session."""
    return _current.get()


@contextmanager
def exclusive(hf: nn.Module) -> Iterator[None]:
    """One thread at a time: hooks and the attention implementation belong to the module. Runs inside runs may enter."""
    with _guard:
        lock = _locks.setdefault(hf, threading.RLock())
    with lock:
        yield


def _delegate(implementation: str, module: nn.Module) -> Callable[..., Any]:
    if implementation == EAGER:
        found: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return found
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[implementation]


@cache
def tapped(implementation: str) -> str:
    """The name under which an implementation runs through the seam; registers it on first use.

    Raises
    ------
    ModelError: an implementation whose masks cannot be made explicit (flash, flex).
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    if implementation not in ("eager", "sdpa"):
        raise ModelError(
            f"attention implementation {implementation!r} cannot be read or replayed",
            why="its kernel takes no explicit mask",
            instead='load the model with attn_implementation="sdpa" or "eager"',
        )

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:  # the arguments' names are transformers' own: some families call by name
        call = _delegate(implementation, module)
        session = _current.get()
        if session is None:
            return call(module, query, key, value, attention_mask, **kwargs)
        return session.attend(call, module, (query, key, value), attention_mask, kwargs)

    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs["allow_is_causal_skip"] = False
        return ALL_MASK_ATTENTION_FUNCTIONS[implementation](*args, **kwargs)

    name = PREFIX + implementation
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


def _configs(hf: nn.Module) -> list[Any]:
    """Every config object of the tree once: attention modules read the implementation from their own."""
    found = {
        id(c): c
        for m in hf.modules()
        if (c := getattr(m, "config", None)) is not None and hasattr(c, "_attn_implementation")
    }
    return list(found.values())


@contextmanager
def implementation(hf: nn.Module, name: str | None) -> Iterator[None]:
    """Run with another attention implementation (None: the model's own); the old one is always put back.

    The module is this thread's for that time.
    """
    with exclusive(hf):
        inner = hf in _own
        if name is None and not inner:
            yield
            return
        own = base_implementation(hf)
        saved = [(c, c._attn_implementation) for c in _configs(hf)]
        try:
            _own[hf] = own
            for config, _ in saved:
                config._attn_implementation = name or own
            yield
        finally:
            for config, old in saved:
                config._attn_implementation = old
            if not inner:
                del _own[hf]


def base_implementation(hf: nn.Module) -> str:
    """The implementation that the model runs with when left alone, also asked inside a run that uses another."""
    if hf in _own:
        return _own[hf]
    return str(getattr(hf.config, "_attn_implementation", None) or EAGER)


@contextmanager
def attending(session: Attending | None) -> Iterator[None]:
    """Let the seam call this session."""
    token = _current.set(session)
    try:
        yield
    finally:
        _current.reset(token)


class Softmax(TorchFunctionMode):
    """Sees the softmax inside one attention call.

    `edit_scores` and `edit_pattern` take and return the softmax's input and output, sink column included.
    """

    def __init__(
        self,
        session: Attending,
        edit_scores: Callable[[Tensor], Tensor],
        edit_pattern: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.session, self.edit_scores, self.edit_pattern, self.seen = session, edit_scores, edit_pattern, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "softmax" or current() is not self.session:
            return func(*args, **(kwargs or {}))
        self.seen += 1
        with torch._C.DisableTorchFunctionSubclass():
            scores = self.edit_scores(args[0])
            return self.edit_pattern(func(scores, *args[1:], **(kwargs or {})))

    def finish(self, where: str) -> None:
        """Refuse anything but one softmax.

        Raises
        ------
        ModelError: this attention does not work by one softmax.
        """
        if self.seen != 1:
            raise ModelError(f"{where} ran {self.seen} softmaxes", why="scores and pattern are read around exactly one",
                             instead="read z, q, k and v instead")  # fmt: skip
