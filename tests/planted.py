"""Models whose mechanism is known because everything else was cut out of them, and pairs for them."""

from __future__ import annotations

import torch

import tiny
from microtome.facade import Model
from microtome.model.load import load_module
from microtome.tasks.pairs import Donors, PairTask, Side

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


def copier() -> Model:
    """A gpt2 in which head L1H2 looks at position WHERE and copies the token there to the output; nothing else writes.

    Tokens live in the first d_head dimensions of the stream, positions in others.
    """
    hf = tiny.build("gpt2")
    d, width = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        hf.transformer.wte.weight.zero_()
        words = torch.randn(len(hf.transformer.wte.weight), width, generator=gen)
        hf.transformer.wte.weight[:, :width] = words / words.norm(dim=1, keepdim=True)
        hf.transformer.wpe.weight.zero_()
        hf.transformer.wpe.weight[:LENGTH, d - LENGTH :] = torch.eye(LENGTH)
        for index, block in enumerate(hf.transformer.h):
            for module in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_proj):
                module.weight.zero_()
                module.bias.zero_()
            if index == HEAD[0]:
                here = slice(HEAD[1] * width, (HEAD[1] + 1) * width)
                q, k, v = (
                    block.attn.c_attn.weight[:, part * d : (part + 1) * d][:, here] for part in range(3)
                )
                q[d - LENGTH :, 0] = 4
                k[d - LENGTH + WHERE, 0] = 8
                v[:width] = torch.eye(width)
                block.attn.c_proj.weight[here, :width] = 2 * torch.eye(width)
    return Model(load_module(hf.eval()))


TWIN = (1, 3)


def twins() -> Model:
    """The copier twice: head L1H3 does exactly what L1H2 does, and so loudly that either alone gives the same output.

    The final norm divides what both write; each is so much larger than the embedding that one half of it says the same.
    """
    model = copier()
    hf = model.hf
    d, width = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    with torch.no_grad():
        attention = hf.transformer.h[TWIN[0]].attn
        own, other = (slice(h * width, (h + 1) * width) for h in (HEAD[1], TWIN[1]))
        for part in range(3):
            weight = attention.c_attn.weight[:, part * d : (part + 1) * d]
            weight[:, other] = weight[:, own].clone()
        attention.c_proj.weight[own] *= 500
        attention.c_proj.weight[other] = attention.c_proj.weight[own].clone()
    return Model(load_module(hf.eval()))


class Lookup:
    """Donors for `copied`: the token at WHERE is the variable, the two first tokens are the surface."""

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        gen = torch.Generator().manual_seed(seed + len(kind))
        side = task.corrupt if kind == "irrelevant" else task.clean
        ids = torch.tensor(side.ids)
        at = [WHERE] if kind == "wrong_value" else [0, 1]
        for i in range(task.n):
            taken = {*task.clean.ids[i], *task.corrupt.ids[i]}
            free = [t for t in range(3, tiny.VOCAB) if t not in taken]
            order = torch.randperm(len(free), generator=gen)
            for n, place in enumerate(at):
                ids[i, place] = free[int(order[n])]
        rows = tuple(map(tuple, ids.tolist()))
        own = tuple(((row[WHERE],),) for row in rows) if kind == "wrong_value" else ()
        base = tuple(((row[WHERE],),) for row in task.corrupt.ids)
        named = tuple({"token": str(row[WHERE])} for row in rows)
        return Donors(tuple(f"{kind} {i}" for i in range(task.n)), rows, dict(side.spans), named, kind=kind,
                      answers=own, wrong=base if own else ())  # fmt: skip

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        raise NotImplementedError


