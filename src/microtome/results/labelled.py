"""A small labelled float32 array: named dimensions, labels along each, frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResultError
from .arguments import suggest
from .frozen import FrozenDict, digest, freeze_array

if TYPE_CHECKING:
    import pandas as pd

Label = str | int


@dataclass(frozen=True, eq=False, repr=False)
class Labelled:
    """Numbers with named dimensions.

    Parameters
    ----------
    values: real array, stored as read-only float32 of shape [len(coords[d]) for d in dims]. NaN is kept and
        means "not measured".
    dims: the names of the axes, in order.
    coords: for every dimension its labels (text or integers), unique, one per index.

    Raises ResultError when shape, dims and coords disagree, when a label occurs twice, and when a finite
    number is too large for float32.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    coords: Mapping[str, tuple[Label, ...]]

    def __post_init__(self) -> None:
        dims = _check_dims(self.dims)
        values = _as_float32(self.values)
        if values.ndim != len(dims):
            raise ResultError(
                f"{values.ndim} axes but {len(dims)} names: shape {values.shape}, dims {dims}",
                why="every axis needs a name",
                instead="give one name per axis, in order",
            )
        if set(self.coords) != set(dims):
            raise ResultError(
                f"coords name {sorted(map(str, self.coords))}, dims name {sorted(dims)}",
                why="every dimension needs its labels, and labels need a dimension",
                instead="give coords exactly for dims",
            )
        coords = {dim: _check_labels(dim, self.coords[dim], values.shape[i]) for i, dim in enumerate(dims)}
        object.__setattr__(self, "dims", dims)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "coords", FrozenDict(coords))

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths along dims."""
        return self.values.shape

    def sel(self, **labels: Label | Sequence[Label]) -> Labelled:
        """The part at these labels: one label drops its dimension, a list keeps it, in the list's order.

        Raises ResultError for an unknown dimension or label, naming the nearest.
        """
        values: np.ndarray = self.values
        for dim, wanted in labels.items():
            axis = self._axis(dim)
            if isinstance(wanted, (list, tuple)):
                values = np.take(values, [self._index(dim, label) for label in wanted], axis=axis)
            else:  # kept as length 1 until the end, so that the axes do not move
                values = np.take(values, [self._index(dim, wanted)], axis=axis)
        kept = tuple(d for d in self.dims if d not in labels or isinstance(labels[d], (list, tuple)))
        drop = tuple(i for i, d in enumerate(self.dims) if d not in kept)
        coords = {d: tuple(labels[d]) if d in labels else self.coords[d] for d in kept}  # type: ignore[arg-type]
        return Labelled(np.squeeze(values, axis=drop), kept, coords)

    def mean(self, dim: str | Sequence[str], *, skipna: bool = False) -> Labelled:
        """The mean over one or several dimensions (summed in float64).

        NaN makes the mean NaN unless ``skipna``; a mean over nothing measured is NaN.
        Raises ResultError for an unknown dimension and for one of length 0.
        """
        names = (dim,) if isinstance(dim, str) else tuple(dim)
        axes = tuple(self._axis(name) for name in names)
        if any(self.shape[axis] == 0 for axis in axes):
            raise ResultError(
                f"no mean over {names}: length 0",
                why="there is nothing to average",
                instead="select other labels",
            )
        mean, _ = mean_and_count(self.values, axes, skipna=skipna)
        kept = tuple(d for d in self.dims if d not in names)
        return Labelled(mean, kept, {d: self.coords[d] for d in kept})

    def to_frame(self) -> pd.DataFrame:
        """A long pandas frame: one column per dimension and ``value``; one row per number, C order."""
        import pandas as pd

        columns: dict[str, Any] = {d: self.label_column(d) for d in self.dims}
        return pd.DataFrame({**columns, "value": self.values.ravel().astype(np.float64)})

    def label_column(self, dim: str) -> list[Label]:
        """The label of `dim` for every number, in C order."""
        axis = self._axis(dim)
        index = np.indices(self.shape, sparse=True)[axis]
        flat = np.broadcast_to(index, self.shape).ravel()
        labels = self.coords[dim]
        return [labels[i] for i in flat.tolist()]

    def _axis(self, dim: str) -> int:
        if dim not in self.dims:
            raise ResultError(
                f"no dimension {dim!r}", why=f"dims are {self.dims}", instead=suggest(dim, self.dims)
            )
        return self.dims.index(dim)

    def _index(self, dim: str, label: Any) -> int:
        if isinstance(label, np.generic):
            label = label.item()
        labels = self.coords[dim]
        # 1 == True == 1.0 in Python; a label is found only by its own type
        for i, known in enumerate(labels):
            if type(known) is type(label) and known == label:
                return i
        first, last = (labels[0], labels[-1]) if labels else (None, None)
        raise ResultError(
            f"no label {label!r} in dimension {dim!r}",
            why=f"it has {len(labels)} labels, from {first!r} to {last!r}",
            instead=suggest(str(label), map(str, labels)) if len(labels) < 1000 else f"see .coords[{dim!r}]",
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Labelled):
            return NotImplemented
        same_labels = self.dims == other.dims and self.coords == other.coords
        return same_labels and np.array_equal(self.values, other.values, equal_nan=True)

    def __hash__(self) -> int:
        return hash((self.dims, self.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return Labelled, (self.values, self.dims, dict(self.coords))  # through the constructor: frozen again

    def __query__(self) -> dict[str, Any]:
        values = digest(self.values.tobytes())
        return {"labelled": values, "dims": self.dims, "coords": self.coords, "rerunnable": False}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{d}={n}" for d, n in zip(self.dims, self.shape, strict=True))
        return f"Labelled({sizes})"


def mean_and_count(
    values: np.ndarray, axes: tuple[int, ...], *, skipna: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (float64) and number of measured values over `axes`; no value measured gives NaN and 0."""
    wide = values.astype(np.float64)
    measured = ~np.isnan(wide)
    count = measured.sum(axis=axes)
    with np.errstate(invalid="ignore"):  # inf and -inf together have no mean: NaN, without a warning
        total = np.where(measured, wide, 0.0).sum(axis=axes)
    mean = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    if not skipna:
        mean = np.where(measured.all(axis=axes), mean, np.nan)
    return mean, count


