"""Microtome on edges."""

from __future__ import annotations

import time

import torch

import microtome as mt
from microtome.graph.donors import Prompts
from microtome.graph.patched import EdgeRuns
from microtome.graph.scores import edge_scores
from microtome.metrics import metric, scoring
from microtome.replay.bench import Bench


class Contestant:
    """The workbench over the same checkpoint."""

    def __init__(self, folder: str) -> None:
        self.model = mt.load(folder)

    def _runs(self, work: dict) -> EdgeRuns:
        answers = scoring([((t,),) for t in work["answer"]], [((t,),) for t in work["wrong"]])
        return EdgeRuns(
            Bench(self.model.binding, work["ids"], answers, (metric("logit_diff"),)), Prompts(work["donor"])
        )

    def scores(self, work: dict) -> dict:
        """Scores of all edges, from nothing recorded."""
        begun = time.perf_counter()
        found = edge_scores(
            self._runs(work), work["how"], steps=work.get("steps", 8), most=work.get("steps", 8)
        )
        return {
            "seconds": time.perf_counter() - begun,
            "values": found.values.mean(1).tolist(),
            "passes": found.passes,
        }

    def circuits(self, work: dict) -> dict:
        """Circuits of some sizes by random scores, recording included."""
        begun = time.perf_counter()
        runs = self._runs(work)
        order = torch.rand(runs.edges, generator=torch.Generator().manual_seed(0)).argsort()
        masks = torch.ones(len(work["sizes"]), runs.edges, dtype=torch.bool)
        for row, size in enumerate(work["sizes"]):
            masks[row, order[: int(size * runs.edges)]] = False
        values = runs.measure(masks)
        return {"seconds": time.perf_counter() - begun, "values": values.mean(1)[:, 0].tolist()}
