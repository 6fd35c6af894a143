"""Seconds of a sweep of probes after the capture: `python -m benchmarks.probes` prints one line of JSON.

31 layers x 3 positions and the averages over tokens, 2,000 statements of 576 numbers, mass-mean, whitened, ridge and logistic
probes at every place, attention-pooled ones at the best two, 1,000 shuffles of the labels at every place (200 of the logistic
probe, 4 of each attention-pooled one). Activations are random with a falling spectrum and a weak label.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

TEXTS, WIDTH, LAYERS, TOKENS = 2000, 576, 31, 14
POSITIONS = (-1, -2, -3, "mean")


def main() -> None:
    """Measure and print."""
    from microtome.controls.shuffles import shuffled_columns
    from microtome.methods.probing.controls import shuffled_logistic
    from microtome.methods.probing.design import design
    from microtome.methods.probing.fitted import attention
    from microtome.methods.probing.options import VECTOR, ProbeOptions
    from microtome.methods.probing.sweeping import sweep_places
    from microtome.tasks.labelled import of_lists

    rng = np.random.default_rng(0)
    texts, labels = [f"text {i}" for i in range(TEXTS)], [i % 2 for i in range(TEXTS)]
    data = of_lists(texts, labels, {"entity": [i // 2 for i in range(TEXTS)]})
    small = sys.argv[1:] == ["small"]  # to try the machinery
    options = ProbeOptions(permutations=19, logistic_permutations=19) if small else ProbeOptions()
    d = design(data, options, 0)
    spectrum = np.exp(-np.arange(WIDTH) / 60)[:, None]
    basis = (rng.standard_normal((WIDTH, WIDTH)) * spectrum).astype(np.float32)
    common = rng.standard_normal((TEXTS, WIDTH)).astype(np.float32)
    captured = {}
    for layer in range(1 if small else LAYERS):
        for position in POSITIONS:
            own = rng.standard_normal((TEXTS, WIDTH)).astype(np.float32)
            label = np.outer(d.truth, rng.standard_normal(WIDTH) * 0.1).astype(np.float32)
            captured[f"L{layer}.resid_post", position] = (common + own) @ basis + label
    tokens = rng.standard_normal((TEXTS, TOKENS, WIDTH)).astype(np.float32)
    mask = np.ones((TEXTS, TOKENS), dtype=bool)
    begun = time.perf_counter()
    shuffles = shuffled_columns(d.truth, d.units, draws=options.permutations, seed=0, parts=d.parts)
    swept = sweep_places(captured, d, VECTOR, shuffles, options)
    sweep = time.perf_counter() - begun
    best = swept.best(["logistic"])
    shuffled_logistic(best, captured[best.place], d, options, 0)
    logistic = time.perf_counter() - begun - sweep
    for k in range(options.attention_sites * (1 + options.attention_shuffles)):
        column = d.truth if k % (1 + options.attention_shuffles) == 0 else shuffles.labels[:, k]
        attention(tokens[d.train], mask[d.train], column[d.train], seed=0)
    whole = time.perf_counter() - begun
    print(json.dumps({"places": len(captured), "layers": LAYERS, "tokens": TOKENS, "width": WIDTH, "texts": TEXTS, "shuffles": options.permutations, "seconds": whole, "sweep": sweep, "logistic": logistic, "attention": whole - sweep - logistic}))  # fmt: skip


if __name__ == "__main__":
    main()
