"""From a RASP program to weights: an exact transformer without norms, in the manner of Tracr (Lindner et al. 2023).

Every operator gets coordinates of its own in the stream: one per value where it is categorical, one where it is numerical.
Selectors become heads whose scores are so far apart that the softmax is hard; functions become ReLU neurons. BOS is where a
head looks when it selects nothing. Scores are `SHARP` for a selected key, 0 for another one; BOS has half of that as a
default, all of it where keys are counted, and minus that where a head averages over every token.

What MLPs write at BOS itself is no value of the program. Where a later head would read it as a key or value it is taken
back there, which is possible because it is the same for every input; where it is not, compilation is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from microtome.errors import ModelError
from microtome.zoo.programs import NUMBER, Program
from microtome.zoo.rasp import (
    Aggregate,
    Indices,
    Linear,
    Map,
    Select,
    SOp,
    Tokens,
    Value,
    Width,
    Zip,
    nodes,
)
from microtome.zoo.spec import Array, Block, Head, Neurons, Spec
from microtome.zoo.words import BOS

__all__ = ["SHARP", "Compiled", "Placed", "compile_program"]

SHARP = 60.0
"""Score of a selected key; a default is half as high, so that what is not selected weighs exp(-30) or less."""

AtBos = Literal["zero", "same", "varies"]
_ORDER = {"zero": 0, "same": 1, "varies": 2}


@dataclass(frozen=True)
class Placed:
    """Where a variable lives.

    site: what writes it ("embed", "L0H1.z", "L0.mlp_out"); coordinates of the unrotated stream, one per value, or one for a
    number. at_bos: what stands there at BOS ("zero", the "same" for every input, or it "varies").
    """

    name: str
    meaning: str
    kind: str
    site: str
    values: tuple[Value, ...]
    coordinates: tuple[int, ...]
    at_bos: AtBos = "zero"

    def at(self, value: Value) -> int:
        """The coordinate of a categorical value."""
        return self.coordinates[self.values.index(value)]


@dataclass(frozen=True)
class Compiled:
    """Weights, where each variable lives, and the vocabulary (BOS, input tokens, then tokens that are only put out)."""

    program: Program
    spec: Spec
    variables: tuple[Placed, ...]
    words: tuple[str, ...]

    @property
    def output(self) -> Placed:
        """The variable that the logits show."""
        return next(v for v in self.variables if v.name == self.program.output.name)


def compile_program(program: Program) -> Compiled:
    """Weights that run the program exactly on its domain.

    Raises
    ------
    ModelError: the program reads at BOS something that depends on the input, or its output is one of its inputs.
    """
    return _Compiler(program).run()


class _Compiler:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.ops = nodes(program.output)
        self.stage: dict[str, int] = {}
        self.values = _value_sets(program, self.ops)
        self.placed: dict[str, Placed] = {}
        self.shares: dict[str, Placed] = {}
        self.d = 0
        self.bos = self._take(1)[0]
        for op in self.ops:
            self.stage[op.name] = _stage(op, self.stage)
        self.blocks = [Block(origin=i) for i in range(max(self.stage.values()) // 2 + 1)]

    def run(self) -> Compiled:
        self._place()
        words = (BOS, *self.program.vocab, *self._only_output())
        tokens = np.zeros((len(words), self.d))
        tokens[0, self.bos] = 1
        for k, word in enumerate(words[1:], 1):
            if "tokens" in self.placed and word in self.program.vocab:
                tokens[k, self.placed["tokens"].at(word)] = 1
        positions = None
        if "indices" in self.placed:
            positions = np.zeros((self.program.length + 1, self.d))
            for i in range(self.program.length):
                positions[i + 1, self.placed["indices"].at(i)] = 1
        unembed = np.zeros((self.d, len(words)))
        out = self.placed[self.program.output.name]
        for value, coordinate in zip(out.values, out.coordinates, strict=False):
            unembed[coordinate, words.index(NUMBER if out.kind == "numerical" else str(value))] = 1
        self.spec = Spec(
            tokens, positions, self.blocks, unembed, self.program.length + 1, self.program.causal, SHARP
        )
        for stage in range(2 * len(self.blocks)):
            for op in self.ops:
                self._write(op, stage)
        variables = [v for op in self.ops for v in (self.shares.get(op.name), self.placed[op.name]) if v]
        return Compiled(self.program, self.spec, tuple(variables), words)

    # ---- places --------------------------------------------------------------------------------
    def _take(self, n: int) -> tuple[int, ...]:
        self.d += n
        return tuple(range(self.d - n, self.d))

    def _place(self) -> None:
        heads = [0] * len(self.blocks)
        for op in self.ops:
            layer = self.stage[op.name] // 2
            values = self.values[op.name]
            n = len(values) if op.kind == "categorical" else 1
            site = "embed" if isinstance(op, Tokens | Indices) else f"L{layer}.mlp_out"
            at_bos = self._at_bos(op)
            if isinstance(op, Aggregate | Width):
                head = f"L{layer}H{heads[layer]}.z"
                heads[layer] += 1
                if isinstance(op, Aggregate):
                    site = head
                else:
                    shares = tuple(sorted(Fraction(1, 1 + k) for k in range(self.program.length + 1)))
                    self.shares[op.name] = Placed(
                        f"{op.name}.share", f"1 / (1 + {op.name}), the attention that BOS gets", "numerical", head, shares,
                        self._take(1), at_bos,
                    )  # fmt: skip
            self.placed[op.name] = Placed(op.name, op.meaning, op.kind, site, values, self._take(n), at_bos)

    def _at_bos(self, op: SOp) -> AtBos:
        """Causal attention at BOS sees BOS alone; else a head does so at BOS only if it gives BOS a score and queries are 0."""
        states = [self.placed[part.name].at_bos for part in op.inputs]
        match op:
            case Tokens() | Indices():
                return "zero"
            case Zip():
                return "zero" if "zero" in states else _worst(states)
            case Map():
                return "same" if states == ["zero"] and op.of.kind == "numerical" else states[0]
            case Linear():
                return _worst(states)
        if self.program.causal:
            return "same"
        select: Select = op.select  # type: ignore[attr-defined]
        looks = select.keys is not None and (isinstance(op, Width) or op.default is not None)  # type: ignore[attr-defined]
        quiet = select.queries is None or self.placed[select.queries.name].at_bos == "zero"
        return "same" if looks and quiet else "varies"

    def _only_output(self) -> list[str]:
        out = self.placed[self.program.output.name]
        if out.site == "embed":
            raise ModelError(
                f"{self.program.name} puts out its own input", instead="use a program that computes something"
            )
        own = [NUMBER] if out.kind == "numerical" else [str(v) for v in out.values]
        return [w for w in own if w not in self.program.vocab]

    # ---- weights -------------------------------------------------------------------------------
    def _write(self, op: SOp, stage: int) -> None:
        block = self.blocks[stage // 2]
        if isinstance(op, Aggregate) and self.stage[op.name] == stage:
            block.heads.append(replace(self._aggregate(op), origin=self.placed[op.name].site))
        elif isinstance(op, Width) and self.stage[op.name] - 1 == stage:
            block.heads.append(replace(self._width(op), origin=self.shares[op.name].site))
        elif isinstance(op, Width) and self.stage[op.name] == stage:
            share = self.shares[op.name]
            # no share at all is no count, so that a share that is cut away does not pass for the largest count
            counts = [(Fraction(0), None), *((v, int(1 / v - 1)) for v in share.values)]
            block.neurons.append(self._steps(share, self.placed[op.name], counts))
        elif isinstance(op, Map | Zip | Linear) and self.stage[op.name] == stage:
            block.neurons.append(self._neurons(op))

    def _stray(self, var: Placed) -> Array:
        """What stands at BOS in a variable's coordinates, where a head would take it for a value. [coordinate]."""
        if var.at_bos == "zero":
            return np.zeros(len(var.coordinates))
        if var.at_bos == "varies":
            raise ModelError(
                f"{self.program.name} would read {var.name} at BOS",
                why="what stands there depends on the input, so that it cannot be taken back",
                instead="give the aggregate before it a default, which fixes where BOS looks",
            )
        x: Array = self.spec.tokens[0] + (0 if self.spec.positions is None else self.spec.positions[0])
        for block in self.blocks:
            for head in block.heads:
                x = x + x @ head.v @ head.out
            before = x
            for part in block.neurons:
                x = x + np.maximum(before @ part.into + part.bias, 0) @ part.out + part.out_bias
        found: Array = x[list(var.coordinates)]
        return found

    def _scores(self, select: Select, bos: float) -> tuple[Array, Array, Array]:
        """(q [d, e], q bias [e], k [d, e]): 1 for a selected key, 0 for others, `bos` for BOS; the last of e asks without a query."""
        queries = self.placed[select.queries.name] if select.queries is not None else None
        asked = queries.values if queries is not None else ()
        q, bias, k = (
            np.zeros(s) for s in ((self.d, len(asked) + 1), len(asked) + 1, (self.d, len(asked) + 1))
        )
        if queries is not None:
            q[list(queries.coordinates), range(len(asked))] = 1
        if select.keys is not None:
            keys = self.placed[select.keys.name]
            chosen = np.array(
                [[select.predicate(v, a) for a in asked] + [not asked and select.predicate(v)] for v in keys.values],
                dtype=float,
            )  # fmt: skip
            k[list(keys.coordinates)] = chosen
            k[self.bos] -= self._stray(keys) @ chosen
            bias[-1] = float(queries is None)
        if bos:
            bias[-1] = 1.0
            k[self.bos, -1] += bos
        used = (np.abs(k).sum(0) > 0) & ((np.abs(q).sum(0) > 0) | (bias != 0))
        used[-1] |= not used.any()  # a head has at least one dimension
        return q[:, used], bias[used], k[:, used]

    def _aggregate(self, op: Aggregate) -> Head:
        alone = op.default is not None
        if op.select.keys is None:
            q, bias, k = self._scores(op.select, -1.0)
        else:
            q, bias, k = self._scores(op.select, 0.5 if alone else 0.0)
        source, target = self.placed[op.values.name], self.placed[op.name]
        n = len(target.coordinates)
        v, out = np.zeros((self.d, n)), np.zeros((n, self.d))
        out[range(n), list(target.coordinates)] = 1
        if op.kind == "numerical":
            v[source.coordinates[0], 0] = 1
        else:
            for value, coordinate in zip(source.values, source.coordinates, strict=True):
                v[coordinate, target.values.index(value)] = 1
        if alone:
            stray = v[list(source.coordinates)].T @ self._stray(source)
            own = (
                np.array([float(op.default)])
                if op.kind == "numerical"
                else np.array([float(x == op.default) for x in target.values])
            )
            v[self.bos] += own - stray
        return _head(q, bias, k, v, out)

    def _width(self, op: Width) -> Head:
        everything = op.select.keys is None
        q, bias, k = self._scores(op.select, 0.0 if everything else 1.0)
        v, out = np.zeros((self.d, 1)), np.zeros((1, self.d))
        v[self.bos, 0] = 1
        out[0, self.shares[op.name].coordinates[0]] = 1
        return _head(q, bias, k, v, out)

    def _neurons(self, op: Map | Zip | Linear) -> Neurons:
        target = self.placed[op.name]
        if isinstance(op, Linear):
            a, b = self.placed[op.a.name].coordinates[0], self.placed[op.b.name].coordinates[0]
            made = self._blank(2)
            made.into[[a, b], 0] = op.weight_a, op.weight_b
            made.into[:, 1] = -made.into[:, 0]
            made.out[:, target.coordinates[0]] = 1, -1
            return made
        if isinstance(op, Zip):
            first, second = self.placed[op.a.name], self.placed[op.b.name]
            rows: list[tuple[tuple[int, ...], Value]] = [
                ((i, j), op.fn(a, b))
                for a, i in zip(first.values, first.coordinates, strict=True)
                for b, j in zip(second.values, second.coordinates, strict=True)
            ]
            return self._lookup(rows, target, -1.0)
        source = self.placed[op.of.name]
        results = [op.fn(v) for v in source.values]
        if source.kind == "numerical":
            return self._steps(source, target, list(zip(source.values, results, strict=True)))
        rows = [((i,), result) for i, result in zip(source.coordinates, results, strict=True)]
        return self._lookup(rows, target, 0.0)

    def _blank(self, n: int) -> Neurons:
        return Neurons(np.zeros((self.d, n)), np.zeros(n), np.zeros((n, self.d)), np.zeros(self.d))

    def _lookup(self, rows: list[tuple[tuple[int, ...], Value]], target: Placed, bias: float) -> Neurons:
        """A neuron per combination of one-hot values that writes something."""
        rows = [(where, to) for where, to in rows if self._code(target, to).any()]
        made = self._blank(len(rows))
        made.bias[:] = bias
        for n, (where, to) in enumerate(rows):
            made.into[list(where), n] = 1
            made.out[n] = self._code(target, to)
        return made

    def _steps(self, source: Placed, target: Placed, table: Sequence[tuple[Fraction, Value]]) -> Neurons:
        """A staircase: two neurons per step of f between neighbouring values, 0 below and 1 above."""
        values = [number for number, _ in table]
        codes = [self._code(target, result) for _, result in table]
        steps = [k for k in range(len(values) - 1) if (codes[k] != codes[k + 1]).any()]
        made = self._blank(2 * len(steps))
        made.out_bias[:] = codes[0]
        for n, k in enumerate(steps):
            slope = float(2 / (values[k + 1] - values[k]))
            middle = float((values[k + 1] + values[k]) / 2)
            pair = slice(2 * n, 2 * n + 2)
            made.into[source.coordinates[0], pair] = slope
            made.bias[pair] = -slope * middle + 0.5, -slope * middle - 0.5
            made.out[2 * n] = codes[k + 1] - codes[k]
            made.out[2 * n + 1] = -made.out[2 * n]
        return made

    def _code(self, target: Placed, value: Value) -> Array:
        out = np.zeros(self.d)
        if value is None:
            return out
        if target.kind == "numerical":
            out[target.coordinates[0]] = float(value)
        else:
            out[target.at(value)] = 1
        return out


