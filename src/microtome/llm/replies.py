"""From what a server sent to a Reply, or to an error that says what is wrong with it. Nothing here talks to a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from microtome.escapes import visible
from microtome.llm.chat import Reply, UnusableAnswer

__all__ = ["Gathered", "of_body", "shown", "told"]


def shown(text: str, most: int = 300) -> str:
    """Text of a server on one line: cut, and with every character that a terminal would obey written as an escape."""
    line = visible(" ".join(str(text).split()))
    return line if len(line) <= most else line[:most] + " ..."


def told(body: object) -> str:
    """What the body of an error says, in whichever of the usual shapes; the title of a page where it is HTML."""
    if isinstance(body, Mapping):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return told(body[name])
    if isinstance(body, str) and "<html" in body[:2000].lower():
        title = re.search(r"<title[^>]*>(.*?)</title", body, re.IGNORECASE | re.DOTALL)
        named = f" titled '{shown(title[1], 80)}'" if title else ""
        return f"an HTML page{named}, not an answer of an API"
    return "" if body is None else shown(str(body))


def of_body(body: object, model: str, seconds: float) -> Reply:
    """The Reply in a chat completion that came in one piece.

    Raises
    ------
    UnusableAnswer: no chat completion, or one without a text: null, empty, a refusal, a call of a tool.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(first, Mapping) or not isinstance(message, Mapping):
        raise UnusableAnswer(
            "the server's answer is no chat completion",
            why=told(body) or "it is empty",
            instead="check that the url is the base address of an OpenAI-compatible API, as a rule ending in /v1",
            came=shown(str(body), 2000),
        )
    gathered = Gathered()
    gathered.message(message)
    gathered.finish = _text(first.get("finish_reason"))
    gathered.told(body)
    return gathered.reply(model, seconds)


@dataclass
class Gathered:
    """An answer while it comes together, from one message or from the pieces of a stream.

    size: characters of text. thought: characters of reasoning, which is not kept. counts: tokens, as the server names them.
    """

    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    size: int = 0
    thought: int = 0
    tools: bool = False
    other: str = ""
    finish: str = ""
    model: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)

    def told(self, body: Mapping[str, Any]) -> None:
        """What stands beside the choices: who answers, and how many tokens."""
        self.model = _text(body.get("model")) or self.model
        usage = body.get("usage")
        self.counts = usage if isinstance(usage, Mapping) else self.counts

    def message(self, message: Mapping[str, Any]) -> str:
        """A message, or a piece of one; the text in it."""
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            self.other = type(content).__name__
        self.tools |= bool(message.get("tool_calls") or message.get("function_call"))
        self.refusal += [said] if (said := _text(message.get("refusal"))) else []
        self.thought += len(_text(message.get("reasoning_content")) or _text(message.get("reasoning")))
        piece = _text(content)
        self.text += [piece] if piece else []
        self.size += len(piece)
        return piece

    def chunk(self, chunk: Mapping[str, Any]) -> str | None:
        """A piece of a stream; the text in it, or None where it is none that a chat completion has."""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return None
        self.told(chunk)
        if not choices:  # the last one of many servers: counts only
            return ""
        first = choices[0]
        delta = first.get("delta") if isinstance(first, Mapping) else None
        if not isinstance(delta, Mapping):
            return None
        self.finish = _text(first.get("finish_reason")) or self.finish
        return self.message(delta)

    @property
    def so_far(self) -> str:
        """The text up to now; half a character, which JSON allows and no file takes, is shown as U+FFFD."""
        return "".join(self.text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def reply(self, model: str, seconds: float) -> Reply:
        """The whole answer.

        Raises
        ------
        UnusableAnswer: it is no text.
        """
        wrong = self._wrong()
        if wrong:
            raise UnusableAnswer(
                f"the answer cannot be used: {wrong[0]}",
                why=wrong[1],
                instead=wrong[2],
                came=self.so_far or "".join(self.refusal),
            )
        return Reply(
            self.so_far,
            shown(self.model, 200) or model,
            self.finish,
            _count(self.counts.get("prompt_tokens")),
            _count(self.counts.get("completion_tokens")),
            seconds,
        )

    def _wrong(self) -> tuple[str, str, str] | None:
        if self.refusal:
            return "the model refused", shown("".join(self.refusal)), "ask differently, or another model"
        if self.tools:
            return "a call of a tool", "no tools were offered", "a model or server that answers with text"
        if self.other:
            return f"its content is a {self.other}", "only text is read", "a model that answers with text"
        if self.finish == "content_filter":
            return (
                "the server's filter cut it",
                "finish_reason is content_filter",
                "another server, or another text",
            )
        if not self.so_far.strip():
            spent = f"; it thought for {self.thought} characters" if self.thought else ""
            why = f"no text came{spent}, finish_reason is {shown(self.finish) or 'missing'}"
            return "it is empty", why, "allow more tokens where the reason is length; else another model"
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
