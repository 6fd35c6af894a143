"""Predictions: made before a run, decided by its result or by a person, never changed in between.

A prediction with `holds` is decided by the first run to end among those that began after it, answer its question and say
what `holds` asks. One without stays open until a person resolves it with a reason. A prediction is post hoc when anything
earlier in this record saw what it is about: a run that finished, a run that it called, a raw look, whoever ran it. A run that
failed gave nobody a result and does not count, nor does what measures no effect (a certificate, a calibration). The record
cannot know what was seen elsewhere: in a paper, in another project, or in a process that did not record.
"""  # fmt: skip

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, insert, or_, select, update

from microtome.errors import LabError, MicrotomeError
from microtome.lab import schema, seals
from microtome.lab.expecting import Expectation, evaluate
from microtome.lab.questions import Question, seen
from microtome.lab.recorder import storable
from microtome.lab.scoring import Forecast, check_probability
from microtome.results.frozen import dumps, loads

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.database import Database
    from microtome.lab.reading import Record
    from microtome.results import Query, Result

__all__ = ["Prediction", "check", "decide", "forecasts", "make", "predictions", "redecided", "resolve"]

OPEN, TRUE, FALSE, VOID = "open", "true", "false", "void"
_PAGE = 2000  # runs whose sites are read at once


@dataclass(frozen=True)
class Prediction:
    """A prediction as recorded; see the columns of the table `prediction`.

    by: "person" or "agent". kind: "computed" when a result decides it, "judged" when a person does; post hoc ones are of a
    kind of their own ("computed, post hoc"): they are scored apart.
    """  # fmt: skip

    number: int
    study: int
    person: str
    by: str
    statement: str
    probability: float
    about: Question
    holds: Expectation | None
    made_at: float
    after_run: int
    post_hoc: bool
    why_post_hoc: str
    state: str
    run: int | None
    observed: Any
    reason: str
    resolved_by: str | None
    resolved_at: float | None
    claim: int | None

    @property
    def kind(self) -> str:
        """Which curve it belongs to."""
        how = "judged" if self.holds is None else "computed"
        return f"{how}, post hoc" if self.post_hoc else how

    def __repr__(self) -> str:
        said = f"<Prediction {self.number}: {self.statement!r} with {self.probability:g}, {self.state}"
        return f"{said}; post hoc: {self.why_post_hoc}>" if self.post_hoc else f"{said}>"


def make(
    database: Database,
    study: int,
    person: str,
    *,
    statement: str,
    probability: Any,
    about: Question,
    holds: Expectation | None = None,
    claim: int | None = None,
) -> Prediction:
    """Register a prediction.

    Raises LabError: no statement, a probability that is none (0 and 1, words), no question, a claim that is not there or
    is withdrawn.
    """
    given = check(statement, probability, about, holds)
    with database.writing() as connection:  # one writer at a time: seals follow one another
        if claim is not None:
            _check_claim(connection, claim)
        number, why = _sighting(connection, about)
        row: dict[str, Any] = {
            "key": os.urandom(8).hex(), "study": study, "person": person, "statement": statement.strip(),
            "probability": given, "about": dumps(about.as_json()), "holds": None if holds is None else dumps(holds.as_json()),
            "made_at": time.time(), "after_run": _newest(connection), "post_hoc": bool(why),
            "why_post_hoc": f"run {number}: {why}" if why else "", "state": OPEN, "reason": "", "claim": claim,
        }  # fmt: skip
        row["seal"] = seals.seal(seals.last(connection), row)
        done = connection.execute(insert(schema.prediction), row).inserted_primary_key
        assert done is not None
        return _one(connection, int(done[0]))


def check(statement: Any, probability: Any, about: Any, holds: Any) -> float:
    """The probability of what can be registered. Raises LabError: see `make`."""
    if not isinstance(statement, str) or not statement.strip():
        raise LabError(
            f"the statement is {statement!r}",
            why="nobody could tell what was predicted",
            instead="a sentence",
        )
    _check_text("the statement", statement)
    given = check_probability(probability)
    if not isinstance(about, Question):
        raise LabError(
            f"about= is a {type(about).__name__}",
            why="it says which runs the prediction is about",
            instead='about=mt.query("ablation", task=task, sites="L9H6.z")',
        )
    if holds is not None and not isinstance(holds, Expectation):
        raise LabError(
            f"holds= is a {type(holds).__name__}",
            why="it is data, compared with the stored result",
            instead='holds=mt.expect("effects", site="L9H6.z", low=-0.6, high=-0.3)',
        )
    return given


