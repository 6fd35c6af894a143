"""From marks to rates over models, to the shipped file and to the page of the docs."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from microtome.errors import ResultError
from microtome.results import calibration, registry
from microtome.results.calibration import rate_text
from microtome.zoo.calibrate.adapters import SILENT, Setting, settings
from microtome.zoo.calibrate.measures import Mark, rate
from microtome.zoo.calibrate.plan import jobs
from microtome.zoo.calibrate.runs import Line, identity

TIERS = ("A", "B")


def summarise(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One row per setting and tier: models, rates with intervals over models (clusters: zoo entries), refusals, seconds."""
    by_id = {s.id: s for s in settings()}
    rows = []
    for name, setting in by_id.items():
        of_setting = [x for x in lines if f"{x['technique']}/{x['setting']}" == name]
        for tier in TIERS:
            mine = [x for x in of_setting if x["tier"] == tier]
            if mine:
                rows.append(_row(setting, tier, mine))
    return rows


def _row(setting: Setting, tier: str, lines: Sequence[Line]) -> dict[str, Any]:
    marked = [(x["name"], Mark(**x["mark"])) for x in lines if "mark" in x]
    clusters = [name for name, _ in marked]
    values = [m.rates() for _, m in marked]
    rates = {
        k: rate([v[k] for v in values], clusters)
        for k in ("recall", "false discoveries", "false alarms", "auroc")
    }
    shares = [m.covered / m.intervals if m.intervals else float("nan") for _, m in marked]
    rates["coverage"] = rate(shares, clusters)
    return {
        "technique": setting.technique,
        "setting": setting.name,
        "kind": setting.kind,
        "ablation": setting.ablation,
        "threshold": setting.threshold,
        "tier": tier,
        "models": len(marked),
        "programs": len(set(clusters)),
        "true": sum(m.true for _, m in marked),
        "undecided": sum(m.undecided for _, m in marked),
        "null": sum(m.null for _, m in marked),
        "rates": rates,
        "refused": dict(Counter(x["refused"] for x in lines if "refused" in x)),
        "seconds": round(sum(x["seconds"] for x in lines) / len(lines), 3),
    }


def entries(rows: Sequence[Mapping[str, Any]], date: str) -> dict[str, dict[str, Any]]:
    """technique -> version -> entry of the shipped file, of the techniques that have rows, and of those that flag nothing."""
    out: dict[str, dict[str, Any]] = {}
    by_id = {s.id: s for s in settings()}
    for technique in dict.fromkeys(r["technique"] for r in rows):
        made: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["technique"] != technique:
                continue
            setting = by_id[f"{technique}/{row['setting']}"]
            one = made.setdefault(
                setting.name,
                {"name": setting.name, "kind": setting.kind, "ablation": setting.ablation, "threshold": setting.threshold,
                 "match": dict(setting.match), "tiers": {}},
            )  # fmt: skip
            one["tiers"][row["tier"]] = {k: row[k] for k in ("models", "programs", "true", "undecided", "null", "rates", "refused", "seconds")}  # fmt: skip
        version, code = identity(technique)
        out[technique] = {version: {"code_hash": code, "date": date, "settings": list(made.values())}}
    return out


def silent(date: str) -> dict[str, dict[str, Any]]:
    """Entries of the techniques that flag nothing, with the reason."""
    out = {}
    for technique, why in SILENT.items():
        version, code = identity(technique)
        out[technique] = {version: {"code_hash": code, "date": date, "silent": why}}
    return out


def counts(lines: Sequence[Line]) -> dict[str, list[int]]:
    """Job -> [true, hits, alarms], of the jobs that a quick run repeats."""
    quick = {job.id for job in jobs(quick=True)}
    return {x["job"]: _counted(x) for x in lines if x["job"] in quick}


def _counted(line: Line) -> list[int]:
    return [line["mark"][k] for k in ("true", "hits", "alarms")] if "mark" in line else []


def differences(lines: Sequence[Line]) -> list[str]:
    """Where a quick run counts otherwise than the shipped file says it did; [] where all is the same.

    What the hash of a technique's code leaves out (decision 0015) shows here when it moves a number.
    """
    known = calibration.shipped().get("quick", {})
    out = []
    for line in lines:
        was, found = known.get(line["job"]), _counted(line)
        if was is None or list(was) != found:
            out.append(f"{line['job']}: {_said(found)}, shipped: {'nothing' if was is None else _said(was)}")
    return out


def _said(counted: Sequence[int]) -> str:
    return "{1} of {0} found, {2} false".format(*counted) if counted else "refused"


