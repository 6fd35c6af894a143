"""What must hold of a prompt grid, each with the sentence that says which part breaks it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.tasks.checks import quote

if TYPE_CHECKING:
    from microtome.tasks.grid import PromptGrid

MOST_PROMPTS = 20_000


def check(grid: PromptGrid) -> None:
    """Refuse a grid whose numbers would mean something else than they say.

    Raises
    ------
    TaskError: parts that are not text, no factor under test, fewer than two levels or two alike, placeholders that are unknown
    or that a wording leaves out, wordings alike, answers that are empty or alike, a system prompt outside a chat, too many prompts.
    """
    for what in ("name", "template", "system", "prefill"):
        text(getattr(grid, what), f"the {what}")
    for k, wording in enumerate(grid.paraphrases):
        text(wording, f"paraphrase {k + 1}")
    if not isinstance(grid.chat, bool):
        raise TaskError(f"chat={grid.chat!r}", why="a prompt is a chat or it is not", instead="chat=True or chat=False")  # fmt: skip
    if not grid.template.strip():
        raise TaskError(
            "the template is empty", why="there is nothing to ask", instead='"Is {city} in France?"'
        )
    if grid.system and not grid.chat:
        raise TaskError("a system prompt and chat=False", why="only a chat template has a place for a system prompt",
                        instead="chat=True, or put its text in front of the template")  # fmt: skip
    wordings = grid.wordings
    if len(set(wordings)) < len(wordings):
        again = next(w for i, w in enumerate(wordings) if w in wordings[:i])
        raise TaskError(f"the wording {quote(again)} is there twice", why="the same wording twice is no variation",
                        instead="remove it, or write it otherwise")  # fmt: skip
    _factors(grid)
    _used(grid)
    _answers(grid)
    count = len(wordings) * math.prod(len(rows) for rows in grid.factors.values())
    if count > MOST_PROMPTS:
        raise TaskError(f"the grid has {count:,} prompts", why=f"at most {MOST_PROMPTS:,} are run",
                        instead="fewer levels or factors, or several grids")  # fmt: skip


def text(value: Any, what: str) -> str:
    """`value` where it is text that a tokenizer can read, else TaskError."""
    if not isinstance(value, str):
        hint = "put it in quotes: YAML reads yes, no, on, off and numbers as something else"
        raise TaskError(f"{what} is {value!r}", why=f"it is a {type(value).__name__}, not text", instead=hint)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise TaskError(f"{what} is not text", why="it holds half of a surrogate pair",
                        instead="remove it, or write the whole character") from None  # fmt: skip
    return value


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value` where it is a mapping, else TaskError."""
    if not isinstance(value, Mapping):
        raise TaskError(f"{what} is a {type(value).__name__}", why="it maps names to values", instead=f"{what}={{name: [...]}}")  # fmt: skip
    return value


