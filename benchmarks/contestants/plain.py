"""What a user writes by hand with hooks: one forward per cell, or a batch of cells per forward.

Imports torch and transformers only. Every method returns {"seconds", "values", "of"}: `values` are mean metrics of
patched prompts, cell by cell; `of` is the number of cells of the whole map when only some were run. A forward per cell
costs the same whichever cell it is, so the time of some cells gives the time of all.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache


class Contestant:
    """Plain loops over a Hugging Face model."""

    def __init__(self, folder: str) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.layers = self.hf.model.layers
        self.heads = self.hf.config.num_attention_heads

    @torch.no_grad()
    def loop(self, work: dict) -> dict:
        """One hooked forward per cell."""
        ids, donor = torch.tensor(work["ids"]), torch.tensor(work["donor"])
        begun = time.perf_counter()
        kept = self._donor(donor, work["kind"])
        values = []
        for layer, position, head in work["cells"]:
            with self._patched(layer, kept[layer], position, head):
                values.append(_mean(self.hf(ids, logits_to_keep=1).logits[:, -1], work))
        return _timed(begun, values, work)

    @torch.no_grad()
    def batched(self, work: dict) -> dict:
        """All cells of a layer in one forward: row r carries cell r."""
        return self._batched(work, prefix=0)

    @torch.no_grad()
    def batched_prefix(self, work: dict) -> dict:
        """The same behind the keys and values of the tokens that base and donor share; cells inside them are 0."""
        return self._batched(work, prefix=work["shared"])

    def _batched(self, work: dict, prefix: int) -> dict:
        ids, donor = torch.tensor(work["ids"]), torch.tensor(work["donor"])
        n, most = len(ids), max(len(ids), 224)
        begun = time.perf_counter()
        kept = self._donor(donor, work["kind"])
        past = None
        if prefix:
            past = self.hf.model(ids[:, :prefix], use_cache=True).past_key_values
        base = _mean(self.hf(ids, logits_to_keep=1).logits[:, -1], work) if prefix else 0.0
        by_layer: dict[int, list[int]] = {}
        for number, (layer, position, _) in enumerate(work["cells"]):
            if position >= prefix:
                by_layer.setdefault(layer, []).append(number)
        values = [base] * len(work["cells"])
        for layer, numbers in by_layer.items():
            for start in range(0, len(numbers), most // n):
                part = numbers[start : start + most // n]
                rows = ids[:, prefix:].repeat(len(part), 1)
                cache = None if past is None else _repeated(past, len(part))
                cells = [(work["cells"][i][1] - prefix, work["cells"][i][2]) for i in part]
                with self._rows(layer, kept[layer][:, prefix:], cells):
                    out = self.hf(rows, logits_to_keep=1, past_key_values=cache, use_cache=cache is not None)
                for k, i in enumerate(part):
                    values[i] = _mean(out.logits[k * n : (k + 1) * n, -1], work)
        return _timed(begun, values, work)

    def _donor(self, ids: torch.Tensor, kind: str) -> dict[int, torch.Tensor]:
        kept: dict[int, torch.Tensor] = {}
        handles = []
        for i, layer in enumerate(self.layers):
            module = layer if kind == "resid" else layer.self_attn.o_proj

            def keep(module, args, i=i):
                kept[i] = args[0]

            handles.append(module.register_forward_pre_hook(keep))
        self.hf.model(ids)
        for handle in handles:
            handle.remove()
        return kept

    @contextmanager
    def _patched(self, layer: int, value: torch.Tensor, position: int, head: int | None):
        module = self.layers[layer] if head is None else self.layers[layer].self_attn.o_proj
        part = slice(None) if head is None else self._slice(value, head)

        def hook(module, args, kwargs):
            hidden = args[0].clone()
            at = slice(None) if position is None else position
            hidden[:, at, part] = value[:, at, part]
            return (hidden, *args[1:]), kwargs

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _rows(self, layer: int, value: torch.Tensor, cells: list):
        heads = cells[0][1] is not None
        module = self.layers[layer].self_attn.o_proj if heads else self.layers[layer]

        def hook(module, args, kwargs):
            hidden = args[0].clone()
            n = len(value)
            for k, (position, head) in enumerate(cells):
                part = slice(None) if head is None else self._slice(value, head)
                hidden[k * n : (k + 1) * n, position, part] = value[:, position, part]
            return (hidden, *args[1:]), kwargs

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _slice(self, value: torch.Tensor, head: int) -> slice:
        size = value.shape[-1] // self.heads
        return slice(head * size, (head + 1) * size)


def _repeated(past: DynamicCache, times: int) -> DynamicCache:
    new = DynamicCache()
    for index, layer in enumerate(past.layers):
        new.update(layer.keys.repeat(times, 1, 1, 1), layer.values.repeat(times, 1, 1, 1), index)
    return new


def _mean(logits: torch.Tensor, work: dict) -> float:
    rows = torch.arange(len(logits))
    right, wrong = torch.tensor(work["answer"]), torch.tensor(work["wrong"])
    return float((logits[rows, right] - logits[rows, wrong]).mean())


def _timed(begun: float, values: list, work: dict) -> dict:
    return {"seconds": time.perf_counter() - begun, "values": values}
