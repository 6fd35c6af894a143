"""A finished measurement as a value: numbers, the controls that ran with them, and the verdict they allow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from . import frame as _frame
from .frozen import FrozenDict, freeze_array, freeze_json
from .labelled import Labelled
from .query import Query
from .verdicts import SUPPORTED, VERDICTS, Control, Verdict, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA_VERSION", "VERDICTS", "Control", "Query", "Result", "Verdict", "verdict"]

SCHEMA_VERSION = 1
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Tables(Mapping[str, "pd.DataFrame"]):
    """Named pandas frames; each reading gives a copy, so that nobody can change the result's own."""

    def __init__(self, frames: Mapping[str, pd.DataFrame]) -> None:
        self._frames = dict(frames.items())

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self._frames[name].copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return set(self) == set(other) and all(_same_frame(f, other[n]) for n, f in self._frames.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Tables(" + ", ".join(f"{n}: {len(f)} rows" for n, f in self._frames.items()) + ")"


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a technique gives back. It is frozen and holds no model, module or function.

    Parameters
    ----------
    kind: what it is, in lower case with underscores; by custom the technique's name.
    query: what was asked. A technique leaves it None: the `technique` decorator stamps it.
    effects: raw metric differences per prompt, [cell..., prompt, metric], in the metric's unit; None where
        a technique has no cells.
    tables: pandas frames by name. "cells" is special: it gives frame() its low, high, null_low and null_high
        (key columns: the effects' cell dimensions and metric), and whole rows (with value and n) for metrics
        that are no mean over prompts, such as normalised effects.
    tensors: NumPy arrays by name.
    controls: the controls, each name once.
    verdict: made by `verdict(controls, ...)`; when left out, computed without a test (so: "unchecked").
    raw_examples: prompts and outputs as JSON-able mappings.
    children: the results of the stages this one was made of.

    Raises ResultError for anything that could not be saved, contradicts itself, or a verdict that does not
    follow from the controls.
    """

    kind: str
    query: Query | None = None
    effects: Labelled | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    controls: Sequence[Control] = ()
    verdict: Verdict = None  # type: ignore[assignment]  # computed when left out
    raw_examples: Sequence[Mapping[str, Any]] = ()
    children: Sequence[Result] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not _NAME.fullmatch(self.kind):
            raise ResultError(
                f"kind is {self.kind!r}",
                why="kinds are lower case with underscores",
                instead="'activation_patching'",
            )
        if self.schema_version != SCHEMA_VERSION:
            raise ResultError(
                f"schema_version is {self.schema_version!r}", why="new results have the current one",
                instead=f"leave it out (it is {SCHEMA_VERSION})",
            )  # fmt: skip
        _of_type("query", self.query, Query, optional=True)
        _of_type("effects", self.effects, Labelled, optional=True)
        if self.effects is not None:
            _frame.check_effects(self.effects)
        tensors = {_text(k): freeze_array(v, f"tensors[{k!r}]") for k, v in _mapping("tensors", self.tensors)}
        self._set("tensors", FrozenDict(tensors))
        self._set("tables", Tables({k: _check_table(k, v) for k, v in _mapping("tables", self.tables)}))
        self._set("controls", _all_of("controls", self.controls, Control))
        self._set("children", _all_of("children", self.children, Result))
        names = [c.name for c in self.controls]
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ResultError(
                f"controls {twice} occur twice", why="a control is found by name", instead="name them apart"
            )
        examples = freeze_json(list(self.raw_examples), "raw_examples")
        for i, example in enumerate(examples):
            _of_type(f"raw_examples[{i}]", example, Mapping)
        self._set("raw_examples", examples)
        self._settle_verdict()
        if "cells" in self.tables:
            self.frame()  # contradictions between cells and effects are found here, not when it is drawn

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _settle_verdict(self) -> None:
        given: Any = self.verdict
        if given is None:
            self._set("verdict", verdict(self.controls))
            return
        if not isinstance(given, Verdict):
            raise ResultError(
                f"verdict is {given!r}",
                why="verdicts are computed, never typed",
                instead="verdict=verdict(controls, mandatory, p, alpha, smallest_p)",
            )
        follows = verdict(self.controls, given.mandatory, given.p, given.alpha, given.smallest_p)
        if follows != given:
            raise ResultError(
                f"the verdict is {given.word!r}, but {follows.word!r} follows from the controls",
                why="; ".join(follows.reasons),
                instead="compute it from the very controls that the result carries",
            )

    def frame(self) -> pd.DataFrame:
        """One row per cell x metric; always the columns site, layer, head, position, metric, value, low,
        high, null_low, null_high, n (see `microtome.results.frame.frame`). Empty where there are no cells.
        """
        return _frame.frame(self.effects, self.tables.get("cells"))

    def title(self, text: str = "") -> str:
        """The title of a picture of this result: `text` (else the method and version), and the verdict
        whenever it is not "supported".
        """
        if not text:
            version = f" (version {self.query.version})" if self.query else ""
            name = self.query.method if self.query else self.kind
            text = name.replace("_", " ").capitalize() + version
        return text if self.verdict == SUPPORTED else f"{text}: {self.verdict.word}"

    @property
    def calibration(self) -> str:
        """How often the technique, called in this way, is right on models whose mechanism is known, in one sentence; it begins
        with "not calibrated" where that is not known (see `microtome.results.calibration`).
        """
        from .calibration import calibration_of

        return calibration_of(self)

    def control(self, name: str) -> Control:
        """The control of this name. Raises ResultError, naming the nearest."""
        from .arguments import suggest

        for control in self.controls:
            if control.name == name:
                return control
        raise ResultError(
            f"no control {name!r} in this {self.kind}",
            why="it was not among those that ran",
            instead=suggest(name, [c.name for c in self.controls]),
        )

    def figure(self) -> Any:
        """The technique's figure of this result, by the renderer that the technique names.

        Raises ResultError when the technique is not known here or names no figure.
        """
        from .html import draw

        return draw(self)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Save as JSON, Parquet and safetensors; see `microtome.results.store.save`."""
        from .store import save

        return save(self, folder, overwrite=overwrite)

    def __query__(self) -> dict[str, Any]:
        """How a technique that takes this result as an argument records it."""
        if self.query is None:
            raise ResultError(
                f"this {self.kind} has no query",
                why="no technique made it",
                instead="pass a technique's result",
            )
        return {"result": self.kind, "query": self.query.id}

    def _repr_html_(self) -> str:
        from .html import render

        return render(self)

    def __repr__(self) -> str:
        cells = "no effects" if self.effects is None else repr(self.effects)
        name = self.query.method if self.query else self.kind
        return (
            f"Result({name}: {self.verdict.word}; {cells}; {len(self.controls)} controls)\n{self.calibration}"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        return (
            (self.kind, self.query, self.verdict) == (other.kind, other.query, other.verdict)
            and _same_json(_numbers(self.verdict), _numbers(other.verdict))
            and self.effects == other.effects
            and self.tables == other.tables
            and _same_arrays(self.tensors, other.tensors)
            and _same_json(self.controls, other.controls)
            and _same_json(self.raw_examples, other.raw_examples)
            and self.children == other.children
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.query))

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (getattr(self, name) for name in self.__dataclass_fields__)
        return Result, tuple(dict(v) if isinstance(v, Mapping) else v for v in fields)


def control_as_json(control: Control) -> dict[str, Any]:
    """The fields of a control as a mapping of JSON-able values."""
    return {name: getattr(control, name) for name in control.__dataclass_fields__}


def _numbers(verdict: Verdict) -> tuple[Any, ...]:
    """What a verdict was computed from beside the controls. Its reasons follow from both, in the order of their entries."""
    return verdict.p, verdict.alpha, verdict.smallest_p, tuple(verdict.mandatory)


def _same_json(mine: Any, theirs: Any) -> bool:
    """Equality in which NaN equals NaN (by the text that would be saved)."""
    from .frozen import dumps

    def plain(value: Any) -> Any:
        return tuple(control_as_json(v) if isinstance(v, Control) else v for v in value)

    return dumps(plain(mine)) == dumps(plain(theirs))


def _same_arrays(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return (
            a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        )

    return set(mine) == set(theirs) and all(same(array, theirs[name]) for name, array in mine.items())


def _same_frame(mine: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    return (
        list(mine.columns) == list(theirs.columns) and mine.index.equals(theirs.index) and mine.equals(theirs)
    )


def _of_type(name: str, value: Any, kind: type, *, optional: bool = False) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        raise ResultError(
            f"{name} is a {type(value).__name__}",
            why=f"it must be a {kind.__name__}",
            instead=f"see help({kind.__name__})",
        )


def _all_of(name: str, values: Any, kind: type) -> tuple[Any, ...]:
    if not isinstance(values, (tuple, list)):
        raise ResultError(
            f"{name} is a {type(values).__name__}", why="it must be a tuple", instead=f"{name}=(...)"
        )
    for i, value in enumerate(values):
        _of_type(f"{name}[{i}]", value, kind)
    return tuple(values)


def _mapping(name: str, value: Any) -> Any:
    _of_type(name, value, Mapping)
    return value.items()


def _text(name: Any) -> str:
    if not isinstance(name, str) or not name or not name.isprintable():  # lone surrogates are not printable
        raise ResultError(
            f"a tensor is called {name!r}", why="arrays are found by name", instead="use printable text"
        )
    return name


def _check_table(name: Any, table: Any) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ResultError(
            f"a table is called {name!r}",
            why="its name becomes a file's name",
            instead="use lower case and underscores",
        )
    _of_type(f"tables[{name!r}]", table, pd.DataFrame)
    columns = list(table.columns)
    if not all(isinstance(c, str) for c in columns) or len(set(columns)) != len(columns):
        raise ResultError(
            f"tables[{name!r}] has the columns {columns}",
            why="columns have unique names of text",
            instead="rename them",
        )
    if table.attrs:
        raise ResultError(
            f"tables[{name!r}] carries attrs {sorted(map(str, table.attrs))}",
            why="attrs are lost or refused in files",
            instead="make them columns, or clear them",
        )
    kept = table.copy()
    for column in columns:
        if kept[column].dtype == object:
            frozen = [
                freeze_json(v, f"tables[{name!r}].{column}[{i}]") for i, v in enumerate(kept[column].tolist())
            ]
            kept[column] = pd.Series(frozen, index=kept.index, dtype=object)
    return kept
