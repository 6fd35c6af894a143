"""Microtome."""

from __future__ import annotations

import time
from collections import defaultdict
from unittest.mock import patch

import torch

import microtome as mt
from microtome.metrics import metric, scoring
from microtome.replay import climb as climbing
from microtome.replay.plan import Cell, Change
from microtome.replay.sources import Prompts
from microtome.replay.sweep import Bench, Settings, sweep
from microtome.sites import At, Site


class Contestant:
    """The workbench over the same checkpoint."""

    def __init__(self, folder: str) -> None:
        self.model = mt.load(folder)

    def sweep(self, work: dict) -> dict:
        """The staircase sweep alone: every cell, no controls."""
        bench, cells = self._bench(work), self._cells(work)
        settings = Settings(skip=work.get("skip", True))
        begun = time.perf_counter()
        out = sweep(bench, cells, {"donor": Prompts(work["donor"])}, settings)
        return {
            "seconds": time.perf_counter() - begun,
            "values": (out.effects + out.base)[..., 0].mean(1).tolist(),
            "tokens": out.tokens,
            "skipped": float(out.zero.float().mean()),
        }

    def limit(self, work: dict) -> dict:
        """Seconds of the sweep's matrix products alone, each at the row count at which the sweep called it."""
        calls: dict[int, int] = defaultdict(int)
        real = climbing.call_layer

        def counted(base, layer, segments, *args):
            tokens = sum(s.tokens for s in segments)
            calls[tokens] += tokens > 0
            return real(base, layer, segments, *args)

        with patch.object(climbing, "call_layer", counted):
            sweep(
                self._bench(work),
                self._cells(work),
                {"donor": Prompts(work["donor"])},
                Settings(skip=work["skip"]),
            )
        layer = self.model.binding.layers[0]
        linears = [m for m in layer.modules() if isinstance(m, torch.nn.Linear)]
        seconds = flops = 0.0
        for tokens, times in calls.items():
            if not tokens:
                continue
            inputs = {m.in_features: torch.randn(tokens, m.in_features) for m in linears}
            took = min(_once(linears, inputs) for _ in range(3))
            seconds += took * times
            flops += times * 2 * tokens * sum(m.in_features * m.out_features for m in linears)
        return {"seconds": seconds, "gflops_per_second": flops / seconds / 1e9}

    def controlled(self, work: dict) -> dict:
        """The technique as users call it, with its controls, intervals and tests."""
        text = self.model.tokenizer.batch_decode
        words = [self.model.tokenizer.decode([i]) for i in (*work["answer"], *work["wrong"])]
        n = len(work["answer"])
        task = mt.pairs(
            self.model,
            clean=text(work["donor"]),
            corrupt=text(work["ids"]),
            answer=words[:n],
            wrong=words[n:],
        )
        begun = time.perf_counter()
        mt.methods.activation_patching(self.model, task, sites="L*.resid_pre")
        return {"seconds": time.perf_counter() - begun}

    def capture(self, work: dict) -> dict:
        """Every residual, every pattern, or nothing, with all logits."""
        wanted = {"resid": ["L*.resid_pre"], "pattern": ["L*.pattern"], "nothing": []}[work["kind"]]
        begun = time.perf_counter()
        trace = self.model.run(work["ids"], capture=wanted)
        seconds = time.perf_counter() - begun
        return {
            "seconds": seconds,
            "kept": sum(tuple(trace[f"L{i}.{wanted[0][3:]}"].shape) != () for i in range(30))
            if wanted
            else 0,
        }

    def _bench(self, work: dict) -> Bench:
        answers = [((a,),) for a in work["answer"]]
        wrong = [((w,),) for w in work["wrong"]]
        return Bench(self.model.binding, work["ids"], scoring(answers, wrong), (metric("logit_diff"),))

    def _cells(self, work: dict) -> list[Cell]:
        point = "resid_pre" if work["kind"] == "resid" else "z"
        letter = "" if work["kind"] == "resid" else "H"
        return [
            Cell((Change(Site(point, layer, letter, head), At(position, single=True)),))
            for layer, position, head in work["every"]
        ]


def _once(linears: list, inputs: dict) -> float:
    begun = time.perf_counter()
    with torch.no_grad():
        for m in linears:
            m(inputs[m.in_features])
    return time.perf_counter() - begun