def _check_dims(dims: Sequence[str]) -> tuple[str, ...]:
    if isinstance(dims, str) or not all(isinstance(d, str) and d for d in dims):
        raise ResultError(
            f"dims must be a sequence of names, got {dims!r}",
            why="an axis is found by its name",
            instead="('layer',)",
        )
    if len(set(dims)) != len(dims):
        raise ResultError(
            f"dims {tuple(dims)} repeat a name", why="two axes would share it", instead="rename one"
        )
    return tuple(dims)


def _as_float32(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # np.asarray would take some tensors and fail on others
        freeze_array(values, "values")
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ResultError(
            f"values have the dtype {array.dtype}",
            why="they must be real numbers",
            instead="convert them first",
        )
    if array.dtype == np.float32:
        return freeze_array(array, "values")
    largest = float(np.finfo(np.float32).max)
    if array.dtype.kind == "f" and np.any(np.isfinite(array) & (np.abs(array) > largest)):
        raise ResultError(
            "values exceed float32",
            why=f"a finite number is larger than {largest:.3g}",
            instead="rescale them",
        )
    return freeze_array(array.astype(np.float32), "values")


def _check_labels(dim: str, labels: Sequence[Label], length: int) -> tuple[Label, ...]:
    if isinstance(labels, str):
        raise ResultError(
            f"the labels of {dim!r} are one text", why="not a sequence of labels", instead=f"({labels!r},)"
        )
    plain: list[Label] = []
    for label in labels:
        value: Any = label.item() if isinstance(label, np.generic) else label
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ResultError(
                f"label {value!r} of {dim!r} is a {type(value).__name__}",
                why="labels are text or integers, so that they survive saving",
                instead="use text or an integer",
            )
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise ResultError(
                f"label {value!r} of {dim!r} has a lone surrogate",
                why="it is half a character: no frame or file can hold it",
                instead="label by index, and keep the text in raw_examples=",
            )
        plain.append(str.__str__(value) if isinstance(value, str) else int(value))
    if len(plain) != length:
        raise ResultError(
            f"{len(plain)} labels for the {length} entries of {dim!r}",
            why="every index needs one label",
            instead="give as many labels as the axis is long",
        )
    if len(set(plain)) != len(plain):
        twice = next(label for i, label in enumerate(plain) if label in plain[:i])
        raise ResultError(
            f"label {twice!r} occurs twice in {dim!r}",
            why="a label must name one place",
            instead="make them unique",
        )
    return tuple(plain)
