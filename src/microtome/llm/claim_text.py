"""A claim as plain text with what its evidence rests on: what a red team reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from microtome.errors import ChatError
from microtome.llm.reading import need_text

__all__ = ["ClaimText", "EvidenceText", "claim_from"]


@dataclass(frozen=True)
class EvidenceText:
    """One piece of evidence. method: the technique's registered name, "" where it is none of Microtome's.

    controls: (name, passed); None: it did not run. model, task, sites: what was looked at, for checks to name. n: prompts or texts.
    cells: how many cells the sweep had. seeds: of all its runs. post_hoc: whether the claim was made after seeing it (None: not
    known). judged: whether a language model judged.
    """

    method: str = ""
    summary: str = ""
    controls: tuple[tuple[str, bool | None], ...] = ()
    model: str = ""
    task: str = ""
    sites: tuple[str, ...] = ()
    n: int | None = None
    cells: int | None = None
    seeds: tuple[int, ...] = ()
    post_hoc: bool | None = None
    judged: bool = False


@dataclass(frozen=True)
class ClaimText:
    """A statement, what else could explain the evidence, what would show it to be false, and the evidence."""

    statement: str
    alternatives: tuple[str, ...] = ()
    falsifiers: tuple[str, ...] = ()
    evidence: tuple[EvidenceText, ...] = ()

    def __post_init__(self) -> None:
        need_text(self.statement, "the claim")


def claim_from(data: Any) -> ClaimText:
    """A claim from plain data, as a YAML or JSON file holds it: statement, alternatives, falsifiers, evidence (see `EvidenceText`;
    controls is a mapping of names to true, false or null).

    Raises ChatError for an unknown key and a value of another kind: nothing is dropped or turned into something else.
    """
    told = _known(data, ClaimText, "the claim")
    evidence = told.get("evidence", ())
    if not isinstance(evidence, list | tuple):
        raise _wrong("evidence", evidence, "a list")
    return ClaimText(
        _text(told, "statement"), _texts(told, "alternatives"), _texts(told, "falsifiers"), tuple(_evidence(item) for item in evidence)
    )  # fmt: skip


def _evidence(data: Any) -> EvidenceText:
    told = _known(data, EvidenceText, "a piece of evidence")
    controls = told.get("controls", {})
    if not isinstance(controls, Mapping) or any(not isinstance(k, str) or v not in (True, False, None) or isinstance(v, int | float) and not isinstance(v, bool) for k, v in controls.items()):  # fmt: skip
        raise _wrong("controls", controls, "names with true, false or null")
    seeds = told.get("seeds", ())
    if not isinstance(seeds, list | tuple) or any(
        not isinstance(s, int) or isinstance(s, bool) for s in seeds
    ):
        raise _wrong("seeds", seeds, "a list of whole numbers")
    for key in ("n", "cells"):
        value = told.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _wrong(key, value, "a whole number")
    for key in ("post_hoc", "judged"):
        if not isinstance(told.get(key, False), bool) and told.get(key) is not None:
            raise _wrong(key, told[key], "true or false")
    return EvidenceText(
        _text(told, "method"), _text(told, "summary"), tuple(controls.items()), _text(told, "model"), _text(told, "task"),
        _texts(told, "sites"), told.get("n"), told.get("cells"), tuple(seeds), told.get("post_hoc"), bool(told.get("judged", False)),
    )  # fmt: skip


def _known(data: Any, kind: type, what: str) -> Mapping[str, Any]:
    names = [f.name for f in fields(kind)]
    if not isinstance(data, Mapping):
        raise ChatError(f"{what} is a {type(data).__name__}", why="it is written as names with values", instead="statement: ...")  # fmt: skip
    if unknown := [str(key) for key in data if key not in names]:
        raise ChatError(f"{what} has {', '.join(map(repr, unknown))}", why=f"it has only {', '.join(names)}", instead="correct or remove it")  # fmt: skip
    return data


def _text(told: Mapping[str, Any], key: str) -> str:
    value = told.get(key, "")
    if not isinstance(value, str):
        raise _wrong(key, value, "text")
    return value


def _texts(told: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = told.get(key, ())
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise _wrong(key, value, "a list of texts")
    return tuple(value)


def _wrong(key: str, value: Any, wanted: str) -> ChatError:
    return ChatError(f"{key} is {value!r}"[:200], why=f"it is {wanted}", instead=f"{key}: {wanted}")
