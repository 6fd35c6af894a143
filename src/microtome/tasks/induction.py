"""Induction on random tokens: after the second A comes what came after the first (Olsson et al. 2022, arXiv 2209.11895).

Needs ids only: any vocabulary will do. Prompts have one length; templates are the twelve distances at which the
sequence repeats, so that 2 to 13 tokens come a second time. (Templates are clusters: fewer than eleven reach no p of .001.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from microtome.errors import TaskError
from microtome.tasks.encode import Prompt
from microtome.tasks.generator import Answers, Draw, Generator, Values
from microtome.tasks.rng import shuffled, spread

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Induction"]

_LENGTH = 28  # tokens besides BOS
_PERIODS = tuple(range(15, 27))
_BLOCK = 32  # ids per entity


class Induction(Generator):
    """Pairs of the induction task.

    "other_answer" puts another token after the first A; "no_repeat" gives the first part other tokens
    altogether, so that nothing repeats.
    """

    name = "induction"
    summary = "random tokens .. A B .. A -> B"
    source = (
        "in the style of Olsson et al. 2022, arXiv 2209.11895; ids drawn uniformly without special tokens"
    )
    version = "2"
    variables = ("answer", "template")
    counterfactuals: ClassVar[Mapping[str, frozenset[str]]] = {
        "other_answer": frozenset({"answer"}),
        "no_repeat": frozenset({"answer"}),
    }

    def __init__(self, model: Any, counterfactual: str | None = None) -> None:
        super().__init__(model, counterfactual)
        self.flips = self.counterfactual == "other_answer"
        self.ids = _plain_ids(model)
        if len(self.ids) < _BLOCK:
            raise TaskError(
                f"the vocabulary has {len(self.ids)} ids besides special ones, {_BLOCK} are needed",
                why="tokens of a prompt must differ, so that one place alone tells the answer",
                instead="use a model with a larger vocabulary",
            )
        mixed = shuffled(self.ids, 0, "blocks/tokens")
        n = len(mixed) // (2 * _BLOCK) or 1
        self.blocks = [(f"tokens-{k}", mixed[k::n][: 2 * _BLOCK]) for k in range(n)]

    def details(self) -> Mapping[str, object]:
        """Size of the vocabulary drawn from."""
        return {"n_ids": len(self.ids), "length": _LENGTH, "periods": list(_PERIODS)}

    def draw(self, i: int, seed: int, random: np.random.Generator) -> Draw:
        """Pair i: distinct random ids, from a block of ids of its own while there are blocks left."""
        period = spread(_PERIODS, i, seed, "template")
        entity, pool = spread(self.blocks, i, seed, "entity")
        drawn = [pool[int(k)] for k in random.permutation(len(pool))]
        answer, wrong, first = drawn[0], drawn[1], drawn[2 : period + 1]
        clean = _values(answer, period, first)
        if self.counterfactual == "other_answer":
            corrupt = _values(wrong, period, first)
        else:
            # what repeats in clean stands there once: the answer is still present, but nothing points to it
            whole = _sequence(clean)
            other = [t for t in self._some(random, len(pool) + _LENGTH) if t not in whole and t != wrong]
            tokens = other[: _LENGTH - period] + whole[_LENGTH - period :]
            corrupt = {**clean, "answer": "none", "tokens": _join(tokens)}
        return Draw(clean, corrupt, (answer,), (wrong,), clean["template"], entity)

    def render(self, values: Values) -> Prompt:
        """The sequence; its text is for reading only, the ids are what the model gets."""
        ids = self.encoder.prefix + tuple(_sequence(values))
        source = len(ids) - _period(values)
        slots = {"match": (source - 1, source), "source": (source, source + 1)}
        strings = self.encoder.strings(ids)
        return Prompt(("" if self.encoder.tokenizer else " ").join(strings), slots, ids)

    def roles(self, clean: Values) -> Mapping[str, str]:
        """match: the first A; source: what came after it."""
        return {"match": "match", "source": "source"}

    def resurface(self, values: Values, random: np.random.Generator) -> Values:
        """Other random tokens around the same answer at the same distance."""
        period = _period(values)
        answer = int(values["answer"]) if values["answer"] != "none" else -1
        fresh = [t for t in self._some(random, period + _LENGTH) if t != answer]
        if answer < 0:
            return {**values, "tokens": _join(fresh[:_LENGTH])}
        return _values(answer, period, fresh[: period - 1])

    def revalue(
        self, clean: Values, corrupt: Values, random: np.random.Generator
    ) -> tuple[Values, Answers, Answers]:
        """A third token at the same place."""
        base = clean if clean["answer"] != "none" else corrupt
        used = {clean["answer"], corrupt["answer"], *base["tokens"].split()}
        answer = next(t for t in self._some(random, len(self.ids)) if str(t) not in used)
        own = corrupt if corrupt["answer"] != "none" else base
        return {**base, "answer": str(answer)}, (answer,), (int(own["answer"]),)

    def interchange(self, values: Values, variable: str, value: str) -> Answers:
        """The token after the first A, at whatever distance; without a repeat there is none."""
        answer = value if variable == "answer" else values["answer"]
        return () if "none" in (answer, values["answer"]) else (int(answer),)

    def redraw(self, values: Values, random: np.random.Generator) -> Values:
        """All tokens drawn anew; the distance stays."""
        drawn = self._some(random, _LENGTH + 1)
        return _values(drawn[0], _period(values), drawn[1 : _period(values)])

    def _some(self, random: np.random.Generator, n: int) -> list[int]:
        return [
            self.ids[int(k)] for k in random.choice(len(self.ids), size=min(n, len(self.ids)), replace=False)
        ]


def _values(answer: int, period: int, others: list[int]) -> dict[str, str]:
    return {"answer": str(answer), "template": f"period-{period}", "tokens": _join(others)}


def _period(values: Values) -> int:
    return int(values["template"].removeprefix("period-"))


def _sequence(values: Values) -> list[int]:
    """One period of tokens with the answer put in its place, repeated up to the length."""
    tokens = [int(t) for t in values["tokens"].split()]
    if values["answer"] == "none":
        return tokens
    source = _LENGTH - _period(values)
    one = [*tokens[:source], int(values["answer"]), *tokens[source:]]
    return [one[k % len(one)] for k in range(_LENGTH)]


def _join(ids: tuple[int, ...] | list[int]) -> str:
    return " ".join(str(i) for i in ids)


def _plain_ids(model: Any) -> list[int]:
    """Every id that is not special, in order."""
    size = getattr(getattr(model, "facts", None), "d_vocab", None)
    if model.tokenizer is None:
        if size is None:
            raise TaskError(
                "the size of the vocabulary is not known", why="no tokenizer, no facts", instead="use mt.load"
            )
        return list(range(int(size)))
    special = set(model.tokenizer.all_special_ids) | set(model.tokenizer.get_added_vocab().values())
    n = min(len(model.tokenizer), int(size)) if size is not None else len(model.tokenizer)
    return [i for i in range(n) if i not in special]
