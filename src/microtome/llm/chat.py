"""What a conversation with a language model is here, whoever answers: an endpoint, or a person who copies and pastes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from microtome.errors import ChatError

__all__ = ["GREEDY", "Chat", "Message", "Reply", "Sampling", "UnusableAnswer"]

Role = Literal["system", "user", "assistant"]


class UnusableAnswer(ChatError):
    """Something came, but not an answer that can be used.

    came: the text that came, perhaps only the beginning of one. It is kept for a person to look at, never as an answer.
    """

    def __init__(self, what: str, *, why: str = "", instead: str = "", came: str = "") -> None:
        super().__init__(what, why=why, instead=instead)
        self.came = came

    def __reduce__(self) -> tuple[object, ...]:
        return _unusable, (self.what, self.why, self.instead, self.came)


def _unusable(what: str, why: str, instead: str, came: str) -> UnusableAnswer:
    return UnusableAnswer(what, why=why, instead=instead, came=came)


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    temperature: 0 is greedy where the server allows it. seed: passed on; servers may ignore it.
    max_tokens: None: the server's own limit.
    """

    temperature: float = 0.0
    seed: int | None = 0
    max_tokens: int | None = None


GREEDY = Sampling()
"""As deterministic as the server allows."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    model: who answered, as the server says. finish: why it ended: "stop", "length", ... ("" where it was pasted).
    prompt_tokens, completion_tokens: None where the server does not count. seconds: from sending to the last token.
    """

    text: str
    model: str
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = field(default=0.0, compare=False)


class Chat(Protocol):
    """Somebody who answers. `name` tells one from another: a judge must not be the generator.

    Each call is a fresh context: nothing is remembered but the messages given.
    """

    name: str

    def ask(
        self,
        messages: Sequence[Message],
        sampling: Sampling = GREEDY,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """An answer to the messages; `on_text` hears each piece as it comes.

        Raises ChatError: no answer came, or none that can be used.
        """
        ...
