"""`mt.expect`: what a prediction says of a result, as data, so that the result decides and nobody argues afterwards.

| field | what it is in the result |
|---|---|
| `effects` | `value` of a row of `result.frame()`: the mean effect of a cell, in the metric's unit |
| `low` `high` `null_low` `null_high` `n` | the same row's interval, its null band, its number of prompts |
| `verdict` | the verdict's word |
| `p` | the family-wise p of the verdict |
| `control:NAME` | whether that control passed |
| `table:NAME.COLUMN` | a cell of `result.tables[NAME]` |

What a result does not answer (no such row, NaN, a control that did not run) leaves an expectation *unresolved*, with the
reason. It is never counted as false, nor as true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as _field
from typing import TYPE_CHECKING, Any

from ..errors import LabError, ResultError
from ..results.arguments import nearest, suggest
from ..results.frozen import freeze_json
from .labels import Place, check_label, place, same_label

if TYPE_CHECKING:
    from ..results.result import Result

__all__ = ["Expectation", "Outcome", "evaluate", "expect"]

_OF_FRAME = {"effects": "value", "low": "low", "high": "high", "n": "n", "null_low": "null_low", "null_high": "null_high"}  # fmt: skip
_FIELDS = (*_OF_FRAME, "verdict", "p", "control:NAME", "table:NAME.COLUMN")
_WHERE = ("site", "layer", "head", "position", "metric")
_SHOWN = 4
_HOW = ("one", "every", "any", "mean", "max", "min")

Plain = float | str | bool
Cell = Plain | None
"""A value that a result holds; None: it is there and not known (NaN, a control that did not run)."""


@dataclass(frozen=True)
class Outcome:
    """What a result says to an expectation. held: None when it does not say. observed: the value that was compared, or
    how many of several held. why: one sentence."""

    held: bool | None
    observed: Cell
    why: str


@dataclass(frozen=True)
class Expectation:
    """A statement about a result; made by `expect`, which has the parameters."""

    field: str
    site: str | None = None
    layer: int | None = None
    head: int | None = None
    position: int | str | None = None
    metric: str | None = None
    where: Mapping[str, Plain] = _field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    equals: Plain | None = None
    how: str = "one"

    def __post_init__(self) -> None:
        _check_field(self)
        _check_rows(self)
        _check_value(self)

    @property
    def text(self) -> str:
        """The expectation in one line. Names are as they were given: escape them where they are shown."""
        rows = [f"{name} {value}" for name in _WHERE if (value := getattr(self, name)) is not None]
        rows += [f"{name} = {value!r}" for name, value in self.where.items()]
        said = self.field if self.how == "one" else f"{self.how} {self.field}"
        return f"{said}{' of ' if rows else ''}{', '.join(rows)} {self._wanted}"

    @property
    def _wanted(self) -> str:
        if self.equals is not None:
            return f"is {self.equals!r}"
        if self.low is not None and self.high is not None:
            return f"from {self.low:g} to {self.high:g}"
        return f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"

    def as_json(self) -> dict[str, Any]:
        """The fields that were given, as a mapping of JSON-able values."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in given.items() if value is not None and value != {}}

    @classmethod
    def from_json(cls, stored: Any) -> Expectation:
        """The expectation that `as_json` gave. Raises LabError for what is none."""
        known = cls.__dataclass_fields__
        if not isinstance(stored, Mapping) or "field" not in stored or (set(map(str, stored)) - set(known)):
            raise LabError(
                f"a stored expectation that is none: {stored!r}",
                why=f"it is a mapping of {', '.join(known)}",
                instead="if a newer version wrote it, read it with that version",
            )
        return cls(**stored)


def expect(
    field: str,
    *,
    site: str | None = None,
    layer: int | None = None,
    head: int | None = None,
    position: int | str | None = None,
    metric: str | None = None,
    where: Mapping[str, Plain] | None = None,
    low: float | None = None,
    high: float | None = None,
    equals: Plain | None = None,
    how: str = "one",
) -> Expectation:
    """What should be true of a result: `mt.expect("effects", site="L9H6.z", low=-0.6, high=-0.3)`.

    Parameters
    ----------
    field: one of the table in the module's head. site, layer, head, position, metric: which rows of the frame; all that
        are given must agree. A site is compared by meaning, so "L9H6.z@-1" is the row of L9H6.z at position -1, and
        "L*H*.z" all heads' rows; another text is compared as it is.
    where: of a table: column -> value, all of which must agree ("site" by meaning).
    low, high: bounds, inclusive, in the unit of what they bound; either may be left out. equals: the exact value instead
        ("supported", True, 0.0).
    how: what to do where several rows agree. "one": they are ambiguous, and the expectation is unresolved. "every" and
        "any": of the rows. "mean", "max", "min": of their numbers.

    Raises
    ------
    LabError: an unknown field, a bound that is no finite number, low above high, nothing to compare with, or a part
    that the field does not have (the nearest names are suggested). SiteError: text that begins as an address and is none.
    """
    return Expectation(field, site, layer, head, position, metric, where or {}, low, high, equals, how)