def copied(n: int = 14, seed: int = 0) -> PairTask:
    """Pairs for the copier: the answer is the token at WHERE, declared as a variable, with donors of every kind."""
    gen = torch.Generator().manual_seed(seed)
    clean = torch.stack([3 + torch.randperm(tiny.VOCAB - 3, generator=gen)[: LENGTH + 1] for _ in range(n)])
    corrupt = clean[:, :LENGTH].clone()
    corrupt[:, WHERE] = clean[:, LENGTH]
    sides = []
    for name, rows in (("clean", clean[:, :LENGTH].tolist()), ("corrupt", corrupt.tolist())):
        spans = {"subject": ((WHERE, WHERE + 1),) * n, "end": ((LENGTH - 1, LENGTH),) * n}
        values = tuple({"token": str(row[WHERE])} for row in rows)
        sides.append(Side(tuple(f"{name} {i}" for i in range(n)), tuple(map(tuple, rows)), spans, values))
    answers, wrong = (tuple(((row[WHERE],),) for row in side.ids) for side in sides)
    groups = {"entity": tuple(f"seed {seed} pair {i}" for i in range(n))}
    return PairTask("copied", sides[0], sides[1], answers, wrong, frozenset({"token"}), groups, source=Lookup(),
                    provenance={"flips": True})  # fmt: skip


QUERY = (1, 2)


def looker(sharp: float = 40.0) -> Model:
    """A gpt2 in which the last token tells head L1H2 where to look: even tokens at position 1, odd ones at WHERE.

    The attention is saturated (`sharp` nats between the two), so the gradient at its query is 0 though the query decides
    everything. Tokens live in the first d_head dimensions, positions behind them, the parity of the token in one.
    """
    model = copier()
    hf = model.hf
    d, width = hf.config.n_embd, hf.config.n_embd // hf.config.n_head
    parity = width
    with torch.no_grad():
        rows = torch.arange(len(hf.transformer.wte.weight))
        hf.transformer.wte.weight[:, parity] = 1.0 - 2.0 * (rows % 2)
        block = hf.transformer.h[QUERY[0]]
        here = slice(QUERY[1] * width, (QUERY[1] + 1) * width)
        q, k = (block.attn.c_attn.weight[:, part * d : (part + 1) * d][:, here] for part in range(2))
        q.zero_()
        k.zero_()
        size = (sharp * width**0.5) ** 0.5
        q[parity, 0] = size
        k[d - LENGTH + 1, 0] = size
        k[d - LENGTH + WHERE, 0] = -size
    return Model(load_module(hf.eval()))


def looked(n: int = 14, seed: int = 0) -> PairTask:
    """Pairs for the looker that differ in the last token alone: the answer is the token looked at, the wrong one the other."""
    gen = torch.Generator().manual_seed(seed)
    clean = torch.stack([3 + torch.randperm(tiny.VOCAB - 4, generator=gen)[:LENGTH] for _ in range(n)])
    clean[:, -1] = 4 + 2 * torch.randint(0, 40, (n,), generator=gen)
    corrupt = clean.clone()
    corrupt[:, -1] += 1
    spans = {"end": ((LENGTH - 1, LENGTH),) * n}
    sides = [Side(tuple(f"{name} {i}" for i in range(n)), tuple(map(tuple, rows.tolist())), spans, tuple({} for _ in range(n)))
             for name, rows in (("clean", clean), ("corrupt", corrupt))]  # fmt: skip
    answers, wrong = (tuple(((int(row[at]),),) for row in clean) for at in (1, WHERE))
    groups = {"entity": tuple(f"seed {seed} pair {i}" for i in range(n))}
    return PairTask("looked", sides[0], sides[1], answers, wrong, groups=groups)


def linear() -> Model:
    """A gpt2 that is linear: uniform attention, no activation function, norms whose divisor does not move (float64)."""
    hf = tiny.build("gpt2", activation_function="linear", layer_norm_epsilon=1e12).double()
    d = hf.config.n_embd
    with torch.no_grad():
        norms = [hf.transformer.ln_f]
        for block in hf.transformer.h:
            block.attn.c_attn.weight[:, : 2 * d] = 0
            block.attn.c_attn.bias[: 2 * d] = 0
            norms += [block.ln_1, block.ln_2]
        for norm in norms:
            norm.weight.mul_(1e6)
    return Model(load_module(hf.eval()))
