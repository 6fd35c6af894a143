"""The two to four numbers of a result to read first, each beside its null: tables["headline"], made of what the result holds.

Screen and report show them as they are. Nothing is measured here. A number without a null does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.figures.text import change_of, unit
from microtome.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.results.verdicts import Control

__all__ = ["headline_table", "headlined"]

NAN = float("nan")
MOST = 4
TINY = 1e-9
"""What is below it stands for nothing at all: bands of logarithms have a floor."""
TEXT = 64
Row = dict[str, Any]
AREA = "area under the ROC curve"
SHUFFLED_HEADS = "95 % of heads shuffled within thirds of the layers reach at most"


def headlined(result: Result) -> Result:
    """The result with its table "headline": columns label, value, low, high, null_low, null_high, null (what the null is), unit, n.

    A number without a finite value or null is left out; a result without any number, or of a kind that has none, stays as it is.
    """
    reader = _READERS.get(result.kind)
    rows = [] if reader is None else [r for r in reader(result) if _told(r)]
    return (
        replace(result, tables={**result.tables, "headline": headline_table(rows[:MOST])}) if rows else result
    )


def headline_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the table, every column there."""
    import pandas as pd

    blank: Row = {"label": "", "value": NAN, "low": NAN, "high": NAN, "null_low": NAN, "null_high": NAN, "null": "", "unit": "", "n": NAN}  # fmt: skip
    made = pd.DataFrame([{**blank, **r} for r in rows], columns=list(blank))
    numbers = [k for k, v in blank.items() if not isinstance(v, str)]
    return made.astype(dict.fromkeys(numbers, float))


def _told(row: Row) -> bool:
    return bool(np.isfinite([row["value"], row["null_low"], row["null_high"]]).all())


def _row(label: str, source: Mapping[Any, Any], null: str, unit_: str = "", *, value: float | None = None, band: tuple[float, float] | None = None) -> Row:  # fmt: skip
    """A row from one with value, low, high, null_low, null_high, n; `value` and `band` where these are elsewhere."""
    low, high = band or (source.get("null_low", NAN), source.get("null_high", NAN))
    return {"label": label, "value": float(source["value"] if value is None else value), "low": float(source.get("low", NAN)), "high": float(source.get("high", NAN)),
            "null_low": float(low), "null_high": float(high), "null": null, "unit": unit_, "n": float(source.get("n", NAN))}  # fmt: skip


def _rows(result: Result, name: str) -> list[Row]:
    table = result.tables.get(name)
    return [] if table is None else [{str(k): v for k, v in r.items()} for r in table.to_dict("records")]


def _control(result: Result, name: str) -> Control | None:
    return next((c for c in result.controls if c.name == name and c.passed is not None), None)


def _middle(text: object, most: int = TEXT) -> str:
    """Text with its middle left out where it is long: both ends say which it is."""
    plain = str(text)
    return plain if len(plain) <= most else f"{plain[: most // 2].rstrip()} … {plain[-(most // 2) + 3 :].lstrip()}"  # fmt: skip


def _strongest(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda r: -abs(r["value"]) if r["value"] == r["value"] else 0.0)


def _frame(result: Result) -> list[Row]:
    """The cells with their values, as records."""
    return [{str(k): v for k, v in r.items()} for r in result.frame().to_dict("records")]


# ------------------------------------------------------------------------------------------ representations