def evaluate(expectation: Expectation, result: Result) -> Outcome:
    """Compare an expectation with a result. Never raises for what the result lacks: that is unresolved, with the reason.

    With how="every" one row that fails decides, with "any" one that holds; otherwise a row that is not known leaves
    both unresolved, as it does every number made of several.
    """
    found = _cells(expectation, result)
    if isinstance(found, str):
        return Outcome(None, None, found)
    if len(found) > 1 and expectation.how == "one":
        return Outcome(
            None, None, f"{len(found)} rows agree, so it is ambiguous which is meant: name more, or say how="
        )
    if expectation.how in ("mean", "max", "min"):
        return _of_number(expectation, found)
    held = [None if cell is None else _holds(expectation, cell) for cell in found]
    if len(found) == 1:
        return _of_one(expectation, found[0])
    decides = expectation.how == "any"
    settled = decides if decides in held else None if None in held else not decides
    count = f"{held.count(True)} of {len(held)} rows"
    unknown = f", {held.count(None)} not known" if None in held else ""
    return Outcome(settled, count, f"{count} {expectation._wanted}{unknown}")


def _of_one(expectation: Expectation, cell: Cell) -> Outcome:
    if cell is None:
        return Outcome(None, None, "the result has this row and its value is not known (NaN)")
    wrong = _other_kind(expectation, cell)
    if wrong:
        return Outcome(None, cell, wrong)
    held = _holds(expectation, cell)
    return Outcome(held, cell, f"observed {_shown(cell)}, expected {expectation._wanted}")


def _of_number(expectation: Expectation, cells: Sequence[Cell]) -> Outcome:
    numbers = [cell for cell in cells if isinstance(cell, float | int) and not isinstance(cell, bool)]
    if len(numbers) < len(cells):
        lost = len(cells) - len(numbers)
        return Outcome(None, None, f"{lost} of {len(cells)} rows hold no number, so they have no {expectation.how}")  # fmt: skip
    reduce: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda v: math.fsum(v) / len(v), "max": max, "min": min}  # fmt: skip
    value = reduce[expectation.how](numbers)
    held = _holds(expectation, value)
    return Outcome(held, value, f"{expectation.how} of {len(cells)} rows is {_shown(value)}, expected {expectation._wanted}")  # fmt: skip


def _holds(expectation: Expectation, cell: Plain) -> bool | None:
    """Whether a value agrees; None where it is of another kind than what was expected."""
    if _other_kind(expectation, cell):
        return None
    if expectation.equals is not None:
        return cell == expectation.equals
    assert not isinstance(cell, str)
    low = -math.inf if expectation.low is None else expectation.low
    high = math.inf if expectation.high is None else expectation.high
    return low <= cell <= high


def _other_kind(expectation: Expectation, cell: Plain) -> str:
    wanted = 0.0 if expectation.equals is None else expectation.equals
    if _kind(wanted) == _kind(cell):
        return ""
    return (
        f"the result has {_shown(cell)} there, which is {_kind(cell)} and was compared with {_kind(wanted)}"
    )


def _kind(value: Plain) -> str:
    return "true or false" if isinstance(value, bool) else "text" if isinstance(value, str) else "a number"


def _cells(expectation: Expectation, result: Result) -> list[Cell] | str:
    """What the field holds in the rows that agree, or why there is nothing."""
    kind, _, rest = expectation.field.partition(":")
    if kind == "verdict":
        return [result.verdict.word]
    if kind == "p":
        return "no test was made, so there is no p" if result.verdict.p is None else [float(result.verdict.p)]
    if kind == "control":
        return _control(rest, result)
    if kind == "table":
        return _of_table(expectation, result, *_split(rest))
    return _of_frame(expectation, result)


def _control(name: str, result: Result) -> list[Cell] | str:
    try:
        control = result.control(name)
    except ResultError as error:
        return f"{error.what}; {error.instead}"
    if control.passed is None:
        return f"the control {name} did not run: {control.detail}"
    return [control.passed]


