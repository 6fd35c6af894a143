"""Function vectors (Todd et al. 2024) and task vectors (Hendel et al. 2023): a task of a few demonstrations as one vector.

Heads are found by what their mean output at the last token of correct prompts does in prompts whose labels are shuffled; the
vector is the sum of the strongest heads' means. It is tested on held-out pairs without any demonstration, against the same
procedure on shuffled labels from its very start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.directions import isotropic
from microtome.controls.intervals import mean_interval
from microtome.errors import TaskError
from microtome.methods import function_parts as parts
from microtome.methods.function_parts import Asked, Floats, Pair, Scored, Writer, ZeroShot
from microtome.methods.headlines import headlined
from microtome.methods.setting import settings
from microtome.methods.steer_controls import rank_p
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Given
from microtome.replay.sweep import Bench, sweep
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.sites import At, expand_all

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model

__all__ = ["FunctionOptions", "function_vector"]

MANDATORY = ("receipts", "held_out", "in_context", "shuffled_labels", "random_vectors")


@dataclass(frozen=True)
class FunctionOptions:
    """How much is run.

    template, other: how a pair is written, and another way on which the vector is tried again. shots: demonstrations in a prompt.
    Ten shots are Todd et al.'s. means: few-shot prompts that a head's mean is taken over. prompts: prompts with shuffled labels on
    which a head's effect is measured. heads: how many are summed.
    layers: candidates for where the vector is put (None: about ten from first to last). nulls: shuffled-label vectors, each found
    by the whole procedure. randoms: vectors of the same norm in random directions.
    """

    template: str = "Q: {x}\nA: {y}\n\n"
    other: str = "{x} -> {y}\n"
    shots: int = 10
    means: int = 32
    prompts: int = 16
    heads: int = 10
    layers: tuple[int, ...] | None = None
    nulls: int = 19
    randoms: int = 39
    alpha: float = 0.05


@technique("function_vector", "1", controls=("receipts", "held_out", "in_context", "shuffled_labels", "random_vectors", "task_vector", "other_template"),
           mandatory=MANDATORY, figure="microtome.figures.functions:draw", random=True)  # fmt: skip
def function_vector(
    model: Model, pairs: Any, *, options: FunctionOptions | None = None, seed: int = 0
) -> Result:
    """Find a function vector for pairs of words, and a task vector beside it, and test both zero-shot on held-out pairs.

    pairs: (word, answer) pairs, or anything with `.pairs` (`tasks.word_pairs`). Half of the answers build, the others test. The layer
    where a vector is put is chosen on pairs that build. Accuracy counts the first token of the answer.

    Effects: [site, prompt, metric], what each head's mean output does to the log-probability of the answer (nats) in prompts with
    shuffled labels; the null band is that of the largest head of the shuffled-label procedures. Tables: "accuracy", "nulls", "heads",
    "layers". Tensors: "function_vector", "task_vector" [d_model].

    Raises
    ------
    TaskError: too few pairs, pairs with two answers, a template without both words, fewer pairs than a prompt shows.
    SiteError: a family whose heads' outputs cannot be read.
    """
    o = options or FunctionOptions()
    build, test = parts.halves(parts.read_pairs(pairs), seed)
    s = _Study(model, build, test, o, seed)
    s.run()
    ran = [
        s.receipts(),
        s.held_out(),
        s.in_context(),
        *s.against_nulls(),
        s.task_vectors(),
        s.other_template(),
    ]
    return headlined(s.result(ran))


@dataclass(frozen=True)
class Found:
    """One vector with how it came about. effects: [head, prompt]; chosen: numbers of the heads summed."""

    vector: Tensor
    layer: int
    effects: Floats
    chosen: list[int]
    task: Tensor
    task_layer: int
    layers: list[Scored]


class _Study:
    """The measurement under way."""

    def __init__(
        self, model: Model, build: list[Pair], test: list[Pair], o: FunctionOptions, seed: int
    ) -> None:
        self.model, self.build, self.test, self.o, self.seed = model, build, test, o, seed
        n = model.facts.n_layers
        self.layers = (
            list(o.layers)
            if o.layers is not None
            else sorted({round(x) for x in np.linspace(0, n - 1, min(n, 10))})
        )
        if not self.layers or min(self.layers) < 0 or max(self.layers) >= n:
            raise TaskError(f"layers {self.layers}", why=f"the model has {n}", instead=f"0 to {n - 1}")
        self.sites = expand_all("L*H*.head_out", model.facts)
        if (
            not 1 <= o.heads <= len(self.sites)
            or o.shots < 2
            or min(o.prompts, o.means) < 2
            or o.nulls < 1
            or o.randoms < 1
        ):
            raise TaskError(f"{o.heads} heads, {o.shots} shots, {o.prompts} prompts, {o.nulls} and {o.randoms} nulls",
                            why=f"there are {len(self.sites)} heads; shuffling needs two demonstrations, a mean two prompts, a test a null",
                            instead="see FunctionOptions")  # fmt: skip
        self.writer = Writer(model, o.template)
        none: list[list[Pair]] = [[] for _ in range(max(len(build), len(test)))]
        self.tune = ZeroShot(model, self.writer.ask(none[: len(build)], build))
        self.held = ZeroShot(model, self.writer.ask(none[: len(test)], test))
        self.fired = self.planned = 0
        demos, queries = parts.demonstrations(build, o.shots, o.prompts, seed, "effects", shuffled=True)
        self.broken = self.writer.ask(demos, queries)
        answers = [((a,),) for a in self.broken.answers]
        other = [((parts.another(a, self.broken.answers),),) for a in self.broken.answers]
        self.bench = Bench(model.binding, self.broken.rows, scoring(answers, other), (metric("logprob"),))

    def run(self) -> None:
        """The real procedure, then the same with labels shuffled in the prompts that the means come from."""
        o, total = self.o, 1 + self.o.nulls
        self.real = self._procedure("real", shuffled=False)
        progress(1, total, "procedures", "the real one")
        self.nulls = []
        for k in range(o.nulls):
            self.nulls.append(self._procedure(f"null {k}", shuffled=True))
            progress(2 + k, total, "procedures", "with shuffled labels")
        norm = float(self.real.vector.norm())
        self.plain = self.held.scored()
        self.with_vector = self.held.scored(self.real.vector, self.real.layer)
        self.null_scores = self.held.each([(_at_norm(f.vector, norm), f.layer, "add") for f in self.nulls])
        self.own_length = self.held.each([(f.vector, f.layer, "add") for f in self.nulls])
        noise = isotropic(
            len(self.real.vector), np.full(o.randoms, norm), seed=self.seed, name="function_vector"
        )
        self.random_scores = self.held.each(
            [(torch.from_numpy(v).float(), self.real.layer, "add") for v in noise]
        )
        self.with_task = self.held.scored(self.real.task, self.real.task_layer, "put")
        self.task_scores = self.held.each([(f.task, f.task_layer, "put") for f in self.nulls])
        self.shown = self._in_context(shuffled=False)
        self.shown_shuffled = self._in_context(shuffled=True)

    def _procedure(self, name: str, *, shuffled: bool) -> Found:
        """Means over few-shot prompts, heads by their effect, the sum of the best, the best layer on pairs that build."""
        demos, queries = parts.demonstrations(
            self.build, self.o.shots, self.o.means, self.seed, name, shuffled=shuffled
        )
        asked = self.writer.ask(demos, queries)
        attended = sorted({int(s.layer) for s in self.sites if isinstance(s.layer, int)})
        means = parts.last_token_means(
            self.model,
            asked,
            [*(f"L{i}.head_out" for i in attended), *(f"L{i}.resid_post" for i in self.layers)],
        )
        outputs = {i: means[f"L{i}.head_out"] for i in attended}
        effects = self._effects(outputs)
        chosen = np.argsort(-effects.mean(1), kind="stable")[: self.o.heads].tolist()
        vector = torch.stack(
            [outputs[int(self.sites[k].layer)][int(self.sites[k].index)] for k in chosen]
        ).sum(0)
        layer, scores = self.tune.best_layer(dict.fromkeys(self.layers, vector), "add")
        tasks = {i: means[f"L{i}.resid_post"] for i in self.layers}
        at, _ = self.tune.best_layer(tasks, "put")
        return Found(vector, layer, effects, chosen, tasks[at], at, scores)

    def _effects(self, outputs: dict[int, Tensor]) -> Floats:
        """Log-probability of the answer with one head's mean put in, minus without, on shuffled prompts. Shapes: [head, prompt]."""

        def values(point: str, layer: int, prompt: Tensor, column: Tensor, head: Tensor | None) -> Tensor:
            assert head is not None
            return outputs[layer][head.cpu()]

        cells = [Cell((Change(s, At(-1, single=True), "mean"),), str(s)) for s in self.sites]
        out = sweep(self.bench, cells, {"mean": Given(values)}, settings("heads"))
        self.fired += out.fired
        self.planned += out.planned
        return out.effects[..., 0].numpy().astype(np.float64)

    def _in_context(self, *, shuffled: bool) -> Scored:
        """Held-out questions behind demonstrations of pairs that build."""
        demos, _ = parts.demonstrations(
            self.build, self.o.shots, len(self.test), self.seed, "shown", shuffled=shuffled
        )
        return ZeroShot(self.model, self.writer.ask(demos, self.test)).scored()

    def receipts(self) -> Control:
        """Every head was put in and every vector added."""
        edits = {"vectors": (self.tune, self.held)}
        fired = {name: sum(t.fired for t in both) for name, both in edits.items()} | {"heads": self.fired}
        planned = {name: sum(t.planned for t in both) for name, both in edits.items()} | {
            "heads": self.planned
        }
        return checks.receipts(fired, planned)

    def held_out(self) -> Control:
        """No tested word or answer is in any demonstration."""
        words = {w for p in self.build for w in p}
        again = sum(any(w in words for w in p) for p in self.test)
        return Control("held_out", "that the answers were in the demonstrations", "no tested word or answer is among the pairs that build", float(again),
                       again == 0, len(self.test), gates=True)  # fmt: skip

    def in_context(self) -> Control:
        """The model does the task from demonstrations, or there is nothing to find."""
        few, zero, mixed = self.shown.accuracy, self.plain.accuracy, self.shown_shuffled.accuracy
        return Control("in_context", "that the model does not do this from demonstrations", "more held-out pairs right behind demonstrations than without any",
                       {"few-shot": few, "zero-shot": zero, "shuffled labels": mixed}, few > zero, len(self.test))  # fmt: skip

    @property
    def gain(self) -> float:
        """Accuracy with the vector minus without, held-out pairs."""
        return self.with_vector.accuracy - self.plain.accuracy

    def against_nulls(self) -> list[Control]:
        """The gain beside those of shuffled labels and random directions."""
        words = (("shuffled_labels", self.null_scores, "that any demonstrations of this form give such a vector", "vectors from the same procedure on shuffled labels, at the same norm"),
                 ("random_vectors", self.random_scores, "that any vector of this length does as much", "random vectors of the same norm"))  # fmt: skip
        out = []
        for name, scores, rules_out, what in words:
            null = np.array([x.accuracy for x in scores]) - self.plain.accuracy
            least = 1 / (1 + len(null))
            p = rank_p(self.gain, null)
            level = max(self.o.alpha, least)
            out.append(Control(name, rules_out, f"a larger gain in accuracy than {len(null)} {what} (p <= {level:.3g}; the smallest within reach is {least:.3g})",
                               {"gain": self.gain, "null mean": float(null.mean()), "p": p}, p <= level, len(null), null=(float(null.min()), float(null.max()))))  # fmt: skip
        return out

    def task_vectors(self) -> Control:
        """The mean hidden state, put in the last token's place, beside the same from shuffled labels."""
        null = np.array([x.accuracy for x in self.task_scores])
        own = self.with_task.accuracy
        return Control("task_vector", "that a mean hidden state of prompts without a task does as much", f"more right than {len(null)} task vectors from shuffled labels",
                       {"accuracy": own, "null mean": float(null.mean())}, bool((null < own).all()), len(null), null=(float(null.min()), float(null.max())))  # fmt: skip

    def other_template(self) -> Control:
        """The vector does the same where the question is written another way."""
        rules_out, expected = (
            "that the vector belongs to the way the prompt is written",
            "at least half of the gain with another template",
        )
        tested = ZeroShot(
            self.model, Writer(self.model, self.o.other).ask([[] for _ in self.test], self.test)
        )
        plain, moved = tested.scored(), tested.scored(self.real.vector, self.real.layer)
        self.elsewhere = moved
        gain = moved.accuracy - plain.accuracy
        return Control("other_template", rules_out, expected, {"gain": gain, "with the first template": self.gain}, self.gain > 0 and gain >= 0.5 * self.gain, len(self.test))  # fmt: skip

    def result(self, ran: list[Control]) -> Result:
        """Everything as a value."""
        import pandas as pd

        null = np.array([x.accuracy for x in self.null_scores]) - self.plain.accuracy
        p, least = rank_p(self.gain, null), 1 / (1 + len(null))
        names = tuple(str(s) for s in self.sites)
        band = (
            np.array([f.effects.mean(1).max() for f in self.nulls]),
            np.array([f.effects.mean(1).min() for f in self.nulls]),
        )
        interval = mean_interval(self.real.effects, list(range(len(self.broken))))
        cells = pd.DataFrame({"site": list(names), "metric": "logprob", "low": interval.low, "high": interval.high,
                              "null_low": float(band[1].min()), "null_high": float(band[0].max()), "p": self._p_heads(band[0])})  # fmt: skip
        heads = [
            {"rank": r, "site": names[k], "effect": float(self.real.effects[k].mean())}
            for r, k in enumerate(self.real.chosen)
        ]
        layers = [
            {"layer": i, "accuracy": x.accuracy, "logprob": float(x.logprob.mean())}
            for i, x in zip(self.layers, self.real.layers, strict=True)
        ]
        return Result(
            "function_vector",
            effects=Labelled(self.real.effects[..., None], ("site", "prompt", "metric"), {"site": names, "prompt": tuple(range(len(self.broken))), "metric": ("logprob",)}),
            tables={"cells": cells, "accuracy": self._accuracy(), "nulls": self._null_table(), "heads": pd.DataFrame(heads), "layers": pd.DataFrame(layers), "about": self._about(least)},
            tensors={"function_vector": self.real.vector.numpy(), "task_vector": self.real.task.numpy(),
                     "gain": self.with_vector.logprob - self.plain.logprob, "right": self.with_vector.right.astype(np.float64)},
            controls=ran, verdict=verdict(ran, MANDATORY, p, self.o.alpha, least), raw_examples=self._examples(),
        )  # fmt: skip

    def _p_heads(self, largest: Floats) -> Floats:
        """Per head: share of shuffled-label procedures whose largest head does at least as much."""
        means = self.real.effects.mean(1)
        return (1 + (largest[None] >= means[:, None]).sum(1)) / (1 + len(largest))

    def _accuracy(self) -> pd.DataFrame:
        import pandas as pd

        rows = [("zero-shot", self.plain), ("function vector", self.with_vector), ("task vector", self.with_task), ("few-shot", self.shown),
                ("few-shot, shuffled labels", self.shown_shuffled), ("vector, other template", self.elsewhere)]  # fmt: skip
        return pd.DataFrame([parts.share(name, x) for name, x in rows])

    def _null_table(self) -> pd.DataFrame:
        import pandas as pd

        families = {
            "vector, shuffled labels": self.null_scores,
            "vector, shuffled, unscaled": self.own_length,
            "vector, random": self.random_scores,
            "task, shuffled labels": self.task_scores,
        }
        return pd.DataFrame(
            [
                {"family": name, "value": x.accuracy, "logprob": float(x.logprob.mean())}
                for name, scores in families.items()
                for x in scores
            ]
        )

    def _about(self, least: float) -> pd.DataFrame:
        import pandas as pd

        rows = {
            "pairs": f"{len(self.build)} build, {len(self.test)} test", "heads summed": ", ".join(str(self.sites[k]).split(".")[0] for k in self.real.chosen),
            "function vector added at": f"L{self.real.layer}.resid_post, the last token", "task vector put at": f"L{self.real.task_layer}.resid_post, the last token",
            "norm of the function vector": f"{float(self.real.vector.norm()):.4g}", "smallest p within reach": f"{least:.3g} ({self.o.nulls} procedures on shuffled labels)",
        }  # fmt: skip
        return pd.DataFrame({"name": list(rows), "value": list(rows.values())})

    def _examples(self) -> list[dict[str, Any]]:
        """Random held-out questions with the most likely next tokens, without the vector and with it."""
        asked: Asked = self.held.asked
        pick = sorted(seeds.rng(self.seed, "raw_examples").permutation(len(asked))[:6].tolist())
        without, having = (self.held.top(v, self.real.layer, pick) for v in (None, self.real.vector))
        return [
            {"prompt": asked.texts[i], "tokens": list(self.model.strings(asked.rows[i])), "answer": asked.pairs[i][1], "without the vector": a, "with it": b}
            for i, a, b in zip(pick, without, having, strict=True)
        ]  # fmt: skip


def _at_norm(vector: Tensor, norm: float) -> Tensor:
    size = float(vector.norm())
    return vector * (norm / size) if size else vector
