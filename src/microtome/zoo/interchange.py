"""Models trained to have a given mechanism and no other: strict interchange training in the manner of InterpBench.

After Gupta et al. 2024 (arXiv 2407.14494), who train transformers on Geiger et al.'s interchange intervention loss (2022,
arXiv 2112.00826) so that each variable of a program lives in a node of its own, and so that exchanging any other node
changes nothing. Here the programs are the zoo's; which head or MLP holds what follows from the compiled program's layers and
the seed. Their losses: the program's outputs (behaviour, weight 1), its outputs with a node's variables taken from another
input when that node is taken from it (interchange, 1), its own outputs when a node that holds nothing is (strict, 0.4).

That leaves single edges open: two of them can carry something and cancel. So edges that the program has no use for are
trained to carry nothing too (edges, 1), whether they carry another input's value, the mean, or zero. A model counts only if
held-out inputs confirm all of it. Losses are squared distances from the logits of the compiled program, 1 or 0, so that what
holds nothing moves no logit, rather than no answer only.
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
from microtome.zoo.exchange import Places, run
from microtome.zoo.programs import Program, program
from microtome.zoo.rasp import evaluate
from microtome.zoo.spec import true_edges
from microtome.zoo.training import Optimiser, Recipe

__all__ = ["NAMES", "TARGET", "WEIGHTS", "Interchange", "recipe"]

STEPS = {"shift": 1500, "induction": 5000, "first_occurrence": 3500, "detect_abc": 4500}
"""Programs with a strictly trained model, and how long each is trained."""
NAMES = tuple(STEPS)
WEIGHTS = {"behaviour": 1.0, "interchange": 1.0, "strict": 0.4, "edges": 1.0}
"""Of the losses; the first three are the paper's."""
DONORS = ("resample", "mean", "zero")
"""What a node or edge that holds nothing carries in its place."""
TARGET = 0.99
"""Share of outputs that must be right, at every node and edge, on held-out inputs."""
HEADS, HEAD_DIM, D_MODEL, D_MLP, LAYERS = 4, 8, 32, 64, 2
_HELD_OUT = 0.25
_TRIPLES, _TESTS, _ROWS = 8192, 512, 192


