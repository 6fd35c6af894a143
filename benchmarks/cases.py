"""The work: IOI prompts as token ids, the same for every contestant."""

from __future__ import annotations

import random

NAMES = [("Mary", "John"), ("Tom", "James"), ("Dan", "Sarah"), ("Anna", "Mark"), ("Paul", "Kate"), ("Emma", "Jack"), ("Lisa", "Alex"), ("Luke", "Jane"),
         ("Adam", "Mary"), ("Ryan", "Anna"), ("Sarah", "Tom"), ("Mark", "Emma"), ("Kate", "Dan"), ("Jack", "Lisa"), ("Alex", "Paul"), ("Jane", "Luke")]  # fmt: skip
AT_THE_START = {"Emma": "Alice", "Lisa": "Emily", "Ryan": "David", "Kate": "Marie"}
"""Names that are several tokens without a space in front, and whom they give way to at the start of a prompt."""
SHARED = "When {a} and {b} went to the store, {s} gave a drink to"
FIRST = "{a} and {b} went to the big store together, {s} gave a drink to"


def pairs(tokenizer, n: int, shared: bool) -> dict:
    """n aligned IOI pairs: the subject swapped (a long shared prefix), or other names from the first token on."""
    base, donor, answer, wrong = [], [], [], []
    for i in range(n):
        a, b = NAMES[i]
        c, d = NAMES[(i + 1) % len(NAMES)]
        if shared:
            donor.append(SHARED.format(a=a, b=b, s=b))
            base.append(SHARED.format(a=a, b=b, s=a))
        else:
            a, c = AT_THE_START.get(a, a), AT_THE_START.get(c, c)
            donor.append(FIRST.format(a=a, b=b, s=b))
            base.append(FIRST.format(a=c, b=d, s=c))
        answer.append(_one(tokenizer, " " + a))
        wrong.append(_one(tokenizer, " " + b))
    ids = [tokenizer(text).input_ids for text in base]
    donors = [tokenizer(text).input_ids for text in donor]
    if len({len(row) for row in (*ids, *donors)}) != 1:
        raise SystemExit("the prompts do not align under this tokenizer")
    same = min(next(i for i, (x, y) in enumerate(zip(p, q, strict=True)) if x != y) for p, q in zip(ids, donors, strict=True))  # fmt: skip
    return {"ids": ids, "donor": donors, "answer": answer, "wrong": wrong, "shared": same}


def _one(tokenizer, text: str) -> int:
    found = tokenizer(text, add_special_tokens=False).input_ids
    if len(found) != 1:
        raise SystemExit(f"{text!r} is no single token here")
    return found[0]


def cells(kind: str, layers: int, heads: int, length: int, last: bool = False) -> list[list]:
    """[layer, position, head or None] of every cell."""
    positions = [length - 1] if last else range(length)
    which = [None] if kind == "resid" else range(heads)
    return [[layer, p, h] for layer in range(layers) for p in positions for h in which]


def some(every: list, most: int, seed: int = 0) -> list:
    """At most so many cells, spread at random: for contestants whose cells all cost the same."""
    if len(every) <= most:
        return every
    return sorted(random.Random(seed).sample(every, most))


def whole_layers(every: list, most: int) -> list:
    """All cells of evenly spread layers: for contestants that run a layer's cells together."""
    layers = sorted({layer for layer, _, _ in every})
    step = max(1, len(layers) // max(1, most))
    kept = set(layers[::step][:most]) if len(layers) > most else set(layers)
    return [cell for cell in every if cell[0] in kept]
