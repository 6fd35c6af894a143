"""Models trained to have a given mechanism and no other: strict interchange training in the manner of InterpBench.

After Gupta et al. 2024 (arXiv 2407.14494), who train transformers on Geiger et al.'s interchange intervention loss (2022,
arXiv 2112.00826) so that each variable of a program lives in a node of its own, and so that exchanging any other node
changes nothing. Here the programs are the zoo's; which head or MLP holds what follows from the compiled program's layers and
the seed. Three losses are added: the program's outputs (behaviour, weight 1), its outputs with a node's variables taken from
another input when that node is taken from it (interchange, weight 1), and its own outputs when a node that holds nothing is
(strictness, weight 0.4). A model counts only if held-out inputs confirm it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.results.seeds import rng
from microtome.zoo.compile import Compiled, compile_program
from microtome.zoo.programs import Program, program
from microtome.zoo.rasp import evaluate
from microtome.zoo.training import Optimiser, Recipe

__all__ = ["NAMES", "TARGET", "WEIGHTS", "Interchange", "recipe", "run"]

NAMES = ("shift", "induction", "first_occurrence", "detect_abc")
"""Programs with a strictly trained model."""
WEIGHTS = {"behaviour": 1.0, "interchange": 1.0, "strict": 0.4}
"""Of the three losses, as in the paper."""
TARGET = 0.99
"""Share of outputs that must be right, at every node, on held-out inputs."""
HEADS, HEAD_DIM, D_MODEL, D_MLP, LAYERS = 4, 8, 32, 64, 2
_HELD_OUT = 0.25
_TRIPLES, _TESTS, _ROWS = 8192, 512, 128


def recipe(name: str, *, seed: int, steps: int = 4000) -> Recipe:
    """How the model of one program is trained.

    Raises
    ------
    ModelError: no such program, or one with numbers for outputs.
    """
    source = program(name)
    if source.output.kind != "categorical":
        raise ModelError(
            f"{name} puts out numbers",
            why="its outputs are scored as categories",
            instead=f"one of {', '.join(NAMES)}",
        )
    made = compile_program(source)
    config = {
        "vocab_size": len(made.words),
        "hidden_size": D_MODEL,
        "num_hidden_layers": max(LAYERS, len(made.spec.blocks)),
        "num_attention_heads": HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": D_MLP,
        "hidden_act": "gelu",
        "causal": source.causal,
        "max_position_embeddings": source.length + 1,
        "initializer_range": 0.1,
        "bos_token_id": 0,
    }
    return Recipe(
        name=f"interchange_{name}",
        config=config,
        seed=seed,
        steps=steps,
        target=TARGET,
        batch=_ROWS,
        every=200,
        optimiser=Optimiser(lr=3e-3, warmup=100, schedule="cosine", clip=1.0),
        data={"program": name, "weights": WEIGHTS, "held_out": _HELD_OUT},
    )


def run(
    module: Any, ids: Tensor, taken: Tensor | None = None, source: Sequence[tuple[Tensor, Tensor]] = ()
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits, and what every layer's heads (z) and MLP wrote; nodes may be taken from another run, row by row.

    Shapes: ids [row, pos]; taken [row, layer, head + 1] (bool, the MLP last); logits [row, pos, d_vocab]; per layer z
    [row, pos, head, d_head] and [row, pos, d_model].

    Raises
    ------
    ModelError: a model with norms.
    """
    config = module.config
    if config.norm != "none":
        raise ModelError("this model has norms", instead="take one without")
    stream = module.model.embed_tokens(ids) + module.model.wpe.weight[: ids.shape[1]]
    written = []
    for i, layer in enumerate(module.model.layers):
        attention = layer.self_attn
        shape = (*ids.shape, config.num_attention_heads, config.head_dim)
        q, k, v = (p(stream).view(shape) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        scores = torch.einsum("rqhd,rkhd->rhqk", q, k) * attention.scaling
        if config.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=ids.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        z = torch.einsum("rhqk,rkhd->rqhd", scores.softmax(-1), v)
        if taken is not None:
            z = torch.where(taken[:, i, None, :-1, None], source[i][0], z)
        stream = stream + attention.o_proj(z.reshape(*ids.shape, -1))
        mlp = layer.mlp(stream)
        if taken is not None:
            mlp = torch.where(taken[:, i, None, -1:], source[i][1], mlp)
        stream = stream + mlp
        written.append((z, mlp))
    return module.lm_head(stream), written


@dataclass(frozen=True)
class Triples:
    """Interchanges: the input whose run is changed, the one it takes a node from, and the outputs that must follow.

    Shapes: base, source [row] (rows of the domain); label [row, pos] (token ids, BOS left out).
    """

    base: Tensor
    source: Tensor
    label: Tensor

    def take(self, rows: Tensor) -> Triples:
        """Some of them."""
        return Triples(self.base[rows], self.source[rows], self.label[rows])


class Interchange:
    """The data of one training: which node holds which variables, and what interchanges must give.

    Built from the recipe alone. `loss` and `measure` are what `training.train` takes.
    """

    def __init__(self, made_by: Recipe) -> None:
        self.recipe = made_by
        self.program: Program = program(str(made_by.data["program"]))
        self.compiled: Compiled = compile_program(self.program)
        self.words = self.compiled.words
        self.layers, self.heads = (
            int(made_by.config[k]) for k in ("num_hidden_layers", "num_attention_heads")
        )
        self.weights: Mapping[str, float] = made_by.data["weights"]
        rows = [[0, *(self.words.index(w) for w in t)] for t in self.program.domain]
        self.ids = torch.tensor(rows)
        self.labels = torch.tensor([self._tokens(r[self.program.output.name]) for r in self.program.runs])
        order = rng(made_by.seed, f"{made_by.name}/split").permutation(len(rows))
        away = max(2, int(len(rows) * float(made_by.data["held_out"])))
        self.kept, self.held_out = order[away:], order[:away]

    def _tokens(self, values: Sequence[Any]) -> list[int]:
        return [self.words.index(str(v)) for v in values]

    @cached_property
    def places(self) -> dict[str, str]:
        """Address in the compiled model -> address in this one: the same layer, a head from the seed."""
        out = {"embed": "embed"}
        for i in range(self.layers):
            order = rng(self.recipe.seed, f"{self.recipe.name}/heads/{i}").permutation(self.heads)
            out |= {f"L{i}H{h}.z": f"L{i}H{int(k)}.z" for h, k in enumerate(order)}
            out[f"L{i}.mlp_out"] = f"L{i}.mlp_out"
        return out

    @cached_property
    def holds(self) -> dict[str, tuple[str, ...]]:
        """Node -> the program's variables that live in it, for nodes that hold any (the embedding left out)."""
        out: dict[str, tuple[str, ...]] = {}
        for variable in self.compiled.variables:
            if variable.site != "embed":
                node, name = self.places[variable.site], variable.name.removesuffix(".share")
                out[node] = (*out.get(node, ()), name)
        return out

    @cached_property
    def empty(self) -> tuple[str, ...]:
        """Nodes that hold nothing."""
        every = [f"L{i}H{h}.z" for i in range(self.layers) for h in range(self.heads)]
        every += [f"L{i}.mlp_out" for i in range(self.layers)]
        return tuple(n for n in every if n not in self.holds)

    def mask(self, nodes: Sequence[str]) -> Tensor:
        """One node per row as what `run` takes. [row, layer, head + 1]."""
        out = torch.zeros(len(nodes), self.layers, self.heads + 1, dtype=torch.bool)
        for row, node in enumerate(nodes):
            layer, _, head = node.split(".")[0][1:].partition("H")
            out[row, int(layer), int(head) if head else self.heads] = True
        return out

    # ---- interchanges --------------------------------------------------------------------------
    def triples(self, node: str, rows: np.ndarray, n: int, part: str) -> Triples:
        """n interchanges of a node's variables between the inputs `rows`; those that the program has no answer for are left out.

        Raises
        ------
        ModelError: hardly any have an answer.
        """
        random = rng(self.recipe.seed, f"{self.recipe.name}/{part}/{node}")
        found: list[tuple[int, int, list[int]]] = []
        for _ in range(4 * n):
            if len(found) == n:
                break
            base, source = (int(k) for k in rows[random.integers(len(rows), size=2)])
            given = {name: self.program.runs[source][name] for name in self.holds[node]}
            try:
                values = evaluate(
                    self.program.output, self.program.domain[base], causal=self.program.causal, given=given
                )
                found.append((base, source, self._tokens(values[self.program.output.name])))
            except (ModelError, ValueError):  # no such run of the program: two answers, or one without a word
                continue
        if len(found) < n // 4:
            raise ModelError(
                f"{self.program.name} has no answer for most interchanges of {', '.join(self.holds[node])}",
                instead="train another program",
            )
        bases, sources, labels = zip(*found, strict=True)
        return Triples(torch.tensor(bases), torch.tensor(sources), torch.tensor(labels))

    @cached_property
    def training(self) -> dict[str, Triples]:
        """Per node that holds something, interchanges between inputs that are trained on."""
        return {node: self.triples(node, self.kept, _TRIPLES, "train") for node in self.holds}

    @cached_property
    def testing(self) -> dict[str, Triples]:
        """The same between held-out inputs."""
        return {node: self.triples(node, self.held_out, _TESTS, "test") for node in self.holds}

    # ---- training ------------------------------------------------------------------------------
    def loss(self, module: Any, generator: torch.Generator) -> Tensor:
        """The three losses of one step: half of the rows exchange a node that holds something, half one that does not."""
        half = self.recipe.batch // 2
        held, empty = list(self.holds), list(self.empty)
        of = [held[int(k)] for k in torch.randint(len(held), (half,), generator=generator)]
        parts = []
        for node in of:
            pool = self.training[node]
            parts.append(pool.take(torch.randint(len(pool.base), (1,), generator=generator)))
        kept = torch.from_numpy(self.kept)
        other = kept[torch.randint(len(kept), (2, half), generator=generator)]
        nodes = of + [empty[int(k)] for k in torch.randint(len(empty), (half,), generator=generator)]
        base = torch.cat([*(p.base for p in parts), other[0]])
        source = torch.cat([*(p.source for p in parts), other[1]])
        label = torch.cat([*(p.label for p in parts), self.labels[other[0]]])
        own, written = run(module, self.ids[source])
        logits = run(module, self.ids[base], self.mask(nodes), written)[0]
        exchanged, strict = logits[:half], logits[half:]
        return (
            self.weights["behaviour"] * _entropy(own, self.labels[source])
            + self.weights["interchange"] * _entropy(exchanged, label[:half])
            + self.weights["strict"] * _entropy(strict, label[half:])
        )

    def measure(self, module: Any) -> dict[str, float]:
        """Shares of right outputs on held-out inputs; "accuracy" is the smallest of them.

        "behaviour": of the program's own outputs. "L0H1.z": of a node that holds something, interchanges, counted where
        they change the program's output. "empty": of the nodes that hold nothing, the share of outputs that stay as they
        were, the smallest of all such nodes. "moved": the largest mean change of a logit by such a node.
        """
        rows = torch.from_numpy(self.held_out)
        logits = run(module, self.ids[rows])[0]
        out = {"behaviour": _right(logits, self.labels[rows])}
        for node, test in self.testing.items():
            found, _ = self.exchange(module, node, test.base, test.source)
            out[node] = _right(found, test.label, test.label != self.labels[test.base])
        base, source = rows, rows.roll(1 + len(rows) // 3)
        stays, moved = [], []
        for node in self.empty:
            found, before = self.exchange(module, node, base, source)
            stays.append(_right(found, before[:, 1:].argmax(-1)))
            moved.append(float((found - before)[:, 1:].abs().mean()))
        out["empty"] = min(stays)
        return {"accuracy": min(out.values()), **out, "moved": max(moved)}

    def exchange(self, module: Any, node: str, base: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the inputs `base` with a node from `source`, and without. base, source [row]; [row, pos, d_vocab]."""
        before, written = run(module, self.ids[torch.cat([base, source])])
        theirs = [(z[len(base) :], mlp[len(base) :]) for z, mlp in written]
        after = run(module, self.ids[base], self.mask([node] * len(base)), theirs)[0]
        return after, before[: len(base)]


def _entropy(logits: Tensor, label: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), label.flatten())


def _right(logits: Tensor, label: Tensor, where: Tensor | None = None) -> float:
    hit = logits[:, 1:].argmax(-1) == label
    return float((hit if where is None else hit[where]).double().mean())
