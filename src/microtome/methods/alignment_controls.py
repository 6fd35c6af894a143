"""What a subspace found by training must be told from: training itself, and a path that the model does not use.

Placebos: the same optimiser, steps and size on labels that say nothing, on a variable that decides nothing, and on a
model that knows nothing. The split of a subspace by its linear reader catches the subspace illusion (Makelov, Lange &
Nanda 2023, arXiv 2311.17030): a direction that is half what nothing reads (but which follows the variable) and half what
never moves (but which is read) exchanges the answer, although the model carries no variable there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks
from microtome.controls.intervals import mean_interval, proportion_interval
from microtome.errors import ModelError
from microtome.methods.alignment_setup import Part, Search, elsewhere, label_values, recurring
from microtome.methods.rotation import Data, Measured, Recipe, Subspace, measure, train
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.results.verdicts import Control

if TYPE_CHECKING:
    from microtome.facade import Model

LEVEL = 0.9
"""Two-sided level of intervals whose lower end is a one-sided test at .05."""
PLACEBO_SHARE = 0.5
CEILING_SHARE = 0.5
ROW_SHARE = 0.5
RANDOM_SUBSPACES = 10
OVERSHOOT = 2.0
ENERGY = 0.1
RULES_OUT = {
    "shuffled_labels": "that training alone makes any labels come true",
    "irrelevant_variable": "that training finds a code for a variable that decides nothing",
    "random_twin": "that the architecture answers so, whatever it has learned",
    "random_subspace": "that any subspace of this size would do",
    "row_space": "that the effect needs directions that nothing reads (the subspace illusion)",
    "null_space": "that something else than the linear map reads this site",
    "natural_variance": "that the patch moves what is read to where natural data never are (a dormant direction)",
}


@dataclass(frozen=True)
class Trial:
    """What one way of exchanging did on all held-out rows: hits and log-probabilities, and the same left alone."""

    name: str
    hit: np.ndarray
    logprob: np.ndarray
    before: np.ndarray
    k: int

    @property
    def gain(self) -> np.ndarray:
        """Hits more than without an exchange, row by row."""
        return self.hit - self.before


def on_held_out(found: Search, basis: Tensor | str | None, parts: Sequence[Data] | None = None) -> Measured:
    """`measure` on every held-out row, part after part."""
    made = [measure(data, basis) for data in (parts or [p.data for p in found.held_out])]
    return Measured(np.concatenate([m.hit for m in made]), np.concatenate([m.logprob for m in made]))


# ---- placebos -----------------------------------------------------------------------------------


def placebos(
    found: Search, recipe: Recipe, count: int
) -> tuple[list[Trial], dict[str, str], list[dict[str, object]]]:
    """(trials, why others did not run, their histories): `count` seeds of each placebo, averaged row by row."""
    trials, missing = [], {}
    lines: list[dict[str, object]] = []
    for name in ("shuffled_labels", "irrelevant_variable", "random_twin"):
        made: list[tuple[Measured, Measured]] = []
        for i in range(count):
            seed = seeds.child(recipe.seed, f"das/{name}/{i}")
            built = _placebo(found, name, seed)
            if isinstance(built, str):
                missing[name] = built
                break
            training, test, where = built
            subspace = train(training, replace(recipe, seed=seed), partial(_told, name))
            lines += [{"run": f"{name} {i}", **line} for line in subspace.history]
            made.append((on_held_out(where, subspace.basis, test), on_held_out(where, "nothing", test)))
        if made:
            hit, logprob = np.mean([a.hit for a, _ in made], 0), np.mean([a.logprob for a, _ in made], 0)
            trials.append(Trial(name, hit, logprob, np.mean([b.hit for _, b in made], 0), recipe.k))
    return trials, missing, lines


def _told(name: str, done: int, total: int) -> None:
    progress(done, total, "steps", f"placebo: {name}")


def _placebo(found: Search, name: str, seed: int) -> tuple[Data, list[Data], Search] | str:
    """Training data, held-out data and where they are; or why there is no such placebo."""
    if name == "shuffled_labels":
        made = [
            p.data.relabelled(_shuffled(p.data, seeds.child(seed, f"das/shuffle/{p.name}")))
            for p in found.parts
        ]
        return made[0], made[1:], found
    if name == "random_twin":
        from microtome.facade import Model
        from microtome.model.load import load_module
        from microtome.model.twin import twin

        try:
            fresh = Model(load_module(twin(found.model.hf, seed), tokenizer=found.model.tokenizer))
        except ModelError as error:
            return error.what
        there = elsewhere(found, fresh)
        return there.training.data, [p.data for p in there.held_out], there
    variable = recurring(found)
    if not variable:
        return "the task has no other variable or surface slot with two values that leaves every answer alone"
    return (
        _mapped(found.training, variable, seed),
        [_mapped(p, variable, seed) for p in found.held_out],
        found,
    )


def _shuffled(data: Data, seed: int) -> Tensor:
    """For every row the label of a random row, among those that its base can have."""
    rng = seeds.rng(seed, "das/shuffle")
    out = data.label.clone()
    for row, base in enumerate(data.base.tolist()):
        fitting = data.label[data.allowed[base, data.label]]
        out[row] = fitting[int(rng.integers(len(fitting)))]
    return out


def _mapped(part: Part, variable: str, seed: int) -> Data:
    """Labels that a random code of the source's value gives: the same code in every part."""
    data = part.data
    labels = []
    for base, value in zip(data.base.tolist(), label_values(part, variable), strict=True):
        order = seeds.rng(seed, f"das/code/{value}").permutation(data.allowed.shape[1])
        labels.append(next(int(c) for c in order if bool(data.allowed[base, int(c)])))
    return data.relabelled(torch.tensor(labels, device=data.label.device))


