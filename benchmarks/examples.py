"""Max-activating examples of every neuron of a layer: time beside a plain forward and others' ways; peak memory by length."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.memory import peak
from benchmarks.peers import peers_python
from benchmarks.store import BATCH, MIDDLE, SMALL, rows_of

BLOCKS, LENGTH, KEPT = 48, 128, 10
MEMORY = (20_000, 100_000, 1_000_000)


def examples(start: Callable[..., Any], turns: Callable[..., dict], folder: str, repeats: int, peers: Path | None, small: bool) -> dict:  # fmt: skip
    """The pass over the same blocks, turn by turn."""
    rows = rows_of(SMALL["blocks"] if small else BLOCKS, LENGTH, LENGTH)
    work = {"rows": rows, "layer": MIDDLE, "batch": BATCH, "at_once": BATCH // LENGTH, "k": KEPT}
    team = {"own": start(sys.executable, "own_store", folder), "plain": start(sys.executable, "plain_store", folder)}  # fmt: skip
    entries = {
        "plain forward, stopped": (team["plain"], "stopped", work, 1.0),
        "hook and topk by hand": (team["plain"], "neurons", work, 1.0),
        "microtome": (team["own"], "neurons", work, 1.0),
    }
    try:
        if peers is not None:
            team["tl"] = start(peers_python(peers), "transformerlens", folder)
            entries["TransformerLens"] = (team["tl"], "neurons", work, 1.0)
        found = turns(entries, repeats)
    finally:
        for worker in team.values():
            worker.close()
    values = {name: who.pop("values") for name, who in found.items() if "values" in who}
    truth = values["hook and topk by hand"]
    if "TransformerLens" in values:
        gaps = [abs(a - b) for a, b in zip(values["TransformerLens"], truth, strict=True)]
        found["TransformerLens"]["gap"] = max(gaps) / max(map(abs, truth))
    return {"tokens": len(rows) * LENGTH, "who": found}


def memory(small: bool) -> dict[str, dict[str, float]]:
    """Peak memory and seconds by number of tokens, on a random model of two layers, each in a process of its own."""
    return {str(n): peak("examples", n) for n in (SMALL["tokens"] if small else MEMORY)}
