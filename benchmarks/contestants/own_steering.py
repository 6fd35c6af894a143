"""Greedy generation of equally many tokens: Hugging Face's own, with a forward hook by hand, and Microtome's, steered or not.

All share one model in one process. Every job returns {"seconds", "tokens"}: the tokens of the first prompt, to compare.
"""

from __future__ import annotations

import time

import torch

import microtome as mt

LAYER, NORM = 14, 4.0


class Contestant:
    """One model, four ways to continue prompts."""

    def __init__(self, folder: str) -> None:
        self.model = mt.load(folder)
        self.hf = self.model.hf
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(self.model.facts.d_model, generator=generator)
        self.direction = NORM * direction / direction.norm()

    @torch.no_grad()
    def plain(self, work: dict) -> dict:
        """transformers' generate."""
        ids = torch.tensor(work["ids"])
        begun = time.perf_counter()
        out = self.hf.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=work["new"],
            min_new_tokens=work["new"],
        )
        return {"seconds": time.perf_counter() - begun, "tokens": out[0, ids.shape[1] :].tolist()}

    def hook(self, work: dict) -> dict:
        """The same with a hook that adds the direction to what the layer returns while tokens are generated (the way of
        steering-vectors and of most code by hand)."""

        def add(module, args, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            if hidden.shape[1] > 1:
                return output
            new = hidden + self.direction
            return new if isinstance(output, torch.Tensor) else (new, *output[1:])

        handle = self.hf.model.layers[LAYER].register_forward_hook(add)
        try:
            return self.plain(work)
        finally:
            handle.remove()

    def own(self, work: dict) -> dict:
        """model.generate without edits."""
        return self._own(work, [], None)

    def steered(self, work: dict) -> dict:
        """model.generate with one direction added to every generated token."""
        return self._own(work, [mt.Steer(f"L{LAYER}.resid_post", self.direction, 1.0)], "generated")

    def _own(self, work: dict, edits: list, when: str | None) -> dict:
        begun = time.perf_counter()
        out = self.model.generate(work["ids"], edits, when, work["new"], stop=False)
        return {"seconds": time.perf_counter() - begun, "tokens": list(out.new[0])}
