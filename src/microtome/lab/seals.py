"""Seals of predictions: each is a hash of what was predicted and of the seal before, so that an edit afterwards shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.lab import schema

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["FIELDS", "broken", "last", "seal"]

FIELDS = (
    "key",
    "study",
    "person",
    "statement",
    "probability",
    "about",
    "holds",
    "made_at",
    "after_run",
    "post_hoc",
    "claim",
)
"""Columns of `prediction` that a seal covers: what was said before the result, nothing of how it turned out."""


def seal(before: str, row: Mapping[str, Any]) -> str:
    """The seal of a prediction: BLAKE2b (128 bits) of the seal before and the row's fields as canonical JSON.

    before: the seal of the prediction with the next lower number; "" for the first. row: values of the columns, `about` and
    `holds` as the text that is stored.
    """  # fmt: skip
    values = [bool(row[name]) if name == "post_hoc" else row[name] for name in FIELDS]
    said = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.blake2b((before + said).encode("ascii"), digest_size=16).hexdigest()


def last(connection: Connection) -> str:
    """The seal that the next prediction follows. Read in the transaction that writes it."""
    p = schema.prediction
    found = connection.execute(select(p.c.seal).order_by(p.c.number.desc()).limit(1)).scalar()
    return found or ""


def broken(rows: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    """Numbers of the predictions whose seal is not that of their content and of the one before (edited, or one is gone).

    rows: of `prediction`, ordered by number. One without a seal is as much broken as one with a wrong seal.
    """
    found, before = [], ""
    for row in rows:
        if row["seal"] != seal(before, row):
            found.append(int(row["number"]))
        before = row["seal"]
    return tuple(found)
