"""Results of every kind with the shapes that the methods give, made of numbers that are drawn and effects that are planted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from microtome.results import Control, Labelled, Query, Result, verdict

EVIL = (
    "</script><script>window.pwned=1</script>",
    "<!--<script>",
    "<img src=http://evil.example/x onerror=window.pwned=1>",
    "<b>bold</b><br><a href=javascript:window.pwned=1>x</a>",
    "%{meta.python} $\\evil$ &lt;i&gt;",
    "\u202eright to left \u2028 \u200b",
)
TOKENS = (
    "When",
    " Mary",
    " and",
    " John",
    " went",
    " to",
    " the",
    " store",
    ",",
    " John",
    " gave",
    " a",
    " drink",
    " to",
)
MODEL, TASK = "a3f1" * 8, "77c0" * 8


def query(method, **parameters):
    numerics = {"dtype": "float32", "attention": "sdpa", "device": "cpu"}
    return Query(method, "1", MODEL, TASK, "", parameters, 0, numerics)


def control(name, passed=True, **changes):
    fields = {
        "rules_out": f"what {name} rules out",
        "expected": "at most 0.1",
        "observed": 0.03,
        "n": 16,
        **changes,
    }
    if passed is None:
        return Control.not_run(
            name, fields["rules_out"], fields["expected"], "no held-out prompts were given"
        )
    return Control(name, fields["rules_out"], fields["expected"], fields["observed"], passed, fields["n"], fields.get("null"),
                   fields.get("detail", ""), fields.get("gates", False))  # fmt: skip


def judged(controls=None, p=0.0002, mandatory=("identity", "noise")):
    controls = controls or (
        control("identity", gates=True, observed=2.1e-6, rules_out="that writing an activation back changes the metric", expected="largest |difference| at most the noise floor 1e-5"),
        control("noise", observed={"L14.resid_pre@3": 0.04, "L9.resid_pre@3": -0.02}, null=(-0.2, 0.2), rules_out="that any vector of this size does it", expected="mean effect within 0.2 of the real one", detail="ratio per cell; 0 of 2 failed"),
        control("irrelevant", passed=False, observed=0.31, null=(-0.2, 0.2), rules_out="that the cell carries something else that differs", expected="no effect, within 0.2 of the real one"),
        control("held_out", passed=None, rules_out="that the cells were selected for the noise of the prompts that selected them", expected="the effect again on held-out prompts"),
    )  # fmt: skip
    return {"controls": controls, "verdict": verdict(controls, mandatory, p, 0.001, 0.0001)}


def examples(tokens=TOKENS, n=3):
    rows = []
    for i in range(n):
        top = [[" Mary", 0.71 - 0.1 * i], [" the", 0.08], [" her", 0.05], [" John", 0.04], [tokens[-1], 0.01]]
        rows.append(
            {
                "prompt": "".join(tokens),
                "tokens": list(tokens),
                "answer": " Mary",
                "wrong": " John",
                "top": top,
                "value": 4.2 - i,
            }
        )
    return rows


def behaviour(tokens=TOKENS, accuracy=0.97, p=0.0002):
    rng = np.random.default_rng(1)
    values = rng.normal(4.5 * (2 * accuracy - 1), 1.6, 48).astype(np.float32)
    effects = Labelled(
        values[:, None], ("prompt", "metric"), {"prompt": tuple(range(48)), "metric": ("logit_diff",)}
    )
    sides = pd.DataFrame([
        {"side": "clean", "accuracy": accuracy, "low": accuracy - 0.1, "high": min(1.0, accuracy + 0.02), "chance": 0.5, "n": 48,
         "mean": float(values.mean()), "mean_low": float(values.mean()) - 0.5, "mean_high": float(values.mean()) + 0.5, "metric": "logit_diff"},
        {"side": "corrupt", "accuracy": accuracy - 0.02, "low": accuracy - 0.13, "high": min(1.0, accuracy + 0.01), "chance": 0.5, "n": 48,
         "mean": 4.1, "mean_low": 3.6, "mean_high": 4.6, "metric": "logit_diff"},
    ])  # fmt: skip
    above = control(
        "above_chance",
        passed=p < 0.001,
        observed={"accuracy": accuracy, "p": p},
        rules_out="that the model does not do this task",
        expected="more right than chance 0.5",
    )
    return Result(
        "behaviour",
        query("behaviour"),
        effects,
        {"sides": sides},
        raw_examples=examples(tokens),
        **judged((above,), p, ("above_chance",)),
    )


def _cells(effects, scale=0.35, alpha=0.001):
    """Intervals, a family-wise null band and p that follow from the planted effects."""
    mean = effects.values.mean(-2)[..., 0]
    dims = effects.dims[:-2]
    columns = {
        d: np.array(Labelled(mean, dims, {k: effects.coords[k] for k in dims}).label_column(d), dtype=object)
        for d in dims
    }
    value = mean.ravel()
    return pd.DataFrame({**columns, "metric": effects.coords["metric"][0], "low": value - 0.3, "high": value + 0.3, "null_low": -scale,
                         "null_high": scale, "p": np.where(np.abs(value) > scale, alpha / 3, 0.4)})  # fmt: skip


def patching(
    points=("resid_pre",), layers=30, tokens=TOKENS, n=8, metrics=("logit_diff", "prob_diff"), **changes
):
    rng = np.random.default_rng(2)
    sites = tuple(f"L{layer}.{point}" for point in points for layer in range(layers))
    if points == ("resid_pre",):
        sites += ("final_resid",)
    n_pos = len(tokens)
    values = rng.normal(0, 0.06, (len(sites), n_pos, n, len(metrics)))
    depth = np.tile(np.arange(layers) / layers, len(points))
    depth = np.concatenate([depth, np.ones(len(sites) - len(depth))])
    values[:, 9] += np.where(depth < 0.5, 4.0, 4.0 * np.exp(-(((depth - 0.5) * 9) ** 2)))[:, None, None]
    values[:, -1] += (4.5 / (1 + np.exp(-(depth - 0.55) * 25)))[:, None, None]
    values[:, 11] -= np.exp(-(((depth - 0.6) * 12) ** 2))[:, None, None] * 1.4
    zero = np.zeros((len(sites), n_pos), bool)
    zero[:, :9] = True
    values[:, :9] = 0
    values = values.astype(np.float32)
    effects = Labelled(values, ("site", "position", "prompt", "metric"),
                       {"site": sites, "position": tuple(range(n_pos)), "prompt": tuple(range(n)), "metric": metrics})  # fmt: skip
    cells = _cells(effects)
    share = cells[["site", "position", "metric"]].assign(value=effects.values.mean(2)[..., 0].ravel() / 4.4)
    share = share.assign(low=share["value"] - 0.07, high=share["value"] + 0.07)
    where = [(sites[layers // 2], 9), (sites[layers - 2], n_pos - 1)]
    donors = pd.DataFrame([
        {"donor": donor, "site": site, "position": str(at), "value": value + 0.1 * k, "low": value - 0.4, "high": value + 0.4}
        for k, (site, at) in enumerate(where)
        for donor, value in (("real", 4.1), ("same_value", 3.9), ("irrelevant", 0.1), ("wrong_value", -2.2), ("noise", 0.05))
    ])  # fmt: skip
    positions = pd.DataFrame({"position": [str(i) for i in range(n_pos)], "label": list(tokens)})
    raw = [
        {
            "prompt": "".join(tokens),
            "tokens": list(tokens),
            "donor": "".join(tokens),
            "base": -3.1 + i,
            "total": 7.9,
        }
        for i in range(3)
    ]
    made = Result(
        "activation_patching", query("activation_patching", sites=[f"L*.{p}" for p in points], mode="denoise", metrics=list(metrics)), effects,
        {"cells": cells, "normalised": share, "donors": donors, "positions": positions}, {"structurally_zero": zero}, raw_examples=raw, **judged(),
    )  # fmt: skip
    return replace(made, **changes) if changes else made


def heads(kind="activation_patching", layers=30, n_heads=9, n=8, seed=3, mlps=True, **parameters):
    """Heads, and MLPs beside them, at all positions together."""
    rng = np.random.default_rng(seed)
    sites = tuple(f"L{layer}H{head}.z" for layer in range(layers) for head in range(n_heads))
    sites += tuple(f"L{layer}.mlp_out" for layer in range(layers)) if mlps else ()
    values = rng.normal(0, 0.03, (len(sites), n, 1)) + np.random.default_rng(12).normal(
        0, 0.04, (len(sites), 1, 1)
    )
    for site, size in (
        (f"L{layers // 2}H3", 1.9),
        (f"L{min(layers // 2 + 3, layers - 1)}H6", 1.2),
        (f"L{layers - 1}H1", -0.9),
        (f"L{layers // 2 + 1}H0", 0.7),
    ):
        values[sites.index(f"{site}.z")] += size
    effects = Labelled(
        values.astype(np.float32),
        ("site", "prompt", "metric"),
        {"site": sites, "prompt": tuple(range(n)), "metric": ("logit_diff",)},
    )
    tables = {"cells": _cells(effects, 0.15)}
    if kind == "attribution_patching":
        mean = effects.values.mean(1)[:, 0].astype(float)
        noise = np.random.default_rng(13).normal(0, 0.03, len(sites))
        tables["agreement"] = pd.DataFrame({"site": sites, "estimate": 0.7 * mean, "exact": mean + noise})
    return Result(kind, query(kind, mode="denoise", **parameters), effects, tables, **judged())


def direct(layers=30, n_heads=9, n=8):
    base = heads("direct_logit_attribution", layers, n_heads, n, 4, mlps=False)
    sites = tuple(site.replace(".z", ".head_out") for site in base.effects.coords["site"])
    rng = np.random.default_rng(5)
    extra = (*(f"L{i}.mlp_out" for i in range(layers)), "embed", "final_bias")
    values = np.concatenate([base.effects.values, rng.normal(0, 0.15, (len(extra), n, 1)).astype(np.float32)])
    effects = Labelled(
        values, ("site", "prompt", "metric"), {**base.effects.coords, "site": (*sites, *extra)}
    )
    return Result(
        "direct_logit_attribution",
        query("direct_logit_attribution"),
        effects,
        {"cells": _cells(effects, 0.2)},
        **judged(),
    )


def lens(layers=30, n=8, tokens=TOKENS):
    rng = np.random.default_rng(6)
    sites = tuple(f"L{i}.resid_post" for i in range(layers))
    rise = 4.5 / (1 + np.exp(-(np.arange(layers) - 0.62 * layers) / 1.6))
    values = rng.normal(0, 0.2, (layers, 2, n, 1))
    values[:, 1] += rise[:, None, None]
    effects = Labelled(values.astype(np.float32), ("site", "position", "prompt", "metric"),
                       {"site": sites, "position": ("subject", "last"), "prompt": tuple(range(n)), "metric": ("logit_diff",)})  # fmt: skip
    top = pd.DataFrame([
        {"site": site, "prompt": prompt, "rank": rank, "token": tokens[(i * 3 + rank) % len(tokens)], "probability": (0.02 + 0.7 * i / layers) / (rank + 1)}
        for i, site in enumerate(sites) for prompt in (0, 3) for rank in range(5)
    ])  # fmt: skip
    return Result(
        "logit_lens", query("logit_lens"), effects, {"cells": _cells(effects, 0.6), "top": top}, **judged()
    )


def ablation(layers=30, n=8):
    rng = np.random.default_rng(7)
    sites = tuple(f"L{i}.{p}" for i in range(layers) for p in ("attn_out", "mlp_out"))
    values = rng.normal(-0.1, 0.1, (len(sites), n, 1))
    values[1] -= 3.5
    values[2 * (layers // 2)] -= 2.5
    effects = Labelled(
        values.astype(np.float32),
        ("site", "prompt", "metric"),
        {"site": sites, "prompt": tuple(range(n)), "metric": ("logit_diff",)},
    )
    on = np.abs(values.mean((1, 2))) * 0.5 + 0.005
    off = on * np.exp(rng.normal(0, 0.5, len(sites)))
    off[2 * (layers // 2)] = 0.02
    table = pd.DataFrame({"site": sites, "on": on, "off": off})
    return Result(
        "ablation",
        query("ablation", by="mean"),
        effects,
        {"cells": _cells(effects, 0.4), "off_task": table},
        **judged(),
    )


def attention(n_heads=6, all_heads=0, tokens=TOKENS):
    rng = np.random.default_rng(8)
    chosen = (
        [(layer, head) for layer in range(all_heads) for head in range(9)]
        if all_heads
        else [(8 + 2 * i, (3 * i + 1) % 9) for i in range(n_heads)]
    )
    rows = [
        {"site": f"L{layer}H{head}.pattern", "layer": layer, "head": head, "detector": detector, "distribution": text,
         "score": float(np.clip(rng.beta(1, 12) + (0.8 if (layer * 7 + head + k) % 11 == 0 else 0), 0, 1)), "null_low": 0.02, "null_high": 0.31}
        for layer, head in chosen for k, detector in enumerate(("previous", "duplicate", "induction", "current", "first")) for text in ("task", "repeated", "ordinary text")
    ]  # fmt: skip
    tensors, names = {}, []
    for layer, head in chosen[:2]:
        raw = np.tril(rng.gamma(0.4, 1.0, (len(tokens), len(tokens))))
        raw[:, 0] += 0.5
        tensors[f"pattern/L{layer}H{head}"] = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
        names += [
            {"site": f"L{layer}H{head}", "prompt": 3, "index": i, "token": t} for i, t in enumerate(tokens)
        ]
    tables = {"detectors": pd.DataFrame(rows), "pattern_tokens": pd.DataFrame(names)}
    return Result("attention_patterns", query("attention_patterns"), None, tables, tensors, **judged())


def roles(layers=30, n_heads=9):
    rng = np.random.default_rng(31)
    heads = [(layer, head) for layer in range(layers) for head in range(n_heads)]
    rows = []
    for role in ("previous", "induction", "copying"):
        predicted = rng.beta(1, 5, len(heads))
        seen = np.clip(predicted + rng.normal(0, 0.1, len(heads)), 0, 1)
        rows += [
            {"site": f"L{layer}H{head}", "layer": layer, "head": head, "role": role, "predicted": predicted[k], "null_high": 0.4, "p": 0.01,
             "flagged": bool(predicted[k] > 0.4), "through": "", "repeated": seen[k], "natural": seen[k] / 2, "repeated_null": 0.1, "natural_null": 0.08}
            for k, (layer, head) in enumerate(heads)
        ]  # fmt: skip
    ranks = [{"role": role, "text": text, "spearman": 0.6, "null_low": -0.1, "null_high": 0.1, "p": 0.0001, "auroc": 0.97, "heads": len(heads), "doing": 9}
             for role in ("previous", "induction", "copying") for text in ("repeated", "natural")]  # fmt: skip
    sets = ["L1H0", "L2H3", "together", *(f"random {i}" for i in range(5))]
    lost = [{"heads": name, "sites": name, "text": text, "where": where, "rise": 2.0 if where == "repeats" and "random" not in name else 0.05, "low": 0.0,
             "high": 2.4, "null_low": -0.1 if name == "together" else np.nan, "null_high": 0.3 if name == "together" else np.nan, "p": 0.05, "n": 8}
            for text in ("repeated", "natural") for where in ("repeats", "elsewhere") for name in sets]  # fmt: skip
    tables = {"roles": pd.DataFrame(rows), "ranks": pd.DataFrame(ranks), "ablations": pd.DataFrame(lost)}
    return Result("head_roles", query("head_roles"), None, tables, **judged())


def composed(layers=30, n_heads=9):
    rng = np.random.default_rng(32)
    names = [f"L{layer}H{head}" for layer in range(layers) for head in range(n_heads)]
    layer = np.repeat(np.arange(layers), n_heads)
    arrays = {
        k: np.where(layer[:, None] < layer[None], rng.uniform(0.02, 0.2, (len(names),) * 2), np.nan)
        for k in "QKV"
    }
    pairs = [{"kind": "QKV"[i % 3], "sender": names[i], "reader": names[-1 - i], "score": 0.3 / (1 + i), "null_low": 0.03, "null_high": 0.05,
              "z": 9.0 - i, "p": 0.0001 if i < 5 else 0.4} for i in range(9)]  # fmt: skip
    heads = pd.DataFrame({"site": names, "layer": layer, "head": [int(n.split("H")[1]) for n in names]})
    return Result(
        "composition",
        query("composition"),
        None,
        {"pairs": pd.DataFrame(pairs), "heads": heads},
        arrays,
        **judged(),
    )


def lensed(layers=30, n=12):
    rng = np.random.default_rng(33)
    sites = (*(f"L{i}.resid_pre" for i in range(layers)), "final_resid")
    names = ("logit", "tuned", "jacobian", "constant")
    depth = np.linspace(1, 0, len(sites))[:, None, None]
    kl = np.array([9.0, 3.0, 6.0, 8.0]) * depth + rng.uniform(0, 0.2, (len(sites), n, 4))
    values = np.concatenate([kl, np.exp(-kl), kl + 3], -1).astype(np.float32)
    metrics = tuple(f"{m} {name}" for m in ("kl", "agreement", "nll") for name in names)
    effects = Labelled(
        values, ("site", "prompt", "metric"), {"site": sites, "prompt": tuple(range(n)), "metric": metrics}
    )
    mean = values.mean(1)
    cells = pd.DataFrame([{"site": site, "metric": m, "low": mean[s, k] - 0.1, "high": mean[s, k] + 0.1, "null_low": 8.0 if k < 4 else 0.0, "null_high": 10.0 if k < 4 else 0.1}
                          for s, site in enumerate(sites) for k, m in enumerate(metrics)])  # fmt: skip
    calibration = pd.DataFrame(
        [
            {"site": site, "lens": name, "value": 0.1, "low": 0.05, "high": 0.2}
            for site in sites
            for name in names
        ]
    )
    bins = pd.DataFrame(
        [
            {"site": site, "lens": name, "predicted": b / 10 + 0.05, "observed": b / 11, "n": 9}
            for site in sites
            for name in names
            for b in range(10)
        ]
    )
    return Result(
        "lenses",
        query("lenses"),
        effects,
        {"cells": cells, "calibration": calibration, "reliability": bins},
        **judged(),
    )


def patchscoped():
    states = pd.DataFrame(
        [
            {"state": k, "value": v, "low": v - 1, "high": v + 1, "n": 8}
            for k, v in (("own", -2.0), ("other", -12.0), ("random", -13.0), ("none", -14.0))
        ]
    )
    texts = pd.DataFrame(
        [
            {"prompt": i, "state": k, "text": " Rome", "named": "", "right": False}
            for i in range(3)
            for k in ("own", "other 1", "random 0", "none")
        ]
    )
    return Result(
        "patchscope", query("patchscope"), None, {"states": states, "generations": texts}, **judged()
    )


def vectors(tokens=TOKENS):
    rows = [{"part": f"L{i}H{i % 3}", "side": side, "rank": i % 2, "singular": 3.0, "share": 0.2, "coherence": 0.6 / (1 + i), "null": 0.1, "null_high": 0.2,
             "tokens": " | ".join(tokens[:8])} for i in range(6) for side in ("reads", "writes")]  # fmt: skip
    return Result(
        "vocabulary_svd", query("vocabulary_svd"), None, {"vectors": pd.DataFrame(rows)}, **judged()
    )


def components(n=16):
    k = np.arange(1, n + 1)
    value = 0.92 * (1 - np.exp(-k / 4.0))
    rng = np.random.default_rng(9)
    sites = [f"L{8 + (5 * i) % 20}H{(7 * i) % 9}" if i % 3 else f"L{10 + i}.mlp_out" for i in range(n)]
    tables = {
        "curve": pd.DataFrame({"k": k, "value": value, "low": value - 0.08, "high": value + 0.07, "n": 16}),
        "components": pd.DataFrame({"rank": k - 1, "site": sites, "effect": 2.1 * np.exp(-k / 5)}),
        "nulls": pd.DataFrame({"family": ["matched"] * 40 + ["top_pool"] * 40, "draw": [*range(40)] * 2,
                               "value": np.concatenate([rng.normal(0.06, 0.06, 40), rng.normal(0.34, 0.1, 40)])}),
        "held_out": pd.DataFrame([{"quantity": "faithfulness", "value": 0.81, "low": 0.72, "high": 0.89, "n": 32},
                                  {"quantity": "completeness", "value": 0.12, "low": 0.05, "high": 0.2, "n": 32}]),
    }  # fmt: skip
    return Result("component_set", query("component_set", k=n), None, tables, **judged())


SIX = {"granularity": "edge", "component": "all", "ablation": "corrupt", "positions": "all", "direction": "noise", "prompts": "ioi 77c0 n=16"}  # fmt: skip


def evaluation(n=16):
    rng = np.random.default_rng(11)
    sizes = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    share = 1 - np.exp(-np.arange(10) / 1.5)
    edges = ["embed->L0.ln2_out", "L0.mlp_out->L9H6.q", "L5H3.z->L9H6.v", "L9H6.z->logits"]
    rows = [("faithfulness", 0.93, 0.86, 1.01), ("faithfulness of the complement", 0.12, 0.02, 0.2), ("faithfulness, held out", 0.88, 0.74, 1.02),
            ("CPR", 0.97, np.nan, np.nan), ("CPR, log k", 0.71, np.nan, np.nan), ("CMD", 0.03, np.nan, np.nan), ("CMD, log k", 0.28, np.nan, np.nan)]  # fmt: skip
    full = rng.normal(4, 1, n)
    families = ("of its shape", "of the strongest", "shuffled labels")
    tables = {
        "measures": pd.DataFrame(rows, columns=["quantity", "value", "low", "high"]).assign(n=n, **SIX),
        "sizes": pd.DataFrame([{"ranking": r, "fraction": f, "edges": int(1000 * f), "value": v} for r in ("signed", "absolute") for f, v in zip(sizes, share, strict=True)]),
        "prompts": pd.DataFrame({"prompt": range(n), "whole model": full, "circuit": 0.93 * full + rng.normal(0, 0.2, n), "kl": rng.gamma(1, 0.1, n)}),
        "nulls": pd.DataFrame({"family": np.repeat(families, (40, 40, 19)), "value": np.concatenate([rng.normal(0.05, 0.05, 40), rng.normal(0.4, 0.1, 40), rng.normal(0.3, 0.2, 19)])}),
        "units": pd.DataFrame({"unit": edges, "change": [0.4, 0.2, 0.5, 0.001], "p": [0.01, 0.01, 0.01, 0.4]}),
        "second": pd.DataFrame({"size": [4, 8], "edges": [4, 8], "value": [0.1, 0.3]}),
        "edges": pd.DataFrame({"edge": [*edges, "embed->logits"], "score": [0.4, 0.2, 0.5, 0.3, 0.01], "low": 0.0, "high": 0.6, "kept": [True] * 4 + [False]}),
        "about": pd.DataFrame({"name": ["metric", "choices", "group", "spans", "how"], "value": ["logit_diff", "{}", "3", "[]", "eap-ig"]}),
    }  # fmt: skip
    effects = Labelled((tables["prompts"]["circuit"] - full).to_numpy(np.float32)[None, :, None], ("site", "prompt", "metric"),
                       {"site": ("circuit of 4 edges",), "prompt": tuple(range(n)), "metric": ("logit_diff",)})  # fmt: skip
    return Result("circuit_evaluation", query("circuit_evaluation"), effects, tables, **judged())


def robustness():
    rows = [("", "as found", 0.93), ("granularity", "node", 0.98), ("component", "heads", 1.02), ("ablation", "zero", 0.4), ("direction", "denoise", 1.1),
            ("positions", "spans", np.nan), ("prompts", "template A", 0.9)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["choice", "setting", "value"])
    table = table.assign(low=table["value"] - 0.1, high=table["value"] + 0.1, null_low=-0.1, null_high=0.2, n=16, p=0.05, why=["", "", "", "", "", "these prompts have no spans", ""], **SIX)  # fmt: skip
    about = pd.DataFrame({"name": ["metric"], "value": ["logit_diff"]})
    return Result(
        "circuit_robustness",
        query("circuit_robustness"),
        None,
        {"settings": table, "about": about},
        **judged(),
    )


def alignment():
    rows = [
        {"part": part, "what": what, "value": value, "low": max(value - 0.08, 0.0), "high": min(value + 0.07, 1.0), "k": 1, "n": 64}
        for part in ("entity", "template")
        for what, value in (("subspace", 0.92), ("no intervention", 0.03), ("full vector", 0.97), ("chance", 0.1), ("row space only", 0.9),
                            ("null space only", 0.03), ("shuffled_labels", 0.11), ("irrelevant_variable", 0.09), ("random_twin", 0.1))
    ]  # fmt: skip
    steps = [{"run": run, "step": s, "loss": 2.3 * np.exp(-s / (20 if run == "real" else 400)), "k": 1.0} for run in ("real", "shuffled_labels 0") for s in range(0, 100, 10)]  # fmt: skip
    tables = {"accuracy": pd.DataFrame(rows), "training": pd.DataFrame(steps)}
    asked = query("distributed_alignment_search", variable="io", site="L24.resid_post@-1", k=1)
    return Result("distributed_alignment_search", asked, None, tables, **judged())


def paths(layers=30):
    """Senders to one head's query, with sums and other donors."""
    asked = {
        "sender": "L*H*.z",
        "receiver": ["L9H6.q"],
        "through": "mlps",
        "freeze": ["norms"],
        "downstream": "free",
        "mode": "denoise",
    }
    base = heads("path_patching", layers, mlps=False)
    table = pd.DataFrame({"quantity": ["senders, one by one", "all writers together", "gap", "donor minus base"],
                          "value": [2.8, 3.1, 0.3, 4.2], "low": [2.2, 2.6, -0.1, 3.4], "high": [3.4, 3.6, 0.7, 5.0]})  # fmt: skip
    other = pd.DataFrame({"donor": ["real", "irrelevant"], "site": "L9H6.z", "position": "", "value": [1.9, 0.02], "low": [1.5, -0.1], "high": [2.2, 0.1]})  # fmt: skip
    tables = {**base.tables, "sums": table, "donors": other}
    return Result("path_patching", query("path_patching", **asked), base.effects, tables, **judged())


