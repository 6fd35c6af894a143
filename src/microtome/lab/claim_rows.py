"""Claims read: their words, their evidence as the record has it now, and the rung that follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select

from microtome.errors import LabError
from microtome.escapes import visible
from microtome.lab import schema
from microtome.lab.cells import AtSites, Overlaps, at_sites
from microtome.lab.evidence import CAUSAL, NOTHING, Check, Ran, Shown, shows
from microtome.lab.freshness import TOLD, seen_before
from microtome.lab.rungs import STRONG, Foretold, Piece, Rung, Stated, climb
from microtome.results.verdicts import NULL, SUPPORTED

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from microtome.lab.reading import ControlRow, Record, RunRow

__all__ = ["ClaimRow", "Linked", "Overlaps", "Stale", "TextRow", "list_claims", "read"]

Stale = Callable[["Record", Sequence["RunRow"]], Mapping[int, Sequence[str]]]
"""Number of a run -> what changed since it ran; runs of which nothing changed are left out."""
T = TypeVar("T")
_REPEATS = ("version", "seed", "numerics")  # in which two runs of one question may differ


@dataclass(frozen=True)
class TextRow:
    """An alternative, falsifier or limitation: what it says and when it was written. late: after the first evidence."""

    text: str
    at: float
    late: bool = False


@dataclass(frozen=True)
class Linked:
    """A piece of evidence as it was linked, and as it counts.

    number: of the link; 0 for a prediction that was made from the claim and counts without being linked.
    run, prediction: numbers; run is also the run that decided a prediction. row, controls, sites: of the run, None and () for none.
    piece: as it counts.
    """

    number: int
    run: int | None
    prediction: int | None
    weight: str
    supports: bool
    person: str
    note: str
    at: float
    piece: Piece | Foretold
    row: RunRow | None = None
    controls: tuple[ControlRow, ...] = ()
    sites: tuple[str, ...] = ()
    statement: str = ""


@dataclass(frozen=True)
class ClaimRow:
    """A claim; see the columns of the tables `claim` and `claim_text`. title: of its study."""

    number: int
    key: str
    study: int
    title: str
    person: str
    statement: str
    about: dict[str, Any]
    made_at: float
    after_run: int
    withdrawn_at: float | None
    why_withdrawn: str
    alternatives: tuple[TextRow, ...]
    falsifiers: tuple[TextRow, ...]
    limitations: tuple[TextRow, ...]
    pieces: tuple[Linked, ...]
    rung: Rung

    def __repr__(self) -> str:
        gone = ", withdrawn" if self.withdrawn_at is not None else ""
        return visible(f"<Claim {self.number}{gone}: {self.statement!r}, {self.rung.said}>")


def read(
    record: Record, number: int, *, overlaps: Overlaps | None = None, stale: Stale | None = None
) -> ClaimRow:
    """A claim with its pieces and the rung that follows from them now.

    overlaps, stale: how sites are compared, and what is out of date; default: `microtome.lab.overlap`, `microtome.lab.staleness`.

    Raises LabError when there is no such claim.
    """
    with record.database.reading() as connection:
        found = connection.execute(_claims().where(schema.claim.c.number == number)).mappings().first()
    if found is None:
        raise LabError(
            f"no claim {number}",
            why=f"the record {record.place.shown} has none of this number",
            instead="microtome lab claim list",
        )
    return _Reader(record, overlaps or _overlaps, stale or _stale).claim(found)


def list_claims(
    record: Record,
    *,
    study: int | None = None,
    withdrawn: bool = True,
    overlaps: Overlaps | None = None,
    stale: Stale | None = None,
) -> tuple[ClaimRow, ...]:
    """Every claim, of one study or of all, the oldest first."""
    query = _claims().order_by(schema.claim.c.number)
    if study is not None:
        query = query.where(schema.claim.c.study == study)
    if not withdrawn:
        query = query.where(schema.claim.c.withdrawn_at.is_(None))
    with record.database.reading() as connection:
        rows = connection.execute(query).mappings().all()
    reader = _Reader(record, overlaps or _overlaps, stale or _stale)
    reader.prepare()
    return tuple(reader.claim(row) for row in rows)


def _claims() -> Any:
    return select(schema.claim, schema.study.c.title).join(schema.study, schema.claim.c.study == schema.study.c.number)  # fmt: skip


class _Reader:
    """Reads claims of one record; a run that several claims rest on is read once."""

    def __init__(self, record: Record, overlaps: Overlaps, stale: Stale) -> None:
        self.record, self.overlaps, self.stale = record, overlaps, stale
        self._known: dict[tuple[Any, ...], Any] = {}
        self._old: dict[int, Sequence[str]] = {}

    def _once(self, what: str, key: Any, make: Callable[[], T]) -> T:
        if (what, key) not in self._known:
            self._known[what, key] = make()
        found: T = self._known[what, key]
        return found

    def prepare(self) -> None:
        """Ask once which of all linked runs are out of date: it costs as much for many as for one."""
        e = schema.evidence.c
        with self.record.database.reading() as connection:
            numbers = connection.execute(select(e.run).where(e.run.is_not(None)).distinct()).scalars().all()
        rows = [row for row in map(self._run, numbers) if row is not None]
        found = self.stale(self.record, rows)
        self._old = {row.number: found.get(row.number, ()) for row in rows}

    def claim(self, row: Any) -> ClaimRow:
        number, about = int(row["number"]), dict(json.loads(row["about"]))
        with self.record.database.reading() as connection:
            texts = _all(connection, schema.claim_text, number, schema.claim_text.c.place)
            links = _all(connection, schema.evidence, number, schema.evidence.c.number)
            wanted = [e["prediction"] for e in links if e["prediction"] is not None]
            p = schema.prediction
            query = select(p).where((p.c.claim == number) | p.c.number.in_(wanted)).order_by(p.c.number)
            told = {r["number"]: r for r in connection.execute(query).mappings()}
        since = min((t["at"] for t in texts if t["role"] == "falsifier"), default=None)
        case = _Case(row, about, since)
        pieces = [self._linked(case, e, told.get(e["prediction"])) for e in links]
        pieces += [self._linked(case, None, told[n]) for n in told if n not in wanted]
        first = min((one.row.begun_at for one in pieces if one.row is not None), default=None)
        said = {role: tuple(TextRow(t["text"], t["at"], first is not None and t["at"] >= first) for t in texts if t["role"] == role)
                for role in ("alternative", "falsifier", "limitation")}  # fmt: skip
        stated = Stated(len(said["alternative"]), len(said["falsifier"]), bool(about.get("sites")))
        rung = climb([one.piece for one in pieces], stated)
        kept = {name: row[name] for name in ("number", "key", "study", "title", "person", "statement", "made_at", "after_run",
                                             "withdrawn_at", "why_withdrawn")}  # fmt: skip
        return ClaimRow(**kept, about=about, alternatives=said["alternative"], falsifiers=said["falsifier"],
                        limitations=said["limitation"], pieces=tuple(pieces), rung=rung)  # fmt: skip

    def _linked(self, case: _Case, link: Any, told: Any) -> Linked:
        weight, supports = (link["weight"], bool(link["supports"])) if link is not None else (STRONG, True)
        run = link["run"] if told is None else told["run"]
        row = None if run is None else self._run(int(run))
        if told is not None:
            piece: Piece | Foretold = self._foretold(case, link, told, row)
        elif row is None:
            name = f"run {run}" if run is not None else f"prediction {link['prediction']}"
            gone = f"{name} is not in the record any more"
            piece = Piece(name, name, Shown(NOTHING), None, about=gone)
        else:
            piece = self._piece(case, row)
        piece = replace(piece, weight=weight, supports=supports)
        source = (
            link
            if link is not None
            else {"number": 0, "note": "", "person": told["person"], "at": told["made_at"]}
        )
        return Linked(
            number=source["number"], run=run, prediction=None if told is None else told["number"], weight=weight, supports=supports,
            person=source["person"], note=source["note"], at=source["at"], piece=piece, row=row,
            controls=() if row is None else self._controls(row.number),
            sites=() if row is None else self._sites(row.number), statement="" if told is None else told["statement"],
        )  # fmt: skip

    def _run(self, number: int) -> RunRow | None:
        """A run; None when somebody removed it by hand."""

        def find() -> RunRow | None:
            with self.record.database.reading() as connection:
                there = connection.execute(select(schema.run.c.number).where(schema.run.c.number == number))
                gone = there.first() is None
            return None if gone else self.record.run(number)

        return self._once("run", number, find)

    def _controls(self, number: int) -> tuple[ControlRow, ...]:
        return self._once("controls", number, lambda: self.record.controls(number))

    def _sites(self, number: int) -> tuple[str, ...]:
        return self._once("sites", number, lambda: self.record.sites(number))

    def _out_of_date(self, row: RunRow) -> str:
        if row.number not in self._old:
            self._old[row.number] = self.stale(self.record, [row]).get(row.number, ())
        return "; ".join(self._old[row.number])

    # ------------------------------------------------------------------------------------------- runs

    def _piece(self, case: _Case, row: RunRow) -> Piece:
        about, elsewhere = self._bears(case.about, row)
        same = self._once("same", row.number, lambda: self._same_question(row))
        nulls = tuple(f"run {r.number}" for r in same if r.verdict == NULL and r.code == row.code and r.number != row.number)  # fmt: skip
        at = AtSites() if about or elsewhere else self._at(row, tuple(case.about.get("sites", ())))
        late = case.post_hoc(row, same)
        shown = shows(self._ran(row))
        return Piece(
            name=f"run {row.number}", question=_question(row), shown=shown if about or late else self._on_new(case, row, shown),
            verdict=row.verdict, model=row.model, model_name=row.model_name, about=about, elsewhere=elsewhere, post_hoc=late,
            stale=self._out_of_date(row) if row.method != "look" else "", null_again=nulls,
            nothing_at=at.nothing, untested_at=at.untested,
        )  # fmt: skip

    def _on_new(self, case: _Case, row: RunRow, shown: Shown) -> Shown:
        """What a run shows whose own prompts may be held-out ones, because nothing had seen them when the claim was made."""
        if row.method not in TOLD or shown.level != CAUSAL or not case.about.get("sites"):
            return shown
        last = int(case.row["after_run"])
        seen = self._once("new", (case.row["number"], row.number), lambda: seen_before(self.record, row, last, lambda old: self._saw(case.about, old)))  # fmt: skip
        if not seen:
            return replace(shown, held_out=True, why=())
        return replace(shown, why=(*shown.why, f"its own are not new to the claim: {seen}"))

    def _saw(self, about: Mapping[str, Any], row: RunRow) -> bool:
        """Whether an earlier run may have seen what a claim is about; what is not known counts as seen."""
        why, _ = self._bears({k: v for k, v in about.items() if k != "task"}, row)
        return not why and (row.result is not None or row.method == "look")

    def _ran(self, row: RunRow) -> Ran:
        def make() -> Ran:
            return Ran(
                row.method, row.verdict, _checks(self._controls(row.number)), self._children(row.number)
            )

        return self._once("ran", row.number, make)

    def _children(self, number: int) -> tuple[Ran, ...]:
        r = schema.run.c
        query = select(r.number, r.method, r.verdict).where(r.parent == number).order_by(r.number)
        with self.record.database.reading() as connection:
            below = connection.execute(query).all()
        return tuple(Ran(m, v, _checks(self._controls(n)), self._children(n)) for n, m, v in below if m != "look")  # fmt: skip

    def _same_question(self, row: RunRow) -> list[Any]:
        """Every run that asked the same and gave or may give an answer, whatever its seed, itself included; calls within calls too."""
        if row.method == "look":
            return []
        r = schema.run.c
        wanted = (
            (r.method == row.method) & (r.model == row.model) & (r.task == row.task) & (r.data == row.data)
        )
        wanted &= r.state.in_(("finished", "running"))
        query = select(r.number, r.question, r.verdict, r.code, r.begun_at).where(wanted).order_by(r.number)
        with self.record.database.reading() as connection:
            rows = connection.execute(query).all()
        return [one for one in rows if _asked(json.loads(one.question)) == _question(row)]

    def _at(self, row: RunRow, sites: tuple[str, ...]) -> AtSites:
        """What a supported run found at the sites that a claim names; a result that cannot be read shows nothing there."""
        if not sites or row.verdict != SUPPORTED:
            return AtSites()

        def compare() -> AtSites:
            try:
                return at_sites(self.record.result(row.number), sites, self.overlaps)
            except LabError as error:
                return AtSites(nothing=(f"{', '.join(sites)} ({error.what})",))

        return self._once("cells", (row.number, sites), compare)

    def _bears(self, about: Mapping[str, Any], row: RunRow) -> tuple[str, bool]:
        """("" or why a run is not about the claim, whether it is of another model than the claim names)."""
        family, task = about.get("family", ""), about.get("task", "")
        if family and row.family and not any(_same_family(family, one) for one in row.family.split("+")):
            return f"it is about {row.family}, the claim about {family}", False
        if task and not family and (row.task or row.data) and task not in (row.task, row.data):
            return "it is of other prompts than the claim names", False
        if _another_model(about, row):
            return "", True  # addresses of another model name other parts
        sites, seen = tuple(about.get("sites", ())), self._sites(row.number)
        if sites and not self.overlaps(sites, seen):
            return f"it saw nothing of {', '.join(sites)}", False
        return "", False

    # ------------------------------------------------------------------------------------- predictions

    def _foretold(self, case: _Case, link: Any, told: Any, row: RunRow | None) -> Foretold:
        by_result = told["state"] in ("true", "false") and told["resolved_by"] is None
        return Foretold(
            name=f"prediction {told['number']}", outcome=told["state"], probability=told["probability"],
            made_from=case.made_from(link, told), post_hoc=(told["why_post_hoc"] or "something here had seen it") if told["post_hoc"] else "",
            by_result=by_result, verdict=None if row is None else row.verdict,
            stale="" if row is None else self._out_of_date(row),
        )  # fmt: skip


@dataclass(frozen=True)
class _Case:
    """A claim's row, what it is about, and since when something is written that would show it wrong (None: nothing is)."""

    row: Any
    about: Mapping[str, Any]
    since: float | None

    def post_hoc(self, run: RunRow, same: Sequence[Any]) -> str:
        """Why a run cannot confirm the claim; "" when it can."""
        last = self.row["after_run"]
        if run.number <= last:
            return "it began before the claim was made"
        before = [one.number for one in same if one.number <= last]
        if before:
            return f"run {before[0]} had asked the same before the claim was made"
        begun = min([run.begun_at, *(one.begun_at for one in same)])
        if self.since is not None and begun <= self.since:
            return "it began before anything was written that would show the claim wrong"
        return ""

    def made_from(self, link: Any, told: Any) -> str:
        """Why a prediction does not count as made from the claim; "" when it does."""
        if told["made_at"] <= self.row["made_at"]:
            return "it was made before the claim"
        if self.since is not None and told["made_at"] <= self.since:
            return "it was made before anything was written that would show the claim wrong"
        if told["claim"] == self.row["number"]:
            return ""
        decided = told["resolved_at"]
        if link is None or (decided is not None and link["at"] >= decided):
            return "it was linked when its outcome was known"
        return ""


