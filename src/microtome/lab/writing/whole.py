"""A file that appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from microtome.errors import ResourceError

__all__ = ["write_whole"]


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file, replacing an older one; its absolute path. Raises ResourceError when it cannot be written."""
    place = Path(path).expanduser().absolute()
    fresh = place.with_name(f".{place.name}.{os.urandom(6).hex()}.new")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(content)
        os.replace(fresh, place)
    except OSError as error:
        with contextlib.suppress(OSError):  # there only if something went wrong half-way
            fresh.unlink()
        raise ResourceError(
            f"{place} cannot be written",
            why=error.strerror or str(error),
            instead="another path, or free some space",
        ) from error
    return place
