"""A write-up as one HTML file: no script, no network, figures inline; text from models, notes and people is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from microtome.errors import LabError
from microtome.lab.writing import telling
from microtome.lab.writing.prose import as_html
from microtome.lab.writing.whole import write_whole

if TYPE_CHECKING:
    from microtome.lab.writing.pictures import Drawn
    from microtome.lab.writing.values import ClaimPart, Experiment, WriteUp
    from microtome.report.markup import Html

__all__ = ["page", "write_html"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
ROOM = 7_000_000
"""Characters of figures in one page."""


def write_html(write_up: WriteUp, path: str | Path) -> Path:
    """Write the write-up as one self-contained HTML file; its absolute path.

    Raises LabError for a path that is a folder, ResourceError when it cannot be written.
    """
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        raise LabError(f"{place} is a folder", why="the write-up is one file", instead=str(place / "write-up.html"))  # fmt: skip
    return write_whole(place, page(write_up).encode("utf-8"))


def page(write_up: WriteUp) -> str:
    """The write-up as HTML text. The same write-up gives the same text."""
    from microtome.report import page as report
    from microtome.report.markup import Html, tag

    assets = Path(report.__file__).with_name("assets")
    style = "".join((assets / name).read_text("utf-8") for name in ("report.css", "write-up.css"))
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{telling.plain(write_up.title, 200)} · Microtome"),
        tag("style", Html(style)),
    ]
    gallery = _Gallery()
    main = [
        [_claim(part, i, gallery) for i, part in enumerate(write_up.claims, 1)],
        _limitations(write_up),
        _verified(write_up),
        _predictions(write_up, gallery),
        _left_out(write_up),
        _closing(write_up),
    ]
    foot = tag("p", "One file, no script, no network. Blocks that are not the author's words are computed from the record.")  # fmt: skip
    body = [_header(write_up), tag("main", main), tag("footer", foot)]
    return "<!DOCTYPE html>\n" + tag("html", tag("head", head), "\n", tag("body", body), lang="en") + "\n"


class _Gallery:
    """Draws figures until the page is full, then says so."""

    def __init__(self) -> None:
        self.room = ROOM

    def show(self, found: Sequence[Drawn]) -> Html | None:
        from microtome.report.markup import Html, tag

        made = []
        for one in found:
            if one.absent or len(one.themed) > self.room:
                why = one.absent or "the file would become too large"
                made.append(tag("p", f"No picture of {one.name}: {why}.", cls="absent"))
                continue
            self.room -= len(one.themed)
            caption = tag("figcaption", tag("p", one.caption or one.name))
            made.append(tag("figure", tag("div", Html(one.themed), cls="plot"), caption, cls="fig", aria_label=one.name))  # fmt: skip
        return tag("div", made, cls="pair") if made else None


def _header(write_up: WriteUp) -> Html:
    from microtome.report.markup import tag

    first, last = write_up.dates
    dates = first if first == last else f"{first} to {last}"
    claims = [
        tag("li", tag("a", telling.plain(p.claim.statement), href=f"#claim-{p.claim.number}"), " ", _rung(p.rung))
        for p in write_up.claims
    ]  # fmt: skip
    summary = as_html(write_up.summary) if write_up.summary else tag("p", "No summary was written.", cls="absent")  # fmt: skip
    people = ", ".join(telling.plain(a, 200) for a in write_up.authors)
    return tag(
        "header",
        tag("p", "Microtome write-up", [tag("span", x) for x in (people, f"runs of {dates}") if x], cls="over"),
        tag("h1", telling.plain(write_up.title, 400)),
        tag("div", summary, cls="abstract"),
        tag("h2", "Claims" if len(claims) > 1 else "Claim", cls="small"),
        tag("ol", claims, cls="claims"),
    )  # fmt: skip


def _rung(name: str) -> Html:
    from microtome.report.markup import tag

    return tag("span", name, cls="rung")


def _claim(part: ClaimPart, i: int, gallery: _Gallery) -> Html:
    from microtome.report.markup import tag

    c = part.claim
    facts = [
        [tag("dt", name), tag("dd", tag("ul", [tag("li", item) for item in items], cls="plain items"))]
        for name, items in telling.claim_facts(part)
        if items
    ]
    others = tag("ul", [tag("li", telling.prediction(p)) for p in part.foretold])
    return tag(
        "section",
        tag("h2", tag("span", f"Claim {i}. ", cls="no"), telling.plain(c.statement)),
        tag("p", _rung(part.rung), tag("span", telling.rung(part).removeprefix(part.rung).lstrip(",; ") + f" · claim {c.number} of the record", cls="aside"), cls="judgement"),
        tag("dl", facts, cls="claim"),
        [_experiment(e, c.number, gallery) for e in part.experiments],
        [tag("h3", "Other predictions that bear on it"), others] if part.foretold else None,
        id=f"claim-{c.number}",
    )  # fmt: skip


def _experiment(e: Experiment, claim: int, gallery: _Gallery) -> Html:
    from microtome.lab.writing.pictures import drawn
    from microtome.report.markup import table, tag
    from microtome.report.summary import cards
    from microtome.report.tables import badge, controls

    told = [tag("li", telling.prediction(p)) for p in e.predictions]
    below = telling.stages(e)
    hypothesis = tag("ul", told, cls="plain items") if told else "No prediction was made before it."
    done = [tag("div", tag("dt", k), tag("dd", telling.plain(v, 600)), cls="wide" if len(v) > 60 else None) for k, v in e.what]  # fmt: skip
    verdict = badge(e.verdict) if e.result is not None else tag("span", e.verdict, cls="verdict unchecked")
    numbers = cards([replace(n, anchor="") for n in e.numbers]) or tag("p", "No headline number: its result has the whole.", cls="absent")  # fmt: skip
    parts = [
        tag("h3", tag("span", f"Experiment {e.number}. ", cls="no"), telling.plain(e.question, 600)),
        tag("p", telling.evidence(e, claim), cls="aside"),
        tag("h4", "Hypothesis"), tag("div", hypothesis),
        tag("h4", "What was done"), tag("dl", done, cls="done"),
        tag("h4", "Result"), tag("p", verdict, " ", tag("span", "; ".join(map(telling.plain, e.reasons))), cls="judgement"),
        numbers,
        gallery.show(drawn(e.result)) if e.result is not None else None,
        controls(e.result) if e.result is not None else None,
        table("Stages", telling.STAGES, below, cls="cards") if below else None,
        tag("p", f"Calibration: {e.calibration}", cls="aside") if e.calibration else None,
        _examples(e),
        tag("h4", "Why it bears on the claim"),
        as_html(e.why) if e.why else tag("p", telling.UNSAID, cls="absent"),
    ]  # fmt: skip
    return tag("article", parts, id=f"experiment-{e.number}")


def _examples(e: Experiment) -> Html | None:
    from microtome.report.examples import example
    from microtome.report.markup import join, tag

    if e.result is None:
        return None
    shown = [example(row) for row in e.examples.rows]
    return join(tag("h4", "Raw examples"), tag("p", telling.examples_head(e), cls="aside"), shown)


def _limitations(write_up: WriteUp) -> Html:
    from microtome.report.markup import tag

    return tag(
        "section",
        tag("h2", "Limitations"),
        as_html(write_up.limitations),
        tag("h3", "From the record"),
        tag("ul", [tag("li", telling.plain(x)) for x in write_up.computed_limitations]),
        id="limitations",
    )


def _verified(write_up: WriteUp) -> Html:
    from microtome.report.markup import tag

    said = as_html(write_up.verified) if write_up.verified else tag("p", "The author says nothing of what was verified by hand.", cls="absent")  # fmt: skip
    return tag(
        "section",
        tag("h2", "What was verified, and how"),
        said,
        tag("h3", "Checked by Microtome"),
        tag("ul", [tag("li", telling.plain(x)) for x in write_up.checked]),
        id="verified",
    )


def _predictions(write_up: WriteUp, gallery: _Gallery) -> Html:
    from microtome.lab.writing.pictures import curve
    from microtome.report.markup import table, tag

    rows = [telling.scored(s) for s in write_up.scored]
    curves = [curve(s.score, f"{telling.plain(s.person, 80)}, {s.kind}") for s in write_up.scored if s.curve and s.score]  # fmt: skip
    return tag(
        "section",
        tag("h2", "Predictions"),
        tag("p", telling.scored_head(write_up)),
        table("Scores", telling.SCORED, rows, cls="cards scores") if rows else None,
        gallery.show(curves),
        id="predictions",
    )


def _left_out(write_up: WriteUp) -> Html:
    from microtome.report.markup import table, tag

    said, rows = telling.left_out(write_up)
    shown = table("Runs that are not in the write-up", ("state", "verdict", "technique", "runs"), rows, cls="data", numeric=(3,))  # fmt: skip
    return tag("section", tag("h2", "What was run and is not here"), tag("p", said), shown if rows else None, id="left-out")  # fmt: skip


def _closing(write_up: WriteUp) -> Html:
    from microtome.report.markup import join, tag

    versions = [tag("div", tag("dt", k), tag("dd", v)) for k, v in write_up.environment.items()]
    spots = tag(
        "section",
        tag("h2", "What the techniques cannot show"),
        tag("ul", [tag("li", x) for x in write_up.blind_spots]),
        id="techniques",
    )
    return join(spots, tag("section", tag("h2", "With what it was made"), tag("dl", versions, cls="done"), id="environment"))  # fmt: skip
