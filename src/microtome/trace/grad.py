"""Gradients of a metric at any site, through the untouched model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from microtome.errors import EditError
from microtome.model.binding import Binding
from microtome.model.tokens import Tokens
from microtome.sites import Site, expand_all
from microtome.trace import seam
from microtome.trace.edits import Edits
from microtome.trace.run import forward, prepare, refuse_nan, unfired
from microtome.trace.session import Read
from microtome.trace.trace import Trace


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """Record gradients, but none of the parameters'; they are put back as they were.

    The module is this thread's for that time.
    """
    with seam.exclusive(hf), torch.inference_mode(False), torch.enable_grad():
        saved = [p for p in hf.parameters() if p.requires_grad]
        for p in saved:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in saved:
                p.requires_grad_(True)


@contextmanager
def rooted(binding: Binding) -> Iterator[None]:
    """Let gradients start at the token embedding and nowhere else; parameters are put back as they were.

    The module is this thread's for that time.
    """

    def root(module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out.detach().requires_grad_()

    with frozen(binding.hf):
        handle = binding.module(binding.stack_path("embed")).register_forward_hook(root)
        try:
            yield
        finally:
            handle.remove()


def grad(
    binding: Binding,
    tokens: Tokens,
    metric: Callable[[Tensor], Tensor],
    *,
    sites: Sequence[str | Site],
    edits: Edits = (),
    attention: str | None = None,
) -> Trace:
    """d metric / d site, one forward and one backward.

    Parameters
    ----------
    metric: logits [prompt, pos, d_vocab] -> [prompt] (or a scalar); prompts are independent, so their sum is
        differentiated. Logits at pads are meaningless.
    sites: where to differentiate; the result is indexed like a trace, `g["L9.z"]`, in metric units per site unit.
    edits: in force during the forward; the gradient at an edited site is that of the edited value.

    Raises
    ------
    EditError: the metric does not depend on a site, or is not finite.
    """  # fmt: skip
    expand_all(sites, binding.facts)  # refuses an empty list
    plan = prepare(binding, tokens, capture=sites, edits=edits, attention=attention)
    live = {key: Read(*key, live=True) for key in plan.reads}
    with ExitStack() as stack:
        stack.enter_context(rooted(binding))
        logits = forward(
            binding, tokens, list(live.values()), plan.writes, logits="all", attention=plan.attention
        )
        assert logits is not None
        total = metric(logits).sum()
        if not bool(torch.isfinite(total)):
            raise EditError(
                "the metric is not finite",
                why="its gradient would be NaN",
                instead="check the prompts and the edits",
            )
        if not total.requires_grad:
            raise EditError(
                "the metric does not depend on the logits",
                why="it has no gradient",
                instead="compute it from its argument with torch functions",
            )
        values = [read.value for read in live.values() if read.value is not None]
        grads = torch.autograd.grad(total, values, allow_unused=True)
    unfired(plan.receipts)
    reads = {}
    for (key, read), value in zip(live.items(), grads, strict=True):
        if value is None:
            raise EditError(f"the metric does not depend on {key[0]} of layer {key[1]}", why="no path leads from it to the metric",
                            instead="ask for sites before the metric's positions and layers")  # fmt: skip
        reads[key] = replace(
            read,
            live=False,
            value=value.detach().reshape(
                *tokens.ids.shape, *value.shape[value.dim() - _inner(value, tokens) :]
            ),
        )
    trace = Trace(tokens, binding.facts, plan.numerics, tuple(plan.receipts), reads, logits.detach())
    refuse_nan(trace, binding)
    return trace


def _inner(value: Tensor, tokens: Tokens) -> int:
    """Axes after [prompt, pos]: a flattened [prompt * pos, d] has one."""
    return value.dim() - 2 if value.shape[:2] == tokens.ids.shape else value.dim() - 1
