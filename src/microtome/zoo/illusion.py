"""A model on which a search for a subspace succeeds and is wrong: the subspace illusion (Makelov et al. 2023, 2311.17030).

One head moves the word to the last position, where the unembedding reads it: that is the whole mechanism. Two neurons of
the next layer take no part in it. Neuron 0 follows the word, and nothing reads it; neuron 1 would turn the answer round if it
fired, and never does. Further neurons follow the rest of the prompt and write where nothing is read. A direction that is half of each is exchanged with the full effect of an interchange of the word: what
neuron 0 says then makes neuron 1 fire. With carried=True the word does pass through neurons of that layer, one per word, and
a search there is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microtome.results.seeds import rng
from microtome.zoo.mechanism import Variable
from microtome.zoo.spec import Array, Block, Head, Neurons, Spec
from microtome.zoo.words import BOS
from microtome.zoo.written import Story, Values, Written, specimen

if TYPE_CHECKING:
    from microtome.zoo.decoys import Decoys
    from microtome.zoo.specimen import Specimen

__all__ = ["DORMANT", "FOLLOWS", "subspace_illusion"]

FOLLOWS, DORMANT = "L1N0.neurons", "L1N1.neurons"
"""The neuron that follows the word and is not read, and the one that is read and never fires."""
KINDS = ("amber", "cobalt")
OTHERS = ("one", "two", "three")
_TEMPLATES, _ENTITIES, _FILLERS, _CONTEXT, _BACKGROUND, _SCALE = 12, 12, 30, 4, 40, 60.0


def _words() -> tuple[str, ...]:
    rest = [
        f"{kind}{k}" for kind, n in (("t", _TEMPLATES), ("e", _ENTITIES), ("f", _FILLERS)) for k in range(n)
    ]
    return (BOS, *KINDS, *OTHERS, *rest, "so")


class _Stream:
    """Coordinates of the unrotated stream."""

    bos, end = 0, 1
    word, moved, scratch = slice(2, 4), slice(4, 6), slice(6, 8)
    context, mixed, spare = slice(8, 12), slice(12, 16), slice(16, 20)
    d = 20


def _mover(keys: Array, source: slice, target: slice, strength: float) -> Head:
    """From the end to the keys that are marked (all alike); other queries look at BOS."""
    n = source.stop - source.start
    q, k, v = (np.zeros((_Stream.d, max(n, 2))) for _ in range(3))
    out = np.zeros((max(n, 2), _Stream.d))
    q[_Stream.end, 0] = 1
    k[:, 0] = keys
    k[_Stream.bos, 1] = 0.5
    bias = np.zeros(max(n, 2))
    bias[1] = 1
    v[source, :n] = np.eye(n)
    out[:n, target] = strength * np.eye(n)
    return Head(q, bias, k, v, out)


def _spec(seed: int, *, carried: bool) -> Spec:
    words, random = _words(), rng(seed, "illusion/weights")
    s = _Stream
    tokens = np.zeros((len(words), s.d))
    tokens[0, s.bos] = tokens[-1, s.end] = 1
    tokens[1:3, s.word] = np.eye(2)
    context = random.standard_normal((len(words) - 4, _CONTEXT))
    tokens[3:-1, s.context] = context / np.linalg.norm(context, axis=1, keepdims=True)
    # the word has a key of its own; the second head's key is how far a token's context points one way
    marked = np.zeros(s.d)
    marked[s.word] = 1
    along = np.zeros(s.d)
    along[s.context] = random.standard_normal(_CONTEXT) / _SCALE
    heads = [
        _mover(marked, s.word, s.scratch if carried else s.moved, 2.0),
        _mover(along, s.context, s.mixed, 2.0),
    ]
    heads[1].k[:, 1] = 0  # no default: it mixes the contexts of all tokens
    heads[1].decoy = True
    for h, head in enumerate(heads):
        head.origin = f"L0H{h}.z"
    into, out = np.zeros((s.d, 2)), np.zeros((2, s.d))
    if carried:
        into[s.scratch] = 3 * np.eye(2)
        out[:, s.moved] = np.eye(2) / 3
    else:
        into[s.moved, 0] = 3, -3
        out[1, s.moved] = 4, -4
    noise_in, noise_out = np.zeros((s.d, _BACKGROUND)), np.zeros((_BACKGROUND, s.d))
    noise_in[s.mixed] = random.standard_normal((_CONTEXT, _BACKGROUND))
    noise_out[:, s.spare] = 0.3 * random.standard_normal((_BACKGROUND, _CONTEXT))
    blank = np.zeros(s.d)
    parts = [
        Neurons(into, np.zeros(2), out, blank, decoy=not carried),
        Neurons(noise_in, np.zeros(_BACKGROUND), noise_out, blank, decoy=True),
    ]
    unembed = np.zeros((s.d, len(words)))
    unembed[s.moved, 1:3] = np.eye(2)
    return Spec(tokens, None, [Block(heads, [], 0), Block([], parts, 1)], unembed, 7, True, _SCALE)


def _story(name: str) -> Story:
    def surface(random: np.random.Generator) -> dict[str, str]:
        sizes = {"template": _TEMPLATES, "who": _ENTITIES, "filler": _FILLERS}
        return {
            slot: f"{slot[0] if slot != 'who' else 'e'}{int(random.integers(n))}" for slot, n in sizes.items()
        }

    def write(values: Values) -> list[tuple[str, str]]:
        order = ("other", "filler", "word", "template", "who")
        return [*((slot if slot == "word" else "", values[slot]) for slot in order), ("", "so")]

    groups = {"template": "template", "entity": "who"}
    variables = {"word": KINDS, "other": OTHERS}
    return Story(name, variables, ("word",), surface, write, lambda v: v["word"], groups=groups)


def subspace_illusion(
    *, seed: int, n: int = 48, decoys: Decoys | None = None, carried: bool = False
) -> Specimen:
    """A model whose second layer's neurons hold a direction that seems to carry the word and does not.

    seed: of contexts, background neurons, pairs and decoys. carried: the word passes through neurons 0 and 1 indeed.
    """
    s = _Stream
    basis = np.eye(s.d)
    kind = "categorical"
    variables = [Variable("word.in", "embed", "the word, at its own token", kind, KINDS)]
    directions = {"word.in": basis[s.word], "word": basis[s.moved]}
    if carried:
        variables += [
            Variable(
                "word.moved", "L0H0.z", "the word, at the last position, where neurons read it", kind, KINDS
            ),
            Variable("word", "L1.mlp_out", "the word, as the logits read it", kind, KINDS),
        ]
        directions["word.moved"] = basis[s.scratch]
    else:
        variables.append(Variable("word", "L0H0.z", "the word, at the last position", kind, KINDS))
    made = Written(
        "subspace_illusion", "A", _spec(seed, carried=carried), _words(), _story("subspace_illusion"), tuple(variables), directions
    )  # fmt: skip
    return specimen(made, seed=seed, n=n, decoys=decoys)
