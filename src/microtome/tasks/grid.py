"""Prompt grids: one template, factors with their levels, other wordings, answers. A value; no model is held.

A grid asks what one change of a prompt does while all else stays: two prompts that differ in one factor are a matched pair.
Other wordings of the same question are its null: a factor that moves the answer no further than a change of wording does
has not been shown to matter.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from microtome.errors import TaskError
from microtome.results.frozen import FrozenDict
from microtome.tasks import gridding
from microtome.tasks.checks import quote

__all__ = ["GridPrompt", "PromptGrid", "grid", "placeholders"]

Level = Mapping[str, str]


@dataclass(frozen=True)
class GridPrompt:
    """One prompt of a grid.

    setting: factor -> label of its level. wording: 0 for the template, k for paraphrase k. user, system, prefill: the texts
    with their placeholders filled in. answers: per set its texts, filled in likewise.
    """

    setting: Mapping[str, str]
    wording: int
    user: str
    system: str
    prefill: str
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, repr=False)
class PromptGrid:
    """A template with factors; see `grid` for what each argument may be.

    template, paraphrases: texts with "{placeholder}"s ("{{" for a brace): the same question in several wordings.
    factors: name -> levels, the first is the reference; each level maps the factor's own name, and any further
    placeholders, to text.
    answers: name -> texts that count as this answer; the first is measured, against all the others.
    over: factors that are not tested but crossed with everything (entities, items): the units of statistics.
    system, prefill: the system prompt, and how the assistant's turn begins; both may hold placeholders.
    chat: whether the model's chat template is put around it.

    Raises
    ------
    TaskError: whatever would make its numbers mean something else than they say (see the module `gridding`).
    """

    name: str
    template: str
    factors: Mapping[str, tuple[Level, ...]]
    answers: Mapping[str, tuple[str, ...]]
    paraphrases: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    system: str = ""
    prefill: str = ""
    chat: bool = False
    provenance: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        levels = {k: tuple(FrozenDict(v) for v in rows) for k, rows in self.factors.items()}
        put(self, "factors", FrozenDict(levels))
        put(self, "answers", FrozenDict({k: tuple(v) for k, v in self.answers.items()}))
        put(self, "paraphrases", tuple(self.paraphrases))
        put(self, "over", tuple(self.over))
        put(self, "provenance", FrozenDict(self.provenance))
        gridding.check(self)

    def __repr__(self) -> str:
        tested = ", ".join(f"{f} ({len(self.factors[f])})" for f in self.tested)
        return f"<PromptGrid {self.name}: {tested}; {len(self.wordings)} wordings, hash {self.hash[:12]}>"

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def hash(self) -> str:
        """Hex digest (blake2b, 128 bits) of everything but provenance; the same on every platform."""
        content = {
            "name": self.name,
            "template": self.template,
            "factors": [[k, [list(v.items()) for v in rows]] for k, rows in self.factors.items()],
            "answers": [[k, v] for k, v in self.answers.items()],
            "paraphrases": self.paraphrases,
            "over": self.over,
            "system": self.system,
            "prefill": self.prefill,
            "chat": self.chat,
        }
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()

    @property
    def wordings(self) -> tuple[str, ...]:
        """The template and its paraphrases."""
        return (self.template, *self.paraphrases)

    @property
    def tested(self) -> tuple[str, ...]:
        """The factors whose effect is asked for."""
        return tuple(f for f in self.factors if f not in self.over)

    def labels(self, factor: str) -> tuple[str, ...]:
        """The names of a factor's levels; the first is the reference."""
        return tuple(level[factor] for level in self.factors[factor])

    def prompts(self, design: str = "all") -> tuple[GridPrompt, ...]:
        """The prompts in order: of design "all" every combination; of "one" the reference and each change of one tested factor.

        Factors in `over` and wordings are crossed with either.

        Raises
        ------
        TaskError: another design, or two combinations that give the same prompt.
        """
        if design not in ("all", "one"):
            raise TaskError(f"design={design!r}", why="a grid is run whole, or one factor at a time",
                            instead='"all" or "one"')  # fmt: skip
        made = [
            self._fill(which, wording)
            for wording in range(len(self.wordings))
            for which in self._settings(design)
        ]
        seen: dict[tuple[str, str, str], GridPrompt] = {}
        for prompt in made:
            key = (prompt.user, prompt.system, prompt.prefill)
            if key in seen:
                raise TaskError(
                    f"two settings give the same prompt, {quote(prompt.user)}",
                    why=f"{_shown(seen[key])} and {_shown(prompt)}",
                    instead="use every factor in every wording, and levels that differ there",
                )
            seen[key] = prompt
        return tuple(made)

    def _settings(self, design: str) -> Iterator[dict[str, int]]:
        every = itertools.product(*(range(len(rows)) for rows in self.factors.values()))
        for chosen in every:
            which = dict(zip(self.factors, chosen, strict=True))
            if design == "all" or sum(which[f] != 0 for f in self.tested) <= 1:
                yield which

    def _fill(self, which: Mapping[str, int], wording: int) -> GridPrompt:
        values: dict[str, str] = {}
        for factor, number in which.items():
            values |= self.factors[factor][number]
        user, system, prefill = (
            text.format_map(values) for text in (self.wordings[wording], self.system, self.prefill)
        )
        if not (user + prefill).strip():
            raise TaskError("a setting gives an empty prompt", why=f"{which}", instead="write some text around the factors")  # fmt: skip
        answers = tuple(tuple(t.format_map(values) for t in texts) for texts in self.answers.values())
        setting = {f: self.factors[f][n][f] for f, n in which.items()}
        gridding.distinct(answers, setting)
        return GridPrompt(FrozenDict(setting), wording, user, system, prefill, answers)

    @property
    def size(self) -> int:
        """Prompts of the whole grid."""
        return len(self.wordings) * math.prod(len(rows) for rows in self.factors.values())


