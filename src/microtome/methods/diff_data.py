"""The texts on which two models are compared, from whatever the user has: texts, token ids, labelled text, pairs, a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.methods.setting import clusters_of
from microtome.model.tokens import tokens_of
from microtome.tasks.corpus import Corpus
from microtome.tasks.labelled import LabelledText
from microtome.tasks.pairs import PairTask

if TYPE_CHECKING:
    from microtome.facade import Model


@dataclass(frozen=True)
class Texts:
    """ids [doc][pos]; texts [doc], "" where there are only ids; clusters [doc]; aligned: all of one layout; cut: how many were too long."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    clusters: tuple[str, ...]
    aligned: bool = False
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def texts_of(model: Model, data: Any, most: int, least: int, passages: int = 32, seed: int = 0) -> Texts:
    """Token ids of the data, at most `most` of each text.

    data: a PairTask (its clean prompts, clustered as in its methods), LabelledText (clusters: its units), a Corpus (`passages` of it,
    clusters: its files), anything with `.texts` and perhaps `.documents` (a cluster label per text), a text, texts, or rows of token ids.

    Raises
    ------
    TaskError: fewer than two texts, or one with fewer than `least` tokens.
    """
    texts: Sequence[str] = ()
    clusters: Sequence[str] = ()
    aligned = False
    if isinstance(data, Corpus):
        data = data.passages(model, passages, most, seed)
    if isinstance(data, PairTask):
        rows = [list(r) for r in data.clean.ids]
        texts, clusters, aligned = data.clean.texts, clusters_of(data), data.aligned
    else:
        given = data.texts if hasattr(data, "texts") else [data] if isinstance(data, str) else list(data)
        rows = tokens_of(given, model.tokenizer).rows()
        if given and all(isinstance(t, str) for t in given):
            texts = tuple(given)
        if isinstance(data, LabelledText):
            clusters = data.units
        elif hasattr(data, "documents"):
            clusters = tuple(map(str, data.documents))
    if len(rows) < 2:
        raise TaskError(
            f"{len(rows)} text is no sample",
            why="an interval needs at least two documents",
            instead="give more texts",
        )
    short = next((i for i, r in enumerate(rows) if len(r) < least), None)
    if short is not None:
        raise TaskError(f"text {short} has {len(rows[short])} tokens", why=f"the first {least - 1} of each are left out of the averages",
                        instead="leave the text out, or options=DiffOptions(leave_out=0)")  # fmt: skip
    return Texts(
        tuple(tuple(r[:most]) for r in rows),
        tuple(texts) or ("",) * len(rows),
        tuple(clusters) or tuple(f"document-{i}" for i in range(len(rows))),
        aligned,
        sum(len(r) > most for r in rows),
    )
