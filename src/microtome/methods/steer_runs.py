"""Steered runs: many directions, coefficients and prompts as rows of one batch, each row with its own edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from microtome.directions.direction import Direction
from microtome.errors import EditError, TaskError
from microtome.methods.steer_measures import (
    Continuations,
    Floats,
    Measure,
    Words,
    of_text,
    score_texts,
)
from microtome.sites import At, Site
from microtome.trace.edits import BaseEdit, Edit, Steer, change

if TYPE_CHECKING:
    from microtome.facade import Model

When = Literal["prompt", "generated", "both"]
ROWS = 48
Row = list[int]


@dataclass(frozen=True)
class Condition:
    """Steer only where a probe's score passes a threshold (conditional activation steering, Lee et al. 2024).

    direction: the probe; its score is the projection of the unsteered value at its site on the unit direction.
    level: "prompt", the mean over the prompt's tokens but the first decides for the whole row; "token", each token for itself,
    which needs the probe at the steered site. above: steer at or above the threshold, else below it.
    """

    direction: Direction
    threshold: float
    level: Literal["prompt", "token"] = "prompt"
    above: bool = True

    def __post_init__(self) -> None:
        if self.level not in ("prompt", "token") or not np.isfinite(self.threshold):
            raise EditError(f"a condition at level {self.level!r} with threshold {self.threshold}", why="it decides per prompt or per token, at a finite score",
                            instead='level="prompt" or "token"')  # fmt: skip

    def passes(self, scores: Tensor) -> Tensor:
        """Which scores ask for steering. Shapes: [...] -> bool [...]."""
        return scores >= self.threshold if self.above else scores < self.threshold


@dataclass(frozen=True, eq=False)
class Push:
    """What one row has added: coefficient * vector. vector: [d] at its raw length."""

    vector: Tensor
    coefficient: float


@dataclass(frozen=True, eq=False)
class Gate:
    """The function of a token-level condition: value + push where the probe's score passes."""

    push: Push
    condition: Condition

    def __call__(self, old: Tensor) -> Tensor:
        """Shapes: [place, d] -> same."""
        open_ = self.condition.passes(old @ self.condition.direction.unit.to(old))
        return torch.where(open_[:, None], old + self.push.coefficient * self.push.vector.to(old), old)


@dataclass(frozen=True)
class Steered:
    """Generated rows: new ids and text per job, and how often edits fired of how often they should have."""

    new: list[tuple[int, ...]]
    text: list[str]
    fired: int
    planned: int


