"""Pairs of the user's own, from Python lists or a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.metrics import metric as named
from microtome.tasks import checks
from microtome.tasks.checks import quote
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, PairTask, Span
from microtome.tasks.table import SPAN, Row, check_columns, read

__all__ = ["pairs"]


def pairs(
    model: Any,
    source: str | Path | None = None,
    *,
    clean: Sequence[Any] | None = None,
    corrupt: Sequence[Any] | None = None,
    answer: Sequence[Any] | None = None,
    wrong: Sequence[Any] | None = None,
    metric: str | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> PairTask:
    """A task from prompts of your own: a file, or four lists of equal length.

    clean, corrupt: texts (or lists of token ids); a pair has equal token length, pairs may differ in length.
    answer, wrong: what should and should not follow the clean prompt, its leading space included; a list is a
    set of alternatives; an int is a token id.
    metric: "logit_diff" (the default: one token against one token) or "logprob_diff" (several tokens or sets).
    columns: more columns by name. "template", "entity": cluster labels (an entity label may be a list of
    entities: pairs that share one fall together); "group": both at once; "span:NAME": text that occurs once in
    the clean prompt, or a token range [start, stop].
    A CSV, TSV, JSONL or YAML file has the same columns.

    Nothing is repaired. What looks like a slip but is not an error is in provenance["notes"].

    Raises
    ------
    RegistryError: an unknown metric. TaskError: unreadable file, wrong columns, unequal or identical pairs, answers that do not fit the metric or
    the prompt, spans not found, prompts over the context length, a pair given twice.
    """
    lists = {"clean": clean, "corrupt": corrupt, "answer": answer, "wrong": wrong}
    given = {name: rows for name, rows in lists.items() if rows is not None}
    if source is not None:
        if not isinstance(source, (str, Path)):
            raise TaskError(f"the file is a {type(source).__name__}", why="the model comes first, then the file", instead='mt.pairs(model, "pairs.csv")')  # fmt: skip
        if given or columns:
            raise TaskError(
                f"both the file {quote(str(source))} and {', '.join([*given, *(columns or {})])} were given",
                why="pairs come from one place",
                instead="give the file, or the lists",
            )
        rows, name = read(source), Path(source).stem
    else:
        rows, name = _rows({**given, **(columns or {})}), "pairs"
    built = _Builder(Encoder(model), named(metric or "logit_diff").name)
    for where, cells in rows:
        built.add(where, cells)
    if source is None:
        return built.task(name, {"source": "lists"})
    return built.task(name, {"source": "file", "file": str(source)})


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    check_columns(list(columns), "mt.pairs")
    for name, values in columns.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TaskError(
                f"{name} is a {type(values).__name__}",
                why="each of the columns is a list with one entry per pair",
                instead=f"{name}=[...]",
            )
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise TaskError(
            "the lists have different lengths", why=shown, instead="give one entry per pair in each"
        )
    n = next(iter(sizes.values()))
    if n == 0:
        raise TaskError("there are no pairs", why="the lists are empty", instead="give at least one pair")
    return [(f"pair {i}", {name: values[i] for name, values in columns.items()}) for i in range(n)]


@dataclass
class _Builder:
    """Collects checked rows."""

    encoder: Encoder
    metric: str
    sides: tuple[list[Prompt], list[Prompt]] = field(default_factory=lambda: ([], []))
    spans: list[dict[str, Span]] = field(default_factory=list)
    answers: list[Continuations] = field(default_factory=list)
    wrong: list[Continuations] = field(default_factory=list)
    labels: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: dict[object, str] = field(default_factory=dict)

    def add(self, where: str, cells: Mapping[str, Any]) -> None:
        """Check one row and keep it."""
        clean, corrupt = (_prompt(cells[side], f"{where}: {side}") for side in ("clean", "corrupt"))
        a, b = self._fed(clean, f"{where}: clean"), self._fed(corrupt, f"{where}: corrupt")
        checks.pair(where, a, b, lambda _, ids: self.encoder.strings(ids))
        right, wrong = (self._answers(where, side, cells[side], clean, a) for side in ("answer", "wrong"))
        checks.continuations(where, right, wrong, self.metric, self.encoder.shown)
        self.encoder.fits(where, len(a) + max(len(one) for one in (*right, *wrong)) - 1)
        key = (a, b, frozenset(right), frozenset(wrong))
        if key in self.seen:
            raise TaskError(
                f"{where} is the same pair as {self.seen[key]}",
                why="counted twice, one observation would narrow every interval",
                instead="remove one of them",
            )
        self.seen[key] = where
        self.sides[0].append(clean)
        self.sides[1].append(corrupt)
        self.spans.append(
            {
                name.removeprefix(SPAN): self._span(f"{where}: {name}", value, clean, len(a))
                for name, value in cells.items()
                if name.startswith(SPAN) and value is not None and value != ""
            }
        )
        self.answers.append(right)
        self.wrong.append(wrong)
        self.labels.append(cells)

    def _fed(self, prompt: Prompt, where: str) -> tuple[int, ...]:
        if prompt.ids is None and not prompt.text.strip():
            raise TaskError(
                f"{where} is empty: {quote(prompt.text)}",
                why="there is nothing to read",
                instead="give it text",
            )
        ids = self.encoder.ids(prompt.text) if prompt.ids is None else prompt.ids
        if prompt.text.endswith(" ") and prompt.ids is None:
            self.notes.append(
                f"{where} ends with a space, which most tokenizers put into the next word's token"
            )
        self.encoder.fits(where, len(ids))
        return ids

    def _answers(
        self, where: str, what: str, value: Any, prompt: Prompt, fed: tuple[int, ...]
    ) -> Continuations:
        options = value if isinstance(value, (list, tuple)) else [value]
        out: list[tuple[int, ...]] = []
        for option in options:
            if prompt.ids is not None and type(option) is int:
                out.append((option,))
                continue
            if not isinstance(option, str):
                raise TaskError(
                    f"{where}: {what} is {_brief(option)}",
                    why="what follows a text is text (YAML reads no, 17 and 1.5 as values); what follows ids may be an id",
                    instead="put it in quotes",
                )
            out.append(self._continuation(f"{where}: {what}", option, prompt, fed))
        return tuple(out)

    def _continuation(self, where: str, text: str, prompt: Prompt, fed: tuple[int, ...]) -> tuple[int, ...]:
        """The answer's tokens, with hints where a space decides."""
        if not text:
            raise TaskError(f"{where} is empty", why="it has no token to score", instead="give it text")
        if prompt.ids is not None:
            return self.encoder.plain(text)
        ids = self.encoder.continuation(prompt.text, text, f"{where} ")
        spaced = " " + text.lstrip(" ")
        could = text != spaced and self.encoder.single(spaced)
        if self.metric == "logit_diff" and len(ids) > 1:
            hints = [f"{quote(spaced)}, with a leading space, is one token"] if could else []
            if prompt.text.endswith(" "):
                hints.append("the prompt ends with a space: end it without one and start the answer with it")
            hints.append('metric="logprob_diff" (--metric logprob_diff) scores whole continuations')
            raise TaskError(
                f"{where} {quote(text)} is {len(ids)} tokens: {self.encoder.shown(ids)}",
                why='the metric "logit_diff" compares one token with one token',
                instead="; or ".join(hints),
            )
        if could and not text[0].isspace() and not prompt.text[-1].isspace() and text[0].isalpha():
            self.notes.append(
                f"{where} {quote(text)} follows {quote(prompt.text[-12:])} without a space; {quote(spaced)} is one token too"
            )
        return ids

    def _span(self, where: str, value: Any, prompt: Prompt, length: int) -> Span:
        """A span given as text that occurs once in the clean prompt, or as a token range."""
        if where.endswith(SPAN + "end"):
            raise TaskError(
                f"{where}: this name is taken",
                why='"end" is the last token of every prompt',
                instead="rename it",
            )
        if isinstance(value, (list, tuple)) and len(value) == 2 and all(type(v) is int for v in value):
            if not 0 <= value[0] < value[1] <= length:
                raise TaskError(
                    f"{where} is {value[0]}:{value[1]}, the prompt has {length} tokens",
                    why="spans are half-open token ranges inside the prompt",
                    instead=f"use 0 <= start < stop <= {length}",
                )
            return value[0], value[1]
        if isinstance(value, str) and ":" in value and value.replace(":", "", 1).isdecimal():
            return self._span(where, [int(part) for part in value.split(":")], prompt, length)
        if not isinstance(value, str) or prompt.ids is not None:
            raise TaskError(
                f"{where} is {_brief(value)}",
                why="a span is text or a token range",
                instead="for example [3, 5]",
            )
        word = value.strip()
        times = prompt.text.count(word) if word else 0
        if times != 1:
            raise TaskError(
                f"{where}: {quote(value)} occurs {times} times in {quote(prompt.text)}",
                why="a span given as text must say which place it means",
                instead="give more of the text, or a token range such as 3:5",
            )
        start = prompt.text.index(word)
        return self.encoder.encode(Prompt(prompt.text, {"span": (start, start + len(word))})).slots["span"]

    def task(self, name: str, origin: Mapping[str, str]) -> PairTask:
        """The task of all rows. origin: what its provenance says of where they came from."""
        groups, declared = _groups(self.labels)
        return PairTask(
            name=name,
            clean=to_side(self.encoder, self.sides[0], self.spans),
            corrupt=to_side(self.encoder, self.sides[1], self.spans),
            answers=tuple(self.answers),
            wrong=tuple(self.wrong),
            groups=groups,
            metric=self.metric,
            provenance={
                "task": name,
                "n": len(self.labels),
                **origin,
                "groups": declared,
                "notes": tuple(self.notes),
            },
        )


