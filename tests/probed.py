"""A model that knows one thing about many words, and texts about them: what a probe must find, and what it must not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from microtome.facade import Model
from microtome.methods.probing.options import Ask
from microtome.tasks.labelled import LabelledText
from microtome.zoo import planted
from microtome.zoo.decoys import Decoys

ASK = Ask(("bad", "good"), ("{text}",), shots=0)
"""The planted model answers with "good" or "bad" at the end of each text."""
FAST = {"permutations": 999, "logistic_permutations": 19, "directions": 19, "random_directions": 39, "attention_shuffles": 1, "attention_sites": 1,
        "prompts": 6}  # fmt: skip
WORDS = 50


@cache
def model(seed: int = 0) -> Model:
    """A planted direction over 100 subject words among busy decoys: the subject's sign is written to the last token by one head."""
    kept = dict(planted.SUBJECTS)
    planted.SUBJECTS.update({side: tuple(f"{side}{k}" for k in range(WORDS)) for side in ("good", "bad")})
    try:
        # the words "good" and "bad" stay the answers: subjects are "good0", "bad0", ...
        return planted.planted_direction(seed=seed, n=4, decoys=Decoys(heads=3, layers=2, width=12)).model
    finally:
        planted.SUBJECTS.update(kept)


def texts(n_each: int = 2, seed: int = 0, words: range = range(WORDS)) -> LabelledText:
    """Texts about every subject word, `n_each` of each, labelled by the word's sign; a word is a group."""
    rng = np.random.default_rng(seed)
    rows, labels, groups = [], [], []
    for k in words:
        for label, side in enumerate(("bad", "good")):
            for _ in range(n_each):
                fillers = rng.choice(len(planted.FILLERS), 3, replace=False)
                out = [planted.FILLERS[int(f)] for f in fillers]
                out.insert(int(rng.integers(4)), f"{side}{k}")
                rows.append(" ".join([*out, planted.END]))
                labels.append(label)
                groups.append(f"{side}{k}")
    unique = list(dict.fromkeys(rows))
    keep = [rows.index(r) for r in unique]
    return LabelledText("signs", tuple(rows[i] for i in keep), tuple(labels[i] for i in keep), ("bad", "good"), {"word": tuple(groups[i] for i in keep)},
                        about="whether the word is good")  # fmt: skip


def relabelled(data: LabelledText, seed: int = 0) -> LabelledText:
    """The same texts with a coin per word: a label that the model knows nothing of."""
    rng = np.random.default_rng(seed)
    names = sorted(set(data.groups["word"]))
    coin = dict(zip(names, rng.permutation(len(names)) < len(names) // 2, strict=True))
    return LabelledText(
        "coins", data.texts, tuple(int(coin[w]) for w in data.groups["word"]), data.classes, data.groups
    )


def halves() -> list[LabelledText]:
    """Two datasets about other words each, under one meaning of the label."""
    return [
        replace(texts(words=range(k * WORDS // 2, (k + 1) * WORDS // 2), n_each=3, seed=k), name=f"words {k}")
        for k in range(2)
    ]


def contrasts(data: LabelledText | None = None, seed: int = 0) -> tuple[list[str], list[str]]:
    """Each text and the same about a word of the other sign; the first is "true" where the label is positive."""
    data = texts() if data is None else data
    turned = []
    for text, word in zip(data.texts, data.groups["word"], strict=True):
        other = word.replace("good", "bad") if word.startswith("good") else word.replace("bad", "good")
        turned.append(text.replace(word, other))
    return list(data.texts), turned
