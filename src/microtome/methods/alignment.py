"""Distributed alignment search: does a subspace of one site carry one variable of the task's causal model?

Geiger et al. 2023 (arXiv 2303.02536), Wu et al. 2023 (arXiv 2305.08809, boundless); interchange accuracy after Geiger et
al. 2021 (arXiv 2106.02997); the controls against the subspace illusion after Makelov et al. 2023 (arXiv 2311.17030).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from microtome.controls import checks
from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.controls.signflip import FamilyTest, sign_flip
from microtome.errors import SiteError
from microtome.methods import alignment_controls as nulls
from microtome.methods.alignment_controls import Trial, on_held_out
from microtome.methods.alignment_setup import PARTS, Part, Search, counting, one_site, search, split
from microtome.methods.rotation import Recipe, Subspace, measure, train
from microtome.results import seeds
from microtome.results.arguments import ArgumentError
from microtome.results.labelled import Labelled
from microtome.results.result import Result
from microtome.results.technique import progress, technique
from microtome.results.verdicts import Control, verdict

if TYPE_CHECKING:
    import pandas as pd

    from microtome.facade import Model
    from microtome.tasks.pairs import PairTask

HELD = {"entity": "held_out_entities", "template": "held_out_templates"}
METRICS = ("interchange_accuracy", "counterfactual_logprob")
PLACEBOS = ("random_subspace", "shuffled_labels", "irrelevant_variable", "random_twin")
READER = ("row_space", "null_space", "natural_variance")


@technique("distributed_alignment_search", "2", controls=("identity", "receipts", "sign_flip", *HELD.values(), *PLACEBOS, "share_of_ceiling", "ceiling", *READER),
           mandatory=("identity", "receipts", "share_of_ceiling", "random_subspace", "shuffled_labels", "random_twin"), figure="microtome.figures.alignment:draw", random=True)  # fmt: skip
def das(
    model: Model,
    task: PairTask,
    *,
    variable: str,
    site: str,
    k: int = 1,
    boundless: bool = False,
    held_out: PairTask | Sequence[PairTask] | None = None,
    steps: int = 200,
    lr: float = 0.01,
    placebos: int = 2,
    alpha: float = 0.001,
    seed: int = 0,
) -> Result:
    """Find a subspace of `site` whose exchange between two prompts exchanges the value of `variable`, and test it.

    Base and source are prompts of the task; the label is what follows the base prompt with the source's value. An
    orthonormal basis R (d x k, Adam on its QR factor, batches of 32) is trained so that h_base + R R^T (h_source - h_base)
    makes the label likely among the base's candidates, the answers that an exchange can give it. Interchange accuracy is
    how often the label is the likeliest candidate. Every prompt is run once; training calls only the layers above.

    Parameters
    ----------
    variable: a declared variable of the task that decides the answer (IOI: io; sva: number; gendered_pronoun: gender).
    site: one address with a position: "L12.resid_post@-1", "L5.neurons@-1", "L9H6.z@s2". Several tokens share one basis.
    k: directions. With `boundless` the most that may be kept: training decides how many (k = d rotates the whole site, as
        published; the placebos are then trained with as many as were kept).
    held_out: pairs with other entities, with other templates (`task.split`), or both in a list. None splits `task`: a
        third of the entities away, then a third of the templates of the rest.
    placebos: how many seeds of each placebo are trained (their accuracy is averaged).
    alpha: level of the sign-flip test of the gain in accuracy, over clusters of all held-out rows: those of the base
        prompts (that rows may share a source is not modelled). Log-probabilities are shown but not tested: a subspace that
        only makes the model undecided raises them too.

    Supported means: on new entities and on new templates above base rate and chance, at least half of what exchanging the
    whole site gains, at most half of it by any placebo, and by the part that is read where one linear map reads the site.

    Returns a Result: effects [site, prompt, metric] with one "prompt" for each held-out interchange, exchanged minus left
    alone: interchange_accuracy (0 or 1 each) and counterfactual_logprob (nats, among the candidates). Tables: accuracy
    (subspace, base rate, chance, full vector, placebos, reader's parts; by part), interchanges, subspace, training.
    Tensor basis [d, k].

    Raises
    ------
    TaskError: no such variable (the nearest is named), answers of several tokens, held-out pairs that are not held out, or
    positions that are not one place in all prompts. SiteError: an address this model lacks, or k above its dimensions.
    ArgumentError: counts below 1, or a learning rate that is not positive.
    """
    where = one_site(model, site)
    counts = (counting("k", k, 1), counting("steps", steps, 1), counting("placebos", placebos, 1))
    if not 0 < lr < float("inf"):
        raise ArgumentError(f"lr is {lr!r}", why="a step needs a positive length", instead="lr=0.01")
    found = search(model, split(task, held_out, seed), variable, where, seed)
    d = found.training.data.swaps.d
    if k > d:
        raise SiteError(f"{where} has {d} dimensions, {k} directions were asked for", why="they are orthogonal to one another",
                        instead=f"k={d} or fewer")  # fmt: skip
    recipe = Recipe(counts[0], boundless, counts[1], lr, seeds.child(seed, "das/real"))
    subspace = train(found.training.data, recipe, lambda n, of: progress(n, of, "steps", "training"))
    return _tested(found, subspace, recipe, counts[2], alpha, seed)


def _tested(found: Search, subspace: Subspace, recipe: Recipe, count: int, alpha: float, seed: int) -> Result:
    """The subspace on the held-out parts, beside everything that it must be told from."""
    import pandas as pd

    site = str(found.site)
    left, after, whole = (on_held_out(found, basis) for basis in ("nothing", subspace.basis, None))
    real = Trial("subspace", after.hit, after.logprob, left.hit, subspace.k)
    full = Trial("full vector", whole.hit, whole.logprob, left.hit, found.training.data.swaps.d)
    alone = Trial("no intervention", left.hit, left.logprob, left.hit, 0)
    fixed = replace(recipe, k=max(subspace.k, 1), boundless=False, seed=seeds.child(seed, "das/placebos"))
    trials, missing, lines = nulls.placebos(found, fixed, count)
    trials = [nulls.random_subspaces(found, fixed.k, left, fixed.seed), *trials]
    why = nulls.refused(found.model, found) if subspace.k else "no direction was kept"
    seen = None if why else nulls.split_by_reader(found.model, found, subspace)
    read, parts = nulls.split_controls(found, real, seen, why)
    test = sign_flip(real.gain[None], list(found.clusters), seed=seed, alpha=alpha)
    ran = [nulls.exact(found, subspace.basis), nulls.fired(found), checks.sign_flip_control(test), *_held_out(found, subspace),
           *nulls.placebo_controls(real, trials, missing, found.clusters), nulls.reaches(real, full, found.clusters),
           nulls.within_ceiling(real, full, found.clusters), *read]  # fmt: skip
    values = np.stack([real.gain, after.logprob - left.logprob], -1)[None]
    return Result(
        "distributed_alignment_search",
        effects=Labelled(values, ("site", "prompt", "metric"), {"site": (site,), "prompt": tuple(range(len(real.hit))), "metric": METRICS}),
        tables={"accuracy": _accuracy(found, [real, alone, full, *parts, *trials], subspace), "cells": _cells(site, values[0], found, test),
                "interchanges": _interchanges(found, real), "subspace": _directions(found, subspace, None if seen is None else seen.share),
                "training": pd.DataFrame([{"run": "real", **line} for line in subspace.history] + lines)},
        tensors={"basis": subspace.basis.cpu().numpy()},
        controls=ran, verdict=verdict(ran, _mandatory(ran, found), test.min_p, alpha, test.smallest_p),
        raw_examples=_examples(found, real, seed),
    )  # fmt: skip


def _mandatory(ran: Sequence[Control], found: Search) -> tuple[str, ...]:
    """What this task and site can be asked for: the parts held out, another variable, a reader.

    Without a reader to split by, doing more than the whole site is the only sign of the subspace illusion, so that it decides.
    """
    given = {HELD[p.name] for p in found.held_out}
    can = [c.name for c in ran if c.passed is not None and c.name in ("irrelevant_variable", *READER)]
    return (*sorted(given), *can, *(() if {*can} & {*READER} else ("ceiling",)))


def _held_out(found: Search, subspace: Subspace) -> list[Control]:
    out = []
    have = {p.name: p for p in found.held_out}
    for name in PARTS:
        if name in have:
            data = have[name].data
            out.append(
                nulls.held_out_control(
                    have[name], found.training, measure(data, subspace.basis), measure(data, "nothing")
                )
            )
        else:
            out.append(Control.not_run(HELD[name], f"that the subspace works only for the {name} it was trained on", "accuracy above the base rate and chance",
                                       f"no pairs with another {name} were held out"))  # fmt: skip
    return out


def _accuracy(found: Search, trials: Sequence[Trial], subspace: Subspace) -> pd.DataFrame:
    """One row for each part and way of exchanging, with its interval; chance has none."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    begin = 0
    for part in found.held_out:
        inside = slice(begin, begin + part.data.n)
        begin = inside.stop
        for trial in trials:
            rows.append(_rate(part, trial.name, trial.hit[inside], trial.k))
        rows.append(
            {
                "part": part.name,
                "what": "chance",
                "value": nulls.chance_of(part.data),
                "low": np.nan,
                "high": np.nan,
                "k": 0,
                "n": part.data.n,
            }
        )
        rows.append(_rate(part, "unpatched model right", _right(part), 0))
    own = found.training
    for name, basis, width in (("subspace", subspace.basis, subspace.k), ("no intervention", "nothing", 0)):
        rows.append(_rate(own, name, measure(own.data, basis).hit, width))
    return pd.DataFrame(rows)


def _rate(part: Part, name: str, hit: np.ndarray, k: int) -> dict[str, object]:
    """A rate with its interval: exact where each row is 0 or 1, else a cluster t (accuracy averaged over seeds)."""
    whole = bool(np.isin(hit, (0.0, 1.0)).all())
    interval = (
        proportion_interval(hit, list(part.clusters), of=part.by)
        if whole
        else mean_interval(hit, list(part.clusters), of=part.by)
    )
    low, high = max(float(interval.low), 0.0), min(float(interval.high), 1.0)
    return {
        "part": part.name,
        "what": name,
        "value": float(hit.mean()),
        "low": low,
        "high": high,
        "k": k,
        "n": len(hit),
    }


def _right(part: Part) -> np.ndarray:
    """Whether the model alone prefers the base's own answer among its candidates. Shapes: [row]."""
    place = {int(t): i for i, t in enumerate(part.data.swaps.columns.tolist())}
    own = np.array([place[t] for t in part.exchange.own])
    told = part.data.swaps.unpatched.masked_fill(~part.data.allowed, -np.inf).argmax(-1).cpu().numpy()
    return (told == own)[part.data.base.cpu().numpy()].astype(np.float64)


def _cells(site: str, values: np.ndarray, found: Search, test: FamilyTest) -> pd.DataFrame:
    """The intervals of both metrics; the null band and p belong to the one that was tested."""
    import pandas as pd

    interval = mean_interval(values.T, list(found.clusters))
    nan = np.nan
    return pd.DataFrame({"site": site, "metric": list(METRICS), "low": interval.low, "high": interval.high, "null_low": [float(test.null_low[0]), nan],
                         "null_high": [float(test.null_high[0]), nan], "p": [float(test.p[0]), nan]})  # fmt: skip


def _interchanges(found: Search, real: Trial) -> pd.DataFrame:
    """Which prompt each row of the effects is: texts by number in their part, the token expected, and whether it came."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for part in found.held_out:
        tokens = part.data.swaps.columns.tolist()
        for base, source, label, cluster in zip(
            part.data.base.tolist(),
            part.data.source.tolist(),
            part.data.label.tolist(),
            part.clusters,
            strict=True,
        ):
            rows.append({"prompt": len(rows), "part": part.name, "base": part.exchange.prompts.texts[base], "source": part.exchange.prompts.texts[source],
                         "label": found.model.strings([tokens[label]])[0], "cluster": cluster,
                         "changes": tokens[label] != part.exchange.own[base]})  # fmt: skip
    return pd.DataFrame(rows).assign(hit=real.hit, base_hit=real.before)


def _directions(found: Search, subspace: Subspace, share: np.ndarray | None) -> pd.DataFrame:
    import pandas as pd

    variance = nulls.natural_variance(found, subspace.basis)
    return pd.DataFrame(
        {
            "direction": range(subspace.k),
            "natural_variance": variance,
            "read_share": np.full(subspace.k, np.nan) if share is None else share,
        }
    )


def _examples(found: Search, real: Trial, seed: int, k: int = 4) -> list[dict[str, object]]:
    """Random held-out interchanges."""
    table = _interchanges(found, real)
    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(table))[:k].tolist())
    return [
        {
            "prompt": table["base"][i],
            "source": table["source"][i],
            "label": table["label"][i],
            "hit": bool(table["hit"][i]),
        }
        for i in pick
    ]