def _prompt(value: Any, where: str) -> Prompt:
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return Prompt(" ".join(str(v) for v in value), {}, tuple(value))
    raise TaskError(
        f"{where} is {_brief(value)}",
        why="a prompt is text, or a list of token ids",
        instead="put it in quotes",
    )


def _groups(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Cluster labels by template and entity, and how each came about; a pair of its own where none is given."""
    groups, declared = {}, {}
    for by in ("template", "entity"):
        column = by if any(by in row for row in rows) else "group"
        if all(row.get(column) in (None, "") for row in rows):
            groups[by] = tuple(f"pair-{i}" for i in range(len(rows)))
            declared[by] = "none given: every pair is a cluster of its own"
            continue
        labels = [_labels(row.get(column), f"pair {i}: {column}") for i, row in enumerate(rows)]
        groups[by] = _components(labels)
        declared[by] = f"column {column}"
    return groups, declared


def _labels(value: Any, where: str) -> list[str]:
    every = value if isinstance(value, (list, tuple)) else [value]
    if not every or any(not isinstance(v, (str, int)) or isinstance(v, bool) or v == "" for v in every):
        raise TaskError(
            f"{where} is {_brief(value)}",
            why="once one pair has a label every pair needs one: a cluster of unknown pairs is no cluster",
            instead="give a word (or a list of words) for each pair",
        )
    return [str(v) for v in every]


def _components(labels: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """One label per row; rows that share any label, directly or through others, get the same one."""
    parent: dict[str, str] = {}

    def root(label: str) -> str:
        parent.setdefault(label, label)
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    for row in labels:
        for other in row[1:]:
            a, b = sorted((root(row[0]), root(other)))
            parent[b] = a
    return tuple(root(row[0]) for row in labels)


def _brief(value: Any) -> str:
    """A value for a message; containers by size only, for a file may nest them without end."""
    if value is None or isinstance(value, (str, int, float)):
        return (
            f"{quote(repr(value)) if isinstance(value, str) else repr(value)[:60]} ({type(value).__name__})"
        )
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")
