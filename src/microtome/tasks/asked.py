"""Prompts of one's own with what should follow them: the question of a token attribution where there are no pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from microtome.errors import TaskError
from microtome.results.frozen import FrozenDict
from microtome.tasks.checks import quote
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, Side

__all__ = ["AskedPrompts", "ask"]


@dataclass(frozen=True, repr=False)
class AskedPrompts:
    """n prompts, what should follow each, and what to set it against.

    side: the prompts. answers, wrong: per prompt a set of continuations (token ids); wrong holds a stand-in that is never read
    where metric is "logprob". metric: "logit_diff", "logprob_diff" or "logprob". groups: cluster labels, as in PairTask.
    """

    side: Side
    answers: tuple[Continuations, ...]
    wrong: tuple[Continuations, ...]
    metric: str
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = "prompts"

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", FrozenDict({k: tuple(v) for k, v in self.groups.items()}))

    def __len__(self) -> int:
        return len(self.side)

    def __repr__(self) -> str:
        return f"<AskedPrompts {self.name}: {len(self)} prompts, metric {self.metric}, hash {self.hash[:12]}>"

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.side)

    @cached_property
    def hash(self) -> str:
        """Hex digest (blake2b, 128 bits); the same on every platform."""
        content = [self.name, self.side.content(), self.answers, self.wrong, self.metric, self.groups]
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def ask(
    model: Any,
    prompts: Sequence[str],
    answer: Sequence[str | Sequence[str]],
    wrong: Sequence[str | Sequence[str]] | None = None,
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    name: str = "prompts",
) -> AskedPrompts:
    """Prompts with their answers, tokenised by this model's tokenizer.

    answer, wrong: per prompt a text, or several that count alike, with the space in front that belongs there. Without wrong the
    metric is log P of the answer; with it the logit difference where both are one token, else the difference of log P.

    Raises
    ------
    TaskError: no prompts, an empty one, lists of other lengths, a prompt twice, answers that are empty, are wrong too, begin one
    another or re-cut the prompt, prompts over the context.
    """
    if isinstance(prompts, str) or isinstance(answer, str) or isinstance(wrong, str):
        raise TaskError("prompts and answers are lists", why="a text would be taken letter by letter", instead='ask(model, ["The capital of France is"], [" Paris"])')  # fmt: skip
    if not prompts:
        raise TaskError("no prompts were given", why="the list is empty", instead="give at least one")
    rows = [(_texts(a), _texts(w)) for a, w in zip(*_equal(prompts, answer, wrong), strict=True)]
    encoder = Encoder(model)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise TaskError(f"prompt {i} is {prompt!r}", why="a prompt has some text", instead="leave it out")
        if prompt in prompts[:i]:
            raise TaskError(f"prompt {i} is there twice: {quote(prompt)}", why="a copy is no further evidence", instead="leave it out")  # fmt: skip
    own, others = [], []
    for i, (prompt, (right, other)) in enumerate(zip(prompts, rows, strict=True)):
        if not right or not all(right + other):
            raise TaskError(f"prompt {i} has an empty answer", why="log P of nothing is 0", instead="give it some text")  # fmt: skip
        told = encoder.continuations(prompt, [*right, *other], f"prompt {i}: ")
        encoder.fits(f"prompt {i}", len(encoder.ids(prompt)) + max(map(len, told)))
        for a in told:
            if sum(b[: len(a)] == a for b in told) > 1:
                raise TaskError(f"prompt {i}: the answer {encoder.shown(a)} is there twice, or begins another", why="its probability would be counted twice",
                                instead="answers that exclude one another")  # fmt: skip
        own.append(tuple(told[: len(right)]))
        others.append(tuple(told[len(right) :]))
    single = all(len(a) == 1 and len(a[0]) == 1 for a in (*own, *others))
    metric = "logprob" if wrong is None else "logit_diff" if single else "logprob_diff"
    stand_in = [o or _unused(a) for a, o in zip(own, others, strict=True)]
    side = to_side(encoder, [Prompt(p) for p in prompts], [{} for _ in prompts])
    clusters = {k: tuple(map(str, v)) for k, v in (groups or {}).items()}
    if bad := [k for k, v in clusters.items() if len(v) != len(prompts)]:
        raise TaskError(
            f'{len(clusters[bad[0]])} labels of "{bad[0]}" for {len(prompts)} prompts',
            why="each prompt has one",
            instead=f"give {len(prompts)}",
        )
    return AskedPrompts(side, tuple(own), tuple(stand_in), metric, clusters, name)


def _texts(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _equal(prompts: Sequence[str], answer: Sequence[Any], wrong: Sequence[Any] | None) -> tuple[Sequence[Any], Sequence[Any]]:  # fmt: skip
    other: Sequence[Any] = [()] * len(prompts) if wrong is None else wrong
    if len(answer) != len(prompts) or len(other) != len(prompts):
        raise TaskError(f"{len(prompts)} prompts, {len(answer)} answers, {len(other)} wrong ones", why="each prompt has its own",
                        instead=f"give {len(prompts)} of each")  # fmt: skip
    return answer, other


def _unused(answers: Continuations) -> Continuations:
    """A token that begins no answer: plans of rows need one, "logprob" never reads it."""
    taken = {ids[0] for ids in answers}
    return ((next(t for t in range(len(taken) + 1) if t not in taken),),)
