"""Claims written down: made, given evidence and words, withdrawn. What they are worth is computed when they are read.

Nothing that was written is changed or removed: a claim that was wrong is withdrawn, and stays. Statements are plain text
as it was given; whoever shows them escapes them.
"""  # fmt: skip

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from microtome.errors import LabError
from microtome.lab import schema
from microtome.lab.rungs import STRONG, WEIGHTS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.database import Database

__all__ = ["ROLES", "Link", "add_texts", "link", "make", "withdraw"]

ROLES = ("alternative", "falsifier", "limitation")
LONGEST = 4000
"""Characters of a statement, a text or a note."""
ABOUT = ("method", "model", "model_name", "task", "family", "sites", "parameters", "seed")
"""What a claim's question may name; `mt.query` gives these."""


@dataclass(frozen=True)
class Link:
    """One piece of evidence.

    of: a Result that was recorded here, a run's number or row, or a prediction as `study.predict` gives it.
    prediction: a prediction's number, instead of `of`.
    weight: "strong"; "big_if_true": it would be strong, and probably fails; "sanity": it probably passes; "weak".
    supports: False: it speaks against the claim. note: why it bears on it.
    """

    of: Any = None
    weight: str = STRONG
    supports: bool = True
    note: str = ""
    prediction: int | None = None


def make(
    database: Database,
    study: int,
    person: str,
    statement: str,
    *,
    about: Any = None,
    evidence: Sequence[Any] = (),
    alternatives: Sequence[str] = (),
    falsifiers: Sequence[str] = (),
    limitations: Sequence[str] = (),
) -> int:
    """Write a claim with all it comes with, or nothing of it; its number.

    Parameters
    ----------
    about: what it is about: `mt.query(...)`, or a mapping of model, model_name, task, family and sites. Evidence about
        something else counts for nothing; a claim that says nothing here refuses none.
    evidence: Results that this record has, numbers of runs, predictions, or `Link`s, which say weight and direction; what
        is no Link counts as strong, and for the claim.
    alternatives: what else could explain the evidence. falsifiers: what would show the claim wrong; evidence that began
        before they were written counts as post hoc. limitations: what it does not say.

    Raises
    ------
    LabError: an empty text, an unknown weight, evidence that is not in this record, a child run, a run without a result.
    """
    texts = _texts(alternatives, falsifiers, limitations)
    row = {"key": os.urandom(8).hex(), "study": study, "person": person, "about": _about(about),
           "statement": _text(statement, "the claim")}  # fmt: skip
    if isinstance(evidence, str) or not isinstance(evidence, Iterable):
        raise LabError(f"evidence={evidence!r}", why="it is a sequence", instead="evidence=[result]")
    links = [_link(e) for e in evidence]
    with database.writing() as connection:
        _study_there(connection, study)
        _person_there(connection, person)
        last = int(connection.execute(select(func.max(schema.run.c.number))).scalar() or 0)
        now = time.time()
        values = {**row, "made_at": now, "after_run": last}
        number = _key(connection.execute(insert(schema.claim), values))
        for role, text in texts:
            _put_text(connection, number, role, text, now)
        for one in links:
            _put_link(connection, number, last, person, one, now)
    return number


def link(database: Database, claim: int, evidence: Any, person: str) -> int:
    """Link a piece of evidence (see `Link`; what is none counts as strong) to a claim; the piece's number.

    Raises LabError: no such claim or a withdrawn one, an unknown weight, evidence that is not in this record, that shows
    nothing, or that is linked already.
    """
    one = _link(evidence)
    with database.writing() as connection:
        row = _standing(connection, claim)
        _person_there(connection, person)
        return _put_link(connection, claim, row.after_run, person, one, time.time())


def add_texts(
    database: Database,
    claim: int,
    *,
    alternatives: Sequence[str] = (),
    falsifiers: Sequence[str] = (),
    limitations: Sequence[str] = (),
) -> None:
    """Add to what a claim says, all of it or nothing; a falsifier tests only what begins after it is written.

    Raises LabError: no such claim or a withdrawn one, an empty text, or none at all.
    """
    texts = _texts(alternatives, falsifiers, limitations)
    if not texts:
        raise LabError("nothing to add", why="no text was given", instead="an alternative, a falsifier or a limitation")  # fmt: skip
    with database.writing() as connection:
        _standing(connection, claim)
        now = time.time()
        for role, text in texts:
            _put_text(connection, claim, role, text, now)


def withdraw(database: Database, claim: int, why: str) -> None:
    """Withdraw a claim. It stays in the record, with the reason.

    Raises LabError: no such claim, one that is withdrawn already, or no reason.
    """
    why = _text(why, "the reason")
    with database.writing() as connection:
        _standing(connection, claim)
        values = {"withdrawn_at": time.time(), "why_withdrawn": why}
        connection.execute(update(schema.claim).where(schema.claim.c.number == claim).values(values))


