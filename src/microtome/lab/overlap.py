"""Do two sets of addresses speak of the same part of the model?

Asked before a prediction is accepted: an earlier look at the same part makes it post hoc. So the answer leans to one
side, on purpose: where it is not known whether two addresses share a part, they share it. What counts is the
component, not the point of it that was read, nor the position:

| address | part |
|---|---|
| an attention point of a head (`q`, `pattern`, `z`, `head_out`, `q_scale`, ...) | that head |
| of a key/value head (`L9KV2.k`) | that key/value head, which may serve any head of its layer (`heads_per_kv` says which) |
| an attention point without a head, `attn_raw`, `attn_out`, `ln1_post_scale` | all heads of that layer |
| `mlp_pre`, `mlp_gate`, `neurons` of one neuron | that neuron, a part of its layer's MLP |
| any other MLP point, `ln2_post_scale` | that layer's MLP, with all its neurons |
| `resid_pre`, `resid_post` | the stream at that boundary between layers: `L5.resid_post` is `L6.resid_pre` |
| `embed`, `tok_embed`, `pos_embed` | the stream before layer 0, which is `L0.resid_pre` |
| `resid_mid` | a boundary of its own |
| `ln1_out`, `ln1_scale` | the stream that they read, and the attention that reads them: both |
| `ln2_out`, `ln2_scale` | the MLP and `resid_mid`, and `resid_pre`, which they read in parallel blocks |
| `final_resid`, `final_norm_out`, `final_scale` | the stream after the last layer; which one that is, `n_layers` says |
| `logits` | the output |
| `L5F77.my_sae` | that feature; as only its file says what it reads, anything else in its layer too, but no other feature of it |
| `A->B` | both ends |

A stream is no component: `L5.resid_post` does not overlap `L5H3.z`. `L*` is every layer, however many there are. **No
addresses at all means that they are not known, and overlaps everything.** To say that only the output was seen, say
`logits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import SiteError
from ..sites import Edge, Several, Site, parse

if TYPE_CHECKING:
    from ..points import Point

__all__ = ["Parts", "addresses", "overlap", "parts"]

_END = 1 << 62  # the end of "all": larger than any layer, head, neuron or feature
_ALL = ((0, _END),)
_ARROW = re.compile(r"(?<!<)->")
# what direct logit attribution calls the constant terms that belong to no head, as the points that hold them
_RESTS = {"attn_bias": "attn_raw", "final_bias": "final_norm_out"}
_HEAD, _KV, _MLP, _FEATURE, _STREAM, _MID, _FINAL, _LOGITS = (
    "head", "key/value head", "mlp", "feature", "stream", "mid", "final", "logits",
)  # fmt: skip
_ORDER = (_STREAM, _HEAD, _KV, _MID, _MLP, _FEATURE, _FINAL, _LOGITS)

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges, sorted, with a gap between any two."""


@dataclass(frozen=True)
class Area:
    """The same units in each of some layers in a row.

    kind: what a unit is. layers: a half-open range (of boundaries for "stream": b lies before layer b). units: which
    heads, neurons or features. name: of the dictionary.
    """

    kind: str
    layers: tuple[int, int]
    units: Ranges = _ALL
    name: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The area as a reader writes it, one text per run of units: `L0:12H3`, `L5 MLP`, `L4.resid_post`."""
        layers = _several(self.layers)
        if self.kind == _STREAM:
            low, high = self.layers
            first = ("embed",) if low == 0 else ()
            low, high = max(low, 1) - 1, high if high == _END else high - 1
            return first + ((f"L{_several((low, high))}.resid_post",) if high > low else ())
        if self.kind == _MID:
            return (f"L{layers}.resid_mid",)
        if self.kind in (_FINAL, _LOGITS):
            return ("final_resid" if self.kind == _FINAL else "logits",)
        if self.kind == _MLP and self.units == _ALL:
            return (f"L{layers} MLP",)
        letter = {_HEAD: "H", _KV: "KV", _MLP: "N", _FEATURE: "F"}[self.kind]
        name = f".{self.name}" if self.name else ""
        return tuple(f"L{layers}{letter}{_several(run)}{name}" for run in self.units)


@dataclass(frozen=True)
class Parts:
    """The parts of a model that some addresses speak of; equal when they speak of the same.

    unknown: there were no addresses.
    """

    areas: tuple[Area, ...]
    unknown: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The parts as a reader writes them."""
        return ("not known",) if self.unknown else tuple(word for area in self.areas for word in area.words)