def sequence(value: Any, what: str) -> Sequence[Any]:
    """`value` where it is a list, else TaskError: a text would be taken letter by letter."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TaskError(f"{what}: {value!r} is a {type(value).__name__}", why="several texts are a list", instead="[first, second]")  # fmt: skip
    return value


def same_answer(answer: str) -> TaskError:
    """The refusal of an answer that is given twice."""
    return TaskError(f"the answer {quote(str(answer))} is there twice", why="its probability would count on both sides",
                     instead="answers that exclude one another")  # fmt: skip


def distinct(answers: Sequence[Sequence[str]], setting: Mapping[str, str]) -> None:
    """Refuse filled-in answers that are empty or alike."""
    every = [a for texts in answers for a in texts]
    for i, one in enumerate(every):
        if not one.strip():
            raise TaskError(f"an answer is {quote(one)} where {dict(setting)}", why="it has no text",
                            instead="give every level the text of its answer")  # fmt: skip
        if one in every[:i]:
            raise same_answer(one)


def _factors(grid: PromptGrid) -> None:
    if not grid.factors:
        raise TaskError("the grid has no factors", why="nothing would be varied", instead='factors={"tone": ["kindly", "now"]}')  # fmt: skip
    home: dict[str, str] = {}
    for factor, levels in grid.factors.items():
        if not isinstance(factor, str) or not factor.isidentifier():
            raise TaskError(f"a factor is called {factor!r}", why="its name is a placeholder", instead="letters, digits and _")  # fmt: skip
        if len(levels) < 2:
            raise TaskError(f'the factor "{factor}" has {len(levels)} level{"s" * (len(levels) != 1)}', why="with fewer than two nothing changes",
                            instead="give it another level, or write its text into the template")  # fmt: skip
        for n, level in enumerate(levels):
            for key, value in level.items():
                text(value, f'level {n + 1} of "{factor}": {key}')
            if factor not in level or set(level) != set(levels[0]):
                raise TaskError(
                    f'level {n + 1} of "{factor}" has the placeholders {", ".join(map(str, level)) or "none"}',
                    why=f"every level needs {', '.join(map(str, {factor: 0, **levels[0]}))}",
                    instead=f'each level maps the same names to text, "{factor}" among them',
                )
        labels = [level[factor] for level in levels]
        if len(set(labels)) < len(labels):
            again = next(v for i, v in enumerate(labels) if v in labels[:i])
            raise TaskError(f'the factor "{factor}" has the level {quote(again)} twice', why="equal levels cannot differ in effect",
                            instead="remove one")  # fmt: skip
        for name in levels[0]:
            if home.setdefault(name, factor) != factor:
                raise TaskError(f'the placeholder "{name}" belongs to "{home[name]}" and to "{factor}"', why="one would overwrite the other",
                                instead="rename one")  # fmt: skip
    for name in grid.over:
        if name not in grid.factors:
            raise TaskError(f"over={grid.over} names no factor {name!r}", why=f"factors: {', '.join(grid.factors)}", instead=_near(name, grid.factors))  # fmt: skip
    if not grid.tested:
        raise TaskError(
            "no factor is tested", why="all of them are in over=", instead="leave one out of over="
        )


def _used(grid: PromptGrid) -> None:
    """Every placeholder is known, and every factor is in every wording or in what surrounds it."""
    from microtome.tasks.grid import placeholders

    known = {name: factor for factor, levels in grid.factors.items() for name in levels[0]}
    around = [*placeholders(grid.system), *placeholders(grid.prefill)]
    answers = [p for texts in grid.answers.values() for t in texts if isinstance(t, str) for p in placeholders(t)]  # fmt: skip
    for wording in grid.wordings:
        here = [*placeholders(wording), *around]
        for name in (*here, *answers):
            if name not in known:
                raise TaskError(f'no factor fills the placeholder "{{{name}}}"', why=f"placeholders: {', '.join(known)}", instead=_near(name, known))  # fmt: skip
        absent = [f for f in grid.factors if f not in {known[name] for name in here}]
        if absent:
            raise TaskError(
                f'the wording {quote(wording)} leaves out the factor "{absent[0]}"',
                why="its levels would all give the same prompt",
                instead=f'put "{{{absent[0]}}}" into every wording, or drop the factor',
            )


def _answers(grid: PromptGrid) -> None:
    if not grid.answers:
        raise TaskError("the grid has no answers", why="nothing would be measured", instead='answers=[" yes", " no"]')  # fmt: skip
    seen: list[str] = []
    for name, texts in grid.answers.items():
        if not isinstance(name, str) or not name:
            raise TaskError(f"an answer is called {name!r}", why="answers have names of text", instead="put the name in quotes")  # fmt: skip
        if not texts:
            raise TaskError(f'the answer "{name}" has no text', why="its set is empty", instead="give at least one text")  # fmt: skip
        for one in texts:
            if not text(one, f'the answer "{name}"').strip():
                raise TaskError(f'the answer "{name}" is {quote(one)}', why="it has no text", instead="give a word")  # fmt: skip
            if one in seen:
                raise same_answer(one)
            seen.append(one)


def _near(name: str, known: Any) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return (
        f'did you mean "{found[0]}"?' if found else "give it levels, or write braces of the text as {{ and }}"
    )


__all__ = ["MOST_PROMPTS", "check", "distinct", "mapping", "same_answer", "sequence", "text"]
