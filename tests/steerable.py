"""A model with a planted mood: one direction of the stream raises glad words and lowers sad ones, nothing else does.

No part writes to the stream, so every value there is its token's embedding. The next token follows a chain of plain words;
openings have embeddings eighty times as long as the others (an attention sink's norm), in directions of their own.
"""

from __future__ import annotations

import numpy as np
import torch

import tiny
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.tasks.labelled import LabelledText
from microtome.zoo.words import word_tokenizer

OPENINGS = [f"open{i}" for i in range(6)]
PLAIN = [f"plain{i}" for i in range(12)]
GLAD, SAD = [f"glad{i}" for i in range(4)], [f"sad{i}" for i in range(4)]
WORDS = [*OPENINGS, *PLAIN, *GLAD, *SAD]
D = 32
MOOD = 0
SITE = "L1.resid_post"


def mood() -> torch.Tensor:
    """The planted direction, length 1."""
    return torch.eye(D)[MOOD]


def model(strength: float = 1.0) -> Model:
    """See the module; strength 0 plants nothing: the direction reaches no word."""
    hf = tiny.build(
        "llama",
        hidden_size=D,
        vocab_size=len(WORDS) + 1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
        hf.model.norm.weight.fill_(1.0)
        words = torch.zeros(len(WORDS) + 1, D)
        words[:, 1:] = 2 * torch.randn(len(words), D - 1, generator=gen) / D**0.5
        n, p, g = len(OPENINGS), len(PLAIN), len(GLAD)
        words[:n] *= 40
        words[n + p : n + p + g, MOOD] = 1
        words[n + p + g : n + p + 2 * g, MOOD] = -1
        hf.model.embed_tokens.weight.copy_(words)
        head = torch.zeros_like(words)
        for i in range(p):
            head[n + (i + 1) % p] = 0.3 * words[n + i] * (torch.arange(D) != MOOD)
        head[n + p : n + p + g, MOOD] = 0.5 * strength
        head[n + p + g : n + p + 2 * g, MOOD] = -0.5 * strength
        hf.lm_head.weight.copy_(head)
    return Model(load_module(hf.eval(), tokenizer=word_tokenizer(WORDS, bos=False)))


def texts(
    n: int = 24, seed: int = 0, *, last_only: bool = False, random_labels: bool = False
) -> LabelledText:
    """Texts of plain words with glad or sad ones among them (or one at the very end), each after an opening."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for i in range(n):
        kind = GLAD if i % 2 else SAD
        body = list(rng.choice(PLAIN, 5))
        if last_only:
            body.append(str(rng.choice(kind)))
        else:
            body[1], body[3] = (str(w) for w in rng.choice(kind, 2))
        rows.append(" ".join([str(rng.choice(OPENINGS)), *map(str, body)]))
        labels.append(i % 2)
    if random_labels:
        labels = rng.permutation(labels).tolist()
    return LabelledText("mood", tuple(rows), tuple(labels), ("sad", "glad"))


def prompts(n: int = 12, seed: int = 5) -> list[str]:
    """Plain texts to continue."""
    rng = np.random.default_rng(seed)
    return [" ".join([str(rng.choice(OPENINGS)), *map(str, rng.choice(PLAIN, 4))]) for _ in range(n)]


def moody(n: int = 6, seed: int = 9) -> list[str]:
    """Texts that end in a glad word: the mood is in their stream."""
    rng = np.random.default_rng(seed)
    return [f"{p} {rng.choice(GLAD)}" for p in prompts(n, seed)]


def neutral(n: int = 6) -> list[str]:
    """Texts that the model predicts well: the chain from one of its places on."""
    return [" ".join(["open0", *(PLAIN[(i + k) % len(PLAIN)] for k in range(7))]) for i in range(n)]


def attentive() -> Model:
    """A random model over the same words, in which every token depends on those before it."""
    hf = tiny.build(
        "llama", vocab_size=len(WORDS) + 1, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    return Model(load_module(hf, tokenizer=word_tokenizer(WORDS, bos=False)))
