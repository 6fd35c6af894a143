"""What steering is measured by: log-probabilities, which are cheap, or properties of generated text, which are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from microtome.errors import TaskError

if TYPE_CHECKING:
    from microtome.directions.direction import Direction
    from microtome.facade import Model

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Words:
    """Next-token log-odds: log P(any of `up`) - log P(any of `down`) after the prompt; without `down`, log P(any of `up`).

    Each word is exactly one token, with the space that it has in running text (" happy"), or a token id.
    """

    up: tuple[str | int, ...]
    down: tuple[str | int, ...] = ()
    name: str = "log-odds of words (nats)"

    def __post_init__(self) -> None:
        _texts(self, "up", "down")
        if not self.up or set(self.up) & set(self.down):
            raise TaskError(f"words {self.up} against {self.down}", why="a contrast needs words, none of them on both sides",
                            instead='Words((" happy",), (" sad",))')  # fmt: skip

    def ids(self, model: Model) -> tuple[list[int], list[int]]:
        """Token ids of either side. Raises TaskError for a word of several tokens."""
        up, down = (
            [w if isinstance(w, int) else model.single_token(w) for w in side]
            for side in (self.up, self.down)
        )
        return up, down


@dataclass(frozen=True)
class Continuations:
    """Mean log-probability per token of the texts in `up` after the prompt, minus that of `down` (teacher-forced)."""

    up: tuple[str, ...]
    down: tuple[str, ...] = ()
    name: str = "log-probability per token (nats)"

    def __post_init__(self) -> None:
        _texts(self, "up", "down")
        if not self.up:
            raise TaskError("no continuations were given", why="there is nothing to score", instead='Continuations((" I feel wonderful.",))')  # fmt: skip


@dataclass(frozen=True)
class Lexicon:
    """Share of a generated text's words that are in `up`, minus the share in `down`. Whole words, letter case ignored."""

    up: tuple[str, ...]
    down: tuple[str, ...] = ()
    name: str = "share of words"

    def __post_init__(self) -> None:
        _texts(self, "up", "down")
        if not self.up:
            raise TaskError("an empty lexicon", why="no word of a text could count", instead="the words that the concept is known by")  # fmt: skip

    def __call__(self, texts: Sequence[str]) -> Floats:
        """One score per text; a text without words scores 0."""
        up, down = ({w.strip().lower() for w in side} for side in (self.up, self.down))
        out = np.zeros(len(texts))
        for i, text in enumerate(texts):
            words = re.findall(r"[\w'’]+", text.lower())
            out[i] = sum((w in up) - (w in down) for w in words) / max(len(words), 1)
        return out


@dataclass(frozen=True)
class Reads:
    """Mean projection of a generated text on a direction, read from the unsteered model: a probe as the judge.

    The direction must not be the one that steers, or the score is about itself; it is refused.
    """

    direction: Direction
    name: str = "projection on the probe (site's unit)"


Measure = Words | Continuations | Lexicon | Reads | Callable[[Sequence[str]], Any]


def name_of(measure: Measure) -> str:
    """What the number is, for axes and tables."""
    return str(getattr(measure, "name", None) or getattr(measure, "__name__", "score"))


def of_text(measure: Measure) -> bool:
    """Whether the measure needs generated text."""
    return not isinstance(measure, Words | Continuations)


def score_texts(model: Model, measure: Measure, texts: Sequence[str], ids: Sequence[Sequence[int]]) -> Floats:
    """A generated-text measure of some texts. Shapes: texts [text], ids their tokens -> [text].

    Raises
    ------
    TaskError: a callable that does not give one finite number per text.
    """
    if isinstance(measure, Reads):
        return _projected(model, measure.direction, ids)
    if isinstance(measure, Words | Continuations):
        raise TypeError("log-probability measures read no text")
    found = np.asarray(measure(list(texts)), dtype=np.float64)
    if found.shape != (len(texts),) or not np.isfinite(found).all():
        raise TaskError(f"{name_of(measure)} gave numbers of shape {found.shape} for {len(texts)} texts", why="each text has one finite score",
                        instead="a function from a list of texts to as many numbers")  # fmt: skip
    return found


def _projected(model: Model, direction: Direction, ids: Sequence[Sequence[int]]) -> Floats:
    out = np.zeros(len(ids))
    unit = direction.unit.double()
    for i, row in enumerate(ids):
        if len(row):
            values = model.run([list(row)], direction.site, logits=None)[direction.site][0].double().cpu()
            out[i] = float((values @ unit).mean())
    return out


def read_words(logits: torch.Tensor, up: list[int], down: list[int]) -> Floats:
    """log P(any of up) - log P(any of down). Shapes: logits [row, d_vocab] -> [row]."""
    logs = logits.double().log_softmax(-1)
    value = logs[:, up].logsumexp(-1)
    if down:
        value = value - logs[:, down].logsumexp(-1)
    return np.asarray(value.cpu().numpy())


def _texts(measure: Any, *names: str) -> None:
    """Sequences as tuples; one text alone is a list of one."""
    for name in names:
        given = getattr(measure, name)
        object.__setattr__(measure, name, (given,) if isinstance(given, str | int) else tuple(given))
