"""Prompt pairs: clean and corrupt prompts of equal length, what should follow, and what differs between them.

A `PairTask` is a value: it holds no model. Its invariants are checked when it is made, so that no method
has to ask whether position 7 of one prompt stands for position 7 of the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from microtome.errors import TaskError
from microtome.results.frozen import FrozenDict
from microtome.tasks import checks
from microtome.tasks.rng import rng

__all__ = ["DONOR_KINDS", "Continuations", "Donors", "PairTask", "Side", "Source", "Span", "join"]

Span = tuple[int, int]
Continuations = tuple[tuple[int, ...], ...]

DONOR_KINDS = ("same_value", "irrelevant", "wrong_value")


@dataclass(frozen=True, repr=False)
class Side:
    """One side (clean or corrupt) of n prompts.

    texts: the prompts as text.
    ids: the tokens fed to the model, BOS included where the tokenizer adds one, no padding: [prompt][pos].
    spans: name -> one half-open token range per prompt, or None where a prompt lacks the span.
    variables: per prompt, the values of the declared variables (IOI: io, subject, order, template).
    surface: per prompt, what may vary without changing any variable (IOI: place, object).
    strings: per prompt, its tokens as the user sees them; () when the maker had no tokenizer.
    """

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    spans: Mapping[str, tuple[Span | None, ...]] = field(default_factory=dict)
    variables: tuple[Mapping[str, str], ...] = ()
    surface: tuple[Mapping[str, str], ...] = ()
    strings: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.ids)
        put = object.__setattr__  # the dataclass is frozen: copies, so that callers cannot reach in
        put(self, "texts", tuple(self.texts))
        put(self, "ids", tuple(tuple(int(i) for i in row) for row in self.ids))
        spans = {k: tuple(_pair(s) for s in v) for k, v in self.spans.items()}
        # a span that no prompt has is no span: else a subset would differ from the same prompts made alone
        put(self, "spans", FrozenDict({k: v for k, v in spans.items() if len(v) != n or any(v)}))
        put(self, "variables", tuple(FrozenDict(v) for v in self.variables) or (FrozenDict(),) * n)
        put(self, "surface", tuple(FrozenDict(v) for v in self.surface) or (FrozenDict(),) * n)
        put(self, "strings", tuple(tuple(row) for row in self.strings))
        checks.side(self)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        low, high = min(self.lengths), max(self.lengths)
        tokens = f"{low}" if low == high else f"{low} to {high}"
        return f"<{type(self).__name__}: {len(self)} prompts of {tokens} tokens, spans {', '.join(self.spans) or 'none'}>"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each prompt."""
        return tuple(len(row) for row in self.ids)

    def spans_of(self, prompt: int) -> dict[str, Span]:
        """The spans that one prompt has."""
        return {name: at for name, row in self.spans.items() if (at := row[prompt]) is not None}

    def values(self, prompt: int) -> dict[str, str]:
        """Variables and surface of one prompt in one mapping: everything its generator needs to write it."""
        return {**self.surface[prompt], **self.variables[prompt]}

    def take(self, indices: Sequence[int]) -> Side:
        """The prompts at `indices`, in that order."""
        keep = list(indices)
        return replace(
            self,
            texts=tuple(self.texts[i] for i in keep),
            ids=tuple(self.ids[i] for i in keep),
            spans={name: tuple(row[i] for i in keep) for name, row in self.spans.items()},
            variables=tuple(self.variables[i] for i in keep),
            surface=tuple(self.surface[i] for i in keep),
            strings=tuple(self.strings[i] for i in keep) if self.strings else (),
        )

    def content(self) -> dict[str, Any]:
        """What the hash covers, as JSON-able data."""
        return {
            "texts": self.texts,
            "ids": self.ids,
            "spans": self.spans,
            "variables": self.variables,
            "surface": self.surface,
        }


@dataclass(frozen=True, repr=False)
class Donors(Side):
    """Donor prompts, one per pair, token for token aligned with their pair.

    kind: "same_value", "irrelevant" or "wrong_value".
    answers, wrong: for "wrong_value" what should follow the donor, and what to set it against: the base's own
    answer where it has one of its own, else the donor's wrong answer; the two never overlap. () for the other
    kinds, where the task's own answers apply.
    """

    kind: str = ""
    answers: tuple[Continuations, ...] = ()
    wrong: tuple[Continuations, ...] = ()

    def take(self, indices: Sequence[int]) -> Donors:
        """The donors at `indices`, in that order."""
        keep = list(indices)
        base = super().take(keep)
        assert isinstance(base, Donors)
        return replace(
            base,
            answers=tuple(self.answers[i] for i in keep) if self.answers else (),
            wrong=tuple(self.wrong[i] for i in keep) if self.wrong else (),
        )