def prompts(evil=False):
    """Two factors, one of three levels, in three wordings; the strongest leaves the band of wordings."""
    sites = (
        "tone: polite - rude",
        "tone: blunt - rude",
        f"{EVIL[3]}: b - a" if evil else "city: (nothing) - Paris",
    )
    rng = np.random.default_rng(8)
    values = np.array([2.4, 0.3, -0.5])[:, None] + rng.normal(0, 0.3, (3, 36))
    values[:, ::3] = np.nan
    effects = Labelled(values[..., None], ("site", "prompt", "metric"), {"site": sites, "prompt": tuple(range(36)), "metric": ("logprob_diff",)})  # fmt: skip
    mean = np.nanmean(values, 1)
    tables = {
        "cells": pd.DataFrame({"site": sites, "metric": "logprob_diff", "low": mean - 0.2, "high": mean + 0.2, "null_low": -0.9, "null_high": 0.9, "p": [0.0002, 0.0002, 0.4]}),
        "wordings": pd.DataFrame({"wording": ["1 - 0", "2 - 0", "2 - 1"], "value": [0.9, -0.1, -0.8], "low": [0.7, -0.3, -1.0], "high": [1.1, 0.1, -0.6], "n": 12}),
        "by_wording": pd.DataFrame([{"site": s, "wording": w, "value": float(m) + 0.1 * w, "n": 12} for s, m in zip(sites, mean, strict=True) for w in range(3)]),
    }  # fmt: skip
    controls = (control("alone", gates=True), control("paraphrases", null=(-0.9, 0.9)))
    return Result("prompt_grid", query("prompt_grid", read="logprob"), effects, tables, raw_examples=examples(), **judged(controls, mandatory=("alone", "paraphrases")))  # fmt: skip