def random_subspaces(found: Search, k: int, left: Measured, seed: int) -> Trial:
    """The mean over random subspaces of the size of the one found, none of them trained."""
    swaps = found.training.data.swaps
    made = []
    for i in range(RANDOM_SUBSPACES):
        drawn = seeds.rng(seed, f"das/random_subspace/{i}").standard_normal((swaps.d, k))
        basis = torch.linalg.qr(torch.tensor(drawn, dtype=swaps.values.dtype))[0].to(swaps.values.device)
        made.append(on_held_out(found, basis))
    hit, logprob = np.mean([m.hit for m in made], 0), np.mean([m.logprob for m in made], 0)
    return Trial("random_subspace", hit, logprob, left.hit, k)


def placebo_controls(
    real: Trial, trials: Sequence[Trial], missing: dict[str, str], clusters: Sequence[str]
) -> list[Control]:
    """Each placebo's gain over its own base rate must be at most half the real one (one-sided, alpha .05)."""
    expected = f"at most {PLACEBO_SHARE:g} of the real gain in interchange accuracy (one-sided, alpha .05)"
    out = [Control.not_run(name, RULES_OUT[name], expected, why) for name, why in missing.items()]
    for trial in trials:
        spare = mean_interval(PLACEBO_SHARE * real.gain - trial.gain, list(clusters), level=LEVEL)
        seen = {
            "gain": float(trial.gain.mean()),
            "real gain": float(real.gain.mean()),
            "accuracy": float(trial.hit.mean()),
        }
        out.append(
            Control(
                trial.name,
                RULES_OUT[trial.name],
                expected,
                seen,
                bool(spare.low > 0),
                len(trial.hit),
                detail=spare.method,
            )
        )
    return out


def reaches(real: Trial, full: Trial, clusters: Sequence[str]) -> Control:
    """At least half of what exchanging the whole site gains: a subspace that carries a tenth is not where the variable is."""
    spare = mean_interval(real.gain - CEILING_SHARE * full.gain, list(clusters), level=LEVEL)
    seen = {"gain": float(real.gain.mean()), "whole site": float(full.gain.mean())}
    return Control("share_of_ceiling", "that the subspace holds a small part of the variable, or memorised its values",
                   f"at least {CEILING_SHARE:g} of the gain by the whole site (one-sided, alpha .05)", seen,
                   bool(spare.low > 0), len(real.hit), detail=spare.method)  # fmt: skip


