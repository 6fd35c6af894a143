"""`microtome tutor` and `microtome quiz`: what to learn next, and whether it is known."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import answering, output
from microtome.cli.answering import AnswerFrom, ProgressFile, PromptTo
from microtome.cli.inputs import Json, Seed
from microtome.errors import ChatError

if TYPE_CHECKING:
    from microtome.llm.curriculum import Topic
    from microtome.llm.quiz import Grade, Item

__all__ = ["quiz", "tutor"]

TopicName = Annotated[str | None, typer.Argument(help="A topic of the curriculum; without one it is listed.", show_default=False)]  # fmt: skip
Source = Annotated[Path | None, typer.Option(help="A text to work from, instead of the topic's notes.", show_default=False)]  # fmt: skip
MIXED = "mixed"
LEAVE = ("", "quit", "exit")


def tutor(
    topic: TopicName = None,
    source: Source = None,
    say: Annotated[
        str | None, typer.Option(help="Say one thing to the tutor, and end.", show_default=False)
    ] = None,  # fmt: skip
    summary: Annotated[
        Path | None,
        typer.Option(help="Your summary of the source or topic: it is criticised.", show_default=False),
    ] = None,  # fmt: skip
    exercise: Annotated[
        Path | None,
        typer.Option(
            help="A folder: an exercise is written into it, or the one in it is tested.", show_default=False
        ),
    ] = None,  # fmt: skip
    run: Annotated[
        bool, typer.Option("--run", help="Run code of the exercise, which a model wrote. No sandbox.")
    ] = False,  # fmt: skip
    read: Annotated[
        float | None, typer.Option(min=0, help="Keep that you read for so many minutes.", show_default=False)
    ] = None,  # fmt: skip
    progress: ProgressFile = None,
    prompt_to: PromptTo = None,
    answer_from: AnswerFrom = None,
    json: Json = False,
) -> None:
    """Show what to learn next; talk about a topic with a tutor that asks; have a summary criticised; get a coding exercise.

    The curriculum and --read need no language model; the rest asks the configured endpoint, or is copied and pasted.
    """
    from microtome.llm.curriculum import curriculum

    kept = answering.progress_file(progress)
    if sum(x is not None for x in (say, summary, exercise, read)) > 1:
        raise typer.BadParameter("only one of --say, --summary, --exercise and --read at a time")
    if topic is None:
        if any(x is not None for x in (say, summary, exercise, read, source)):
            raise typer.BadParameter("name a topic; `microtome tutor` lists them")
        _curriculum(kept, json)
        return
    found = curriculum().topic(topic)
    text = answering.text_of(source, "the source") if source else ""
    if read is not None:
        _read(found, read, kept, json)
    elif exercise is not None:
        _exercise(found, text, exercise, run, kept, (prompt_to, answer_from), json)
    elif summary is not None:
        _summary(found, text, answering.text_of(summary, "the summary"), kept, (prompt_to, answer_from), json)
    elif say is not None or (sys.stdin is not None and sys.stdin.isatty() and not json):
        _talk(found, text, say, kept, (prompt_to, answer_from), json)
    else:
        _show(found, kept, json)


def _curriculum(kept: Path | None, json: bool) -> None:
    from microtome.llm.curriculum import curriculum, status

    told = status(answering.entries(kept), datetime.date.today())
    rows = [
        (
            s.topic.id,
            s.topic.title,
            s.topic.need,
            f"{s.topic.hours:g}",
            s.state,
            f"{s.hours:.1f}" if s.hours else "",
        )
        for s in told.standings
    ]
    if json:
        output.print_json({"topics": [_standing(s) for s in told.standings], "next": told.next.id if told.next else None,
                           "days": told.days, "hours": told.hours, "limits": {"days": curriculum().days, "hours": curriculum().hours},
                           "notes": told.notes, "progress": kept})  # fmt: skip
        return
    output.table(("topic", "title", "need", "h at most", "state", "h spent"), rows)
    for note in told.notes:
        output.say(note)
    if told.next:
        output.say(f"next: microtome tutor {told.next.id}; reading alone does not count, a quiz and a summary or an exercise do")  # fmt: skip


def _standing(standing: Any) -> dict[str, Any]:
    topic = standing.topic
    return {"id": topic.id, "title": topic.title, "need": topic.need, "hours_at_most": topic.hours, "knowing": topic.knowing,
            "state": standing.state, "passed": standing.passed, "hours": standing.hours}  # fmt: skip


def _show(topic: Topic, kept: Path | None, json: bool) -> None:
    from microtome.llm.curriculum import status

    standing = next(
        s for s in status(answering.entries(kept), datetime.date.today()).standings if s.topic == topic
    )
    if json:
        output.print_json({**_standing(standing), "notes": topic.notes})
        return
    output.say(f"{topic.title} ({topic.need}, at most {topic.hours:g} h; {standing.state})", style="bold")
    output.say(topic.notes)
    for line in topic.knowing:
        output.say(f"- to know: {line}")


def _read(topic: Topic, minutes: float, kept: Path | None, json: bool) -> None:
    from microtome.llm.progress import Entry

    answering.keep(kept, Entry(datetime.date.today(), topic.id, "reading", minutes=minutes))
    if json:
        output.print_json(
            {"topic": topic.id, "kind": "reading", "minutes": minutes, "counts": False, "progress": kept}
        )
    else:
        output.say(f"{minutes:g} minutes of reading; that does not count yet: microtome quiz {topic.id}, then --summary FILE")  # fmt: skip


def _talk(topic: Topic, source: str, said: str | None, kept: Path | None, files: tuple[Path | None, Path | None], json: bool) -> None:  # fmt: skip
    from microtome.llm.progress import Entry
    from microtome.llm.tutor import Tutor

    began = time.monotonic()
    conversation = Tutor(answering.chat(*files), topic, source)
    if said is not None:
        reply = conversation.say(said, on_text=None if json else answering.told)
        if json:
            output.print_json({"topic": topic.id, "said": said, "reply": reply})
        else:
            answering.told("\n")
        return
    said = "Begin."
    while said.strip().lower() not in LEAVE:
        conversation.say(said, on_text=answering.told)
        answering.told("\n\n> ")
        said = sys.stdin.readline()
    answering.keep(kept, Entry(datetime.date.today(), topic.id, "talk", minutes=_minutes(began)))
    answering.aside(f"that does not count yet: microtome quiz {topic.id}, then --summary FILE")


def _minutes(began: float) -> float:
    return min((time.monotonic() - began) / 60, 24 * 60 - 1)


def _summary(topic: Topic, source: str, summary: str, kept: Path | None, files: tuple[Path | None, Path | None], json: bool) -> None:  # fmt: skip
    from microtome.llm.progress import Entry
    from microtome.llm.tutor import summarise_back

    found = summarise_back(answering.chat(*files), source or topic.notes, summary)
    detail = f"{len(found.missing)} missing, {len(found.wrong)} wrong, by {found.by}"
    answering.keep(kept, Entry(datetime.date.today(), topic.id, "summary", found.passed, detail=detail))
    if json:
        output.print_json({**output.plain(found), "passed": found.passed})
        return
    for wrong in found.wrong:
        output.say(f'wrong: "{wrong.said}": {wrong.why}; the source: "{wrong.quote}"')
    for missing in found.missing:
        output.say(f'missing: {missing.point}; the source: "{missing.quote}"')
    for well in found.well:
        output.say(f'well put: "{well}"')
    output.say(f"{'passed' if found.passed else 'not passed'}: {detail}; {len(found.dropped)} points dropped because their quotes were not found")  # fmt: skip


def _exercise(topic: Topic, source: str, folder: Path, run: bool, kept: Path | None, files: tuple[Path | None, Path | None], json: bool) -> None:  # fmt: skip
    from microtome.llm import exercises

    if (folder / "exercise.json").is_file():
        _tested(topic, exercises.load(folder), folder, run, kept, json)
        return
    made = exercises.generate(answering.chat(*files), topic, source=source)
    made = exercises.check(made) if run else made
    exercises.save(made, folder)
    if json:
        output.print_json({"title": made.title, "topic": made.topic, "state": made.state, "by": made.by, "folder": folder})  # fmt: skip
        return
    output.say(f"{made.title}: {folder}; {made.state}")
    output.say(f"read it, fill in exercise.py, then: microtome tutor {topic.id} --exercise {folder} --run (runs test_exercise.py, which a model wrote)")  # fmt: skip


def _tested(topic: Topic, exercise: Any, folder: Path, run: bool, kept: Path | None, json: bool) -> None:
    from microtome.llm import exercises
    from microtome.llm.progress import Entry

    if exercise.topic != topic.id:
        raise ChatError(f"{folder} is an exercise on {exercise.topic!r}", why=f"{topic.id!r} was named", instead="name its topic, or another folder")  # fmt: skip
    if not run:
        raise ChatError(f"the tests of {folder} were not run", why="a model wrote them, and they are no sandbox", instead="read test_exercise.py, then add --run")  # fmt: skip
    ran = exercises.run(exercise.blank, exercise.tests)
    # tests that nobody has seen fail may pass on anything
    passed = ran.good and exercise.state == exercises.CHECKED
    answering.keep(kept, Entry(datetime.date.today(), topic.id, "exercise", passed, detail=f"{exercise.title}: {len(ran.passed)} passed, {len(ran.failed)} failed"))  # fmt: skip
    if json:
        output.print_json({**output.plain(ran), "good": ran.good, "counts": passed, "state": exercise.state})
    else:
        for name, why in ran.failed.items():
            output.say(f"failed: {name}: {why}")
        output.say(
            f"{len(ran.passed)} passed, {len(ran.failed)} failed{'; ' + ran.ended if ran.ended else ''}"
        )
        if ran.good and not passed:
            output.say(f"does not count: {exercise.state}; made with --run, its tests would have been seen to fail on the blank")  # fmt: skip
    if not ran.good:
        raise typer.Exit(1)


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
    seed: Seed = 0,
    progress: ProgressFile = None,
    prompt_to: PromptTo = None,
    answer_from: AnswerFrom = None,
    json: Json = False,
) -> None:
    """Multiple choice: built-in questions, each asked again when it is due, or a model's about a topic or --source.

    At a terminal the questions are asked one by one. Elsewhere they are printed, and graded with --answers. A model's
    questions are asked at a terminal only: asked for twice, they may be others.
    """
    from microtome.llm.curriculum import curriculum

    kept = answering.progress_file(progress)
    found = curriculum().topic(topic) if topic else None
    if offline and (source or prompt_to or answer_from):
        raise typer.BadParameter(
            "--offline takes no --source, --prompt-to or --answer-from: they are for a language model"
        )
    text = answering.text_of(source, "the source") if source else found.notes if found else ""
    chat = None
    if text and not offline:
        chat = (
            answering.chat(prompt_to, answer_from)
            if source or prompt_to or answer_from
            else answering.endpoint()
        )
    if chat is not None:
        if answers is not None and not prompt_to:
            raise ChatError("--answers without --offline", why="a model asked twice may ask something else", instead="--offline, or a terminal")  # fmt: skip
        items = _made(chat, text, n, topic or MIXED)
    else:
        items = _built_in(topic, n, kept, seed)
    _ask(items, topic or MIXED, answers, seed, kept, json)


def _made(chat: Any, text: str, n: int, topic: str) -> tuple[Item, ...]:
    from microtome.llm.quiz import generate

    made = generate(chat, text, n, topic=topic)
    for line in made.dropped:
        answering.aside(f"dropped: {line}")
    answering.aside(f"{len(made.items)} questions by {chat.name}, {len(made.dropped)} dropped: quotes were looked up, whether the key is right was not")  # fmt: skip
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
    _keep(graded, topic, _minutes(began), kept)
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
        output.say(f"  {item.right} {item.because}")
    need = "" if graded.passed else " (a quiz of at least 4 questions is passed with 80 %)"
    output.say(f"{sum(graded.marks)} of {len(rows)}: {'passed' if graded.passed else 'not passed'}{need}")