def attributed(tokens=TOKENS):
    """Three ways over the tokens of four prompts, and deletion curves that leave the band of random orders."""
    ways, n = ("gradient_x_input", "integrated_gradients", "occlusion"), 4
    rng = np.random.default_rng(9)
    values = rng.normal(0, 0.2, (3, len(tokens), n))
    values[:, 3] += 2
    effects = Labelled(values[..., None], ("site", "position", "prompt", "metric"),
                       {"site": ways, "position": tuple(range(len(tokens))), "prompt": tuple(range(n)), "metric": ("logit_diff",)})  # fmt: skip
    rows = [{"prompt": i, "position": p, "token": t, **{w: values[k, p, i] for k, w in enumerate(ways)}} for i in range(n) for p, t in enumerate(tokens)]  # fmt: skip
    shares = (0.25, 0.5, 0.75, 1.0)
    curve = [{"order": name, "share": x, "value": -3 * x**power, "null_low": -3 * x - 0.2, "null_high": -3 * x + 0.2}
             for name, power in (*((w, 0.4) for w in ways), *((f"{w}, least first", 3) for w in ways), ("random", 1)) for x in shares]  # fmt: skip
    tables = {"cells": _cells(effects), "tokens": pd.DataFrame(rows), "deletion": pd.DataFrame(curve)}
    controls = (
        control("identity", gates=True),
        control("completeness", gates=True),
        control("random_orders", null=(-1.9, -1.5)),
    )
    return Result("token_attribution", query("token_attribution", baseline="mean"), effects, tables, raw_examples=examples(tokens), **judged(controls, mandatory=("identity", "random_orders")))  # fmt: skip


