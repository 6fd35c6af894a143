"""From what was typed to a model and pairs: the same for every command that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli.watch import steps
from microtome.errors import TaskError

if TYPE_CHECKING:
    from microtome.directions.direction import Direction
    from microtome.facade import Model as LoadedModel
    from microtome.tasks.labelled import LabelledText
    from microtome.tasks.word_pairs import WordPairs

DEFAULT = "smollm2-135m-instruct"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".yaml", ".yml")

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="Embedded model, hub id, local folder or .gguf file."),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, ...; default: chosen and explained.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps; default: chosen and explained.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", help="Of the project; default: the one around here.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def is_file(task: str) -> bool:
    """Whether TASK|FILE means a file: by its ending, or because it is one and no task has that name."""
    if task.lower().endswith(SUFFIXES):
        return True
    if not Path(task).is_file():
        return False
    from microtome.tasks import names

    return task not in names()


def check(task: str) -> None:
    """Find a mistyped task or an unreadable file now, before a model is loaded for it."""
    if is_file(task):
        from microtome.tasks.table import read

        read(task)
    else:
        from microtome.tasks import describe

        describe(task)


NOTES_SHOWN = 5
TEXTS = 32
"""Texts that two models are compared on, unless another number is asked for."""


def notes(task: object) -> list[str]:
    """What looks like a slip in pairs of the user's own (an answer without its leading space), a line each."""
    said = list(getattr(task, "provenance", {}).get("notes", ()))
    more = [f"note: {len(said) - NOTES_SHOWN} more of this kind"] if len(said) > NOTES_SHOWN else []
    return [f"note: {one}" for one in said[:NOTES_SHOWN]] + more


def load(name: str, dtype: str | None = None, device: str | None = None) -> LoadedModel:
    """The model, with its slow steps told on stderr."""
    import microtome

    with steps() as say:
        model: Any = microtome.load(name, dtype=dtype, device=device, progress=say)
    return model


def texts(data: str | None, n: int | None, seed: int) -> Callable[[LoadedModel], object]:
    """n texts (None: 32, fewer where there are no more): of a file or a built-in dataset of labelled text, of a folder or file of plain text, or, for None, passages of the
    standard library's. They are found now, and cut to what a model reads when there is one.

    Raises
    ------
    TaskError, RegistryError: what cannot be read or is not there.
    """  # fmt: skip
    from microtome.results import registry
    from microtome.tasks.corpus import corpus
    from microtome.tasks.dataset import labelled

    if data is not None and (data in registry.names("datasets") or data.lower().endswith(TABLES)):
        rows = labelled(data, n=n, seed=seed)
        rows = labelled(data, n=TEXTS, seed=seed) if n is None and len(rows) > TEXTS else rows
        return lambda _: rows
    text = corpus(data)
    return lambda model: text.passages(model, n or TEXTS, seed=seed)


def labels(name: str, n: int | None, seed: int) -> LabelledText:
    """Labelled text by its name or from a file; n texts (None: of a dataset as many as it gives by itself, at most 400; of a file all).

    Raises
    ------
    TaskError, RegistryError: what cannot be read or is not there.
    """  # fmt: skip
    from microtome.tasks.dataset import labelled

    return labelled(name, n=n, seed=seed)


def lines(path: Path | None) -> list[str]:
    """The lines of a text file that hold text; open beginnings of sentences for None.

    Raises
    ------
    TaskError: it cannot be read, or holds none.
    """
    from microtome.tasks.openings import OPENINGS
    from microtome.tasks.table import read_text

    if path is None:
        return list(OPENINGS)
    found = [line for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise TaskError(
            f"{path} holds no prompt", why="every line is empty", instead="write one prompt a line"
        )
    return found


def word_pairs(name: str) -> WordPairs:
    """Word pairs by name, or of a file with the columns word and answer.

    Raises
    ------
    TaskError: no such relation (the nearest is suggested), or a file that holds no such pairs.
    """
    from microtome.tasks.word_pairs import WordPairs
    from microtome.tasks.word_pairs import word_pairs as named

    if not name.lower().endswith(TABLES) and not Path(name).is_file():
        return named(name)
    from microtome.tasks.table import Layout, read

    rows = read(name, Layout(("word", "answer"), (), "pairs", closed=False, lists=False, formats=("csv", "tsv", "jsonl", "parquet")))  # fmt: skip
    made = tuple((str(cells["word"]).strip(), str(cells["answer"]).strip()) for _, cells in rows)
    return WordPairs(Path(name).stem, made, "word -> answer", Path(name).name)


def answerable(given: WordPairs, model: Any, n: int | None, seed: int) -> WordPairs:
    """n of the pairs whose answer is one token of this model after a space (None: all of them), in an order that the seed gives.

    Raises
    ------
    TaskError: there are not so many, or none.
    """
    from dataclasses import replace

    from microtome.tasks.word_pairs import KINDS
    from microtome.tasks.word_pairs import word_pairs as chosen

    built_in = given.name in KINDS and not given.source.lower().endswith(TABLES)
    kept = chosen(given.name if built_in else given.pairs, model, n, seed)
    return replace(given, pairs=kept.pairs, provenance=kept.provenance)


def direction(site: str) -> str | Direction:
    """An address as it is; the folder of a saved direction as that.

    Raises
    ------
    ResourceError: a folder that holds none. SiteError: no address.
    """
    from microtome.sites import parse

    if Path(site).is_dir():
        from microtome.directions.direction import Direction

        return Direction.load(site)
    parse(site)
    return site