def _generalisation(result: Result) -> list[Row]:
    pairs = [r for r in _rows(result, "matrix") if r["trained"] != r["tested"] and r.get("value", NAN) == r.get("value", NAN)]  # fmt: skip
    shuffled, out = _control(result, "shuffled_labels"), []
    if shuffled is not None and shuffled.null is not None and isinstance(shuffled.observed, Mapping):
        mean = float(shuffled.observed["mean over other datasets"])
        out.append(_row("on datasets not trained on, mean over pairs", {"value": mean, "n": len(pairs)}, "shuffled training labels", AREA, band=shuffled.null))  # fmt: skip
    if pairs:
        worst = min(pairs, key=lambda r: float(r["value"]))
        out.append(_row(f"worst pair: trained on {worst['trained']}, tested on {worst['tested']}", worst, "shuffled training labels, all pairs", AREA))  # fmt: skip
    words = _control(result, "bag_of_words")
    if words is not None and isinstance(words.observed, Mapping):
        base = float(words.observed["baseline"])
        out.append(_row("the same mean, beside the words alone", {"value": float(words.observed["probe"]), "n": words.n}, "bag of words", AREA, band=(base, base)))  # fmt: skip
    cosines = [r for r in _rows(result, "cosines") if r["null_high"] == r["null_high"]]
    if cosines:
        least = min(cosines, key=lambda r: float(r["value"]))
        band = (-float(least["null_high"]), float(least["null_high"]))
        out.append(_row(f"least alike directions: {least['first']} and {least['second']}", least, "shuffled-label directions", "cosine", band=band))  # fmt: skip
    return out


def _unsupervised(result: Result) -> list[Row]:
    rows = _rows(result, "predicts")
    label = [r for r in rows if r["target"] == "label"]
    if not label:
        return []
    best = max(label, key=lambda r: float(r["value"]))
    band = (0.5, float(best["null_high"]))
    out = [_row(f"label told by {best['direction']}, found without labels", best, "best direction under shuffled labels, up to", AREA, band=band)]  # fmt: skip
    others = [r for r in rows if r["direction"] == best["direction"] and r["target"] != "label"]
    if others:
        top = max(others, key=lambda r: float(r["value"]))
        out.append(_row(f"what else it tells best: {_middle(top['target'], 40)}", top, "the label, by the same direction", AREA, band=(float(best["value"]),) * 2))  # fmt: skip
    return out


def _steering(result: Result) -> list[Row]:
    cells, doses = _frame(result), [r for r in _rows(result, "dose") if r["reported"]]
    if not cells or not doses:
        return []
    own, dose = cells[0], doses[0]
    name, unit_ = _measured(str(own["metric"]))
    null = _null_of(result)
    out = [_row(f"change of the {name} at dose {dose['coefficient']:g}", own, null, unit_)]
    beside = _rows(result, "baselines")
    for kind, label in (
        ("words", "the same, beside asking for it in words"),
        ("sibling", "the same, beside a sibling concept"),
    ):
        rivals = [r for r in beside if r["kind"] == kind]
        if rivals:
            best = max(rivals, key=lambda r: float(r["value"]))
            band = (float(best["low"]), float(best["high"]))
            out.append(_row(label, own, f"{best['name']}, 95 %", unit_, band=band))
    fluent = _control(result, "fluency")
    if fluent is not None and isinstance(fluent.observed, Mapping):
        plain = float(fluent.observed.get("unsteered", NAN))
        out.append(_row(f"perplexity of its text at dose {dose['coefficient']:g}", {"value": dose["perplexity"], "n": fluent.n}, "unsteered text", "", band=(plain, plain)))  # fmt: skip
    for moved in (r for r in beside if r["kind"] == "neutral text"):
        kl = {"value": moved["value"], "n": moved["n"]}
        out.append(_row("change of unrelated text (KL from unsteered)", kl, null, "nats per token", band=(float(moved["low"]), float(moved["high"]))))  # fmt: skip
    return out


def _null_of(result: Result) -> str:
    """What the null directions of a result with a direction are made of."""
    families = {str(r["family"]).partition(",")[0] for r in _rows(result, "nulls")}
    return "directions from shuffled labels" if "shuffled_labels" in families else "random directions of its length"  # fmt: skip


def _measured(name: str) -> tuple[str, str]:
    """ "log-odds of words (nats)" as a name and a unit."""
    head, found, rest = name.partition(" (")
    return head or "measure", rest.rstrip(")") if found else ""


