"""The page's sections on what is made of activations: probes, the store, steering, max-activating examples."""

from __future__ import annotations

import statistics

from benchmarks.rows import paired, table, took


def sections(data: dict) -> list[str]:
    """Markdown of the parts that were measured."""
    return [
        *_probes(data.get("probes")),
        *_steering(data.get("steering")),
        *_store(data.get("store"), data.get("store_beside"), data.get("store_memory")),
        *_examples(data.get("examples"), data.get("examples_memory")),
    ]


def _probes(found: dict | None) -> list[str]:
    if not found:
        return []
    head = f"{found['places']} places ({found['layers']} layers x 3 tokens and the average over tokens) of {found['texts']:,} texts of {found['width']} numbers, random ones of the right shape"
    rows = [
        [f"mass-mean, whitened, ridge, logistic at every place, {found['shuffles']:,} shuffles of the labels for the first three", f"{found['sweep']:.0f}"],
        ["logistic at the best place, 200 shuffles of the labels", f"{found['logistic']:.0f}"],
        ["attention-pooled at the best two places, 4 shuffles each", f"{found['attention']:.0f}"],
        ["all (promised: at most 240)", f"{found['seconds']:.0f}"],
    ]  # fmt: skip
    return ["## A sweep of probes, after the capture", f"{head}, in one process, once:", table(["", "seconds"], rows)]  # fmt: skip


def _steering(found: dict | None) -> list[str]:
    """Generation with and without a direction added."""
    if not found:
        return []
    rows = []
    for n, ways in found.items():
        for name, who in ways.items():
            against = "TransformerLens, plain generation" if name.startswith("TransformerLens") else "plain generation"  # fmt: skip
            ratio = f"{paired(who, ways[against]):.2f}x" if "seconds" in who and "seconds" in ways[against] else ""  # fmt: skip
            same = {True: "yes", False: "no"}.get(who.get("same_tokens"), "")
            rows.append([n, name, took(who), ratio, "1.05x" if name == "microtome, steered" else "", same])
    head = ["prompts", "how", "seconds", "against plain generation", "promised at most", "same tokens"]
    said = (
        "A direction of norm 4 added to layer 14's output at every token. Plain generation is transformers' own, except for "
        "TransformerLens's rows, which are held against its own. Same tokens: as plain generation, or where it is steered as the hook by hand."
    )
    return ["## Steered generation: 48 tokens, greedy", said, table(head, rows)]


def _store(found: dict | None, beside: dict | None, memory: dict | None) -> list[str]:
    out = ["## Capturing a dataset"] if found or beside or memory else []
    if found:
        rows = []
        for name, who in found.items():
            rate = f"{paired(who['plain forward, stopped'], who['store']):.2f}" if "seconds" in who["store"] else ""  # fmt: skip
            size = f"{who['store'].get('bytes', 0) / 1e6:.0f}"
            rows.append([name, took(who["plain forward, stopped"]), took(who["store"]), size, rate, "0.9"])
        head = ["", "plain forward stopped at the last layer needed, seconds", "store, seconds", "MB written", "rate of the store / of the forward", "promised at least"]  # fmt: skip
        out += ["Batches, digests, writing and fsync included; the plain forward keeps nothing.", table(head, rows)]  # fmt: skip
    if beside:
        out += [
            f"The last token of every layer's output, {beside['statements']} statements; TransformerLens by `run_with_cache` with a filter, nnterp by "
            "`get_token_activations`, both in batches of one length and kept in memory (neither has a store on disk; steering-vectors records "
            "activations only on its way to a vector):",
            table(["", "seconds", "against hooks by hand", "largest difference of a mean from theirs, share of the largest"], _ways(beside["who"], "hooks and lists by hand, saved")),
        ]  # fmt: skip
    if memory:
        text = "Peak memory of the whole process by length of the dataset, three sites of a random model of two layers (promised: flat; at most two windows of 64 MB are held, which the shortest may not fill):"
        out += [text, _peaks(memory)]
    return out


def _examples(found: dict | None, memory: dict | None) -> list[str]:
    out = ["## Max-activating examples of all neurons of one layer"] if found or memory else []
    if found:
        out += [
            f"{found['tokens']:,} tokens, 1,536 neurons of SmolLM2's layer 12, one pass. Microtome's also scores 199 random directions and keeps random samples of all. "
            "No peer has a search for examples: TransformerLens's row is `run_with_cache` and a running topk; nnterp and steering-vectors have nothing of the kind.",
            table(["", "seconds", "against a plain forward", "largest difference of a maximum from the topk by hand, share of the largest"], _ways(found["who"], "plain forward, stopped")),
        ]  # fmt: skip
    if memory:
        peaks = [m["peak"] for m in memory.values()]
        text = f"Peak memory of the whole process by length of the text, 512 neurons and 199 random directions of a random model of two layers (promised: equal within 5 % at 20,000 and 100,000 tokens, and 1,000,000 tokens at all): the first two differ by {abs(peaks[1] / peaks[0] - 1):.1%}."
        out += [text, _peaks(memory)]
    return out


def _ways(who: dict, base: str) -> list[list[str]]:
    rows = []
    for name, one in who.items():
        ratio = f"{paired(one, who[base]):.2f}x" if "seconds" in one and "seconds" in who[base] else ""
        rows.append([name, took(one), ratio, f"{one['gap']:.1e}" if "gap" in one else ""])
    return rows


def _peaks(memory: dict) -> str:
    least = statistics.median(m["peak"] for m in memory.values())
    rows = [[f"{m['tokens']:,}", f"{m['peak'] / 1e6:,.0f}", f"{m['peak'] / least - 1:+.1%}", f"{m['seconds']:.0f}"] for m in memory.values()]  # fmt: skip
    return table(["tokens", "peak, MB", "against the median of these", "seconds"], rows)
