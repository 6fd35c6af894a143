"""The probe: labels read from activations, chosen on validation texts, reported on test texts, beside all that could fake it.

Procedure and controls: Alain & Bengio 2016; Hewitt & Liang 2019 (selectivity); Marks & Tegmark 2023 (mass-mean probes, causal
test); Heap et al. 2025 (random twins). A probe shows what can be read, the causal test what is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.controls.discrimination import auroc
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import MicrotomeError, ModelError
from microtome.methods.probing import controls as check
from microtome.methods.probing import tables
from microtome.methods.probing.asking import Asked, default_ask, readings, wordings
from microtome.methods.probing.capture import (
    ATTENTION,
    MEAN,
    Matrix,
    Place,
    Texts,
    address,
    capture,
    encoded,
    from_store,
    own_token,
    places_of,
    sequences,
)
from microtome.methods.probing.causing import causal_test
from microtome.methods.probing.design import Design, design, split_control
from microtome.methods.probing.fitted import attention
from microtome.methods.probing.options import CLOSED, KINDS, VECTOR, Ask, ProbeOptions, checked_kinds
from microtome.methods.probing.surface import bag_of_words, length
from microtome.methods.probing.sweeping import Cell, Swept, sweep_places
from microtome.methods.probing.twin import random_twin
from microtome.results import seeds
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict
from microtome.tasks.lint import Lint, lint

if TYPE_CHECKING:
    from microtome.activations import Store
    from microtome.facade import Model
    from microtome.tasks.labelled import LabelledText

MANDATORY = ("split", "own_token", "shuffled_labels", "random_twin", "bag_of_words", "length")
CONTROLS = (*MANDATORY, "lint", "random_direction", "shuffled_logistic", "ask", "selectivity", "causal")
ASKED = 48
"""Validation texts on which wordings of the question are compared."""
TWIN = "that untrained weights carry the label as well: then it is in the words and the wiring"


@dataclass(frozen=True)
class Baseline:
    """Something that scores the same texts: its name in tables, scores [item], what they come from."""

    name: str
    scores: np.ndarray
    detail: str = ""


@technique(
    "probe", "1", controls=CONTROLS, mandatory=MANDATORY, figure="microtome.figures.probing:draw", random=True
)
def probe(
    model: Model,
    data: LabelledText,
    *,
    sites: str | Sequence[str] = "L*.resid_post@-1",
    kinds: str | Sequence[str] = KINDS,
    ask: Ask | None = None,
    store: Store | None = None,
    options: ProbeOptions | Mapping[str, Any] | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Whether a label can be read from activations, where, and whether the model uses what is read.

    Parameters
    ----------
    sites: single sites with one position each ("L*.resid_post@-1"; a span of the data, "@subject[-1]"); -1 is each text's
        own last token, whatever the padding.
    kinds: "mass_mean", "whitened", "ridge", "logistic" at every place; "mean_pooled": the same on the average over a text's own
        tokens (the first, BOS where there is one, left out); "attention": at the best sites only.
    store: what `mt.store(model, data, sites)` kept of these texts; only places that it lacks are run.
    ask: words and wordings for asking the model itself; by default the names of the classes, where these are words.

    Returns a Result: effects [site, position, prompt, metric] on the test texts. Metrics are "<kind> auroc" (a weighted
    placement per text whose mean is the AUROC, see `controls.discrimination`) and "<kind> accuracy". Tables: "probes" (lines of
    the figure), "selected" (numbers of the probe chosen on validation texts), "reliability", "asked", "causal". Tensors:
    directions of the chosen place, for `direction_of`. The verdict's p is family-wise, of the best closed-form probe against
    the largest AUROC over all closed-form cells under each shuffle of the labels.

    Raises
    ------
    TaskError: one class only, fewer groups than parts, sites without a position, kinds without a closed-form one.
    ControlError: activations that are not finite; labels that cannot be shuffled.
    """
    o, wanted = ProbeOptions.of(options), checked_kinds(kinds)
    d = design(data, o, seed)
    linted = lint(data, [p.tolist() for p in d.parts], model.tokenizer, seed=seed)
    places = places_of(model, sites)
    texts = encoded(model, data, places)
    pooled: list[Place] = [(b, MEAN) for b in dict.fromkeys(p[0] for p in places)]
    every = [*places, *(pooled if "mean_pooled" in wanted else [])]
    held = {} if store is None else from_store(store, model, data, every)
    missing = [place for place in every if place not in held]
    held |= capture(model, texts, missing, batch=o.batch) if missing else {}
    captured = {place: held[place] for place in every}
    shuffles = shuffled_columns(
        d.truth,
        d.units,
        draws=o.permutations,
        seed=seeds.child(seed, "labels"),
        parts=d.parts,
        scored=d.test,
    )
    vector = [k for k in wanted if k in VECTOR]
    swept = sweep_places(captured, d, vector, shuffles, o)
    linear = swept.best()
    if "attention" in wanted:
        _attention(model, texts, d, swept, o, seed)
    chosen, closed = swept.best(), swept.best([k for k in vector if k in CLOSED])
    ran, p = _controls(d, swept, captured, linear, closed, o, seed)
    ran.append(own_token(model, texts, captured, seed))
    ran.append(_linted(linted))
    baselines, twin = _baselines(model, d, texts, places, chosen, wanted, o, ran, seed)
    asked = _ask(model, d, ask, chosen, ran, baselines, seed)
    causal = causal_test(model, d, asked, swept, captured, o, seed)
    ran.append(causal.control)
    frames = tables.all_tables(d, swept, twin, baselines, chosen, shuffles, alpha)
    tensors = {**_tensors(swept, linear), **causal.tensors}
    moved = (
        "" if causal.places.empty else str(causal.places.loc[causal.places["chosen"], "site"].iloc[0]) + "@-1"
    )
    frames["places"] = tables.places(tensors, address(linear.place), linear.kind, moved)
    frames["headline"] = tables.headline(d, swept, chosen, baselines, causal.control, alpha)
    if linted.findings:
        frames["lint"] = linted.frame()
    if asked is not None:
        frames["asked"] = asked[1]
    if len(causal.table):
        frames["causal"], frames["causal_places"] = causal.table, causal.places
    return Result(
        "probe", effects=tables.effects(d, swept), tables=frames, tensors=tensors, controls=ran,
        verdict=verdict(ran, MANDATORY, max(p, shuffles.smallest_p), alpha, shuffles.smallest_p),
        raw_examples=tables.examples(d, chosen, seed),
    )  # fmt: skip


