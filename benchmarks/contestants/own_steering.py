"""Greedy generation of equally many tokens: Hugging Face's own, with a forward hook by hand, and Microtome's, steered or not.

All share one model in one process. Every job returns {"seconds", "tokens"}: the tokens of the first prompt, to compare.
"""

from __future__ import annotations

import time

import torch

import microtome as mt


class Contestant:
    """One model, four ways to continue prompts."""

    def __init__(self, folder: str) -> None:
        self.model = mt.load(folder)
        self.hf = self.model.hf
        # no token ends a text here; min_new_tokens would forbid the end token, which is another text
        self.hf.generation_config.eos_token_id = None

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
        )
        return {"seconds": time.perf_counter() - begun, "tokens": out[0, ids.shape[1] :].tolist()}

    def hook(self, work: dict) -> dict:
        """The same with a hook that adds the direction to what the layer returns, at every token (as most code by hand)."""
        direction = torch.tensor(work["direction"])

        def add(module, args, output):
            if isinstance(output, torch.Tensor):
                return output + direction
            return (output[0] + direction, *output[1:])

        handle = self.hf.model.layers[work["layer"]].register_forward_hook(add)
        try:
            return self.plain(work)
        finally:
            handle.remove()

    def own(self, work: dict) -> dict:
        """model.generate without edits."""
        return self._own(work, [], None)

    def steered(self, work: dict) -> dict:
        """model.generate with one direction added to every token, of the prompt and generated."""
        direction = torch.tensor(work["direction"])
        return self._own(work, [mt.Steer(f"L{work['layer']}.resid_post", direction, 1.0)], "both")

    def _own(self, work: dict, edits: list, when: str | None) -> dict:
        begun = time.perf_counter()
        out = self.model.generate(work["ids"], edits, when, work["new"], stop=False)
        return {"seconds": time.perf_counter() - begun, "tokens": list(out.new[0])}