def chain(evil=False):
    """Four sentences, the second of which settles the answer, and two edits."""
    sites = (
        "resample 0: Let us add.",
        "resample 1: 3 + 4 is 7.",
        f"resample 2: {EVIL[3]}" if evil else "resample 2: So.",
        "resample 3: Hence",
        "delete 1: 3 + 4 is 7.",
        "force 1: 3 + 4 is 8.",
    )
    tv = np.array([0.05, 0.8, 0.1, 0.0, 0.7, 0.9])
    effects = Labelled(np.stack([tv, 2 * tv], -1)[:, None], ("site", "prompt", "metric"), {"site": sites, "prompt": (0,), "metric": ("total_variation", "kl")})  # fmt: skip
    cells = pd.DataFrame(
        {
            "site": sites,
            "metric": "total_variation",
            "low": np.maximum(tv - 0.1, 0),
            "high": np.minimum(tv + 0.1, 1),
            "null_low": 0.0,
            "null_high": 0.25,
            "p": np.where(tv > 0.5, 0.0006, 1.0),
        }
    )
    where = [*(f"before sentence {k}" for k in range(4)), "before the answer", *sites[4:]]
    share = np.array([0.1, 0.15, 0.95, 0.9, 0.9, 0.2, 0.0])
    answers = pd.DataFrame(
        {
            "where": where,
            "samples": 20,
            "share_7": share,
            "share_8": 1 - share,
            "share_other": 0.0,
            "share_unparsed": 0.0,
        }
    )
    controls = (control("alone", gates=True), control("same_cut", null=(0.0, 0.25)))
    return Result("chain_of_thought", query("chain_of_thought"), effects, {"cells": cells, "answers": answers}, **judged(controls, mandatory=("alone", "same_cut")))  # fmt: skip


