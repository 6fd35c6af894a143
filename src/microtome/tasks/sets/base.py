"""What a built-in labelled dataset is: facts that are stated rightly and wrongly, over templates of their own.

Two rules keep the label out of the words. Every subject is stated in both classes by the same template; and the wrong
values of a template's statements are its right values in another order, so each word stands equally often in either class.
Each template has subjects of its own: a split by both groupings has as many units as templates, one by entity many more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks.labelled import LabelledText, Span
from microtome.tasks.rng import rng, shuffled

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Dataset", "Row", "compared", "contrasts", "dealt", "deranged", "fill", "shares", "statements"]

T = TypeVar("T")
DEFAULT_N = 400


@dataclass(frozen=True)
class Row:
    """One text: the index of its class, its groups, and where in it the subject stands (characters)."""

    text: str
    label: int
    template: str
    entity: str
    subject: Span | None = None


@dataclass(frozen=True)
class Dataset:
    """A labelled dataset by name; called with (n, seed) it gives n texts.

    about: what the label says. source: where the facts, words or sentences are from.
    readable: what of the surface tells the label nevertheless; "" when no word does.
    make: (how many subjects, seed) -> rows, grouped by subject; `per` rows of each.
    most: how many subjects there are.
    """

    name: str
    summary: str
    about: str
    source: str
    make: Callable[[int, int], Sequence[Row]]
    most: Callable[[], int]
    classes: tuple[str, ...] = ("false", "true")
    readable: str = ""
    per: int = 2
    version: str = "1"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, n: int | None = None, seed: int = 0) -> LabelledText:
        """n texts (default: 400, or all there are if fewer).

        Raises
        ------
        TaskError: n is not positive, no multiple of the texts per subject, under two subjects, or more than there are.
        """
        most = self.most() * self.per
        n = min(DEFAULT_N // self.per * self.per, most) if n is None else checks.count(n, "n")
        if n % self.per or n < 2 * self.per:
            near = max(2, round(n / self.per)) * self.per
            raise TaskError(f"{n} texts of {self.name}", why=f"its texts come {self.per} to a subject, so that classes stay balanced, and it takes two subjects",
                            instead=f"n={min(near, most)}")  # fmt: skip
        if n > most:
            raise TaskError(f"{self.name} has no {n} texts", why=f"{most // self.per} subjects are known, {self.per} texts each",
                            instead=f"n={most} or fewer")  # fmt: skip
        rows = self.make(n // self.per, seed)
        subjects = tuple(r.subject for r in rows)
        return LabelledText(
            self.name,
            tuple(r.text for r in rows),
            tuple(r.label for r in rows),
            self.classes,
            {"template": tuple(r.template for r in rows), "entity": tuple(r.entity for r in rows)},
            {"subject": subjects} if any(subjects) else {},
            self.about,
            {"dataset": self.name, "version": self.version, "source": self.source, "readable": self.readable, "n": n, "seed": seed, **self.extra},
        )  # fmt: skip


def fill(template: str, **words: str) -> tuple[str, Span | None]:
    """The template with its words put in, a capital at its head, and where {x} stands.

    Raises
    ------
    KeyError: a name in braces that is not given.
    """
    before, mark, after = template.partition("{x}")
    head = before.format(**words)
    text = head + (words["x"] if mark else "") + after.format(**words)
    span = (len(head), len(head) + len(words["x"])) if mark else None
    return text[:1].upper() + text[1:], span


def shares(n: int, parts: int, least: int = 2) -> list[int]:
    """n divided as evenly as possible into at most `parts` shares, none under `least`."""
    parts = max(1, min(parts, n // least))
    return [n // parts + (i < n % parts) for i in range(parts)]


def deranged(values: Sequence[T], random: np.random.Generator) -> list[T]:
    """The values in another order, none equal to the one at its place.

    Raises
    ------
    TaskError: one value makes up more than half of them.
    """
    n = len(values)
    value, most = Counter(values).most_common(1)[0]
    if 2 * most > n:
        raise TaskError(f"{most} of {n} values are {value!r}", why="no order of them differs from this one at every place",
                        instead="more values, or more even ones")  # fmt: skip
    order = [int(i) for i in random.permutation(n)]
    for i in range(n):
        if values[order[i]] != values[i]:
            continue
        # swapping with a place where both stay different; there is one, as no value has more than half
        for j in (int(k) for k in random.permutation(n)):
            if values[order[j]] != values[i] and values[order[i]] != values[j]:
                order[i], order[j] = order[j], order[i]
                break
    return [values[k] for k in order]


def statements(
    facts: Sequence[tuple[str, str]],
    templates: Sequence[str],
    n: int,
    seed: int,
    *,
    name: str,
    negated: bool = False,
) -> list[Row]:
    """Each of n subjects with its value and with another's, [2 rows per subject].

    facts: (subject, value). templates: with {x} and {y}. negated: the templates deny, so the other value is right.
    """
    rows = []
    for index, block in enumerate(dealt(facts, shares(n, len(templates)), seed, name)):
        wrong = deranged([y for _, y in block], rng(seed, f"{name}/wrong/{index}"))
        for (x, y), other in zip(block, wrong, strict=True):
            for value, right in ((y, True), (other, False)):
                text, at = fill(templates[index], x=x, y=value)
                rows.append(Row(text, int(right != negated), f"{name}-{index:02d}", x, at))
    return rows


def compared(
    pairs: Sequence[tuple[str, str]],
    templates: Sequence[str],
    n: int,
    seed: int,
    *,
    name: str,
) -> list[Row]:
    """n pairs (larger, smaller), each said both ways round by one template, [2 rows per pair]: the words are the same.

    templates: with {x}, which they call the larger, and {y}; one that begins with "<" calls {x} the smaller.
    """
    drawn = shuffled(pairs, seed, f"{name}/pairs")[:n]
    rows: list[Row] = []
    for index, size in enumerate(shares(n, len(templates), 1)):
        template = templates[index].removeprefix("<")
        for large, small in drawn[len(rows) // 2 : len(rows) // 2 + size]:
            for x, y in ((large, small), (small, large)):
                text, at = fill(template, x=x, y=y)
                right = (x == large) != (template != templates[index])
                rows.append(Row(text, int(right), f"{name}-{index:02d}", f"{large}|{small}", at))
    return rows


def contrasts(
    pairs: Mapping[str, tuple[str, ...]],
    contexts: Sequence[str],
    templates: Sequence[str],
    n: int,
    seed: int,
    *,
    name: str,
    labels: Sequence[int] = (0, 1),
) -> list[Row]:
    """n times a pair in a context, one text per wording, the rest of the text the same.

    pairs: entity -> its wordings, of classes `labels`. templates: with {x} for the wording and {z} for the context. A pair is with one
    template in all its contexts; contexts take turns.
    """
    names = shuffled(list(pairs), seed, f"{name}/pairs")
    sizes = shares(min(n, len(names)), len(templates), 1)
    template = [index for index, size in enumerate(sizes) for _ in range(size)]
    rows = []
    for k in sorted(range(n), key=lambda k: (template[k % len(template)], k)):
        entity = names[k % len(template)]
        turn = shuffled(contexts, seed, f"{name}/contexts/{entity}")[k // len(template)]
        index = template[k % len(template)]
        for wording, label in zip(pairs[entity], labels, strict=True):
            text, at = fill(templates[index], x=wording, z=turn)
            rows.append(Row(text, label, f"{name}-{index:02d}", entity, at))
    return rows


def dealt(facts: Sequence[tuple[str, T]], sizes: Sequence[int], seed: int, name: str) -> list[list[tuple[str, T]]]:  # fmt: skip
    """Facts dealt into blocks of these sizes, the values as evenly as they come: none in more than half of a block."""
    by: dict[T, list[tuple[str, T]]] = {}
    for fact in shuffled(facts, seed, f"{name}/facts"):
        by.setdefault(fact[1], []).append(fact)
    blocks: list[list[tuple[str, T]]] = []
    for size in sizes:
        block: list[tuple[str, T]] = []
        taken: Counter[T] = Counter()
        while len(block) < size:
            # the values with most facts left go first among those used least here, so that the last block has a choice
            free = [y for y, rest in by.items() if rest and 2 * (taken[y] + 1) <= max(size, 2)]
            if not free:
                raise TaskError(f"{name} has too few different values left for {sum(sizes)} subjects", why="a wrong value must differ from the right one",
                                instead="ask for fewer texts")  # fmt: skip
            y = min(free, key=lambda v: (taken[v], -len(by[v])))
            block.append(by[y].pop())
            taken[y] += 1
        blocks.append(block)
    return blocks
