"""A small RASP (Weiss et al. 2021, arXiv 2106.06981): programs over sequences that a transformer can run exactly.

A program is an expression of sequence operators. Every operator gives one value per position; it is "categorical" (one of
finitely many values, kept one-hot in the stream) or "numerical" (one number, kept as a coordinate). The kinds follow
Lindner et al. 2023 (Tracr, arXiv 2301.05062). `evaluate` runs a program in plain Python, with exact fractions; it knows
nothing of weights. The compiler is in `compile.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from microtome.errors import ModelError

__all__ = [
    "INDICES", "TOKENS", "Aggregate", "Indices", "Kind", "Linear", "Map", "SOp", "Select", "Tokens", "Value", "Width", "Zip",
    "evaluate", "nodes",
]  # fmt: skip

Kind = Literal["categorical", "numerical"]
Value = Any
"""A categorical value (str, int, bool, tuple) or a number (int, Fraction). None: nothing is written."""


@dataclass(frozen=True, eq=False)
class SOp:
    """A sequence operator: one value per position. `name` is unique in a program; `meaning` says what the value is."""

    name: str
    meaning: str

    @property
    def kind(self) -> Kind:
        """How its values are kept."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """The operators that it reads."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Tokens(SOp):
    """The input tokens."""

    @property
    def kind(self) -> Kind:
        """Categorical."""
        return "categorical"

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """None."""
        return ()


@dataclass(frozen=True, eq=False)
class Indices(SOp):
    """The positions, from 0 (BOS is not counted)."""

    @property
    def kind(self) -> Kind:
        """Categorical."""
        return "categorical"

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """None."""
        return ()


TOKENS = Tokens("tokens", "the token at this position")
INDICES = Indices("indices", "this position, from 0")


@dataclass(frozen=True, eq=False)
class Map(SOp):
    """f of one operator, position by position (an MLP)."""

    fn: Callable[[Value], Value]
    of: SOp
    to: Kind = "categorical"

    @property
    def kind(self) -> Kind:
        """As declared."""
        return self.to

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """The argument."""
        return (self.of,)


@dataclass(frozen=True, eq=False)
class Zip(SOp):
    """f of two categorical operators, position by position (an MLP with a neuron per pair of values)."""

    fn: Callable[[Value, Value], Value]
    a: SOp
    b: SOp
    to: Kind = "categorical"

    def __post_init__(self) -> None:
        if self.a.kind != "categorical" or self.b.kind != "categorical":
            raise ModelError(
                f"{self.name} zips an operator that is numerical",
                why="a neuron per pair of values needs finitely many one-hot values",
                instead="map it to categories first, or use Linear",
            )

    @property
    def kind(self) -> Kind:
        """As declared."""
        return self.to

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """Both arguments."""
        return (self.a, self.b)


@dataclass(frozen=True, eq=False)
class Linear(SOp):
    """weight_a * a + weight_b * b of two numerical operators (two neurons)."""

    a: SOp
    b: SOp
    weight_a: int = 1
    weight_b: int = 1

    def __post_init__(self) -> None:
        if self.a.kind != "numerical" or self.b.kind != "numerical":
            raise ModelError(
                f"{self.name} adds an operator that is categorical", instead="map it to numbers first"
            )

    @property
    def kind(self) -> Kind:
        """Numerical."""
        return "numerical"

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """Both arguments."""
        return (self.a, self.b)


@dataclass(frozen=True, eq=False)
class Select:
    """Which keys each query selects: predicate(key value, query value).

    queries None: predicate(key value), the same for every query. Both None: every position.
    """

    keys: SOp | None
    queries: SOp | None
    predicate: Callable[..., bool] = lambda *values: True

    def __post_init__(self) -> None:
        for part in (self.keys, self.queries):
            if part is not None and part.kind != "categorical":
                raise ModelError(
                    f"{part.name} is numerical and cannot be selected by",
                    instead="map it to categories first",
                )
        if self.keys is None and self.queries is not None:
            raise ModelError("a selector with queries needs keys", instead="give both, or neither")

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """What it reads."""
        return tuple(p for p in (self.keys, self.queries) if p is not None)


