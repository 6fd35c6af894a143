"""What of a text's surface tells its class: single words, the name of the class, length, where a span stands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from microtome.tasks.lint_duplicates import words
from microtome.tasks.rng import rng

if TYPE_CHECKING:
    from microtome.tasks.labelled import LabelledText

__all__ = ["Context", "Measured", "group_tells", "measure", "prepare"]

_ALWAYS = 500  # so many of the commonest words are compared in any case
_CHUNK = 1 << 22  # numbers held at once when draws are counted
_TRUE_FALSE = {"true", "false", "yes", "no", "0", "1"}  # names of classes that texts hold for other reasons


@dataclass(frozen=True)
class Measured:
    """A number and what it is under shuffled labels. null: reached in 5 % of draws. what: the feature that was extreme."""

    kind: str
    what: str
    statistic: float
    null: float
    p: float
    detail: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """Data ready to be measured. labels: [text, class] of 0 and 1; shuffled: draw k -> class indices [text]."""

    data: LabelledText
    spelled: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[str, ...], ...]
    draws: int
    seed: int

    @cached_property
    def codes(self) -> np.ndarray:
        """The class of each text, [draw + 1, text]: the first row as it is, the others shuffled."""
        return self.shuffled("")

    def shuffled(self, without: str) -> np.ndarray:
        """As `codes`, labels kept together in every grouping but one: what is asked of that one must not be held fixed."""
        real = np.asarray(self.data.labels)
        random = rng(self.seed, f"lint/{self.data.hash}/{without}")
        blocks = _blocks(self.data, without)
        out = np.empty((self.draws + 1, len(real)), dtype=np.int16)
        out[0] = real
        names, index = np.unique(np.asarray(blocks or range(len(real))), return_inverse=True)
        of_block = np.empty(len(names), dtype=np.int16)
        of_block[index] = real
        for k in range(self.draws):
            out[k + 1] = random.permutation(of_block)[index]
        return out

    @cached_property
    def used(self) -> list[int]:
        """Classes that have texts; of two, the second stands for both."""
        have = sorted(set(self.data.labels))
        return have[1:] if len(have) == 2 else have


def prepare(data: LabelledText, tokenizer: Any, draws: int, seed: int) -> Context:
    """Words and tokens of every text."""
    tokens: tuple[tuple[str, ...], ...] = ()
    if tokenizer is not None:
        tokens = tuple(
            tuple(f"token {i}" for i in tokenizer(t, add_special_tokens=False)["input_ids"])
            for t in data.texts
        )
    return Context(data, tuple(tuple(words(t)) for t in data.texts), tokens, draws, seed)


def _blocks(data: LabelledText, without: str) -> Sequence[str] | None:
    """The grouping (but one) with fewest groups whose groups each have one label; None where labels vary within every one."""
    constant = []
    for row in (row for name, row in data.groups.items() if name != without):
        labels: dict[str, set[int]] = {}
        for group, label in zip(row, data.labels, strict=True):
            labels.setdefault(group, set()).add(label)
        if len(labels) < len(row) and all(len(v) == 1 for v in labels.values()):
            constant.append((len(labels), row))
    return min(constant, key=lambda c: c[0])[1] if constant else None


def measure(context: Context) -> list[Measured]:
    """All checks that need no split."""
    if len(set(context.data.labels)) < 2:
        return []
    lengths = {"characters": [len(t) for t in context.data.texts], "words": [len(w) for w in context.spelled]}
    if context.tokens:
        lengths["tokens"] = [len(t) for t in context.tokens]
    out = [_words(context), *_class_names(context), _ranks(context, "length", lengths, "length in")]
    for name, row in context.data.spans.items():
        out.append(_ranks(context, f"position:{name}", _places(context.data.texts, row), f"{name}:"))
    return [m for m in out if m is not None]


def _p(real: float, null: np.ndarray) -> float:
    return float((1 + np.sum(null >= real - 1e-12)) / (len(null) + 1))


def _words(context: Context) -> Measured | None:
    """The word or token whose presence tells a class best: AUROC = 1/2 + |difference of shares| / 2, maximum over all."""
    from scipy import sparse

    vocabulary: dict[str, int] = {}
    rows, columns = [], []
    for i, spelled in enumerate(context.spelled):
        for w in {*spelled, *(context.tokens[i] if context.tokens else ())}:
            rows.append(i)
            columns.append(vocabulary.setdefault(w, len(vocabulary)))
    n = len(context.spelled)
    if not rows:
        return None
    has = sparse.csr_matrix(
        (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(n, len(vocabulary))
    )
    often = np.asarray(has.sum(axis=0)).ravel()
    # The gap of a word is at most its texts over the smallest class. One that stays under the spread that a common word has by
    # chance could never be the maximum: left out, unless few are common.
    smallest = min(context.data.labels.count(c) for c in set(context.data.labels))
    enough = min(smallest / math.sqrt(n), float(np.sort(often)[-_ALWAYS:][0]))
    keep = np.flatnonzero((often >= max(2, enough)) & (often < n))
    if not len(keep):
        return None
    has = has[:, keep].T.tocsr()
    best = np.zeros(context.draws + 1)
    at = (0, context.used[0])
    step = max(1, _CHUNK // len(keep))
    for c in context.used:
        for start in range(0, context.draws + 1, step):
            is_c = (context.codes[start : start + step] == c).T.astype(np.float32)
            size = is_c.sum(axis=0)
            inside = has @ is_c
            gap = np.abs(inside / size - (often[keep][:, None] - inside) / (n - size))
            if start == 0 and gap[:, 0].max() > best[0]:
                at = (int(keep[gap[:, 0].argmax()]), c)
            best[start : start + step] = np.maximum(best[start : start + step], gap.max(axis=0))
    auroc = 0.5 + best / 2
    word = next(w for w, i in vocabulary.items() if i == at[0])
    holds = [
        i for i in range(n) if word in context.spelled[i] or (context.tokens and word in context.tokens[i])
    ]
    shown = _shown(word, context, holds)
    inside = sum(context.data.labels[i] == at[1] for i in holds)
    null = float(np.quantile(auroc[1:], 0.95))
    detail = f"{shown} alone tells the class with AUROC {auroc[0]:.3f} ({inside} of the {len(holds)} texts that have it are {context.data.classes[at[1]]!r}); under shuffled labels the best word reaches {null:.3f} in 5 % of draws"
    return Measured(
        "word",
        shown,
        float(auroc[0]),
        null,
        _p(auroc[0], auroc[1:]),
        detail,
        tuple(context.data.texts[i] for i in holds[:3]),
    )


def _shown(word: str, context: Context, holds: Sequence[int]) -> str:
    return f'the word "{word}"' if word in context.spelled[holds[0]] else f"the {word}"


def _class_names(context: Context) -> list[Measured]:
    """Per class whose name is a word: whether its own texts hold that word more than others do (Fisher's exact test)."""
    from scipy import stats

    out = []
    labels = np.asarray(context.data.labels)
    for c, name in enumerate(context.data.classes):
        spelled = words(name)
        if not spelled or name.casefold() in _TRUE_FALSE or spelled[0].isdecimal():
            continue
        has = np.asarray([_holds(row, spelled) for row in context.spelled])
        if not has.any():
            continue
        inside, outside = int(has[labels == c].sum()), int(has[labels != c].sum())
        n, k = len(labels), int((labels == c).sum())
        p = float(stats.hypergeom.sf(inside - 1, n, k, inside + outside))
        auroc = 0.5 + (inside / max(1, k) - outside / max(1, n - k)) / 2
        examples = tuple(context.data.texts[i] for i in np.flatnonzero(has & (labels == c))[:3])
        detail = f"the name of the class {name!r} stands in {inside} of its {k} texts and in {outside} of the {n - k} others"
        out.append(Measured("label_word", name, auroc, 0.5, p, detail, examples))
    return out


def _holds(row: Sequence[str], spelled: Sequence[str]) -> bool:
    k = len(spelled)
    return any(list(row[i : i + k]) == list(spelled) for i in range(len(row) - k + 1))


def _places(texts: Sequence[str], row: Sequence[tuple[int, int] | None]) -> dict[str, list[float]]:
    """Where a span stands: from the front, from the end, as a share of the text, whether it is there."""
    middle: dict[str, Callable[[str, tuple[int, int]], float]] = {
        "characters before it": lambda t, at: at[0],
        "characters after it": lambda t, at: len(t) - at[1],
        "its place as a share of the text": lambda t, at: at[0] / len(t),
    }
    there = [at is not None for at in row]
    out = {}
    for name, of in middle.items():
        values = [float(of(t, at)) if at else float("nan") for t, at in zip(texts, row, strict=True)]
        typical = float(np.nanmedian(values)) if any(there) else 0.0
        out[name] = [typical if v != v else v for v in values]
    return {**out, "whether it is there": [float(x) for x in there]}


def _ranks(
    context: Context, kind: str, features: Mapping[str, Sequence[float]], prefix: str
) -> Measured | None:
    """The feature by whose order a class is told best, AUROC in either direction, maximum over features and classes."""
    from scipy import stats

    names = [k for k, v in features.items() if len(set(v)) > 1]
    if not names:
        return None
    ranks = np.stack([stats.rankdata(features[k]) for k in names])
    n = ranks.shape[1]
    best, at = np.zeros(context.draws + 1), (0, context.used[0])
    signed = 0.5
    for c in context.used:
        is_c = (context.codes == c).T.astype(np.float64)
        size = is_c.sum(axis=0)
        auroc = (ranks @ is_c - size * (size + 1) / 2) / (size * (n - size))
        gap = np.abs(auroc - 0.5)
        if gap[:, 0].max() > best[0]:
            at = (int(gap[:, 0].argmax()), c)
            signed = float(auroc[at[0], 0])
        best = np.maximum(best, gap.max(axis=0))
    auroc = 0.5 + best
    null = float(np.quantile(auroc[1:], 0.95))
    means = [
        float(
            np.mean(
                [
                    v
                    for v, label in zip(features[names[at[0]]], context.data.labels, strict=True)
                    if (label == at[1]) is side
                ]
            )
        )
        for side in (True, False)
    ]
    what = f"{prefix} {names[at[0]]}"
    detail = f"{what} tells the class {context.data.classes[at[1]]!r} with AUROC {auroc[0]:.3f} ({'larger' if signed > 0.5 else 'smaller'} there: {means[0]:.3g} against {means[1]:.3g} on average); under shuffled labels {null:.3f} in 5 % of draws"
    return Measured(kind, what, float(auroc[0]), null, _p(auroc[0], auroc[1:]), detail)


def group_tells(
    context: Context, name: str, parts: Mapping[str, Sequence[int]], shared: Sequence[str]
) -> list[Measured]:
    """Whether the majority label of a group in the first part tells that group's labels in the other parts.

    The statistic is the share of right guesses; null: the same under shuffled labels.
    """
    from scipy import sparse

    row = context.data.groups[name]
    first, *others = parts.values()
    columns = {g: k for k, g in enumerate(sorted(set(shared)))}
    codes = context.shuffled(name)
    seen = [i for i in first if row[i] in columns]
    asked = [i for part in others for i in part if row[i] in columns]
    if not seen or not asked or len(set(context.data.labels)) < 2:
        return []
    k = len(context.data.classes)
    member = sparse.csr_matrix(
        (np.ones(len(seen)), ([columns[row[i]] for i in seen], range(len(seen)))),
        shape=(len(columns), len(seen)),
    )
    counts = np.stack([member @ (codes[:, seen] == c).T.astype(np.float64) for c in range(k)])
    top = counts.max(axis=0)
    ties = (counts == top).sum(axis=0)
    at = [columns[row[i]] for i in asked]
    # a tie is a guess among the tied
    right = np.zeros((len(asked), context.draws + 1))
    for c in range(k):
        is_c = (codes[:, asked] == c).T
        right += is_c * ((counts[c] == top) / ties)[at]
    known = (top > 0)[at]
    share = (right * known).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    null = float(np.quantile(share[1:], 0.95))
    return [Measured(f"leak:{name}", name, float(share[0]), null, _p(share[0], share[1:]), "")]
