"""Peak memory of one job in a process of its own: `python -m benchmarks.memory FOLDER PAIRS BUDGET_BYTES` of a residual sweep,
`... FOLDER PAIRS edges` of the scores of all edges by integrated gradients, `... - TOKENS store` and `... - TOKENS examples` of a pass
over so much text by a random model of two layers.

Linux only: the high-water mark is reset after the model and one forward are in place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
    if sys.argv[3] in ("store", "examples"):
        by_length(sys.argv[3], int(sys.argv[2]))
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


WARM, BLOCK = 200, 128


def by_length(job: str, tokens: int) -> None:
    """A pass over `tokens` random tokens, after one over 200 blocks that loads libraries and fills the allocator's caches.

    The token ids are NumPy's, so that what grows with the text by itself stays at four bytes a token.
    """
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import microtome as mt

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2000}  # fmt: skip
    model = mt.load(LlamaForCausalLM(LlamaConfig(**sizes)).eval())
    rows = list(np.random.default_rng(0).integers(3, 2000, (-(-tokens // BLOCK), BLOCK), dtype=np.int32))

    def work(data: list) -> None:
        if job == "examples":
            mt.methods.max_activating(model, data, "L1.neurons", options={"tokens": 1 << 30, "draws": 199})
            return
        with tempfile.TemporaryDirectory() as folder:
            mt.store(model, data, ["L*.resid_post", "L1.neurons"], f"{folder}/s")

    work(rows[:WARM] if len(rows) > WARM else rows)
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.perf_counter()
    work(rows)
    seconds = time.perf_counter() - begun
    print(json.dumps({"tokens": len(rows) * BLOCK, "peak": resident("VmHWM"), "seconds": seconds}))


def peak(job: str, tokens: int) -> dict[str, Any]:
    """`by_length` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "-", str(tokens), job]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"    {job}, {tokens:,} tokens: {found['peak'] / 1e6:.0f} MB, {found['seconds']:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    main()