def decide(connection: Connection, number: int, result: Result) -> tuple[int, ...]:
    """Decide every open prediction that this run answers; their numbers. Called in the transaction that ends the run."""
    run, p = schema.run, schema.prediction
    row = connection.execute(
        select(run.c.family, run.c.begun_at, schema.model.c.name)
        .outerjoin(schema.model, run.c.model == schema.model.c.hash)
        .where(run.c.number == number)
    ).one()
    waiting = _predictions().where(p.c.state == OPEN, p.c.holds.is_not(None), p.c.after_run < number)
    rows = connection.execute(waiting).mappings().all()
    if not rows or result.query is None:
        return ()
    sites = tuple(
        connection.execute(select(schema.run_site.c.site).where(schema.run_site.c.run == number)).scalars()
    )
    decided = []
    for stored in rows:
        try:
            one = _prediction(stored)
            given = ((result.query, row.name or "", family, sites) for family in row.family.split("+"))
            if one.holds is None or not any(_answers(one.about, *each) for each in given):
                continue
            values = _outcome(one, one.holds, number, row.begun_at, result)
        except MicrotomeError as error:  # one that was edited must not keep the others open
            values = {"reason": storable(f"run {number} could not decide it: {error.what}")}
        if "state" in values:
            decided.append(stored["number"])
        connection.execute(update(p).where(p.c.number == stored["number"], p.c.state == OPEN).values(values))
    return tuple(decided)


def _outcome(
    one: Prediction, holds: Expectation, number: int, begun_at: float, result: Result
) -> dict[str, Any]:
    """What changes in the row of a prediction that a run answers."""
    if begun_at < one.made_at:  # its row came late: the database was locked when it began
        return {"reason": f"run {number} began before it was made, and decides nothing"}
    outcome = evaluate(holds, result)
    if outcome.held is None:
        return {"reason": storable(f"run {number} did not tell: {outcome.why}")}
    return {"state": TRUE if outcome.held else FALSE, "run": number, "observed": dumps(outcome.observed),
            "reason": storable(outcome.why), "resolved_at": time.time()}  # fmt: skip


def _answers(about: Question, query: Query, name: str, family: str, sites: Sequence[str]) -> bool:
    return about.matches(query, model_name=name, family=family, sites=sites) is None


def resolve(database: Database, number: int, outcome: bool | None, *, reason: str, person: str) -> Prediction:
    """A person says how a prediction without `holds` turned out; None: it cannot be told, and is not scored.

    Raises LabError: no such prediction, one that is resolved already, one that a result decides (it can only be made void),
    or no reason.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise LabError(
            "no reason was given", why="nobody could check how it was judged", instead='reason="..."'
        )
    _check_text("the reason", reason)
    if outcome is not None and not isinstance(outcome, bool):
        raise LabError(
            f"the outcome is {outcome!r}", why="it came true or not", instead="True, False, or None"
        )
    p = schema.prediction
    with database.writing() as connection:
        one = _one(connection, number)
        if one.state != OPEN:
            raise LabError(
                f"prediction {number} is {one.state} already", why=one.reason, instead="predict again"
            )
        if one.holds is not None and outcome is not None:
            raise LabError(
                f"prediction {number} is decided by a result",
                why=f"it holds when {one.holds.text}",
                instead="run what it is about; or make it void, with a reason",
            )
        state = VOID if outcome is None else TRUE if outcome else FALSE
        values = {"state": state, "reason": reason.strip(), "resolved_by": person, "resolved_at": time.time()}
        connection.execute(update(p).where(p.c.number == number).values(values))
        return _one(connection, number)


def predictions(
    database: Database, *, study: int | None = None, state: str | None = None, person: str | None = None
) -> tuple[Prediction, ...]:
    """Predictions, the oldest first."""
    query = _predictions()
    for column, value in (("study", study), ("state", state), ("person", person)):
        if value is not None:
            query = query.where(schema.prediction.c[column] == value)
    with database.reading() as connection:
        return tuple(_prediction(row) for row in connection.execute(query).mappings().all())


def redecided(record: Record) -> Iterator[tuple[Prediction, bool | None]]:
    """Predictions whose recorded outcome is not what their stored result gives now, with what it gives.

    One that cannot be read, or whose result cannot, is left out: its seal or the file says so.
    """
    p = schema.prediction
    query = _predictions().where(p.c.holds.is_not(None), p.c.state.in_((TRUE, FALSE)))
    with record.database.reading() as connection:
        rows = connection.execute(query).mappings().all()
    for row in rows:
        try:
            one = _prediction(row)
            held = None if one.run is None else _held(record, one, one.run)
        except MicrotomeError:
            continue
        if held is not (one.state == TRUE):
            yield one, held


def _held(record: Record, one: Prediction, number: int) -> bool | None:
    """What a run's stored result says of a prediction; None where that run may not decide it."""
    run, sites = record.run(number), record.sites(number)
    result = record.result(number)
    if one.holds is None or result.query is None or number <= one.after_run:
        return None
    given = ((result.query, run.model_name, family, sites) for family in run.family.split("+"))
    if not any(_answers(one.about, *each) for each in given):
        return None
    return evaluate(one.holds, result).held


