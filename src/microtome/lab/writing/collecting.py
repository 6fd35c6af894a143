"""From a record to a `WriteUp`: claims with their experiments, what was checked, what is left out. Nothing here is typed."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.errors import LabError
from microtome.lab import schema
from microtome.lab.claim_telling import steps
from microtome.lab.writing import checking, limiting
from microtome.lab.writing.refusing import aside, check_summary, choose, lacks, refuse
from microtome.lab.writing.values import ClaimPart, Examples, Experiment, LeftOut, Scored, WriteUp

if TYPE_CHECKING:
    from microtome.lab.claim_rows import ClaimRow, Linked
    from microtome.lab.predicting import Prediction
    from microtome.lab.reading import Record, RunRow
    from microtome.results import Result

__all__ = ["ENOUGH", "Words", "collect"]

ENOUGH = 10
"""Predictions with an outcome from which a calibration curve is drawn: below, each of its bins holds one or two."""
SHOWN = 3
"""Raw examples of each experiment."""
_VERSIONS = ("python", "platform", "microtome", "torch", "transformers", "numpy", "scipy", "pandas", "safetensors", "tokenizers", "scikit_learn", "statsmodels", "gguf")  # fmt: skip


@dataclass(frozen=True)
class Words:
    """The author's words.

    why: "CLAIM.RUN" -> why that run bears on that claim. verified: what the author checked, and how.
    """

    title: str = ""
    authors: tuple[str, ...] = ()
    summary: str = ""
    limitations: str = ""
    verified: str = ""
    why: Mapping[str, str] = field(default_factory=dict)


def collect(record: Record, claims: Sequence[int] = (), words: Words = Words(), *, seed: int = 0) -> WriteUp:
    """What a record says of one to three claims, with the author's words.

    Parameters
    ----------
    claims: their numbers in the order in which they are told; () for all that stand. seed: of the raw examples and of scores.

    Raises
    ------
    LabError: no claim or more than three, a summary of more than 600 words, or a claim that may not be written
    (`microtome.lab.writing.refusing`), with the run and the control.
    """
    check_summary(words.summary)
    found = choose(record, tuple(claims))
    reader = _Reader(record, words, seed)
    parts = tuple(reader.claim(one) for one in found)
    experiments = [e for part in parts for e in part.experiments]
    if not experiments and not any(part.foretold for part in parts):
        raise LabError("no experiment to write up", why="the claims rest on no run", instead="microtome lab claim link CLAIM RUN")  # fmt: skip
    studies = sorted({part.claim.study for part in parts} | {e.row.study for e in experiments})
    titles = {s.number: s.title for s in record.studies()}
    rows = [e.row for e in experiments]
    left, looks = _left_out(record, studies, {row.number for row in rows})
    known = reader.predictions(studies)
    checked = checking.checked(record, rows, {e.row.number: e.result for e in experiments})
    return WriteUp(
        title=words.title or found[0].statement,
        authors=words.authors or tuple(dict.fromkeys(c.person for c in found)),
        summary=words.summary.strip(), claims=parts, limitations=words.limitations.strip(),
        computed_limitations=limiting.limitations(record, parts), blind_spots=limiting.blind_spots(parts),
        verified=words.verified.strip(), checked=checked, scored=_scored(known, seed), left_out=left, looks=looks,
        studies=tuple(titles[n] for n in studies), dates=_dates(rows), environment=_environment(record, rows), seed=seed,
    )  # fmt: skip


class _Reader:
    """Reads claims; runs and results that several claims rest on are read once, experiments are counted through."""

    def __init__(self, record: Record, words: Words, seed: int) -> None:
        self.record, self.words, self.seed = record, words, seed
        self._results: dict[int, Result | None] = {}
        self._count = 0
        self._told: tuple[Prediction, ...] | None = None

    def predictions(self, studies: Sequence[int]) -> tuple[Prediction, ...]:
        return tuple(p for p in self._all() if p.study in studies)

    def claim(self, claim: ClaimRow) -> ClaimPart:
        missing: dict[int, Sequence[str]] = {}
        for one in claim.pieces:
            if one.row is not None and one.prediction is None:
                result = self._result(one.row)
                if result is not None:
                    missing[one.row.number] = lacks(result.verdict.mandatory, [c.name for c in result.controls])  # fmt: skip
        refuse(claim, missing)
        gone = aside(claim, missing)
        kept = [p for p in claim.pieces if p.prediction is None and p.run not in gone]
        linked = {p.run for p in kept}
        deciding = [p for p in claim.pieces if p.prediction is not None and p.run is not None and p.run not in linked]  # fmt: skip
        runs = [*kept, *{p.run: p for p in deciding}.values()]
        runs.sort(key=lambda p: (p.number == 0 or p.prediction is not None, -_weight(p), p.run or 0))
        experiments = tuple(self._experiment(claim, p) for p in runs)
        told = {n for e in experiments for n in (p.number for p in e.predictions)}
        wanted = {p.prediction for p in claim.pieces if p.prediction is not None}
        others = tuple(p for p in self._all() if p.number in wanted and p.number not in told)
        away = tuple(f"run {old} was linked, and not all of its mandatory controls could tell; run {new} asked again with them"
                     for old, new in sorted(gone.items()))  # fmt: skip
        return ClaimPart(claim, claim.rung.name, _caps(claim), steps(claim), experiments, others, away)

    def _experiment(self, claim: ClaimRow, link: Linked) -> Experiment:
        from microtome.report.numbers import headline
        from microtome.report.outline import outline, prompts_of

        self._count += 1
        row = link.row
        assert row is not None
        result = self._result(row)
        decided = tuple(p for p in self._all() if p.run == row.number or self._judged(p, row, result))
        why = self.words.why.get(f"{claim.number}.{row.number}", "").strip() or link.note
        question = _question(row, result)
        if result is None:
            return Experiment(self._count, link, row, None, question, decided, _what(row, None), (), "a raw look",
                              ("it has neither a null nor controls",), "", None, Examples((), 0, self.seed), why)  # fmt: skip
        stages = outline(result)
        n = prompts_of(result)
        if n is None:
            n = max((s.n for s in stages if s.n is not None), default=None)
        return Experiment(
            self._count, link, row, result, question, decided, _what(row, n), tuple(headline(result, stages)),
            result.verdict.word, tuple(result.verdict.reasons), result.calibration, n, _examples(result, row, self.seed), why,
        )  # fmt: skip

    def _judged(self, p: Prediction, row: RunRow, result: Result | None) -> bool:
        """Whether a prediction that a person judges was made before a run that it is about, and not judged before it."""
        if p.holds is not None or p.study != row.study or p.after_run >= row.number or result is None:
            return False
        if result.query is None or (p.resolved_at is not None and p.resolved_at < row.begun_at):
            return False
        sites = self.record.sites(row.number)
        return (
            p.about.matches(result.query, model_name=row.model_name, family=row.family, sites=sites) is None
        )

    def _result(self, row: RunRow) -> Result | None:
        if row.number not in self._results:
            self._results[row.number] = None if row.method == "look" else self.record.result(row.number)
        return self._results[row.number]

    def _all(self) -> tuple[Prediction, ...]:
        from microtome.lab.predicting import predictions

        if self._told is None:
            self._told = predictions(self.record.database)
        return self._told


def _weight(link: Linked) -> int:
    return {"strong": 4, "big_if_true": 3, "sanity": 2, "weak": 1}.get(link.weight, 0) + (10 if link.supports else 5)  # fmt: skip


def _caps(claim: ClaimRow) -> tuple[str, ...]:
    said = ((f"{c.piece}: " if c.piece else "") + c.why + f" (at most {c.at})" for c in claim.rung.caps)
    return tuple(dict.fromkeys(said))


def _question(row: RunRow, result: Result | None) -> str:
    from microtome.report.prose import asked, title_of

    if result is None:
        sites = ", ".join(row.question.get("sites", ())) or "the output"
        return f"What is at {sites}?"
    if result.children:
        from microtome.report.summary import question

        return question(result)
    return asked(result) or title_of(result)


def _what(row: RunRow, n: int | None) -> tuple[tuple[str, str], ...]:
    """(name, value) of what was done, as the record has it."""
    given = row.question.get("parameters", {})
    numerics = row.question.get("numerics", {})
    facts = [
        ("method", f"{row.method} {row.version}".strip()),
        ("model", f"{row.model_name} ({row.model[:12]})" if row.model else ""),
        ("task or data", f"{row.family} ({(row.task or row.data)[:12]})".strip() if row.task or row.data else row.family),
        ("parameters", ", ".join(f"{k} = {_json(v)}" for k, v in given.items() if v not in (None, "", (), []))),
        ("n", "" if n is None else f"{n} prompts"),
        ("seed", "" if row.seed is None else str(row.seed)),
        ("numerics", ", ".join(f"{k} {v}" for k, v in numerics.items())),
        ("run", f"{row.number} of {day(row.begun_at)}, by {row.person}{' (an agent)' if row.by == 'agent' else ''}"),
        ("took", "" if row.seconds is None else f"{row.seconds:.1f} s"),
    ]  # fmt: skip
    return tuple((name, value) for name, value in facts if value)


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else text[:157] + "..."


def _examples(result: Result, row: RunRow, seed: int) -> Examples:
    """Drawn by the query and the seed, so that neither the order of runs nor a wish decides which."""
    from microtome.results import seeds

    rows = result.raw_examples
    if not rows:  # of a whole, those of its first stage that keeps some
        stage = next((c for c in result.children if c.raw_examples), None)
        rows = () if stage is None else stage.raw_examples
    rng = seeds.rng(seed, f"lab.writing/examples/{row.query}")
    picked = sorted(rng.permutation(len(rows))[:SHOWN].tolist()) if rows else []
    return Examples(tuple(rows[i] for i in picked), len(rows), seed)


def _left_out(record: Record, studies: Sequence[int], used: set[int]) -> tuple[tuple[LeftOut, ...], int]:
    """Runs of the studies at their top that are not in the write-up, and how often something was looked at raw."""
    from microtome.lab.reading import Wanted

    counted: Counter[tuple[str, str, str]] = Counter()
    looks = 0
    for number in studies:
        for row in record.runs(Wanted(study=number), limit=None):
            if row.number in used:
                continue
            if row.method == "look":
                looks += row.times
                continue
            counted[(row.state, row.verdict or "", row.method)] += 1
    return tuple(LeftOut(*key, counted[key]) for key in sorted(counted)), looks


def _scored(known: Sequence[Prediction], seed: int) -> tuple[Scored, ...]:
    from microtome.lab.predicting import forecasts
    from microtome.lab.scoring import score

    made = []
    for person, kind in sorted({(p.person, p.kind) for p in known}):
        mine = [p for p in known if (p.person, p.kind) == (person, kind)]
        states = Counter(p.state for p in mine)
        closed = forecasts(mine)
        found = score(closed, seed=seed) if closed else None
        made.append(Scored(person, kind, len(mine), states["open"], states["void"], found, len(closed) >= ENOUGH))  # fmt: skip
    return tuple(made)


def _environment(record: Record, rows: Sequence[RunRow]) -> dict[str, str]:
    """Versions that the runs had; several are told with commas. The machine's name is not among them."""
    p = schema.process.c
    wanted = sorted({row.process for row in rows})
    with record.database.reading() as connection:
        texts = connection.execute(select(p.versions).where(p.id.in_(wanted)).order_by(p.id)).scalars().all()
    found: dict[str, set[str]] = {}
    for text in texts:
        for name, version in json.loads(text).items():
            found.setdefault(name, set()).add(_system(str(version)) if name == "platform" else str(version))
    return {name: ", ".join(sorted(found[name])) for name in _VERSIONS if name in found}


def _system(platform: str) -> str:
    """ "Linux x86_64": the name of a kernel can tell whose machine it is."""
    machine = re.search(r"x86_64|amd64|aarch64|arm64|riscv64|ppc64le|s390x", platform, re.IGNORECASE)
    return " ".join([platform.partition("-")[0], *([machine[0]] if machine else [])])


def _dates(rows: Sequence[RunRow]) -> tuple[str, str]:
    days = sorted(day(row.begun_at) for row in rows)
    return (days[0], days[-1]) if days else ("", "")


def day(at: float) -> str:
    """A day in UTC: the same wherever it is read."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def with_words(write_up: WriteUp, **words: Any) -> WriteUp:
    """The same write-up with other words of the author."""
    return replace(write_up, **words)
