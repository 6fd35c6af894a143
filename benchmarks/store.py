"""The store against a plain forward stopped at the same layer, by number of sites; examples of a layer's neurons; memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BATCH, LAST, MIDDLE = 2048, 29, 12
ITEMS, BLOCKS = 2000, 64
MEMORY = (20_000, 100_000, 1_000_000)


def rows_of(n: int, low: int, high: int) -> list[list[int]]:
    """Random token ids: what they are does not matter to the time."""
    generator = random.Random(0)
    return [[generator.randrange(100, 40_000) for _ in range(generator.randint(low, high))] for _ in range(n)]


def cases(items: int = ITEMS, blocks: int = BLOCKS) -> dict[str, dict]:
    """What is captured: statements at one position by number of sites, and whole blocks."""
    short, long = rows_of(items, 8, 24), rows_of(blocks, 128, 128)
    return {
        "statements, 1 site": {"rows": short, "sites": [f"L{MIDDLE}.resid_post@-1"], "layer": MIDDLE},
        "statements, 30 sites": {"rows": short, "sites": ["L*.resid_post@-1"], "layer": LAST},
        "statements, 90 sites": {"rows": short, "sites": [f"L*.resid_post@{p}" for p in (0, 2, -1)], "layer": LAST},
        "blocks, all positions, 13 sites": {"rows": long, "sites": [f"L0:{MIDDLE + 1}.resid_post"], "layer": MIDDLE},
        "blocks, 1,536 neurons": {"rows": long, "sites": [f"L{MIDDLE}.neurons"], "layer": MIDDLE},
    }  # fmt: skip


def store(start: Callable[..., Any], turns: Callable[..., dict], folder: str, repeats: int, size: tuple[int, int] = (ITEMS, BLOCKS)) -> dict:  # fmt: skip
    """Every case beside its plain forward; `rate` is the plain forward's time over the store's."""
    own, plain = start(sys.executable, "own_store", folder), start(sys.executable, "plain_store", folder)
    out: dict[str, Any] = {}
    try:
        for name, case in cases(*size).items():
            print(f"  {name}", flush=True)
            work = case | {"batch": BATCH}
            entries = {
                "plain forward, stopped": (plain, "stopped", work, 1.0),
                "store": (own, "capture", work, 1.0),
            }
            if name == "statements, 30 sites":
                entries["hooks and lists by hand"] = (plain, "hooked", work, 1.0)
            out[name] = turns(entries, repeats)
            out[name]["rate"] = out[name]["plain forward, stopped"]["seconds"] / out[name]["store"]["seconds"]
        work = {"rows": rows_of(size[1], 128, 128), "layer": MIDDLE, "batch": BATCH}
        print("  examples of a layer's neurons", flush=True)
        out["examples"] = turns({"plain forward, stopped": (plain, "stopped", work, 1.0), "examples": (own, "neurons", work, 1.0)}, repeats)  # fmt: skip
    finally:
        own.close(), plain.close()
    return out


def memory(tokens: tuple[int, ...] = MEMORY) -> dict[str, dict[str, int]]:
    """Peak memory by number of tokens, on a random model of two layers, each in a process of its own."""
    return {job: {str(n): _peak(job, n) for n in tokens} for job in ("examples", "store")}


def _peak(job: str, tokens: int) -> int:
    command = [sys.executable, "-m", "benchmarks.store", job, str(tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def main() -> None:
    """`python -m benchmarks.store examples|store TOKENS`: the peak of one job as a line of JSON (Linux)."""
    import tempfile

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import microtome as mt
    from benchmarks.memory import resident

    job, tokens = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 2000}  # fmt: skip
    model = mt.load(LlamaForCausalLM(LlamaConfig(**sizes)).eval())
    generator = random.Random(0)
    rows = [[generator.randrange(3, 2000) for _ in range(128)] for _ in range(-(-tokens // 128))]
    few = rows[:200]

    def work(data: list) -> None:
        if job == "examples":
            mt.methods.max_activating(model, data, "L1.neurons", options={"tokens": 1 << 30, "draws": 199})
            return
        with tempfile.TemporaryDirectory() as folder:
            mt.store(model, data, ["L*.resid_post", "L1.neurons"], f"{folder}/s")

    work(few)  # libraries and caches of the allocator
    Path("/proc/self/clear_refs").write_text("5")
    work(rows)
    print(json.dumps({"tokens": tokens, "peak": resident("VmHWM")}))


if __name__ == "__main__":
    main()
