"""How often a technique is right on models whose mechanism is known, read from a shipped data file.

``calibration.json``, written by ``microtome calibrate --write``, holds ``{"schema_version": 2, "date": "YYYY-MM-DD", "coverage":
[...], "quick": {job: [true, hits, alarms]}, "entries": {technique: {version: entry}}}``. An entry is ``{"code_hash": hex, "date": ..., "silent": why}`` of a technique that
flags nothing, else ``{"code_hash", "date", "settings": [setting...]}``, the first of which stands for calls that say nothing
else. A setting is ``{"name", "kind", "ablation", "threshold", "match": {parameter: value}, "tiers": {"A": {"models": int, ...,
"rates": {"recall": {"value", "low", "high", "n", "clusters"}, "false discoveries": ..., "false alarms": ..., ...}}}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MicrotomeError, ResultError

if TYPE_CHECKING:
    from .result import Result

NOT_CALIBRATED = "not calibrated"
NO_BOUND = "Small models: not a bound for yours."
RATES = ("recall", "false discoveries", "false alarms")
_FILE = Path(__file__).with_name("calibration.json")
SCHEMA = 2
_TIER = "A"


def calibration_of(result: Result) -> str:
    """The sentence to show beside a result: `calibration_line` of its query, by the code that is installed here."""
    query = result.query
    # without an entry of this version nobody needs the technique's code
    if query is None or _entry(query.method, query.version) is None:
        return NOT_CALIBRATED
    return calibration_line(query.method, query.version, technique_hash(query.method), query.parameters)


def technique_hash(technique: str) -> str:
    """`reach_hash` of the module that defines a technique; "" where it is not installed here."""
    from . import registry
    from .source import reach_hash

    try:
        home = registry.module_of("techniques", technique)
    except MicrotomeError:
        return ""
    return reach_hash(home) if home else ""


def calibration_line(
    technique: str, version: str, code_hash: str, parameters: Mapping[str, Any] | None = None
) -> str:
    """One sentence on how often this very code, called in this way, is right on models of tier A.

    It begins with "not calibrated" where there is no entry of this version, where its code has changed since, where the
    technique flags nothing, and where no setting that was calibrated has these parameters (None: the first setting's).

    Raises
    ------
    ResultError: the file is damaged or newer.
    """
    entry = _entry(technique, version)
    if entry is None:
        return NOT_CALIBRATED
    try:
        if entry["code_hash"] != code_hash:
            return f"{NOT_CALIBRATED}: the code has changed since the calibration of {entry['date']}"
        if "silent" in entry:
            return f"{NOT_CALIBRATED}: {entry['silent']}"
        setting = _setting(entry["settings"], parameters)
        if setting is None:
            return f"{NOT_CALIBRATED} in this setting (calibrated: {'; '.join(s['name'] for s in entry['settings'])})"
        tier = setting["tiers"].get(_TIER)
        if tier is None or not tier["models"]:
            return f"{NOT_CALIBRATED}: no constructed model has what {setting['name']} needs"
        return _sentence(setting, tier)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(f"entry {technique!r} {version!r}: {type(error).__name__}: {error}") from error


def _sentence(setting: Mapping[str, Any], tier: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate_text(tier['rates'][name])}" for name in RATES)
    return f"On {int(tier['models'])} constructed models: {rates} at the threshold {setting['threshold']} ({setting['name']}). {NO_BOUND}"


def rate_text(rate: Mapping[str, Any]) -> str:
    """A rate with its interval: 0.93 [0.88, 0.97]; "unknown" where there was nothing to count."""
    value, low, high = (None if rate[k] is None else float(rate[k]) for k in ("value", "low", "high"))
    if value is None:
        return "unknown"
    return f"{value:.2g}" if low is None or high is None else f"{value:.2g} [{low:.2g}, {high:.2g}]"


def _setting(settings: Any, parameters: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The setting with most parameters in common among those that contradict none."""
    if parameters is None:
        return dict(settings[0])
    fits = [s for s in settings if all(_is(_inside(parameters, k), v) for k, v in s["match"].items())]
    return max(fits, key=lambda s: len(s["match"])) if fits else None


def _is(found: Any, wanted: Any) -> bool:
    """Equal, or one of several; sequences are compared by what they hold."""
    many = plain(wanted)
    return plain(found) in many if isinstance(many, list) else found == many


def _inside(parameters: Mapping[str, Any], name: str) -> Any:
    """A parameter, or with dots a part of one; None where there is none."""
    found: Any = parameters
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _entry(technique: str, version: str) -> Any:
    of_technique: Mapping[str, Any] = shipped()["entries"].get(technique, {})
    return of_technique.get(str(version))


def shipped() -> Mapping[str, Any]:
    """The whole of the shipped file.

    Raises
    ------
    ResultError: it is damaged or newer.
    """
    return _content(_FILE)


@lru_cache(maxsize=4)
def _content(path: Path) -> Mapping[str, Any]:
    from .frozen import loads

    try:
        content: Mapping[str, Any] = loads(path.read_text(encoding="utf-8"))
        schema, entries = content["schema_version"], content["entries"]
        nested = isinstance(entries, Mapping) and all(isinstance(e, Mapping) for e in entries.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(f"{type(error).__name__}: {error}") from error
    if schema != SCHEMA or not nested:
        raise _damaged(f"schema_version is {schema!r}, this Microtome reads {SCHEMA}")
    return content


def plain(value: Any) -> Any:
    """Frozen JSON as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _damaged(why: str) -> ResultError:
    return ResultError("the calibration file cannot be read", why=why, instead="reinstall microtome")
