"""`microtome lab note|did|highlight|...`: writing into the notebook of a project, and listing what is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from microtome.cli import output
from microtome.cli.inputs import Json
from microtome.cli.notebook_place import (
    Answers,
    Why,
    add,
    answers_of,
    keep,
    notebook,
    now,
    person,
    read_pages,
    told,
    wrote,
)
from microtome.errors import LabError

app = typer.Typer(no_args_is_help=True, help="The notebook of a project: Markdown pages in notebook/.")

Run = Annotated[list[str] | None, typer.Option("--run", help="A run: its number or id; may be repeated.")]
By = Annotated[str, typer.Option("--by", help="Who rates.", show_default="you, as in the record")]


@app.command()
def note(
    text: Annotated[str, typer.Argument(metavar="[TEXT]", show_default=False)] = "",
    goal: Annotated[str, typer.Option(help="What for.")] = "",
    tried: Annotated[str, typer.Option(help="What was tried.")] = "",
    observed: Annotated[str, typer.Option(help="What was seen, above all what is odd.")] = "",
    next: Annotated[str, typer.Option("--next", help="What comes next.")] = "",
    run: Run = None,
    json: Json = False,
) -> None:
    """Write into today's log."""
    from microtome.lab.notebook.records import log_entry
    from microtome.lab.notebook.stages import history

    moves = history(read_pages())
    stage = moves[-1].to if moves else ""
    add(log_entry(now(), stage=stage, goal=goal, tried=tried, observed=observed, next=next, runs=run or (), text=text), json)  # fmt: skip


@app.command()
def did(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="reading, zoom-out, dead-end, sprint, continue, ...", show_default=False)],
    what: Annotated[str, typer.Argument(metavar="[WHAT]", show_default=False)] = "",
    minutes: Annotated[int, typer.Option(help="How long it took, until now.")] = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Write down what you did, for the timers and the audit: did reading "the paper" --minutes 90."""
    from microtome.lab.notebook import records

    add(records.did(now(), kind, what, minutes=minutes), json)


@app.command()
def highlight(
    title: Annotated[str, typer.Argument(metavar="TITLE", show_default=False)],
    text: Annotated[str, typer.Option(help="More about it.")] = "",
    run: Run = None,
    json: Json = False,
) -> None:
    """Write down something that was learned: the measure of progress."""
    from microtome.lab.notebook import records

    add(records.highlight(now(), title, text=text, runs=run or ()), json)


@app.command()
def question(
    text: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    answer: Annotated[str, typer.Option(help="The answer: closes it.")] = "",
    json: Json = False,
) -> None:
    """Write down a question or a curiosity, or its answer."""
    from microtome.lab.notebook import records

    add(records.question(now(), text, state="answered" if answer.strip() else "open", answer=answer), json)


@app.command()
def belief(
    statement: Annotated[str, typer.Argument(metavar="[STATEMENT]", show_default=False)] = "",
    confidence: Annotated[float | None, typer.Argument(metavar="[CONFIDENCE]", help="0 to 1.", show_default=False)] = None,
    experiment: Annotated[str, typer.Option(help="What moved it.")] = "",
    result: Annotated[str, typer.Option(help="How that came out.")] = "",
    why: Why = "",
    run: Run = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Say how far you believe a statement; without arguments, list the beliefs and how they moved."""
    from microtome.lab.notebook import records, views

    if not statement:
        found = [(p, records.confidence(p)) for p in read_pages() if p.kind == "belief"]
        if json:
            output.print_json([{**told(p), "history": history} for p, history in found])
        else:
            output.table(("belief", "confidence", "history"), views.beliefs(found))
        return
    if confidence is None:
        raise LabError("a belief without a confidence", why="its history is what it is kept for", instead=f'microtome lab belief "{statement}" 0.7')  # fmt: skip
    add(
        records.belief(
            now(), statement, confidence, experiment=experiment, result=result, why=why, runs=run or ()
        ),
        json,
    )