def _of_frame(expectation: Expectation, result: Result) -> list[Cell] | str:
    frame = result.frame()
    if frame.empty:
        return f"this {result.kind} has no effects"
    columns = {name: [_plain(value) for value in frame[name].tolist()] for name in (*_WHERE, _OF_FRAME[expectation.field])}  # fmt: skip
    asked = place(expectation.site, expectation.layer, expectation.head, expectation.position)
    values = columns[_OF_FRAME[expectation.field]]
    places: dict[tuple[Cell, ...], Place] = {}
    found: list[Cell] = []
    for row, value in enumerate(values):
        labels = tuple(columns[name][row] for name in _WHERE[:-1])
        if labels not in places:
            places[labels] = place(*labels)  # type: ignore[arg-type]
        right_metric = expectation.metric is None or expectation.metric == columns["metric"][row]
        if right_metric and asked.covers(places[labels]):
            found.append(value)
    return found or _no_row(expectation, columns, places.values())


def _no_row(expectation: Expectation, columns: Mapping[str, Sequence[Cell]], places: Iterable[Place]) -> str:
    said = ", ".join(f"{name} {value}" for name in _WHERE if (value := getattr(expectation, name)) is not None)  # fmt: skip
    if expectation.metric is not None and expectation.metric not in columns["metric"]:
        return f"no row has {said}; metric: {_nearest(expectation.metric, columns['metric'])}"
    asked = place(expectation.site, expectation.layer, expectation.head, expectation.position)
    elsewhere = [found.position for found in places if replace(asked, position="").covers(found)]
    if elsewhere:
        there = [position for position in dict.fromkeys(elsewhere) if position]
        return f"no row has {said}; positions there: {_nearest('', there)}"
    if expectation.site is not None:
        return f"no row has {said}; site: {_nearest(expectation.site, columns['site'])}"
    return f"no row has {said} together"


def _nearest(word: str, labels: Iterable[Cell]) -> str:
    """The nearest labels, or the first few where none is near."""
    known = [str(label) for label in dict.fromkeys(labels) if label is not None]
    close = nearest(word, known[:2000]) if word else []
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(known[:_SHOWN]) or "none"
    return f"known: {shown}" + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")


def _of_table(expectation: Expectation, result: Result, name: str, column: str) -> list[Cell] | str:
    if name not in result.tables:
        return f"this {result.kind} has no table {name!r}: {_nearest(name, sorted(result.tables))}"
    table = result.tables[name]
    for asked in (column, *expectation.where):
        if asked not in table.columns:
            return f"the table {name} has no column {asked!r}: {_nearest(asked, table.columns)}"
    keys = {asked: [_plain(value) for value in table[asked].tolist()] for asked in expectation.where}
    values = [_plain(value) for value in table[column].tolist()]
    found = [
        value
        for row, value in enumerate(values)
        if all(_same(asked, keys[asked][row], wanted) for asked, wanted in expectation.where.items())
    ]
    if found:
        return found
    return f"no row of the table {name} has " + (", ".join(f"{k} = {v!r}" for k, v in expectation.where.items()) or "anything")  # fmt: skip


def _same(column: str, cell: Cell, wanted: Plain) -> bool:
    if column == "site" and isinstance(cell, str) and isinstance(wanted, str):
        return same_label(wanted, cell)
    return cell is not None and _kind(cell) == _kind(wanted) and cell == wanted


