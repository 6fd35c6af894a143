"""What all methods on prompt pairs share: base and donor, columns of positions, metrics, clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from microtome.errors import ResultError, TaskError
from microtome.metrics import metric, scoring
from microtome.replay.plan import Cell, Change
from microtome.replay.sweep import Bench, Settings
from microtome.results.technique import progress
from microtome.sites import At, Site, expand_all

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.results.result import Result
    from microtome.tasks.pairs import PairTask, Side

Mode = Literal["denoise", "noise"]
Label = str | int
REST = "rest"


@dataclass(frozen=True)
class Column:
    """One column of a sweep: a position, a span, or "rest" (whatever no named span covers).

    Where prompts differ it is a name, resolved per prompt by `names`; `labels` shows what is there in prompt 0.
    """

    label: Label
    names: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Setting:
    """A task seen in one direction.

    mode "denoise": clean activations into corrupt runs (sufficiency); "noise": corrupt into clean ones (necessity).
    """

    model: Model
    task: PairTask
    mode: Mode
    bench: Bench
    base: Side
    donor: Side
    clusters: tuple[str, ...]
    metrics: tuple[str, ...]

    def with_answers(
        self,
        answers: Sequence[tuple[tuple[int, ...], ...]],
        wrong: Sequence[tuple[tuple[int, ...], ...]],
        name: str,
    ) -> Bench:
        """The same base prompts under another question."""
        return Bench(
            self.model.binding,
            self.base.ids,
            scoring(answers, wrong),
            (metric(name),),
            self.bench.spans,
            self.bench.memo,
        )

    def donor_bench(self) -> Bench:
        """The donor prompts under the same question."""
        return replace(self.bench, ids=self.donor.ids, spans=())


def setting(model: Model, task: PairTask, mode: Mode = "denoise", metrics: Sequence[str] = ()) -> Setting:
    """Base, donor and scoring of a task.

    Raises
    ------
    TaskError: an unknown mode, or a metric that does not fit the answers.
    """
    if mode not in ("denoise", "noise"):
        raise TaskError(
            f"mode={mode!r} is not a direction",
            why="patching goes from clean to corrupt or back",
            instead='"denoise" or "noise"',
        )
    names = tuple(metrics) or (task.metric,)
    plan = scoring(task.answers, task.wrong)
    if "logit_diff" in names and not plan.single:
        raise TaskError(
            "logit_diff needs single-token answers",
            why="some answers here are longer, or sets",
            instead='metrics=("logprob_diff",)',
        )
    base, donor = (task.corrupt, task.clean) if mode == "denoise" else (task.clean, task.corrupt)
    spans = [base.spans_of(i) for i in range(len(base))]
    bench = Bench(model.binding, base.ids, plan, tuple(metric(n) for n in names), spans)
    return Setting(model, task, mode, bench, base, donor, clusters_of(task), names)


def clusters_of(task: PairTask) -> tuple[str, ...]:
    """Template labels where declared, else entities, else every prompt by itself."""
    for by in ("template", "entity"):
        if by in task.groups and len(set(task.groups[by])) > 1:
            return task.groups[by]
    return tuple(f"prompt-{i}" for i in range(task.n))


def columns(s: Setting, positions: Sequence[Label] | None) -> tuple[list[Column], Setting]:
    """The columns of a sweep, and the setting with the names they need.

    positions None: every position where all prompts have one length and layout, else every span that all prompts
    have, and the rest. Integers count tokens; they are refused for prompts that are not aligned.

    Raises
    ------
    TaskError: integer positions other than -1 for unaligned prompts, or a span that a prompt lacks.
    """
    aligned = s.task.aligned
    if positions is None:
        positions = list(range(len(s.base.ids[0]))) if aligned else [*common(s.base), REST]
    spans: list[dict[str, tuple[int, int] | None]] = [dict(s.base.spans_of(i)) for i in range(len(s.base))]
    out = []
    for label in positions:
        if isinstance(label, int) and not aligned and label >= 0:
            raise TaskError(f"position {label} is another place in each prompt", why="these prompts are not aligned",
                            instead=f"use spans: {', '.join(common(s.base))}, or -1")  # fmt: skip
        out.append(_column(s, label, spans))
    return out, replace(s, bench=replace(s.bench, spans=spans))


def common(side: Side) -> list[str]:
    """Spans that all prompts have, in order of their mean place."""
    names = [n for n, row in side.spans.items() if all(r is not None for r in row)]
    where = {
        n: np.mean([r[0] / len(ids) for r, ids in zip(side.spans[n], side.ids, strict=True) if r is not None])
        for n in names
    }
    return sorted(names, key=lambda n: float(where[n]))


def _column(s: Setting, label: Label, spans: list[dict[str, tuple[int, int] | None]]) -> Column:
    strings = s.model.strings(s.base.ids[0])
    if isinstance(label, int):
        name = f"position {label}"
        for i, ids in enumerate(s.base.ids):
            spans[i][name] = At(label, single=True).resolve(len(ids))
        return Column(label, (name,), strings[label])
    if label == REST:
        return _rest(s, spans)
    missing = [i for i in range(len(s.base)) if spans[i].get(label) is None]
    if missing:
        raise TaskError(
            f'prompt {missing[0]} has no span "{label}"',
            why="a column needs its place in every prompt",
            instead=f"spans of all prompts: {', '.join(common(s.base))}",
        )
    low, high = spans[0][label] or (0, 0)
    return Column(label, (label,), "".join(strings[low:high]))


def _rest(s: Setting, spans: list[dict[str, tuple[int, int] | None]]) -> Column:
    most = 0
    for i, ids in enumerate(s.base.ids):
        covered = {c for n in common(s.base) if (r := spans[i][n]) is not None for c in range(*r)}
        runs: list[tuple[int, int]] = []
        for c in (c for c in range(len(ids)) if c not in covered):
            runs = [*runs[:-1], (runs[-1][0], c + 1)] if runs and runs[-1][1] == c else [*runs, (c, c + 1)]
        spans[i].update({f"{REST} {k}": run for k, run in enumerate(runs)})
        most = max(most, len(runs))
    return Column(REST, tuple(f"{REST} {k}" for k in range(most)), "all other tokens")


def cell(site: Site, column: Column | None, source: str = "donor") -> Cell:
    """One site at one column (None: every position)."""
    if column is None:
        return Cell((Change(site, None, source),), str(site))
    optional = column.label == REST
    return Cell(
        tuple(Change(site, At(span=name), source, optional) for name in column.names),
        f"{site}@{column.label}",
    )


def same_question(given: Result, model: Model, task: PairTask, what: str) -> None:
    """Refuse a result of another model or other pairs where this one's numbers are needed.

    Raises
    ------
    ResultError: which of the two differs.
    """
    asked = given.query
    if asked is None:
        return
    for name, mine, theirs in (("model", model.hash, asked.model), ("task", task.hash, asked.task)):
        if theirs and theirs != mine:
            raise ResultError(
                f"the {what} is a result of another {name}",
                why=f"it was measured on {theirs[:12]}, this call is about {mine[:12]}",
                instead=f"run {asked.method} on the same {name}",
            )


def shares(task: PairTask, held_out: PairTask) -> str:
    """Why `held_out` is not held out from `task`, in words; "" where no pair and no cluster of the split is in both.

    The split is by template where the pairs say so (`task.split`), by entity where both have entities, else by pair.
    """
    both = {*zip(task.clean.ids, task.corrupt.ids, strict=True)}
    again = sum(pair in both for pair in zip(held_out.clean.ids, held_out.corrupt.ids, strict=True))
    if again:
        return f"{again} of {held_out.n} held-out pairs are among those explored"
    by = split_by(held_out)
    common = sorted(set(task.groups.get(by, ())) & set(held_out.groups.get(by, ())))
    return f"the {by} {common[0]!r} is on both sides" if common else ""


def split_by(held_out: PairTask) -> Literal["template", "entity"]:
    """What the held-out prompts do not share with the others; by pair counts as by entity."""
    note = held_out.provenance.get("split")
    return "template" if isinstance(note, Mapping) and note.get("by") == "template" else "entity"


def settings(note: str = "", unit: str = "sweep") -> Settings:
    """Sweep settings that report progress to observers."""
    return Settings(progress=lambda done, total: progress(min(done, total), total, unit, note))


def sites_of(model: Model, sites: str | Sequence[str]) -> list[Site]:
    """Single bare sites, in model order."""
    return [s.bare for s in expand_all(sites, model.facts)]


def examples(
    model: Model, side: Side, values: Mapping[int, Mapping[str, object]], seed: int, k: int = 4
) -> list[dict[str, object]]:
    """Random (not chosen) prompts with what was measured on them, for `raw_examples`."""
    from microtome.results import seeds

    pick = sorted(seeds.rng(seed, "raw_examples").permutation(len(side))[:k].tolist())
    return [
        {"prompt": side.texts[i], "tokens": list(model.strings(side.ids[i])), **values.get(i, {})}
        for i in pick
    ]