def dynamics(evil=False):
    """Two measures over a training, with the range of scrambled weights; one without a null."""
    names = ("prefix_matching", "seen_loss", EVIL[0] if evil else "embedding_gini")
    rows = [
        {"step": s, "measure": m, "value": v, "null_low": lo, "null_high": hi}
        for s in (0, 50, 100, 400, 1500)
        for m, v, lo, hi in ((names[0], s / (s + 80), 0.09, 0.12), (names[1], 3.5 * np.exp(-s / 90), 3.4, 3.7), (names[2], 0.2 + s / 4000, np.nan, np.nan))
    ]  # fmt: skip
    controls = (control("repeat", gates=True), control("scrambled_weights"))
    return Result("training_dynamics", query("training_dynamics", nulls=4), None, {"progress": pd.DataFrame(rows)}, **judged(controls, mandatory=("repeat", "scrambled_weights")))  # fmt: skip


def unsupervised(evil=False):
    """Components that tell something else better than the label."""
    rows = [{"direction": name, "target": t, "value": v, "null_high": 0.66 if t == "label" else np.nan, "n": 40}
            for name in ("component 1", "CCS") for t, v in (("label", 0.61), (EVIL[0] if evil else "word: banana", 0.99), ("number of tokens", 0.55))]  # fmt: skip
    return Result("unsupervised", query("unsupervised"), None, {"predicts": pd.DataFrame(rows)}, **judged())


