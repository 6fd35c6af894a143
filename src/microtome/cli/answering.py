"""Who answers a command that asks a language model: the configured endpoint, or a person who copies and pastes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microtome.cli import output
from microtome.errors import ChatError

if TYPE_CHECKING:
    from microtome.llm.chat import Chat, Sampling
    from microtome.llm.progress import Entry

Source = Annotated[Path | None, typer.Option(help="A text to work from, instead of the topic's notes.", show_default=False)]  # fmt: skip
PromptTo = Annotated[Path | None, typer.Option(help="Without an endpoint: write the prompt to this file.", show_default=False)]  # fmt: skip
AnswerFrom = Annotated[Path | None, typer.Option(help="Without an endpoint: read the answer from this file.", show_default=False)]  # fmt: skip
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.", show_default="the server's limit")]  # fmt: skip
ProgressFile = Annotated[Path | None, typer.Option("--progress", help="Where progress is kept.", show_default="notebook/learning.yaml of the project")]  # fmt: skip


@dataclass(frozen=True)
class Asking:
    """How a command asks: over two files, where they are given, and for how many tokens at most."""

    prompt_to: Path | None = None
    answer_from: Path | None = None
    max_tokens: int | None = None

    def chat(self) -> Chat:
        """Files for copy and paste where they are given, else the endpoint, else the terminal. Says on stderr who is asked.

        Raises
        ------
        ChatError: one of the two files is missing; no endpoint is configured and nobody is at the terminal.
        """
        from microtome.llm.pasting import Pasting

        if (self.prompt_to is None) != (self.answer_from is None):
            raise ChatError("one of two files is missing", why="a prompt goes out and an answer comes back", instead="--prompt-to FILE --answer-from FILE")  # fmt: skip
        if self.prompt_to and self.answer_from:
            return Pasting(prompt_to=self.prompt_to, answer_from=self.answer_from)
        found = endpoint()
        if found:
            return found
        if sys.stdin is not None and sys.stdin.isatty():
            return Pasting(show=told, lines=sys.stdin)
        raise ChatError(
            "nobody is there to answer",
            why="no endpoint is configured, and this is no terminal to paste into (OPENAI_API_KEY is not read)",
            instead="MICROTOME_LLM_URL and MICROTOME_LLM_MODEL, or --prompt-to FILE --answer-from FILE",
        )

    def sampling(self) -> Sampling:
        """Greedy, cut where it was asked for."""
        from microtome.llm.chat import Sampling

        return Sampling(max_tokens=self.max_tokens)


def endpoint() -> Chat | None:
    """The configured endpoint, said on stderr; None where there is none. Raises ChatError as it does."""
    from microtome.llm.settings import find

    settings = find()
    if settings is None:
        return None
    from microtome.llm.endpoint import Endpoint

    made = Endpoint(settings, say=aside)
    aside(f"asking {made.name} (from {settings.source})")
    return made


def aside(line: str) -> None:
    """One line on stderr, whatever a model or a file put into it."""
    output.stderr().print(output.visible(line), soft_wrap=True, style="dim")


def told(text: str) -> None:
    """Text of a model on stdout as it comes: terminal escapes and markup are shown, not obeyed."""
    sys.stdout.write(output.visible(text, keep="\n"))
    sys.stdout.flush()


def text_of(path: Path, what: str) -> str:
    """A UTF-8 text of at most a million bytes. Raises ChatError where it cannot be read."""
    try:
        if path.stat().st_size > 1_000_000:
            raise ChatError(f"{what} {path} is too long", why="over a million bytes", instead="a part of it")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise ChatError(f"{what} {path} cannot be read", why=why or type(error).__name__, instead="a readable UTF-8 text") from None  # fmt: skip


def minutes(began: float) -> float:
    """Minutes since a reading of time.monotonic(), under a day."""
    return min((time.monotonic() - began) / 60, 24 * 60 - 1)


def progress_file(given: Path | None) -> Path | None:
    """Where progress is kept: the file that was given, else notebook/learning.yaml of the project, else nowhere."""
    from microtome.lab import place

    around = None if given else place.find()
    return given or (around.notebook / "learning.yaml" if around else None)


def entries(path: Path | None) -> tuple[Entry, ...]:
    """What was done so far. Raises LabError where the file is wrong."""
    from microtome.llm.progress import read

    return read(path) if path else ()


def keep(path: Path | None, entry: Entry) -> None:
    """Keep an entry, or say on stderr that it is not kept. Raises LabError where it cannot be written."""
    from microtome.llm.progress import append

    if path is None:
        aside("not kept: this is no project folder (microtome lab init), and no --progress FILE was given")
    else:
        append(path, entry)
