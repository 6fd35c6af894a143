"""What is wrong with labelled data before anything is fitted to it: leaks, duplicates, and labels that the surface tells.

Every check that could fire by chance is compared with the same number under shuffled labels, and all of them together
raise a false alarm at most at the stated rate. Checks of identity (a group or a text on both sides of a split) have no
chance in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from microtome.errors import TaskError
from microtome.tasks import checks
from microtome.tasks import lint_duplicates as duplicates
from microtome.tasks import lint_surface as surface
from microtome.tasks.checks import quote
from microtome.tasks.labelled import LabelledText

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALPHA", "SEVERITIES", "Finding", "Lint", "lint"]

ALPHA = 0.05  # chance of any false alarm on clean data, all checks of chance together
SEVERITIES = ("error", "warning", "note")
_RARE = 0.5  # a class is rare below this share of what even classes would have
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing found.

    kind: "overlap", "leak:NAME" (NAME a grouping), "duplicate", "near_duplicate", "balance", "label_word", "word", "length",
    "position:NAME" (NAME a span), "groups".
    severity: "error" (numbers from this data would mean something else than they say), "warning" (look before you go on),
    "note" (to be known).
    statistic: its number; null: what shuffled labels reach in 95 % of draws; p: share of draws that reach it, or NaN.
    """

    kind: str
    severity: str
    detail: str
    examples: tuple[str, ...] = ()
    statistic: float = float("nan")
    null: float = float("nan")
    p: float = float("nan")


@dataclass(frozen=True, repr=False)
class Lint:
    """What was found, and what was looked for.

    findings: errors first. measured: every check of chance that ran, found something or not.
    alpha: a check of chance fires at alpha divided by how many ran.
    """

    data: str
    hash: str
    findings: tuple[Finding, ...]
    measured: tuple[surface.Measured, ...]
    alpha: float = ALPHA
    draws: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity "error"."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def clean(self) -> bool:
        """Whether nothing but notes was found."""
        return all(f.severity == "note" for f in self.findings)

    def frame(self) -> pd.DataFrame:
        """One row per finding: kind, severity, detail, statistic, null, p, examples."""
        import pandas as pd

        names = ("kind", "severity", "detail", "statistic", "null", "p", "examples")
        rows = [
            {n: getattr(f, n) if n != "examples" else "; ".join(f.examples) for n in names}
            for f in self.findings
        ]
        return pd.DataFrame(rows, columns=list(names))

    def checks(self) -> pd.DataFrame:
        """One row per check of chance: kind, what was extreme, statistic, null (95 % of draws), p, whether it fired."""
        import pandas as pd

        level = self.alpha / max(1, len(self.measured))
        rows = [
            {
                "kind": m.kind,
                "what": m.what,
                "statistic": m.statistic,
                "null": m.null,
                "p": m.p,
                "fired": m.p <= level,
            }
            for m in self.measured
        ]
        return pd.DataFrame(rows, columns=["kind", "what", "statistic", "null", "p", "fired"])

    def __repr__(self) -> str:
        if not self.findings:
            return f"<Lint {self.data}: nothing found, {len(self.measured)} checks of chance at {self.alpha:g} together>"
        lines = [f"  {f.severity}: {f.kind}: {f.detail}" for f in self.findings]
        return "\n".join([f"<Lint {self.data}: {len(self.findings)} findings>", *lines])


Split = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def lint(
    data: LabelledText,
    split: Split | None = None,
    tokenizer: Any = None,
    *,
    seed: int = 0,
    draws: int = 999,
    alpha: float = ALPHA,
) -> Lint:
    """Look for leaks across a split, and for a label that can be read from the surface.

    split: parts as `data.split` gives them, or name -> indices. tokenizer: its tokens are checked beside words.
    draws: of shuffled labels. Labels that belong to whole groups (every text of an entity has the same) are shuffled among
    groups, others among texts.

    Found are: indices, groups and equal or nearly equal texts in more than one part; classes that are rare or missing; the
    name of a class in its texts; single words or tokens, lengths, and positions of spans that tell the class better than
    shuffled labels let any do. Near duplicates: words in common make up 80 % of both, those that many texts have counting less.

    Raises
    ------
    TaskError: a part that is empty or has an index that the data lacks, too few draws to reach alpha.
    """
    parts = _parts(split, len(data))
    context = surface.prepare(data, tokenizer, checks.count(draws, "draws"), seed)
    measured = surface.measure(context)
    shared = {name: _shared(row, parts) for name, row in data.groups.items()} if parts else {}
    measured += [
        m
        for name, groups in shared.items()
        if groups
        for m in surface.group_tells(context, name, parts, groups)
    ]
    if measured and 1 / (draws + 1) > alpha / len(measured):
        raise TaskError(f"{draws} draws for {len(measured)} checks at {alpha:g} together", why=f"the smallest p they can reach is {1 / (draws + 1):.2g}",
                        instead=f"draws={int(len(measured) / alpha)} or more")  # fmt: skip
    level = alpha / max(1, len(measured))
    found = [
        *_overlap(parts),
        *_leaks(shared, {m.kind: m for m in measured}, level),
        *duplicates.find(data, parts, context.spelled),
        *_balance(data, parts),
        *(_of_chance(m) for m in measured if m.p <= level and not m.kind.startswith("leak:")),
        *_groups(data),
    ]
    order = sorted(found, key=lambda f: SEVERITIES.index(f.severity))
    return Lint(data.name, data.hash, tuple(order), tuple(measured), alpha, draws, data.counts)


