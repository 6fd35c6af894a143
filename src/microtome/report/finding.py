"""The answer in a few lines: an example of what was asked, where the effect travels, which parts carry it, what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MicrotomeError
from ..figures.cells import cells_of
from ..figures.text import interval, number, visible
from ..results.verdicts import SUPPORTED
from .markup import Html, join, tag, token
from .numbers import Number, headline
from .outline import Stage
from .prose import VERDICT
from .tables import badge

if TYPE_CHECKING:
    from ..results.result import Result
    from ..results.verdicts import Control

ALL = "all_ruled_out"  # a dissection's sum of the others: not counted among them
MOST_PARTS = 24
MOST_PLACES = 3


def finding(result: Result, stages: Sequence[Stage]) -> Html | None:
    """The abstract of a dissection; nothing for a result without stages."""
    if not result.children:
        return None
    rows = [
        ("Asked", _example(stages)),
        ("Where", _where(stages)),
        ("What", _what(stages)),
        ("Circuit", _circuit(stages)),
    ]
    rows.append(("Not ruled out", _open(result, stages)))
    shown = [join(tag("dt", name), tag("dd", text)) for name, text in rows if text is not None]
    return tag("dl", shown, cls="finding") if shown else None


def meaning(result: Result, stages: Sequence[Stage]) -> str:
    """What the verdict of the whole says; of a dissection, which stages it stands on and which it does not need."""
    word = result.verdict.word
    control = next((c for c in result.controls if c.name == "stages"), None)
    named, _, needed = ("", "", "") if control is None else control.expected.partition(": ")
    if word != SUPPORTED or named != SUPPORTED or not needed:
        return VERDICT.get(word, "")
    others = [visible(s.name, most=80, prose=True) for s in stages if s.result.verdict != SUPPORTED]
    text = f"Every stage that the conclusion stands on is supported: {needed.partition(' (')[0]}."
    return text + (f" It does not stand on {' and '.join(others)}." if others else "")


def _example(stages: Sequence[Stage]) -> Html | None:
    """A prompt drawn at random with its answer, and the counterpart in which the answer is another."""
    rows = next((s.result.raw_examples for s in stages if s.result.kind == "behaviour"), ())
    row: Mapping[str, Any] = rows[0] if rows else {}
    prompt, answer = row.get("prompt"), row.get("answer")
    if not isinstance(prompt, str) or not isinstance(answer, str):
        return None
    wrong = row.get("wrong")
    other = _counterpart(stages, prompt)
    return join(
        _quote(prompt),
        " → ",
        token(answer),
        [", not ", token(wrong)] if isinstance(wrong, str) else None,
        tag("span", "against: ", _quote(other), cls="aside") if other else None,
    )


def _quote(text: str) -> Html:
    return tag("q", tag("bdi", visible(text, most=160, prose=True)))


def _counterpart(stages: Sequence[Stage], prompt: str) -> str | None:
    """The other prompt of the same pair, as a patching stage keeps it."""
    for stage in stages:
        for row in stage.result.raw_examples:
            both = [row.get("prompt"), row.get("donor")]
            if prompt in both:
                other = both[1 - both.index(prompt)]
                if isinstance(other, str) and other != prompt:
                    return other
    return None


def _where(stages: Sequence[Stage]) -> Html | None:
    """The layers, by position, at which the stream's cells stand out."""
    stage = next((s for s in stages if _is_stream(s)), None)
    if stage is None:
        return None
    try:
        cells = cells_of(stage.result)
    except MicrotomeError:  # its section says why
        return None
    if cells.significant is None:
        return None
    frame = cells.frame[cells.significant & np.isfinite(cells.frame["layer"].to_numpy(float))]
    found = []
    for place, rows in frame.groupby("position", sort=False):
        layers = sorted({int(v) for v in rows["layer"]})
        name = cells.position(place)
        like = cells.names.get(str(place), "")
        if like and not str(place).lstrip("-").isdigit():
            name += f" (e.g. {visible(like.strip(), most=16, prose=True)})"
        found.append((float(rows["value"].abs().max()), name, _ranges(layers)))
    found.sort(key=lambda f: -f[0])
    if not found:
        return join("no place stands out from the null", _link(stage))
    said = [
        [tag("b", tag("bdi", place)), f" in layer{'s' if len(at) > 1 else ''} {at}"]
        for _, place, at in found[:MOST_PLACES]
    ]
    more = f"; {len(found) - MOST_PLACES} more positions" if len(found) > MOST_PLACES else ""
    return join(
        [[part, "; " if i < len(said) - 1 else ""] for i, part in enumerate(said)], more, _link(stage)
    )


