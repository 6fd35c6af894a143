"""What a record shows of a raw look: its prompts, shortened, and how much was left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .values import type_name

__all__ = ["look_of"]

MOST_PROMPTS = 20
MOST_CHARACTERS = 400
MOST_IDS = 100


def look_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The prompts of a look (`Event.arguments` at a look: "model" and "prompts") as JSON-able data.

    "prompts": at most MOST_PROMPTS, each a text of at most MOST_CHARACTERS or a list of at most MOST_IDS token ids; "of": how many
    there were (None where that is not known); "said": what was left out, "" if nothing. Prompts of a type that is not known give
    none, and "said" names the type.
    """
    prompts = _rows(arguments.get("prompts"))
    if prompts is None:
        name = type_name(arguments.get("prompts"))
        return {"prompts": [], "of": None, "said": f"prompts of the type {name} are not shown"}
    shown = [_short(p) for p in prompts[:MOST_PROMPTS]]
    said = []
    if len(prompts) > MOST_PROMPTS:
        said.append(f"{MOST_PROMPTS} of {len(prompts)} prompts are shown")
    if cut := sum(len(p) > _most(p) for p in prompts[:MOST_PROMPTS]):
        said.append(f"{cut} of those shown are cut at {MOST_CHARACTERS} characters or {MOST_IDS} tokens")
    return {"prompts": shown, "of": len(prompts), "said": "; ".join(said)}


def _rows(prompts: Any) -> list[str | list[int]] | None:
    """Each prompt as text, or as ids where it has no text; None for an unknown form."""
    texts = getattr(prompts, "texts", None)  # a side of a task, labelled text
    if isinstance(texts, list | tuple):
        return [str(t) for t in texts]
    if isinstance(prompts, str):
        return [prompts]
    rows: Any = prompts
    if hasattr(prompts, "rows") and callable(prompts.rows):  # tokens
        rows = prompts.rows()
    elif hasattr(prompts, "tolist"):
        rows = prompts.tolist()
    if not isinstance(rows, list | tuple):
        return None
    if rows and all(_is_id(i) for i in rows):
        rows = [rows]
    if all(isinstance(row, str) for row in rows):
        return [str.__str__(row) for row in rows]
    plain = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if all(
        isinstance(row, str) or (isinstance(row, list | tuple) and all(_is_id(i) for i in row))
        for row in plain
    ):
        return [row if isinstance(row, str) else [int(i) for i in row] for row in plain]
    return None


def _is_id(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _short(prompt: str | list[int]) -> str | list[int]:
    return prompt[: _most(prompt)]


def _most(prompt: str | list[int]) -> int:
    return MOST_CHARACTERS if isinstance(prompt, str) else MOST_IDS
