"""Models in which a variable is carried by a known subspace, or only seems to be, and pairs for them.

A gpt2 of which everything but three parts is zero: head L1H2 moves the word at WHERE to the last position, the MLP of
layer 2 may read it there. Words live in the first six dimensions of the stream, other tokens in four, positions in eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tiny
from microtome.errors import TaskError
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.tasks.pairs import PairTask, Side

LENGTH, WHERE, HEAD = 8, 3, (1, 2)
WORDS = range(10, 14)
WORD, SCRATCH, OTHER, PLACE = slice(0, 6), slice(6, 12), slice(12, 16), slice(16, 24)
TEMPLATES, ENTITIES, FILLERS = range(20, 32), range(40, 52), range(60, 90)


def _empty() -> Any:
    """All weights zero but the embeddings: orthonormal words, random other tokens, one dimension a position."""
    hf = tiny.build("gpt2")
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        wte, wpe = hf.transformer.wte.weight, hf.transformer.wpe.weight
        wte.zero_()
        other = torch.randn(len(wte), 4, generator=gen)
        other -= other.mean(1, keepdim=True)  # the norms take the mean away: nothing else may hold it
        wte[:, OTHER] = other / other.norm(dim=1, keepdim=True)
        wte[list(WORDS)] = 0
        wte[list(WORDS), WORD] = torch.eye(6)[: len(WORDS)]
        wpe.zero_()
        wpe[:LENGTH, PLACE] = torch.eye(LENGTH)
        for norm in [m for m in hf.modules() if isinstance(m, torch.nn.LayerNorm)]:
            norm.weight.fill_(1.0)
            norm.bias.zero_()
        for block in hf.transformer.h:
            for module in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                module.weight.zero_()
                module.bias.zero_()
    return hf


def _copy(hf: Any, to: slice, strength: float) -> None:
    """Head L1H2 writes the word at WHERE to dimensions `to` of the last position."""
    d, width = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    attention = hf.transformer.h[HEAD[0]].attn
    here = slice(HEAD[1] * width, (HEAD[1] + 1) * width)
    with torch.no_grad():
        q, k, v = (attention.c_attn.weight[:, part * d : (part + 1) * d][:, here] for part in range(3))
        q[PLACE.stop - 1, 0] = 4
        k[PLACE.start + WHERE, 0] = 8
        v[WORD] = torch.eye(width)
        attention.c_proj.weight[here, to] = strength * torch.eye(width)


def through_stream() -> Model:
    """The word reaches the output through dimensions 0..5 of the stream: k = (number of words) - 1 directions carry it."""
    hf = _empty()
    _copy(hf, WORD, 2.0)
    return Model(load_module(hf.eval()))


def through_neurons() -> Model:
    """The word reaches the output through neurons 0..3 of layer 2 only, one a word."""
    hf = _empty()
    _copy(hf, SCRATCH, 2.0)
    mlp = hf.transformer.h[2].mlp
    with torch.no_grad():
        for i in range(len(WORDS)):
            mlp.c_fc.weight[SCRATCH.start + i, i] = 3.0
            mlp.c_proj.weight[i, i] = 2.0
        _background(mlp)
    return Model(load_module(hf.eval()))


def illusion() -> Model:
    """`through_stream` with two neurons in layer 2 that carry nothing: 0 follows the word and nothing reads it, 1 never
    moves and would push the output from the first word to the second if it did."""
    hf = _empty()
    _copy(hf, WORD, 2.0)
    mlp = hf.transformer.h[2].mlp
    with torch.no_grad():
        mlp.c_fc.weight[WORD.start, 0], mlp.c_fc.weight[WORD.start + 1, 0] = 3.0, -3.0
        mlp.c_proj.weight[1, 0], mlp.c_proj.weight[1, 1] = 4.0, -4.0
        _background(mlp)
    return Model(load_module(hf.eval()))


def _background(mlp: Any) -> None:
    """Neurons 10..19 follow the other tokens and write where no word is: natural variance that is read."""
    gen = torch.Generator().manual_seed(1)
    mlp.c_fc.weight[OTHER, 10:20] = torch.randn(4, 10, generator=gen)
    mlp.c_proj.weight[10:20, OTHER] = 0.3 * torch.randn(10, 4, generator=gen)


class Copied:
    """What makes these pairs: the answer is the word, whatever else the prompt holds."""

    def outcome(self, values: Any, variable: str, value: str) -> Any:
        return ((int(value if variable == "word" else values["word"]),),)

    def donors(self, task: PairTask, kind: str, seed: int) -> Any:
        raise TaskError("no donors")

    def reference(self, task: PairTask, n: int, seed: int) -> Any:
        raise TaskError("no reference")


def pairs(n: int = 48, seed: int = 0, words: int = len(WORDS), **changes: Any) -> PairTask:
    """Pairs that differ in the word at WHERE; 12 templates (token 5), 12 entities (token 6), three other words (token 0)."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, str]]] = {"clean": [], "corrupt": []}
    groups: dict[str, list[str]] = {"template": [], "entity": []}
    for i in range(n):
        a, b = rng.permutation(words)[:2]
        template, entity = TEMPLATES[i % 12], ENTITIES[(i + i // 12) % 12]
        shared = {
            "other": str(FILLERS[int(rng.integers(3))]),
            "template": str(template),
            "who": str(entity),
            "filler": str(FILLERS[int(rng.integers(30))]),
        }
        for side, word in (("clean", a), ("corrupt", b)):
            rows[side].append({**shared, "word": str(WORDS[int(word)])})
        groups["template"].append(f"template {template}")
        groups["entity"].append(f"entity {entity}")
    sides = {name: _side(values, n) for name, values in rows.items()}
    answers, wrong = (tuple(((int(v["word"]),),) for v in rows[name]) for name in ("clean", "corrupt"))
    made = {
        "differs": frozenset({"word"}),
        "groups": groups,
        "source": Copied(),
        "provenance": {"flips": True},
    }
    return PairTask("aligned", sides["clean"], sides["corrupt"], answers, wrong, **{**made, **changes})


def _side(values: list[dict[str, str]], n: int) -> Side:
    ids = []
    for v in values:
        row = [int(v["other"]), int(v["filler"]), 5, int(v["word"]), 6, int(v["template"]), int(v["who"]), 7]
        ids.append(tuple(row))
    spans = {"word": ((WHERE, WHERE + 1),) * n, "end": ((LENGTH - 1, LENGTH),) * n}
    declared = tuple({k: v[k] for k in ("word", "other", "template")} for v in values)
    surface = tuple({k: v[k] for k in ("who", "filler")} for v in values)
    return Side(tuple(" ".join(map(str, row)) for row in ids), tuple(ids), spans, declared, surface)