def within_ceiling(real: Trial, full: Trial, clusters: Sequence[str]) -> Control:
    """The subspace must not do more than the whole site. A caution where a reader tells more, since the whole site exchanges
    other variables too."""
    more = mean_interval(real.gain - full.gain, list(clusters), level=LEVEL)
    seen = {"gain": float(real.gain.mean()), "whole site": float(full.gain.mean())}
    return Control("ceiling", "that the exchange makes a state that no source prompt has",
                   "no more gain than by the whole site (unless it carries other variables that decide)", seen,
                   not bool(more.low > 0), len(real.hit), detail=more.method)  # fmt: skip


# ---- checks of the exchange itself -----------------------------------------------------------------


def exact(found: Search, basis: Tensor) -> Control:
    """A prompt that exchanges the subspace with itself must give its own logits."""
    gaps, floors = [], []
    for p in found.held_out:
        itself = replace(p.data, source=p.data.base)
        rows = torch.unique(p.data.base)
        mine = p.data.swaps.values[rows]
        with torch.no_grad():
            patched = p.data.swaps.logits(rows, mine + (mine - itself.swaps.values[rows]) @ basis @ basis.T)
        gaps.append((patched - p.data.swaps.unpatched[rows]).abs().reshape(-1).cpu().numpy())
        floors.append(p.data.swaps.floor)
    return checks.identity(np.concatenate(gaps), max(floors))


def fired(found: Search) -> Control:
    """Every write of every run must have happened."""
    done = {p.name: p.data.swaps.receipt.places for p in found.parts}
    return checks.receipts(done, {p.name: p.data.swaps.planned for p in found.parts})


def held_out_control(part: Part, training: Part, real: Measured, before: Measured) -> Control:
    """Accuracy on one held-out part above its base rate and above chance; `detail` says what else is new in it."""
    kind = {"entity": "entities", "template": "templates"}[part.name]
    name, chance = f"held_out_{kind}", chance_of(part.data)
    gain = mean_interval(real.hit - before.hit, list(part.clusters), level=LEVEL)
    rate = proportion_interval(real.hit, list(part.clusters), level=LEVEL, of=part.by)
    seen = {
        "accuracy": float(real.hit.mean()),
        "low": float(rate.low),
        "base rate": float(before.hit.mean()),
        "chance": chance,
    }
    return Control(name, f"that the subspace works only for {kind} that it was trained on",
                   "interchange accuracy above the base rate and above chance (one-sided, alpha .05)", seen,
                   bool(gain.low > 0 and rate.low > chance), len(real.hit), detail=f"clusters: {part.by}; {rate.method}{_also_new(part, training)}")  # fmt: skip


def _also_new(part: Part, training: Part) -> str:
    """How much of the other grouping was trained on: few pairs leave new templates with new entities only."""
    other = "template" if part.name == "entity" else "entity"
    mine, known = set(part.exchange.groups(other)), set(training.exchange.groups(other))
    return f"; of its {len(mine)} {other} labels {len(mine & known)} were trained on" if mine else ""


def chance_of(data: Data) -> float:
    """Accuracy of a guess among each base's candidates."""
    return float((1 / data.allowed[data.base].sum(1)).mean())


