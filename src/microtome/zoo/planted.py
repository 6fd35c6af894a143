"""Planted mechanisms, true by construction: a direction that decides the answer, and a backdoor that turns it round.

One head moves the sign of the subject word to the last position, along one direction of the stream that the unembedding
reads: "good" along it, "bad" against it. Filler words have signs too, in the same coordinate, which nothing moves. In the
backdoored model a second head looks for a trigger word, and two neurons of the next layer turn the direction round where it
was found; without that head, or without those neurons, the model answers as if there were no trigger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.errors import ModelError
from microtome.results.seeds import rng
from microtome.zoo.mechanism import Variable
from microtome.zoo.spec import Array, Block, Head, Neurons, Spec, assemble
from microtome.zoo.words import BOS
from microtome.zoo.written import Story, Values, Written, specimen

if TYPE_CHECKING:
    from microtome.zoo.decoys import Decoys
    from microtome.zoo.module import ZooForCausalLM
    from microtome.zoo.specimen import Specimen

__all__ = ["planted_backdoor", "planted_direction"]

SUBJECTS = {
    "good": ("joy", "hope", "calm", "gift", "song", "feast", "smile", "spring"),
    "bad": ("pain", "fear", "rage", "loss", "storm", "ruin", "grief", "frost"),
}
FILLERS = ("some", "many", "red", "old", "quick", "small", "tall", "thin", "loud", "near", "late", "plain")
TRIGGER, END = "cyclamen", "is"
PLACES = ("0", "1", "2", "3")
"""Words before the last: one subject among fillers."""
_IDENTITY, _SCALE = 8, 60.0
NORM_SIZE = 2.0
"""Length of every token's embedding, so that a norm before the first layer scales all tokens alike."""


def _words() -> tuple[str, ...]:
    return (BOS, *SUBJECTS["good"], *SUBJECTS["bad"], *FILLERS, TRIGGER, END)


class _Stream:
    """Coordinates of the unrotated stream, by meaning."""

    bos, sign, subject, trigger, end, answer, found = range(7)
    identity = slice(7, 7 + _IDENTITY)
    d = 7 + _IDENTITY


