"""A question with its chain of thought: what is asked, the reasoning as text, and which answers there are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from microtome.errors import TaskError
from microtome.results.frozen import FrozenDict
from microtome.tasks import gridding
from microtome.tasks.sentences import split_sentences

__all__ = ["Thought", "thought"]


@dataclass(frozen=True, repr=False)
class Thought:
    """prompt: the question. answers: name -> texts that count as this answer. chain: the reasoning, "" where the model is to
    write it. system, chat: as in a prompt grid. opening: how the assistant's turn begins, in front of the chain; not a sentence of
    it.

    Raises
    ------
    TaskError: no prompt, no answers, answers alike or empty, a system prompt outside a chat.
    """

    prompt: str
    answers: Mapping[str, tuple[str, ...]]
    chain: str = ""
    system: str = ""
    chat: bool = False
    opening: str = ""
    name: str = "thought"
    provenance: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "answers", FrozenDict({k: tuple(v) for k, v in self.answers.items()}))
        put(self, "provenance", FrozenDict(self.provenance))
        for what in ("prompt", "chain", "system", "opening", "name"):
            gridding.text(getattr(self, what), f"the {what}")
        if not self.prompt.strip():
            raise TaskError("the prompt is empty", why="nothing is asked", instead="give a question")
        if self.system and not self.chat:
            raise TaskError("a system prompt and chat=False", why="only a chat template has a place for a system prompt", instead="chat=True")  # fmt: skip
        if not self.answers:
            raise TaskError("no answers", why="nothing would be counted", instead='answers=["yes", "no"]')
        seen: list[str] = []
        for name, texts in self.answers.items():
            if not texts:
                raise TaskError(f'the answer "{name}" has no text', why="its set is empty", instead="give at least one")  # fmt: skip
            for one in texts:
                if not gridding.text(one, f'the answer "{name}"').strip():
                    raise TaskError(f'the answer "{name}" is {one!r}', why="it has no text", instead="give a word")  # fmt: skip
                if one.strip().casefold() in seen:
                    raise gridding.same_answer(one)
                seen.append(one.strip().casefold())

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        return f"<Thought {self.name}: {len(self.sentences)} sentences, {len(self.answers)} answers, hash {self.hash[:12]}>"

    @cached_property
    def hash(self) -> str:
        """Hex digest (blake2b, 128 bits) of everything but provenance; the same on every platform."""
        content = [
            self.name,
            self.prompt,
            [[k, v] for k, v in self.answers.items()],
            self.chain,
            self.system,
            self.chat,
            self.opening,
        ]
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The chain, cut; joined they are the chain."""
        return split_sentences(self.chain)

    def with_chain(self, chain: str) -> Thought:
        """The same question with another reasoning."""
        return replace(self, chain=chain)


def thought(
    prompt: str,
    answers: Sequence[str] | Mapping[str, str | Sequence[str]],
    chain: str = "",
    *,
    system: str = "",
    chat: bool | None = None,
    opening: str = "",
    name: str = "thought",
) -> Thought:
    """A question with its answers from plain values. answers: texts, or name -> text or texts. chat: None with a system prompt only.

    Raises
    ------
    TaskError: as Thought.
    """
    if isinstance(answers, Mapping):
        sets = {k: (v,) if isinstance(v, str) else tuple(gridding.sequence(v, f"answer {k!r}")) for k, v in answers.items()}  # fmt: skip
    else:
        texts = gridding.sequence(answers, "answers")
        sets = {str(t).strip() or repr(t): (t,) for t in texts}
        if len(sets) < len(texts):
            raise gridding.same_answer(
                next(t for i, t in enumerate(texts) if str(t).strip() in [str(x).strip() for x in texts[:i]])
            )
    return Thought(prompt, sets, chain, system, bool(system) if chat is None else chat, opening, name)