class Source(Protocol):
    """What made a task and can make more prompts of it."""

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        """One aligned donor per pair; raises TaskError where the task can give none."""

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        """Other prompts of the same task, each aligned with one of the task's prompts."""


@dataclass(frozen=True, repr=False)
class PairTask:
    """n pairs of prompts with what should and should not follow the clean one.

    answers, wrong: per prompt a set of continuations, each a tuple of token ids.
    differs: the variables in which corrupt differs from clean (none declared: empty).
    groups: "template" and "entity": one cluster label per prompt; statistics treat clusters as units.
    metric: "logit_diff" (one answer token against one wrong token), "logprob_diff" (log probability of the
    set of answers minus that of the set of wrong ones), or the name of a metric of your own.
    provenance: where it came from; not part of the hash.
    source: the generator behind it, for donors and reference prompts; None for pairs from a user.

    Raises
    ------
    TaskError: any invariant of the module `checks` is broken; the message names the pair.
    """

    name: str
    clean: Side
    corrupt: Side
    answers: tuple[Continuations, ...]
    wrong: tuple[Continuations, ...]
    differs: frozenset[str] = frozenset()
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metric: str = "logit_diff"
    provenance: Mapping[str, object] = field(default_factory=dict)
    source: Source | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "answers", _continuations(self.answers))
        put(self, "wrong", _continuations(self.wrong))
        put(self, "differs", frozenset(self.differs))
        put(self, "groups", FrozenDict({k: tuple(str(x) for x in v) for k, v in self.groups.items()}))
        put(self, "provenance", FrozenDict(self.provenance))
        checks.task(self)

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        return f"<PairTask {self.name}: {self.n} pairs, metric {self.metric}, hash {self.hash[:12]}>"

    def __hash__(self) -> int:
        return hash(self.hash)

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.clean)

    @cached_property
    def hash(self) -> str:
        """Hex digest (blake2b, 128 bits) of everything but provenance; the same on every platform."""
        content = {
            "name": self.name,
            "clean": self.clean.content(),
            "corrupt": self.corrupt.content(),
            "answers": self.answers,
            "wrong": self.wrong,
            "differs": sorted(self.differs),
            "groups": self.groups,
            "metric": self.metric,
        }
        text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()

    @property
    def aligned(self) -> bool:
        """True when all prompts have the same length and every span lies at the same position in all."""
        return len(set(self.clean.lengths)) == 1 and all(
            len(set(row)) == 1 for row in self.clean.spans.values()
        )

    @property
    def spans(self) -> Mapping[str, tuple[Span | None, ...]]:
        """The spans, equal on both sides: a span is a place in the pair, named by the clean prompt's roles."""
        return self.clean.spans

    def subset(self, indices: Sequence[int]) -> PairTask:
        """The pairs at `indices`, in that order.

        Raises
        ------
        TaskError: an index out of range or named twice, or none at all.
        """
        keep = [int(i) for i in indices]
        checks.indices(keep, self.n)
        return replace(
            self,
            clean=self.clean.take(keep),
            corrupt=self.corrupt.take(keep),
            answers=tuple(self.answers[i] for i in keep),
            wrong=tuple(self.wrong[i] for i in keep),
            groups={by: tuple(row[i] for i in keep) for by, row in self.groups.items()},
        )

    def union(self, other: PairTask) -> PairTask:
        """These pairs, then those of `other` that are not among them; clusters by the groupings that both have.

        Raises
        ------
        TaskError: together they break an invariant of pairs.
        """
        mine = set(zip(self.clean.ids, self.corrupt.ids, strict=True))
        pairs = zip(other.clean.ids, other.corrupt.ids, strict=True)
        new = [i for i, pair in enumerate(pairs) if pair not in mine]
        if not new:
            return self
        rest = other.subset(new)
        return replace(
            self,
            clean=join(self.clean, rest.clean),
            corrupt=join(self.corrupt, rest.corrupt),
            answers=self.answers + rest.answers,
            wrong=self.wrong + rest.wrong,
            groups={by: row + rest.groups[by] for by, row in self.groups.items() if by in rest.groups},
        )

    def swap(self) -> PairTask:
        """Clean and corrupt exchanged: patching then tests necessity (noising) where it tested sufficiency.

        Answers and wrong answers stay: the metric asks the same question of either run.
        """
        swapped = not self.provenance.get("swapped", False)
        return replace(
            self, clean=self.corrupt, corrupt=self.clean, provenance={**self.provenance, "swapped": swapped}
        )

    def split(self, by: str = "template", held_out: float = 0.5, *, seed: int) -> tuple[PairTask, PairTask]:
        """(kept, held out), by whole clusters: no label of `groups[by]` is in both.

        held_out is the share of clusters held out, rounded up, at least one and never all.

        Raises
        ------
        TaskError: no such grouping, fewer than two clusters, or a share outside (0, 1).
        """
        labels = checks.grouping(self, by, held_out)
        clusters = sorted(set(labels))
        order = rng(seed, f"split/{by}").permutation(len(clusters))
        size = min(max(math.ceil(held_out * len(clusters)), 1), len(clusters) - 1)
        away = {clusters[int(k)] for k in order[:size]}
        halves = []
        for part, inside in (("kept", False), ("held out", True)):
            half = self.subset([i for i, label in enumerate(labels) if (label in away) is inside])
            note = {"by": by, "part": part, "held_out": held_out, "seed": seed, "of": self.hash}
            halves.append(replace(half, provenance={**self.provenance, "split": note}))
        return halves[0], halves[1]

    def donors(self, kind: str, seed: int) -> Donors:
        """One donor per pair for the controls of activation patching; the base is `corrupt`.

        "same_value": other surface, every variable as in `clean`: should do what the clean donor does.
        "irrelevant": other surface, every variable as in `corrupt`: should do nothing.
        "wrong_value": another answer than either side's, given in `.answers`, and another value than clean's in every
        variable in which the pair differs: moves a site that holds the answer towards that one, and no site does with
        it what it does with clean.

        A donor depends on its pair, kind and seed only, not on which other pairs the task holds.

        Raises
        ------
        TaskError: the task declares no variables, or cannot give this kind; report the control as not run.
        """
        checks.donor_kind(kind, DONOR_KINDS)
        if self.source is None:
            raise TaskError(
                f'the task "{self.name}" has no {kind} donors',
                why="its pairs declare no variables, so nobody can say which text keeps their values",
                instead="report this control as not run; tasks by name (mt.task) have donors",
            )
        made = self.source.donors(self, kind, seed)
        checks.donors(self, made, kind)
        return made

    def reference(self, n: int, seed: int) -> Side:
        """n other prompts, each aligned with one of the task's: what mean and resample ablation average over.

        With a generator behind the task they are drawn from all of it: same template, every other variable
        and the surface drawn anew; layouts share n evenly. Without one they are a sample of the pairs' own
        prompts, both sides. Spans are those of the prompt whose place a reference prompt takes. Use
        `alignment.match` for which reference prompts fit which prompt.

        Raises
        ------
        TaskError: fewer than n different prompts can be had.
        """
        checks.count(n, "n")
        if self.source is not None:
            return self.source.reference(self, n, seed)
        both = join(self.clean, self.corrupt)
        first = {row: i for i, row in reversed(list(enumerate(both.ids)))}
        own = sorted(first.values())
        if n > len(own):
            raise TaskError(
                f"{n} reference prompts were asked for and there are {len(own)}",
                why="without a generator the reference distribution is the pairs' own prompts, each once",
                instead=f"ask for n <= {len(own)}, or give more pairs",
            )
        pick = rng(seed, "reference").permutation(len(own))[:n]
        return both.take([own[int(k)] for k in pick])


def join(a: Side, b: Side) -> Side:
    """The prompts of `a`, then those of `b`; spans are those of `a`."""
    return Side(
        texts=a.texts + b.texts,
        ids=a.ids + b.ids,
        spans={name: row + b.spans.get(name, (None,) * len(b)) for name, row in a.spans.items()},
        variables=a.variables + b.variables,
        surface=a.surface + b.surface,
        strings=a.strings + b.strings if a.strings and b.strings else (),
    )


def _pair(span: Sequence[int] | None) -> Span | None:
    return None if span is None else (int(span[0]), int(span[1]))


def _continuations(rows: Sequence[Sequence[Sequence[int]]]) -> tuple[Continuations, ...]:
    return tuple(tuple(tuple(int(t) for t in one) for one in row) for row in rows)