@dataclass(frozen=True, eq=False)
class Aggregate(SOp):
    """The mean of `values` over the selected keys; of a categorical operator the value that all of them share (a head).

    default: the value where nothing is selected. None: that never happens, else `evaluate` refuses the input.
    """

    select: Select
    values: SOp
    default: Value = None

    @property
    def kind(self) -> Kind:
        """That of the values."""
        return self.values.kind

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """Keys, queries and values."""
        return (*self.select.inputs, self.values)


@dataclass(frozen=True, eq=False)
class Width(SOp):
    """How many keys are selected (a head that attends to them and to BOS, and an MLP that counts from BOS's share)."""

    select: Select

    @property
    def kind(self) -> Kind:
        """Categorical."""
        return "categorical"

    @property
    def inputs(self) -> tuple[SOp, ...]:
        """Keys and queries."""
        return self.select.inputs


@lru_cache(maxsize=64)
def nodes(root: SOp) -> tuple[SOp, ...]:
    """Every operator that a program uses, each once, inputs first.

    Raises
    ------
    ModelError: two operators of one name.
    """
    found: dict[str, SOp] = {}

    def visit(op: SOp) -> Iterator[SOp]:
        for part in op.inputs:
            yield from visit(part)
        if found.get(op.name) is op:
            return
        if op.name in found:
            raise ModelError(f"two operators are called {op.name!r}", instead="give each its own name")
        found[op.name] = op
        yield op

    return tuple(visit(root))


def evaluate(
    root: SOp,
    tokens: Sequence[Value],
    *,
    causal: bool,
    given: Mapping[str, tuple[Value, ...]] | None = None,
) -> dict[str, tuple[Value, ...]]:
    """Every operator's values on one input, by name. Numbers are exact (Fraction).

    given: operators that have these values whatever their inputs say (an interchange intervention on a variable).

    Raises
    ------
    ModelError: an aggregate without default over nothing, or a categorical one over values that differ.
    """
    values: dict[str, tuple[Value, ...]] = {}
    for op in nodes(root):
        fixed = None if given is None else given.get(op.name)
        values[op.name] = tuple(_values(op, tokens, values, causal)) if fixed is None else tuple(fixed)
    return values


def _values(
    op: SOp, tokens: Sequence[Value], known: dict[str, tuple[Value, ...]], causal: bool
) -> Sequence[Value]:
    match op:
        case Tokens():
            return tokens
        case Indices():
            return range(len(tokens))
        case Map():
            return [op.fn(v) for v in known[op.of.name]]
        case Zip():
            return [op.fn(a, b) for a, b in zip(known[op.a.name], known[op.b.name], strict=True)]
        case Linear():
            pairs = zip(known[op.a.name], known[op.b.name], strict=True)
            return [op.weight_a * a + op.weight_b * b for a, b in pairs]
        case Width():
            return [len(row) for row in _selected(op.select, len(tokens), known, causal)]
        case Aggregate():
            rows = _selected(op.select, len(tokens), known, causal)
            return [_aggregate(op, [known[op.values.name][k] for k in row]) for row in rows]
    raise ModelError(f"{op.name} is no operator of this language", why=f"it is a {type(op).__name__}")


def _selected(select: Select, n: int, known: dict[str, tuple[Value, ...]], causal: bool) -> list[list[int]]:
    keys = [()] * n if select.keys is None else [(v,) for v in known[select.keys.name]]
    queries = [()] * n if select.queries is None else [(v,) for v in known[select.queries.name]]
    return [
        [k for k in range(q + 1 if causal else n) if select.predicate(*keys[k], *queries[q])]
        for q in range(n)
    ]


def _aggregate(op: Aggregate, found: list[Value]) -> Value:
    if not found:
        if op.default is None:
            raise ModelError(
                f"{op.name} selects nothing at some position",
                why="it was declared without a default",
                instead="give it one, or leave such inputs out of the domain",
            )
        return op.default
    if op.kind == "numerical":
        return Fraction(sum(found), len(found))
    if len(set(found)) > 1:
        raise ModelError(
            f"{op.name} averages categories that differ: {sorted(map(str, set(found)))}",
            why="a mean of one-hot values is no category",
            instead="select keys that share one value, or leave such inputs out of the domain",
        )
    return found[0]
