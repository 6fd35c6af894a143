"""A Chat without an endpoint: the prompt is shown or written to a file, a person takes it to any model and pastes the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from microtome.errors import ChatError
from microtome.llm.chat import GREEDY, Message, Reply, Sampling, UnusableAnswer

__all__ = ["END", "Pasting", "as_text"]

END = "END OF ANSWER"
LONGEST = 1_000_000


def as_text(messages: Sequence[Message]) -> str:
    """Messages as one text to paste: a lone user message as it is, else each under its role."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content.strip() + "\n"
    heads = {"system": "INSTRUCTIONS", "user": "QUESTION", "assistant": "YOUR ANSWER SO FAR"}
    return "\n\n".join(f"[{heads[m.role]}]\n{m.content.strip()}" for m in messages) + "\n"


class Pasting:
    """Shows each prompt and reads the answer that a person brings.

    prompt_to: a file that is overwritten with the prompt; None: `show` gets it.
    answer_from: a file with the answer, read once the prompt is out; None: `lines` are read up to a line END OF ANSWER.
    model: who is said to have answered; a person knows, we do not.

    once: whether only one question can be answered in a run: with files. A file is taken for the answer to the question that stands in prompt_to: with both, a first run that finds the answer
    file missing or older than the prompt's last change stops with what to do, and the same command goes on afterwards.
    """

    def __init__(
        self,
        *,
        prompt_to: Path | None = None,
        answer_from: Path | None = None,
        show: Callable[[str], None] | None = None,
        lines: TextIO | None = None,
        model: str = "pasted",
    ) -> None:
        if prompt_to is None and show is None:
            raise ChatError("the prompt has nowhere to go", why="neither a file nor somebody to show it to was given", instead="give prompt_to")  # fmt: skip
        if answer_from is None and lines is None:
            raise ChatError("there is nowhere to read an answer", why="neither a file nor a stream was given", instead="give answer_from")  # fmt: skip
        self.name = model
        self.once = answer_from is not None
        self._prompt_to, self._answer_from, self._show, self._lines = prompt_to, answer_from, show, lines

    def ask(
        self,
        messages: Sequence[Message],
        sampling: Sampling = GREEDY,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Reply:
        """The answer that was pasted. How it was drawn is not known: `sampling` is not passed on.

        Raises
        ------
        UnusableAnswer: nothing was pasted, or the text ended before its end mark. ChatError: a file cannot be read or
        written, or holds no answer to this prompt yet.
        """
        started = time.monotonic()
        prompt = as_text(messages)
        text = self._of_file(prompt) if self._answer_from else self._of_lines(prompt)
        if not text.strip():
            raise UnusableAnswer("nothing was pasted", why="the answer is empty", instead="paste what the model said", came=text)  # fmt: skip
        if on_text:
            on_text(text)
        return Reply(text.strip("\n"), self.name, seconds=time.monotonic() - started)

    def _put(self, prompt: str) -> bool:
        """Brings the prompt out; whether a file already held it."""
        if self._prompt_to is None:
            if self._show:
                self._show(prompt)
            return False
        try:
            same = self._prompt_to.is_file() and self._prompt_to.read_text(encoding="utf-8") == prompt
            if not same:
                self._prompt_to.write_text(prompt, encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise _unreadable(self._prompt_to, error) from None
        return same

    def _of_file(self, prompt: str) -> str:
        path = self._answer_from
        assert path is not None
        new = not self._put(prompt) and self._prompt_to is not None
        try:
            old = self._prompt_to is not None and path.stat().st_mtime < self._prompt_to.stat().st_mtime
        except FileNotFoundError:
            old = True
        if new or old:
            raise ChatError(
                "the prompt waits for its answer",
                why=f"{path} holds none to it yet",
                instead=f"give {self._prompt_to or 'the prompt'} to a model, save its answer as {path}, and run this again",
            )
        try:
            if path.stat().st_size > LONGEST:
                raise ChatError(
                    f"{path} is too long", why=f"more than {LONGEST} bytes", instead="only the answer"
                )
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise _unreadable(path, error) from None

    def _of_lines(self, prompt: str) -> str:
        self._put(prompt)
        assert self._lines is not None
        if self._show:
            self._show(f"Paste the answer, then a line {END}:\n")
        text = ""
        for line in self._lines:
            if line.strip() == END:
                return text
            text += line
            if len(text) > LONGEST:
                break
        raise UnusableAnswer(
            f"the pasted answer has no line {END}",
            why="without it nobody knows whether the text is whole",
            instead=f"paste the whole answer, and after it a line {END}",
            came=text,
        )


def _unreadable(path: Path, error: Exception) -> ChatError:
    return ChatError(f"{path} cannot be used", why=f"{type(error).__name__}: {error}", instead="a readable UTF-8 file")  # fmt: skip
