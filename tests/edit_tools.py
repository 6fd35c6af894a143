"""What the tests of edits share: prompts, a run with edits, and the plain loop beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import oracle
import tiny
from microtome.model.tokens import Tokens, pack
from microtome.trace.run import run
from microtome.trace.trace import Trace

FAMILIES = ("llama", "gpt2", "gemma2")
ROWS = tiny.ragged([7, 4, 5])
DONORS = tiny.ragged([7, 4, 5], seed=1)
BOTH = [
    (n, p, side)
    for i, n in enumerate(FAMILIES)
    for j, p in enumerate(oracle.POINTS[n])
    for side in (("right", "left")[(i + j) % 2],)
]
BOTH += [
    (n, p, side)
    for n, p, side in (("llama", "pattern", "left"), ("llama", "pattern", "right"), ("gpt2", "k", "left"))
    if (n, p, side) not in BOTH
]


def run_on(
    name: str,
    rows: list[list[int]] | Tokens,
    edits: Any = (),
    capture: Any = (),
    attention: str | None = "eager",
    **kw: Any,
) -> Trace:
    tokens = rows if isinstance(rows, Tokens) else pack(rows)
    return run(tiny.bound(name, attention), tokens, edits=edits, capture=capture, **kw)


def plain_run(name: str, row: list[int], edits: list[tuple[str, Callable[[Tensor], Tensor]]]) -> Tensor:
    return oracle.run(tiny.model(name, "eager"), row, [], edits)[0]


def close_to(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_point(value: Tensor, point: str, at: slice | int, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """The plain loop's value with fn at one position; queries are the second axis of scores and pattern."""
    out = value.clone()
    place = (slice(None), at) if point in ("scores", "pattern") else at
    out[place] = fn(value[place])
    return out


DIRECTION = noise_of(24, seed=3)
SUBSPACE = noise_of(3, 24, seed=4)
