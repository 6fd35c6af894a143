"""Microtome."""

from __future__ import annotations

import json
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
        self.calls: dict[str, dict[int, int]] = {}

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
        key = json.dumps([work["ids"], work["kind"], work["skip"]])
        if key not in self.calls:
            self.calls[key] = self._row_counts(work)
        linears = [m for m in self.model.binding.layers[0].modules() if isinstance(m, torch.nn.Linear)]
        per_row = 2 * sum(m.in_features * m.out_features for m in linears)
        seconds = flops = 0.0
        for tokens, times in self.calls[key].items():
            inputs = {m.in_features: torch.randn(tokens, m.in_features) for m in linears}
            seconds += min(_once(linears, inputs) for _ in range(3)) * times
            flops += times * tokens * per_row
        return {"seconds": seconds, "gflops_per_second": flops / seconds / 1e9}

    def _row_counts(self, work: dict) -> dict[int, int]:
        """Tokens of a layer call -> how often the sweep makes one of that size."""
        calls: dict[int, int] = defaultdict(int)
        real = climbing.call_layer

        def counted(base, layer, segments, *args):
            if segments:
                calls[sum(s.tokens for s in segments)] += 1
            return real(base, layer, segments, *args)

        with patch.object(climbing, "call_layer", counted):
            self.sweep(work)
        return calls

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

    @torch.no_grad()
    def forward(self, work: dict) -> dict:
        """One plain forward of the same module with all logits, and without a cache, which nobody reads here."""
        hf, ids = self.model.hf, torch.tensor(work["ids"])
        own = hf.config._attn_implementation
        hf.set_attn_implementation(work.get("attention", own))
        begun = time.perf_counter()
        hf(ids, use_cache=False)
        seconds = time.perf_counter() - begun
        hf.set_attn_implementation(own)
        return {"seconds": seconds}

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
