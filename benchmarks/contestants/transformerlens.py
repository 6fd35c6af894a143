"""TransformerLens 4: `TransformerBridge`, its own patching idiom, one hooked forward per cell."""

from __future__ import annotations

import time

import torch
from transformer_lens.model_bridge import TransformerBridge


class Contestant:
    """The bridge over the same checkpoint."""

    def __init__(self, folder: str) -> None:
        self.model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)

    @torch.no_grad()
    def loop(self, work: dict) -> dict:
        """Donor by run_with_cache, cells by run_with_hooks."""
        ids, donor = torch.tensor(work["ids"]), torch.tensor(work["donor"])
        end = "hook_resid_pre" if work["kind"] == "resid" else "attn.hook_z"
        begun = time.perf_counter()
        _, cache = self.model.run_with_cache(donor, names_filter=lambda name: name.endswith(end))
        values = []
        for layer, position, head in work["cells"]:
            name = f"blocks.{layer}.{end}"

            def patch(value, hook, name=name, position=position, head=head):
                if head is None:
                    value[:, position] = cache[name][:, position]
                else:
                    value[:, position, head] = cache[name][:, position, head]
                return value

            logits = self.model.run_with_hooks(ids, fwd_hooks=[(name, patch)])[:, -1]
            rows = torch.arange(len(logits))
            gap = logits[rows, torch.tensor(work["answer"])] - logits[rows, torch.tensor(work["wrong"])]
            values.append(float(gap.mean()))
        return {"seconds": time.perf_counter() - begun, "values": values}

    @torch.no_grad()
    def capture(self, work: dict) -> dict:
        """Every residual, or every pattern, by run_with_cache with a filter."""
        ids = torch.tensor(work["ids"])
        end = "hook_resid_pre" if work["kind"] == "resid" else "attn.hook_pattern"
        begun = time.perf_counter()
        _, cache = self.model.run_with_cache(ids, names_filter=lambda name: name.endswith(end))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "kept": len(cache)}

    @torch.no_grad()
    def last_tokens(self, work: dict) -> dict:
        """Every layer's output at the last token by run_with_cache, in batches of one length (so that nothing is padded)."""
        begun = time.perf_counter()
        kept: dict[str, list] = {}
        for rows in work["alike"]:
            ids = torch.tensor(rows)
            _, cache = self.model.run_with_cache(
                ids, names_filter=lambda name: name.endswith("hook_resid_post")
            )
            for name, value in cache.items():
                kept.setdefault(name, []).append(value[:, -1].clone())
        found = torch.stack([torch.cat(parts) for parts in kept.values()])
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "values": found.mean(1)[:, :4].flatten().tolist()}

    @torch.no_grad()
    def neurons(self, work: dict) -> dict:
        """Largest activations of every neuron of a layer: run_with_cache over the blocks and a running topk, as in its demos."""
        name, k = f"blocks.{work['layer']}.mlp.hook_post", work["k"]
        begun = time.perf_counter()
        best = None
        for start in range(0, len(work["rows"]), work["at_once"]):
            ids = torch.tensor(work["rows"][start : start + work["at_once"]])
            _, cache = self.model.run_with_cache(ids, names_filter=name, stop_at_layer=work["layer"] + 1)
            values = cache[name].flatten(0, 1)
            values = values if best is None else torch.cat([best, values])
            best = values.topk(min(k, len(values)), dim=0).values
        return {"seconds": time.perf_counter() - begun, "values": best[0, :64].tolist()}

    @torch.no_grad()
    def steered(self, work: dict) -> dict:
        """Its own generate with a hook that adds the direction to every token."""
        ids, direction = torch.tensor(work["ids"]), torch.tensor(work["direction"])
        hook = (f"blocks.{work['layer']}.hook_resid_post", lambda value, hook: value + direction)
        begun = time.perf_counter()
        with self.model.hooks(fwd_hooks=[hook]):
            out = self.model.generate(
                ids,
                max_new_tokens=work["new"],
                do_sample=False,
                stop_at_eos=False,
                use_past_kv_cache=True,
                return_type="tokens",
                verbose=False,
            )
        return {"seconds": time.perf_counter() - begun, "tokens": out[0, ids.shape[1] :].tolist()}

    @torch.no_grad()
    def plain(self, work: dict) -> dict:
        """Its own generate without a hook."""
        ids = torch.tensor(work["ids"])
        begun = time.perf_counter()
        out = self.model.generate(
            ids,
            max_new_tokens=work["new"],
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=True,
            return_type="tokens",
            verbose=False,
        )
        return {"seconds": time.perf_counter() - begun, "tokens": out[0, ids.shape[1] :].tolist()}

    def attribution(self, work: dict) -> dict:
        """Its own attribution patching, summed over positions and named as edges are named here."""
        from transformer_lens.tools.analysis.attribution_patching import (
            EdgeAttributionConfig,
            attribution_patch,
        )

        clean, corrupt = torch.tensor(work["ids"]), torch.tensor(work["donor"])

        def gap(logits):
            right, wrong = work["answer"][gap.at], work["wrong"][gap.at]
            last = logits.reshape(-1, logits.shape[-2], logits.shape[-1])[0, -1]
            return last[right] - last[wrong]

        begun = time.perf_counter()
        total: dict[str, float] = {}
        for gap.at in range(len(clean)):
            here = slice(gap.at, gap.at + 1)
            found = attribution_patch(
                self.model, clean[here], corrupt[here], gap, EdgeAttributionConfig(granularity=work["of"])
            )
            scores = found.edge_scores if work["of"] == "edge" else found.node_scores
            for key, value in scores.items():
                name = "->".join(map(_name, key)) if work["of"] == "edge" else _name(key)
                total[name] = total.get(name, 0.0) + float(value) / len(clean)
        return {"seconds": time.perf_counter() - begun, "values": total}


def _name(node) -> str:
    """A node of theirs as an address."""
    layer, head = node.layer, node.head
    return {
        "embed": "embed",
        "attn_head_out": f"L{layer}H{head}.z",
        "mlp_out": f"L{layer}.mlp_out",
        "q_input": f"L{layer}H{head}.q",
        "k_input": f"L{layer}H{head}.k",
        "v_input": f"L{layer}H{head}.v",
        "mlp_in": f"L{layer}.ln2_out",
        "logits": "logits",
    }[node.kind]
