"""`mt.labelled`: labelled text from lists, a file, a Hugging Face dataset, or a built-in one by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.results import registry
from microtome.tasks import table
from microtome.tasks.checks import count, quote
from microtome.tasks.labelled import LabelledText, of_lists
from microtome.tasks.rng import rng

__all__ = ["labelled"]

GROUPS = ("template", "entity", "group")
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MISSING = {
    "",
    "nan",
    "NaN",
    "NAN",
    "null",
    "NULL",
    "None",
    "NA",
    "N/A",
    "#N/A",
    "<NA>",
}  # as written: "none" may be a class


def labelled(
    source: str | Path | Sequence[str],
    labels: Sequence[Any] | None = None,
    groups: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str = "",
) -> LabelledText:
    """Labelled text.

    source: one of
        - a list of texts, with `labels` and, if any, `groups` (name -> one label per text, or a list of them);
        - a file (.csv, .tsv, .jsonl, .parquet) with the columns text and label, and, if any, template, entity, group;
        - the name of a built-in dataset, or of an installed package's ("cities"; `microtome tasks datasets`);
        - "hf:NAME" or "hf:NAME:CONFIG": a dataset of the Hugging Face library `datasets`, or "hf:FOLDER" for one saved by
          it; from the local cache only, unless MICROTOME_ONLINE=1.
    labels: booleans, 0 and 1, or names of classes; of two, the one that sorts last is the positive class.
    n, seed: how many texts; a built-in dataset is generated, of others n are drawn by the seed.
    columns: where the columns are called otherwise, role -> column: {"text": "sentence", "label": "sentiment"}. Every role
        but text and label is a grouping, so {"speaker": "speaker_id"} adds one.
    split: of a Hugging Face dataset; default "train".
    name: of the dataset, for titles.

    What is no error but should be known (texts given twice, columns not used) is in provenance["notes"].

    Raises
    ------
    TaskError: labels that are not labels, missing ones, one class only, empty texts, a text with two labels, missing columns
    (the nearest is suggested), files that cannot be read, more texts asked for than there are. RegistryError: no built-in
    dataset of that name. ResourceError: a Hugging Face dataset that is not here, or no `datasets` library.
    """
    if not isinstance(source, str | Path):
        if labels is None:
            raise TaskError(
                "texts without labels", why="each text needs one", instead="mt.labelled(texts, labels)"
            )
        return _some(of_lists(source, labels, groups, name=name or "user"), n, seed)
    if labels is not None or groups is not None:
        raise TaskError(f"{quote(str(source))} and lists of labels or groups", why="a file or a named dataset brings its own",
                        instead="columns={\"label\": NAME} says which column, or give the texts as a list")  # fmt: skip
    text = str(source)
    if text.startswith("hf:"):
        from microtome.tasks.hub import rows_of

        rows, provenance = rows_of(text, split or "train")
        return _some(_from_rows(rows, columns, name or text, provenance), n, seed)
    if split is not None:
        raise TaskError(f"split={split!r} for {quote(text)}", why="only Hugging Face datasets have named splits",
                        instead="data.split(0.6, 0.2, 0.2, seed=0) splits any data")  # fmt: skip
    if isinstance(source, Path) or _is_file(text):
        rows = table.read(source, _layout(columns))
        return _some(
            _from_rows(rows, columns, name or Path(source).stem, {"file": Path(source).name}), n, seed
        )
    return _built_in(text, n, seed, columns, name)


def _layout(columns: Mapping[str, str] | None) -> table.Layout:
    named = _roles(columns)
    groups = tuple(c for role, c in named.items() if role not in ("text", "label"))
    return table.Layout((named["text"], named["label"]), groups, "texts", closed=False, lists=False,
                        formats=("csv", "tsv", "jsonl", "parquet"))  # fmt: skip


def _roles(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Role -> column, with the defaults filled in."""
    return {"text": "text", "label": "label", **{g: g for g in GROUPS}, **(columns or {})}


def _is_file(text: str) -> bool:
    if text.lower().endswith((*ENDINGS, ".yaml", ".yml", ".txt", ".json")):
        return True
    return Path(text).is_file() and text not in registry.names("datasets")


