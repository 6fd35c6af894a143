"""What is learned from what: labels as two classes, units, and a split that no group straddles."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from microtome.errors import TaskError
from microtome.methods.probing.options import ProbeOptions
from microtome.results import seeds
from microtome.results.verdicts import Control
from microtome.tasks.labelled import LabelledText

Indices = NDArray[np.int64]
TRIES = 20


@dataclass(frozen=True)
class Design:
    """A dataset as a probe sees it.

    truth [item]: whether an item is of the positive class. units [item]: items that share a group have one (a group of the
    groupings asked for, where some were). train, validation, test: indices. names: (negative, positive) class. held: the
    groupings that no two parts share.
    """

    data: LabelledText
    truth: NDArray[np.bool_]
    units: NDArray[np.str_]
    train: Indices
    validation: Indices
    test: Indices
    names: tuple[str, str]
    held: tuple[str, ...]

    @property
    def parts(self) -> tuple[Indices, Indices, Indices]:
        """Training, validation and test."""
        return self.train, self.validation, self.test


def design(data: LabelledText, options: ProbeOptions, seed: int) -> Design:
    """Labels and split of a dataset.

    Raises
    ------
    TaskError: one class only; several classes and none named positive; fewer groups than parts; a given split whose parts
    overlap or lack a class.
    """
    truth, names = _truth(data, options.positive)
    if options.split is None:
        parts = _split(data, options, seed)
    else:
        parts = options.split
    if len(parts) != 3:
        raise TaskError(f"a split in {len(parts)} parts", why="a probe is trained, chosen and tested on texts of its own",
                        instead="three shares, for example 0.6, 0.2, 0.2")  # fmt: skip
    every = [i for part in parts for i in part]
    if len(set(every)) < len(every) or min(every) < 0 or max(every) >= len(data):
        raise TaskError("the parts of the split overlap or name texts that are not there", why=f"{data.name} has {len(data)} texts, each in one part",
                        instead="disjoint indices from 0 to n - 1")  # fmt: skip
    rows = [np.array(sorted(part), dtype=np.int64) for part in parts]
    for what, part in zip(("training", "validation", "test"), rows, strict=True):
        if truth[part].all() or not truth[part].any():
            raise TaskError(f"the {what} part of {data.name} has one class only", why="nothing can be told apart there",
                            instead="another seed, more groups, or other shares")  # fmt: skip
    units = data.joined(*options.by) if options.by else data.units
    return Design(
        data, truth, np.array(units), rows[0], rows[1], rows[2], names, options.by or tuple(data.groups)
    )


def _split(data: LabelledText, options: ProbeOptions, seed: int) -> tuple[tuple[int, ...], ...]:
    """A split by whole groups. With few of them a draw may leave a part without a class: then the next draw, by number."""
    for attempt in range(TRIES):
        try:
            return data.split(
                *options.shares, by=options.by, seed=seeds.child(seed, f"probe split {attempt}")
            )
        except TaskError as error:
            few = len(set(data.units if options.by is None else data.joined(*options.by))) < len(
                options.shares
            )
            if few or attempt == TRIES - 1 or "no " not in error.what:
                raise
    raise AssertionError("the last attempt returns or raises")


def _truth(data: LabelledText, positive: str) -> tuple[NDArray[np.bool_], tuple[str, str]]:
    labels = np.array(data.labels)
    present = [c for i, c in enumerate(data.classes) if (labels == i).any()]
    if len(present) < 2:
        raise TaskError(f"every text of {data.name} is {present[0]!r}", why="with one class there is nothing to tell apart",
                        instead="texts of at least two classes")  # fmt: skip
    if positive and positive not in present:
        raise TaskError(
            f"{data.name} has no class {positive!r}",
            why=f"it has {', '.join(present)}",
            instead="one of them",
        )
    if not positive and len(present) > 2:
        raise TaskError(f"{data.name} has {len(present)} classes", why="a probe tells one class from the others",
                        instead=f'options={{"positive": "{present[0]}"}}')  # fmt: skip
    chosen = positive or present[1]
    others = [c for c in present if c != chosen]
    return labels == data.classes.index(chosen), (
        others[0] if len(others) == 1 else f"not {chosen}",
        chosen,
    )


def split_control(d: Design) -> Control:
    """That no group and no text lies on both sides of the split: else a probe may know the answer by heart."""
    home = np.full(len(d.data), -1)
    for k, part in enumerate(d.parts):
        home[part] = k
    used = home >= 0
    shared = Counter(u for u, _ in {(u, h) for u, h in zip(d.units[used], home[used], strict=True)})
    groups = [u for u, n in shared.items() if n > 1]
    texts = [" ".join(t.lower().split()) for t in d.data.texts]
    seen = Counter(t for t, _ in {(texts[i], int(home[i])) for i in np.flatnonzero(used)})
    twice = [t for t, n in seen.items() if n > 1]
    detail = f"for example {twice[0]!r}" if twice else ""
    told = set(d.units.tolist())
    if not groups and len(set(d.data.units)) < len(told):  # the split was asked to go by some groupings only
        detail = (detail + "; " if detail else "") + "other groupings lie on several sides, as asked"
    return Control(
        "split", "that the probe met a text of the test, or one of its group, in training", "no group and no text on both sides of the split",
        {"groups on several sides": len(groups), "texts on several sides": len(twice)}, not groups and not twice, int(used.sum()), detail=detail, gates=True,
    )  # fmt: skip
