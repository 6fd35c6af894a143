"""Prompt pairs on trained models, drawn by what makes their data, with donors where some tokens are no variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, Donors, PairTask, Side
from microtome.tasks.rng import rng

if TYPE_CHECKING:
    from microtome.zoo.trained import Asked, Subject

__all__ = ["DrawnSource", "pair_task"]

_TRIES = 50
"""Draws per pair asked for, before the task counts as having no more."""


def pair_task(model: Any, subject: Subject, *, n: int, seed: int) -> PairTask:
    """n different pairs: the answer is clean's, the wrong one corrupt's, read at the last position.

    Raises
    ------
    TaskError: the data have fewer different pairs than asked for.
    """
    checks.count(n, "n")
    return DrawnSource(model, subject).task(n, seed)


class DrawnSource:
    """Makes tasks, donors and reference prompts of one trained model."""

    def __init__(self, model: Any, subject: Subject) -> None:
        self.encoder, self.subject = Encoder(model), subject

    def task(self, n: int, seed: int) -> PairTask:
        """n different pairs from the seed."""
        name = f"zoo/{self.subject.name}"
        random = rng(seed, name)
        seen: dict[tuple[str, str], tuple[Asked, Asked]] = {}
        for _ in range(_TRIES * n):
            if len(seen) == n:
                break
            clean, corrupt = self.subject.pair(random)
            seen.setdefault((clean.text, corrupt.text), (clean, corrupt))
        if len(seen) < n:
            raise TaskError(
                f"{self.subject.name} has no {n} different pairs",
                why=f"{_TRIES * n} draws gave {len(seen)}",
                instead=f"ask for n <= {len(seen)}",
            )
        firsts, seconds = zip(*seen.values(), strict=True)
        return PairTask(
            name=name,
            clean=self._side(firsts),
            corrupt=self._side(seconds),
            answers=self._answers(firsts),
            wrong=self._answers(seconds),
            differs=self.subject.differs,
            provenance={"task": name, "n": n, "seed": seed, "source": "microtome.zoo"},
            source=self,
        )

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        """Donors by their variables (see `PairTask.donors`).

        Raises
        ------
        TaskError: every token is a variable.
        """
        made = [self._donor(task, i, kind, seed) for i in range(task.n)]
        side = self._side(made)
        plain = {name: getattr(side, name) for name in Side.__dataclass_fields__}
        if kind != "wrong_value":
            return Donors(**plain, kind=kind)
        wrong = self._answers([self._asked(task.corrupt, task.wrong, i) for i in range(task.n)])
        return Donors(**plain, kind=kind, answers=self._answers(made), wrong=wrong)

    def _donor(self, task: PairTask, i: int, kind: str, seed: int) -> Asked:
        clean = self._asked(task.clean, task.answers, i)
        corrupt = self._asked(task.corrupt, task.wrong, i)
        random = rng(seed, f"zoo/donors/{kind}/{clean.text}/{corrupt.text}")
        if kind == "wrong_value":
            return self.subject.other(clean, corrupt, random)
        return self.subject.alike(clean if kind == "same_value" else corrupt, random)

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        """n different prompts of the lengths of the task's, in turn.

        Raises
        ------
        TaskError: so many different ones could not be drawn.
        """
        random = rng(seed, "zoo/reference")
        seen: dict[str, Asked] = {}
        lengths = sorted({len(text.split()) for text in task.clean.texts})
        for _ in range(_TRIES * n):
            if len(seen) == n:
                break
            wanted = lengths[len(seen) % len(lengths)]
            for asked in self.subject.pair(random):
                if len(asked.words) == wanted and len(seen) < n:
                    seen.setdefault(asked.text, asked)
        if len(seen) < n:
            raise TaskError(
                f"{n} reference prompts were asked for and {_TRIES * n} draws gave {len(seen)}",
                instead=f"ask for n <= {len(seen)}",
            )
        return self._side(list(seen.values()))

    def _side(self, rows: Sequence[Asked]) -> Side:
        variables = [row.variables for row in rows]
        surface = [{"tokens": row.text} for row in rows]
        return to_side(self.encoder, [Prompt(row.text) for row in rows], [{}] * len(rows), variables, surface)

    def _answers(self, rows: Sequence[Asked]) -> tuple[Continuations, ...]:
        return tuple(((self.subject.words.index(row.answer),),) for row in rows)

    def _asked(self, side: Side, answers: Sequence[Continuations], i: int) -> Asked:
        from microtome.zoo.trained import Asked

        return Asked(
            tuple(side.texts[i].split()), self.subject.words[answers[i][0][0]], dict(side.variables[i])
        )
