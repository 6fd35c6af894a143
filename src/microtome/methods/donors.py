"""Forward-based controls of activation patching, on chosen cells: identity, other donors, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks, directions
from microtome.errors import ControlError, TaskError
from microtome.methods.setting import Column, Setting, cell
from microtome.replay.plan import as_stream
from microtome.replay.sources import Given, Prompts, capture
from microtome.replay.sweep import Bench, Settings, groups_of, measure, sweep
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from microtome.tasks.pairs import Donors, PairTask

NOISE_DRAWS = 4
DONORS = ("same_value", "irrelevant", "wrong_value")
ALSO = {"irrelevant": ("other_cells",), "wrong_value": ("value_matters",)}
"""What else the donors of a kind are asked."""
RUNS = 1 + len(DONORS) + 1 + NOISE_DRAWS
"""Patched runs of each chosen cell: identity, donors, the wrong-value donor's other question, noise."""
RUNS_ELSEWHERE = 2
"""Of each cell of the sample: identity, irrelevant donor."""
_WHY = {
    "same_value": ("that the effect belongs to the donor's wording, not to its variables", "another wording with the same variables has the effect"),
    "irrelevant": ("that any other text in this place has the effect", "another text with the base's variables does nothing"),
    "wrong_value": ("that the cell holds something that decides the answer, but not the answer itself", "a third value moves the output to its own answer"),
    "value_matters": ("that the patch only damages the base's answer, whatever value it brings", "a third value does not do what the donor's does"),
    "other_cells": ("that other text moves the metric at the cells that were not chosen", "an irrelevant donor does nothing there either"),
    "noise": ("that any change of this size in this place has the effect", "noise of the patch's norm and natural covariance moves the metric less"),
    "identity": ("that writing an activation back changes the metric", "writing each activation back changes nothing"),
}  # fmt: skip


Cells = list[tuple[Site, Column | None]]
Runner = Callable[[Bench, Cells, Sequence[Sequence[int]]], np.ndarray]
"""Effects [cell, prompt] of cells patched from the runs of these token ids, in the bench's first metric."""