def _linted(found: Lint) -> Control:
    """What the linter says of the data, before anything was fitted to it."""
    errors = [f"{f.kind}: {f.detail}" for f in found.errors]
    other = [f.kind for f in found.findings if f.severity == "warning"]
    return Control("lint", "that the data give the label away, or one part of the split another", "no error among the linter's findings",
                   {"errors": len(errors), "warnings": len(other)}, not errors, max(1, len(found.measured)), detail="; ".join(errors + other)[:400])  # fmt: skip


def _controls(
    d: Design,
    swept: Swept,
    captured: Mapping[Place, Matrix],
    linear: Cell,
    closed: Cell,
    o: ProbeOptions,
    seed: int,
) -> tuple[list[Control], float]:
    values = captured[linear.place]
    first, p = check.shuffled(closed, swept, d)
    ran = [split_control(d), first]
    ran.append(check.random_direction(linear, values, d, o.random_directions, seed))
    ran.append(check.selectivity(linear, values, d, o, seed))
    fitted = [c for c in swept.cells if c.kind == "logistic"]
    if fitted:
        best = max(fitted, key=lambda c: c.validation)
        control, null = check.shuffled_logistic(best, captured[best.place], d, o, seed)
        swept.own[best.place, "logistic"] = null
        ran.append(control)
    else:
        ran.append(
            Control.not_run(
                "shuffled_logistic",
                "that logistic regression scores so on any labels",
                "chance on shuffled labels",
                "no logistic probe was asked for",
            )
        )
    return ran, p


def _attention(model: Model, texts: Texts, d: Design, swept: Swept, o: ProbeOptions, seed: int) -> None:
    """Attention-pooled probes where the others read best; their null from a few refits on shuffled labels."""
    order = sorted(swept.cells, key=lambda c: -c.validation)
    sites = list(dict.fromkeys(c.place[0] for c in order))[: o.attention_sites]
    shuffles = shuffled_columns(
        d.truth,
        d.units,
        draws=max(o.attention_shuffles, 1),
        seed=seed,
        parts=d.parts,
        name="attention shuffles",
    )
    for site in sites:
        values, mask = sequences(model, texts, site, batch=o.batch)
        fitted = attention(values[d.train], mask[d.train], d.truth[d.train], seed=seed)
        scores = fitted.scores(values, mask)
        held = float(auroc(scores[d.validation], d.truth[d.validation])[0])
        place: Place = (site, ATTENTION)
        swept.cells.append(Cell(place, "attention", scores, held))
        null = np.empty(o.attention_shuffles)
        for k in range(o.attention_shuffles):
            labels = shuffles.labels[:, k]
            other = attention(values[d.train], mask[d.train], labels[d.train], seed=seed)
            null[k] = auroc(other.scores(values[d.test], mask[d.test]), labels[d.test])[0]
        swept.own[place, "attention"] = null


