"""`microtome lab predict`: predictions before runs, and their scores after."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import output
from microtome.cli.inputs import Folder, Json

if TYPE_CHECKING:
    from microtome.lab.expecting import Expectation
    from microtome.lab.predicting import Prediction

__all__ = ["app"]

HIGHEST = 2**31 - 1  # number that a database's column holds

app = typer.Typer(no_args_is_help=True, help="Predict before a run; be scored after it.")

Study = Annotated[str, typer.Option("--study", help="Title of the study it belongs to.")]
Number = Annotated[int, typer.Argument(metavar="NUMBER", max=HIGHEST, help="The prediction's number.")]

STATES = ("open", "true", "false", "void")
WIDTH = 70  # characters of a statement in a list


@app.command("new")
def new(
    statement: Annotated[str, typer.Argument(help="What you predict, in a sentence.")],
    probability: Annotated[str, typer.Argument(help="That it comes true: between 0 and 1, neither.")],
    method: Annotated[
        str | None, typer.Option(help="The technique that decides it.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or hash of the model; default: any.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Name of the task or data; default: any.", show_default=False)
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option(help="Where; repeat for more. Default: anywhere.", show_default=False)
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="What of the result decides: effects, verdict, p, control:NAME, table:NAME.COLUMN; without it you do.",
            show_default=False,
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Which row of the effects.", show_default=False)] = None,
    position: Annotated[str | None, typer.Option(help="Which row: its position.", show_default=False)] = None,
    metric: Annotated[str | None, typer.Option(help="Which row: its metric.", show_default=False)] = None,
    low: Annotated[float | None, typer.Option(help="At least this.", show_default=False)] = None,
    high: Annotated[float | None, typer.Option(help="At most this.", show_default=False)] = None,
    equals: Annotated[
        str | None, typer.Option(help="Exactly this (true, false, or a word).", show_default=False)
    ] = None,
    how: Annotated[str, typer.Option(help="Of several rows: one, every, any, mean, max, min.")] = "one",
    claim: Annotated[
        int | None, typer.Option(max=HIGHEST, help="The claim from which it follows.", show_default=False)
    ] = None,
    study: Study = "predictions",
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Register a prediction: `microtome lab predict new "removing L9H6 hurts" 0.7 --method ablation --task ioi --sites L9H6.z
    --field effects --site L9H6.z --high -0.3`."""  # fmt: skip
    from microtome.lab import place
    from microtome.lab.questions import query
    from microtome.lab.study import study as named

    place.here(folder)
    about = query(method, model=model, task=task, sites=tuple(sites or ()))
    at: int | str | None = (
        int(position) if position is not None and re.fullmatch(r"-?\d{1,9}", position) else position
    )
    holds = _holds(
        field, {"site": site, "position": at, "metric": metric, "low": low, "high": high}, equals, how
    )
    made = named(study, folder=folder).predict(statement, _number(probability), about, holds, claim=claim)
    if json:
        output.print_json(_data(made))
        return
    output.say(f"prediction {made.number}: {made.statement}, with {made.probability:g}")
    if made.holds:
        output.say(f"  decided by {made.about.text}: {made.holds.text}")
    else:
        output.say(f"  about {made.about.text}; you say how it came out:")
        output.say(f"  microtome lab predict resolve {made.number} true|false|void --reason TEXT")
    if made.post_hoc:
        output.say(f"  post hoc, and scored apart: {made.why_post_hoc}")


@app.command("list")
def listed(
    state: Annotated[str | None, typer.Option(help="open, true, false or void.", show_default=False)] = None,
    person: Annotated[str | None, typer.Option(help="Whose.", show_default=False)] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """List predictions."""
    from microtome.lab.predicting import predictions
    from microtome.lab.reading import open_record

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"{state!r}: {', '.join(STATES)}", param_hint="--state")
    found = predictions(open_record(folder).database, state=state, person=person)
    if json:
        output.print_json([_data(p) for p in found])
        return
    if not found:
        output.say("no such prediction: microtome lab predict new")
        return
    rows = [(str(p.number), p.person, f"{p.probability:g}", _cut(p.statement), p.kind, p.state,
             "" if p.run is None else f"run {p.run}", _cut(p.reason)) for p in found]  # fmt: skip
    output.table(("no.", "who", "p", "prediction", "kind", "state", "by", "why"), rows)


