"""Tools for models and addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import plain
from microtome.agents.desk import DEFAULT
from microtome.agents.tools import Tool, made, number, text

if TYPE_CHECKING:
    from microtome.agents.desk import Call

__all__ = ["TOOLS"]

MODEL = text("name of a model; models_list has them", default=DEFAULT)
_SITES = 400


def models_list(call: Call) -> dict[str, Any]:
    """Models that load here without a download, and those in memory. A folder of the project is named by its path in it."""
    from microtome.model.catalog import list_models

    rows = [{"name": e.name, "aliases": e.aliases, "kind": e.kind, "here": e.present, "bytes": e.size, "note": e.note} for e in list_models()]  # fmt: skip
    return {
        "models": plain(rows),
        "in_memory": list(call.desk.loaded),
        "downloads": call.desk.settings.download,
    }


def model_load(call: Call, model: str = DEFAULT) -> dict[str, Any]:
    """Load a model and say what it is: architecture, sizes, licence, how numbers are computed."""
    with call.models():
        loaded = call.desk.model(model)
        return _about(loaded)


def _about(loaded: Any) -> dict[str, Any]:
    facts = loaded.facts
    kept = ("family", "model_type", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_model", "d_vocab", "n_ctx", "n_params",
            "positions", "additive", "not_additive", "lacks")  # fmt: skip
    return plain({
        "name": loaded.name, "hash": loaded.hash, "source": loaded.source, "card": loaded.card,
        "facts": {name: getattr(facts, name) for name in kept}, "numerics": loaded.numerics, "reasons": loaded.reasons,
    })  # fmt: skip


def model_layers(call: Call, model: str = DEFAULT, first: int = 0, n: int = 8) -> dict[str, Any]:
    """Facts of single layers: kind, heads, widths, window, and what each lacks."""
    with call.models():
        layers = call.desk.model(model).facts.layers
    rows = [{"layer": i, **plain(layers[i])} for i in range(first, min(first + n, len(layers)))]
    return {"layers": rows, "n_layers": len(layers)}


def model_certificate(call: Call, model: str = DEFAULT) -> dict[str, Any]:
    """Check on this very model that every address means what the table of points says (seconds)."""
    with call.models():
        certificate = call.desk.model(model).certificate()
    return {"passed": certificate.passed, "failed": plain(certificate.failed), **plain(certificate.as_dict())}


def points(call: Call) -> dict[str, Any]:
    """The table of points: every name that a tensor has, its axes, its unit, and what it means."""
    from microtome.points import POINTS

    rows = [{"name": p.name, "of": p.scope, "axes": p.axes, "unit": p.unit, "writable": p.writable, "narrowed_by": p.letters, "meaning": p.meaning}
            for p in POINTS.values()]  # fmt: skip
    examples = ["L9.z", "L9H6.z", "L9H6.pattern@-1", "L*.resid_post@-1", "L0:12.mlp_out", "L3N1021.neurons"]
    return {"points": plain(rows), "examples": examples}


def address_parse(call: Call, address: str, model: str = "") -> dict[str, Any]:
    """Read an address: what it names, and, for a model, every single site that it stands for there."""
    from microtome.sites import expand, parse

    site = parse(address)
    row = site.row
    found: dict[str, Any] = {"address": str(site), "point": site.point}
    if row is not None:
        found |= {"axes": list(row.axes), "unit": row.unit, "meaning": row.meaning, "writable": row.writable}
    if model:
        with call.models():
            every = expand(address, call.desk.model(model).facts)
        found |= {"n": len(every), "sites": [str(s) for s in every[:_SITES]]}
        if len(every) > _SITES:
            found["truncated"] = {"sites": f"{_SITES} of {len(every)}"}
    return found


TOOLS: tuple[Tool, ...] = (
    made(models_list),
    made(model_load, {"model": MODEL}),
    made(model_layers, {"model": MODEL, "first": number(minimum=0, default=0), "n": number(minimum=1, maximum=100, default=8)}),
    made(model_certificate, {"model": MODEL}),
    made(points),
    made(address_parse, {"address": text('such as "L9H6.z@-1" or "L*.resid_pre"'), "model": text("a model whose sites are listed; none by default")},
         ["address"]),
)  # fmt: skip