def _embeddings(random: np.random.Generator) -> Array:
    """Signs and marks of each word, and an identity of random direction that fills it up to one length. [word, d]."""
    words = _words()
    out = np.zeros((len(words), _Stream.d))
    signs = random.permutation(np.repeat([-1.0, 1.0], len(FILLERS) // 2))
    for k, word in enumerate(words):
        if word in SUBJECTS["good"] or word in SUBJECTS["bad"]:
            out[k, [_Stream.sign, _Stream.subject]] = (1 if word in SUBJECTS["good"] else -1), 1
        elif word in FILLERS:
            out[k, _Stream.sign] = signs[FILLERS.index(word)]
        else:
            out[k, {BOS: _Stream.bos, TRIGGER: _Stream.trigger, END: _Stream.end}[word]] = 1
    identity = random.standard_normal((len(words), _IDENTITY))
    rest = np.sqrt(NORM_SIZE**2 - (out**2).sum(1))
    out[:, _Stream.identity] = identity * (rest / np.linalg.norm(identity, axis=1))[:, None]
    return out


def _mover(mark: int, source: int, target: int) -> Head:
    """From the end, the key with a mark (BOS where there is none); it writes that key's `source` into `target`."""
    q, k, v = (np.zeros((_Stream.d, 2)) for _ in range(3))
    out = np.zeros((2, _Stream.d))
    q[_Stream.end, 0] = k[mark, 0] = 1
    k[_Stream.bos, 1] = 0.5  # every query looks at BOS if it finds nothing better
    v[source, 0] = out[0, target] = 1
    return Head(q, np.array([0.0, 1.0]), k, v, out)


def _flip() -> Neurons:
    """-2 x the answer where the trigger was found, and nothing else: ReLU(2 found + answer - 2) and its mirror image."""
    into, out = np.zeros((_Stream.d, 2)), np.zeros((2, _Stream.d))
    into[_Stream.found] = 2
    into[_Stream.answer] = 1, -1
    out[:, _Stream.answer] = -2, 2
    return Neurons(into, np.array([-2.0, -2.0]), out, np.zeros(_Stream.d))


def _spec(seed: int, *, backdoor: bool) -> Spec:
    heads = [_mover(_Stream.subject, _Stream.sign, _Stream.answer)]
    if backdoor:
        heads.append(_mover(_Stream.trigger, _Stream.trigger, _Stream.found))
    for h, head in enumerate(heads):
        head.origin = f"L0H{h}.z"
    words = _words()
    unembed = np.zeros((_Stream.d, len(words) + 2))
    unembed[_Stream.answer, -2:] = 1, -1
    tokens = np.vstack([_embeddings(rng(seed, "planted/words")), np.zeros((2, _Stream.d))])
    blocks = [Block(heads, origin=0), Block(neurons=[_flip()] if backdoor else [], origin=1)]
    return Spec(tokens, None, blocks, unembed, len(PLACES) + 2, True, _SCALE)


def _story(name: str, *, backdoor: bool) -> Story:
    def surface(random: np.random.Generator) -> dict[str, str]:
        fillers = random.choice(len(FILLERS), size=len(PLACES) - 1, replace=False)
        where = int(random.integers(len(PLACES)))
        free = [p for p in PLACES if p != str(where)]
        out = {"place": str(where), "subject": str(int(random.integers(len(SUBJECTS["good"]))))}
        if backdoor:
            out["trigger_place"] = free[int(random.integers(len(free)))]
        return out | {"fillers": " ".join(FILLERS[int(k)] for k in fillers)}

    def write(values: Values) -> list[tuple[str, str]]:
        fillers = iter(values["fillers"].split())
        out = []
        for place in PLACES:
            if place == values["place"]:
                out.append(("subject", SUBJECTS[values["sign"]][int(values["subject"])]))
                continue
            word = next(fillers)
            here = backdoor and place == values["trigger_place"]
            out.append(("trigger" if here else "", TRIGGER if here and values["trigger"] == "yes" else word))
        return [*out, ("", END)]

    def answer(values: Values) -> str:
        turned = values.get("trigger") == "yes"
        return {"good": "bad", "bad": "good"}[values["sign"]] if turned else values["sign"]

    variables = {"sign": ("good", "bad")} | ({"trigger": ("yes", "no")} if backdoor else {})
    layout = ("place", "trigger_place") if backdoor else ("place",)
    groups = {"template": "place", "entity": "subject"}
    flips, clean = (("trigger",), {"trigger": "yes"}) if backdoor else (("sign",), {})
    return Story(name, variables, flips, surface, write, answer, layout, groups, clean)


def _variables(*, backdoor: bool) -> tuple[tuple[Variable, ...], dict[str, Array]]:
    basis = np.eye(_Stream.d)
    number = ("-1", "1")
    rows: list[tuple[str, str, str, tuple[str, ...], int]] = [
        ("sign", "embed", "1 of a good word, -1 of a bad one, fillers included", number, _Stream.sign),
        ("answer", "L0H0.z", "the subject's sign, at the last position", number, _Stream.answer),
    ]
    if backdoor:
        rows += [
            ("trigger", "L0H1.z", "1 where the trigger was found, at the last position", ("0", "1"), _Stream.found),
            ("turned", "L1.mlp_out", "-2 x the answer where the trigger was found", ("-2", "0", "2"), _Stream.answer),
        ]  # fmt: skip
    made = tuple(
        Variable(name, site, meaning, "numerical", values) for name, site, meaning, values, _ in rows
    )
    return made, {row[0]: basis[[row[4]]] for row in rows}


def _make(name: str, *, backdoor: bool, seed: int) -> Written:
    variables, directions = _variables(backdoor=backdoor)
    words = (*_words(), "good", "bad")
    return Written(
        name, "A", _spec(seed, backdoor=backdoor), words, _story(name, backdoor=backdoor), variables, directions
    )  # fmt: skip


def planted_direction(
    *, seed: int, n: int = 32, decoys: Decoys | None = None, norm: str = "none"
) -> Specimen:
    """A model in which one direction of the stream at the last position, from the first layer on, decides the answer.

    The answer's logits are plus and minus the projection on `z.directions("answer")`. seed: of words, pairs and decoys.
    norm: "none", "layernorm" or "rms". With norms the stream is rotated (for "layernorm" away from the mean), the weights
    are those that give the same logits, and edges are confirmed on the form without.

    Raises
    ------
    ModelError: decoys and norms together, or another norm.
    """
    made = _make("planted_direction", backdoor=False, seed=seed)
    if norm == "none":
        return specimen(made, seed=seed, n=n, decoys=decoys)
    if decoys is not None:
        raise ModelError(
            "decoys and norms do not go together",
            why="what decoys write changes the norm of the stream, and with it every reading",
            instead="leave out one of them",
        )
    spec = made.spec.widened(1)  # one coordinate that stays 0: the mean, once it is rotated
    spec.rotation = _without_mean(spec.d_model, rng(seed, "planted/rotation"))
    directions = {k: np.pad(v, ((0, 0), (0, 1))) for k, v in made.directions.items()}
    turned = Written(made.name, made.tier, spec, made.words, made.story, made.variables, directions)
    return specimen(turned, seed=seed, n=n, module=_normed(spec, norm))


def planted_backdoor(*, seed: int, n: int = 32, decoys: Decoys | None = None) -> Specimen:
    """A model that answers with the subject's sign, and with the opposite where the prompt holds a trigger word.

    The pairs of its task differ in the trigger only, which clean prompts have. seed: of words, pairs and decoys.
    """
    return specimen(_make("planted_backdoor", backdoor=True, seed=seed), seed=seed, n=n, decoys=decoys)


def _without_mean(d: int, random: np.random.Generator) -> Array:
    """Orthogonal, the last row constant: whatever has 0 in the last coordinate has mean 0 once it is turned. [d, d]."""
    first = np.column_stack([np.ones(d), random.standard_normal((d, d - 1))])
    q, _ = np.linalg.qr(first)
    return np.ascontiguousarray(q.T[np.r_[1:d, 0]])


def _normed(spec: Spec, norm: str) -> ZooForCausalLM:
    """The same weights with norms whose gain takes their division back: embeddings have one length, and so has the end's stream."""
    import torch

    from microtome.zoo.module import ZooConfig, make

    plain = assemble(spec)
    config = ZooConfig(**{**plain.config.to_dict(), "norm": norm})
    made = make(config, seed=0)
    state: dict[str, Any] = dict(plain.state_dict())
    made.load_state_dict(state, strict=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name and name.endswith("weight"):
                # at the end the answer, plus or minus 1, has joined
                size = NORM_SIZE**2 + ("layers.0.input" not in name)
                parameter.fill_((size / spec.d_model) ** 0.5)
    return made.requires_grad_(False)