def _head(q: Array, bias: Array, k: Array, v: Array, out: Array) -> Head:
    """Queries and keys or values are filled up to one width."""
    width = max(q.shape[1], v.shape[1])

    def fill(x: Array, axis: int) -> Array:
        more = width - x.shape[axis]
        return np.pad(x, [(0, more if a == axis else 0) for a in range(x.ndim)])

    return Head(fill(q, 1), fill(bias, 0), fill(k, 1), fill(v, 1), fill(out, 0))


def _worst(states: Sequence[AtBos]) -> AtBos:
    return max(states, key=_ORDER.__getitem__)


def _stage(op: SOp, known: dict[str, int]) -> int:
    """Attention of layer l is 2 l, its MLP 2 l + 1; an operator stands as early as what it reads allows."""
    if isinstance(op, Tokens | Indices):
        return -1
    first = max((known[part.name] for part in op.inputs), default=-1) + 1
    if isinstance(op, Aggregate | Width):
        first += first % 2
        return first + isinstance(op, Width)
    return first + 1 - first % 2


def _value_sets(program: Program, ops: Sequence[SOp]) -> dict[str, tuple[Value, ...]]:
    """Values of each operator: categories that can be written; numbers that occur in the domain, in order."""
    numbers: dict[str, set[Fraction]] = {op.name: set() for op in ops if op.kind == "numerical"}
    if numbers:
        for found in program.runs:
            for name, seen in numbers.items():
                seen.update(Fraction(v) for v in found[name])
    out: dict[str, tuple[Value, ...]] = {}
    for op in ops:
        out[op.name] = (
            tuple(sorted(numbers[op.name])) if op.name in numbers else _categories(op, program, out)
        )
    return out


def _categories(op: SOp, program: Program, known: dict[str, tuple[Value, ...]]) -> tuple[Value, ...]:
    match op:
        case Tokens():
            return program.vocab
        case Indices():
            return tuple(range(program.length))
        case Width():
            return tuple(range(program.length + 1))
        case Map():
            found = [op.fn(v) for v in known[op.of.name]]
        case Zip():
            found = [op.fn(a, b) for a in known[op.a.name] for b in known[op.b.name]]
        case Aggregate():
            found = [*known[op.values.name], op.default]
        case _:
            raise ModelError(f"{op.name} has no categories", why=f"it is a {type(op).__name__}")
    return tuple(dict.fromkeys(v for v in found if v is not None))