def generalisation(evil=False):
    """Three datasets against one another."""
    names = ("cities", "numbers", EVIL[0] if evil else "a dataset with a long name")
    rows = [
        {"trained": a, "tested": b, "value": 0.95 if a == b else 0.7 - 0.1 * j, "low": 0.6, "high": 0.97, "null_low": 0.35, "null_high": 0.66, "p": 0.0005 if a == b else 0.2,
         "words": 0.52, "twin": 0.49, "n": 40}
        for a in names for j, b in enumerate(names)
    ]  # fmt: skip
    cosines = [
        {"first": a, "second": b, "value": 1.0 if a == b else 0.3, "null_high": np.nan if a == b else 0.2}
        for a in names
        for b in names
    ]
    stages = pd.DataFrame({"stage": [f"probe of {n}" for n in names], "verdict": "supported"})
    tables = {"matrix": pd.DataFrame(rows), "cosines": pd.DataFrame(cosines), "stages": stages}
    children = [probe(4), probe(6), probe(5)]
    return Result("generalisation", query("generalisation"), None, tables, children=children, **judged())


def probe(layers=6, evil=False):
    """A probe along the layers with its twin, baselines, reliability and causal test."""
    random = np.random.default_rng(4)
    rows = [
        {"what": what, "site": f"L{k}.resid_post", "position": "-1", "kind": "whitened", "value": v, "low": v - 0.08, "high": min(v + 0.06, 1.0), "n": 60,
         "null_low": 0.36, "null_high": 0.64}
        for what, top in (("probe", 0.95), ("random twin", 0.55))
        for k in range(layers) for v in [0.5 + (top - 0.5) * (k + 1) / layers]
    ]  # fmt: skip
    names = ("bag of words", "length", EVIL[0] if evil else "just ask")
    rows += [{"what": w, "site": "", "position": "", "kind": "", "value": v, "low": v - 0.1, "high": v + 0.1, "n": 60} for w, v in zip(names, (0.51, 0.48, 0.6), strict=True)]  # fmt: skip
    said = np.linspace(0.05, 0.95, 6)
    reliability = pd.DataFrame(
        {
            "predicted": said,
            "observed": said**1.3,
            "low": said**1.3 - 0.05,
            "high": np.minimum(said**1.3 + 0.1, 1),
            "n": 10,
        }
    )
    causal = [{"way": way, "family": f, "value": float(v)} for way, shift in (("move", 2.0), ("project_out", 1.0))
              for f, values in (("direction", [shift]), ("shuffled labels", random.normal(0, 0.2, 99)), ("shuffled labels, equal length", random.normal(0, 0.5, 99)),
                                ("isotropic", random.normal(0, 0.1, 99)), ("natural noise", random.normal(0, 0.3, 99))) for v in values]  # fmt: skip
    tables = {"probes": pd.DataFrame(rows), "reliability": reliability, "causal": pd.DataFrame(causal)}
    return Result("probe", query("probe", sites="L*.resid_post@-1"), None, tables, **judged())


def steering(tokens=TOKENS):
    """A sweep of five doses, the last two of which break the text."""
    doses = [-4.0, 2.0, 4.0, 8.0, 16.0]
    dose = pd.DataFrame([
        {"coefficient": c, "value": 0.3 * c, "low": 0.3 * c - 0.2, "high": 0.3 * c + 0.2, "null_low": -0.04 * abs(c), "null_high": 0.05 * abs(c), "n": 16,
         "perplexity": 9.0 + abs(c) ** 1.5, "repetition": min(1.0, 0.01 * abs(c)), "collapsed": c > 4, "reported": c == 4}
        for c in doses
    ])  # fmt: skip
    rng = np.random.default_rng(11)
    nulls = pd.DataFrame(
        {
            "family": np.repeat(["shuffled_labels", "shuffled_equal_norm", "natural_noise", "isotropic"], 19),
            "value": rng.normal(0, 0.1, 76),
        }
    )
    baselines = pd.DataFrame([
        {"kind": "words", "name": "system prompt", "value": 1.9, "low": 1.5, "high": 2.3, "n": 8}, {"kind": "sibling", "name": "sibling: calm", "value": 0.2, "low": np.nan, "high": np.nan, "n": 8},
        {"kind": "neutral text", "name": "KL on neutral text (nats)", "value": 0.1, "low": 0.02, "high": 0.09, "n": 8},
    ])  # fmt: skip
    texts = [{"coefficient": name, "prompt": i, "text": text} for i in (0, 3) for name, text in
             (("-4", tokens[-1] + " terrible"), ("0", "".join(tokens)), ("4", " wonderful" * 30), ("16", ""), ("system prompt", "glad <b>to</b> help"))]  # fmt: skip
    effects = Labelled(rng.normal(1.2, 0.2, (1, 8, 1)), ("site", "prompt", "metric"), {"site": ("L12.resid_post",), "prompt": tuple(range(8)), "metric": ("share of words",)})  # fmt: skip
    cells = pd.DataFrame(
        [
            {
                "site": "L12.resid_post",
                "metric": "share of words",
                "low": 1.0,
                "high": 1.4,
                "null_low": -0.3,
                "null_high": 0.3,
                "p": 0.05,
            }
        ]
    )
    about = pd.DataFrame({"name": ["measure"], "value": ["share of words"]})
    tables = {
        "cells": cells,
        "dose": dose,
        "nulls": nulls,
        "baselines": baselines,
        "samples": pd.DataFrame(texts),
        "about": about,
    }
    return Result("steering", query("steering"), effects, tables, raw_examples=examples(tokens), **judged((control("zero", gates=True), control("fluency")), mandatory=("zero", "fluency")))  # fmt: skip