def _is_stream(stage: Stage) -> bool:
    effects = stage.result.effects
    return (
        stage.result.kind == "activation_patching"
        and effects is not None
        and "position" in effects.coords
        and any("resid" in str(site) for site in effects.coords["site"])
    )


def _ranges(layers: Sequence[int]) -> str:
    """ "0–19, 21": runs of layers."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _what(stages: Sequence[Stage]) -> Html | None:
    """The parts of the set, what they carry on held-out prompts, and what null sets carry."""
    stage = next((s for s in stages if s.result.kind == "component_set"), None)
    if stage is None or "components" not in stage.result.tables:
        return None
    held: Number | None = next(
        (n for n in headline(stage.result, (stage,)) if "faithfulness" in n.label), None
    )
    if held is None:
        return None
    table = stage.result.tables["components"]
    parts = [str(site) for site in table["site"]]
    of = _candidates(stages)
    text = f"{len(parts)}{f' of {of}' if of else ''} heads and MLPs carry {number(held.value)} {interval(held.low, held.high)} of the effect"
    on = f" on {held.n} held-out prompts" if held.n is not None else ""
    null = f"; {held.null}: {number(held.null_low)} to {number(held.null_high)}" if held.null else ""
    shown = [[tag("code", visible(p.removesuffix(".z"), most=20)), " "] for p in parts[:MOST_PARTS]]
    more = f"and {len(parts) - MOST_PARTS} more" if len(parts) > MOST_PARTS else None
    return join(text.replace("  ", " "), on, null, _link(stage), tag("span", shown, more, cls="parts"))


def _circuit(stages: Sequence[Stage]) -> Html | None:
    """What the tested circuit carries and what null circuits carry; its verdict stands beside it."""
    stage = next((s for s in stages if s.result.kind == "circuit_evaluation"), None)
    held = None if stage is None else next(iter(headline(stage.result, (stage,))), None)
    if stage is None or held is None:
        return None
    size = held.label.partition(" of a circuit of ")[2]
    text = f"{size} carry {number(held.value)} {interval(held.low, held.high)} of the effect".replace(
        "  ", " "
    )
    on = f" on {held.n} held-out prompts" if held.label.startswith("held-out") else ""
    null = f"; {held.null}: {number(held.null_low)} to {number(held.null_high)}" if held.null else ""
    return join(text, on, null, _link(stage))


def _candidates(stages: Sequence[Stage]) -> int | None:
    """From how many heads and MLPs a set could be made: the sites of the stage that patched them one by one."""
    for stage in stages:
        effects = stage.result.effects
        if (
            stage.result.kind == "activation_patching"
            and effects is not None
            and "position" not in effects.coords
        ):
            return len(effects.coords["site"])
    return None


def _link(stage: Stage) -> Html:
    """To the stage, with its verdict where that is not supported."""
    doubt = [" ", badge(stage.result.verdict)] if stage.result.verdict != SUPPORTED else None
    return join(" (", tag("a", f"stage {stage.number}", href=f"#{stage.anchor}"), ")", doubt)


def _open(result: Result, stages: Sequence[Stage]) -> Html:
    """How many controls failed or did not run, and which, in one line that no reader can miss."""
    every = controls_of(result, stages)
    failed, idle = ([c for _, c in every if c.passed is state] for state in (False, None))
    link = tag("a", "what was checked, what failed", href="#checked")
    if not every:
        return join("No control ran.")
    if not failed and not idle:
        return join(f"all {len(every)} controls passed (", link, ")")
    said = []
    if failed:
        said.append(f"{len(failed)} of {len(every)} controls failed: {_counted(failed)}")
    if idle:
        said.append(f"{len(idle)} did not run: {_counted(idle)}")
    return join("; ".join(said), " (", link, ")")


def controls_of(result: Result, stages: Sequence[Stage]) -> list[tuple[Stage | None, Control]]:
    """Every control with its stage; None stands for the whole."""
    own = [(None, c) for c in result.controls if c.name != ALL] if result.children else []
    return [*((s, c) for s in stages for c in s.result.controls), *own]


def _counted(controls: Sequence[Control]) -> str:
    names = [c.name.replace("_", " ") for c in controls]
    return ", ".join(f"{n} ({names.count(n)}×)" if names.count(n) > 1 else n for n in dict.fromkeys(names))