def _shown(prompt: GridPrompt) -> str:
    inside = ", ".join(f"{k} {quote(v, 20)}" for k, v in prompt.setting.items())
    return f"{inside} in wording {prompt.wording}"


def grid(
    template: str,
    factors: Mapping[str, Sequence[str | Mapping[str, str]]],
    answers: Sequence[str] | Mapping[str, str | Sequence[str]],
    *,
    paraphrases: Sequence[str] = (),
    over: Sequence[str] = (),
    system: str = "",
    prefill: str = "",
    chat: bool | None = None,
    name: str = "user",
) -> PromptGrid:
    """A prompt grid from plain values.

    factors: name -> levels, each a text, or a mapping of the factor's name and of further placeholders to text
    ({"country": "France", "capital": "Paris"}).
    answers: texts, each an answer of its own, or name -> text or texts. With the space in front that belongs there. They may
    hold placeholders. chat: None means with a system prompt only.

    Raises
    ------
    TaskError: as PromptGrid.
    """
    levels: dict[str, tuple[Any, ...]] = {}
    for factor, rows in gridding.mapping(factors, "factors").items():
        listed = gridding.sequence(rows, f"the levels of {factor!r}")
        levels[factor] = tuple(row if isinstance(row, Mapping) else {factor: row} for row in listed)
    if isinstance(answers, Mapping):
        sets = {k: (v,) if isinstance(v, str) else tuple(gridding.sequence(v, f"answer {k!r}")) for k, v in answers.items()}  # fmt: skip
    else:
        texts = gridding.sequence(answers, "answers")
        if len(set(map(str, texts))) < len(texts):
            raise gridding.same_answer(next(t for i, t in enumerate(texts) if t in texts[:i]))
        sets = {str(text).strip() or repr(text): (text,) for text in texts}
        if len(sets) < len(texts):
            raise TaskError("two answers differ in spaces only", why="they would have one name",
                            instead="name them: answers={name: [text, ...]}")  # fmt: skip
    return PromptGrid(name, template, levels, sets, tuple(gridding.sequence(paraphrases, "paraphrases")),
                      tuple(gridding.sequence(over, "over")), system, prefill, bool(system) if chat is None else chat)  # fmt: skip


def placeholders(text: str) -> tuple[str, ...]:
    """The names of a text's placeholders, each once. Raises TaskError for one that is no plain name."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise TaskError(f"{quote(text)} is no template: {error}", why="braces mark placeholders",
                        instead='write "{{" and "}}" for braces of the text') from error  # fmt: skip
    found = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise TaskError(f"{quote(text)} has the placeholder {quote('{' + name + '}')}", why="a placeholder is a plain name in braces",
                            instead='"{tone}"; "{{" for a brace of the text')  # fmt: skip
        found.append(name)
    return tuple(dict.fromkeys(found))
