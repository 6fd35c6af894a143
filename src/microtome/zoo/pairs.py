"""Prompt pairs on a compiled model, drawn from its whole domain, with donors where one value says everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, Donors, PairTask, Side
from microtome.tasks.rng import rng
from microtome.zoo.programs import NUMBER, Program

__all__ = ["DomainSource", "pair_task"]

_MARGIN = Fraction(1, 4)
"""Of a numerical program's range at the last position, by which clean exceeds corrupt."""
_TRIES = 10_000


def pair_task(model: Any, program: Program, words: Sequence[str], *, n: int, seed: int) -> PairTask:
    """n pairs of inputs whose outputs at the last position differ, the metric read there.

    A categorical program's answer is clean's output token, the wrong one corrupt's; outputs are equally frequent on either
    side. Of a numerical one the answer is the token that shows the number, the wrong one an input token, whose logit is
    always 0, and clean's number is the larger by a quarter of the range at least.

    Raises
    ------
    TaskError: the domain has fewer different pairs than asked for.
    """
    checks.count(n, "n")
    return DomainSource(model, program, words).task(n, seed)


class DomainSource:
    """Makes tasks, donors and reference prompts from a program's domain."""

    def __init__(self, model: Any, program: Program, words: Sequence[str]) -> None:
        self.encoder, self.program, self.words = Encoder(model), program, tuple(words)
        self.last = [run[program.output.name][-1] for run in program.runs]
        self.numerical = program.output.kind == "numerical"
        self.by_value: dict[Any, list[int]] = {}
        for i, value in enumerate(self.last):
            self.by_value.setdefault(value, []).append(i)
        self.index = {" ".join(t): i for i, t in enumerate(program.domain)}

    def task(self, n: int, seed: int) -> PairTask:
        """n different pairs from the seed."""
        random, seen = rng(seed, f"zoo/{self.program.name}"), dict[tuple[int, int], None]()
        for _ in range(_TRIES):
            if len(seen) == n:
                break
            seen.setdefault(self._draw(random))
        if len(seen) < n:
            raise TaskError(
                f"{self.program.name} has no {n} different pairs",
                why=f"{_TRIES} draws gave {len(seen)}",
                instead=f"ask for n <= {len(seen)}",
            )
        clean, corrupt = ([pair[k] for pair in seen] for k in (0, 1))
        answers = [((self._token(i),),) for i in clean]
        wrong = [((1,),) if self.numerical else ((self._token(j),),) for j in corrupt]
        return PairTask(
            name=f"zoo/{self.program.name}",
            clean=self._side(clean),
            corrupt=self._side(corrupt),
            answers=tuple(answers),
            wrong=tuple(wrong),
            differs=frozenset({"answer"}),
            provenance={"task": f"zoo/{self.program.name}", "n": n, "seed": seed, "source": "microtome.zoo"},
            source=self,
        )

    def _draw(self, random: np.random.Generator) -> tuple[int, int]:
        values = sorted(self.by_value, key=str)
        a, b = (values[int(k)] for k in random.choice(len(values), size=2, replace=False))
        if self.numerical:
            a, b = max(a, b), min(a, b)
            if a - b < _MARGIN * (max(values) - min(values)):
                return self._draw(random)
        clean, corrupt = (self.by_value[v][int(random.integers(len(self.by_value[v])))] for v in (a, b))
        return clean, corrupt

    def _token(self, i: int) -> int:
        return self.words.index(NUMBER if self.numerical else str(self.last[i]))

    def _side(self, rows: Sequence[int]) -> Side:
        texts = [" ".join(self.program.domain[i]) for i in rows]
        variables: list[Mapping[str, str]] = [{"answer": str(self.last[i])} for i in rows]
        surface: list[Mapping[str, str]] = [{"tokens": text} for text in texts]
        return to_side(self.encoder, [Prompt(t) for t in texts], [{}] * len(rows), variables, surface)

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        """Donors by their output (see `PairTask.donors`).

        Raises
        ------
        TaskError: a program in which more than the output decides what an activation does.
        """
        if not self.program.donors:
            raise TaskError(
                f"{self.program.name} has no {kind} donors",
                why="its output does not say what its other variables are, and a donor would change them",
                instead="report this control as not run",
            )
        rows = [self._donor(task, i, kind, seed) for i in range(task.n)]
        side = self._side(rows)
        plain = {name: getattr(side, name) for name in Side.__dataclass_fields__}
        right: tuple[Continuations, ...] = ()
        wrong: tuple[Continuations, ...] = ()
        if kind == "wrong_value":
            right = tuple(((self._token(row),),) for row in rows)
            wrong = tuple(((self._token(self.index[text]),),) for text in task.corrupt.texts)
        return Donors(**plain, kind=kind, answers=right, wrong=wrong)

    def _donor(self, task: PairTask, i: int, kind: str, seed: int) -> int:
        clean, corrupt = (self.index[side.texts[i]] for side in (task.clean, task.corrupt))
        name = f"zoo/donors/{kind}/{task.clean.texts[i]}/{task.corrupt.texts[i]}"
        if kind == "wrong_value":
            pool = [k for k, v in enumerate(self.last) if v not in (self.last[clean], self.last[corrupt])]
        else:
            value = self.last[clean if kind == "same_value" else corrupt]
            pool = [k for k in self.by_value[value] if k not in (clean, corrupt)]
        if not pool:
            raise TaskError(
                f"{self.program.name} has no {kind} donor for pair {i}",
                why="no other input has such an output",
            )
        return pool[int(rng(seed, name).integers(len(pool)))]

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        """n different inputs of the domain, those first that are not in the task."""
        if n > len(self.last):
            raise TaskError(
                f"{n} reference prompts were asked for and the domain has {len(self.last)}",
                instead=f"ask for n <= {len(self.last)}",
            )
        own = {self.index[t] for t in (*task.clean.texts, *task.corrupt.texts)}
        order = [int(k) for k in rng(seed, "zoo/reference").permutation(len(self.last))]
        return self._side(sorted(order, key=lambda k: k in own)[:n])
