"""A result in a notebook: a static picture first, then the verdict and the controls. No script, no network.

`figures` lies above `results` in the order of imports, so a renderer is known here only as the path that the
registered technique names, and is imported when a picture is asked for. The path is never read from a file:
opening a stranger's result must not choose what is imported.
"""

from __future__ import annotations

import base64
import html
import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import MicrotomeError, ResultError
from . import registry
from .verdicts import VERDICTS

if TYPE_CHECKING:
    from .result import Result
    from .spec import TechniqueSpec

STATIC = "microtome.figures:static_svg"  # turns what a renderer returned into SVG text
_ROWS = 12
_LEFT = "text-align:left;vertical-align:top;min-width:3em"


def draw(result: Result) -> Any:
    """What the technique's renderer makes of the result.

    Raises ResultError when there is no query, the technique is not known here, it names no figure, or the
    renderer cannot be imported.
    """
    spec = _spec(result)
    if not spec.figure:
        raise ResultError(
            f"{spec.name} has no figure", why="it names no renderer", instead="draw frame() yourself"
        )
    return _import(spec.figure)(result)


def _spec(result: Result) -> TechniqueSpec:
    if result.query is None:
        raise ResultError(
            "a result without a query cannot be drawn", why="no technique made it", instead="use frame()"
        )
    found = registry.get("techniques", result.query.method)
    spec: TechniqueSpec | None = getattr(found, "spec", None)
    if spec is None:
        raise ResultError(
            f"{result.query.method!r} is registered without a spec",
            why="it is no technique",
            instead="decorate it",
        )
    return spec


def _import(path: str) -> Any:
    try:
        return registry.Lazy(path).load()
    except (ImportError, AttributeError) as error:
        raise ResultError(
            f"the figure {path} cannot be imported",
            why=str(error),
            instead="install what it needs, or use frame()",
        ) from error


def picture(result: Result) -> str:
    """An <img> with the picture inlined as data: SVG or PNG.

    What the renderer returns is taken if it is SVG text or offers `_repr_svg_` or `_repr_png_`; anything else
    is given to `microtome.figures.static_svg`. Inside <img> an SVG runs no script and loads nothing.
    Raises ResultError where there is no picture.
    """
    drawn = draw(result)
    content: Any = None
    if isinstance(drawn, str) and drawn.lstrip().startswith(("<svg", "<?xml")):
        content = drawn
    for name in ("_repr_svg_", "_repr_png_"):
        if content is None and hasattr(drawn, name):
            content = getattr(drawn, name)()
    if content is None:
        module, _, function = STATIC.partition(":")
        if find_spec(module) is None or not hasattr(importlib.import_module(module), function):
            raise ResultError("no static picture", why=f"{STATIC} is not there", instead="use figure()")
        content = _import(STATIC)(drawn)
    kind = "png" if isinstance(content, bytes) else "svg+xml"
    data = content if isinstance(content, bytes) else str(content).encode("utf-8", "replace")
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{escaped(result.title())}" style="max-width:100%" src="data:image/{kind};base64,{encoded}">'


def render(result: Result) -> str:
    """The result as a fragment of HTML: title, picture (or the largest rows of frame()), verdict, controls,
    calibration. All text is escaped.
    """
    note = ""
    try:
        body = picture(result)
    except MicrotomeError as error:  # a picture that cannot be had is said, and the numbers are shown
        body, note = (
            _rows(result),
            f"<p><small>No picture: {escaped(error.what)} ({escaped(error.why)})</small></p>",
        )
    reasons = "".join(f"<li>{escaped(reason)}</li>" for reason in result.verdict.reasons)
    children = "".join(f"<li>{escaped(name)}</li>" for name in _children(result))
    return (
        '<div class="microtome-result" style="font-family:sans-serif;overflow-wrap:anywhere">'
        f"<p><strong>{escaped(result.title())}</strong></p>{body}{note}"
        f"<p>Verdict: <strong>{escaped(result.verdict)}</strong></p><ul>{reasons}</ul>{_controls(result)}"
        + (f"<p>Made of:</p><ul>{children}</ul>" if children else "")
        + f"<p><small>{escaped(result.calibration)}</small></p></div>"
    )


def _children(result: Result) -> list[str]:
    """What the result is made of: the stages' names, where it says them, before the children's titles."""
    titles, table = [child.title() for child in result.children], result.tables.get("stages")
    if table is None or not {"stage", "verdict"} <= set(table.columns):
        return titles
    names = [str(s) for s, v in zip(table["stage"], table["verdict"], strict=True) if str(v) in VERDICTS]
    if len(names) != len(titles):
        return titles
    return [f"{name}: {title}" for name, title in zip(names, titles, strict=True)]


def _rows(result: Result) -> str:
    frame = result.frame()
    if frame.empty:
        return "<p>No cells.</p>"
    order = frame["value"].abs().sort_values(ascending=False, na_position="last", kind="stable").index
    shown = frame.loc[order[:_ROWS]].dropna(axis=1, how="all")
    rows = [[_number(v) for v in row] for row in shown.itertuples(index=False, name=None)]
    caption = f"{len(shown)} of {len(frame)} rows, largest absolute value first"
    return _table(caption, [str(c) for c in shown.columns], rows)


def _controls(result: Result) -> str:
    if not result.controls:
        return "<p>No controls.</p>"
    rows = []
    for c in result.controls:
        outcome = c.outcome.upper() if c.passed is False else c.outcome
        observed = _number(c.observed) if not isinstance(c.observed, dict) else _pairs(c.observed)
        null = "" if c.null is None else f"{c.null[0]:.3g} to {c.null[1]:.3g}"
        rows.append([c.name, c.rules_out, c.expected, observed, null, outcome, str(c.n), c.detail])
    return _table(
        "Controls",
        ["name", "rules out", "expected", "observed", "null", "outcome", "n", "detail"],
        rows,
        prose=True,
    )


def _pairs(observed: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_number(value)}" for key, value in observed.items())


def _number(value: Any) -> str:
    if value is None or type(value).__name__ == "NAType":
        return ""
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return str(value)


def _table(caption: str, head: list[str], rows: list[list[str]], *, prose: bool = False) -> str:
    style = (
        f' style="{_LEFT}"' if prose else ""
    )  # notebooks align cells to the right, which suits numbers only
    names = "".join(f"<th{style}>{escaped(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td{style}>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><caption>{escaped(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def escaped(text: Any) -> str:
    """Escaped; what does not print, reorders the text beside it or cannot be sent as UTF-8 is written out."""
    plain = "".join(c if c.isprintable() or c in "\n\t\xa0" else _written(c) for c in str(text))
    return html.escape(plain, quote=True)


def _written(c: str) -> str:
    """\\x07, \\u202e, \\U000e0001."""
    code = ord(c)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
