"""What a technique should find in a specimen: parts of its mechanism whose exact ablation changes an output.

Which parts matter depends on what a removed part is replaced by: one that writes the same on every input is found by zeros
only. So a truth is of one ablation value. Parts outside the mechanism are null by construction. Parts of the mechanism that
change nothing under that ablation are neither: whether they are flagged counts for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from microtome.errors import ModelError
from microtome.replay.memo import Memo
from microtome.zoo.mechanism import CHANGES, CHANGES_TRAINED
from microtome.zoo.module import ZooForCausalLM
from microtome.zoo.oracle import forward, parts

if TYPE_CHECKING:
    from microtome.zoo.specimen import Specimen

Kind = Literal["nodes", "edges", "direct", "streams", "answer", "labels", "circuits", "tokens", "planted"]
Ablation = Literal["zero", "mean", "resample", "corrupt", "clean", "lacking", "none"]
KINDS: tuple[Kind, ...] = (
    "nodes",
    "edges",
    "direct",
    "streams",
    "answer",
    "labels",
    "circuits",
    "tokens",
    "planted",
)
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "resample", "corrupt", "clean", "lacking", "none")
BARE = ("labels", "tokens", "planted")
"""Kinds for which no part is ablated."""
REFERENCE = 32
LABELS = ("previous", "duplicate", "induction", "current")
LOOKS = 0.4
"""The share of its attention from which a head has a label, as in `attention_patterns`."""
INPUTS = 256
TRIED = 8
"""Other tokens that are tried at each position."""
RANDOM = ("random 1", "random 2")
DRAWS = 4


@dataclass(frozen=True)
class Truth:
    """Names of parts: `true` ones, `null` ones, and `undecided` ones of the mechanism that the ablation does not confirm.

    by: "ablation" where an exact ablation decided, "mechanism" where the specimen's own list had to do (models with norms),
    "inputs" where a look at inputs of the whole domain did.
    """

    true: frozenset[str]
    null: frozenset[str]
    undecided: frozenset[str]
    by: str = "ablation"


def truth(specimen: Specimen, kind: Kind, ablation: Ablation) -> Truth:
    """The truth about nodes ("L0H1.z"), edges, "direct" (nodes that write to the logits), "streams" ("L1.resid_pre", where the
    answer can be read) or "answer" ("L1.attn_out", sublayers that write it), under one ablation value; or about "labels"
    ("L0H1.pattern previous", what a head looks at), for which nothing is ablated; or about "circuits": the mechanism is a true
    one, RANDOM of as many edges drawn by chance are null; or about "tokens" ("3", positions where another token changes the answer's
    metric); or about what was "planted", against RANDOM placebos.

    ablation: "zero"; "mean" or "resample" over the task's reference prompts; "corrupt": values of the corrupt prompts in the
    clean ones; "clean": the reverse; "lacking": values of the model that lacks a part (`twins.without`); "none".

    Raises
    ------
    ModelError: an unknown kind or ablation.
    """
    if kind not in KINDS or ablation not in ABLATIONS or (kind in BARE) != (ablation == "none"):
        raise ModelError(
            f"no truth about {kind!r} by {ablation!r}", instead=f"one of {KINDS}, by one of {ABLATIONS}"
        )
    m = specimen.mechanism
    if kind == "streams":
        return _streams(specimen, ablation)
    if kind == "answer":
        return _answer(specimen, ablation)
    if kind == "labels":
        return _labels(specimen)
    if kind == "circuits":
        return Truth(frozenset({"mechanism"}), frozenset(RANDOM), frozenset(), "mechanism")
    if kind == "planted":
        return Truth(frozenset({"planted"}), frozenset(RANDOM), frozenset(), "mechanism")
    if kind == "tokens":
        return _tokens(specimen)
    groups: dict[str, tuple[str, ...]]
    if kind == "edges":
        groups = {edge: (edge,) for edge in m.edges}
        null = frozenset(m.null_edges)
    elif kind == "direct":
        groups = {n: (f"{n}->logits",) for n in m.nodes if f"{n}->logits" in m.edges}
        null = frozenset(m.all_nodes) - set(groups)
    else:
        groups = {n: tuple(e for e in m.all_edges if e.split("->")[0] == n) for n in m.nodes}
        null = frozenset(m.null_nodes)
    try:
        moved = _moved(specimen, groups, ablation)
    except ModelError:  # norms, or another family: the oracle sees sums only
        confirmed = set(m.confirmed_last)
        if kind == "nodes":
            confirmed = {edge.split("->")[0] for edge in m.confirmed_last}
        elif kind == "direct":
            confirmed = {n for n in groups if groups[n][0] in m.confirmed_last}
        return Truth(frozenset(confirmed), null, frozenset(groups) - confirmed, "mechanism")
    least = CHANGES if specimen.training is None else CHANGES_TRAINED
    true = frozenset(name for name, size in moved.items() if size > least)
    return Truth(true, null, frozenset(groups) - true)


def _streams(specimen: Specimen, ablation: Ablation) -> Truth:
    """Streams in which some part that writes to the logits has written; before the first of them nothing can be read."""
    m = specimen.mechanism
    direct = truth(specimen, "direct", ablation)
    first = min((_layer(n) for n in direct.true), default=m.n_layers)
    every = [f"L{i}.resid_pre" for i in range(m.n_layers)] + ["final_resid"]
    true = frozenset(name for i, name in enumerate(every) if i > first)
    maybe = {_layer(n) for n in direct.undecided}
    undecided = frozenset(n for i, n in enumerate(every) if n not in true and any(i > x for x in maybe))
    return Truth(true, frozenset(every) - true - undecided, undecided, direct.by)


def _answer(specimen: Specimen, ablation: Ablation) -> Truth:
    """Sublayers that write to the logits carry the answer; those with other parts of the mechanism are left open, since what they
    carry may decide it; the rest is null. Where several write the answer together, none carries it alone, and all are left open."""
    m = specimen.mechanism
    direct = truth(specimen, "direct", ablation)
    every = {_sublayer(n) for n in m.all_nodes if n != "embed"}
    writers = {_sublayer(n) for n in (*direct.true, *direct.undecided)}
    true = {_sublayer(n) for n in direct.true} - {"embed"} if len(writers) == 1 else set()
    busy = {_sublayer(n) for n in m.nodes}
    return Truth(frozenset(true), frozenset(every - busy), frozenset(every & busy - true), direct.by)


def _labels(specimen: Specimen) -> Truth:
    """Where heads look on inputs from the whole domain: a label is true where more than LOOKS of the attention falls on its keys,
    null where no more falls there than on keys drawn from those each query can see, else open.

    Raises
    ------
    ModelError: a model whose inputs cannot be listed.
    """
    m = specimen.mechanism
    ids = specimen.domain().ids
    ids = ids[torch.linspace(0, len(ids) - 1, min(len(ids), INPUTS)).long()]
    n = ids.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    wanted = _wanted(ids)
    share = wanted.sum(-1) / seen.sum(-1)
    parts_: dict[str, set[str]] = {"true": set(), "null": set(), "open": set()}
    for layer in range(m.n_layers):
        pattern = specimen.model.run(ids.tolist(), [f"L{layer}.pattern"], logits=None)[
            f"L{layer}.pattern"
        ].double()
        for head in range(m.n_heads):
            mine = pattern[:, head]
            for place, name in enumerate(LABELS):
                keys = wanted[place].to(mine)
                score = float((mine * keys).sum() / keys.sum().clamp_min(1))
                chance = float((mine * seen).sum(-1).mul(share[place]).sum() / keys.sum().clamp_min(1))
                word = (
                    "true" if score > max(LOOKS, chance) else "null" if score <= chance + CHANGES else "open"
                )
                parts_[word].add(f"L{layer}H{head}.pattern {name}")
    return Truth(frozenset(parts_["true"]), frozenset(parts_["null"]), frozenset(parts_["open"]), "inputs")


def _wanted(ids: Tensor) -> Tensor:
    """The keys of each label. Shapes: ids [input, pos] -> [label, input, query, key], labels as LABELS."""
    n = ids.shape[1]
    place = torch.arange(n)
    behind = (place[None, :] < place[:, None]).expand(len(ids), n, n)
    same = ids[:, :, None] == ids[:, None, :]
    after = torch.zeros_like(same)  # keys whose own predecessor is the query's token
    after[:, :, 1:] = same[:, :, :-1]
    previous = (place[None, :] == place[:, None] - 1).expand_as(same)
    current = (place[None, :] == place[:, None]).expand_as(same)
    before = behind & (place[None, :] + 1 <= place[:, None])
    return torch.stack([previous, same & behind, after & before, current])


def _tokens(specimen: Specimen) -> Truth:
    """Positions of the clean prompts where some other token changes the metric of some prompt; special tokens in front are no parts."""
    from microtome.methods.token_attributing import question
    from microtome.replay.sweep import measure

    q = question(specimen.model, specimen.task)
    base = measure(q.bench)[:, 0].double()
    least = CHANGES if specimen.training is None else CHANGES_TRAINED
    words = sorted({token for row in specimen.domain().ids.tolist() for token in row})
    words = words[:: max(1, len(words) // TRIED)]
    true, every = set(), q.places[0]
    for at in every:
        for word in words:
            ids = [[word if k == at else t for k, t in enumerate(row)] for row in q.bench.ids]
            moved = measure(replace(q.bench, ids=tuple(map(tuple, ids)), memo=Memo()))[:, 0].double() - base
            if float(moved.abs().max()) > least:
                true.add(str(at))
                break
    return Truth(frozenset(true), frozenset(map(str, every)) - true, frozenset(), "inputs")


def _sublayer(node: str) -> str:
    return node if node == "embed" else f"L{_layer(node)}.{'attn_out' if 'H' in node else 'mlp_out'}"


def _layer(node: str) -> int:
    """The layer in which a node writes; -1 of the embedding."""
    return -1 if node == "embed" else int(node[1:].split(".")[0].split("H")[0])


@torch.no_grad()
def _moved(specimen: Specimen, groups: Mapping[str, Sequence[str]], ablation: Ablation) -> dict[str, float]:
    """The largest change of a logit at the last position when each group of edges is cut, on the task's prompts."""
    hf: Any = specimen.model.hf
    task = specimen.task
    if (
        not isinstance(hf, ZooForCausalLM)
        or len({len(ids) for side in (task.clean, task.corrupt) for ids in side.ids}) > 1
    ):
        raise ModelError("the oracle cannot run this specimen", why="it is of another family, or its prompts differ in length",
                         instead="its mechanism's own list")  # fmt: skip
    twin = copy.deepcopy(hf).double()
    clean, corrupt = (torch.tensor(side.ids) for side in (task.clean, task.corrupt))
    ids = clean
    fills: list[dict[str, Tensor] | None]
    if ablation == "clean":
        ids, fills = corrupt, [parts(twin, clean)]
    elif ablation == "corrupt":
        fills = [parts(twin, corrupt)]
    elif ablation == "lacking":
        fills = [parts(_lacking(specimen), clean)]
    else:
        fills = _fills(specimen, twin, ablation)
    base = forward(twin, ids)[0][:, -1]
    out = dict.fromkeys(groups, 0.0)
    for fill in fills:
        for name, edges in groups.items():
            logits = forward(twin, ids, edges, fill)[0][:, -1]
            out[name] = max(out[name], float((logits - base).abs().max()))
    return out


def _lacking(specimen: Specimen) -> Any:
    from microtome.zoo.calibrate.twins import without

    return copy.deepcopy(without(specimen).hf).double()


def _fills(specimen: Specimen, twin: Any, ablation: Ablation) -> list[dict[str, Tensor] | None]:
    """What stands in for the sources: nothing (zero), the mean, or draws from the reference prompts."""
    if ablation not in ("mean", "resample"):
        return [None]
    task = specimen.task
    reference = parts(twin, torch.tensor(task.reference(REFERENCE, 0).ids))
    if ablation == "mean":
        return [{k: v.mean(0, keepdim=True).expand(task.n, -1, -1) for k, v in reference.items()}]
    order = [torch.arange(task.n).add(k * task.n // DRAWS + k) % REFERENCE for k in range(DRAWS)]
    return [{k: v[rows] for k, v in reference.items()} for rows in order]