def removal(tokens=TOKENS):
    """A direction that takes the behaviour away and brings it."""
    base = steering(tokens)
    both = pd.DataFrame([
        {"change": "removed", "value": -1.8, "low": -2.2, "high": -1.4, "null_low": -0.3, "null_high": 0.2, "n": 8},
        {"change": "added", "value": 1.1, "low": 0.7, "high": 1.5, "null_low": -0.2, "null_high": 0.3, "n": 8},
    ])  # fmt: skip
    tables = {
        "cells": base.tables["cells"],
        "both": both,
        "nulls": base.tables["nulls"],
        "samples": base.tables["samples"],
        "about": base.tables["about"],
    }
    return Result("directional_ablation", query("directional_ablation"), base.effects, tables, raw_examples=examples(tokens), **judged((control("gone", gates=True), control("harmless_kl")), mandatory=("gone", "harmless_kl")))  # fmt: skip


def detected(kind, names, metrics, tables, controls):
    """Cells of areas under the ROC beside random directions."""
    cells = [{"site": site, "metric": metric, "value": 0.83 - 0.04 * i, "low": 0.78 - 0.04 * i, "high": 0.87 - 0.04 * i, "null_low": 0.46, "null_high": 0.71, "n": 2048}
             for i, (site, metric) in enumerate((s, m) for s in names for m in metrics)]  # fmt: skip
    made = tuple(control(name, gates=name in ("same_alone", "disjoint")) for name in controls)
    return Result(kind, query(kind), None, {"cells": pd.DataFrame(cells), **{k: pd.DataFrame(v) for k, v in tables.items()}},
                  raw_examples=examples(), **judged(made, mandatory=controls[:3]))  # fmt: skip


def max_activating(tokens=TOKENS, names=("L12N5.neurons", "L12N9.neurons")):
    rng = np.random.default_rng(5)
    strata = ("0-50 %", "50-95 %", "95-100 %")
    contexts = [{"unit": u, "stratum": s, "rank": r, "index": i, "token": t, "value": float(rng.normal()) + (6.0 if i == 9 and s == "top" else 0.0),
                 "peak": i == 9, "document": "a"}
                for u in names for s, n in (("top", 4), *((s, 1) for s in strata), ("random", 2)) for r in range(n) for i, t in enumerate(tokens)]  # fmt: skip
    ends = np.linspace(-1, 7, 17)
    histogram = [{"unit": u, "left": a, "right": b, "share": float(np.exp(-abs(a)) / 3), "null": float(np.exp(-a * a) / 3)}
                 for u in names for a, b in zip(ends, ends[1:], strict=False)]  # fmt: skip
    levels = [{"unit": u, "stratum": s, "from": -1 + 2 * i, "to": 1 + 2 * i, "predicted": 0.4 + 0.2 * i, "n": 900} for u in names for i, s in enumerate(strata)]  # fmt: skip
    logits = [{"unit": u, "side": side, "rank": r, "token": tokens[r], "value": sign * (2.0 - 0.3 * r), "null": sign * 1.4}
              for u in names for side, sign in (("top", 1), ("bottom", -1)) for r in range(4)]  # fmt: skip
    tables = {"contexts": contexts, "histogram": histogram, "strata": levels, "logits": logits}
    return detected("max_activating", names, ("detection",), tables, ("same_alone", "disjoint", "random_directions", "first_token", "beyond_the_top"))  # fmt: skip


def score_description(readers=("judge", "lexical", "embedding", "ngrams")):
    predictors = [{"reader": r, "value": 0.83 - 0.04 * i, "low": 0.78 - 0.04 * i, "high": 0.87 - 0.04 * i, "random_low": 0.46, "random_high": 0.71,
                   "shuffled_low": 0.45 if r != "ngrams" else np.nan, "shuffled_high": 0.56 if r != "ngrams" else np.nan, "top_only": 0.97, "n": 2048, "main": not i}
                  for i, r in enumerate(readers)]  # fmt: skip
    levels = [{"unit": r, "stratum": s, "from": -1 + 2 * i, "to": 1 + 2 * i, "predicted": 0.4 + 0.2 * i, "n": 900}
              for r in readers for i, s in enumerate(("0-50 %", "50-95 %", "95-100 %"))]  # fmt: skip
    return detected("score_description", ("L12N5.neurons",), readers, {"predictors": predictors, "strata": levels},
                    ("disjoint", "random_directions", "shuffled_descriptions", "beyond_the_top", "ngrams"))  # fmt: skip


def functions(layers=4):
    """A function vector that works, its heads and where it was put."""
    base = heads(layers=layers)
    rows = [
        ("zero-shot", 0.1),
        ("function vector", 0.7),
        ("task vector", 0.6),
        ("few-shot", 0.9),
        ("few-shot, shuffled labels", 0.3),
    ]
    accuracy = pd.DataFrame(
        [
            {
                "part": "held-out pairs",
                "what": name,
                "value": v,
                "low": max(0, v - 0.2),
                "high": min(1, v + 0.2),
                "n": 20,
            }
            for name, v in rows
        ]
    )
    rng = np.random.default_rng(13)
    nulls = pd.DataFrame(
        [
            {"family": f, "value": float(v)}
            for f in ("vector, shuffled labels", "task, shuffled labels")
            for v in rng.uniform(0, 0.3, 19)
        ]
    )
    where = pd.DataFrame({"layer": range(layers), "accuracy": np.linspace(0.1, 0.7, layers)})
    tables = {"cells": base.tables["cells"], "accuracy": accuracy, "nulls": nulls, "layers": where}
    return Result("function_vector", query("function_vector"), base.effects, tables, raw_examples=examples(), **judged((control("held_out", gates=True), control("in_context")), mandatory=("held_out", "in_context")))  # fmt: skip