@app.command()
def decide(
    what: Annotated[str, typer.Argument(metavar="DECISION", show_default=False)],
    why: Why = "",
    alternative: Annotated[list[str] | None, typer.Option(help="What else was possible; may be repeated.")] = None,
    would_change: Annotated[str, typer.Option(help="What would change it.")] = "",
    outcome: Annotated[str, typer.Option(help="How a decision that is written down came out.")] = "",
    because: Annotated[str, typer.Option(help="luck, execution or judgement: with --outcome.")] = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Write down a decision with its reason, or later how it came out."""
    from microtome.lab.notebook import folder, records

    if not outcome:
        add(
            records.decision(now(), what, why=why, alternatives=alternative or (), would_change=would_change),
            json,
        )
        return
    known = [p for p in read_pages() if p.kind == "decision"]
    found = [
        p for p in known if what in (p.title, p.path, p.path.removeprefix("decisions/").removesuffix(".md"))
    ]
    if len(found) != 1:
        raise LabError(f"{len(found)} decisions are called {what!r}", why=f"there are {', '.join(p.path for p in known) or 'none'}", instead="give the path of one")  # fmt: skip
    wrote(folder.add(notebook(), found[0], records.outcome(now(), outcome, because)), json)


@app.command()
def idea(
    title: Annotated[str, typer.Argument(metavar="TITLE", show_default=False)],
    text: Annotated[str, typer.Option(help="What it is.")] = "",
    answer: Answers = None,
    json: Json = False,
) -> None:
    """Write down an idea; five questions to it are asked on its page."""
    from microtome.lab.notebook import ideas

    add(ideas.idea(now(), title, text=text, answers=answers_of(answer)), json)


@app.command()
def rate(
    idea: Annotated[str, typer.Argument(metavar="IDEA", show_default=False)],
    rating: Annotated[float, typer.Argument(metavar="0-10", show_default=False)],
    by: By = "",
    why: Why = "",
    json: Json = False,
) -> None:
    """Rate an idea, before you see another's rating."""
    from microtome.lab.notebook import ideas

    wrote(ideas.rate(notebook(), now(), idea, by or person(), rating, why=why), json)


@app.command()
def reveal(
    idea: Annotated[str, typer.Argument(metavar="IDEA", show_default=False)],
    by: By = "",
    json: Json = False,
) -> None:
    """Everybody's ratings of an idea: refused until your own is in."""
    from microtome.lab.notebook import ideas, views

    who = by or person()
    found = ideas.reveal(notebook(), idea, who)
    far = ideas.gaps(notebook(), who)
    if json:
        output.print_json({"ratings": found, "gaps": far})
        return
    output.table(("person", "rating", "why", "changed to"), views.ratings(found))
    for own, other in far:
        output.say(f"worth a talk: {own.idea}: {own.rating:g} by you, {other.rating:g} by {other.person}")


@app.command()
def goals(
    tier: Annotated[str, typer.Argument(metavar="[TIER]", help="north star, sub-goal or objective.", show_default=False)] = "",
    text: Annotated[str, typer.Argument(metavar="[GOAL]", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="When it should be reached.")] = "",
    state: Annotated[str, typer.Option(help="open, reached or dropped.")] = "open",
    json: Json = False,
) -> None:  # fmt: skip
    """List the goals of all three tiers, or write one down."""
    from microtome.lab.notebook import records, views

    if tier:
        add(records.goal(now(), tier, text, until=until, state=state), json)
        return
    found = [g for p in read_pages() if p.kind == "goals" for g in records.goals(p)]
    if json:
        output.print_json(found)
    else:
        output.table(("tier", "goal", "state", "until", "since"), views.goals(found))


@app.command()
def plan(
    step: Annotated[str, typer.Argument(metavar="[STEP]", show_default=False)] = "",
    hours: Annotated[float | None, typer.Option(help="Hours that it should take.")] = None,
    took: Annotated[float | None, typer.Option(help="Hours that it took.")] = None,
    json: Json = False,
) -> None:
    """List the steps of the plan with estimates and times taken, or write one down."""
    from microtome.lab.notebook import records, views

    if step:
        add(records.step(now(), step, hours=hours, took=took), json)
        return
    found = [s for p in read_pages() if p.kind == "plan" for s in records.plan(p)]
    if json:
        output.print_json(found)
    else:
        output.table(("step", "estimate", "took", "times"), views.plan(found))


@app.command()
def index(json: Json = False) -> None:
    """Every page of the notebook, and what is odd about it."""
    from microtome.lab.notebook import views

    pages = read_pages()
    keep(pages)
    if json:
        output.print_json([told(p) for p in pages])
        return
    output.table(("page", "kind", "date", "title", "problems"), views.pages(pages))
    for line in views.problems(pages):
        output.say(line)
