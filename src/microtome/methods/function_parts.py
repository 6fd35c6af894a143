"""Prompts of word pairs, and what vectors do to them: the parts of function and task vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.controls.intervals import proportion_interval
from microtome.errors import TaskError
from microtome.methods.steer_runs import Row, tail_ids
from microtome.metrics import Metric, Scoring, metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Given, SourceSpec
from microtome.replay.sweep import Bench, measure, sweep
from microtome.results import seeds
from microtome.sites import At, parse
from microtome.trace.edits import Steer

if TYPE_CHECKING:
    from microtome.facade import Model

Floats = NDArray[np.float64]
Pair = tuple[str, str]
LEAST = 8
ROWS = 32


def _right(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    """1 where the answer is the most likely token. Shapes: logits [row, step, d_vocab] -> [prompt]."""
    answers = torch.tensor([terms[0][0][2] for terms in plan.answers], device=logits.device)
    return (logits[:, 0].argmax(-1) == answers).double()


RIGHT = Metric("right", "share", "vocabulary", "more answers are the most likely token", _right)


@dataclass(frozen=True)
class Asked:
    """Prompts that end where the answer begins. rows: token ids; answers: first token of each answer; texts, pairs: as written."""

    rows: list[Row]
    answers: list[int]
    texts: list[str]
    pairs: list[Pair]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Scored:
    """What a vector did to some prompts. Shapes [prompt]: right (the answer's first token is the most likely), logprob (nats)."""

    right: NDArray[np.bool_]
    logprob: Floats

    @property
    def accuracy(self) -> float:
        """Share of prompts answered right."""
        return float(self.right.mean())


def read_pairs(pairs: Any) -> list[Pair]:
    """Pairs of words from a list, or from anything with `.pairs`.

    Raises
    ------
    TaskError: too few, something that is no pair of words, a word with two answers, or one answer for all.
    """
    given = list(getattr(pairs, "pairs", pairs))
    for pair in given:
        if (
            not isinstance(pair, tuple | list)
            or len(pair) != 2
            or not all(isinstance(w, str) and w.strip() for w in pair)
        ):
            raise TaskError(f"{pair!r} is no pair of words", why="a function vector maps a word to its answer", instead='("France", "Paris")')  # fmt: skip
    out = list(dict.fromkeys((a, b) for a, b in given))
    if len({a for a, _ in out}) < len(out):
        raise TaskError(
            "a word has two answers", why="accuracy counts one as right", instead="each word once"
        )
    if len(out) < LEAST:
        raise TaskError(
            f"{len(out)} pairs",
            why="some build the vector and others test it",
            instead=f"at least {LEAST}, better 40",
        )
    if len({b for _, b in out}) < 4:
        raise TaskError(
            "hardly any answers differ",
            why="shuffled labels would be the labels",
            instead="pairs with different answers",
        )
    return out


def halves(pairs: list[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """(pairs that build, pairs held out), without a common word or answer."""
    answers = list(dict.fromkeys(b for _, b in pairs))
    order = seeds.rng(seed, "function_vector/split").permutation(len(answers))
    chosen = {answers[i] for i in order[: len(answers) // 2]}
    out = [p for p in pairs if p[1] in chosen]
    words = {w for p in out for w in p}
    return [p for p in pairs if not words & set(p)], out


class Writer:
    """Writes prompts of a template such as "Q: {x}\\nA: {y}\\n\\n": demonstrations, then a question without its answer.

    Raises
    ------
    TaskError: a template without both words, or with the answer first.
    """

    def __init__(self, model: Model, template: str) -> None:
        before, mark, after = template.partition("{y}")
        if not mark or "{x}" not in before or "{x}" in after:
            raise TaskError(
                f"template {template!r}",
                why='it has "{x}" once, and "{y}" once behind it',
                instead='"Q: {x}\\nA: {y}\\n\\n"',
            )
        self.model = model
        self.before, self.after = before.rstrip(" "), after
        self.space = before[len(self.before) :]

    def demonstration(self, pair: Pair) -> str:
        """One pair written out."""
        return self.before.replace("{x}", pair[0]) + self.space + pair[1] + self.after

    def ask(self, demos: Sequence[Sequence[Pair]], queries: Sequence[Pair]) -> Asked:
        """One prompt per query behind its demonstrations (none: zero-shot)."""
        texts = [
            "".join(map(self.demonstration, d)) + self.before.replace("{x}", q[0])
            for d, q in zip(demos, queries, strict=True)
        ]
        rows = self.model.tokens(texts).rows()
        return Asked(rows, [self.answer(q) for q in queries], texts, list(queries))

    def answer(self, pair: Pair) -> int:
        """First token of the answer, as it stands behind the question."""
        return tail_ids(self.model, self.space + pair[1])[0]


def demonstrations(
    build: list[Pair], shots: int, n: int, seed: int, name: str, *, shuffled: bool
) -> tuple[list[list[Pair]], list[Pair]]:
    """n lists of demonstrations, and a query for each that is not among them. Shuffled: within a prompt no word keeps its answer.

    Raises
    ------
    TaskError: fewer pairs than a prompt needs.
    """
    if len(build) < shots + 1:
        raise TaskError(f"{len(build)} pairs to build from and {shots} demonstrations in a prompt", why="the question is not among them",
                        instead="fewer shots, or more pairs")  # fmt: skip
    rng = seeds.rng(seed, f"function_vector/{name}")
    demos, queries = [], []
    for _ in range(n):
        pick = rng.permutation(len(build))[: shots + 1]
        shown = [build[i] for i in pick[:shots]]
        if shuffled:
            turn = int(rng.integers(1, max(shots, 2)))
            labels = [y for _, y in shown]
            shown = [(x, labels[(i + turn) % shots]) for i, (x, _) in enumerate(shown)]
        demos.append(shown)
        queries.append(build[pick[shots]])
    return demos, queries


def last_token_means(model: Model, asked: Asked, sites: Sequence[str]) -> dict[str, Tensor]:
    """Mean value at each prompt's last token, per site. Shapes: [...] of the site, float32."""
    total: dict[str, Tensor] = {}
    for start in range(0, len(asked), ROWS):
        rows = asked.rows[start : start + ROWS]
        trace = model.run(rows, [f"{s}@-1" for s in sites], logits=None)
        for s in sites:
            here = trace[f"{s}@-1"].float().sum(0).cpu()
            total[s] = total[s] + here if s in total else here
    return {s: v / len(asked) for s, v in total.items()}


Job = tuple[Tensor | None, int, str]
"""A vector [d_model] or none, the layer at whose end it acts, and how: "add" steers the last token, "put" replaces it."""


class ZeroShot:
    """Zero-shot prompts under vectors, by exact replay: what lies below a vector's layer is run once for all of them. Counts
    receipts."""

    def __init__(self, model: Model, asked: Asked) -> None:
        self.model, self.asked = model, asked
        self.fired = self.planned = 0
        answers = [((a,),) for a in asked.answers]
        wrong = [((another(a, asked.answers),),) for a in asked.answers]
        self.bench = Bench(model.binding, asked.rows, scoring(answers, wrong), (RIGHT, metric("logprob")))
        self.streams: dict[int, Tensor] = {}

    def scored(self, vector: Tensor | None = None, layer: int = 0, kind: str = "add") -> Scored:
        """Score every prompt, with a vector at the end of a layer, at the last token."""
        return self.each([(vector, layer, kind)])[0]

    def each(self, jobs: Sequence[Job]) -> list[Scored]:
        """Score every prompt under each job."""
        # heads that write nothing add nothing
        real = [j for j in jobs if j[0] is not None and (j[2] == "put" or bool(j[0].any()))]
        if not real:
            plain = self._read(measure(self.bench))
            return [plain] * len(jobs)
        sources = {f"job {k}": Given(self._values(job)) for k, job in enumerate(real)}
        at = At(-1, single=True)
        cells = [
            Cell((Change(parse(f"L{layer}.resid_post"), at, name),), name)
            for name, (_, layer, _) in zip(sources, real, strict=True)
        ]
        out = sweep(self.bench, cells, dict[str, SourceSpec](sources))
        self.fired += out.fired
        self.planned += len(real) * len(self.asked)
        found = iter([self._read(out.base + e) for e in out.effects])
        kept = {id(j): next(found) for j in real}
        plain = self._read(out.base)
        return [kept.get(id(j), plain) for j in jobs]

    def _values(self, job: Job) -> Callable[[str, int, Tensor, Tensor, Tensor | None], Tensor]:
        vector, layer, kind = job
        assert vector is not None
        old = self._stream(layer) if kind == "add" else None

        def values(point: str, where: int, prompt: Tensor, column: Tensor, head: Tensor | None) -> Tensor:
            if old is None:
                return vector.to(self._stream(layer)).expand(len(prompt), -1)
            return old[prompt.to(old.device)] + vector.to(old)

        return values

    def _stream(self, layer: int) -> Tensor:
        """The stream at the end of a layer at every prompt's last token. Shapes: [prompt, d_model]."""
        if layer not in self.streams:
            site = f"L{layer}.resid_post@-1"
            rows = self.asked.rows
            found = [
                self.model.run(rows[k : k + ROWS], site, logits=None)[site] for k in range(0, len(rows), ROWS)
            ]
            self.streams[layer] = torch.cat(found)
        return self.streams[layer]

    def _read(self, values: Tensor) -> Scored:
        both = values.numpy()
        return Scored(both[:, 0] > 0.5, both[:, 1].astype(np.float64))

    def best_layer(self, vectors: dict[int, Tensor], kind: str) -> tuple[int, list[Scored]]:
        """The layer at which its vector is answered best (then with the highest log-probability), and all scores in order."""
        scores = self.each([(v, layer, kind) for layer, v in vectors.items()])
        found = dict(zip(vectors, scores, strict=True))
        best = max(found, key=lambda k: (found[k].accuracy, float(found[k].logprob.mean())))
        return best, scores

    def top(self, vector: Tensor | None, layer: int, rows: Sequence[int], k: int = 3) -> list[list[str]]:
        """The most likely next tokens of some prompts."""
        some = [self.asked.rows[i] for i in rows]
        edits = [] if vector is None else [Steer(f"L{layer}.resid_post@-1", vector, 1.0)]
        logits = self.model.run(some, (), edits, "last").logits[:, -1]
        return [list(self.model.strings(row.topk(min(k, len(row))).indices.tolist())) for row in logits]


def another(answer: int, answers: Sequence[int]) -> int:
    """Any other token: scoring wants a wrong one, which these metrics do not read."""
    return next((a for a in answers if a != answer), answer + 1 if answer == 0 else answer - 1)


def share(name: str, s: Scored) -> dict[str, Any]:
    """A row of the accuracy table: exact interval over prompts."""
    interval = proportion_interval(s.right, list(range(len(s.right))))
    return {"part": "held-out pairs", "what": name, "value": s.accuracy, "low": float(interval.low), "high": float(interval.high),
            "logprob": float(s.logprob.mean()), "n": len(s.right)}  # fmt: skip
