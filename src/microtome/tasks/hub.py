"""Datasets of the Hugging Face library `datasets`: from a folder or the local cache, over the network only when told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microtome.errors import ResourceError, TaskError
from microtome.model.hub import ONLINE_VARIABLE, online
from microtome.results.arguments import suggest
from microtome.tasks.checks import quote

__all__ = ["open_dataset", "rows_of"]


def rows_of(address: str, split: str) -> tuple[list[tuple[str, Mapping[str, Any]]], dict[str, Any]]:
    """All rows of a dataset with where each stands, and its provenance; labels of a ClassLabel column by their names.

    Raises as `open_dataset`.
    """
    found, provenance = open_dataset(address, split)
    names = {k: list(f.names) for k, f in (found.features or {}).items() if hasattr(f, "int2str")}
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for i, row in enumerate(found):
        cells = {k: names[k][v] if k in names and isinstance(v, int) and 0 <= v < len(names[k]) else v for k, v in row.items()}  # fmt: skip
        rows.append((f"{address} row {i}", cells))
    if not rows:
        raise TaskError(f"{quote(address)} has no rows", why=f'the split "{split}" is empty', instead="name another split")  # fmt: skip
    return rows, provenance


def open_dataset(address: str, split: str, *, streaming: bool = False) -> tuple[Any, dict[str, Any]]:
    """A dataset by "hf:NAME", "hf:NAME:CONFIG" or "hf:FOLDER", and where it is from. streaming: read as it is iterated.

    Raises
    ------
    ResourceError: no `datasets` library, a dataset that is not here and may not be fetched, or cannot be. TaskError: no such split,
    a folder that holds no dataset.
    """
    library = _library()
    name = address.removeprefix("hf:")
    folder = Path(name)
    if folder.is_dir():
        found = _folder(library, folder, split, streaming)
    else:
        found = _named(library, name, split, streaming)
    revision = str(getattr(found.info, "version", None) or "")
    provenance = {"hub": address if not folder.is_dir() else f"hf:{folder.name}", "split": split, "datasets": library.__version__,
                  "revision": revision, "fingerprint": getattr(found, "_fingerprint", None)}  # fmt: skip
    return found, provenance


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ResourceError("the library `datasets` is not installed", why="it reads Hugging Face datasets, and is an extra of Microtome",
                            instead="pip install 'microtome[data]', or give a CSV, JSONL or Parquet file") from error  # fmt: skip
    return datasets


def _folder(library: Any, folder: Path, split: str, streaming: bool) -> Any:
    """What `save_to_disk` wrote, or a folder of data files."""
    names = {p.name for p in folder.iterdir()}
    if names & {"state.json", "dataset_dict.json"}:
        with _silent(library):
            found = library.load_from_disk(str(folder))
        if isinstance(found, library.DatasetDict):
            return _split(found, split, folder.name)
        return found
    if not any(p.suffix in (".parquet", ".jsonl", ".json", ".csv", ".arrow") for p in folder.rglob("*")):
        raise TaskError(f"{quote(str(folder))} holds no dataset", why=f"it has {', '.join(sorted(names)[:5]) or 'nothing'} in it",
                        instead="a folder written by save_to_disk, or one of .parquet, .jsonl or .csv files")  # fmt: skip
    with _silent(library):
        return _split(library.load_dataset(str(folder), streaming=streaming), split, folder.name)


def _named(library: Any, name: str, split: str, streaming: bool) -> Any:
    path, _, config = name.partition(":")
    try:
        with _silent(library), _network(library, online()):
            return library.load_dataset(path, config or None, split=split, streaming=streaming)
    except (OSError, ValueError, ConnectionError) as error:
        # the library has no error of its own for a wrong split; its message begins so
        if "Unknown split" in str(error):
            raise TaskError(f'{quote(name)} has no split "{split}"', why=" ".join(str(error).split())[:200], instead="name one of these") from error  # fmt: skip
        said = " ".join(str(error).split())[:200]
        how = (
            "check the name"
            if online()
            else f"set {ONLINE_VARIABLE}=1 to let it be fetched, or give a folder: hf:FOLDER"
        )
        raise ResourceError(f"the dataset {quote(name)} is not here", why=f"{type(error).__name__}: {said}", instead=how) from error  # fmt: skip


def _split(found: Any, split: str, name: str) -> Any:
    if split not in found:
        raise TaskError(f'{name} has no split "{split}"', why=f"it has {', '.join(found)}", instead=suggest(split, found))  # fmt: skip
    return found[split]


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """No progress bars; whether they were on is put back."""
    was = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            library.utils.logging.enable_progress_bar()


@contextmanager
def _network(library: Any, allowed: bool) -> Iterator[None]:
    """The library offline unless allowed; its setting is put back."""
    was = library.config.HF_HUB_OFFLINE
    library.config.HF_HUB_OFFLINE = was or not allowed
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE = was