def difference(layers=12, evil=False, level="sites"):
    """Two models that differ from layer 4 on; with noise models, an unrelated one, and what the difference promotes."""
    rng = np.random.default_rng(13)
    points = ("resid_post", "attn_out", "mlp_out")
    sites = tuple(f"L{k}.{p}" for p in points for k in range(layers))
    depth = np.tile(np.arange(layers), len(points))
    size = np.where(depth < 4, 0.0, 0.02 * (depth - 3))[:, None] * rng.uniform(0.8, 1.2, (len(sites), 10))
    effects = Labelled(np.stack([size, size**2], -1), ("site", "prompt", "metric"),
                       {"site": sites, "prompt": tuple(range(10)), "metric": ("relative_norm", "cosine_distance")})  # fmt: skip
    zero = depth < 4
    mean = effects.values.mean(1)[:, 0].astype(float)
    rows = [{"site": s, "metric": "relative_norm", "value": mean[i], "n": 10, "low": 0.9 * mean[i], "high": 1.1 * mean[i], "null_low": np.nan if zero[i] else 0.03,
             "null_high": np.nan if zero[i] else 0.08, "p": np.nan if zero[i] else (0.05 if mean[i] > 0.08 else 0.6)} for i, s in enumerate(sites)]  # fmt: skip
    rows += [{"site": s, "metric": "focus", "value": 4.0 if s == "L9.mlp_out" else 1.2, "n": 200, "low": np.nan, "high": np.nan, "null_low": 1.0, "null_high": 1.9,
              "p": 0.05 if s == "L9.mlp_out" else 0.8} for s in sites if int(s[1:].split(".")[0]) > 3]  # fmt: skip
    rows.append({"site": "logits", "metric": "kl", "value": 0.2, "n": 10, "low": 0.1, "high": 0.3, "null_low": 0.01, "null_high": 0.03, "p": 0.05})  # fmt: skip
    words = list(EVIL) if evil else [" violet", " light", "house", " paint", " the", " sea"]
    tokens = [{"document": i % 3, "at": i, "context": "The harbour " + words[0], "token": words[i % 6], "kl": 2.0 - 0.2 * i, "share": 9.0 - i, "null_high": 5.0, "p": 0.05 if i < 4 else 0.5} for i in range(8)]  # fmt: skip
    weights = [{"tensor": f"model.layers.{k}.mlp.down_proj.weight", "layer": str(k), "changed": k > 3, "relative": 0.01 * k * (k > 3), "largest": 0.1 * (k > 3), "rank": 8.0 * (k > 3),
                "effective_rank": 6.1 * (k > 3), "full": 576.0} for k in range(layers)]  # fmt: skip
    reading = [{"source": source, "site": site, "position": p, "rank": r, "token": words[(r + p) % 6] if source == "difference" else f" n{r}", "score": 6.0 - r}
               for source in ("difference", "noise model", "unrelated") for site in ("L5.resid_post", "L11.resid_post") for p in (1, 2) for r in range(6)]  # fmt: skip
    drift = pd.DataFrame(
        {"site": sites, "value": mean, "unrelated": mean * 0.8, "low": mean * 0.1, "high": mean * 0.3}
    )
    shown = pd.DataFrame([{"document": d, "at": i, "token": t} for d in (0, 7) for i, t in enumerate(words)])
    tables = {"cells": pd.DataFrame(rows), "differing_tokens": pd.DataFrame(tokens), "weight_changes": pd.DataFrame(weights), "reading": pd.DataFrame(reading),
              "drift": drift, "token_map": shown}  # fmt: skip
    controls = (
        control("same_model", gates=True, observed=0.0),
        control("noise_models"),
        control("batching"),
        control("noise_size"),
    )
    return Result("model_diff", query("model_diff", level=level), effects, tables,
                  {"structurally_zero": zero, "token_map": rng.uniform(0, 0.2, (2, layers, len(words))).astype(np.float32)},
                  controls, verdict(controls, ("same_model", "noise_models"), 0.05, 0.05, 0.05), examples())  # fmt: skip


def across():
    """Cross-model patching with what noise models do at the same places."""
    base = patching(layers=6, n=8)
    other = pd.DataFrame({"donor": ["real", "noise models", "unrelated"], "site": "L4.resid_pre", "position": "9", "value": [1.9, 0.2, 0.1], "low": [1.5, 0.0, 0.0], "high": [2.2, 0.4, 0.2]})  # fmt: skip
    return Result("cross_model_patching", query("cross_model_patching", into="first"), base.effects, {**base.tables, "donors": other}, base.tensors, **judged())  # fmt: skip


STAGES = ("behaviour", "residual stream", "attention outputs", "components", "attribution", "direct logit attribution", "logit lens",
          "attention patterns", "ablation", "component set")  # fmt: skip


def dissect(tokens=TOKENS, layers=30, p=0.0002, about=True):
    """Ten stages with a result, and one that was refused."""
    children = (
        behaviour(tokens), patching(tokens=tokens, layers=layers), patching(("attn_out",), layers=layers, tokens=tokens),
        heads(layers=layers), heads("attribution_patching", layers=layers), direct(layers), lens(layers, tokens=tokens),
        attention(all_heads=30 if layers >= 12 else 0, tokens=tokens), ablation(layers), components(),
    )  # fmt: skip
    rows = [
        {"stage": name, "n": n, "seconds": seconds, "verdict": str(child.verdict), "note": "; ".join(child.verdict.reasons)[:400]}
        for name, n, seconds, child in zip(STAGES, (48, 16, 16, 16, 16, 16, 16, 16, 16, 32), (3.1, 42.5, 61, 38.2, 4.4, 2.2, 1.9, 8, 21.3, 33.9), children, strict=True)
    ]  # fmt: skip
    rows.insert(
        3,
        {
            "stage": "MLP outputs",
            "n": 16,
            "seconds": 0.2,
            "verdict": "refused",
            "note": "no mlp_out in this family: it is parallel",
        },
    )
    checks = [
        {"stage": row["stage"], "check": c.name, "outcome": c.outcome, "rules_out": c.rules_out, "expected": c.expected, "observed": str(c.observed), "detail": c.detail}
        for row, child in zip((r for r in rows if r["verdict"] != "refused"), children, strict=True) for c in child.controls
    ]  # fmt: skip
    tables = {
        "stages": pd.DataFrame(rows),
        "agreement": children[4].tables["agreement"],
        "checks": pd.DataFrame(checks),
    }
    if about:
        tables["about"] = pd.DataFrame({"name": ["question", "model", "task"], "value": [
            "Which parts of SmolLM2-135M-Instruct name the indirect object?", "SmolLM2-135M-Instruct (dequantised from Q4_1)", "ioi, 16 pairs, swapped subject"]})  # fmt: skip
    stages = control("stages", passed=False, observed={"supported": 9, "of": 11}, rules_out="that a conclusion stands on a stage that failed",
                     expected="every stage is supported", n=11, detail="MLP outputs: refused")  # fmt: skip
    return Result(
        "dissect",
        query("dissect", task="ioi", pairs=16),
        None,
        tables,
        children=children,
        **judged((stages,), p, ("stages",)),
    )


def every_kind():
    return (behaviour(), patching(), patching(("attn_out", "mlp_out"), 6), heads(), heads("attribution_patching"), direct(), lens(), ablation(),
            attention(), attention(all_heads=30), components(), dissect())  # fmt: skip
