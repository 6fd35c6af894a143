"""nnterp: its own collection of last-token activations."""

from __future__ import annotations

import time

import torch
from nnterp import StandardizedTransformer
from nnterp.nnsight_utils import get_token_activations


class Contestant:
    """Its standardised model over the same checkpoint, without the checks it makes at the start."""

    def __init__(self, folder: str) -> None:
        self.model = StandardizedTransformer(
            folder,
            check_renaming=False,
            check_attn_probs_with_trace=False,
            dtype=torch.float32,
            device_map="cpu",
        )

    @torch.no_grad()
    def last_tokens(self, work: dict) -> dict:
        """Every layer's output at the last token, a trace per batch of one length (so that nothing is padded)."""
        begun = time.perf_counter()
        parts = [get_token_activations(self.model, rows, idx=-1) for rows in work["alike"]]
        kept = torch.cat(parts, 1)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "values": kept.mean(1)[:, :4].flatten().tolist()}
