"""nnsight: one trace per cell."""

from __future__ import annotations

import time

import nnsight
import torch
from transformers import AutoModelForCausalLM


class Contestant:
    """The same module, wrapped."""

    def __init__(self, folder: str) -> None:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model = nnsight.NNsight(hf)
        self.heads = hf.config.num_attention_heads
        self.n_layers = hf.config.num_hidden_layers

    @torch.no_grad()
    def loop(self, work: dict) -> dict:
        """Donor streams saved in one trace, then a trace per cell."""
        ids, donor = torch.tensor(work["ids"]), torch.tensor(work["donor"])
        model = self.model
        begun = time.perf_counter()
        with model.trace(donor):
            kept = nnsight.save([layer.input.clone() for layer in model.model.layers])
        values = []
        for layer, position, _ in work["cells"]:
            value = kept[layer][:, position]
            with model.trace(ids):
                model.model.layers[layer].input[:, position] = value
                logits = model.lm_head.output[:, -1].save()
            rows = torch.arange(len(logits))
            gap = logits[rows, torch.tensor(work["answer"])] - logits[rows, torch.tensor(work["wrong"])]
            values.append(float(gap.mean()))
        return {"seconds": time.perf_counter() - begun, "values": values}

    @torch.no_grad()
    def capture(self, work: dict) -> dict:
        """Every residual."""
        ids = torch.tensor(work["ids"])
        model = self.model
        begun = time.perf_counter()
        with model.trace(ids):
            kept = nnsight.save([layer.input for layer in model.model.layers])
        return {"seconds": time.perf_counter() - begun, "kept": len(kept)}
