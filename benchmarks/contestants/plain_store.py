"""A plain forward in batches of like length, stopped after the last layer needed; and what hooks and lists by hand take.

Imports torch and transformers only.
"""

from __future__ import annotations

import contextlib
import tempfile
import time

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


class Stop(Exception):
    """Raised before the first layer that is not needed."""


class Contestant:
    """A Hugging Face model."""

    def __init__(self, folder: str) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def stopped(self, work: dict) -> dict:
        """Nothing is kept."""
        begun = time.perf_counter()
        self._run(work, [])
        return {"seconds": time.perf_counter() - begun}

    def hooked(self, work: dict) -> dict:
        """Last positions of every layer's output in lists, put together and saved at the end."""
        begun = time.perf_counter()
        kept: dict[int, list] = {}
        last: list = []
        handles = [layer.register_forward_hook(lambda m, a, out, i=i: kept.setdefault(i, []).append((out[0] if isinstance(out, tuple) else out)[torch.arange(len(last[0])), last[0]]))
                   for i, layer in enumerate(self.hf.model.layers[: work["layer"] + 1])]  # fmt: skip
        self._run(work, last)
        for handle in handles:
            handle.remove()
        with tempfile.TemporaryDirectory() as folder:
            found = {f"layer {i}": torch.cat(parts) for i, parts in kept.items()}
            save_file(found, f"{folder}/kept.safetensors")
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "values": [float(v) for x in found.values() for v in x.mean(0)[:4]]}

    @torch.no_grad()
    def neurons(self, work: dict) -> dict:
        """The largest inputs of one layer's down projection, every token of every block, by a running topk."""
        best: list = [torch.empty(0)]

        def keep(module: object, args: tuple) -> None:
            values = args[0].flatten(0, 1)
            values = torch.cat([best[0], values]) if len(best[0]) else values
            best[0] = values.topk(min(work["k"], len(values)), dim=0).values

        begun = time.perf_counter()
        handle = self.hf.model.layers[work["layer"]].mlp.down_proj.register_forward_pre_hook(keep)
        self._run(work, [])
        handle.remove()
        return {"seconds": time.perf_counter() - begun, "values": best[0][0, :64].tolist()}

    @torch.no_grad()
    def _run(self, work: dict, last: list) -> None:
        def stop(*a: object) -> None:
            raise Stop

        layers = self.hf.model.layers
        following = layers[work["layer"] + 1] if work["layer"] + 1 < len(layers) else self.hf.model.norm
        handle = following.register_forward_pre_hook(stop)
        try:
            for rows in _batches(work["rows"], work["batch"]):
                width = max(map(len, rows))
                ids = torch.tensor([r + [0] * (width - len(r)) for r in rows])
                mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
                last[:] = [torch.tensor([len(r) - 1 for r in rows])]
                with contextlib.suppress(Stop):
                    self.hf(ids, attention_mask=None if bool(mask.all()) else mask, use_cache=False)
        finally:
            handle.remove()


def _batches(rows: list, tokens: int):
    """Sorted by length, at most so many tokens, and at most an eighth longer than the shortest."""
    batch: list = []
    for row in sorted(rows, key=len):
        if batch and (len(row) > 1.125 * len(batch[0]) or len(row) * (len(batch) + 1) > tokens):
            yield batch
            batch = []
        batch.append(row)
    yield batch