def parts(
    given: str | Site | Edge | Iterable[str | Site | Edge],
    *,
    n_layers: int | None = None,
    heads_per_kv: int | None = None,
) -> Parts:
    """The parts that one or several addresses speak of (the table is in the module's head).

    Parameters
    ----------
    given: addresses, edges, and what direct logit attribution calls `L5.attn_bias` and `final_bias`. None at all: not
        known.
    n_layers, heads_per_kv: where the model is known, its number of layers and of query heads per key/value head; they
        only ever take overlaps away.

    Raises
    ------
    SiteError: not an address, one whose point has no such axis (`L5N3.z`), or a layer beyond `n_layers`.
    """
    many = [given] if isinstance(given, str | Site | Edge) else list(given)
    found: set[Area] = set()  # the same address at many positions is one part
    for one in many:
        text = one if isinstance(one, str) else str(one if isinstance(one, Edge) else parse(one))
        found.update(_of(text, n_layers, heads_per_kv))
    return Parts(_canonical(found), unknown=not many)


def overlap(one: Parts, other: Parts) -> tuple[str, ...]:
    """The parts that both speak of, readable; () where there are none. The same in either order.

    Where only the possibility is known, the text names both: "L9H6 and L9KV2".
    """
    if one.unknown or other.unknown:
        return ("any part (on one side the sites are not known)",)
    same: list[Area] = []
    across: list[tuple[Area, Area]] = []
    for a in one.areas:
        for b in other.areas:
            if a.kind == b.kind and a.name == b.name:
                same += _common(a, b)
            else:
                across += _maybe(*sorted((a, b), key=_rank))
    texts = [word for area in _canonical(same) for word in area.words]
    for a, b in sorted(set(across), key=lambda pair: (_rank(pair[0]), _rank(pair[1]))):
        texts.append(f"{', '.join(a.words)} and {', '.join(b.words)}")
    return tuple(dict.fromkeys(texts))


def addresses(labels: Iterable[object]) -> tuple[str, ...]:
    """Those of a result's labels that `parts` can read, each once: results also label cells "set of 5" or "resampled"."""
    kept: dict[str, None] = {}
    for label in labels:
        if isinstance(label, str) and _readable(label):
            kept[label] = None
    return tuple(kept)


def _readable(label: str) -> bool:
    try:
        parts(label)
    except SiteError:
        return False
    return True


@lru_cache(maxsize=1 << 15)  # a lab asks for the same few thousand addresses, run after run
def _of(given: str, n_layers: int | None, heads_per_kv: int | None) -> tuple[Area, ...]:
    found: list[Area] = []
    for end in _ARROW.split(given):
        where, dot, name = end.strip().rpartition(".")
        found += _areas(parse(f"{where}{dot}{_RESTS.get(name, name)}"), n_layers, heads_per_kv)
    return tuple(found)


def _areas(site: Site, n_layers: int | None, heads_per_kv: int | None) -> list[Area]:
    row, name = site.row, site.point
    if name == "logits":
        return [Area(_LOGITS, (0, 1))]
    if site.layer is None:
        return [_last(n_layers) if name.startswith("final_") else Area(_STREAM, (0, 1))]
    units = _ALL if site.index is None else _ranges(site.index)
    there = ((0, n_layers),) if n_layers is not None and site.layer == Several("all") else _ranges(site.layer)
    if n_layers is not None and there[-1][1] > n_layers:
        raise SiteError(f"{site}: there is no layer {there[-1][1] - 1}", why=f"this model has {n_layers}", instead=f"use 0 to {n_layers - 1}")  # fmt: skip
    return [area for layers in there for area in _in_layers(site, row, layers, units, heads_per_kv)]


def _last(n_layers: int | None) -> Area:
    return Area(_FINAL, (0, 1)) if n_layers is None else Area(_STREAM, (n_layers, n_layers + 1))