@dataclass
class Stage:
    """Where and when to push, and what counts how often it happened."""

    model: Model
    site: Site
    when: When
    condition: Condition | None = None
    tokens: int = 24
    temperature: float = 0.0
    seed: int = 0
    fired: int = 0
    planned: int = 0
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def edits(self, push: Push | None, low: int, high: int, *, fires: bool = True) -> list[BaseEdit]:
        """The edit of one teacher-forced row, on its own positions low to high; none where nothing is pushed."""
        if push is None or not fires or high <= low:
            return []
        return [self._edit(push, replace(self.site, at=At(low, high)))]

    def free(self, push: Push | None, *, fires: bool = True) -> list[BaseEdit]:
        """The edit of one row that generates."""
        return [] if push is None or not fires else [self._edit(push, self.site)]

    def _edit(self, push: Push, site: Site) -> BaseEdit:
        if self.condition is not None and self.condition.level == "token":
            return Edit(site, Gate(push, self.condition))
        return Steer(site, push.vector, push.coefficient)

    def places(self, edits: Sequence[BaseEdit], length: int) -> int:
        """How many positions of a teacher-forced row of `length` tokens these edits change."""
        return sum((e.site.at.stop or 0) - (e.site.at.start or 0) for e in edits if e.site.at is not None)

    def together(self, edits: list[list[BaseEdit]]) -> Any:
        """The edits of a batch, row by row; where rows share theirs, a stage may give them once."""
        return edits if any(edits) else ()

    def span(self, prompt: int, whole: int) -> tuple[int, int]:
        """Own positions that are steered in a row of `whole` tokens whose first `prompt` are the prompt."""
        return {"prompt": (0, prompt), "generated": (prompt, whole), "both": (0, whole)}[self.when]

    def fires(self, prompts: Sequence[Row]) -> list[bool]:
        """Whether each prompt's own score opens the condition; all do without one."""
        c = self.condition
        if c is None or c.level == "token":
            return [True] * len(prompts)
        unit, out = c.direction.unit.double(), []
        for start in range(0, len(prompts), ROWS):
            trace = self.model.run(list(prompts[start : start + ROWS]), c.direction.site, logits=None)
            for row, mask in zip(trace[c.direction.site], trace.mask, strict=True):
                scores = row[mask.to(row.device)].double().cpu() @ unit
                out.append(bool(c.passes((scores[1:] if len(scores) > 1 else scores).mean())))
        return out

    def forced(
        self, rows: Sequence[Row], prompts: Sequence[int], pushes: Sequence[Push | None], read: Callable[[Tensor, Row, int], Any],
        *, fires: Sequence[bool] | None = None, last: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Teacher-forced rows, each with its push: `read(logits [pos, d_vocab] of the row, its ids, prompt tokens)`."""
        opens = [True] * len(rows) if fires is None else fires
        out: list[Any] = []
        for start in range(0, len(rows), ROWS):
            some = range(start, min(start + ROWS, len(rows)))
            edits = [
                self.edits(pushes[i], *self.span(prompts[i], len(rows[i])), fires=opens[i]) for i in some
            ]
            trace = self.model.run(
                [rows[i] for i in some], (), edits if any(edits) else (), "last" if last else "all"
            )
            self._count(trace.receipts, [self.places(edits[k], len(rows[i])) for k, i in enumerate(some)])
            for place, i in enumerate(some):
                logits = trace.logits[place] if last else trace.logits[place, : len(rows[i])]
                out.append(read(logits, rows[i], prompts[i]))
        return out

    def generate(
        self, prompts: Sequence[Row], pushes: Sequence[Push | None], fires: Sequence[bool] | None = None
    ) -> Steered:
        """Continue each prompt under its push."""
        opens = [True] * len(prompts) if fires is None else fires
        new: list[tuple[int, ...]] = []
        text: list[str] = []
        before = (self.fired, self.planned)
        for start in range(0, len(prompts), ROWS):
            some = range(start, min(start + ROWS, len(prompts)))
            edits = [self.free(pushes[i], fires=opens[i]) for i in some]
            out = self.model.generate(
                [prompts[i] for i in some], edits if any(edits) else (), self.when if any(edits) else None, self.tokens,
                temperature=self.temperature, seed=None if not self.temperature else self.seed + start,
            )  # fmt: skip
            read = out.logits.shape[1] - 1  # the last token chosen is never read back
            each = [
                {"prompt": len(prompts[i]), "generated": read, "both": len(prompts[i]) + read}[self.when]
                for i in some
            ]
            self._count(out.receipts, [n * len(e) for n, e in zip(each, edits, strict=True)])
            new += out.new
            text += out.text
        return Steered(new, text, self.fired - before[0], self.planned - before[1])

    def _count(self, receipts: Sequence[Any], planned: Sequence[int]) -> None:
        self.fired += sum(r.places for r in receipts)
        self.planned += sum(planned)

    def measured(self, measure: Measure, prompts: Sequence[Row], jobs: Sequence[tuple[Push | None, int]],
                 fires: Sequence[bool]) -> tuple[Floats, Steered | None]:  # fmt: skip
        """A measure of jobs (push, prompt number). Returns values [job], and the texts where the measure reads text."""
        rows, pushes, opens = (
            [prompts[p] for _, p in jobs],
            [push for push, _ in jobs],
            [fires[p] for _, p in jobs],
        )
        if of_text(measure):
            made = self.generate(rows, pushes, opens)
            return score_texts(self.model, measure, made.text, made.new), made
        if isinstance(measure, Words):
            return self._replayed(measure, prompts, jobs, fires), None
        assert isinstance(measure, Continuations)
        total = np.zeros(len(rows))
        for sign, side in ((1.0, measure.up), (-1.0, measure.down)):
            for text in side:
                tail = tail_ids(self.model, text)
                whole = [[*r, *tail] for r in rows]
                found = self.forced(whole, [len(r) for r in rows], pushes, mean_log_probability, fires=opens)
                total += sign * np.array(found) / len(side)
        return total, None

    def _replayed(
        self,
        measure: Words,
        prompts: Sequence[Row],
        jobs: Sequence[tuple[Push | None, int]],
        fires: Sequence[bool],
    ) -> Floats:
        """Every push on every prompt that a job names, by replay, and of these what was asked."""
        used = sorted({p for _, p in jobs})
        key = (measure, tuple(tuple(prompts[p]) for p in used))
        if key not in self.kept:
            from microtome.methods.steer_replay import Replayed

            self.kept[key] = Replayed(self, measure, [prompts[p] for p in used], [fires[p] for p in used])
        pushes = list({id(push): push for push, _ in jobs}.values())
        named = {(None if push is None else (id(push.vector), push.coefficient)): push for push in pushes}
        values = self.kept[key].values(list(named.values()))
        row = {name: k for k, name in enumerate(named)}
        place = {p: k for k, p in enumerate(used)}
        return np.array(
            [
                values[row[None if push is None else (id(push.vector), push.coefficient)], place[p]]
                for push, p in jobs
            ]
        )

    def pushed(self, push: Push, old: Tensor) -> Tensor:
        """Values with a push added, where the condition lets it. Shapes: [place, d]."""
        edit = self._edit(push, self.site)
        return change(edit)(old)


def mean_log_probability(logits: Tensor, row: Row, prompt: int) -> float:
    """Mean log-probability of a row's tokens after its prompt, in nats. Shapes: logits [pos, d_vocab]."""
    targets = torch.tensor(row[prompt:], device=logits.device)
    logs = logits[prompt - 1 : -1].double().log_softmax(-1)
    return float(logs.gather(1, targets[:, None]).mean())


def tail_ids(model: Model, text: str | Sequence[int]) -> Row:
    """Tokens of a continuation, without what the tokenizer puts in front of a prompt."""
    if not isinstance(text, str):
        return list(text)
    from microtome.model.tokens import where_it_stands

    ids = where_it_stands(model.tokenizer, text)
    if not ids:
        raise TaskError("an empty continuation", why="it has no token to score", instead="at least one word")
    return list(ids)


def check_when(measure: Measure, when: str, model: Model) -> None:
    """Refuse a measure that steering at `when` cannot reach.

    Raises
    ------
    EditError: an unknown `when`. TaskError: the measure is read before the first steered token acts.
    """
    if when not in ("prompt", "generated", "both"):
        raise EditError(f"when={when!r}", why="prompt and generated tokens are different places", instead='"prompt", "generated" or "both"')  # fmt: skip
    short = isinstance(measure, Words) or (
        isinstance(measure, Continuations)
        and max(len(tail_ids(model, t)) for t in (*measure.up, *measure.down)) < 2
    )
    if when == "generated" and short:
        raise TaskError('the first token after the prompt is chosen before when="generated" acts', why="the effect would be exactly zero",
                        instead='when="prompt" or "both", or continuations of several tokens')  # fmt: skip
