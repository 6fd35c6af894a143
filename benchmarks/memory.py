"""Peak memory of one job in a process of its own: `python -m benchmarks.memory FOLDER PAIRS BUDGET_BYTES` of a residual sweep,
`... FOLDER PAIRS edges` of the scores of all edges by integrated gradients.

Linux only: the high-water mark is reset after the model and one forward are in place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.cases import cells, pairs


def resident(field: str) -> int:
    """VmRSS or VmHWM in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure and print one line of JSON."""
    if sys.argv[3] == "edges":
        edges(sys.argv[1], int(sys.argv[2]))
        return
    from benchmarks.contestants.own import Contestant
    from microtome.replay.sources import Prompts
    from microtome.replay.sweep import Settings, sweep

    folder, n, budget = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    own = Contestant(folder)
    few = pairs(own.model.tokenizer, min(n, 16), shared=True)
    times = -(-n // 16)
    work = {k: v * times if isinstance(v, list) else v for k, v in few.items()} | {"kind": "resid"}
    work["every"] = cells("resid", own.model.facts.n_layers, 0, len(work["ids"][0]))
    own.model.run(few["ids"][:1])
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    sweep(own._bench(work), own._cells(work), {"donor": Prompts(work["donor"])}, Settings(memory=budget))
    print(json.dumps({"pairs": n, "budget": budget, "extra": resident("VmHWM") - before}))


def edges(folder: str, n: int) -> None:
    """Scores of all edges."""
    from benchmarks.contestants.own_edges import Contestant
    from benchmarks.edges import work_of

    own = Contestant(folder)
    work = work_of(own.model.tokenizer, n) | {"how": "ig-inputs", "steps": 8}
    own.model.run(work["ids"][:1])
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    found = own.scores(work)
    print(json.dumps({"pairs": n, "edges": len(found["values"]), "extra": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