def swept(bench: Bench, cells: Cells, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Patched minus base, by activation patching. Shapes: [cell, prompt]."""
    out = sweep(bench, [cell(*c) for c in cells], {"donor": Prompts(ids)})
    return out.effects[..., 0].numpy().astype(np.float64)


@dataclass
class Chosen:
    """Cells on which forward-based controls run: the strongest, and a random sample of the others.

    Shapes: real [cell, prompt], the strongest cells' effects in the first metric; total [prompt], donor minus base of
    whole runs; others, other_names: the sample, on which the identity and the irrelevant donor run; run: how a cell is patched.
    """

    cells: list[tuple[Site, Column | None]]
    real: np.ndarray
    total: np.ndarray
    names: list[str]
    others: list[tuple[Site, Column | None]] = field(default_factory=list)
    other_names: list[str] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    other_rows: list[dict[str, object]] = field(default_factory=list)
    run: Runner = swept


def not_run(name: str, why: str) -> Control:
    """A control of this family that did not run, and why."""
    rules_out, expected = _WHY[name]
    return Control.not_run(name, rules_out, expected, why, gates=name == "identity")


def identity(s: Setting, chosen: Chosen, floor: float) -> Control:
    """Each chosen cell and each of the sample patched with the base's own value.

    Nothing is skipped: base and donor are the same text here, and a skipped cell would be 0 whatever a patch does.
    """
    cells = [cell(*c) for c in (*chosen.cells, *chosen.others)]
    out = sweep(_first(s.bench), cells, {"donor": Prompts(s.base.ids)}, Settings(skip=False))
    return checks.identity(out.effects.numpy()[out.done.numpy()], floor)


def noise_floor(s: Setting) -> float:
    """How much the metric moves when only the batch shape changes, doubled; in the metric's unit."""
    return bench_noise(_first(s.bench))


def bench_noise(bench: Bench) -> float:
    """`noise_floor` of a bench's metrics."""
    together = measure(bench)
    worst = 0.0
    for i in sorted({0, len(bench.ids) // 2, len(bench.ids) - 1}):
        alone = measure(Bench(bench.binding, [bench.ids[i]], bench.scoring.select([i]), bench.metrics))
        worst = max(worst, float((alone[0] - together[i]).abs().max()))
    size = float(together.abs().max())
    machine = torch.finfo(next(bench.binding.hf.parameters()).dtype).eps
    return 2 * worst + 16 * machine * max(size, 1.0)


def other_donors(s: Setting, chosen: Chosen, seed: int) -> list[Control]:
    """Same-value, irrelevant and wrong-value donors where the task can give them; else why not."""
    task = s.task if s.mode == "denoise" else s.task.swap()
    return [control for kind in DONORS for control in _one_donor(s, task, chosen, kind, seed)]


def _one_donor(s: Setting, task: PairTask, chosen: Chosen, kind: str, seed: int) -> list[Control]:
    names = (kind, *ALSO.get(kind, ()))
    try:
        donors = task.donors(kind, seed)
    except TaskError as error:
        why = error.what + (f" ({error.why})" if error.why else "")
        return [not_run(name, why) for name in names]
    effects = chosen.run(_first(s.bench), chosen.cells, donors.ids)
    clusters, named = list(s.clusters), chosen.names
    if kind == "same_value":
        _note(s, chosen, kind, effects)
        return [checks.same_value(effects, chosen.real, clusters, cells=named)]
    if kind == "irrelevant":
        _note(s, chosen, kind, effects)
        own = checks.irrelevant_donor(effects, chosen.real, chosen.total, clusters, cells=named)
        return [own, _elsewhere(s, chosen, donors)]
    asked = s.with_answers(donors.answers, donors.wrong, "logprob_diff")
    arrived = chosen.run(asked, chosen.cells, donors.ids)
    _note(s, chosen, kind, arrived)
    control = checks.wrong_value(arrived, _real_as_logprob(s, chosen), clusters, cells=named)
    return [control, _value_matters(s, task, chosen, donors, effects)]


def _elsewhere(s: Setting, chosen: Chosen, donors: Donors) -> Control:
    if not chosen.others:
        return not_run("other_cells", "no other cell can differ, or their cost exceeds the controls' share")
    effects = chosen.run(_first(s.bench), chosen.others, donors.ids)
    chosen.other_rows += _rows(s, chosen.others, "irrelevant", effects)
    return checks.other_cells(effects, chosen.total, list(s.clusters), cells=chosen.other_names)


def _value_matters(
    s: Setting, task: PairTask, chosen: Chosen, donors: Donors, effects: np.ndarray
) -> Control:
    _note(s, chosen, "other_value", effects)
    nested = [i for i in range(task.n) if set(donors.answers[i]) & set(task.answers[i])]
    if nested:
        return not_run("value_matters", f"pair {nested[0]}: the donor's answers and the pair's own overlap")
    return checks.value_matters(effects, chosen.real, list(s.clusters), cells=chosen.names)


def _real_as_logprob(s: Setting, chosen: Chosen) -> np.ndarray:
    """The real effects as change of log P(donor's answer) - log P(base's answer)."""
    if s.metrics[0] == "logit_diff":  # of two single tokens the log-probabilities differ as the logits do
        return chosen.real if s.mode == "denoise" else -chosen.real
    answers, wrong = (s.task.answers, s.task.wrong) if s.mode == "denoise" else (s.task.wrong, s.task.answers)
    bench = s.with_answers(answers, wrong, "logprob_diff")
    return chosen.run(bench, chosen.cells, s.donor.ids)


def noise(s: Setting, chosen: Chosen, seed: int) -> Control:
    """Noise of the patch's norm, drawn from the covariance of natural differences at each cell."""
    cells, sources = [], {}
    try:
        found = _natural(s, chosen.cells)
        for number, ((site, column), natural) in enumerate(zip(chosen.cells, found, strict=True)):
            for draw in range(NOISE_DRAWS):
                name = f"noise {number} {draw}"
                sources[name] = Given(_noisy(natural, seeds.child(seed, name)))
                cells.append(cell(site, column, name))
    except ControlError as error:
        return not_run("noise", error.what)
    done = sweep(_first(s.bench), cells, sources).effects[..., 0].numpy().astype(np.float64)
    effects = done.reshape(len(chosen.cells), NOISE_DRAWS, -1).swapaxes(0, 1)
    _note(s, chosen, "noise", effects.mean(0))
    return checks.noise_donor_control(effects, chosen.real, list(s.clusters), cells=chosen.names)


@dataclass
class _Natural:
    """Base values of one cell at every (prompt, column) it touches, and donor minus base there [place, d]."""

    name: str
    where: list[tuple[int, int]] = field(default_factory=list)
    base: list[Tensor] = field(default_factory=list)
    differences: list[Tensor] = field(default_factory=list)


def _natural(s: Setting, cells: list[tuple[Site, Column | None]]) -> list[_Natural]:
    """Base and donor are run once for all cells."""
    streams = [as_stream(site, len(s.model.binding.slots)) for site, _ in cells]
    points = {(x.point, x.layer) for x in streams if isinstance(x.layer, int)}
    eager = any(x.row is not None and x.row.square for x in streams)
    out = [_Natural(f"{site}@{column and column.label}") for site, column in cells]
    for group in groups_of(s.bench, Settings().share, eager=eager):
        base, donor = (
            capture(s.model.binding, [side.ids[i] for i in group.prompts], points, eager)
            for side in (s.base, s.donor)
        )
        for (_, column), stream, natural in zip(cells, streams, out, strict=True):
            assert isinstance(stream.layer, int)
            pair = [store[stream.point, stream.layer] for store in (base, donor)]
            if isinstance(stream.index, int):
                pair = [value[:, :, stream.index] for value in pair]
            for place, (prompt, length) in enumerate(zip(group.prompts, group.lengths, strict=True)):
                for col in _cols(s, column, prompt, length):
                    old, new = (value[place, col] for value in pair)
                    natural.where.append((prompt, col))
                    natural.base.append(old)
                    natural.differences.append((new - old).double().reshape(-1).cpu())
    return out


def _noisy(natural: _Natural, seed: int) -> Callable[[str, int, Tensor, Tensor, Tensor | None], Tensor]:
    """base + noise at the cell's positions, prompt by prompt."""
    differences = torch.stack(natural.differences).numpy()
    moved = np.abs(differences).max(1) > 0
    if moved.sum() < 3:
        raise ControlError(
            f"{natural.name} differs in {int(moved.sum())} places only: no natural covariance to draw from"
        )
    drawn = np.zeros_like(differences)
    norms = np.linalg.norm(differences[moved], axis=1)
    drawn[moved] = directions.noise_donor(differences[moved], norms, seed=seed, name=natural.name)
    table = {
        place: old + torch.from_numpy(step).to(old).reshape(old.shape)
        for place, old, step in zip(natural.where, natural.base, drawn, strict=True)
    }

    def values(point: str, layer: int, prompts: Tensor, cols: Tensor, heads: Tensor | None) -> Tensor:
        return torch.stack([table[int(p), int(c)] for p, c in zip(prompts, cols, strict=True)])

    return values


def _cols(s: Setting, column: Column | None, prompt: int, length: int) -> list[int]:
    if column is None:
        return list(range(length))
    found = [s.bench.spans[prompt].get(name) for name in column.names]
    return [c for r in found if r is not None for c in range(*r)]


def _first(bench: Bench) -> Bench:
    return replace(bench, metrics=bench.metrics[:1])


def _note(s: Setting, chosen: Chosen, kind: str, effects: np.ndarray) -> None:
    chosen.rows += _rows(s, chosen.cells, kind, effects)


def _rows(
    s: Setting, cells: list[tuple[Site, Column | None]], kind: str, effects: np.ndarray
) -> list[dict[str, object]]:
    from microtome.controls.intervals import mean_interval

    interval = mean_interval(effects, list(s.clusters))
    return [{"donor": kind, "site": str(site), "position": "" if column is None else str(column.label), "value": float(effects[number].mean()),
             "low": float(interval.low[number]), "high": float(interval.high[number])}
            for number, (site, column) in enumerate(cells)]  # fmt: skip


def tables(chosen: Chosen, s: Setting) -> dict[str, pd.DataFrame]:
    """All donors' effects on the chosen cells beside the real ones; the irrelevant donor's on the sample of others."""
    import pandas as pd

    _note(s, chosen, "real", chosen.real)
    columns = ["donor", "site", "position", "value", "low", "high"]
    made = {"donors": chosen.rows, "other_cells": chosen.other_rows}
    return {name: pd.DataFrame(rows, columns=columns) for name, rows in made.items()}