# --------------------------------------------------------------------------------------------- what is written


def _put_text(connection: Connection, number: int, role: str, text: str, at: float) -> None:
    c = schema.claim_text.c
    last = select(func.max(c.place)).where(c.claim == number, c.role == role)
    place = int(connection.execute(last).scalar() or 0) + 1
    row = {"claim": number, "role": role, "place": place, "text": text, "at": at}
    connection.execute(insert(schema.claim_text), row)


def _put_link(connection: Connection, number: int, after_run: int, person: str, one: Link, at: float) -> int:
    run, prediction = _found(connection, one)
    column = schema.evidence.c.run if run is not None else schema.evidence.c.prediction
    value = run if run is not None else prediction
    same = select(schema.evidence.c.number).where(schema.evidence.c.claim == number, column == value)
    if connection.execute(same).first() is not None:
        what = f"run {run}" if run is not None else f"prediction {prediction}"
        raise LabError(
            f"{what} is linked to claim {number} already",
            why="a piece counts once, in one direction",
            instead="withdraw the claim and make it anew if the link was wrong",
        )
    post_hoc = run is not None and run <= after_run
    row = {"claim": number, "run": run, "prediction": prediction, "weight": one.weight, "supports": one.supports,
           "post_hoc": post_hoc, "person": person, "note": one.note, "at": at}  # fmt: skip
    return _key(connection.execute(insert(schema.evidence), row))


def _found(connection: Connection, one: Link) -> tuple[int | None, int | None]:
    """(number of a run, None) or (None, number of a prediction), which are in this record and may be evidence."""
    wanted = one.prediction
    if wanted is None and hasattr(one.of, "probability") and hasattr(one.of, "number"):
        wanted = one.of.number
    if wanted is not None:
        row = connection.execute(select(schema.prediction).where(schema.prediction.c.number == wanted)).first()  # fmt: skip
        key = getattr(one.of, "key", None)
        if row is None or (isinstance(key, str) and key != row.key):
            raise LabError(
                f"prediction {wanted} is not in this record",
                why="evidence is what the record has",
                instead="microtome lab predict lists predictions",
            )
        return None, int(row.number)
    return _run(connection, one.of), None


def _run(connection: Connection, given: Any) -> int:
    """The number of a run that may be evidence: by its number, its row, or a Result by what was asked and found."""
    run = schema.run
    if hasattr(given, "query") and hasattr(given, "verdict") and hasattr(given, "controls"):
        row = _of_result(connection, given)
    else:
        by = run.c.number == given if isinstance(given, int) else run.c.id == str(getattr(given, "id", ""))
        row = connection.execute(select(run).where(by)).first()
    if row is None:
        last = connection.execute(select(func.max(run.c.number))).scalar()
        what = f"run {getattr(given, 'number', given)}"
        raise LabError(
            f"{what} is not in this record",
            why=f"it has runs 1 to {last}; of another project, or removed"
            if last
            else "nothing ran here yet",
            instead="microtome lab runs lists them; what ran elsewhere has to be run here",
        )
    if row.parent is not None:
        raise LabError(
            f"run {row.number} ({row.method}) was called by run {row.parent}",
            why="a stage is judged with the whole that chose it",
            instead=f"link run {row.parent}, or call {row.method} itself",
        )
    if row.method != "look" and (row.state != "finished" or row.verdict is None):
        raise LabError(
            f"run {row.number} has no result",
            why=f"it is {row.state}" + (f": {row.error.splitlines()[0]}" if row.error else ""),
            instead="wait for it, or run it again",
        )
    return int(row.number)


def _of_result(connection: Connection, result: Any) -> Any:
    """The newest run of this record that asked a result's very question and found the same."""
    query = result.query
    same = [] if query is None else connection.execute(
        select(schema.run).where(schema.run.c.query == query.id, schema.run.c.verdict == str(result.verdict))
        .order_by(schema.run.c.parent.is_not(None), schema.run.c.number.desc())
    ).all()  # fmt: skip
    same = [row for row in same if row.p == result.verdict.p]
    if not same:
        raise LabError(
            f"this result of {result.kind} was not recorded here",
            why="no run of this record asked the same and found the same",
            instead="run it inside mt.study(...), then link what it gives",
        )
    return same[0]


# --------------------------------------------------------------------------------------------- what is asked for