def forecasts(found: Sequence[Prediction]) -> list[Forecast]:
    """Those that came true or not, as forecasts to score."""
    return [
        Forecast(p.probability, p.state == TRUE, p.person, p.kind) for p in found if p.state in (TRUE, FALSE)
    ]


def _sighting(connection: Connection, about: Question) -> tuple[int, str]:
    """The first run that saw what a question is about, and what they share."""
    for number, model, name, family, sites in _seen_runs(connection, about):
        for one in family.split("+"):  # a run on several data is of each of their families
            why = seen(about, model=model, model_name=name, family=one, sites=sites)
            if why:
                return number, why
    return 0, ""


def _seen_runs(
    connection: Connection, about: Question
) -> Iterator[tuple[int, str, str, str, tuple[str, ...]]]:
    """Runs that finished with something to read, narrowed to those of the model; one that had it as its second model counts."""
    run, model, site = schema.run, schema.model, schema.run_site
    empty = (run.c.result.is_(None)) & (run.c.method != "look") & (run.c.error == "")  # a certificate
    query = (
        select(run.c.number, run.c.model, func.coalesce(model.c.name, "").label("name"), run.c.family)
        .outerjoin(model, run.c.model == model.c.hash)
        .where(run.c.state == "finished", ~empty)
        .order_by(run.c.number)
    )
    mine: dict[str, str] = {}
    if about.model or about.model_name:
        known = connection.execute(select(model.c.hash, model.c.name)).all()
        mine = {m.hash: m.name for m in known if _is(about, m.hash, m.name)}
        beside = [run.c.question.contains(mark, autoescape=True) for mark in mine]
        of_it = [run.c.model.startswith(about.model, autoescape=True)] if about.model else []
        query = query.where(or_(run.c.model.in_([*mine, ""]), *beside, *of_it))
    rows = connection.execute(query).all()
    for start in range(0, len(rows), _PAGE):
        page = rows[start : start + _PAGE]
        inside = site.c.run.between(page[0].number, page[-1].number)
        sites: dict[int, list[str]] = {}
        for at, name in connection.execute(select(site.c.run, site.c.site).where(inside)):
            sites.setdefault(at, []).append(name)
        for r in page:
            beside_another = mine and r.model and not _is(about, r.model, r.name)
            mark, called = next(iter(mine.items())) if beside_another else (r.model, r.name)
            yield r.number, mark, called, r.family, tuple(sites.get(r.number, ()))


def _is(about: Question, mark: str, name: str) -> bool:
    """Whether a model is the one that is asked about: by its hash, or by its name (another dtype has another hash)."""
    same = bool(about.model_name) and about.model_name.casefold() == name.casefold()
    return same or (bool(about.model) and mark.startswith(about.model))


def _check_text(what: str, text: str) -> None:
    if storable(text) != text:
        raise LabError(
            f"{what} is {text!r}",
            why="it has characters that no database keeps as text",
            instead="leave them out",
        )


def _check_claim(connection: Connection, number: int) -> None:
    claim = schema.claim
    found = connection.execute(select(claim.c.withdrawn_at).where(claim.c.number == number)).first()
    if found is None or found.withdrawn_at is not None:
        state = "was withdrawn" if found is not None else "is not in this record"
        raise LabError(
            f"claim {number} {state}",
            why="a prediction is made from a claim that stands",
            instead="claim=None",
        )


def _newest(connection: Connection) -> int:
    return int(connection.execute(select(func.max(schema.run.c.number))).scalar() or 0)


def _predictions() -> Select[Any]:
    p, who = schema.prediction, schema.person
    return select(p, who.c.kind.label("by")).join(who, p.c.person == who.c.name).order_by(p.c.number)


def _one(connection: Connection, number: int) -> Prediction:
    found = connection.execute(_predictions().where(schema.prediction.c.number == number)).mappings().first()
    if found is None:
        raise LabError(
            f"no prediction {number}",
            why="the record has none of that number",
            instead="microtome lab predict --list",
        )
    return _prediction(found)


def _prediction(row: Any) -> Prediction:
    values = {name: row[name] for name in Prediction.__dataclass_fields__}
    values["about"] = Question.from_json(loads(values["about"]))
    values["holds"] = None if values["holds"] is None else Expectation.from_json(loads(values["holds"]))
    values["observed"] = None if values["observed"] is None else loads(values["observed"])
    return Prediction(**values)