def _directional_ablation(result: Result) -> list[Row]:
    cells = _frame(result)
    name, unit_ = _measured(str(cells[0]["metric"]) if cells else "")
    words = {
        "removed": f"change of the {name} with the direction removed everywhere",
        "added": "the same with it added to harmless prompts",
    }
    null = _null_of(result)
    out = [_row(words[str(r["change"])], r, null, unit_) for r in _rows(result, "both") if r["change"] in words]  # fmt: skip
    harmless = _control(result, "harmless_kl")
    if harmless is not None and harmless.null is not None and isinstance(harmless.observed, Mapping):
        kl = {"value": float(harmless.observed["nats"]), "n": NAN}
        out.append(_row("change of harmless prompts (KL from the whole model)", kl, "random directions removed", "nats", band=harmless.null))  # fmt: skip
    return out


def _function_vector(result: Result) -> list[Row]:
    shown = {str(r["what"]): r for r in _rows(result, "accuracy")}
    drawn: dict[str, list[float]] = {}
    for r in _rows(result, "nulls"):
        drawn.setdefault(str(r["family"]), []).append(float(r["value"]))
    out = []
    for name, label, family, null in (
        ("function vector", "held-out pairs right with the function vector and no demonstration", "vector, shuffled labels", "vectors from shuffled labels"),
        ("task vector", "with a task vector in the last token's place", "task, shuffled labels", "task vectors from shuffled labels"),
    ):  # fmt: skip
        if name in shown and drawn.get(family):
            band = (min(drawn[family]), max(drawn[family]))
            out.append(_row(label, shown[name], null, "share of pairs", band=band))
    plain = shown.get("zero-shot")
    if "function vector" in shown and plain is not None:
        bare = (float(plain["value"]),) * 2
        out.insert(1, _row("the same, beside the bare question", shown["function vector"], "no vector", "share of pairs", band=bare))  # fmt: skip
    few, mixed = shown.get("few-shot"), shown.get("few-shot, shuffled labels")
    if few is not None and mixed is not None:
        out.append(_row("with demonstrations", few, "demonstrations with shuffled labels", "share of pairs", band=(float(mixed["low"]), float(mixed["high"]))))  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------ examples, weights


def _max_activating(result: Result) -> list[Row]:
    cells = _rows(result, "cells")
    if not cells:
        return []
    null = "random directions, 95 %"
    if len(cells) == 1:
        out = [_row(f"{cells[0]['site']}: how well tokens say where it is most active", cells[0], null, AREA)]
    else:
        middle = {**cells[0], "value": float(np.median([c["value"] for c in cells])), "low": NAN, "high": NAN, "n": len(cells)}  # fmt: skip
        best = max(cells, key=lambda c: float(c["value"]))
        out = [_row("how well tokens say where a unit is most active, median unit", middle, null, AREA),
               _row(f"the most predictable unit: {best['site']}", best, f"{null}; the best of {len(cells)} units", AREA)]  # fmt: skip
    rest = _control(result, "beyond_the_top")
    if rest is not None and rest.null is not None and isinstance(rest.observed, Mapping):
        seen = {"value": float(rest.observed["units, median"]), "n": rest.n}
        out.append(_row("without the top stratum of activations", seen, "random directions, 90 %", AREA, band=rest.null))  # fmt: skip
    return out


def _score_description(result: Result) -> list[Row]:
    main = next((r for r in _rows(result, "predictors") if r["main"]), None)
    if main is None:
        return []
    label = f"how well the description says where the unit is active ({main['reader']} reading)"
    out = [_row(label, main, "the same for random directions, 95 %", AREA, band=(float(main["random_low"]), float(main["random_high"])))]  # fmt: skip
    out.append(_row("the same, beside descriptions of other words", main, "shuffled descriptions, 90 %", AREA, band=(float(main["shuffled_low"]), float(main["shuffled_high"]))))  # fmt: skip
    counted = next((r for r in _rows(result, "predictors") if r["reader"] == "ngrams"), None)
    if counted is not None:
        band = (float(counted["low"]), float(counted["high"]))
        out.append(_row("the same, beside counting tokens, which reads no description", main, "n-grams, 95 %", AREA, band=band))  # fmt: skip
    return out


