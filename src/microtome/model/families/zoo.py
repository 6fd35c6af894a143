"""The zoo's own module (`microtome.zoo.module`): norms, MLPs and positions are optional, attention may see both ways."""

from __future__ import annotations

from microtome.model.family import Block, Family, register

register(
    Family(
        "microtome_zoo", ("microtome_zoo",), lambda c, i: Block(rotates=False), positions="learned",
        causal=lambda c: c.causal,
    )
)  # fmt: skip
