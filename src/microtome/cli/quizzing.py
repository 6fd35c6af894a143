"""`microtome quiz`: multiple choice, built in or of a model, asked at a terminal, in a pipe or from a file."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import answering, output
from microtome.cli.answering import AnswerFrom, Asking, MaxTokens, ProgressFile, PromptTo, Source
from microtome.cli.inputs import Json, Seed
from microtome.errors import ChatError

if TYPE_CHECKING:
    from microtome.llm.chat import Chat
    from microtome.llm.quiz import Grade, Item

__all__ = ["quiz"]

MIXED = "mixed"


def quiz(
    topic: Annotated[
        str | None,
        typer.Argument(
            help="A topic of the curriculum; default: all, what is due first.", show_default=False
        ),
    ] = None,  # fmt: skip
    n: Annotated[int, typer.Option("-n", min=1, max=20, help="How many questions.")] = 5,
    source: Source = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only the built-in questions, no language model.")
    ] = False,  # fmt: skip
    answers: Annotated[
        str | None, typer.Option(help="Letters, as CODE:abcda; - reads them from stdin.", show_default=False)
    ] = None,  # fmt: skip
    file: Annotated[
        Path | None,
        typer.Option(
            help="Keep a model's questions here; asked from here where it is there.", show_default=False
        ),
    ] = None,  # fmt: skip
    seed: Seed = 0,
    progress: ProgressFile = None,
    prompt_to: PromptTo = None,
    answer_from: AnswerFrom = None,
    max_tokens: MaxTokens = None,
    json: Json = False,
) -> None:
    """Multiple choice: built-in questions, each asked again when it is due, or a model's about a topic or --source.

    At a terminal the questions are asked one by one. Elsewhere they are printed, and graded with --answers. A model's
    questions are graded so from a --file only: asked for again, they may be others.
    """
    from microtome.llm.curriculum import curriculum

    kept = answering.progress_file(progress)
    found = curriculum().topic(topic) if topic else None
    asking = Asking(prompt_to, answer_from, max_tokens)
    if offline and (source or file or prompt_to or answer_from):
        raise typer.BadParameter("--offline takes nothing that is for a language model")
    if not (topic or source or (file and file.exists())) and (prompt_to or answer_from or file):
        missing = f"there is no {file} yet: " if file else ""
        raise typer.BadParameter(f"{missing}name a topic or a --source to ask a language model about")
    text = answering.text_of(source, "the source") if source else found.notes if found else ""
    if file and file.exists():
        items = _of_file(file, topic)
    elif text and not offline and (chat := _who(asking, bool(source or file))):
        if answers is not None and file is None and prompt_to is None:
            raise ChatError("--answers to questions of a model", why="asked again it may ask something else", instead="keep its questions with --file FILE, or --offline")  # fmt: skip
        items = _made(chat, text, n, topic or MIXED, asking)
        if file:
            _to_file(items, file)
    else:
        items = _built_in(topic, n, kept, seed)
    about = {i.topic for i in items}
    _ask(items, about.pop() if len(about) == 1 else MIXED, answers, seed, kept, json)


def _who(asking: Asking, needed: bool) -> Chat | None:
    """Who makes the questions; None where nobody was asked for and no endpoint is configured: the built-in ones do."""
    return asking.chat() if needed or asking.prompt_to or asking.answer_from else answering.endpoint()


def _of_file(path: Path, topic: str | None) -> tuple[Item, ...]:
    from microtome.llm.quiz import from_text

    items = from_text(answering.text_of(path, "the quiz"))
    if topic and {i.topic for i in items} != {topic}:
        raise ChatError(f"{path} is a quiz on {items[0].topic!r}", why=f"{topic!r} was named", instead="leave the topic out, or name another file")  # fmt: skip
    return items


def _to_file(items: tuple[Item, ...], path: Path) -> None:
    from microtome.llm.quiz import to_text

    path.write_text(to_text(items), encoding="utf-8")
    answering.aside(f"kept, with the right answers: {path}")


def _made(chat: Any, text: str, n: int, topic: str, asking: Asking) -> tuple[Item, ...]:
    from microtome.llm.chat import UnusableAnswer
    from microtome.llm.quiz import generate

    try:
        made = generate(chat, text, n, topic=topic, sampling=asking.sampling())
    except UnusableAnswer as error:
        if topic == MIXED:
            raise
        instead = f"{error.instead}; the built-in questions need no model: --offline"
        raise UnusableAnswer(error.what, why=error.why, instead=instead, came=error.came) from error
    for line in made.dropped:
        answering.aside(f"dropped: {line}")
    answering.aside(f"{len(made.items)} question{'s' * (len(made.items) != 1)} by {chat.name}, {len(made.dropped)} dropped: quotes were looked up, whether the key is right was not")  # fmt: skip
    return made.items


def _built_in(topic: str | None, n: int, kept: Path | None, seed: int) -> tuple[Item, ...]:
    from microtome.llm.progress import boxes
    from microtome.llm.quiz import bank, choose

    items = [i for i in bank() if topic in (None, i.topic)]
    stand = boxes(answering.entries(kept))
    chosen = choose(items, n, stand=stand, today=datetime.date.today(), seed=seed)
    if not chosen:
        due = min(stand[i.id].due for i in items)
        raise ChatError("no question is due", why=f"all {len(items)} were answered, the next is due on {due}", instead="another topic, or that day")  # fmt: skip
    return chosen


def _code(items: tuple[Item, ...], seed: int) -> str:
    """Tells one set of questions from another, so that answers are not held against others."""
    import hashlib

    return hashlib.blake2b(f"{seed} {' '.join(i.id for i in items)}".encode(), digest_size=3).hexdigest()


def _ask(items: tuple[Item, ...], topic: str, answers: str | None, seed: int, kept: Path | None, json: bool) -> None:  # fmt: skip
    from microtome.llm.quiz import LETTERS, grade, options

    code = _code(items, seed)
    if answers is None and (json or sys.stdin is None or not sys.stdin.isatty()):
        shown = [{"id": i.id, "topic": i.topic, "question": i.question, "options": dict(zip(LETTERS, options(i, seed), strict=True))} for i in items]  # fmt: skip
        if json:
            output.print_json({"code": code, "items": shown})
            return
        for number, item in enumerate(items, 1):
            _show_item(number, item, seed)
        output.say(
            f"answer with the same options and --answers {code}:{'-' * len(items)}, a letter for each -"
        )
        return
    began = time.monotonic()
    if answers is None:
        graded = grade(items, [_heard(number, item, seed) for number, item in enumerate(items, 1)], seed)
    else:
        graded = grade(items, _letters(sys.stdin.read() if answers == "-" else answers, code), seed)
    _keep(graded, topic, answering.minutes(began), kept)
    _grade(graded, code, json)


def _letters(text: str, code: str) -> str:
    given, colon, letters = text.strip().rpartition(":")
    if colon and given.strip() != code:
        raise ChatError(f"answers to {output.visible(given)!r}", why=f"these questions are {code}", instead="ask for the questions again, with the same topic, -n and --seed")  # fmt: skip
    return letters


def _show_item(number: int, item: Item, seed: int) -> None:
    from microtome.llm.quiz import LETTERS, options

    output.say(f"{number}. {item.question}", style="bold")
    for letter, option in zip(LETTERS, options(item, seed), strict=True):
        output.say(f"   {letter}) {option}")


def _heard(number: int, item: Item, seed: int) -> str:
    from microtome.llm.quiz import LETTERS

    _show_item(number, item, seed)
    while True:
        answering.told("a to d, or - for I do not know: ")
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        if line.strip().lower() in (*LETTERS, "-"):
            return line.strip()


def _keep(graded: Grade, topic: str, minutes: float, kept: Path | None) -> None:
    from microtome.llm.progress import Entry
    from microtome.llm.quiz import bank

    known = {i.id for i in bank()}
    marks = {i.id: mark for i, mark in zip(graded.items, graded.marks, strict=True) if i.id in known}
    detail = f"{sum(graded.marks)} of {len(graded.marks)}" + ("" if marks else ", made by a model")
    answering.keep(kept, Entry(datetime.date.today(), topic, "quiz", graded.passed, minutes, detail, marks))


def _grade(graded: Grade, code: str, json: bool) -> None:
    rows = list(zip(graded.items, graded.chosen, graded.marks, strict=True))
    if json:
        output.print_json({"code": code, "right": sum(graded.marks), "n": len(rows), "passed": graded.passed,
                           "items": [{"id": i.id, "question": i.question, "chosen": c, "right": i.right, "correct": m, "because": i.because,
                                      "quote": i.quote} for i, c, m in rows]})  # fmt: skip
        return
    for item, chosen, mark in rows:
        output.say(f"{'right' if mark else 'wrong'}: {item.question}")
        if not mark:
            output.say(f"  you said: {chosen or 'nothing'}")
            output.say(f"  right is: {item.right}")
        output.say(f"  {item.because}")
    need = "" if graded.passed else " (a quiz of at least 4 questions is passed with 80 %)"
    output.say(f"{sum(graded.marks)} of {len(rows)}: {'passed' if graded.passed else 'not passed'}{need}")