def _link(given: Any) -> Link:
    one = given if isinstance(given, Link) else Link(given)
    if one.weight not in WEIGHTS:
        raise LabError(
            f"weight={one.weight!r}",
            why=f"a piece of evidence is {', '.join(WEIGHTS)}",
            instead="one of them",
        )
    if not isinstance(one.supports, bool):
        raise LabError(f"supports={one.supports!r}", why="it speaks for the claim or against it", instead="True or False")  # fmt: skip
    if (one.of is None) == (one.prediction is None):
        raise LabError(
            "a link names one thing",
            why="it is a run or result, or a prediction",
            instead="Link(result), Link(12) for run 12, Link(prediction=3)",
        )
    known = isinstance(one.of, int) or any(hasattr(one.of, name) for name in ("id", "query", "probability"))
    wrong = one.of is not None and (isinstance(one.of, bool) or not known)
    number = one.prediction
    if wrong or (number is not None and (isinstance(number, bool) or not isinstance(number, int))):
        raise LabError(
            f"{one.of if number is None else number!r} is no evidence",
            why="evidence is a Result, the number of a run, or a prediction",
            instead="evidence=[result]",
        )
    return Link(one.of, one.weight, one.supports, _text(one.note, "the note", empty=True), number)


def _text(given: Any, what: str, *, empty: bool = False) -> str:
    """The text without what is around it. Raises LabError for what is none, is empty, too long, or cannot be stored."""
    if not isinstance(given, str):
        raise LabError(f"{what} is a {type(given).__name__}", why="it is text", instead="a sentence")
    text = given.strip()
    if not text and not empty:
        raise LabError(f"{what} is empty", why="it says nothing", instead="a sentence")
    if len(text) > LONGEST:
        raise LabError(f"{what} has {len(text)} characters", why=f"at most {LONGEST} are kept", instead="one sentence; the rest belongs in the notebook")  # fmt: skip
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise LabError(f"{what} is no text", why=str(error), instead="text without lone surrogates") from error  # fmt: skip
    if "\x00" in text:
        raise LabError(f"{what} holds a NUL", why="no database stores it", instead="leave it out")
    return text


def _texts(*given: Any) -> list[tuple[str, str]]:
    """(role, text) of alternatives, falsifiers and limitations."""
    return [
        (role, _text(text, f"the {role}"))
        for role, texts in zip(ROLES, given, strict=True)
        for text in _several(texts, f"{role}s")
    ]


def _several(given: Any, what: str) -> Sequence[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise LabError(f"{what}={given!r}", why="it is a sequence of texts", instead=f'{what}=["..."]')
    return list(given)


def _about(given: Any) -> str:
    """JSON of the question that a claim answers. Raises LabError for what names no question, SiteError for no address."""
    from microtome.results.frozen import dumps, freeze_json

    if given is None:
        return "{}"
    asked = given.as_json() if hasattr(given, "as_json") else given
    if not isinstance(asked, Mapping) or (unknown := [str(k) for k in asked if k not in ABOUT]):
        found = type(given).__name__ if not isinstance(asked, Mapping) else ", ".join(unknown)
        raise LabError(
            f"a claim about {found}",
            why=f"what a claim is about names {', '.join(ABOUT)}",
            instead='about=mt.query(model=model, task="ioi", sites="L9H6.z")',
        )
    kept: dict[str, Any] = {k: v for k, v in asked.items() if v not in (None, "", (), [], {})}
    for name in ("method", "model", "model_name", "task", "family"):
        if not isinstance(kept.get(name, ""), str):
            raise LabError(f"{name}={kept[name]!r}", why="it is a name or a hash", instead=f'{name}="..."')
    if "sites" in kept:
        kept["sites"] = _sites(kept["sites"])
    return dumps(freeze_json(kept, "about"))


def _sites(given: Any) -> list[str]:
    from microtome.sites import parse

    sites = [given] if isinstance(given, str) else given
    if not isinstance(sites, list | tuple) or not all(isinstance(s, str) for s in sites):
        raise LabError(f"sites={given!r}", why="they are addresses", instead='sites=["L9H6.z"]')
    for site in sites:
        parse(site)
    return list(sites)


def _study_there(connection: Connection, number: int) -> None:
    if (
        connection.execute(select(schema.study.c.number).where(schema.study.c.number == number)).first()
        is None
    ):
        raise LabError(
            f"no study {number}", why="a claim is made in a study", instead="mt.study(...) makes one"
        )


def _person_there(connection: Connection, name: str) -> None:
    if connection.execute(select(schema.person.c.name).where(schema.person.c.name == name)).first() is None:
        connection.execute(insert(schema.person), {"name": name, "kind": "person", "since": time.time()})


def _standing(connection: Connection, number: int) -> Any:
    """A claim that has not been withdrawn."""
    wanted = select(schema.claim).where(schema.claim.c.number == number)
    row = connection.execute(
        wanted.with_for_update()
    ).first()  # two that link at once do so one after the other
    if row is None:
        raise LabError(f"no claim {number}", why="claims are counted in one record", instead="microtome lab claim list")  # fmt: skip
    if row.withdrawn_at is not None:
        raise LabError(
            f"claim {number} was withdrawn",
            why=row.why_withdrawn,
            instead="make a new one",
        )
    return row


def _key(done: Any) -> int:
    return int(done.inserted_primary_key[0])