def _baselines(
    model: Model,
    d: Design,
    texts: Texts,
    places: Sequence[Place],
    chosen: Cell,
    wanted: Sequence[str],
    o: ProbeOptions,
    ran: list[Control],
    seed: int,
) -> tuple[list[Baseline], Swept | None]:
    """Bag of words, length and the random twin, each with its control; the twin's own sweep."""
    words = Baseline("bag of words", bag_of_words(d), "counts of words and of pairs of words")
    size = Baseline("length", length(d, [len(r) for r in texts.ids]), "tokens, characters, words")
    ran.append(
        check.beats(
            "bag_of_words",
            "that the words alone, without any model, tell the classes apart",
            d,
            chosen.scores,
            words.scores,
            words.detail,
        )
    )
    ran.append(
        check.beats(
            "length",
            "that one class is longer than the other",
            d,
            chosen.scores,
            size.scores,
            size.detail,
        )
    )
    expected = "the probe's AUROC above the twin's best, the 95 % interval of the difference above 0"
    if not o.twin:
        ran.append(Control.not_run("random_twin", TWIN, expected, "it was switched off"))
        return [words, size], None
    try:
        twin = random_twin(model, seed)
    except ModelError as error:
        ran.append(Control.not_run("random_twin", TWIN, expected, error.what + ": " + error.why))
        return [words, size], None
    pooled: list[Place] = [(b, MEAN) for b in dict.fromkeys(p[0] for p in places)]
    every = [*places, *(pooled if "mean_pooled" in wanted else [])]
    values = capture(twin, texts, every, batch=o.batch, note="reading the random twin")
    swept = sweep_places(values, d, [k for k in wanted if k in VECTOR], None, o, note="probing the twin")
    best = swept.best()
    ran.append(
        check.beats(
            "random_twin", TWIN, d, chosen.scores, best.scores, f"{best.kind} at {address(best.place)}"
        )
    )
    return [words, size], swept


def _ask(
    model: Model,
    d: Design,
    given: Ask | None,
    chosen: Cell,
    ran: list[Control],
    baselines: list[Baseline],
    seed: int,
) -> tuple[Asked, Any] | None:
    """The best wording on validation texts, its control, and a table of all wordings."""
    rules_out, expected = (
        "that a question would have told as much",
        "the probe's AUROC above that of the model's own answers",
    )
    ask = default_ask(d, given)
    if ask is None or model.tokenizer is None:
        why = f"the classes {d.names} are no words; give ask=Ask((negative, positive))"
        ran.append(Control.not_run("ask", rules_out, expected, why))
        return None
    try:
        asked = wordings(model, d, ask, seed)
    except MicrotomeError as error:
        ran.append(Control.not_run("ask", rules_out, expected, error.what + ": " + error.why))
        return None
    held = _few(d, d.validation, ASKED, seed)
    tried = []
    for one in asked:
        tried.append((one, float(auroc(readings(model, one, held), d.truth[held])[0])))
        progress(len(tried), len(asked), "wordings", "asking the model")
    best = max(tried, key=lambda t: t[1])[0]
    scores = np.zeros(len(d.data))
    scores[d.test] = readings(model, best, d.test.tolist())
    baselines.append(Baseline("just ask", scores, best.name))
    ran.append(check.beats("ask", rules_out, d, chosen.scores, scores, best.name))
    return best, tables.asked(d, tried, best, scores, len(held))


def _few(d: Design, part: np.ndarray, n: int, seed: int) -> list[int]:
    """At most n texts, both classes alike."""
    rng = seeds.rng(seed, "asked texts")
    sides = [rng.permutation(part[d.truth[part] == side])[: n // 2] for side in (False, True)]
    return sorted(int(i) for side in sides for i in side)


def _tensors(swept: Swept, linear: Cell) -> dict[str, np.ndarray]:
    """Directions of the chosen place, by kind, in the unit of the site."""
    return {
        f"direction/{c.kind}": c.linear.weights[:, 0].astype(np.float32)
        for c in swept.cells
        if c.place == linear.place and c.linear is not None
    }
