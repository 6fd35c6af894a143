"""The few numbers that matter, each with its interval, its null and its n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MicrotomeError
from ..figures.attribution import chance_correlation, rank_correlation
from ..figures.cells import cells_of
from ..figures.tables import table_of
from ..figures.text import unit, visible

if TYPE_CHECKING:
    from ..results.result import Result
    from .outline import Stage

NAN = float("nan")
MOST = 6


@dataclass(frozen=True)
class Number:
    """One number of the summary. Bounds are NaN where unknown; `null` says in words what the null band is; `share` is
    the effect as a share of the gap to the donor; `verdict` that of the stage it comes from.
    """

    label: str
    value: float
    low: float = NAN
    high: float = NAN
    null_low: float = NAN
    null_high: float = NAN
    null: str = ""
    unit: str = ""
    n: int | None = None
    anchor: str = ""
    share: float = NAN
    verdict: str = ""


def headline(result: Result, stages: Sequence[Stage]) -> list[Number]:
    """At most six numbers: the behaviour, the strongest head and part, the set, the agreement of the two methods.

    Of a whole that has numbers of its own, these: those of its stages stand in their sections.
    """
    if result.children and "headline" in result.tables:
        whole = {"anchor": "whole", "verdict": result.verdict.word}
        return [replace(made, **whole) for made in _safely(_told, result)]
    ranked: list[tuple[int, Number]] = []
    for stage in stages:
        ranked += [(rank, _at(made, stage)) for rank, made in _safely(_of, stage.result)]
    ranked += [(4, made) for made in _safely(_agreement, result, stages)]
    seen: set[tuple[int, str]] = set()
    kept = []
    for rank, made in sorted(ranked, key=lambda pair: pair[0]):  # stable: stages keep their order
        if (rank, made.label) not in seen and sum(r == rank for r, _ in seen) < 2:
            seen.add((rank, made.label))
            kept.append(made)
    return kept[:MOST]


def _safely(read: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
    """Nothing where a table cannot be read: its section says why."""
    try:
        return read(*arguments)
    except MicrotomeError:
        return []


def _at(made: Number, stage: Stage) -> Number:
    n = made.n if made.n is not None else stage.n
    return replace(made, anchor=stage.anchor, n=n, verdict=stage.result.verdict.word)


def _of(result: Result) -> list[tuple[int, Number]]:
    if "headline" in result.tables:
        return [(k // 2, made) for k, made in enumerate(_told(result))]
    if result.kind == "behaviour":
        return [(0, made) for made in _behaviour(result)]
    if result.kind == "component_set":
        return [(1, made) for made in _set(result)]
    if result.kind == "circuit_evaluation":
        return [(1, made) for made in _circuit(result)]
    if result.kind in (
        "activation_patching",
        "ablation",
        "attribution_patching",
        "direct_logit_attribution",
        "logit_lens",
        "path_patching",
    ):
        made, heads = _strongest(result)
        # the stream's largest cell is the last layer at the last position whatever the task: only where room is left
        stream = made is not None and "resid" in made.label
        rank = (2 if heads else 8 if stream else 3) if result.kind == "activation_patching" else 7
        return [] if made is None else [(rank, made)]
    if result.kind == "attention_patterns":
        return [(6, made) for made in _detector(result)]
    return []


def _told(result: Result) -> list[Number]:
    """The rows of tables["headline"], which a technique fills by itself: label, value and, where known, low, high, null_low,
    null_high, null, unit and n."""  # fmt: skip
    table = table_of(result, "headline")
    rows: list[dict[Any, Any]] = [] if table is None else table.to_dict("records")
    out = []
    for row in rows:
        low, high, null_low, null_high, n = (
            _real(row.get(k)) for k in ("low", "high", "null_low", "null_high", "n")
        )
        null, unit_ = (str(row[k]) if isinstance(row.get(k), str) else "" for k in ("null", "unit"))
        count = int(n) if n > 0 else None
        out.append(
            Number(str(row["label"]), float(row["value"]), low, high, null_low, null_high, null, unit_, count)
        )
    return out


def _behaviour(result: Result) -> list[Number]:
    table = table_of(result, "sides")
    if table is None:
        return []
    row: dict[Any, Any] = table.to_dict("records")[0]
    chance = _real(row.get("chance"))
    made = [
        Number(
            "share of clean prompts that prefer the answer",
            float(row["accuracy"]),
            _real(row.get("low")),
            _real(row.get("high")),
            chance,
            chance,
            "chance",
            "",
            int(row["n"]),
        )
    ]
    if row["mean"] == row["mean"]:
        made.append(
            Number(
                "by how much, on average",
                float(row["mean"]),
                _real(row.get("mean_low")),
                _real(row.get("mean_high")),
                0.0,
                0.0,
                "no preference",
                unit(str(row.get("metric", ""))),
                int(row["n"]),
            )
        )
    return made


def _strongest(result: Result) -> tuple[Number | None, bool]:
    if result.effects is None:
        return None, False
    cells = cells_of(result)
    frame = cells.frame[
        ~cells.frame["zero"].to_numpy(bool) & np.isfinite(cells.frame["value"].to_numpy(float))
    ]
    if frame.empty:
        return None, False
    row: dict[Any, Any] = frame.loc[frame["value"].abs().idxmax()].to_dict()
    place = visible(row["site"], most=24) + (
        f" @ {cells.position(row['position'])}" if row["position"] is not None else ""
    )
    kind = {
        "activation_patching": "largest effect",
        "ablation": "largest damage",
        "attribution_patching": "largest estimate",
        "direct_logit_attribution": "largest piece",
        "logit_lens": "largest reading",
        "path_patching": "largest sender",
    }[result.kind]
    made = Number(f"{kind}: {place}", row["value"], row["low"], row["high"], row["null_low"], row["null_high"],
                  f"null over {len(frame)} cells", unit(cells.metric), int(row["n"]), share=row["share"])  # fmt: skip
    return made, row["unit"] == "H"


def _set(result: Result) -> list[Number]:
    table = table_of(result, "held_out")
    if table is None:
        return []
    rows = table.to_dict("records")
    row: dict[Any, Any] = next((r for r in rows if str(r["quantity"]) == "faithfulness"), rows[0])
    size = len(result.tables["components"]) if "components" in result.tables else None
    low, high, words = _null_sets(result)
    of = f" of {size} parts" if size else ""
    return [
        Number(
            f"held-out {visible(row['quantity'])}{of}",
            float(row["value"]),
            _real(row.get("low")),
            _real(row.get("high")),
            low,
            high,
            words,
            "of the effect",
            int(row["n"]) if row["n"] == row["n"] else None,
        )
    ]


def _circuit(result: Result) -> list[Number]:
    """The faithfulness of a circuit, on held-out prompts where there are some, beside its hardest null circuits."""
    table = table_of(result, "measures")
    about = table_of(result, "about")
    if table is None or about is None:
        return []
    rows = {str(row["quantity"]): row for row in table.to_dict("records")}
    held = rows.get("faithfulness, held out")
    row: dict[Any, Any] = held or rows["faithfulness"]
    size = str(about.set_index("name").loc["circuit", "value"]).partition(";")[0]
    low, high, words = _null_sets(result)
    words += ", on prompts that chose it" if held and words else ""
    label = f"{'held-out ' if held else ''}faithfulness of a circuit of {visible(size, most=40, prose=True)}"
    limits = _real(row.get("low")), _real(row.get("high"))
    return [Number(label, float(row["value"]), *limits, low, high, words, "of the effect", int(row["n"]))]


_FAMILIES = {
    "matched": "95 % of sets alike",
    "top_pool": "95 % of sets from the strongest parts",
    "of its shape": "95 % of circuits alike",
    "of the strongest": "95 % of circuits from the strongest edges",
    "shuffled labels": "95 % of circuits found on shuffled labels",
}


def _null_sets(result: Result) -> tuple[float, float, str]:
    """The 95 % range of the null family that comes closest to the set: the harder comparison is the one to show."""
    table = table_of(result, "nulls")
    if table is None:
        return NAN, NAN, ""
    best = (NAN, NAN, "")
    for family in dict.fromkeys(map(str, table["family"])):
        values = table.loc[table["family"].astype(str) == family, "value"].to_numpy(float)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
            if not high <= best[1]:
                best = (low, high, _FAMILIES.get(family, f"95 % of sets {visible(family)}"))
    return best


def _agreement(result: Result, stages: Sequence[Stage]) -> list[Number]:
    table = table_of(result, "agreement")
    if table is None:
        return []
    rho, n = rank_correlation(table["estimate"].to_numpy(float), table["exact"].to_numpy(float))
    chance = chance_correlation(n)
    low, high = _interval(result)
    anchor = next((s.anchor for s in stages if s.result.kind == "attribution_patching"), "whole")
    return (
        []
        if rho != rho
        else [
            Number(
                "attribution ranks parts as exact patching does",
                rho,
                low,
                high,
                -chance,
                chance,
                "unrelated ranks, 95 %",
                "rank correlation",
                n,
                anchor,
            )
        ]
    )


def _interval(result: Result) -> tuple[float, float]:
    """The rank correlation's interval where a control named approximation gives it, here or in a stage."""
    for one in (result, *result.children):
        for control in one.controls:
            seen: Any = control.observed
            if control.name == "approximation" and hasattr(seen, "get") and seen.get("low") is not None:
                return float(seen["low"]), float(seen["high"])
    return NAN, NAN


def _detector(result: Result) -> list[Number]:
    table = table_of(result, "detectors")
    if table is None:
        return []
    lowest = table.loc[
        table.groupby(["layer", "head", "detector"])["score"].idxmin()
    ]  # over texts: the careful one
    clear = lowest[lowest["score"] > lowest["null_high"]]
    # nearly every head rests on the first token, and looking at oneself says little: never the headline
    clear = clear[~clear["detector"].isin(["first", "current"])]
    if clear.empty:
        return []
    row: dict[Any, Any] = clear.sort_values("score", ascending=False, kind="stable").to_dict("records")[0]
    low, high = float(row["null_low"]), float(row["null_high"])
    words = f"{visible(row['detector'])} detector, on every text"
    return [
        Number(
            f"L{int(row['layer'])}H{int(row['head'])}: {words}",
            float(row["score"]),
            NAN,
            NAN,
            low,
            high,
            "null",
            "of its attention",
        )
    ]


def _real(value: Any) -> float:
    return NAN if value is None else float(value)
