"""Microtome on edges."""

from __future__ import annotations

import time

import torch

import microtome as mt
from microtome.circuits import Choices, circuit_discovery
from microtome.graph.donors import Prompts
from microtome.graph.exact import exact_edges
from microtome.graph.node_runs import NodeRuns
from microtome.graph.node_scores import Node, node_scores
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

    def exact(self, work: dict) -> dict:
        """Every `every`-th edge patched alone, recording included; seconds are scaled to all edges."""
        begun = time.perf_counter()
        runs = self._runs(work)
        chosen = torch.arange(0, runs.edges, work["every"])
        values = exact_edges(runs, chosen).effects[..., 0].mean(1)
        scale = runs.edges / len(chosen)
        return {"seconds": (time.perf_counter() - begun) * scale, "edges": runs.edges, "ran": len(chosen), "largest": float(values.abs().max())}  # fmt: skip

    def acdc(self, work: dict) -> dict:
        """Forward calls of ACDC's walks. A plain walk makes one per decision; the speculative one finds the same circuit."""
        decode = self.model.tokenizer.decode
        texts = {k: [decode(ids) for ids in work[k]] for k in ("ids", "donor")}
        words = {k: [decode([t]) for t in work[k]] for k in ("answer", "wrong")}
        task = mt.pairs(
            self.model,
            clean=texts["ids"],
            corrupt=texts["donor"],
            answer=words["answer"],
            wrong=words["wrong"],
        )
        out = {}
        for walk in ("speculative", "groups"):
            begun = time.perf_counter()
            found = circuit_discovery(self.model, task, how="acdc", threshold=work["threshold"], choices=Choices(),
                                      options={"walk": walk, "from_layer": work["from"], "nulls": 20, "check": 0})  # fmt: skip
            counts = {
                str(k): int(v)
                for k, v in zip(*(found.tables["counts"][c] for c in ("name", "value")), strict=True)
            }
            out[walk] = counts | {
                "seconds": time.perf_counter() - begun,
                "kept": int(found.tables["edges"]["kept"].sum()),
            }
        return out | {"pairs": task.n, "from": work["from"]}

    def attribution(self, work: dict) -> dict:
        """Nodes or edges at all positions, in TransformerLens's direction (gradients on the corrupt run, towards clean)."""
        turned = work | {"ids": work["donor"], "donor": work["ids"]}
        begun = time.perf_counter()
        runs = self._runs(turned)
        if work["of"] == "edge":
            values = edge_scores(runs, "gradient").values.mean(1).tolist()
            names = list(runs.graph.edges)
        else:
            point = {"embed": "resid_pre", "head": "z", "mlp": "mlp_out"}
            nodes = [
                Node(point[w.kind], max(w.layer, 0), w.index if w.kind == "head" else None)
                for w in runs.graph.writers
            ]
            found = node_scores(NodeRuns(runs.bench, turned["donor"], {n.where for n in nodes}), nodes)
            values = found.values[:, 0].mean(1).tolist()
            names = [w.name for w in runs.graph.writers]
        return {"seconds": time.perf_counter() - begun, "values": dict(zip(names, values, strict=True))}