def _all(connection: Connection, table: Any, claim: int, order: Any) -> list[Any]:
    return list(connection.execute(select(table).where(table.c.claim == claim).order_by(order)).mappings())


def _checks(rows: Sequence[ControlRow]) -> tuple[Check, ...]:
    return tuple(Check(c.name, c.passed, c.mandatory, c.gates, c.detail) for c in rows)


def _question(row: RunRow) -> str:
    return f"look {row.number}" if row.method == "look" else _asked(row.question)


def _asked(question: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in question.items() if k not in _REPEATS}, sort_keys=True)


def _same_family(one: str, other: str) -> bool:
    """Equal, or one a part of the other: a corpus calls its parts "web/held_out"."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _another_model(about: Mapping[str, Any], row: RunRow) -> bool:
    """Whether a run's model is known to be none that the claim names, by hash or by name."""
    mark, name = about.get("model", ""), about.get("model_name", "")
    by_hash = row.model.startswith(mark) if mark and row.model else None
    by_name = name.casefold() == row.model_name.casefold() if name and row.model_name else None
    known = [x for x in (by_hash, by_name) if x is not None]
    return bool(known) and not any(known)


def _overlaps(one: Sequence[str], other: Sequence[str]) -> Sequence[str]:
    from microtome.lab.overlap import addresses, overlap, parts

    return tuple(overlap(parts(addresses(one)), parts(addresses(other))))


def _stale(record: Record, rows: Sequence[RunRow]) -> Mapping[int, Sequence[str]]:
    from microtome.lab.staleness import stale

    return stale(record, rows)
