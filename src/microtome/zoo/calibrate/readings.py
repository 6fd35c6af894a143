"""Adapters of the techniques that read weights, tokens, labels and second models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import ControlError
from microtome.results import seeds
from microtome.zoo.calibrate.adapters import ALPHA, FAMILY, Reading, Setting, family, parts
from microtome.zoo.calibrate.truths import RANDOM
from microtome.zoo.calibrate.twins import placebo, without

if TYPE_CHECKING:
    from microtome.results import Result
    from microtome.zoo.specimen import Specimen

SUPPORTED = "verdict supported (alpha 0.05)"
PLANTED = ("planted_direction", "planted_backdoor")
ROLES = ("interchange_induction", "induction_heads", "induction", "shift")
SHUFFLES = 999
PROBING: dict[str, Any] = {
    "permutations": SHUFFLES,
    "logistic_permutations": 19,
    "random_directions": 19,
    "twin": False,
    "causal": False,
}


def tokens(z: Specimen, seed: int, how: Any) -> Reading:
    """Positions of prompts of one layout.

    Raises
    ------
    ControlError: prompts whose tokens have other places.
    """
    from microtome.methods import token_attribution

    if not z.task.aligned:
        raise ControlError("tokens have other places in each prompt", why="positions are marked over prompts")
    cells = token_attribution(z.model, z.task, how=[how], orders=2, alpha=ALPHA, seed=seed).tables["cells"]
    names = tuple(map(str, cells["position"]))
    low, high, p = (cells[c].to_numpy(np.float64) for c in ("low", "high", "p"))
    return Reading(names, np.abs(low + high) / 2, p <= ALPHA, low, high)


def crossing(z: Specimen, seed: int) -> Reading:
    """Heads and MLPs of the specimen given the values of a copy that lacks one of them."""
    from microtome.methods import cross_model_patching

    result = cross_model_patching(without(z), z.model, z.task, sites=parts(z), positions="all", into="second", alpha=ALPHA, seed=seed)  # fmt: skip
    return family(result)


def comparing(z: Specimen, seed: int) -> Reading:
    """A model without the backdoor against the one with it, and against itself with noise of that size."""
    from microtome.methods import model_diff

    first = without(z)
    rows = [list(map(int, ids)) for ids in z.task.clean.ids[:6]]
    rows += [list(map(int, ids)) for ids in z.task.corrupt.ids[6:]]
    others = {"planted": z.model} | {name: placebo(z, first, seeds.child(seed, name)) for name in RANDOM}
    found = [model_diff(first, other, rows, seed=seed) for other in others.values()]
    return _verdicts(tuple(others), found)


def composing(z: Specimen, seed: int) -> Reading:
    """Every head that may read an earlier one, by its queries, keys or values."""
    from microtome.methods import composition

    result = composition(z.model, draws=19, alpha=ALPHA, seed=seed)
    pairs = result.tables["pairs"]
    called = pairs[pairs["p"] <= ALPHA]
    flagged = {(str(k), str(s), str(r)) for k, s, r in zip(called["kind"], called["sender"], called["reader"], strict=True)}  # fmt: skip
    heads = [(i, h) for i in range(z.mechanism.n_layers) for h in range(z.mechanism.n_heads)]
    rows = []
    for kind in "QKV":
        scores = result.tensors[kind]
        for a, (i, h) in enumerate(heads):
            for b, (j, k) in enumerate(heads):
                if i < j:
                    name = f"L{i}H{h}.z->L{j}H{k}.{kind.lower()}"
                    rows.append((name, float(np.nan_to_num(scores[a, b])), (kind, f"L{i}H{h}", f"L{j}H{k}") in flagged))  # fmt: skip
    names, score, flags = zip(*rows, strict=True)
    return Reading(tuple(names), np.array(score), np.array(flags, dtype=bool))


def roles(z: Specimen, seed: int) -> Reading:
    """What heads look at, told from their weights alone."""
    from microtome.methods import head_roles

    table = head_roles(z.model, prompts=2, ablate=0, seed=seed).tables["roles"]
    table = table[table["role"].isin(["previous", "induction"])]
    names = tuple(f"{s}.pattern {r}" for s, r in zip(table["site"], table["role"], strict=True))
    return Reading(names, 1 - table["p"].to_numpy(np.float64), table["flagged"].to_numpy(bool))


def probing(z: Specimen, seed: int) -> Reading:
    """The answer read from the last position of each stream, by the mean difference, on subject words that the probe has not seen."""
    from microtome.methods import probe
    from microtome.tasks.labelled import LabelledText

    sides = (z.task.clean, z.task.corrupt)
    texts = [t for side in sides for t in side.texts]
    kept = [texts.index(t) for t in dict.fromkeys(texts)]
    labels = [int(v.get("answer", v["sign"]) == "good") for side in sides for v in side.variables]
    words = [str(w) for _ in sides for w in z.task.groups["entity"]]
    data = LabelledText("answers", tuple(texts[i] for i in kept), tuple(labels[i] for i in kept), ("bad", "good"),
                        {"entity": tuple(words[i] for i in kept)})  # fmt: skip
    n = z.mechanism.n_layers
    sites = [f"L{i}.resid_pre" for i in range(n)] + [f"L{n - 1}.resid_post"]
    result = probe(z.model, data, sites=[f"{s}@-1" for s in sites], kinds="mass_mean", options=PROBING, seed=seed)  # fmt: skip
    table = result.tables["probes"].query("what == 'probe'").set_index("site").loc[sites]
    value, high = (table[c].to_numpy(np.float64) for c in ("value", "null_high"))
    return Reading((*sites[:-1], "final_resid"), value, value > high)


def _verdicts(names: tuple[str, ...], found: Sequence[Result]) -> Reading:
    """Scored by 1 - p."""
    scores = [1.0 - (1.0 if r.verdict.p is None else r.verdict.p) for r in found]
    return Reading(names, np.array(scores), np.array([r.verdict == "supported" for r in found], dtype=bool))


SETTINGS: tuple[Setting, ...] = (
    *(
        Setting("token_attribution", f"{how}, mean", partial(tokens, how=how), "tokens", "none", match={"how": [[how]], "baseline": "mean"}, slow=True)
        for how in ("occlusion", "gradient_x_input")
    ),
    Setting("cross_model_patching", "a copy that lacks a part, into the whole", crossing, "nodes", "lacking", match={"into": "second", "positions": "all"}),
    Setting("model_diff", "a backdoor and noise", comparing, "planted", "none", SUPPORTED, {"level": "sites"}, seconds=0.8, where=PLANTED[1:]),
    Setting("composition", "heads that read heads", composing, "edges", "zero", f"{FAMILY} over pairs and kinds", seconds=0.3),
    Setting("head_roles", "from weights", roles, "labels", "none", "predicted score beyond its null at 1 %", seconds=1.5, where=ROLES),
    Setting("probe", "the answer, mean difference", probing, "streams", "zero", "AUROC above the null band of shuffled labels", seconds=1.5, where=PLANTED),
)  # fmt: skip
