"""Models whose mechanism is known because everything else was cut out of them, and pairs for them."""

from __future__ import annotations

import torch

import tiny
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.tasks.pairs import PairTask, Side

LENGTH = 8
WHERE = 3  # the only token in which clean and corrupt differ
HEAD = (1, 2)


def one_head() -> Model:
    """A llama in which nothing but head L1H2 writes to the stream."""
    hf = tiny.build("llama")
    with torch.no_grad():
        for index, layer in enumerate(hf.model.layers):
            layer.mlp.down_proj.weight.zero_()
            width = hf.config.head_dim
            keep = slice(HEAD[1] * width, (HEAD[1] + 1) * width)
            kept = layer.self_attn.o_proj.weight[:, keep].clone()
            layer.self_attn.o_proj.weight.zero_()
            if index == HEAD[0]:
                layer.self_attn.o_proj.weight[:, keep] = 4 * kept
    return Model(load_module(hf.eval()))


def nothing() -> Model:
    """A llama in which no part writes to the stream: no position can reach another."""
    hf = tiny.build("llama")
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    return Model(load_module(hf.eval()))


def pairs(model: Model, n: int = 14, seed: int = 0) -> PairTask:
    """Pairs that differ in one token; the answer is what the clean run raises most, the wrong one what it lowers most."""
    gen = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, tiny.VOCAB, (n, LENGTH), generator=gen)
    corrupt = clean.clone()
    corrupt[:, WHERE] = (clean[:, WHERE] - 3 + torch.randint(1, tiny.VOCAB - 3, (n,), generator=gen)) % (
        tiny.VOCAB - 3
    ) + 3
    logits = [model.run(side.tolist(), logits="last").logits[:, -1] for side in (clean, corrupt)]
    moved = logits[0] - logits[1] + 1e-6 * torch.arange(tiny.VOCAB)
    answers = tuple(((int(t),),) for t in moved.argmax(-1))
    wrong = tuple(((int(t),),) for t in moved.argmin(-1))
    spans = {
        "subject": tuple((WHERE, WHERE + 1) for _ in range(n)),
        "end": tuple((LENGTH - 1, LENGTH) for _ in range(n)),
    }
    sides = [Side(tuple(f"{name} {i}" for i in range(n)), tuple(map(tuple, rows.tolist())), spans, tuple({} for _ in range(n)))
             for name, rows in (("clean", clean), ("corrupt", corrupt))]  # fmt: skip
    return PairTask(
        "planted",
        sides[0],
        sides[1],
        answers,
        wrong,
        groups={"entity": tuple(f"seed {seed} pair {i}" for i in range(n))},
    )


def pairs_done(model: Model, n: int = 14, seed: int = 0) -> PairTask:
    """Pairs on which the model does the task: it prefers the answer on clean prompts and the wrong one on corrupt ones."""
    many = pairs(model, 16 * n, seed)
    answer, wrong = (
        torch.tensor([side[0][0] for side in sides])[:, None] for sides in (many.answers, many.wrong)
    )
    right = []
    for side in (many.clean, many.corrupt):
        logits = model.run([list(ids) for ids in side.ids], logits="last").logits[:, -1]
        right.append((logits.gather(1, answer) > logits.gather(1, wrong))[:, 0])
    chosen = (right[0] & ~right[1]).nonzero()[:n, 0].tolist()
    assert len(chosen) == n
    return many.subset(chosen)
