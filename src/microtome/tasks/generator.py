"""What every built-in task shares: from values of variables to aligned pairs, donors and reference prompts.

A generator says how to draw values, how to write them out (`render`), and how to change the surface or the
value of a prompt. This class turns that into tokens and refuses what is not aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks.encode import Encoded, Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, Donors, PairTask, Side, Span
from microtome.tasks.rng import rng, shuffled

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Draw", "Generator", "blocks"]

Values = Mapping[str, str]
Answers = Sequence[str | int]
TRIES = 200


@dataclass(frozen=True)
class Draw:
    """One pair as values, before it is written out.

    answers, wrong: texts that follow the prompt (or token ids); template, entity: its cluster labels.
    """

    clean: Values
    corrupt: Values
    answers: Answers
    wrong: Answers
    template: str
    entity: str


@dataclass(frozen=True)
class _Pair:
    """A pair that is known to be aligned."""

    draw: Draw
    clean: Prompt
    corrupt: Prompt
    slots: Mapping[str, Span]
    answers: Continuations
    wrong: Continuations


def blocks(items: Sequence[Any], size: int, name: str) -> list[tuple[str, tuple[Any, ...]]]:
    """Disjoint blocks of at least `size` items with a label each, the same whatever the seed.

    Prompts drawn from one block each can be split by block without sharing an item.
    """
    mixed = shuffled(items, 0, f"blocks/{name}")
    n = max(len(mixed) // size, 1)
    return [(f"{name}-{k:02d}", tuple(mixed[k::n])) for k in range(n)]


class Generator:
    """Base of the built-in tasks; a plug-in may derive from it or be any callable that returns a `PairTask`.

    Subclasses set the class attributes and write `draw`, `render`, `roles`, `resurface`, `revalue`, `redraw`.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    summary: ClassVar[str]
    source: ClassVar[str]
    variables: ClassVar[tuple[str, ...]]
    counterfactuals: ClassVar[
        Mapping[str, frozenset[str]]
    ]  # name -> the variables it changes; first is default
    metric: str = "logit_diff"
    flips: bool = True  # the corrupt prompt's own answer is the wrong one

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        chosen = counterfactual or next(iter(self.counterfactuals))
        if chosen not in self.counterfactuals:
            raise TaskError(
                f'"{self.name}" has no counterfactual {chosen!r}',
                why="a counterfactual is a declared way to change the prompt",
                instead=f"use one of {', '.join(self.counterfactuals)}",
            )
        self.counterfactual = chosen
        self.encoder = Encoder(model)

    # ---- what a task says ------------------------------------------------------------------------
    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """The values of pair i."""
        raise NotImplementedError

    def render(self, values: Values) -> Prompt:
        """The prompt with these values, its slots in character positions."""
        raise NotImplementedError

    def roles(self, clean: Values) -> Mapping[str, str]:
        """Span name -> slot name, by the roles in the clean prompt."""
        raise NotImplementedError

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """The same variables on another surface."""
        raise NotImplementedError

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """Values whose answer is neither clean's nor corrupt's, that answer, and the base's (corrupt's) own.

        Every variable in which the pair differs has another value than in clean, every other variable clean's.

        Where the base has no answer of its own, the wrong answer of the new values.
        """
        raise NotImplementedError

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """The same template with every other variable and the surface drawn anew."""
        raise NotImplementedError

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """What follows a prompt with these values once `variable` has another value and what it decides follows suit.

        Variables are taken as the task's causal model has them: none of the others that it does not decide changes.
        () where no prompt can be so (a subject that is also the indirect object).
        """
        raise TaskError(
            f'"{self.name}" does not say what follows when only {variable} changes',
            why="its generator has no `interchange`",
            instead="use prompts that differ in no other declared variable",
        )

    def settle(self, answers: Continuations, wrong: Continuations) -> tuple[Continuations, Continuations]:
        """The encoded answers as they are scored; a task with large sets may say the same with fewer."""
        return answers, wrong

    def details(self) -> Mapping[str, object]:
        """What else the provenance should say, such as pool sizes."""
        return {}

    # ---- what follows from it --------------------------------------------------------------------
    def task(self, n: int, seed: int) -> PairTask:
        """n pairs spread evenly over templates and entities; the first k are those of a task of k pairs.

        Raises
        ------
        TaskError: n is not positive, or fewer than n different aligned pairs can be made.
        """
        checks.count(n, "n")
        seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        pairs = [self._pair(i, seed, seen) for i in range(n)]
        spans = [{name: p.slots[slot] for name, slot in self.roles(p.draw.clean).items()} for p in pairs]
        clean = to_side(
            self.encoder, [p.clean for p in pairs], spans, *self._declared([p.draw.clean for p in pairs])
        )
        rows = self._declared([p.draw.corrupt for p in pairs])
        corrupt = to_side(self.encoder, [p.corrupt for p in pairs], spans, *rows)
        for i, p in enumerate(pairs):
            longest = max(len(one) for one in (*p.answers, *p.wrong))
            self.encoder.fits(f"pair {i}", len(clean.ids[i]) + longest - 1)
        return PairTask(
            name=self.name,
            clean=clean,
            corrupt=corrupt,
            answers=tuple(p.answers for p in pairs),
            wrong=tuple(p.wrong for p in pairs),
            differs=self.counterfactuals[self.counterfactual],
            groups={
                "template": tuple(p.draw.template for p in pairs),
                "entity": tuple(p.draw.entity for p in pairs),
            },
            metric=self.metric,
            provenance=self._provenance(n, seed),
            source=self,
        )

    def _provenance(self, n: int, seed: int) -> dict[str, object]:
        said = {
            "task": self.name,
            "n": n,
            "seed": seed,
            "version": self.version,
            "source": self.source,
            "counterfactual": self.counterfactual,
            "flips": self.flips,
        }
        return {**said, **self.details()}

    def _pair(self, i: int, seed: int, seen: set[tuple[tuple[int, ...], tuple[int, ...]]]) -> _Pair:
        """Pair i: the first draw that is aligned, can be answered, and is not among those `seen`."""
        last: TaskError | None = None
        for attempt in range(TRIES):
            draw = self.draw(i, seed, rng(seed, f"{self.name}/{i}/{attempt}"))
            clean, corrupt = self.render(draw.clean), self.render(draw.corrupt)
            try:
                a, b = self.encoder.encode(clean), self.encoder.encode(corrupt)
                checks.pair(f"pair {i}", a.ids, b.ids, lambda _, ids: self.encoder.strings(ids))
                if a.slots != b.slots:
                    raise TaskError(
                        f"the slots of {clean.text!r} and {corrupt.text!r} are not at the same tokens"
                    )
                answers, wrong = self.settle(self._ids(clean, draw.answers), self._ids(clean, draw.wrong))
            except TaskError as error:
                last = error
                continue
            if (a.ids, b.ids) not in seen:
                seen.add((a.ids, b.ids))
                return _Pair(draw, clean, corrupt, a.slots, answers, wrong)
        if last is not None:
            raise TaskError(
                f'"{self.name}" cannot make aligned pairs with this tokenizer',
                why=str(last),
                instead="use another task, or give pairs of your own (mt.pairs)",
            ) from last
        raise TaskError(
            f'"{self.name}" found no pair {i} that differs from the {len(seen)} before it',
            why=f"{TRIES} draws repeated earlier pairs: the pools that this tokenizer allows are used up",
            instead=f"ask for n <= {len(seen)}",
        )

    def _declared(self, rows: Sequence[Values]) -> tuple[list[Values], list[Values]]:
        variables: list[Values] = [{k: v for k, v in row.items() if k in self.variables} for row in rows]
        surface: list[Values] = [{k: v for k, v in row.items() if k not in self.variables} for row in rows]
        return variables, surface

    def _ids(self, prompt: Prompt, answers: Answers) -> Continuations:
        if all(isinstance(a, int) for a in answers):
            return tuple((int(a),) for a in answers)
        return self.encoder.continuations(prompt.text, [str(a) for a in answers])

    def outcome(self, values: Values, variable: str, value: str) -> Continuations:
        """`interchange` as tokens that follow the prompt with these values."""
        answers = self.interchange(values, variable, value)
        return self._ids(self.render(values), answers) if answers else ()

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        """One donor per pair (see `PairTask.donors`)."""
        rows: list[tuple[Prompt, Values]] = []
        right: list[Continuations] = []
        wrong: list[Continuations] = []
        for i in range(task.n):
            clean, corrupt = task.clean.values(i), task.corrupt.values(i)
            base = clean if kind == "same_value" else corrupt

            def candidate(random: np.random.Generator, base: Values = base, corrupt: Values = corrupt) -> Any:
                return (self.resurface(base, random), (), ())

            def another(random: np.random.Generator, clean: Values = clean, corrupt: Values = corrupt) -> Any:
                return self.revalue(clean, corrupt, random)

            make = another if kind == "wrong_value" else candidate
            name = f"donors/{kind}/{task.clean.texts[i]}/{task.corrupt.texts[i]}"
            prompt, values, answers = self._fitting(task, i, make, seed, name)
            rows.append((prompt, values))
            if kind == "wrong_value":
                sides = self.settle(self._ids(prompt, answers[0]), self._ids(prompt, answers[1]))
                right.append(sides[0])
                wrong.append(sides[1])
        side = to_side(
            self.encoder,
            [prompt for prompt, _ in rows],
            [task.clean.spans_of(i) for i in range(task.n)],
            *self._declared([values for _, values in rows]),
        )
        plain = {name: getattr(side, name) for name in Side.__dataclass_fields__}
        return Donors(**plain, kind=kind, answers=tuple(right), wrong=tuple(wrong))

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        """n prompts, the task's layouts in turn (see `PairTask.reference`)."""
        from microtome.tasks.alignment import groups

        layouts = groups(task, roles=False)
        own = set(task.clean.ids) | set(task.corrupt.ids)
        made: list[tuple[Prompt, Values, int]] = []
        for j in range(n):
            turn, g = divmod(j, len(layouts))
            rows = layouts[g].indices
            i = rows[turn % len(rows)]
            values = task.clean.values(i)

            def make(random: np.random.Generator, values: Values = values) -> Any:
                return self.redraw(values, random), (), ()

            prompt, drawn, _ = self._fitting(task, i, make, seed, f"reference/{j}", own)
            own.add(self.encoder.encode(prompt).ids)
            made.append((prompt, drawn, i))
        return to_side(
            self.encoder,
            [prompt for prompt, _, _ in made],
            [task.clean.spans_of(i) for _, _, i in made],
            *self._declared([values for _, values, _ in made]),
        )

    def _fitting(
        self,
        task: PairTask,
        i: int,
        make: Callable[[np.random.Generator], tuple[Values, Answers, Answers]],
        seed: int,
        name: str,
        taken: set[tuple[int, ...]] | None = None,
    ) -> tuple[Prompt, Values, tuple[Answers, Answers]]:
        """The first of `TRIES` candidates that is new and lies token for token like pair i."""
        pair = self._slots(task, i)
        avoid = taken if taken is not None else {task.clean.ids[i], task.corrupt.ids[i]}
        for attempt in range(TRIES):
            values, right, wrong = make(rng(seed, f"{name}/{attempt}"))
            prompt = self.render(values)
            made = self.encoder.encode(prompt)
            if len(made.ids) == len(pair.ids) and made.slots == pair.slots and made.ids not in avoid:
                return prompt, values, (right, wrong)
        raise TaskError(
            f'"{self.name}" found no {name.split("/")[0]} prompt for pair {i}',
            why=f"none of {TRIES} candidates is new and has its tokens at the places of {checks.quote(task.clean.texts[i])}",
            instead="ask for fewer, or report this control as not run",
        )

    def _slots(self, task: PairTask, i: int) -> Encoded:
        made = self.encoder.encode(self.render(task.clean.values(i)))
        if made.ids != task.clean.ids[i]:
            raise TaskError(
                f"pair {i} is not what its variables say",
                why=f"they give other tokens than {checks.quote(task.clean.texts[i])}",
                instead="make the task again with mt.task",
            )
        return made
