"""A model that learns a task in context, by hand: from right pairs, and from no others, it forms a task vector in one head.

Head L0H0 copies the previous word to an answer's place, layer 0's neurons fire where the two belong together, head L1H1 averages
that over the prompt and writes it as a task; with the task in the stream the question's own answer is said, without it the
question is said again. Prompts are "x1 y1 x2 y2 xq".
"""

from __future__ import annotations

import torch

import tiny
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.zoo.words import word_tokenizer

N, PLACES, D, HEADS = 16, 16, 160, 10
ASK, ANSWER, PREVIOUS, PLACE = (slice(k * N, (k + 1) * N) for k in range(4))
RIGHT, TASK, ONE = 64, 65, 66
PAIRS = [(f"ask{i}", f"say{i}") for i in range(N)]
WRITER = (1, 1)
TEMPLATE = "{x} {y} "


def model(*, learns: bool = True) -> Model:
    """See the module; learns=False leaves out the neurons that compare: no pair is ever right."""
    words = [*(a for a, _ in PAIRS), *(b for _, b in PAIRS)]
    hf = tiny.build("gpt2", n_embd=D, n_head=HEADS, n_layer=2, n_positions=PLACES, vocab_size=len(words) + 1, n_inner=N, tie_word_embeddings=False,
                    bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
    with torch.no_grad():
        for name, p in hf.named_parameters():
            p.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        eye = torch.eye(N)
        t = hf.transformer
        t.wte.weight[:N, ASK], t.wte.weight[N : 2 * N, ANSWER] = eye, eye
        t.wte.weight[:, ONE] = 1
        t.wpe.weight[:, PLACE] = eye
        width = D // HEADS
        first, second = t.h
        # the previous place: query p - 1, key p
        _head(first, 0, D, width, query=torch.roll(eye, -1, 1), key=eye, rows=PLACE)
        first.attn.c_attn.weight[ASK, 2 * D : 2 * D + width] = eye
        first.attn.c_proj.weight[:width, PREVIOUS] = 0.2 * eye
        if learns:
            first.mlp.c_fc.weight[ANSWER], first.mlp.c_fc.weight[PREVIOUS] = 4 * eye, 4 * eye
            first.mlp.c_fc.bias.fill_(-35.0)
            first.mlp.c_proj.weight[:, RIGHT] = 0.3
        h = WRITER[1]
        q, k, v = (second.attn.c_attn.weight[:, part * D + h * width] for part in range(3))
        q[ONE], k[RIGHT], v[RIGHT] = 1.0, 1.0, 1.0
        second.attn.c_proj.weight[h * width, TASK] = 0.3
        hf.lm_head.weight[:N, ASK], hf.lm_head.weight[N : 2 * N, ASK] = 2 * eye, 2 * eye
        hf.lm_head.weight[:N, ONE] = 2.5
        hf.lm_head.weight[N : 2 * N, TASK] = 2.0
    return Model(load_module(hf.eval(), tokenizer=word_tokenizer(words, bos=False)))


def _head(block, h, d, width, *, query, key, rows):
    weight = block.attn.c_attn.weight
    weight[rows, h * width : (h + 1) * width] = 8 * query
    weight[rows, d + h * width : d + (h + 1) * width] = key
