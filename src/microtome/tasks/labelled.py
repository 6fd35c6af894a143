"""Labelled text: texts, what each one is, and which of them belong together.

Groups say which texts share something that a probe could learn instead of the label: a template, an entity. A split puts
a group on one side only; statistics treat groups as units.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from microtome.errors import TaskError
from microtome.results import seeds
from microtome.results.frozen import FrozenDict
from microtome.tasks.checks import quote

__all__ = ["LabelledText", "of_lists"]

Span = tuple[int, int]


@dataclass(frozen=True, repr=False)
class LabelledText:
    """n texts with one label each.

    name: of the dataset, for titles.
    texts: as fed to the model; what its tokenizer adds by itself (BOS) is added.
    labels: per text the index of its class, [item].
    classes: the names of the classes; of two, class 1 is the positive one.
    groups: name -> one label per text ("template", "entity", ...): texts of one group never lie on both sides of a split.
    spans: name -> per text a half-open range of characters, or None: places named by "@name" in an address.
    about: what the label says, for people: "whether the statement is true".
    provenance: where it came from; not part of the hash.

    Raises
    ------
    TaskError: no texts, an empty one, another number of labels or group labels than texts, a label without a class, a class
    named twice.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...] = ("0", "1")
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spans: Mapping[str, tuple[Span | None, ...]] = field(default_factory=dict)
    about: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "texts", tuple(self.texts))
        put(self, "labels", tuple(int(v) for v in self.labels))
        put(self, "classes", tuple(str(c) for c in self.classes))
        put(self, "groups", FrozenDict({k: tuple(str(x) for x in v) for k, v in self.groups.items()}))
        put(self, "spans", FrozenDict({k: tuple(v) for k, v in self.spans.items()}))
        put(self, "provenance", FrozenDict(self.provenance))
        _check(self)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.labels.count(i)} {c}" for i, c in enumerate(self.classes))
        by = ", ".join(f"{len(set(v))} {k} groups" for k, v in self.groups.items()) or "no groups"
        return f"<LabelledText {self.name}: {len(self)} texts ({counts}), {by}, hash {self.hash[:12]}>"

    def __hash__(self) -> int:
        return hash(self.hash)

    @cached_property
    def hash(self) -> str:
        """Hex digest (blake2b, 128 bits) of everything but provenance; the same on every platform."""
        content = {
            "name": self.name,
            "texts": self.texts,
            "labels": self.labels,
            "classes": self.classes,
            "groups": self.groups,
            "spans": self.spans,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """Texts of each class."""
        return {c: self.labels.count(i) for i, c in enumerate(self.classes)}

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The finest groups that never share anything: texts linked through any grouping have one unit, [item].

        Texts that share a template fall together, and so do texts that share an entity: with both declared, only what no
        chain of shared groups joins is apart. Without groups every text is its own unit.
        """
        return self.joined(*self.groups)

    def joined(self, *by: str) -> tuple[str, ...]:
        """Units by the named groupings only, [item]; without a name every text by itself. Copies of a text are one unit.

        Raises
        ------
        TaskError: a grouping that this data lacks.
        """
        for name in by:
            if name not in self.groups:
                raise TaskError(f'{self.name} has no groups called "{name}"', why=f"it has {', '.join(self.groups) or 'none'}",
                                instead="name one of these, or give the data that grouping")  # fmt: skip
        parent = list(range(len(self)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for row in (self.texts, *(self.groups[name] for name in by)):
            first: dict[str, int] = {}
            for i, label in enumerate(row):
                a, b = root(i), root(first.setdefault(label, i))
                parent[max(a, b)] = min(a, b)
        return tuple(f"unit-{root(i)}" for i in range(len(self)))

    def subset(self, indices: Sequence[int], name: str = "") -> LabelledText:
        """The texts at `indices`, in that order.

        Raises
        ------
        TaskError: none at all, an index out of range, or one named twice.
        """
        keep = [int(i) for i in indices]
        if not keep or len(set(keep)) < len(keep) or min(keep) < 0 or max(keep) >= len(self):
            raise TaskError(f"{len(keep)} indices of {len(self)} texts: none, twice the same, or out of range",
                            why="a subset is some of the texts, each once", instead="indices from 0 to n - 1")  # fmt: skip
        return replace(
            self,
            name=name or self.name,
            texts=tuple(self.texts[i] for i in keep),
            labels=tuple(self.labels[i] for i in keep),
            groups={k: tuple(v[i] for i in keep) for k, v in self.groups.items()},
            spans={k: tuple(v[i] for i in keep) for k, v in self.spans.items()},
        )

    def split(
        self, *shares: float, by: Sequence[str] | None = None, seed: int
    ) -> tuple[tuple[int, ...], ...]:
        """Indices of disjoint parts, whole units each: shares (0.6, 0.2, 0.2) give train, validation and test. Every
        text is in one part: shares that come to less than 1 say the proportion.

        by: the groupings that may not be shared (default: all). Units are shuffled and put where the share is furthest from
        filled, so that parts are as near to their share as whole units allow.

        Raises
        ------
        TaskError: shares that are not positive or pass 1, fewer units than parts, or a part that lacks a class (with the
        number of units, so that one can see why).
        """
        total = sum(shares)
        if len(shares) < 2 or min(shares) <= 0 or total > 1 + 1e-9:
            raise TaskError(f"shares {shares}", why="a split has two parts or more, positive and at most 1 together",
                            instead="for example 0.6, 0.2, 0.2")  # fmt: skip
        units = self.units if by is None else self.joined(*by)
        names = sorted(set(units))
        if len(names) < len(shares):
            raise TaskError(f"{self.name} has {len(names)} groups for a split in {len(shares)}", why="a group lies on one side only",
                            instead="fewer parts, more groups, or by=() to split by text and accept the leak")  # fmt: skip
        order = seeds.rng(seed, f"split/{self.name}").permutation(len(names)).tolist()
        size = Counter(units)
        home: dict[str, int] = {}
        filled = [0.0] * len(shares)
        for k in sorted(order, key=lambda k: -size[names[k]]):  # stable: units of one size stay shuffled
            part = min(range(len(shares)), key=lambda p: filled[p] / shares[p])
            home[names[k]] = part
            filled[part] += size[names[k]]
        parts = tuple(tuple(i for i, u in enumerate(units) if home[u] == p) for p in range(len(shares)))
        for members in parts:
            have = {self.labels[i] for i in members}
            if len(have) < len({*self.labels}):
                lacks = [c for i, c in enumerate(self.classes) if i in set(self.labels) - have]
                raise TaskError(f"a part of the split of {self.name} has no {lacks[0]!r}", why=f"its {len(names)} groups do not mix the classes evenly",
                                instead="another seed, more groups, or other shares")  # fmt: skip
        return parts


def of_lists(
    texts: Sequence[str],
    labels: Sequence[Any],
    groups: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    *,
    name: str = "user",
) -> LabelledText:
    """Labelled text from lists. labels: booleans, 0 and 1, or names of classes (sorted).

    Raises
    ------
    TaskError: labels that are neither, missing ones, one class only, or as `LabelledText`.
    """
    if isinstance(texts, str) or isinstance(labels, str):
        raise TaskError(
            "one text where a list of them belongs",
            why="its letters would be taken for texts",
            instead="[text, ...]",
        )
    given = [str(t) if isinstance(t, str) else t for t in texts]
    values = [_plain(v, i) for i, v in enumerate(labels)]
    if len(given) != len(values):
        raise TaskError(
            f"{len(given)} texts and {len(values)} labels",
            why="each text has one",
            instead=f"give {len(given)} labels",
        )
    codes, classes = _classes(values)
    notes = _duplicates(given, codes, classes)
    named = {} if groups is None else groups if isinstance(groups, Mapping) else {"group": groups}
    grouped = {k: _groups(k, v) for k, v in named.items()}
    return LabelledText(name, tuple(given), codes, classes, grouped, provenance={"notes": notes})


def _groups(name: str, row: Any) -> tuple[str, ...]:
    """One grouping as text; a text without a group is refused, since it could lie on both sides of a split."""
    if isinstance(row, str | bytes) or not hasattr(row, "__iter__"):
        raise TaskError(
            f"the grouping {quote(str(name))} is {row!r}",
            why="it has one label per text",
            instead='groups={"entity": [...]}',
        )
    values = list(row)
    for i, v in enumerate(values):
        if v is None or v != v or str(v).strip() == "":
            raise TaskError(f"text {i} has no group in {quote(str(name))} ({v!r})", why="it could lie on both sides of a split",
                            instead="give every text its group, or leave the grouping out")  # fmt: skip
    return tuple(map(str, values))


def _plain(value: Any, i: int) -> bool | int | str:
    """A label as Python has it: NumPy's scalars unpacked; what is no label is refused."""
    plain = value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    if plain is None or (isinstance(plain, float) and plain != plain) or plain == "":
        raise TaskError(
            f"text {i} has no label ({plain!r})",
            why="nothing can be learned or tested on it",
            instead="leave it out, or label it",
        )
    if not isinstance(plain, bool | int | str):
        hint = (
            "a number with a fraction is a score: say from which value on it counts as class 1"
            if isinstance(plain, float)
            else "give each text the name of its class"
        )
        raise TaskError(
            f"{plain!r} is not a label",
            why="labels are booleans, whole numbers or names of classes",
            instead=hint,
        )
    return plain


def _classes(values: Sequence[bool | int | str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Per text the index of its class, and the names of the classes."""
    if not values:
        raise TaskError("no texts were given", why="the list is empty", instead="give texts and labels")
    text = [isinstance(v, str) for v in values]
    if any(text) and not all(text):
        raise TaskError(f"labels of two kinds: {values[text.index(True)]!r} and {values[text.index(False)]!r}", why="whether two of them mean one class cannot be known",
                        instead="all names, or all numbers")  # fmt: skip
    distinct = sorted(set(values), key=lambda v: (str(v).casefold(), str(v)) if any(text) else (int(v),))
    if len(distinct) < 2:
        raise TaskError(f"every text has the same label, {values[0]!r}", why="with one class there is nothing to tell apart",
                        instead="texts of at least two classes")  # fmt: skip
    if len(distinct) > max(2, len(values) // 2):
        raise TaskError(f"{len(distinct)} different labels for {len(values)} texts", why="a class has at least two texts: these are names or scores of single texts",
                        instead="check which column is the label")  # fmt: skip
    names = ("0", "1") if set(distinct) == {0, 1} else tuple(str(v) for v in distinct)
    return tuple(distinct.index(v) for v in values), names


def _duplicates(texts: Sequence[Any], codes: Sequence[int], classes: Sequence[str]) -> list[str]:
    """What to say about texts that are there more than once. One that has two labels is refused."""
    first: dict[Any, int] = {}
    again: list[int] = []
    for i, text in enumerate(texts):
        j = first.setdefault(text, i) if isinstance(text, str) else i
        if codes[j] != codes[i]:
            raise TaskError(f"texts {j} and {i} are the same, {quote(str(text))}, and have the labels {classes[codes[j]]!r} and {classes[codes[i]]!r}",
                            why="no method can tell them apart", instead="remove one of them")  # fmt: skip
        if j != i:
            again.append(i)
    if not again:
        return []
    shown = ", ".join(quote(texts[i], 40) for i in again[:3])
    return [f"{len(again)} texts are there more than once ({shown}); copies stay on one side of every split"]


def _check(data: LabelledText) -> None:
    n = len(data.texts)
    if not n:
        raise TaskError(f"{data.name} has no texts", why="the list is empty", instead="give texts and labels")
    for i, text in enumerate(data.texts):
        if not isinstance(text, str) or not text.strip():
            raise TaskError(
                f"text {i} of {data.name} is {text!r}",
                why="a text has at least one letter",
                instead="leave it out",
            )
    for what, rows in [("labels", data.labels), *data.groups.items(), *data.spans.items()]:
        if len(rows) != n:
            raise TaskError(f"{n} texts and {len(rows)} {what}", why="each text has one", instead=f"give {n}")
    if len(set(data.classes)) < len(data.classes):
        raise TaskError(f"classes {data.classes}", why="a class is named once", instead="rename one")
    if wrong := [v for v in data.labels if not 0 <= v < len(data.classes)]:
        raise TaskError(
            f"the label {wrong[0]} is no class of {data.name}",
            why=f"it has {len(data.classes)}",
            instead="labels index the classes",
        )
    for name, row in data.spans.items():
        for i, at in enumerate(row):
            if at is not None and not 0 <= at[0] < at[1] <= len(data.texts[i]):
                raise TaskError(f'the span "{name}" of text {i} is {at}', why=f"{quote(data.texts[i])} has {len(data.texts[i])} characters",
                                instead="give a half-open range inside it")  # fmt: skip