def _head_roles(result: Result) -> list[Row]:
    words = {"previous": "previous-token", "copying": "copying"}
    out = []
    for text, said in (("repeated", "repeated random tokens"), ("natural", "natural text")):
        found = next((r for r in _rows(result, "ranks") if r["role"] == "induction" and r["text"] == text), None)  # fmt: skip
        if found is not None:
            agreed = {"value": found["spearman"], "n": found["heads"]}
            band = (float(found["null_high"]),) * 2
            out.append(_row(f"induction predicted from weights against measured on {said}", agreed, SHUFFLED_HEADS, "rank correlation", band=band))  # fmt: skip
    for r in _rows(result, "ablations"):
        if r["heads"] == "together" and r["where"] == "repeats":
            said = "repeated random tokens" if r["text"] == "repeated" else "repeats in natural text"
            out.append(_row(f"rise of the loss on {said} without {_middle(r['sites'], 40)}", {**r, "value": r["rise"]}, "as many other heads", "nats per token"))  # fmt: skip
    if not out:
        for r in _rows(result, "ranks"):
            band = (float(r["null_high"]),) * 2
            agreed = {"value": r["spearman"], "n": r["heads"]}
            out.append(_row(f"{words.get(str(r['role']), r['role'])} heads, predicted against measured", agreed, SHUFFLED_HEADS, "rank correlation", band=band))  # fmt: skip
    return out


def _composition(result: Result) -> list[Row]:
    how = {"Q": "queries", "K": "keys", "V": "values"}
    best: dict[str, Row] = {}
    for r in _rows(result, "pairs"):  # the ones that stand out most come first
        if r["z"] > 0:
            best.setdefault(str(r["kind"]), r)
    return [_row(f"{r['sender']} read by the {how.get(kind, kind)} of {r['reader']}", {**r, "value": r["score"]}, "the pair turned at random, two deviations", "composition score")
            for kind, r in best.items()]  # fmt: skip