# ---- the reader's view -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """A subspace seen by its one linear reader. row, null: orthonormal bases [d, *] of its parts; share [direction]: how
    much of each direction is read; overshoot: how far patches move what is read, in units of natural differences there."""

    row: Tensor
    null: Tensor
    share: np.ndarray
    overshoot: float


def refused(model: Model, found: Search) -> str:
    """Why a subspace of this site cannot be split by its reader; "" where it can."""
    site = found.site
    if site.point != "neurons" or site.index is not None or not isinstance(site.layer, int):
        narrow = {
            "z": "a head's output matrix is not wider than what it reads, and has no null space to speak of"
        }
        why = narrow.get(site.point, "many parts read it, and what one does not read another may")
        return f"{site.bare} has no one wide linear reader: {why}"
    w = model.weights.W_out(site.layer)
    if w.shape[0] <= w.shape[1]:
        return f"W_out reads {w.shape[0]} neurons into {w.shape[1]} dimensions: nothing of them is unread"
    return ""


def split_by_reader(model: Model, found: Search, subspace: Subspace) -> Split:
    """Row-space and null-space part of a subspace of neurons under W_out (Makelov et al. 2023, section 3)."""
    assert isinstance(found.site.layer, int)
    w = model.weights.W_out(found.site.layer).detach().double()
    left, size, _ = torch.linalg.svd(w, full_matrices=False)
    read = left[:, size > size[0] * 1e-6]
    basis = subspace.basis.double()
    inside = read @ (read.T @ basis)
    row, strength, turn = torch.linalg.svd(inside, full_matrices=False)
    null, unread, _ = torch.linalg.svd(basis - inside, full_matrices=False)
    keep = strength > 1e-4
    delta = torch.cat(
        [
            (p.data.swaps.values[p.data.source] - p.data.swaps.values[p.data.base]).flatten(0, 1)
            for p in found.parts
        ]
    ).double()
    moved = (delta @ basis @ turn.T * strength)[:, keep].square().mean(0)
    natural = (delta @ row)[:, keep].square().mean(0)
    counts = moved >= ENERGY * moved.sum()
    ratio = (moved / natural.clamp_min(1e-12 * float(moved.sum()))).sqrt()[counts]
    share = inside.square().sum(0).cpu().numpy()
    return Split(
        row[:, keep].to(subspace.basis),
        null[:, unread > 1e-4].to(subspace.basis),
        share,
        float(ratio.max()) if len(ratio) else 0.0,
    )


def natural_variance(found: Search, basis: Tensor) -> np.ndarray:
    """Variance of natural data along each direction over that along an average direction of the site. Shapes: [k]."""
    values = torch.cat([p.data.swaps.values.flatten(0, 1) for p in found.parts]).double()
    centred = values - values.mean(0)
    return ((centred @ basis.double()).square().mean(0) / centred.square().mean()).cpu().numpy()


def split_controls(
    found: Search, real: Trial, split: Split | None, why: str
) -> tuple[list[Control], list[Trial]]:
    """The row-space part alone must do what the subspace does, the null-space part alone nothing; see `Split`."""
    row_says = f"at least {ROW_SHARE:g} of the gain by the part that W_out reads (one-sided, alpha .05)"
    null_says, size_says = (
        "no change by the part that W_out does not read",
        f"a patch moves what is read at most {OVERSHOOT:g} times as far as natural differences do",
    )
    if split is None:
        says = {"row_space": row_says, "null_space": null_says, "natural_variance": size_says}
        return [Control.not_run(name, RULES_OUT[name], text, why) for name, text in says.items()], []
    n = len(real.hit)
    row = on_held_out(found, split.row) if split.row.shape[1] else on_held_out(found, "nothing")
    trials = [Trial("row space only", row.hit, row.logprob, real.before, split.row.shape[1])]
    spare = mean_interval(trials[0].gain - ROW_SHARE * real.gain, list(found.clusters), level=LEVEL)
    seen = {"gain": float(trials[0].gain.mean()), "real gain": float(real.gain.mean())}
    out = [
        Control(
            "row_space", RULES_OUT["row_space"], row_says, seen, bool(spare.low > 0), n, detail=spare.method
        )
    ]
    if split.null.shape[1]:
        null, alone = on_held_out(found, split.null), on_held_out(found, "nothing")
        trials.append(Trial("null space only", null.hit, null.logprob, real.before, split.null.shape[1]))
        gap, floor = (
            float(np.abs(null.logprob - alone.logprob).max()),
            2 * max(p.data.swaps.floor for p in found.held_out),
        )
        out.append(
            Control(
                "null_space",
                RULES_OUT["null_space"],
                f"{null_says}, within {floor:.1g} nats",
                gap,
                gap <= floor,
                n,
                gates=True,
            )
        )
    else:
        out.append(
            Control.not_run("null_space", RULES_OUT["null_space"], null_says, "all of the subspace is read")
        )
    out.append(
        Control(
            "natural_variance",
            RULES_OUT["natural_variance"],
            size_says,
            split.overshoot,
            split.overshoot <= OVERSHOOT,
            n,
        )
    )
    return out, trials
