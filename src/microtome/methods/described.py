"""What a description says of a token, without a language model: its words in the text, or their likeness to it.

A description is text, a list of keywords, or a regular expression between slashes ("/\\d{4}/"). Both readings look at the token and
at those before it, and halve with every token of distance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from microtome.errors import ControlError
from microtome.methods.example_search import Found

if TYPE_CHECKING:
    from microtome.facade import Model

__all__ = ["Description", "Texts", "keywords_of", "kind_of"]

Description = str | list[str] | tuple[str, ...]
FADE = 0.5
_WORD = re.compile(r"\w[\w'-]*")
_EMPTY = frozenset(["a", "an", "the", "of", "or", "and", "in", "on", "at", "to", "for", "with", "that", "this", "is", "are", "it", "its", "as", "by", "from", "which", "when", "where", "after", "before", "tokens", "token", "words", "word", "text"])  # fmt: skip


def kind_of(description: Description) -> str:
    """ "keywords", "regex" or "text".

    Raises
    ------
    ControlError: it is empty or no text, or its regular expression cannot be read.
    """
    if isinstance(description, str):
        if len(description) > 2 and description[0] == description[-1] == "/":
            try:
                re.compile(description[1:-1])
            except re.error as error:
                raise ControlError(f"the pattern {description} cannot be read", why=str(error), instead="a regular expression of Python") from error  # fmt: skip
            return "regex"
        if description.strip():
            return "text"
    elif (
        isinstance(description, list | tuple)
        and description
        and all(isinstance(word, str) and word.strip() for word in description)
    ):
        return "keywords"
    raise ControlError(f"the description is {description!r}", why="it says nothing that could be tried", instead='text, ["some", "keywords"] or "/a pattern/"')  # fmt: skip


def keywords_of(description: Description) -> list[str]:
    """The words of a description: its keywords, or what of its text is not a function word; [] of a pattern."""
    kind = kind_of(description)
    if kind == "regex":
        return []
    if kind == "keywords":
        return list(description)
    assert isinstance(description, str)
    words = _WORD.findall(description)
    return [w for w in words if w.lower() not in _EMPTY] or words


def _pattern(description: Description) -> re.Pattern[str]:
    if kind_of(description) == "regex":
        assert isinstance(description, str)
        return re.compile(description[1:-1])
    parts = []
    for word in sorted(keywords_of(description), key=len, reverse=True):
        word = word.strip()
        left, right = (r"(?<!\w)" if word[0].isalnum() else ""), (r"(?!\w)" if word[-1].isalnum() else "")
        parts.append(left + re.escape(word) + right)
    return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)


@dataclass(frozen=True)
class Texts:
    """The text of some rows of a sample, up to the token that each is about.

    ids: per row the tokens, the last one being the row's own. words: each of them as text.
    """

    ids: list[list[int]]
    words: list[list[str]]

    @classmethod
    def of(cls, model: Model, found: Found, rows: NDArray[np.intp], before: int) -> Texts:
        """The rows' texts, at most `before` tokens ahead of the own one."""
        ids = []
        for row in rows.tolist():
            begin, at = int(found.items.starts[found.sample_item[row]]), int(found.sample_at[row])
            ids.append([int(i) for i in found.items.ids[begin + max(0, at - before) : begin + at + 1]])
        known = sorted({i for row in ids for i in row})
        words = dict(zip(known, model.strings(known), strict=True))
        return cls(ids, [[words[i] for i in row] for row in ids])

    def marked(self) -> list[str]:
        """Each text with the token in question between « and »."""
        return ["".join(row[:-1]) + f"«{row[-1]}»" for row in self.words]

    def lexical(self, description: Description) -> NDArray[np.float64]:
        """1 where the description's words or pattern reach the token, FADE per token since they last did, else 0. [row].

        Words are found whole, whatever their case; a piece of a word is found where it is a token of its own.
        """
        pattern = _pattern(description)
        pieces = {w.strip().lower() for w in keywords_of(description)}
        out = np.zeros(len(self.words))
        for i, row in enumerate(self.words):
            last = 0
            for match in pattern.finditer("".join(row)):
                last = match.end() if match.end() > match.start() else last
            ends = np.cumsum([len(w) for w in row])
            found = [int(np.searchsorted(ends, last))] if last > 0 else []
            found += [k for k, w in enumerate(row) if w.strip().lower() in pieces]
            if found:
                out[i] = FADE ** (len(row) - 1 - max(found))
        return out

    def likeness(self, model: Model, description: Description) -> NDArray[np.float64]:
        """Cosine of the description's words and the text in the model's own token embeddings, about their mean. [row]."""
        table = model.weights.W_E.detach().float().cpu()
        words = keywords_of(description)
        if model.tokenizer is None or not words:
            return np.zeros(len(self.ids))
        own = [i for w in words for i in model.tokenizer(" " + w.strip(), add_special_tokens=False).input_ids]
        if not own:
            return np.zeros(len(self.ids))
        centre = table[sorted({i for row in self.ids for i in row})].mean(0)
        towards = (table[own] - centre).mean(0)
        towards = towards / towards.norm().clamp_min(1e-12)
        out = np.zeros(len(self.ids))
        for i, row in enumerate(self.ids):
            weight = FADE ** np.arange(len(row) - 1, -1, -1)
            vector = ((table[row] - centre) * table.new_tensor(weight)[:, None]).sum(0)
            out[i] = float(vector @ towards / vector.norm().clamp_min(1e-12))
        return out


def shuffled(texts: Texts, size: int, draws: int, generator: np.random.Generator) -> list[list[str]]:
    """Descriptions that are about nothing: so many keywords each, drawn from the words at which the rows stand."""
    found: Sequence[str] = sorted({row[-1].strip() for row in texts.words if row[-1].strip()})
    size = min(max(size, 1), len(found))
    return [[found[i] for i in generator.choice(len(found), size, replace=False)] for _ in range(draws)]
