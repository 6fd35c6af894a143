"""Checks of the inside: what is read (identities on a plain run) and what is written (on a run of single edits)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.certificate.bench import RUNTIME, Bench, line, points_of, sites_of
from microtome.certificate.identities import (
    LAYER_IDENTITIES,
    STREAM_IDENTITIES,
    Identity,
    Pair,
    View,
    activation,
    pair,
)
from microtome.points import POINTS
from microtome.trace.edits import Edit
from microtome.trace.trace import Trace

_BUDGET = 2**28
"""Bytes of captures held at once; layers are read in groups below it."""

_STREAM = ("embed", "final_resid", "final_norm_out", "logits")


def check_calls(bench: Bench) -> None:
    """Each tapped module runs once per forward and belongs to one layer, else a capture would keep the last call only."""
    binding, calls, handles = bench.binding, {}, []
    owner: dict[str, list[tuple[str, int | None]]] = {}
    for layer in (None, *range(len(binding.slots))):
        for point in points_of(binding, layer):
            path = binding.tap(point, layer).module
            owner.setdefault(path, []).append((point, layer))
    try:
        for path in owner:
            module, calls[path] = binding.module(path), 0
            handles.append(module.register_forward_pre_hook(_counter(calls, path)))
        bench.run(bench.ids[:1])
    finally:
        for handle in handles:
            handle.remove()
    for path, points in owner.items():
        off = abs(calls[path] - 1)
        for point, layer in points:
            if not bench.note("calls", off, _name(point, layer), 0):
                bench.fail(
                    point,
                    layer,
                    f"its module {path or type(binding.hf).__name__} runs {calls[path]} times in one forward",
                )


def _counter(calls: dict[str, int], path: str) -> Any:
    def count(module: object, args: object) -> None:
        calls[path] += 1

    return count


def check_captures(bench: Bench) -> None:
    """Every point that the model is said to have is seen in a run, with the axes of the table. Traces are kept for the
    identities."""
    binding, rows = bench.binding, bench.ids
    layers: list[int | None] = [None, *range(len(binding.slots))]
    sites = {(p, i): _name(p, i) for i in layers for p in points_of(binding, i)}
    seen = _seen(bench, sites)
    for (point, layer), site in sites.items():
        value = seen.get(site)
        if isinstance(value, tuple):
            expected = _shape(bench, point, layer, len(rows), len(rows[0]))
            reason = "" if value == expected else f"its tensor has shape {value}, the table says {expected}"
        else:
            reason = str(value)
        if not bench.note("captures", 1 if reason else 0, site, 0):
            bench.fail(point, layer, reason)


def _seen(bench: Bench, sites: dict[tuple[str, int | None], str]) -> dict[str, tuple[int, ...] | str]:
    """The shape of each point in groups of layers, and one by one where that fails, to find the one at fault."""
    layers = list(range(len(bench.binding.slots)))
    try:
        shapes: dict[str, tuple[int, ...] | str] = {}
        while layers:
            group, layers = _group(bench, layers)
            wanted = [s for (_, i), s in sites.items() if i in group or (i is None and not layers)]
            trace = bench.run(bench.ids, wanted)
            shapes |= {s: tuple(trace[s].shape) for s in wanted}
        return shapes
    except RUNTIME:
        shapes = {}
        for site in sites.values():
            try:
                shapes[site] = tuple(bench.run(bench.ids, [site])[site].shape)
            except RUNTIME as error:
                shapes[site] = f"it cannot be read: {line(error)}"
        return shapes


def _shape(bench: Bench, point: str, layer: int | None, n: int, length: int) -> tuple[int, ...]:
    facts = bench.binding.facts
    sizes = {
        "prompt": n,
        "pos": length,
        "query": length,
        "key": length,
        "one": 1,
        "d_model": facts.d_model,
        "d_vocab": facts.d_vocab,
    }
    if layer is not None:
        f = facts.layers[layer]
        value = f.d_value if point in ("v", "z") else f.d_head
        sizes |= {"head": f.n_heads, "kv_head": f.n_kv_heads, "d_head": value, "neuron": f.d_mlp}
    return tuple(sizes[axis] for axis in POINTS[point].axes)


def check_reads(bench: Bench) -> None:
    """All identities of all layers on a plain run; what fails is withdrawn with the identity as the reason."""
    binding = bench.binding
    layers = list(range(len(binding.slots)))
    while layers:
        group, layers = _group(bench, layers)
        sites = [s for i in group for s in sites_of(points_of(binding, i), i)]
        sites += [f"L{group[0] - 1}.resid_post"] if group[0] else []
        stream = points_of(binding, None) if not layers else ["embed"]
        trace = bench.run(bench.ids, [*sites, *stream])
        bench.read_logits.append((trace.numerics["attention"], trace.logits))
        for layer in group:
            for identity in LAYER_IDENTITIES:
                _compare(bench, identity, View(binding, trace, layer))
        if not layers:
            for identity in STREAM_IDENTITIES:
                _compare(bench, identity, View(binding, trace, None))
            _total(bench, trace)


def _group(bench: Bench, layers: list[int]) -> tuple[list[int], list[int]]:
    """The first layers whose captures fit the budget, and the rest."""
    tokens = sum(map(len, bench.ids))
    f = bench.binding.facts
    one = 4 * tokens * max(
        layer.n_heads * f.d_model + 12 * f.d_model + 4 * layer.d_mlp for layer in f.layers
    )  # fmt: skip
    fit = max(1, _BUDGET // max(one, 1))
    return layers[:fit], layers[fit:]


def _compare(bench: Bench, identity: Identity, view: View) -> Pair | None:
    if not view.has(*identity.needs) or not _applies(bench, identity, view):
        return None
    found = identity.fn(view)
    if found is None:
        return None
    error = float(found.errors().max())
    where = identity.needs[-1] if identity.needs else identity.concerns[0]
    if not bench.note(
        identity.name, error, _name(where, view.layer if POINTS[where].scope == "layer" else None)
    ):
        reason = f'the identity "{identity.name}" does not hold between {", ".join(identity.needs or identity.concerns)}'
        for point in identity.concerns:
            scope = POINTS[point].scope
            if view.has(point):
                bench.fail(point, view.layer if scope == "layer" else None, reason)
        if not identity.concerns:
            bench.fail("resid_pre", view.layer, reason)
    return found


def _applies(bench: Bench, identity: Identity, view: View) -> bool:
    return identity.name != "residual sum" or not bench.binding.family.not_additive(bench.binding.config)


def _total(bench: Bench, trace: Trace) -> None:
    """embed plus everything that is added is what enters the final norm (held in one group only, else skipped)."""
    binding = bench.binding
    if not binding.facts.additive or binding.lacking("final_resid", None) is not None:
        return
    parts = ["embed"]
    for i, slots in enumerate(binding.slots):
        wanted = ["attn_out"] + (["mlp_out"] if slots.mlp_kind != "none" else [])
        if any(binding.lacking(p, i) is not None for p in wanted):
            return
        parts += [f"L{i}.{p}" for p in wanted]
    if not all(p in trace for p in parts):
        return
    values = [trace[p].double() for p in parts]
    found = pair(trace["final_resid"].double(), sum(values, torch.zeros_like(values[0])), *values)
    bench.note("total", float(found.errors().max()), "final_resid")


def check_writes(bench: Bench) -> None:
    """In one batch of copies of a prompt each row edits one point of a layer. The row must change the output, leave the
    other rows alone, and satisfy every identity downstream of its edit."""
    for layer, same in kinds(bench).items():
        points = [p for p in points_of(bench.binding, layer) if POINTS[p].writable]
        trace, row_of = _edited(bench, layer, points)
        if trace is not None:
            _effects(bench, trace, row_of, layer, same)
            _edited_identities(bench, trace, row_of, layer, same)
    stream = points_of(bench.binding, None)
    trace, row_of = _edited(bench, None, stream)
    if trace is not None:
        _effects(bench, trace, row_of, None, [None])


def kinds(bench: Bench) -> dict[int, list[int]]:
    """The first layer of each make, and the last layer: layer -> the layers that it speaks for."""
    groups: dict[tuple[object, ...], list[int]] = {}
    slots = bench.binding.slots
    for i, s in enumerate(slots):
        lacks = frozenset(bench.binding.facts.layers[i].lacks)
        groups.setdefault((s.kind, s.mlp_kind, s.style, s.window, s.block.rotates, lacks), []).append(i)
    out = {members[0]: members for members in groups.values()}
    out.setdefault(len(slots) - 1, [len(slots) - 1])
    return out


def _edited(bench: Bench, layer: int | None, points: list[str]) -> tuple[Trace | None, dict[str, int]]:
    """A trace whose first and last rows are unedited and in which row i edits points[i - 1]."""
    binding = bench.binding
    prompt = bench.ids[0]
    sites = sites_of(points, layer)
    captures = [s for p in sites for s in (p, f"{p}!before")]
    if layer is not None:
        captures += [f"L{layer - 1}.resid_post" if layer else "embed"]
        captures += [f"L{layer + 1}.resid_pre"] if layer + 1 < len(binding.slots) else []
    edits: list[list[Edit]] = [[], *([_edit(p, s)] for p, s in zip(points, sites, strict=True)), []]
    try:
        return bench.run([prompt] * len(edits), captures, edits), {p: i + 1 for i, p in enumerate(points)}
    except RUNTIME:
        for point, site in zip(points, sites, strict=True):
            try:
                bench.run([prompt], [], [_edit(point, site)])
            except RUNTIME as error:
                bench.note("writes", 1, _name(point, layer), 0)
                bench.fail(point, layer, f"it cannot be edited: {line(error)}")
        return None, {}


def _edit(point: str, site: str) -> Edit:
    return Edit(site, _tilted if POINTS[point].square else _rolled)


def _tilted(x: Tensor) -> Tensor:
    """Each key by its own factor: what the mask hides stays hidden, so nothing may be moved between keys."""
    return x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype, device=x.device)


def _rolled(x: Tensor) -> Tensor:
    """Never neutral: values move by one along the last axis; a lone divisor changes by another factor at each place (a
    common one would be taken back by a norm further on)."""
    if x.shape[-1] > 1:
        return x.roll(1, -1)
    factors = torch.linspace(0.8, 1.6, len(x), dtype=x.dtype, device=x.device)
    return x * factors.view(-1, *[1] * (x.dim() - 1))


def _effects(
    bench: Bench, trace: Trace, row_of: dict[str, int], layer: int | None, same: Sequence[int | None]
) -> None:
    logits = trace.logits.double()
    still = 2 * float((logits[-1] - logits[0]).abs().max())
    for point, place in row_of.items():
        moved = float((logits[place] - logits[0]).abs().max())
        good = moved > still
        if not bench.note("writes", 0 if good else 1, _name(point, layer), 0):
            for one in same:
                bench.fail(point, one, "editing it moves no logit")


def _edited_identities(
    bench: Bench, trace: Trace, row_of: dict[str, int], layer: int, same: Sequence[int]
) -> None:
    binding = bench.binding
    view = View(binding, trace, layer, edited=True)
    after = View(binding, trace, layer + 1) if layer + 1 < len(binding.slots) else None
    pairs: list[tuple[Identity | None, Pair | None]] = []
    for identity in LAYER_IDENTITIES:
        if identity.name == "stream" or not view.has(*identity.needs) or not _applies(bench, identity, view):
            continue
        pairs.append((identity, identity.fn(view)))
    pairs.append((None, activation(view, 0, row_of)))
    if after is not None:
        pairs.append((None, pair(after("resid_pre"), view("resid_post"))))
    names = {place: point for point, place in row_of.items()}
    for source, found in pairs:
        if found is None:
            continue
        errors = found.errors()
        whole = len(errors) == len(row_of) + 2
        for place, error in enumerate(errors.tolist()):
            point = names.get(place, "the unedited row") if whole else "mlp_pre"
            if bench.note("edits land", error, f"L{layer}.{point}"):
                continue
            why = f'the identity "{source.name}"' if source else "the activation or the stream"
            for one in same if point in POINTS else ():
                bench.fail(point, one, f"with an edit at {point}, {why} does not hold")


def _name(point: str, layer: int | None) -> str:
    return point if layer is None else f"L{layer}.{point}"