def _lenses(result: Result) -> list[Row]:
    cells = [r for r in _frame(result) if str(r["metric"]).startswith("kl ")]
    sites = list(dict.fromkeys(str(r["site"]) for r in cells))[:-1]
    if not sites:
        return []
    middle = sites[len(sites) // 2]
    at = {str(r["metric"]).removeprefix("kl "): r for r in cells if r["site"] == middle}
    return [_row(f"{name} lens at {middle}: distance from what the model says in the end", at[key], "the same lens on another text, 95 %", "nats")
            for key, name in (("tuned", "tuned"), ("logit", "logit"), ("jacobian", "Jacobian")) if key in at]  # fmt: skip


# ------------------------------------------------------------------------------------------ black box, two models


def _prompt_grid(result: Result) -> list[Row]:
    metric = "" if result.effects is None else str(result.effects.coords["metric"][0])
    wordings = bool(_rows(result, "wordings"))
    null = "changes of wording" if wordings else "levels shuffled"
    best: dict[str, Row] = {}
    for r in _strongest(r for r in _frame(result) if r["metric"] == metric):
        best.setdefault(str(r["site"]).partition(":")[0], r)
    return [_row(f"largest change by {_middle(change_of(r['site']))}", r, null, unit(metric)) for r in list(best.values())[:3]]  # fmt: skip


def _token_attribution(result: Result) -> list[Row]:
    metric = "" if result.effects is None else str(result.effects.coords["metric"][0])
    how = {
        "gradient_x_input": "gradient × input",
        "integrated_gradients": "integrated gradients",
        "occlusion": "occlusion",
    }
    n = NAN if result.effects is None else len(result.effects.coords["prompt"])
    return [_row(f"mean change while tokens go in the order of {how.get(str(r['how']), r['how'])}", {**r, "value": r["area"], "n": n}, "random orders, 95 %", unit(metric))
            for r in _rows(result, "areas")]  # fmt: skip


def _chain_of_thought(result: Result) -> list[Row]:
    found = [r for r in _frame(result) if r["metric"] == "total_variation" and str(r["site"]).startswith("resample")]  # fmt: skip
    out = [_row(f"answers moved by sentence {_middle(str(r['site']).removeprefix('resample '))}", {**r, "n": NAN}, "sampling alone, up to", "total variation (0 to 1)")
           for r in _strongest(found)[:2]]  # fmt: skip
    same = _control(result, "same_cut")
    if same is not None and same.null is not None and isinstance(same.observed, Mapping):
        largest = max(float(v) for v in same.observed.values())
        out.append(_row("largest difference between one cut sampled twice", {"value": largest, "n": same.n}, "samples shuffled, up to", "total variation (0 to 1)", band=same.null))  # fmt: skip
    return out


def _model_diff(result: Result) -> list[Row]:
    cells = [r for r in _frame(result) if np.isfinite(r["null_high"])]
    out = []
    for metric, label, null in (
        ("relative_norm", "difference inside, where it exceeds its null most", "models moved as far at random"),
        ("kl", "difference of the outputs", "models moved as far at random"),
        ("focus", "tokens over the effective number that carry the outputs' difference (1: spread evenly)", "models moved as far at random"),
        ("loss_per_token", "loss of the second model minus that of the first", "signs flipped by document"),
        ("loss_per_character", "loss of the second model minus that of the first", "signs flipped by document"),
    ):  # fmt: skip
        rows = [r for r in cells if r["metric"] == metric and (metric != "focus" or r["site"] == "logits")]
        if rows:
            top = max(rows, key=lambda r: abs(r["value"]) / max(r["null_high"], TINY))
            where = f": {top['site']}" if metric == "relative_norm" else ""
            said = "" if metric == "focus" else unit(metric)
            band = tuple(0.0 if abs(top[k]) <= TINY else top[k] for k in ("null_low", "null_high"))
            out.append(_row(label + where, top, null, said, band=(band[0], band[1])))
    return out


def _cross_model_patching(result: Result) -> list[Row]:
    out = []
    metric = "" if result.effects is None else unit(str(result.effects.coords["metric"][0]))
    differs = _control(result, "behaviour_differs")
    if differs is not None and isinstance(differs.observed, Mapping):
        seen: Mapping[str, Any] = differs.observed
        whole = {"value": seen["mean"], "low": seen["low"], "high": seen["high"], "n": differs.n}
        out.append(_row("difference of the two models on these prompts", whole, "no difference", metric, band=(0.0, 0.0)))  # fmt: skip
    zero = result.tensors.get("structurally_zero")
    cells = [r for r, dead in zip(_frame(result), np.ravel(zero) if zero is not None else [], strict=False) if not dead]  # fmt: skip
    if cells:
        top = _strongest(cells)[0]
        where = _place(top["site"], top.get("position"))
        out.append(_row(f"carried over by one place: {where}", top, "signs flipped by prompt", metric))
    donors = _rows(result, "donors")
    real = next((r for r in donors if r["donor"] == "real"), None)
    for kind, said in (("noise models", "models moved as far at random, 95 %"), ("unrelated", "the unrelated model, 95 %")):  # fmt: skip
        other = next((r for r in donors if real is not None and r["donor"] == kind and (r["site"], r["position"]) == (real["site"], real["position"])), None)  # fmt: skip
        if real is not None and other is not None:
            where = _place(real["site"], real["position"])
            out.append(_row(f"carried over at {where}, beside another donor", real, said, metric, band=(float(other["low"]), float(other["high"]))))  # fmt: skip
    return out


def _place(site: object, position: object) -> str:
    return str(site) if position in (None, "") or position != position else f"{site} @ {position}"


_READERS: dict[str, Callable[[Result], list[Row]]] = {
    "chain_of_thought": _chain_of_thought,
    "composition": _composition,
    "cross_model_patching": _cross_model_patching,
    "directional_ablation": _directional_ablation,
    "function_vector": _function_vector,
    "generalisation": _generalisation,
    "head_roles": _head_roles,
    "lenses": _lenses,
    "max_activating": _max_activating,
    "model_diff": _model_diff,
    "prompt_grid": _prompt_grid,
    "score_description": _score_description,
    "steering": _steering,
    "token_attribution": _token_attribution,
    "unsupervised": _unsupervised,
}
