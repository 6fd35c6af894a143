"""What a record says of a call's arguments beside the arguments: which sites it saw, of which family of prompts, of which material."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError, SiteError

from .models import recipe_of
from .values import paths_of
from .writing import content_hash

if TYPE_CHECKING:
    from microtome.results.result import Result

__all__ = ["Material", "family_of", "material_of", "sites_of"]

PLACES = (
    "sites",
    "site",
    "heads",
    "show",
    "sender",
    "receiver",
    "through",
    "of",
    "capture",
    "parts",
    "circuit",
    "direction",
    "store",
    "truth",
)
"""Arguments that name addresses, or hold something that does."""
PROMPTS = ("task", "pairs", "data", "corpus", "prompts", "texts")
"""Arguments that are the task or data of a call, the first that is there counts (`results.stamp`)."""
OUTPUT = ("behaviour", "prompt_grid", "chain_of_thought", "token_attribution")
"""Techniques that name no address and read what the model says."""
PATTERNS = ("attention_patterns", "head_roles")
"""Techniques that look at where heads attend; of a head that others name without a point ("L1H2") the output counts."""
_COLUMNS = ("site", "unit", "edge", "heads", "node")
_HEAD = re.compile(r"L[\d,:*]+H[\d,:*]+")
_MLP = re.compile(r"L[\d,:*]+\.mlp")


@dataclass(frozen=True)
class Material:
    """One thing that a call was made with.

    hash: of its content. kind: "model", "task", "data", "direction", "lens", "circuit", "result" or "store". name: for people.
    recipe: how it can be had again, JSON-able ({} where nothing says; then `encode` kept its content or says why not).
    """

    hash: str
    kind: str
    name: str
    recipe: Mapping[str, Any]


_KINDS = {
    "microtome.facade:Model": "model",
    "microtome.tasks.pairs:PairTask": "task",
    "microtome.tasks.labelled:LabelledText": "data",
    "microtome.tasks.asked:AskedPrompts": "data",
    "microtome.tasks.grid:PromptGrid": "data",
    "microtome.tasks.thought:Thought": "data",
    "microtome.tasks.corpus:Corpus": "data",
    "microtome.tasks.word_pairs:WordPairs": "data",
    "microtome.directions.direction:Direction": "direction",
    "microtome.methods.lensing.translators:Translators": "lens",
    "microtome.circuits.circuit:Circuit": "circuit",
    "microtome.results.result:Result": "result",
    "microtome.activations.reading:Store": "store",
}


def sites_of(method: str, arguments: Mapping[str, Any], result: Result | None = None) -> tuple[str, ...]:
    """The addresses that a run saw, as they were asked for (with wildcards) and, of a result, as they were measured; sorted.

    From the arguments that name addresses, and from the columns "site", "unit" and "edge" of the result's frame, tables and
    children. An edge counts as both of its ends, a head without a point as its output (or pattern, see PATTERNS). () means that nothing says so: not that nothing was seen.
    """
    found: set[str] = {"logits"} if method in OUTPUT else set()
    for name in PLACES:
        for text in _named(arguments.get(name)):
            found.update(_addresses(text, method))
    if result is not None:
        found.update(_measured(result, method))
    return tuple(sorted(found))


def family_of(arguments: Mapping[str, Any]) -> str:
    """The name of the task or data of a call, of several data joined by "+"; "" where nothing says."""
    for name in PROMPTS:
        value = arguments.get(name)
        if isinstance(value, str) and name == "task":
            return value
        several = value if isinstance(value, list | tuple) else (value,)
        names = [one for v in several if isinstance(one := getattr(v, "name", None), str) and one]
        if names:
            return "+".join(dict.fromkeys(names))
    return ""


def material_of(arguments: Mapping[str, Any]) -> list[Material]:
    """The models, tasks, data and other values with a content of their own among the arguments, each once, in their order.

    Lists and mappings are looked into one level deep.
    """
    found: dict[tuple[str, str], Material] = {}
    for value in arguments.values():
        for one in _each(value):
            made = _material(one)
            if made is not None:
                found.setdefault((made.kind, made.hash), made)
    return list(found.values())


def _each(value: Any) -> Iterator[Any]:
    inner = value.models if "microtome.zoo.checkpoints:Checkpoints" in paths_of(type(value)) else value
    if isinstance(inner, list | tuple):
        yield from inner
    elif isinstance(inner, Mapping):
        yield from inner.values()
    else:
        yield value


def _material(value: Any) -> Material | None:
    kind = next((_KINDS[path] for path in paths_of(type(value)) if path in _KINDS), None)
    if kind is None:
        return None
    name = str(getattr(value, "name", "") or getattr(value, "kind", "") or getattr(value, "how", ""))
    recipe: Any = {}
    if kind == "model":
        made = recipe_of(value)
        recipe = {} if isinstance(made, str) else made
    elif kind in ("task", "data"):
        recipe = _told({**getattr(value, "provenance", {}), **getattr(value, "asked", {})})
    elif kind == "store" and value.folder is not None:
        recipe = {"folder": str(value.folder.absolute())}
    return Material(_hash(value, kind), kind, name, recipe)


def _hash(value: Any, kind: str) -> str:
    if kind == "result":
        return "" if value.query is None else str(value.query.id)
    if mark := content_hash(value):
        return mark
    from microtome.results.frozen import digest, dumps, freeze_json

    said = value.__query__()
    return str(said["circuit"]) if kind == "circuit" else digest(dumps(freeze_json(said, kind)))


def _told(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a provenance; texts of a list are the content, not how to get it."""
    from microtome.results.frozen import freeze_json, thaw

    out = {}
    for name, value in provenance.items():
        try:
            plain = freeze_json(value, name)
        except MicrotomeError:
            continue
        if not (name == "source" and isinstance(plain, tuple)):
            out[name] = thaw(plain)
    return out


def _named(value: Any) -> Iterator[str]:
    """Texts that may be addresses: the value itself, its items, or what it stands at."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        for item in value:
            if item is not value:
                yield from _named(item)
    elif any(path.startswith("microtome.sites:") for path in paths_of(type(value))):
        yield str(value)
    else:
        for inner in ("site", "sites", "nodes", "edges"):
            held = getattr(value, inner, None)
            if held is not None and not callable(held):
                yield from _named(held)


def _addresses(text: str, method: str) -> set[str]:
    """The addresses that a text names: one, the ends of an edge, none."""
    from microtome.sites import parse

    out = set()
    for end in text.split("->"):
        try:
            out.add(str(parse(_pointed(end.partition("@")[0] if "->" in text else end, method))))
        except SiteError:
            continue  # "nodes", "final_bias": a mode or a part of the sum, no address
    return out


def _pointed(text: str, method: str) -> str:
    """A head or an MLP without a point, as the address that stands for it."""
    if _HEAD.fullmatch(text):
        return f"{text}.{'pattern' if method in PATTERNS else 'z'}"
    return f"{text}_out" if _MLP.fullmatch(text) else text


def _measured(result: Result, method: str) -> set[str]:
    texts: set[str] = set()
    for table in (result.frame(), *result.tables.values()):
        for column in _COLUMNS:
            if column in table.columns:
                texts.update(v for v in table[column].unique().tolist() if isinstance(v, str))
    found = {address for text in texts for address in _addresses(text, method)}
    return found.union(*(_measured(c, c.query.method if c.query else c.kind) for c in result.children))