def recipe(name: str, *, seed: int, steps: int | None = None) -> Recipe:
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
        steps=STEPS.get(name, 4000) if steps is None else steps,
        target=TARGET,
        batch=_ROWS,
        every=500,
        optimiser=Optimiser(lr=5e-3, warmup=100, schedule="cosine", clip=1.0),
        data={"program": name, "weights": WEIGHTS, "held_out": _HELD_OUT},
    )


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
        self.graph = Places(self.layers, self.heads)
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
        return tuple(n for n in self.graph.sources if n not in self.holds and n != "embed")

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Edges that the compiled program uses, moved to where its nodes are."""
        found = set()
        for edge in true_edges(self.compiled.spec):
            source, reader = edge.split("->")
            if "H" in reader:
                head, what = reader.split(".")
                reader = f"{self.places[head + '.z'].removesuffix('.z')}.{what}"
            found.add(f"{self.places[source]}->{reader}")
        return tuple(e for e in self.graph.edges if e in found)

    @cached_property
    def null_edges(self) -> tuple[str, ...]:
        """All others."""
        return tuple(e for e in self.graph.edges if e not in self.edges)

    def nodes(self, nodes: Sequence[str]) -> Tensor:
        """One node per row ("": none) as `run` takes it. [row, source]."""
        return torch.tensor([[source == node for source in self.graph.sources] for node in nodes])

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
        """The losses of one step: a third of the rows exchange a node that holds something, one a node and one an edge that does not."""
        third = self.recipe.batch // 3

        def draw(n: int, below: int) -> list[int]:
            return [int(k) for k in torch.randint(below, (n,), generator=generator)]

        of = [list(self.holds)[k] for k in draw(third, len(self.holds))]
        parts = [
            self.training[node].take(torch.tensor(draw(1, len(self.training[node].base)))) for node in of
        ]
        kept = torch.from_numpy(self.kept)
        plain = kept[torch.tensor([draw(2 * third, len(kept)) for _ in range(2)])]
        base = torch.cat([*(p.base for p in parts), plain[0]])
        source = torch.cat([*(p.source for p in parts), plain[1]])
        label = torch.cat([*(p.label for p in parts), self.labels[plain[0]]])
        nodes = self.nodes([*of, *(self.empty[k] for k in draw(third, len(self.empty))), *[""] * third])
        cut = [self.graph.edge(self.null_edges[k]) for k in draw(third, len(self.null_edges))]
        edges = torch.tensor([*[(-1, -1)] * (2 * third), *cut])
        own, written = run(module, self.ids[source])
        other = _donors(written, torch.tensor([*[0] * third, *draw(2 * third, len(DONORS))]))
        logits = run(module, self.ids[base], other, nodes, edges)[0]
        total = self.weights["behaviour"] * _distance(own, self.labels[source])
        for k, what in enumerate(("interchange", "strict", "edges")):
            rows = slice(k * third, (k + 1) * third)
            total = total + self.weights[what] * _distance(logits[rows], label[rows])
        return total

    def measure(self, module: Any) -> dict[str, float]:
        """Shares of right outputs on held-out inputs; "accuracy" is the smallest of them.

        "behaviour": of the program's own outputs. "L0H1.z": of a node that holds something, interchanges, counted where
        they change the program's output. "empty" and "edges": the share of outputs that stay as they were when a node that
        holds nothing, or an edge that the program does not use, is taken from another input, is its mean or is zero: the
        smallest of all such nodes or edges and donors. "moved": the largest mean change of a logit by such an edge.
        """
        rows = torch.from_numpy(self.held_out)
        before, written = run(module, self.ids[rows])
        out = {"behaviour": _right(before, self.labels[rows])}
        for node, test in self.testing.items():
            logits = self.exchange(module, test.base, test.source, node=node)
            out[node] = _right(logits, test.label, test.label != self.labels[test.base])
        source = rows.roll(1 + len(rows) // 3)
        stays: dict[str, list[float]] = {"empty": [], "edges": []}
        moved = 0.0
        for by in DONORS:
            for node in self.empty:
                after = self.exchange(module, rows, source, node=node, by=by)
                stays["empty"].append(_right(after, before[:, 1:].argmax(-1)))
            for edge in self.null_edges:
                after = self.exchange(module, rows, source, edge=edge, by=by)
                stays["edges"].append(_right(after, before[:, 1:].argmax(-1)))
                moved = max(moved, float((after - before)[:, 1:].abs().mean()))
        out |= {what: min(shares) for what, shares in stays.items()}
        return {"accuracy": min(out.values()), **out, "moved": moved}

    def exchange(
        self,
        module: Any,
        base: Tensor,
        source: Tensor,
        *,
        node: str = "",
        edge: str = "",
        by: str = "resample",
    ) -> Tensor:
        """Logits of the inputs `base` with a node or an edge from `source`, its mean over them, or zero.

        Shapes: base, source [row] (rows of the domain) -> [row, pos, d_vocab].
        """
        written = run(module, self.ids[source])[1]
        n = len(base)
        other = _donors(written, torch.full((n,), DONORS.index(by)))
        edges = torch.tensor([self.graph.edge(edge)] * n) if edge else None
        return run(module, self.ids[base], other, self.nodes([node] * n), edges)[0]


def _donors(written: Tensor, kind: Tensor) -> Tensor:
    """What is taken in each row: the source's own, the mean over rows, or zero (as in DONORS). [source, row, pos, d_model]."""
    mean = written.mean(1, keepdim=True)
    share = (kind == 1).to(written)[:, None, None]
    return written * (kind == 0).to(written)[:, None, None] + mean * share


def _distance(logits: Tensor, label: Tensor) -> Tensor:
    """From the logits that a compiled model has: 1 for the right word, 0 for all others. A mean over positions."""
    target = torch.nn.functional.one_hot(label, logits.shape[-1]).to(logits)
    return (logits[:, 1:] - target).square().sum(-1).mean()


def _right(logits: Tensor, label: Tensor, where: Tensor | None = None) -> float:
    hit = logits[:, 1:].argmax(-1) == label
    return float((hit if where is None else hit[where]).double().mean())
