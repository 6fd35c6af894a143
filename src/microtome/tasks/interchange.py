"""Interchanges of one variable: a base prompt, a source prompt, and what should follow if the base had the source's value.

The label of an interchange intervention (Geiger et al. 2021, arXiv 2106.02997). Sources are prompts of the same task, so
that prompts which share no entity with others are not given one through their sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from microtome.errors import TaskError
from microtome.results.arguments import suggest
from microtome.tasks.pairs import PairTask, Side, join
from microtome.tasks.rng import rng

__all__ = ["Interchanges", "Rows", "interchanges"]


@dataclass(frozen=True)
class Rows:
    """Interchanges of prompts: base [row], source [row], label [row], the token that should follow."""

    base: np.ndarray
    source: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class Interchanges:
    """The prompts of a task whose answer is known, and what follows when they exchange a variable.

    prompts: clean ones, then those corrupt ones that have an answer of their own. own [prompt]: the token that follows
    each. pair [prompt]: the pair it comes from.
    """

    task: PairTask
    variable: str
    prompts: Side
    own: tuple[int, ...]
    pair: tuple[int, ...]

    def label(self, base: int, source: int, variable: str = "") -> int:
        """The token that follows `base` once it has the value of `source`; -1 where no such prompt can be.

        variable: another variable or surface slot than the own one.
        """
        name = variable or self.variable
        mine, theirs = self._values[base], self._values[source]
        if base == source or mine[name] == theirs[name] or name in self.prompts.surface[base]:
            return self.own[base]
        if hasattr(self.task.source, "outcome"):
            return self._outcome(base, name, theirs[name])
        # the variables together decide the answer: where no other differs, it is the source's own
        alone = all(theirs[v] == x for v, x in self.prompts.variables[base].items() if v != name)
        return self.own[source] if alone else -1

    @cached_property
    def _values(self) -> list[dict[str, str]]:
        return [self.prompts.values(i) for i in range(len(self.prompts))]

    @cached_property
    def _known(self) -> dict[tuple[int, str, str], int]:
        return {}

    def _outcome(self, base: int, variable: str, value: str) -> int:
        key = (base, variable, value)
        if key not in self._known:
            found = self.task.source.outcome(self._values[base], variable, value)  # type: ignore[union-attr]
            self._known[key] = single(found, f"prompt {base} with {variable} = {value!r}") if found else -1
        return self._known[key]

    @cached_property
    def candidates(self) -> tuple[frozenset[int], ...]:
        """Per prompt, its own answer and every other that an exchange with one of these prompts can give it."""
        every = range(len(self.prompts))
        return tuple(frozenset(t for s in every if (t := self.label(b, s)) >= 0) for b in every)

    def rows(self, per_base: int, seed: int, name: str) -> Rows:
        """Up to `per_base` sources for every base, drawn from all other prompts that give a label.

        Raises
        ------
        TaskError: no two prompts can exchange the variable, or no exchange changes the answer.
        """
        found: list[tuple[int, int, int]] = []
        for base in range(len(self.prompts)):
            order = rng(seed, f"{name}/{base}").permutation(len(self.prompts))
            got = 0
            for source in order.tolist():
                if got == per_base:
                    break
                label = -1 if source == base else self.label(base, source)
                if label >= 0:
                    found.append((base, source, label))
                    got += 1
        if not any(label != self.own[base] for base, _, label in found):
            raise TaskError(
                f'exchanging "{self.variable}" between these prompts never changes the answer',
                why=f"{len(found)} interchanges of {len(self.prompts)} prompts were looked at",
                instead="choose a variable that decides the answer, or give more prompts",
            )
        return Rows(*np.array(found, dtype=np.int64).T)

    def inert(self, rows: Rows) -> list[str]:
        """Other variables and surface slots whose exchange changes the answer in none of these rows."""
        others = [v for v in self._values[0] if v != self.variable]
        pairs = list(zip(rows.base.tolist(), rows.source.tolist(), strict=True))
        out = []
        for name in others:
            if any(name not in values for values in self._values) or len(set(self.column(name))) < 2:
                continue
            if all(self.label(b, s, name) in (self.own[b], -1) for b, s in pairs):
                out.append(name)
        return out

    def column(self, name: str) -> list[str]:
        """The value of a variable or surface slot in each prompt."""
        return [values[name] for values in self._values]

    def groups(self, by: str) -> tuple[str, ...]:
        """The cluster labels of the prompts; () where the task has none."""
        labels = self.task.groups.get(by, ())
        return tuple(labels[i] for i in self.pair) if labels else ()


def interchanges(task: PairTask, variable: str) -> Interchanges:
    """The prompts of a task, ready to exchange one of its variables.

    Raises
    ------
    TaskError: the task declares no variables, not this one (the nearest is named), or answers of several tokens or sets.
    """
    declared = list(task.clean.variables[0])
    if not declared:
        raise TaskError(
            f'the task "{task.name}" declares no variables',
            why="an interchange gives a prompt the value that one variable has in another prompt",
            instead="use a task by name (mt.task), whose variables are declared",
        )
    if variable not in declared:
        raise TaskError(
            f'the task "{task.name}" has no variable {variable!r}',
            why=f"it declares {', '.join(declared)}",
            instead=suggest(variable, declared),
        )
    sides = [(task.clean, task.answers)]
    if task.provenance.get("flips") is True:
        sides.append((task.corrupt, task.wrong))
    if task.provenance.get("swapped"):
        sides = [(task.corrupt, task.answers), *((task.clean, task.wrong) for _ in sides[1:])]
    own = tuple(single(c, f"prompt {i}") for _, rows in sides for i, c in enumerate(rows))
    prompts = sides[0][0] if len(sides) == 1 else join(sides[0][0], sides[1][0])
    return Interchanges(task, variable, prompts, own, tuple(range(task.n)) * len(sides))


def single(found: Sequence[Sequence[int]], where: str) -> int:
    """The one token of an answer; TaskError for several tokens, or a set."""
    if len(found) == 1 and len(found[0]) == 1:
        return int(found[0][0])
    raise TaskError(
        f"{where} has {len(found)} answers of up to {max(map(len, found), default=0)} tokens",
        why="interchange accuracy asks which single token the model prefers",
        instead="use a task whose answers are one token each",
    )
