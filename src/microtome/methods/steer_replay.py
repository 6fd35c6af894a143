"""Next-token measures of many pushes by exact replay: layers below the steered site are run once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from microtome.methods.steer_measures import Floats, Words
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Given
from microtome.replay.sweep import Bench, measure, sweep
from microtome.results.technique import progress

if TYPE_CHECKING:
    from microtome.methods.steer_runs import Push, Row, Stage

__all__ = ["Replayed"]


class Replayed:
    """Prompts whose stream at the steered site is known; measures pushes on them. One object keeps the recorded runs.

    Shapes: values [push, prompt], as a run with the same edits gives them, up to rounding.
    """

    def __init__(self, stage: Stage, words: Words, rows: Sequence[Row], fires: Sequence[bool]) -> None:
        self.stage, self.fires = stage, list(fires)
        up, down = ([(t,) for t in side] for side in words.ids(stage.model))
        # scoring wants a wrong answer; without one the metric reads the answers alone
        other = down or [(next(t for t in range(stage.model.facts.d_vocab) if (t,) not in up),)]
        plan = scoring([tuple(up)] * len(rows), [tuple(other)] * len(rows))
        self.bench = Bench(
            stage.model.binding, list(rows), plan, (metric("logprob_diff" if down else "logprob"),)
        )
        trace = stage.model.run(list(rows), stage.site, logits=None)
        self.stream: Tensor = trace[stage.site]

    def values(self, pushes: Sequence[Push | None]) -> Floats:
        """The measure under each push (None: none). Shapes: [push, prompt]."""
        real = [p for p in pushes if p is not None]
        sources = {f"push {k}": Given(_pushed(self, p)) for k, p in enumerate(real)}
        cells = [Cell((Change(self.stage.site, None, name),), name) for name in sources]
        if not cells:
            return np.repeat(measure(self.bench).numpy()[None, :, 0], len(pushes), 0)
        out = sweep(self.bench, cells, sources)
        self.stage.fired += out.fired
        self.stage.planned += out.planned
        effects = iter(out.effects[..., 0].numpy().astype(np.float64))
        base = out.base[:, 0].numpy().astype(np.float64)
        progress(len(cells), len(cells), "pushes", "replayed")
        return np.array([base if p is None else base + next(effects) for p in pushes])


def _pushed(r: Replayed, push: Push) -> Callable[[str, int, Tensor, Tensor, Tensor | None], Tensor]:
    """Values at the site with a push: function of (point, layer, prompt [pair], column [pair], head)."""
    opens = torch.tensor(r.fires)

    def values(point: str, layer: int, prompt: Tensor, column: Tensor, head: Tensor | None) -> Tensor:
        old = r.stream[prompt.to(r.stream.device), column.to(r.stream.device)]
        new = r.stage.pushed(push, old)
        return torch.where(opens[prompt].to(old.device)[:, None], new, old)

    return values
