"""Structure out of the answer of a model that may be weak: found in its text, checked, asked for once more, or refused.

Nothing is repaired. An answer either holds exactly one JSON value that fits what was asked for, or it is no answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microtome.errors import ChatError
from microtome.llm.chat import GREEDY, Chat, Message, Reply, Sampling, UnusableAnswer
from microtome.llm.replies import shown

__all__ = ["Structured", "ask_for", "find_value", "problems", "squeeze"]

LONGEST = 1_000_000
MOST_STARTS = 300
MOST_SHOWN = 6
_FENCE = re.compile(r"^[ \t]*(```|~~~)[^\n`]*\n(.*?)^[ \t]*\1", re.MULTILINE | re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
}  # fmt: skip
_KEYWORDS = {"type", "properties", "items", "enum", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"}  # fmt: skip


@dataclass(frozen=True)
class Structured:
    """A value that fits its schema, and the replies that it took (two where it was asked for again)."""

    value: Any
    replies: tuple[Reply, ...]


def ask_for(
    chat: Chat,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    *,
    sampling: Sampling = GREEDY,
    retries: int = 1,
    check: Callable[[Any], Sequence[str]] | None = None,
) -> Structured:
    """A JSON value of the model that fits the schema (see `problems`), and in which `check` finds nothing wrong.

    The schema is told to the model after the last message. An answer that does not fit is shown to it with what is wrong,
    `retries` times; not where the chat can be asked but once (`Pasting` over files).

    Raises
    ------
    UnusableAnswer: it did not fit in the end (`came` is the last answer). ChatError: as the chat raises.
    """
    last = messages[-1]
    asked = [*messages[:-1], Message(last.role, f"{last.content.rstrip()}\n\n{_instructions(schema)}")]
    replies: list[Reply] = []
    wrong: Sequence[str] = ()
    for _ in range(1 if getattr(chat, "once", False) else 1 + retries):
        reply = chat.ask(asked, sampling)
        replies.append(reply)
        value, wrong = find_value(reply.text, schema)
        wrong = wrong or (check(value) if check else ())
        if not wrong:
            return Structured(value, tuple(replies))
        told = "\n".join(f"- {line}" for line in wrong[:MOST_SHOWN])
        again = f"This cannot be used:\n{told}\n\nAnswer again, with the JSON value only."
        asked = [*asked, Message("assistant", reply.text), Message("user", again)]
    cut = "; the answer was cut by its length" if replies[-1].finish == "length" else ""
    raise UnusableAnswer(
        f"{chat.name} gave no answer that can be used, in {len(replies)} {'try' if len(replies) == 1 else 'tries'}",
        why=f"{'; '.join(wrong[:MOST_SHOWN])}{cut}; it began: {shown(replies[-1].text, 120) or 'nothing'}",
        instead=_instead(chat, bool(cut)),
        came=replies[-1].text,
    )


def _instead(chat: Chat, cut: bool) -> str:
    if getattr(chat, "once", False):
        return "tell the model what is wrong, save its new answer in the place of the old one, and run this again"
    return "another model, or more tokens for an answer" if cut else "another model"


def _instructions(schema: Mapping[str, Any]) -> str:
    return (
        "Answer with one JSON value and nothing else: no text before or after it, no comments. Every name of the schema "
        f"must be there. The JSON schema:\n{json.dumps(schema)}"
    )


def find_value(text: str, schema: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The one JSON value in a text that fits, and nothing wrong; or None and what is wrong.

    Looked for in the whole text, else in its fenced blocks, else from every "{" or "[" on that is not inside a value found
    before. What stands between <think> and </think> at the beginning is no part of the answer. Two different values that
    fit are none: which one is meant would be a guess.
    """
    if len(text) > LONGEST:
        return None, (f"the answer has {len(text)} characters, more than {LONGEST}",)
    text = _THOUGHT.sub("", text)
    found: list[Any] = []
    broken = ""
    for candidates in ([text.strip()], [m[2].strip() for m in _FENCE.finditer(text)]):
        for candidate in candidates:
            try:
                found.append(_load(candidate))
            except (ValueError, RecursionError) as error:
                broken = broken or (str(error) if candidate[:1] in ("{", "[") else "")
        if found:
            break
    found = found or _outermost(text, "{" if schema.get("type") == "object" else "[")
    if not found:
        return None, (f"there is no JSON value in it{f' ({broken})' if broken else ''}",)
    checked = [(value, problems(value, schema)) for value in found]
    fitting = [value for value, wrong in checked if not wrong]
    if not fitting:
        return None, checked[0][1]
    if any(value != fitting[0] for value in fitting):
        return None, (f"it holds {len(fitting)} different values; give one",)
    return fitting[0], ()


def _outermost(text: str, opening: str) -> list[Any]:
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
    values, at = [], 0
    for _ in range(MOST_STARTS):
        at = text.find(opening, at)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        values.append(value)
        at = end
    return values


def _load(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def problems(value: object, schema: Mapping[str, Any], at: str = "the value") -> tuple[str, ...]:
    """What in a value does not fit a schema, a line each; empty where it fits.

    schema: a small part of JSON Schema: type, properties (all required, no others allowed), items, enum, minItems,
    maxItems, minLength, maxLength (of the text without white space around it), minimum, maximum.

    Raises
    ------
    ChatError: the schema itself uses another keyword.
    """
    unknown = set(schema) - _KEYWORDS
    if unknown or schema.get("type") not in _KINDS:
        raise ChatError(f"a schema with {sorted(unknown) or schema.get('type')}", why="it is not understood here", instead=f"only {', '.join(sorted(_KEYWORDS))}")  # fmt: skip
    kind = schema["type"]
    if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return (f"{at} is {_said(value)}, not of type {kind}",)
    if "enum" in schema and value not in schema["enum"]:
        return (f"{at} is {_said(value)}, not one of {', '.join(map(str, schema['enum']))}",)
    if isinstance(value, dict):
        return _of_object(value, schema, at)
    if isinstance(value, list):
        inner = [p for i, v in enumerate(value) for p in problems(v, schema["items"], f"{at}[{i}]")]
        return (*_of_size(len(value), "items", schema.get("minItems"), schema.get("maxItems"), at), *inner)
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            return (f"{at} holds half a character",)
        return _of_size(
            len(value.strip()), "characters", schema.get("minLength"), schema.get("maxLength"), at
        )
    if isinstance(value, int | float):
        return _of_size(value, "", schema.get("minimum"), schema.get("maximum"), at)
    return ()


def _of_object(value: dict[str, Any], schema: Mapping[str, Any], at: str) -> tuple[str, ...]:
    wanted = schema.get("properties", {})
    missing = [f"{at} has no {name!r}" for name in wanted if name not in value]
    more = [f"{at} has {_said(name)}, which was not asked for" for name in value if name not in wanted]
    inner = [
        p for name in wanted if name in value for p in problems(value[name], wanted[name], f"{at}.{name}")
    ]
    return (*missing, *more, *inner)


def _of_size(size: float, of: str, least: float | None, most: float | None, at: str) -> tuple[str, ...]:
    unit = f" {of}" if of else ""
    if least is not None and size < least:
        return (f"{at} has {size}{unit}, at least {least} are needed" if of else f"{at} is {size}, less than {least}",)  # fmt: skip
    if most is not None and size > most:
        return (f"{at} has {size}{unit}, at most {most} are allowed" if of else f"{at} is {size}, more than {most}",)  # fmt: skip
    return ()


def _said(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + " ..."


def squeeze(text: str) -> str:
    """Text with every run of white space as one space, and none around it."""
    return " ".join(text.split())
