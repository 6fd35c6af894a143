"""`microtome tutor` and `microtome quiz`: what to learn next, and whether it is known."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import answering, failures, output
from microtome.cli.answering import AnswerFrom, Asking, MaxTokens, ProgressFile, PromptTo, Source
from microtome.cli.inputs import Json
from microtome.cli.quizzing import quiz
from microtome.errors import ChatError

if TYPE_CHECKING:
    from microtome.llm.chat import Reply
    from microtome.llm.curriculum import Topic

__all__ = ["quiz", "tutor"]

TopicName = Annotated[str | None, typer.Argument(help="A topic of the curriculum; without one it is listed.", show_default=False)]  # fmt: skip
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
    max_tokens: MaxTokens = None,
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
        if run or any(
            x is not None for x in (say, summary, exercise, read, source, prompt_to, answer_from, max_tokens)
        ):
            raise typer.BadParameter("name a topic; `microtome tutor` lists them")
        _curriculum(kept, json)
        return
    if run and exercise is None:
        raise typer.BadParameter("--run runs the tests of an exercise: give --exercise FOLDER too")
    if (prompt_to or answer_from) and not (say is not None or summary or exercise):
        raise typer.BadParameter("files carry one question: give --say, --summary or --exercise too")
    found = curriculum().topic(topic)
    text = answering.text_of(source, "the source") if source else ""
    if read is not None:
        _read(found, read, kept, json)
    elif exercise is not None:
        _exercise(found, text, exercise, run, kept, Asking(prompt_to, answer_from, max_tokens), json)
    elif summary is not None:
        _summary(
            found,
            text,
            answering.text_of(summary, "the summary"),
            kept,
            Asking(prompt_to, answer_from, max_tokens),
            json,
        )
    elif say is not None or (sys.stdin is not None and sys.stdin.isatty() and not json):
        _talk(found, text, say, kept, Asking(prompt_to, answer_from, max_tokens), json)
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


def _talk(topic: Topic, source: str, said: str | None, kept: Path | None, asking: Asking, json: bool) -> None:  # fmt: skip
    from microtome.llm.progress import Entry
    from microtome.llm.tutor import Tutor

    began = time.monotonic()
    conversation = Tutor(asking.chat(), topic, source, sampling=asking.sampling())
    if said is not None:
        reply = conversation.say(said, on_text=None if json else answering.told)
        if json:
            output.print_json({"topic": topic.id, "said": said, "reply": reply})
        else:
            answering.told("\n")
            _cut(reply)
        return
    answering.aside("an empty line, quit or exit ends it")
    said = "Begin."
    while said.strip().lower() not in LEAVE:
        try:
            reply = conversation.say(said, on_text=answering.told)
            answering.told("\n")
            _cut(reply)
        except ChatError as error:
            failures.show(error)  # the conversation stands as it was before
        answering.told("\n> ")
        said = sys.stdin.readline()
    answering.keep(kept, Entry(datetime.date.today(), topic.id, "talk", minutes=answering.minutes(began)))
    answering.aside(f"that does not count yet: microtome quiz {topic.id}, then --summary FILE")


def _cut(reply: Reply) -> None:
    if reply.finish == "length":
        answering.aside("the answer was cut by its length (--max-tokens, or the server's limit)")


def _summary(topic: Topic, source: str, summary: str, kept: Path | None, asking: Asking, json: bool) -> None:  # fmt: skip
    from microtome.llm.progress import Entry
    from microtome.llm.tutor import summarise_back

    found = summarise_back(asking.chat(), source or topic.notes, summary, sampling=asking.sampling())
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


def _exercise(topic: Topic, source: str, folder: Path, run: bool, kept: Path | None, asking: Asking, json: bool) -> None:  # fmt: skip
    from microtome.llm import exercises

    if (folder / "exercise.json").is_file():
        _tested(topic, exercises.load(folder), folder, run, kept, json)
        return
    exercises.need_free(folder)
    made = exercises.generate(asking.chat(), topic, source=source, sampling=asking.sampling())
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
        raise ChatError(f"the tests of {folder} were not run", why="a model wrote them, and they run without a sandbox", instead="read test_exercise.py, then add --run")  # fmt: skip
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
