"""Edge attribution as it is published, written by hand for Llama: a whole forward and backward per step, nothing kept.

Imports torch and transformers only. Every reader gets a copy of the stream (as TransformerLens does with split q, k and v
inputs), so that autograd gives the gradient at each; key/value heads are not copied per query head, so that the edges are
those of the model.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


class Contestant:
    """Loops over a Hugging Face Llama."""

    def __init__(self, folder: str) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for p in self.hf.parameters():
            p.requires_grad_(False)
        c = self.hf.config
        self.heads, self.groups = c.num_attention_heads, c.num_key_value_heads
        self.width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.eps = c.rms_norm_eps

    def forward_backward(self, work: dict) -> dict:
        """The unit: the model's own forward and backward to the embedding, on the same prompts."""
        ids = torch.tensor(work["ids"])
        begun = time.perf_counter()
        x = self.hf.model.embed_tokens(ids).requires_grad_()
        _gap(self.hf(inputs_embeds=x, logits_to_keep=1).logits[:, -1], work).sum().backward()
        return {"seconds": time.perf_counter() - begun}

    @torch.no_grad()
    def forward(self, work: dict) -> dict:
        """One forward of the same prompts."""
        ids = torch.tensor(work["ids"])
        begun = time.perf_counter()
        for _ in range(work.get("times", 1)):
            self.hf(ids, logits_to_keep=1)
        return {"seconds": time.perf_counter() - begun}

    def eap_ig(self, work: dict) -> dict:
        """Edge scores averaged over steps between the two embeddings (midpoint rule), a pass per step."""
        ids, donor = torch.tensor(work["ids"]), torch.tensor(work["donor"])
        begun = time.perf_counter()
        with torch.no_grad():
            clean = self._run(self.hf.model.embed_tokens(ids))[1]
            corrupt = self._run(self.hf.model.embed_tokens(donor))[1]
        step = [b - a for a, b in zip(clean, corrupt, strict=True)]
        total = None
        for k in range(work["steps"]):
            x = clean[0] + (k + 0.5) / work["steps"] * step[0]
            with torch.enable_grad():
                logits, _, readers = self._run(x.clone().requires_grad_())
                grads = torch.autograd.grad(_gap(logits, work).sum(), [r for r, _ in readers])
            scores = [
                torch.einsum("sbtd,rbtd->rs", torch.stack(step[:n]), g)
                for g, (_, n) in zip(grads, readers, strict=True)
            ]
            flat = torch.cat([s.flatten() for s in scores])
            total = flat if total is None else total + flat
        values = total / (work["steps"] * len(ids))
        return {"seconds": time.perf_counter() - begun, "values": values.tolist()}

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, int]]]:
        """(logits at the last position, what every writer wrote, every group of readers' streams with its reach)."""
        written, readers = [x], []
        length = x.shape[1]
        angles = self.hf.model.rotary_emb(x, torch.arange(length)[None])
        for layer in self.hf.model.layers:
            a = layer.self_attn
            streams = x[None].expand(self.heads + 2 * self.groups, -1, -1, -1)
            streams = streams.clone() if torch.is_grad_enabled() else streams
            readers.append((streams, len(written)))
            normed = _norm(streams, layer.input_layernorm.weight, self.eps)
            q = self._heads(normed[: self.heads], a.q_proj.weight, self.heads)
            k = self._heads(normed[self.heads : self.heads + self.groups], a.k_proj.weight, self.groups)
            v = self._heads(normed[self.heads + self.groups :], a.v_proj.weight, self.groups)
            q, k = _turn(q, *angles), _turn(k, *angles)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            w = a.o_proj.weight.T.view(self.heads, self.width, -1)
            out = torch.einsum("bhtd,hdm->hbtm", z, w)
            written += list(out)
            x = x + out.sum(0)
            stream = x[None].clone() if torch.is_grad_enabled() else x[None]
            readers.append((stream, len(written)))
            y = layer.mlp(_norm(stream[0], layer.post_attention_layernorm.weight, self.eps))
            written.append(y)
            x = x + y
        last = x[None].clone() if torch.is_grad_enabled() else x[None]
        readers.append((last, len(written)))
        logits = self.hf.lm_head(_norm(last[0][:, -1], self.hf.model.norm.weight, self.eps))
        return logits, written, readers

    def _heads(self, x: Tensor, weight: Tensor, n: int) -> Tensor:
        """Each head's projection of its own stream. Shapes: [head, row, pos, d_model] -> [row, head, pos, d_head]."""
        return torch.einsum("hbtm,hdm->bhtd", x, weight.view(n, self.width, -1))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]


def _gap(logits: Tensor, work: dict) -> Tensor:
    rows = torch.arange(len(logits))
    return logits[rows, torch.tensor(work["answer"])] - logits[rows, torch.tensor(work["wrong"])]