@app.command("resolve")
def resolve(
    number: Number,
    outcome: Annotated[str, typer.Argument(metavar="true|false|void", help="How it turned out.")],
    reason: Annotated[str, typer.Option(help="How one can tell.")],
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Say how a prediction turned out that no result decides."""
    from microtome.lab import place
    from microtome.lab.predicting import resolve as run
    from microtome.lab.reading import open_record

    known = {"true": True, "false": False, "void": None}
    if outcome.lower() not in known:
        raise typer.BadParameter(f"{outcome!r}: say true, false or void")
    record = open_record(folder)
    done = run(
        record.database, number, known[outcome.lower()], reason=reason, person=place.person(record.place)
    )
    if json:
        output.print_json(_data(done))
        return
    output.say(f"prediction {done.number} is {done.state}: {done.reason}")


@app.command("score")
def score(
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples behind the intervals.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Draw the calibration curves into this folder.", show_default=False)
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Score predictions: per person and kind, against always saying the base rate."""
    from microtome.lab.predicting import forecasts, predictions
    from microtome.lab.reading import open_record
    from microtome.lab.scoring import score as scored

    every = forecasts(predictions(open_record(folder).database))
    groups: dict[tuple[str, str], list[Any]] = {}
    for one in every:
        groups.setdefault((one.person, one.kind), []).append(one)
    found = {who: scored(these, seed=seed) for who, these in sorted(groups.items())}
    drawn = _draw(out, found) if out is not None else []
    if json:
        output.print_json([{"person": p, "kind": k, **s.as_json()} for (p, k), s in found.items()])
        return
    if not found:
        output.say(
            "no prediction has an outcome yet: run what they are about, or microtome lab predict resolve"
        )
        return
    n = output.number
    rows = [(who, kind, n(s.n), n(s.base_rate), n(s.brier), n(s.base_brier), n(s.difference), output.interval(s.low, s.high),
             n(s.log), n(s.base_log), n(s.p)) for (who, kind), s in found.items()]  # fmt: skip
    head = (
        "who",
        "kind",
        "n",
        "base rate",
        "Brier",
        "of base rate",
        "difference",
        "interval",
        "log",
        "of base rate",
        "p",
    )
    output.table(
        head, rows, title="Scores (lower is better; of base rate: always saying the share that comes true)"
    )
    for (who, kind), s in found.items():
        output.say(f"{who}, {kind}: {s.said}")
    for path in drawn:
        output.say(f"curve: {path}")


def _holds(field: str | None, given: dict[str, Any], equals: str | None, how: str) -> Expectation | None:
    from microtome.lab.expecting import expect

    if field is None:
        if any(v is not None for v in (*given.values(), equals)):
            raise typer.BadParameter(
                "--site, --low, --high and --equals say what of the result decides: give --field too"
            )
        return None
    value: Any = {"true": True, "false": False}.get((equals or "").lower(), equals)
    return expect(field, equals=value, how=how, **given)


def _number(text: str) -> Any:
    """A number, or the text as it is: what is no probability is refused where all of them are."""
    try:
        return float(text)
    except ValueError:
        return text


def _data(one: Prediction) -> dict[str, Any]:
    plain = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return {
        **plain,
        "about": one.about.as_json(),
        "holds": None if one.holds is None else one.holds.as_json(),
        "kind": one.kind,
    }


def _cut(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _draw(folder: Path, found: dict[tuple[str, str], Any]) -> list[Path]:
    from microtome.cli.job import slug
    from microtome.figures import static_svg
    from microtome.figures.forecasts import draw

    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for (who, kind), score in found.items():
        name = f"{slug(who)}-{slug(kind)}"
        taken = sum(
            p.stem == name or p.stem.startswith(f"{name}.") for p in made
        )  # "a b" and "a-b" are two people
        path = folder / (f"{name}.{taken + 1}.svg" if taken else f"{name}.svg")
        path.write_text(static_svg(draw(score, f"{who}, {kind}"), width=640) + "\n", encoding="utf-8")
        made.append(path)
    return made