def _plain(value: Any) -> Cell:
    """A cell of a frame as Python's; None for what is not known, and for what is no plain value."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool | str | int):
        return value
    return value if isinstance(value, float) and value == value else None


def _shown(value: Plain) -> str:
    return f"{value:.4g}" if isinstance(value, float) and not isinstance(value, bool) else repr(value)


def _split(rest: str) -> tuple[str, str]:
    name, _, column = rest.partition(".")
    return name, column


def _check_field(e: Expectation) -> None:
    if not isinstance(e.field, str):
        raise _refused(f"the field is {e.field!r}", "a field has a name", suggest(str(e.field), _FIELDS))
    kind, colon, rest = e.field.partition(":")
    if kind == "control" and colon and rest.strip():
        return
    if kind == "table" and colon and all(part.strip() for part in _split(rest)):
        return
    if e.field not in (*_OF_FRAME, "verdict", "p"):
        raise _refused(f"there is no field {e.field!r}", f"fields are {', '.join(_FIELDS)}", suggest(e.field, _FIELDS))  # fmt: skip


def _check_rows(e: Expectation) -> None:
    kind = e.field.partition(":")[0]
    given = [name for name in _WHERE if getattr(e, name) is not None]
    if given and kind not in _OF_FRAME:
        instead = f'where={{"{given[0]}": ...}}' if kind == "table" else f"leave {given[0]}= out"
        raise _refused(f"{e.field} with {given[0]}=", "that finds a row of the result's frame", instead)
    if not isinstance(e.where, Mapping) or (e.where and kind != "table"):
        raise _refused(f"{e.field} with where={e.where!r}", "it finds rows of a table, by column and value", 'where={"donor": "noise"}, with a field such as "table:donors.value"')  # fmt: skip
    frozen = freeze_json(e.where, "where")
    for name, value in frozen.items():
        if not isinstance(value, str | bool | int | float) or value != value:
            raise _refused(f"where has {name} = {value!r}", "rows are found by text, numbers, True or False", "name another column")  # fmt: skip
    object.__setattr__(e, "where", frozen)
    for name in ("site", "metric"):
        if not isinstance(getattr(e, name), str | None) or getattr(e, name) == "":
            raise _refused(f"{name} is {getattr(e, name)!r}", "it is found by its name", f'{name}="..."')
    for name in ("layer", "head"):
        if not _whole(getattr(e, name), optional=True):
            raise _refused(f"{name} is {getattr(e, name)!r}", "it is a number from 0 on", f"{name}=9")
    if (
        not isinstance(e.position, str | None)
        and not isinstance(e.position, int)
        or isinstance(e.position, bool)
    ):
        raise _refused(f"position is {e.position!r}", "it is an integer or a span's name", 'position=-1, or position="subject"')  # fmt: skip
    if e.site is not None:
        check_label(e.site, e.layer, e.head, e.position)
    if e.how not in _HOW:
        raise _refused(f"how is {e.how!r}", "it says what to do with several rows", suggest(str(e.how), _HOW))


def _whole(value: Any, *, optional: bool) -> bool:
    return (optional and value is None) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)  # fmt: skip


def _check_value(e: Expectation) -> None:
    from ..results.verdicts import VERDICTS

    for name in ("low", "high"):
        object.__setattr__(e, name, _bound(name, getattr(e, name)))
    given: Any = e.equals
    object.__setattr__(e, "equals", given.item() if hasattr(given, "item") else given)  # NumPy's scalars
    bounded = e.low is not None or e.high is not None
    if bounded == (e.equals is not None):
        what = "both bounds and equals=" if bounded else "nothing to compare with"
        raise _refused(f"{e.field}: {what}", "an expectation gives low=, high= or both, or else equals=", "low=-0.6, high=-0.3")  # fmt: skip
    if e.low is not None and e.high is not None and e.low > e.high:
        raise _refused(f"low {e.low:g} is above high {e.high:g}", "no number lies between them", f"low={e.high:g}, high={e.low:g}")  # fmt: skip
    kind = e.field.partition(":")[0]
    if isinstance(e.equals, float | int) and not isinstance(e.equals, bool):
        object.__setattr__(e, "equals", _bound("equals", e.equals))
    if kind == "verdict" and e.equals not in VERDICTS:
        raise _refused(f"the verdict is expected to be {e.equals!r}", f"verdicts are {', '.join(VERDICTS)}", suggest(str(e.equals), VERDICTS))  # fmt: skip
    if kind == "control" and not isinstance(e.equals, bool):
        raise _refused(f"{e.field} with {_given(e)}", "a control passes or does not", "equals=True")
    if kind in (*_OF_FRAME, "p") and isinstance(e.equals, str | bool):
        raise _refused(f"{e.field} is expected to be {e.equals!r}", "it is a number", "low= and high=")
    if not isinstance(e.equals, str | bool | float | None):
        raise _refused(f"equals is {e.equals!r}", "a value is text, a number, True or False", 'equals="supported"')  # fmt: skip


def _given(e: Expectation) -> str:
    return "bounds" if e.equals is None else f"equals={e.equals!r}"


def _bound(name: str, value: Any) -> float | None:
    if value is None:
        return None
    plain = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    if isinstance(plain, bool) or not isinstance(plain, int | float) or not math.isfinite(plain):
        raise _refused(f"{name} is {value!r}", "a result's number is compared with it", f"{name}=0.5; leave it out where there is no bound")  # fmt: skip
    return float(plain)


def _refused(what: str, why: str, instead: str) -> LabError:
    return LabError(what, why=why, instead=instead)
