"""Forward-based controls of activation patching, on chosen cells: identity, other donors, noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.controls import checks, directions
from microtome.errors import ControlError, TaskError
from microtome.methods.setting import Column, Setting, cell
from microtome.replay.plan import _as_stream
from microtome.replay.sources import Given, Prompts, capture
from microtome.replay.sweep import Bench, Settings, groups_of, measure, sweep
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.sites import Site

if TYPE_CHECKING:
    import pandas as pd

NOISE_DRAWS = 4
DONORS = ("same_value", "irrelevant", "wrong_value")
_WHY = {
    "same_value": ("that the effect belongs to the donor's wording, not to its variables", "another wording with the same variables has the effect"),
    "irrelevant": ("that any other text in this place has the effect", "another text with the base's variables does nothing"),
    "wrong_value": ("that the patch only damages the base's answer", "a third value moves the output to its own answer"),
    "noise": ("that any change of this size in this place has the effect", "noise of the patch's norm and natural covariance moves the metric less"),
    "identity": ("that writing an activation back changes the metric", "writing each activation back changes nothing"),
}  # fmt: skip


@dataclass
class Chosen:
    """Cells on which forward-based controls run.

    Shapes: real [cell, prompt], their effects in the first metric; total [prompt], donor minus base of whole runs.
    """

    cells: list[tuple[Site, Column | None]]
    real: np.ndarray
    total: np.ndarray
    names: list[str]
    rows: list[dict[str, object]] = field(default_factory=list)


def not_run(name: str, why: str) -> Control:
    """A control of this family that did not run, and why."""
    rules_out, expected = _WHY[name]
    return Control.not_run(name, rules_out, expected, why, gates=name == "identity")


def identity(s: Setting, chosen: Chosen, floor: float) -> Control:
    """Each chosen cell patched with the base's own value."""
    out = sweep(_first(s.bench), [cell(*c) for c in chosen.cells], {"donor": Prompts(s.base.ids)})
    return checks.identity(out.effects.numpy(), floor)


def noise_floor(s: Setting) -> float:
    """How much the metric moves when only the batch shape changes, doubled; in the metric's unit."""
    bench = _first(s.bench)
    together = measure(bench)
    worst = 0.0
    for i in sorted({0, len(bench.ids) // 2, len(bench.ids) - 1}):
        alone = measure(Bench(bench.binding, [bench.ids[i]], bench.scoring.select([i]), bench.metrics))
        worst = max(worst, float((alone[0] - together[i]).abs().max()))
    size = float(together.abs().max())
    machine = torch.finfo(next(s.model.hf.parameters()).dtype).eps
    return 2 * worst + 16 * machine * max(size, 1.0)


def other_donors(s: Setting, chosen: Chosen, seed: int) -> list[Control]:
    """Same-value, irrelevant and wrong-value donors where the task can give them; else why not."""
    return [_one_donor(s, chosen, kind, seed) for kind in DONORS]


def _one_donor(s: Setting, chosen: Chosen, kind: str, seed: int) -> Control:
    task = s.task if s.mode == "denoise" else s.task.swap()
    try:
        donors = task.donors(kind, seed)
    except TaskError as error:
        return not_run(kind, error.what + (f" ({error.why})" if error.why else ""))
    bench = _first(s.bench)
    real = chosen.real
    if kind == "wrong_value":
        bench = s.with_answers(donors.answers, donors.wrong, "logprob_diff")
        real = _real_as_logprob(s, chosen)
    out = sweep(bench, [cell(*c) for c in chosen.cells], {"donor": Prompts(donors.ids)})
    effects = out.effects[..., 0].numpy().astype(np.float64)
    _note(s, chosen, kind, effects)
    clusters = list(s.clusters)
    if kind == "same_value":
        return checks.same_value(effects, real, clusters, cells=chosen.names)
    if kind == "irrelevant":
        return checks.irrelevant_donor(effects, real, chosen.total, clusters, cells=chosen.names)
    return checks.wrong_value(effects, real, clusters, cells=chosen.names)


def _real_as_logprob(s: Setting, chosen: Chosen) -> np.ndarray:
    """The real effects as change of log P(donor's answer) - log P(base's answer)."""
    answers, wrong = (s.task.answers, s.task.wrong) if s.mode == "denoise" else (s.task.wrong, s.task.answers)
    bench = s.with_answers(answers, wrong, "logprob_diff")
    out = sweep(bench, [cell(*c) for c in chosen.cells], {"donor": Prompts(s.donor.ids)})
    return out.effects[..., 0].numpy().astype(np.float64)


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
    streams = [_as_stream(site, len(s.model.binding.slots)) for site, _ in cells]
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
    from microtome.controls.intervals import mean_interval

    interval = mean_interval(effects, list(s.clusters))
    for number, (site, column) in enumerate(chosen.cells):
        chosen.rows.append({"donor": kind, "site": str(site), "position": "" if column is None else str(column.label), "value": float(effects[number].mean()),
                            "low": float(interval.low[number]), "high": float(interval.high[number])})  # fmt: skip


def table(chosen: Chosen, s: Setting) -> pd.DataFrame:
    """All donors' effects on the chosen cells beside the real ones."""
    import pandas as pd

    _note(s, chosen, "real", chosen.real)
    return pd.DataFrame(chosen.rows, columns=["donor", "site", "position", "value", "low", "high"])
