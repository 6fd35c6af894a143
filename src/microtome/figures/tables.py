"""The tables that pictures read: which columns each must have, and which it may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

    from ..results.result import Result

# name -> (columns that must be there, columns that are NaN, or "" for text, where they are not)
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sides": (
        ("side", "accuracy", "n"),
        ("low", "high", "chance", "mean", "mean_low", "mean_high", "metric"),
    ),
    "positions": (("position", "label"), ()),
    "donors": (("donor", "site", "value"), ("position", "low", "high")),
    "off_task": (("site", "on", "off"), ()),
    "agreement": (("site", "estimate", "exact"), ()),
    "top": (("site", "prompt", "rank", "token", "probability"), ()),
    "detectors": (("layer", "head", "detector", "distribution", "score"), ("null_low", "null_high")),
    "pattern_tokens": (("site", "prompt", "index", "token"), ()),
    "curve": (("k", "value"), ("low", "high", "n", "edges")),
    "components": (("rank", "site", "effect"), ()),
    "edges": (("edge", "score", "kept"), ("low", "high")),
    "measures": (("quantity", "value"), ("low", "high", "n")),
    "sizes": (("ranking", "fraction", "value"), ("edges",)),
    "prompts": (("prompt", "whole model", "circuit"), ("kl",)),
    "units": (("unit", "change"), ("p",)),
    "second": (("size", "edges", "value"), ()),
    "settings": (("choice", "setting", "value"), ("low", "high", "null_high", "p", "n", "why")),
    "decisions": (("order", "edge", "kept", "rise", "loss", "how"), ()),
    "nulls": (("family", "value"), ()),
    "held_out": (("quantity", "value"), ("low", "high", "n")),
    "accuracy": (("part", "what", "value"), ("low", "high", "n")),
    "training": (("run", "step", "loss"), ()),
    "progress": (("step", "measure", "value"), ("null_low", "null_high")),
    "pairs": (("kind", "sender", "reader", "score", "z", "p"), ("null_low", "null_high")),
    "roles": (("site", "role", "predicted", "flagged"), ("null_high", "p")),
    "ranks": (("role", "text", "spearman", "p"), ("null_low", "null_high", "auroc")),
    "states": (("state", "value"), ("low", "high", "n")),
    "generations": (("state", "right"), ()),
    "vectors": (("part", "side", "rank", "coherence", "tokens"), ("null_high",)),
    "calibration": (("site", "lens", "value"), ("low", "high")),
    "ablations": (("heads", "text", "where", "rise"), ("low", "high", "null_low", "null_high", "p", "n")),
    "probes": (("what", "site", "value"), ("low", "high", "null_low", "null_high", "n", "position", "kind")),
    "reliability": (("predicted", "observed"), ("low", "high", "n")),
    "matrix": (
        ("trained", "tested", "value"),
        ("low", "high", "null_low", "null_high", "p", "words", "twin", "n"),
    ),
    "cosines": (("first", "second", "value"), ("null_high",)),
    "predicts": (("direction", "target", "value"), ("null_high", "n")),
    "causal": (("way", "family", "value"), ()),
    "sums": (("quantity", "value", "low", "high"), ()),
    "wordings": (("wording", "value"), ("low", "high", "n")),
    "answers": (("where",), ()),
    "deletion": (("order", "share", "value"), ("null_low", "null_high")),
    "tokens": (("prompt", "position", "token"), ()),
    "by_wording": (("site", "wording", "value"), ()),
    "differing_tokens": (("document", "at", "context", "token", "kl", "share"), ("null_high", "p")),
    "weight_changes": (("tensor", "changed", "relative", "largest", "rank", "effective_rank", "full"), ()),
    "reading": (("source", "site", "position", "rank", "token", "score"), ()),
    "drift": (("site", "value", "unrelated"), ("position", "low", "high")),
    "token_map": (("document", "at", "token"), ()),
    "headline": (("label", "value"), ("low", "high", "null_low", "null_high", "null", "unit", "n")),
    "stages": (("stage",), ("n", "seconds", "note")),
    "checks": (("check", "outcome"), ("detail",)),
    "about": (("name", "value"), ()),
    "dose": (
        ("coefficient", "value", "perplexity", "repetition", "collapsed"),
        ("low", "high", "null_low", "null_high", "n", "reported"),
    ),
    "both": (("change", "value"), ("low", "high", "null_low", "null_high", "n")),
    "layers": (("layer", "accuracy"), ("logprob",)),
    "baselines": (("name", "value"), ("kind", "low", "high", "n")),
    "samples": (("coefficient", "prompt", "text"), ()),
    "contexts": (("unit", "stratum", "rank", "index", "token", "value", "peak"), ()),
    "histogram": (("unit", "left", "right", "share"), ("null",)),
    "logits": (("unit", "side", "token", "value"), ("null",)),
    "strata": (("unit", "stratum", "from", "predicted"), ("n",)),
    "predictors": (("reader", "value", "top_only"), ("low", "high", "shuffled_low", "shuffled_high")),
}
_TEXT = frozenset({"metric", "position", "note", "detail", "why", "kind"})


def table_of(result: Result, name: str) -> pd.DataFrame | None:
    """A table of the result with its optional columns filled; None where it is absent or empty.

    Raises ResultError, naming them, for columns that a picture cannot do without.
    """
    table = result.tables.get(name)
    if table is None or table.empty:
        return None
    must, may = COLUMNS[name]
    missing = [c for c in must if c not in table.columns]
    if missing:
        raise ResultError(
            f"tables[{name!r}] has no column {', '.join(map(repr, missing))}",
            why=f"a picture of {result.kind} reads it",
            instead=f"its columns are {list(table.columns)}",
        )
    for column in may:
        if column not in table.columns:
            table[column] = "" if column in _TEXT else float("nan")
    return table


def need(result: Result, name: str) -> pd.DataFrame:
    """As `table_of`; raises ResultError also where the table is absent or empty."""
    table = table_of(result, name)
    if table is None:
        raise ResultError(
            f"this {result.kind} has no table {name!r}",
            why="what it would show was not measured",
            instead="see its controls and its other figures",
        )
    return table
