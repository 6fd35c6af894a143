"""steering-vectors: its hooks around transformers' own generate."""

from __future__ import annotations

import time

import torch
from steering_vectors import SteeringVector
from transformers import AutoModelForCausalLM


class Contestant:
    """A Hugging Face model."""

    def __init__(self, folder: str) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        # no token ends a text here; min_new_tokens would forbid the end token, which is another text
        self.hf.generation_config.eos_token_id = None

    @torch.no_grad()
    def steered(self, work: dict) -> dict:
        """Greedy tokens with the direction added to every token, prompt and answer (it knows no other way with a cache)."""
        ids = torch.tensor(work["ids"])
        vector = SteeringVector({work["layer"]: torch.tensor(work["direction"])})
        begun = time.perf_counter()
        with vector.apply(self.hf):
            out = self.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=work["new"],
            )
        return {"seconds": time.perf_counter() - begun, "tokens": out[0, ids.shape[1] :].tolist()}
