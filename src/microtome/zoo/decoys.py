"""Compiled models inside larger ones: parts that are busy and do not matter, so that false alarms can be counted.

A decoy reads real variables (or other decoys) and writes to coordinates of the stream that no part of the mechanism reads.
Half of them are twins of a true head or neuron, so that they carry as much about the answer as the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from microtome.errors import ModelError
from microtome.results.seeds import rng
from microtome.zoo.spec import Array, Block, Coordinates, Head, Neurons, Spec

__all__ = ["Decoys", "with_decoys"]


Places = np.ndarray[Any, np.dtype[np.intp]]


@dataclass(frozen=True)
class Decoys:
    """What is added to a compiled model.

    heads: decoy heads in the layer that has most true heads; the others are filled up to the same number. neurons: in
    every layer. layers: further layers of decoys only, at places from the seed. width: coordinates of the stream that
    decoys write. rotate: an orthogonal rotation of the stream's basis from the seed; without it coordinates mean
    variables. Head order is from the seed.

    Raises
    ------
    ModelError: negative numbers, or decoys with nowhere to write.
    """

    heads: int = 2
    neurons: int = 8
    layers: int = 1
    width: int = 8
    rotate: bool = True

    def __post_init__(self) -> None:
        if min(self.heads, self.neurons, self.layers, self.width) < 0:
            raise ModelError(f"{self} has a negative number", instead="give numbers from 0 on")
        if (self.heads or self.neurons) and not self.width:
            raise ModelError("decoys have nowhere to write", why="width is 0", instead="give width >= 1")


def with_decoys(spec: Spec, decoys: Decoys, *, seed: int) -> tuple[Spec, dict[str, str]]:
    """The same function in a larger model, and where each true component went (old address -> new address)."""
    own = np.arange(spec.d_model, spec.d_model + decoys.width)
    wide = spec.widened(decoys.width)
    place = rng(seed, "decoys/layers")
    blocks = list(wide.blocks)
    for _ in range(decoys.layers):
        blocks.insert(int(place.integers(len(blocks) + 1)), Block())
    n_heads = max(len(b.heads) for b in blocks) + decoys.heads
    written = (
        np.abs(wide.tokens).sum(0) + (0 if wide.positions is None else np.abs(wide.positions).sum(0))
    ) > 0
    width = max((h.width for b in blocks for h in b.heads), default=4)
    filled: list[Block] = []
    for i, block in enumerate(blocks):
        before = i * (n_heads + 1)
        maker = _Maker(written, own, before, wide.scale, width, rng(seed, f"decoys/{i}"))
        heads = [*block.heads, *(maker.head(block.heads) for _ in range(n_heads - len(block.heads)))]
        order = rng(seed, f"decoys/order/{i}").permutation(len(heads))
        heads = [heads[int(k)] for k in order]
        written = written | np.any([np.abs(h.out).sum(0) > 0 for h in heads], axis=0)
        maker = _Maker(written, own, before + n_heads, wide.scale, width, rng(seed, f"decoys/neurons/{i}"))
        parts = [*block.neurons, *([maker.neurons(block.neurons, decoys.neurons)] if decoys.neurons else [])]
        for part in parts:
            written = written | (np.abs(part.out).sum(0) > 0) | (part.out_bias != 0)
        filled.append(Block(heads, parts, block.origin))
    turn = _rotation(wide.d_model, rng(seed, "decoys/rotation")) if decoys.rotate else None
    made = replace(wide, blocks=filled, rotation=turn)
    return made, _moved(made)


def _moved(spec: Spec) -> dict[str, str]:
    out = {"embed": "embed"}
    for i, block in enumerate(spec.blocks):
        out |= {head.origin: f"L{i}H{h}.z" for h, head in enumerate(block.heads) if head.origin}
        if block.origin is not None:
            out[f"L{block.origin}.mlp_out"] = f"L{i}.mlp_out"
    return out


def _rotation(d: int, random: np.random.Generator) -> Array:
    """Orthogonal, uniformly distributed (Mezzadri 2007, arXiv math-ph/0609050)."""
    q, r = np.linalg.qr(random.standard_normal((d, d)))
    turned: Array = q * np.sign(np.diag(r))
    return turned


class _Maker:
    """Decoys of one sublayer, each of which writes a vector of length about 1.

    `readable` are the coordinates that hold something there, `own` those that decoys write, `before` of them already.
    """

    def __init__(
        self,
        readable: Coordinates,
        own: Places,
        before: int,
        scale: float,
        width: int,
        random: np.random.Generator,
    ) -> None:
        self.readable, self.own, self.before, self.scale = readable, own, before, scale
        self.width, self.random = width, random

    def head(self, true: list[Head]) -> Head:
        out = np.zeros((self.width, len(self.readable)))
        size = (self.width * len(self.own)) ** -0.5
        out[:, self.own] = size * self.random.standard_normal((self.width, len(self.own)))
        if true and self.random.random() < 0.5:
            twin = true[int(self.random.integers(len(true)))]
            return replace(twin, out=self.width**0.5 * out[: twin.width], decoy=True, origin="")
        # scores of about 2: neither uniform nor hard
        size = (2 / (self.scale * self.width**0.5)) ** 0.5
        q, k, v = (self._reading(self.width) for _ in range(3))
        return Head(size * q, np.zeros(self.width), size * k, v, out, decoy=True)

    def neurons(self, true: list[Neurons], n: int) -> Neurons:
        into, bias = self._reading(n), 0.5 * self.random.standard_normal(n)
        pool = [(part, j) for part in true for j in range(part.n)]
        for j in range(n // 2 if pool else 0):
            part, which = pool[int(self.random.integers(len(pool)))]
            into[:, j], bias[j] = part.into[:, which], part.bias[which]
        out = np.zeros((n, len(self.readable)))
        steep = np.maximum(1, np.abs(into).max(0) + np.abs(bias))  # as the steps of a staircase are
        size = (n * len(self.own)) ** -0.5 / steep
        out[:, self.own] = size[:, None] * self.random.standard_normal((n, len(self.own)))
        return Neurons(into, bias, out, np.zeros(len(self.readable)), decoy=True)

    def _reading(self, n: int) -> Array:
        made: Array = self.readable[:, None] * self.random.standard_normal((len(self.readable), n))
        made[self.own] *= 0.5 / max(self.before, 1) ** 0.5
        return made
