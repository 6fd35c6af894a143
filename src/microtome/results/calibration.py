"""How often a technique is right on models whose mechanism is known, read from a shipped data file.

``calibration.json`` holds ``{"schema_version": 1, "entries": {technique: {version: entry}}}`` with entries
``{"code_hash": hex, "models": int, "date": "YYYY-MM-DD", "rates": {name: [rate, low, high]}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ResultError

NOT_CALIBRATED = "not calibrated"
_FILE = Path(__file__).with_name("calibration.json")
_SCHEMA = 1


def calibration_line(technique: str, version: str, code_hash: str) -> str:
    """One sentence on how far this very code has been measured; "not calibrated" where it has not.

    An entry of another version does not count. One of other code counts no longer: the sentence then begins
    with "not calibrated" too and says why. Raises ResultError when the file is damaged or newer.
    """
    entry = _entries(_FILE).get(technique, {}).get(str(version))
    if entry is None:
        return NOT_CALIBRATED
    try:
        if entry["code_hash"] != code_hash:
            return f"{NOT_CALIBRATED}: the code has changed since the calibration of {entry['date']}"
        rates = ", ".join(
            f"{name} {float(rate):.2g} [{float(low):.2g}, {float(high):.2g}]"
            for name, (rate, low, high) in sorted(entry["rates"].items())
        )
        return (
            f"calibrated on {int(entry['models'])} models of known mechanism ({entry['date']}): {rates}. "
            "Small models: not a bound for yours."
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"entry {technique!r} {version!r}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=4)
def _entries(path: Path) -> Mapping[str, Any]:
    from .frozen import loads

    try:
        content = loads(path.read_text(encoding="utf-8"))
        schema, entries = content["schema_version"], content["entries"]
        nested = isinstance(entries, Mapping) and all(isinstance(e, Mapping) for e in entries.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error
    if schema != _SCHEMA or not nested:
        raise _damaged(f"schema_version is {schema!r}, this Microtome reads {_SCHEMA}")
    return entries


def _damaged(why: str) -> ResultError:
    return ResultError("the calibration file cannot be read", why=why, instead="reinstall microtome")
