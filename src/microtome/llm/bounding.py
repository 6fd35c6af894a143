"""An answer of an HTTP server may be only so large, and only so long nothing but signs of life."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["MOST_BYTES", "SIGNS", "TooMuch", "bounded"]

MOST_BYTES = 20_000_000
SIGNS = 10
"""Times the settings' timeout: a server that loads a model says so by comments and blanks, and not forever."""


class TooMuch(Exception):
    """More came than an answer has, or nothing of an answer came."""


def bounded(library: Any, timeout: float) -> Callable[[Any], None]:
    """A response hook that bounds what is read of each answer. library: httpx or httpx2.

    What is compressed is refused: it was not asked for, and a few bytes of it may be gigabytes. What is read raises TooMuch.
    """

    class Stream(library.SyncByteStream):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __iter__(self) -> Iterator[bytes]:
            size, heard = 0, time.monotonic()
            for piece in self.inner:
                size += len(piece)
                if size > MOST_BYTES:
                    raise TooMuch(f"it sent more than {MOST_BYTES:,} bytes")
                heard = heard if _sign_of_life(piece) else time.monotonic()
                if time.monotonic() - heard > SIGNS * timeout:
                    raise TooMuch(f"it sent nothing but signs of life for {SIGNS * timeout:g} s")
                yield piece

        def close(self) -> None:
            self.inner.close()

    def hook(response: Any) -> None:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise TooMuch(f"it sent {coding[:40]!r}, which was not asked for")
        response.stream = Stream(response.stream)

    return hook


def _sign_of_life(piece: bytes) -> bool:
    """Comments of server-sent events (lines that begin with a colon) and blanks."""
    return all(not line or line.startswith(b":") for line in map(bytes.strip, piece.splitlines()))
