"""Adapters of the techniques that give every node, edge or stream an effect: patching, ablation, attribution, readings, paths."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.zoo.calibrate.adapters import ALPHA, FAMILY, Reading, Setting, family, only, parts
from microtome.zoo.calibrate.truths import LOOKS, Ablation

if TYPE_CHECKING:
    from microtome.zoo.specimen import Specimen

MODES: dict[Any, Ablation] = {"denoise": "clean", "noise": "corrupt"}
HOWS = ("gradient", "ig-inputs", "ig-activations", "relp", "atp*")
VERIFIED = 8
"""Parts that attribution verifies beside the flagged ones: its flags do not depend on it, only its certificate does."""


def patching(z: Specimen, seed: int, mode: Any) -> Reading:
    """Single heads and MLPs, all positions together."""
    from microtome.methods import activation_patching

    result = activation_patching(z.model, z.task, sites=parts(z), positions="all", mode=mode, controls="none", alpha=ALPHA, seed=seed)  # fmt: skip
    return family(result)


def ablating(z: Specimen, seed: int, by: Any) -> Reading:
    """Single heads and MLPs."""
    from microtome.methods import ablation

    return family(ablation(z.model, z.task, sites=parts(z), by=by, alpha=ALPHA, seed=seed))


def attributing(z: Specimen, seed: int, of: Any, how: Any, mode: Any) -> Reading:
    """Single heads and MLPs, or all edges."""
    from microtome.methods import attribution_patching

    result = attribution_patching(z.model, z.task, of=of, how=how, mode=mode, sites=parts(z), verify=VERIFIED, alpha=ALPHA, seed=seed)  # fmt: skip
    return family(result)


def splitting(z: Specimen, seed: int) -> Reading:
    """What each part writes to the logits; biases are no parts of a mechanism."""
    from microtome.methods import direct_logit_attribution

    nodes = set(z.mechanism.all_nodes)
    found = family(direct_logit_attribution(z.model, z.task, alpha=ALPHA, seed=seed))
    return only(found, lambda name: name in nodes)


def reading(z: Specimen, seed: int) -> Reading:
    """The lens at the last position: flagged where the whole interval lies above what other prompts' answers read."""
    from microtome.methods import logit_lens

    result = logit_lens(z.model, z.task, alpha=ALPHA, seed=seed)
    cells, value = result.tables["cells"], result.frame()["value"].to_numpy(np.float64)
    low, high, null = (cells[c].to_numpy(np.float64) for c in ("low", "high", "null_high"))
    return Reading(tuple(map(str, cells["site"])), value, low > np.maximum(null, 0), low, high)


def looking(z: Specimen, seed: int) -> Reading:
    """Labels of heads on the task's own prompts."""
    from microtome.methods import attention_patterns

    table = attention_patterns(z.model, z.task, alpha=ALPHA, seed=seed).tables["detectors"]
    table = table[(table["distribution"] == "task") & (table["detector"] != "first")]
    names = tuple(f"{site} {label}" for site, label in zip(table["site"], table["detector"], strict=True))
    score, p = (table[c].to_numpy(np.float64) for c in ("score", "p"))
    return Reading(names, score, (p <= ALPHA) & (score > LOOKS))


def paths(z: Specimen, seed: int, mode: Any) -> Reading:
    """Every direct edge, one receiver after the other, each with a family of its own."""
    from microtome.methods import path_patching

    senders: dict[str, list[str]] = {}
    for edge in z.mechanism.all_edges:
        sender, receiver = edge.split("->")
        senders.setdefault(receiver, []).append(sender)
    names: list[str] = []
    rows = []
    for receiver, many in senders.items():
        result = path_patching(
            z.model, z.task, sender=many, receiver=receiver, mode=mode, alpha=ALPHA, seed=seed
        )
        found = family(result)
        assert found.low is not None and found.high is not None
        names += [f"{sender}->{receiver}" for sender in found.names]
        rows.append((found.scores, found.flags, found.low, found.high))
    scores, flags, low, high = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Reading(tuple(names), scores, flags, low, high)


def _attributions() -> list[Setting]:
    """Every way with the default direction, and the plain gradient in the other one."""
    asked = [(of, how, "denoise") for of in ("nodes", "edges") for how in HOWS]
    asked += [(of, "gradient", "noise") for of in ("nodes", "edges")]
    out = []
    for of, how, mode in asked:
        slow = how in ("ig-inputs", "ig-activations")
        match = {"of": of, "how": how, "mode": mode}
        run = partial(attributing, of=of, how=how, mode=mode)
        kind: Any = of
        out.append(Setting("attribution_patching", f"{of}, {how}, {mode}", run, kind, MODES[mode], match=match,
                           seconds=3.0 if slow else 0.2, slow=how == "ig-activations"))  # fmt: skip
    return out


SETTINGS: tuple[Setting, ...] = (
    *(
        Setting("activation_patching", f"{mode}, nodes", partial(patching, mode=mode), "nodes", by,
                match={"mode": mode, "positions": "all"})
        for mode, by in MODES.items()
    ),
    *(
        Setting("ablation", f"{by}, nodes", partial(ablating, by=by), "nodes", by, match={"by": by})
        for by in ("mean", "zero", "resample")
    ),
    *_attributions(),
    *(
        Setting("path_patching", f"{mode}, direct edges", partial(paths, mode=mode), "edges", by,
                f"{FAMILY} among one receiver's senders", {"mode": mode, "through": [()]}, seconds=5.0, slow=True)
        for mode, by in MODES.items()
    ),
    Setting("direct_logit_attribution", "writers to the logits", splitting, "direct", "zero"),
    Setting("logit_lens", "streams at the last position", reading, "streams", "zero",
            "0.95 interval above the readings of other prompts' answers"),
    Setting("attention_patterns", "labels on the task's prompts", looking, "labels", "none",
            f"score > {LOOKS:g} and p <= {ALPHA:g} over all heads and labels"),
)  # fmt: skip