def _parts(split: Split | None, n: int) -> dict[str, tuple[int, ...]]:
    if split is None:
        return {}
    if not isinstance(split, Mapping):
        names = (
            ("train", "validation", "test")
            if len(split) == 3
            else ("train", "test")
            if len(split) == 2
            else None
        )
        split = dict(zip(names or [f"part {i}" for i in range(len(split))], split, strict=True))
    parts = {name: tuple(int(i) for i in members) for name, members in split.items()}
    for name, members in parts.items():
        if not members or min(members) < 0 or max(members) >= n:
            raise TaskError(f"the part {quote(name)} of the split is empty or has an index that is no text", why=f"there are {n} texts",
                            instead="indices from 0 to n - 1, as data.split gives them")  # fmt: skip
    return parts


def _overlap(parts: Mapping[str, Sequence[int]]) -> list[Finding]:
    where: dict[int, list[str]] = {}
    for name, members in parts.items():
        for i in members:
            where.setdefault(i, []).append(name)
    twice = [i for i, names in where.items() if len(names) > 1]
    if not twice:
        return []
    detail = f"{len(twice)} texts are in more than one part of the split, or twice in one"
    return [
        Finding(
            "overlap",
            "error",
            detail,
            tuple(f"text {i}: {', '.join(where[i])}" for i in twice[:_SHOWN]),
            len(twice),
        )
    ]


def _shared(row: Sequence[str], parts: Mapping[str, Sequence[int]]) -> list[str]:
    """The groups that more than one part has."""
    homes: dict[str, set[str]] = {}
    for name, members in parts.items():
        for i in members:
            homes.setdefault(row[i], set()).add(name)
    return sorted(group for group, names in homes.items() if len(names) > 1)


def _leaks(shared: Mapping[str, Sequence[str]], measured: Mapping[str, surface.Measured], level: float) -> list[Finding]:  # fmt: skip
    out = []
    for name, groups in shared.items():
        if not groups:
            continue
        m = measured.get(f"leak:{name}")
        tells = m is not None and m.p <= level
        # a template that both parts have, and that says nothing of the label, only leaves new templates untested
        severity = "error" if tells else "note" if name == "template" else "warning"
        how = (
            "its labels there follow from those in the first part"
            if tells
            else "its labels there do not follow from those in the first part"
        )
        detail = f"{len(groups)} groups of {quote(name)} lie in more than one part of the split; {how}"
        numbers = (m.statistic, m.null, m.p) if m else ()
        out.append(Finding(f"leak:{name}", severity, detail, tuple(groups[:_SHOWN]), *numbers))
    return out


def _balance(data: LabelledText, parts: Mapping[str, Sequence[int]]) -> list[Finding]:
    out = []
    for part, members in {"the data": range(len(data)), **parts}.items():
        labels = [data.labels[i] for i in members]
        used = (
            [i for i in range(len(data.classes)) if i in set(data.labels)]
            if part != "the data"
            else range(len(data.classes))
        )
        for i in used:
            share = labels.count(i) / len(labels)
            if share == 0 or share < _RARE / len(data.classes):
                severity = "warning" if share else "error"
                said = f"{data.classes[i]!r} has {labels.count(i)} of {len(labels)} texts of {part}"
                detail = (
                    f"{said}: accuracy means little, read AUPRC beside its base rate"
                    if share
                    else f"{said}: nothing can be said of it there"
                )
                out.append(Finding("balance", severity, detail, (), share, 1 / len(data.classes)))
    return out


def _of_chance(m: surface.Measured) -> Finding:
    severity = "error" if m.kind == "label_word" or m.statistic >= 0.9 else "warning"
    return Finding(m.kind, severity, m.detail, m.examples, m.statistic, m.null, m.p)


def _groups(data: LabelledText) -> list[Finding]:
    if data.groups:
        return []
    return [
        Finding(
            "groups",
            "note",
            "the data has no groups: a split cannot keep apart texts that share a template or an entity",
        )
    ]