def write(
    lines: Sequence[Line], coverage: Sequence[Mapping[str, Any]], date: str, path: Path | None = None
) -> Path:
    """Put the rates of these techniques into the shipped file; entries of techniques that no longer exist are dropped.

    Raises
    ------
    ResultError: the file cannot be written (an installed package may be read-only).
    """
    target = path or calibration._FILE
    old = calibration.shipped()
    known = registry.names("techniques")
    quick = {job.id for job in jobs(quick=True)}
    kept = {k: v for k, v in old.get("quick", {}).items() if k in quick} | counts(lines)
    merged = {k: v for k, v in old["entries"].items() if k in known}
    merged |= silent(date) | entries(summarise(lines), date)
    content = {
        "schema_version": calibration.SCHEMA,
        "date": date,
        "coverage": list(coverage),
        "quick": kept,
        "entries": {k: merged[k] for k in sorted(merged)},
    }
    fresh = target.with_suffix(".new")
    try:
        fresh.write_text(
            json.dumps(calibration.plain(content), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(fresh, target)
    except OSError as error:
        raise ResultError(f"{target} cannot be written to", why=error.strerror or str(error),
                          instead="run this in a checkout of Microtome") from error  # fmt: skip
    calibration._content.cache_clear()
    return target


def stale() -> dict[str, str]:
    """technique -> what is wrong with its shipped entry: none of this version, other code, other settings. {} when fresh."""
    out = {}
    shipped = calibration.shipped()["entries"]
    declared: dict[str, list[str]] = {}
    for s in settings():
        declared.setdefault(s.technique, []).append(s.name)
    for technique in (*declared, *SILENT):
        version, code = identity(technique)
        entry = shipped.get(technique, {}).get(version)
        if entry is None:
            out[technique] = f"version {version} has no entry"
        elif entry["code_hash"] != code:
            out[technique] = f"its code has changed since the calibration of {entry['date']}"
        elif [s["name"] for s in entry.get("settings", ())] != declared.get(technique, []):
            out[technique] = f"its settings have changed since the calibration of {entry['date']}"
    return out


HEAD = (
    "technique",
    "setting",
    "parts",
    "truth by",
    "models",
    "true, open, null",
    "recall",
    "false discoveries",
    "false alarms",
    "AUROC",
    "intervals over 0",
    "threshold",
)


def cells(name: str, setting: Mapping[str, Any], tier: Mapping[str, Any]) -> tuple[str, ...]:
    """One line of a table of rates."""
    rates = tier["rates"]
    refused = sum(tier["refused"].values())
    models = f"{tier['models']} of {tier['programs']} entries" + (f", {refused} refused" if refused else "")
    parts = f"{tier['true']:,}, {tier['undecided']:,}, {tier['null']:,}"
    numbers = [
        rate_text(rates[k]) for k in ("recall", "false discoveries", "false alarms", "auroc", "coverage")
    ]
    about = (name, setting["name"], setting["kind"], setting["ablation"])
    return (*about, models, parts, *numbers, setting["threshold"])


def page() -> str:
    """The page of the docs, from the shipped file alone."""
    content = calibration.shipped()
    found = [
        (technique, versions[max(versions, key=_number)])
        for technique, versions in sorted(content["entries"].items())
    ]
    parts = [
        _INTRO.format(
            when=f"Measured on {content['date']}." if content["date"] else "Nothing has been measured yet."
        )
    ]
    for tier, text in _TIERS.items():
        lines = [cells(technique, setting, setting["tiers"][tier]) for technique, entry in found
                 for setting in entry.get("settings", ()) if tier in setting["tiers"]]  # fmt: skip
        if lines:
            parts.append(f"{text}\n\n{_markdown(HEAD, lines)}")
            parts += _notes(found, tier)
    if content["coverage"]:
        rows = [(c["name"], f"{c['n']:,}", f"{c['coverage']:.3f}", f"{c['low']:,} to {c['high']:,}", "yes" if c["accepted"] else "**no**")
                for c in content["coverage"]]  # fmt: skip
        parts.append(
            f"{_COVERAGE}\n\n{_markdown(('0.95 intervals of', 'replicates', 'coverage', 'accepted hits', 'accepted'), rows)}"
        )
    quiet = [(f"`{technique}`", entry["silent"]) for technique, entry in found if "silent" in entry]
    if quiet:
        parts.append(f"## Techniques that flag nothing\n\n{_markdown(('technique', 'why'), quiet)}")
    return "\n\n".join(part.rstrip() for part in parts)


def _number(version: str) -> tuple[int, str]:
    return (int(version), "") if version.isdigit() else (-1, version)


def _notes(found: Sequence[tuple[str, Mapping[str, Any]]], tier: str) -> list[str]:
    """Why specimens were refused, and how many parts were counted."""
    lines = []
    for technique, entry in found:
        for setting in entry.get("settings", ()):
            for why, n in setting["tiers"].get(tier, {}).get("refused", {}).items():
                lines.append(f"- {technique}, {setting['name']}: refused on {n}: {' '.join(why.split())}")
    return [f"Refused (tier {tier}):\n\n" + "\n".join(lines)] if lines else []


def _markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(parts: Sequence[object]) -> str:
        return "| " + " | ".join(" ".join(str(c).replace("|", "\\|").split()) for c in parts) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


_INTRO = """# Calibration

How often each technique is right on models whose mechanism is known (`microtome calibrate`). {when} **Small models: not a bound
for yours.** The sentence beside a result is the line of its technique, in the setting that it was called with; a technique whose
code has changed since says "not calibrated" (decision 0015).

- *truth by*: a part counts as true when it belongs to the mechanism and its exact ablation by this value (zero, mean, resample; corrupt
  or clean: the values of the other prompt) moves a logit at the last position. Parts outside the mechanism are null. Parts of the
  mechanism that the ablation does not confirm are open and count as neither (*true, open, null*: how many parts there are of each).
- *recall*: flagged among true parts. *false discoveries*: null parts among those flagged, over models in which something was flagged.
  *false alarms*: flagged among null parts. *AUROC*: of the scores, ties counting one half. *intervals over 0*: null parts whose 0.95
  interval has 0 in it (up to rounding). Each is a mean over models with its 0.95 interval; variants of one entry (other decoys)
  are one cluster. The interval is Clopper-Pearson's where every model gives 0 or 1, else a cluster t interval.
- *flagged where*: the rule of a flag, the threshold."""
_TIERS = {
    "A": "## Tier A: true by construction",
    "B": "## Tier B: trained, mechanism published\n\nWhat is true of these models is what others found in their like, so a "
    "false alarm may be a find. They count in no sentence beside a result.",
}
_COVERAGE = """## Coverage of intervals

Replicates whose truth is known: synthetic effects for the interval functions, and prompts drawn again and again from effects that
were measured on a planted part. Accepted hits: an interval that keeps its word falls outside with a chance of 0.001 (exact binomial)."""
