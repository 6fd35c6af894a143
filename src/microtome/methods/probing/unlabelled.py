"""Unsupervised directions, and what else they predict: the label is one of many things that they may have found.

Contrast-consistent search is of Burns et al. 2022; that it finds prominent features whatever they mean, of Farquhar et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from microtome.controls.clusters import FloatArray
from microtome.controls.discrimination import auroc
from microtome.controls.shuffles import shuffled_columns
from microtome.errors import TaskError
from microtome.methods.headlines import headlined
from microtome.methods.probing.asking import wordings
from microtome.methods.probing.capture import Matrix, Texts, address, capture, encoded, own_token, places_of
from microtome.methods.probing.contrastive import ccs, components
from microtome.methods.probing.design import Design, design, split_control
from microtome.methods.probing.options import Ask, ProbeOptions
from microtome.results import seeds
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.labelled import LabelledText

MANDATORY = ("split", "own_token", "shuffled_labels", "other_features")
CONTROLS = (*MANDATORY, "restarts")
COMPONENTS = 3
MOST_VALUES = 8
LENGTH = "number of tokens"


@dataclass(frozen=True)
class _Found:
    """A direction found without labels: its name, its scores [item] on all texts, the direction [d]."""

    name: str
    scores: FloatArray
    direction: FloatArray


@technique(
    "unsupervised",
    "1",
    controls=CONTROLS,
    mandatory=MANDATORY,
    figure="microtome.figures.unsupervised:draw",
    random=True,
)
def unsupervised(
    model: Model,
    data: LabelledText,
    *,
    site: str,
    pairs: tuple[Sequence[str], Sequence[str]] | None = None,
    ask: Ask | None = None,
    features: Mapping[str, Sequence[Any]] | None = None,
    options: ProbeOptions | Mapping[str, Any] | None = None,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """What directions found without labels tell, of the label and of everything else that varies in these texts.

    Parameters
    ----------
    site: one site with one position ("L12.resid_post@-1").
    pairs: for contrast-consistent search, each text completed in the positive and in the negative way; or `ask`, whose first
        wording is completed by its two words. Without both only principal components are taken.
    features: other things that the texts differ in, name -> one value per text; the data's groupings of at most 8 values and
        the number of tokens (longer or shorter than most) are taken as well.

    A direction without labels has no sign: every AUROC here is of its better end, in the null too. Directions are found on
    training texts and scored on test texts.

    Returns a Result: tables "predicts" (direction, target, AUROC, null), "restarts"; tensors "direction/<name>". The verdict is
    about the label: p of the best direction against shuffled labels; control `other_features` fails where a direction tells
    something else as well as the label, which is the known failure of these methods (Farquhar et al. 2023).

    Raises
    ------
    TaskError: not one site, pairs or features of another number than texts; else as `probe`.
    """
    o = ProbeOptions.of(options)
    d = design(data, o, seed)
    places = places_of(model, site)
    texts = encoded(model, data, places)
    if len(places) != 1:
        raise TaskError(f"{site} names {len(places)} places", why="directions are found at one", instead='for example "L12.resid_post@-1"')  # fmt: skip
    captured = capture(model, texts, places, batch=o.batch)
    found = _components(captured[places[0]], d)
    searched, restarts = _search(model, d, _completed(model, d, pairs, ask, seed), site, o, seed)
    found += searched
    targets = _targets(d, texts, features)
    table, label_p, least, control = _predicts(d, found, targets, o, seed, alpha)
    ran = [split_control(d), own_token(model, texts, captured, seed), control, _others(table), restarts]
    return headlined(Result(
        "unsupervised", effects=_effects(d, found, address(places[0])), tables={"predicts": table},
        tensors={f"direction/{f.name}": f.direction.astype(np.float32) for f in found}, controls=ran,
        verdict=verdict(ran, MANDATORY, max(label_p, least), alpha, least),
        raw_examples=[{"prompt": data.texts[int(i)], "label": d.names[int(d.truth[i])]} for i in seeds.rng(seed, "examples").permutation(d.test)[:6]],
    ))  # fmt: skip


def _components(values: Matrix, d: Design) -> list[_Found]:
    made = components(values[d.train], COMPONENTS)
    scores = made.scores(values)
    return [_Found(f"component {k + 1}", scores[:, k], axis) for k, axis in enumerate(made.axes)]


def _completed(model: Model, d: Design, pairs: Any, ask: Ask | None, seed: int) -> tuple[list[Any], list[Any]] | None:  # fmt: skip
    """Prompts of the positive and of the negative completion of every text."""
    if pairs is not None:
        if len(pairs) != 2 or any(len(side) != len(d.data) for side in pairs):
            raise TaskError(f"pairs of {[len(s) for s in pairs]} texts for {len(d.data)}", why="each text is completed in two ways",
                            instead="two lists as long as the data")  # fmt: skip
        return list(pairs[0]), list(pairs[1])
    if ask is None:
        return None
    asked = wordings(model, d, replace(ask, chat=False, shots=0), seed)[0]
    return [[*row, asked.answer] for row in asked.ids], [[*row, asked.wrong] for row in asked.ids]


def _search(model: Model, d: Design, completed: tuple[list[Any], list[Any]] | None, site: str, o: ProbeOptions, seed: int) -> tuple[list[_Found], Control]:  # fmt: skip
    rules_out, expected = (
        "that the search ends elsewhere from every start",
        "half of the restarts or more within 0.9 of the best one's direction",
    )
    if completed is None:
        return [], Control.not_run("restarts", rules_out, expected, "no contrast pairs were given")
    sides = []
    for side in completed:
        ids = model.tokens(side).rows()
        places = places_of(model, site)
        sides.append(
            capture(
                model, Texts(tuple(map(tuple, ids)), {}), places, batch=o.batch, note="reading the pairs"
            )[places[0]]
        )
    made = ccs(sides[0][d.train], sides[1][d.train], seed=seed)
    share = float((made.cosines > 0.9).mean())
    control = Control("restarts", rules_out, expected, {"share near the best": share, "smallest loss": float(made.losses.min()), "largest": float(made.losses.max())},
                      share >= 0.5, len(made.losses))  # fmt: skip
    return [_Found("CCS", made.scores(*sides), made.weights / made.scale.mean(0))], control


def _targets(
    d: Design, texts: Texts, features: Mapping[str, Sequence[Any]] | None
) -> dict[str, NDArray[np.bool_]]:
    """What may be told: the label, and every other feature, one value against the rest. [item] each."""
    given = {k: [str(x) for x in v] for k, v in (features or {}).items()}
    if wrong := [k for k, v in given.items() if len(v) != len(d.data)]:
        raise TaskError(f"feature {wrong[0]!r} has {len(given[wrong[0]])} values for {len(d.data)} texts", why="each text has one",
                        instead=f"give {len(d.data)}")  # fmt: skip
    small = {k: list(v) for k, v in d.data.groups.items() if 2 <= len(set(v)) <= MOST_VALUES}
    lengths = np.array([len(r) for r in texts.ids])
    out = {"label": d.truth}
    for name, values in {**small, **given}.items():
        kinds = sorted(set(values))
        for kind in kinds[1:] if len(kinds) == 2 else kinds:
            out[f"{name}: {kind}"] = np.array([v == kind for v in values])
    out[LENGTH] = lengths > np.median(lengths)
    test = d.test
    return {k: v for k, v in out.items() if v[test].any() and not v[test].all()}


def _predicts(
    d: Design,
    found: list[_Found],
    targets: Mapping[str, NDArray[np.bool_]],
    o: ProbeOptions,
    seed: int,
    alpha: float,
) -> tuple[pd.DataFrame, float, float, Control]:
    """AUROC of the better end for each direction and target; the label's null by shuffles of whole groups."""
    import pandas as pd

    shuffles = shuffled_columns(d.truth, d.units, draws=o.permutations, seed=seed, parts=d.parts, scored=d.test, name="unsupervised")  # fmt: skip
    null = np.max([_either(auroc(f.scores[d.test], shuffles.labels[d.test])) for f in found], axis=0)
    rows = [
        {"direction": f.name, "target": name, "value": float(_either(auroc(f.scores[d.test], truth[d.test]))[0]), "n": len(d.test),
         "null_high": float(np.quantile(null, 1 - alpha)) if name == "label" else np.nan}
        for f in found for name, truth in targets.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    seen = float(table.loc[table["target"] == "label", "value"].max())
    p = (1 + int((null >= seen - 1e-12).sum())) / (1 + len(null))
    control = Control("shuffled_labels", "that some direction tells any labels as well", "the best direction above 95 % of shuffled labels, the better end and the best direction taken in both",
                      {"best direction": seen, "p": p}, p <= 0.05, len(null), null=(float(null.min()), float(null.max())))  # fmt: skip
    return table, p, shuffles.smallest_p, control


def _either(area: FloatArray) -> FloatArray:
    return np.maximum(area, 1 - area)


def _others(table: pd.DataFrame) -> Control:
    """Whether the direction that tells the label best tells nothing else better: without labels nothing says which was meant."""
    rules_out, expected = (
        "that the direction is about something else that varies in these texts",
        "it tells the label better than any other feature",
    )
    label = table[table["target"] == "label"]
    best = str(label.sort_values("value", kind="stable")["direction"].iloc[-1])
    others = table[(table["direction"] == best) & (table["target"] != "label")]
    if others.empty:
        return Control.not_run(
            "other_features", rules_out, expected, "nothing else varies in the test texts; give features="
        )
    top = others.sort_values("value", kind="stable").iloc[-1]
    seen = float(label["value"].max())
    return Control(
        "other_features",
        rules_out,
        expected,
        {best: seen, str(top["target"]): float(top["value"])},
        bool(seen > float(top["value"])),
        len(others),
    )


def _effects(d: Design, found: list[_Found], site: str) -> Labelled:
    """[site, prompt, metric]: the score of each test text along each direction, in the direction's own unit."""
    values = np.stack([f.scores[d.test] for f in found], -1)[None]
    return Labelled(values, ("site", "prompt", "metric"), {"site": (site,), "prompt": tuple(d.test.tolist()), "metric": tuple(f"score of {f.name}" for f in found)})  # fmt: skip