def _built_in(
    text: str, n: int | None, seed: int, columns: Mapping[str, str] | None, name: str
) -> LabelledText:
    if columns:
        raise TaskError(f"columns for the built-in dataset {quote(text)}", why="it is generated and has no columns",
                        instead="leave columns out")  # fmt: skip
    made: Any = registry.get("datasets", text)
    data = made(n, seed)
    if not isinstance(data, LabelledText):
        raise TaskError(f'the dataset "{text}" returned a {type(data).__name__}', why="a dataset is a function (n, seed) -> LabelledText",
                        instead="correct the package that provides it")  # fmt: skip
    return replace(data, name=name) if name else data


def _from_rows(
    rows: Sequence[table.Row], columns: Mapping[str, str] | None, name: str, provenance: Mapping[str, Any]
) -> LabelledText:
    """Rows of a file or of a dataset, as labelled text."""
    roles = _roles(columns)
    found = {c for _, cells in rows for c in cells}
    for role in columns or {}:
        if roles[role] not in found:
            raise TaskError(f"{name}: the column {quote(roles[role])} is missing", why=f"found {', '.join(sorted(found))}",
                            instead=f'columns={{"{role}": ...}} names one of these')  # fmt: skip
    used = {role: column for role, column in roles.items() if column in found}
    texts = [_text(cells, used["text"], where) for where, cells in rows]
    labels = [_label(cells.get(used["label"]), where) for where, cells in rows]
    groups = {
        role: [_group(cells.get(column), column, where) for where, cells in rows]
        for role, column in used.items()
        if role not in ("text", "label")
    }
    data = of_lists(texts, labels, groups, name=name)
    spans = {
        c.removeprefix(table.SPAN): tuple(_span(cells.get(c), text, where) for (where, cells), text in zip(rows, texts, strict=True))
        for c in sorted(found)
        if c.startswith(table.SPAN)
    }  # fmt: skip
    unused = sorted(c for c in found if c not in used.values() and not c.startswith(table.SPAN))
    notes = [
        *data.provenance.get("notes", ()),
        *([f"columns not used: {', '.join(unused)}"] if unused else []),
    ]
    return replace(
        data, spans=spans, provenance={**data.provenance, **provenance, "columns": used, "notes": notes}
    )


def _text(cells: Mapping[str, Any], column: str, where: str) -> str:
    text = cells.get(column)
    if not isinstance(text, str) or not text.strip():
        raise TaskError(
            f"{where}: the text is {text!r}",
            why="a text has at least one letter",
            instead="leave the row out",
        )
    return text


def _label(value: Any, where: str) -> Any:
    """As in the file; an integer that a table of text spells is an integer, what a missing value looks like is one."""
    if value is None or (isinstance(value, str) and value.strip() in _MISSING):
        raise TaskError(f"{where} has no label ({value!r})", why="nothing can be learned or tested on it",
                        instead="leave it out, or label it")  # fmt: skip
    if isinstance(value, str):
        return int(value) if value.strip().lstrip("-").isdecimal() else value.strip()
    return value


def _group(value: Any, column: str, where: str) -> str:
    if value is None or value != value or str(value).strip() == "":
        raise TaskError(f"{where}: the grouping {quote(column)} is empty", why="a text without a group could lie on both sides of a split",
                        instead="give every text its group, or leave the column out")  # fmt: skip
    return str(value)


def _span(value: Any, text: str, where: str) -> tuple[int, int] | None:
    if value in (None, ""):
        return None
    if not isinstance(value, str) or text.count(value) != 1:
        raise TaskError(f"{where}: the span {value!r} is {text.count(str(value))} times in the text", why="a span is text that occurs once",
                        instead="give more of the words around it, or leave the cell empty")  # fmt: skip
    at = text.index(value)
    return at, at + len(value)


def _some(data: LabelledText, n: int | None, seed: int) -> LabelledText:
    """n of the texts, drawn by the seed, in the order they had; all of them without n."""
    if n is None or count(n, "n") == len(data):
        return data
    if n > len(data):
        raise TaskError(
            f"{data.name} has no {n} texts", why=f"it has {len(data)}", instead=f"n={len(data)} or fewer"
        )
    keep = sorted(int(i) for i in rng(seed, f"labelled/{data.name}").permutation(len(data))[:n])
    some = data.subset(keep)
    if len(set(some.labels)) < len(set(data.labels)):
        raise TaskError(
            f"{n} texts drawn from {data.name} lack a class",
            why=f"it has {data.counts}",
            instead="a larger n, or another seed",
        )
    return replace(some, provenance={**data.provenance, "n": n, "of": len(data), "seed": seed})