def _in_layers(
    site: Site, row: Point | None, layers: tuple[int, int], units: Ranges, heads_per_kv: int | None
) -> list[Area]:
    if row is None:
        return [Area(_FEATURE, layers, units, site.point)]
    low, high = layers
    after = (low + 1, high if high == _END else high + 1)
    stream = {
        "resid_pre": Area(_STREAM, layers),
        "resid_post": Area(_STREAM, after),
        "resid_mid": Area(_MID, layers),
    }
    if row.name in stream:
        return [stream[row.name]]
    if row.name in ("ln1_out", "ln1_scale"):
        return [stream["resid_pre"], Area(_HEAD, layers)]
    if row.name in ("ln2_out", "ln2_scale"):
        return [stream["resid_pre"], stream["resid_mid"], Area(_MLP, layers)]
    if not site.unit:
        in_mlp = row.group == "MLP" or row.name == "ln2_post_scale"
        return [Area(_MLP if in_mlp else _HEAD, layers)]
    of_heads = bool(row.letters) and {site.unit, *row.letters} <= {"H", "KV"}  # the other letter: no groups
    if site.unit not in row.letters and not of_heads:
        raise SiteError(
            f"{site}: {row.name} has no {site.unit} axis",
            why=f"its axes are {', '.join(row.axes)}",
            instead=f"for example {site.whole}",
        )
    if site.unit == "KV" and heads_per_kv is not None:
        return [Area(_HEAD, layers, tuple((a * heads_per_kv, min(b * heads_per_kv, _END)) for a, b in units))]
    return [Area({"H": _HEAD, "KV": _KV, "N": _MLP}[site.unit], layers, units)]


def _common(a: Area, b: Area) -> list[Area]:
    """What two areas of one kind share."""
    layers, units = _cut(a.layers, b.layers), _both(a.units, b.units)
    return [Area(a.kind, layers, units, a.name)] if layers and units else []


def _maybe(a: Area, b: Area) -> list[tuple[Area, Area]]:
    """Two areas of different kinds (a before b in the order of kinds) that may be of one part, narrowed to where."""
    kinds = (a.kind, b.kind)
    layers = _cut(a.layers, b.layers)
    if kinds == (_STREAM, _FINAL):  # any boundary but the first may be the last
        after = _cut(a.layers, (1, _END))
        return [(Area(_STREAM, after), b)] if after else []
    if kinds == (_FEATURE, _FINAL):
        return [(a, b)]
    if kinds == (_STREAM, _FEATURE):
        low, high = b.layers
        beside = _cut(a.layers, (low, high if high == _END else high + 1))
        return [(Area(_STREAM, beside), b)] if beside else []
    pairs = {(_HEAD, _KV), (_HEAD, _FEATURE), (_KV, _FEATURE), (_MID, _FEATURE), (_MLP, _FEATURE), (_FEATURE,) * 2}  # fmt: skip
    if kinds not in pairs or not layers:
        return []
    return [(Area(a.kind, layers, a.units, a.name), Area(b.kind, layers, b.units, b.name))]


def _rank(area: Area) -> tuple[int, str, tuple[int, int], Ranges]:
    return _ORDER.index(area.kind), area.name, area.layers, area.units


def _canonical(found: Iterable[Area]) -> tuple[Area, ...]:
    """The same parts as areas that do not overlap, as few and as long as can be, in a fixed order."""
    by_kind: dict[tuple[str, str], dict[tuple[int, int], list[tuple[int, int]]]] = {}
    for area in found:
        by_kind.setdefault((area.kind, area.name), {}).setdefault(area.layers, []).extend(area.units)
    made: list[Area] = []
    for (kind, name), by_layers in by_kind.items():
        joined = {layers: _union(units) for layers, units in by_layers.items()}
        ends = sorted({end for layers in joined for end in layers})
        last: Area | None = None
        for low, high in zip(ends, ends[1:], strict=False):
            inside = [units for (a, b), units in joined.items() if a <= low and high <= b]
            units = _union([run for runs in inside for run in runs])
            if last is not None and last.layers[1] == low and last.units == units:
                last = Area(kind, (last.layers[0], high), units, name)
                made[-1] = last
            elif units:
                last = Area(kind, (low, high), units, name)
                made.append(last)
    return tuple(sorted(made, key=_rank))


def _ranges(chosen: int | Several) -> Ranges:
    if isinstance(chosen, int):
        return ((chosen, chosen + 1),)
    if chosen.kind == "all":
        return _ALL
    if chosen.kind == "range":
        return ((chosen.values[0], chosen.values[1]),)
    return _union([(value, value + 1) for value in chosen.values])


def _union(runs: Iterable[tuple[int, int]]) -> Ranges:
    made: list[tuple[int, int]] = []
    for low, high in sorted(runs):
        if made and low <= made[-1][1]:
            made[-1] = (made[-1][0], max(high, made[-1][1]))
        else:
            made.append((low, high))
    return tuple(made)


def _cut(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int] | None:
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low < high else None


def _both(a: Ranges, b: Ranges) -> Ranges:
    return _union([run for x in a for y in b if (run := _cut(x, y)) is not None])


def _several(run: tuple[int, int]) -> str:
    low, high = run
    if run == (0, _END):
        return "*"
    return str(low) if high == low + 1 else f"{low}:{'' if high == _END else high}"
