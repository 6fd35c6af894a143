"""The four stages of a project and its end, what each is for, and moving between them.

A move asks the questions of the stage that is left and of the one that is entered, and writes the answers on a page. Nothing
is forced: "not yet" is an answer, a question without one is named, and going back is as normal as going on.

Source: N. Nanda, "My research process" (stages and north stars); see `limits` for the tags.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from microtome.errors import LabError
from microtome.lab.notebook.entries import Entry, entries, write
from microtome.lab.notebook.limits import LIMITS, Limits
from microtome.lab.notebook.pages import Page

__all__ = ["END", "STAGES", "Move", "Stage", "asked", "history", "move", "stage"]


@dataclass(frozen=True)
class Stage:
    """A stage: its north star, the questions on entering and on leaving, the one to keep asking, and how it mostly fails.

    entering, leaving: key -> question; the key names the answer on the page. A name in braces stands for a number of
    `limits`; `asked` puts it in.
    """

    name: str
    north_star: str
    entering: Mapping[str, str]
    leaving: Mapping[str, str]
    keep_asking: str
    failure: str


STAGES: Mapping[str, Stage] = {
    s.name: s
    for s in (
        Stage(
            "ideation",
            "Find a problem that is worth the weeks it will take.",
            {"means": "What skills, models, data and compute are at hand, and for how long?"},
            {
                "problem": "Which problem is it, in one sentence? (It may have been handed to you.)",
                "matters": "If it works, whose mind changes, and about what?",
                "ideas": "Were there {ideas} ideas or more, and {ideation_block} h of looking for them?",
                "rated": "Did you rate them, 0 to 10, before you saw anybody else's ratings?",
            },
            "Would it matter if this worked?",
            "Falling for one's own first idea, or waiting for the perfect one.",
        ),
        Stage(
            "exploration",
            "Learn as much as possible per hour; see the problem from many sides.",
            {
                "problem": "What is the problem, and is it true that you have no sharp hypothesis yet?",
                "replicates": "Does the phenomenon show in your own setting, on this model?",
                "first looks": "Which cheap looks come first, each in minutes? (Read outputs; change one token; a baseline; a random model.)",
                "guesses": "Which small guesses can be checked in minutes? ({micro_hypotheses} cheap ones beat one good one.)",
            },
            {
                "hypotheses": "Which one to few hypotheses are plausible and interesting? Write them down.",
                "surprises": "What was odd, and what is still not explained?",
                "read the data": "Have you read raw examples, drawn at random?",
            },
            "Am I learning something?",
            "Believing that one already understands; planning instead of looking; digging in one hole, or in none.",
        ),
        Stage(
            "understanding",
            "Find out for yourself whether the hypothesis is true.",
            {
                "hypothesis": "What is the hypothesis, and what would it predict that its rivals do not?",
                "false if": "Which result would show that it is false? (Written before the run.)",
                "ways to be false": "After {brainstorm} minutes: in what ways could it be false?",
                "alternatives": "After {brainstorm} minutes: what else would explain what you saw?",
                "evidence": "Which evidence would be strong, which only a sanity check?",
            },
            {
                "convinced": "Are you convinced, and what would a sceptic still say?",
                "controls": "Which baselines, nulls and ablations ran, and how did they come out?",
                "second path": "Was the main number found again by other code, or by hand?",
                "interesting": "Is it interesting enough to tell?",
            },
            "What am I learning, and does it bear on the hypothesis?",
            "Experiments that could not have failed, straw baselines, bugs, too little doubt.",
        ),
        Stage(
            "distillation",
            "Say what is true, briefly, so that others can check it.",
            {
                "claims": "Which {claims_least} to {claims_most} claims will it make?",
                "evidence": "For each: what supports it, with how many cases ({case_studies} say much more than one) and at which p (the bar is {alpha})?",
                "reader": "What does a reader know who knows nothing of this project?",
            },
            {
                "shared": "With whom is the write-up shared?",
                "summary": "Is the summary at most {summary_words} words, about {summary_pages} page, with figures {summary_pages_most} at most?",
                "limits": "Are the limitations where a reader sees them?",
                "verified": "What did you verify yourself, and how?",
                "examples": "Are random raw examples shown?",
            },
            "Would a sceptic be convinced?",
            "Claiming more than was shown, hiding the limits, leaving the writing for the last day.",
        ),
    )
}  # fmt: skip
"""The stages in their order."""
END = Stage(
    "end",
    "Look back while you remember.",
    {"post-mortem": "When is the post-mortem, and who takes part?"},
    {},
    "What would I do differently?",
    "Beginning the next thing at once.",
)
"""Where a project goes from distillation, or from anywhere if it is dropped."""
_EVERY: Mapping[str, Stage] = {**STAGES, END.name: END}
_ORDER = tuple(_EVERY)


def stage(name: str) -> Stage:
    """The stage of a name, the end among them.

    Raises
    ------
    LabError: there is none.
    """
    if name not in _EVERY:
        raise LabError(f"there is no stage called {name!r}", why=f"the stages are {', '.join(_EVERY)}", instead="use one of these")  # fmt: skip
    return _EVERY[name]


def asked(before: str, to: str, limits: Limits | None = None) -> Mapping[str, str]:
    """The questions of a move: key -> question. Those of leaving are asked on going on only: who goes back has not finished.

    before: "" at the beginning of a project. limits: the project's numbers; one that is switched off is asked as the
    guide has it.

    Raises
    ------
    LabError: an unknown stage.
    """
    entering, leaving = stage(to).entering, stage(before).leaving if before else {}
    forward = before != "" and _ORDER.index(to) > _ORDER.index(before)
    made = {f"leaving {before}, {key}": text for key, text in leaving.items()} if forward else {}
    made |= {f"entering {to}, {key}": text for key, text in entering.items()}
    table = {
        **LIMITS,
        **{n: v for n, v in (limits.table if limits else LIMITS).items() if v.value is not None},
    }
    numbers = {name: f"{limit.value:g}" for name, limit in table.items()}
    return {key: text.format_map(numbers) for key, text in made.items()}


@dataclass(frozen=True)
class Move:
    """A move between stages as a page has it. back: to an earlier stage. unanswered: keys of the questions without an
    answer; not_yet: of those answered "not yet"."""

    at: datetime
    before: str
    to: str
    why: str
    back: bool
    unanswered: tuple[str, ...]
    not_yet: tuple[str, ...]


def move(
    now: datetime,
    before: str,
    to: str,
    answers: Mapping[str, str],
    *,
    why: str = "",
    limits: Limits | None = None,
) -> tuple[Page, Move]:
    """The page of a move, to be written with `folder.create`, and what it says.

    before: the stage that is left, "" at the beginning. answers: key of `asked` -> answer; "not yet" is one, an empty one
    is none. why: needed for going back. limits: as `asked`.

    Raises
    ------
    LabError: an unknown stage, the stage that one is in, an answer to no question, or going back without why.
    """
    questions = asked(before, to, limits)
    if before == to:
        raise LabError(f"the project is in {to} already", why="a move leads elsewhere", instead=f"one of {', '.join(s for s in _EVERY if s != to)}")  # fmt: skip
    if unknown := [key for key in answers if key not in questions]:
        raise LabError(f"an answer to {unknown[0]!r}", why=f"the questions are {'; '.join(questions)}", instead="use these keys")  # fmt: skip
    entry = Entry(now, f"{before or 'start'} -> {to}", {"from": before, "to": to, "why": why})
    made = _told(entry.at, before, to, why, {key: answers.get(key, "") for key in questions})
    if made.back and not why.strip():
        raise LabError(f"going back from {before} to {to} has no reason", why="going back is normal and worth a sentence", instead='why="..."')  # fmt: skip
    day = f"{now:%Y-%m-%d}"
    parts = [write(entry)]
    for key, text in questions.items():
        answer = Entry(now, "", text=answers.get(key, "")).text or "(no answer)"
        parts.append(
            f"### {key}\n\n*{text}*\n\n"
            + "\n".join(f"> {line}".rstrip() for line in answer.split("\n"))
            + "\n"
        )
    told = stage(to)
    parts.append(f"### in {to}\n\nNorth star: {told.north_star} Keep asking: {told.keep_asking} It mostly fails by: {told.failure}\n")  # fmt: skip
    fields = {"from": before, "to": to, "back": made.back}
    return Page(
        "stage", f"To {to}", day, fields, "\n".join(parts), f"stages/{day}-{now:%H%M%S}-{to}.md"
    ), made


def _told(at: datetime, before: str, to: str, why: str, answers: Mapping[str, str]) -> Move:
    back = before != "" and _ORDER.index(to) < _ORDER.index(before)
    empty = tuple(key for key, answer in answers.items() if not answer.strip())
    waiting = tuple(
        key for key, answer in answers.items() if " ".join(answer.casefold().split()).rstrip(".") == "not yet"
    )
    return Move(at, before, to, why, back, empty, waiting)


def history(pages: Iterable[Page]) -> tuple[Move, ...]:
    """The moves that pages of the kind "stage" record, in order of time; the last one's `to` is the present stage.

    What a person changed on a page counts: answers are read from the page. A page without a known stage is left out.
    """
    found = []
    for page in pages:
        to, before = str(page.fields.get("to", "")), str(page.fields.get("from", "") or "")
        written = entries(page) if page.kind == "stage" and to in _EVERY and before in ("", *_EVERY) else ()
        if written:
            answers = _answers(page.body)
            every = {key: answers.get(key, "") for key in asked(before, to)}
            found.append(_told(written[0].at, before, to, written[0].fields.get("why", ""), every))
    return tuple(sorted(found, key=lambda m: m.at))


def _answers(body: str) -> dict[str, str]:
    """Key -> answer: what stands under a heading "### key" and is not the question itself."""
    found: dict[str, str] = {}
    key = ""
    for line in body.replace("\r\n", "\n").split("\n"):
        if line.startswith("### "):
            key = line[4:].strip()
            found[key] = ""
        elif key and not (line.startswith("*") and line.rstrip().endswith("*")):
            found[key] += line.removeprefix(">").strip() + "\n"
    return {key: "" if text.strip() == "(no answer)" else text.strip() for key, text in found.items()}
