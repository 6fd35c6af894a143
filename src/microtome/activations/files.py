"""A store's folder: what is written when, so that a kill at any moment leaves something that can be gone on with.

    cursor.json               what was asked, how far it is, digests of what is written; replaced after every window
    items.safetensors         token ids
    shard-0000.safetensors    activations; ends in .partial until the last window is in it
    manifest.json             written last: a folder that has it is whole; the cursor goes then

Bytes reach the disk before the cursor that counts them takes its name, so what a cursor counts is there, also after a
power cut; what it does not count is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microtome.errors import ResourceError
from microtome.model import paths

__all__ = ["CURSOR", "FORMAT", "ITEMS", "LOCK", "MANIFEST", "PARTIAL", "SCHEMA_VERSION", "Disk", "digest_of", "read_json"]  # fmt: skip

FORMAT, SCHEMA_VERSION = "microtome.activations", 1
MANIFEST, CURSOR, ITEMS, LOCK, PARTIAL = "manifest.json", "cursor.json", "items.safetensors", ".lock", ".partial"  # fmt: skip


class Disk:
    """The two operations on which durability rests. Tests put another in `disk` that stops at any of them."""

    def fsync(self, path: Path) -> None:
        """Force a file's content or a folder's names to the disk."""
        paths.fsync(path)

    def rename(self, old: Path, new: Path) -> None:
        """Give a finished file its name; a file of that name is replaced."""
        os.replace(old, new)


disk = Disk()


def digest_of(content: Any) -> str:
    """Hex digest (sha256, 128 bits) of bytes."""
    return hashlib.sha256(content).hexdigest()[:32]


def put(path: Path, content: bytes) -> None:
    """Replace a file in one step, durably."""
    fresh = path.with_name(path.name + PARTIAL)
    fresh.write_bytes(content)
    disk.fsync(fresh)
    disk.rename(fresh, path)
    disk.fsync(path.parent)


def put_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that carries its own digest."""
    text = json.dumps({**content, "digest": _own(content)}, indent=None, separators=(",", ":"))
    put(path, text.encode("ascii"))


def read_json(path: Path) -> dict[str, Any]:
    """What `put_json` wrote.

    Raises
    ------
    ResourceError: missing, of another kind, of a newer schema, or changed since.
    """
    folder = path.parent
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ResourceError(f"{path} cannot be read", why=str(error), instead="give a folder that mt.store wrote") from error  # fmt: skip
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ResourceError(f"{folder} is no store", why=f"{path.name} is of another kind", instead="give a folder that mt.store wrote")  # fmt: skip
    schema = found.get("schema_version")
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise ResourceError(f"the store in {folder} has schema version {schema}", why=f"this Microtome reads up to {SCHEMA_VERSION}",
                            instead="upgrade microtome")  # fmt: skip
    told = found.pop("digest", None)
    if told != _own(found):
        raise ResourceError(f"{path} is not the file that was written", why="its digest differs", instead="capture anew in a new folder")  # fmt: skip
    return found


def _own(content: Mapping[str, Any]) -> str:
    return digest_of(json.dumps(content, sort_keys=True).encode("ascii"))


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """A disk that becomes full, as an error that says what is kept.

    Raises
    ------
    ResourceError: no space is left, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if paths.is_disk_full(error):
            raise ResourceError(f"the disk became full while {folder} was written", why=str(error),
                                instead="free some space and call mt.store again with the same arguments: it goes on where it was") from error  # fmt: skip
        raise ResourceError(f"{folder} cannot be written", why=str(error), instead="choose a folder that you may write to") from error  # fmt: skip
