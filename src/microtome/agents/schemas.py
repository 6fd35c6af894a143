"""JSON schemas of techniques, made from their signatures.

An annotation is text (techniques import their types for checkers only); it is read as an expression. What JSON can say
(numbers, texts, choices, lists of them) is taken over; what it can only stand for is in `microtome.agents.kinds`. What is left
is left out, and that is said.
"""  # fmt: skip

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
import typing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from microtome.agents.kinds import (
    CIRCUIT,
    DATA,
    DESCRIPTION,
    GRID,
    KINDS,
    MANY,
    MEASURE,
    MODEL,
    PAIRS,
    PLAIN,
    RUN,
    SAMPLING,
    STRINGS,
    TASK,
    TEXTS,
    THOUGHT,
)  # fmt: skip

__all__ = ["Parameter", "Signature", "parameters_of", "schema"]

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_TYPES = {"Model": MODEL, "PairTask": TASK, "LabelledText": DATA, "Result": RUN, "Circuit": CIRCUIT, "PromptGrid": GRID,
          "Thought": THOUGHT, "Sampling": SAMPLING}  # fmt: skip
# parameters whose annotation says less than their documentation
_KNOWN: dict[tuple[str, str], str] = {
    ("max_activating", "corpus"): TEXTS, ("lenses", "texts"): TEXTS, ("head_roles", "texts"): TEXTS, ("model_diff", "data"): TEXTS,
    ("steering", "direction"): DATA, ("directional_ablation", "direction"): DATA, ("generalisation", "data"): MANY,
    ("steering", "measure"): MEASURE, ("directional_ablation", "measure"): MEASURE, ("function_vector", "pairs"): PAIRS,
    ("score_description", "corpus"): TEXTS, ("score_description", "description"): DESCRIPTION,
}  # fmt: skip
_AS_STRINGS = {("steering", "prompts"), ("steering", "neutral"), ("directional_ablation", "prompts"), ("directional_ablation", "harmless")}  # fmt: skip
_AS_STRING = {("max_activating", "of"), ("score_description", "of")}
# how much a control draws: an agent may draw more, never nothing
_DRAWS = {"ablate", "random_sets", "nulls", "draws", "randoms", "placebos", "orders", "verify", "reference"}
# how much an effect must be to count: an agent may ask for more
_BARS = {"share"}
_OFF = "none"


@dataclass(frozen=True)
class Parameter:
    """A parameter that an agent may give. kind: how its value is read; many: whether a list becomes a tuple."""

    name: str
    kind: str
    schema: Schema
    required: bool
    tuples: bool = False


@dataclass(frozen=True)
class Signature:
    """What an agent may give to a technique. left_out: parameters that JSON cannot say. missing: those of them without a default."""

    parameters: tuple[Parameter, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]


@lru_cache(maxsize=256)
def parameters_of(method: str) -> Signature:
    """The signature of a registered technique as an agent sees it. Raises RegistryError for an unknown name."""
    from microtome.results import registry

    function = registry.get("techniques", method)
    found, left, missing = [], [], []
    for p in inspect.signature(function).parameters.values():
        made = _parameter(method, p, inspect.unwrap(function).__module__)
        if made is not None:
            found.append(made)
            continue
        left.append(p.name)
        if p.default is p.empty:
            missing.append(p.name)
    return Signature(tuple(found), tuple(left), tuple(missing))


def schema(signature: Signature) -> Schema:
    """The JSON schema of an object with these parameters."""
    return {
        "type": "object",
        "properties": {p.name: p.schema for p in signature.parameters},
        "required": [p.name for p in signature.parameters if p.required],
        "additionalProperties": False,
    }


def _parameter(method: str, p: inspect.Parameter, module: str) -> Parameter | None:
    key, text = (method, p.name), str(p.annotation)
    kind = _KNOWN.get(key) or _kind(text)
    required = p.default is p.empty
    if kind == MODEL and p.name == "model":
        required = False  # the embedded model stands in
    if kind is not None:
        made = dict(KINDS[kind])
        if "None" in text and kind != TEXTS or key == ("head_roles", "texts"):
            made = {"anyOf": [KINDS[kind], {"type": "null"}], "description": KINDS[kind]["description"]}
        return Parameter(p.name, kind, made, required)
    if key in _AS_STRINGS:
        return Parameter(p.name, PLAIN, dict(STRINGS), required)
    if key in _AS_STRING:
        return Parameter(p.name, PLAIN, dict(_STRING), required)
    plain = of_annotation(text, module)
    if plain is None:
        return None
    return Parameter(p.name, PLAIN, _bounded(p, plain), required, "tuple[" in text)


def _kind(text: str) -> str | None:
    """How an annotation is given when it is a model, a task, data or a result; else None."""
    names = {part.strip() for part in text.split("|")} - {"None"}
    known = [_TYPES[name] for name in names if name in _TYPES]
    return known[0] if known and names <= {*_TYPES, "AskedPrompts", "str"} and "Model" not in names - {"Model"} else None  # fmt: skip


def _bounded(p: inspect.Parameter, made: Schema) -> Schema:
    """The schema with what an agent may not do left out, and the default in it."""
    if p.name == "controls" and "enum" in made:
        made = {**made, "enum": [v for v in made["enum"] if v != _OFF]}
    if p.name == "alpha" and isinstance(p.default, float):
        made = {**made, "exclusiveMinimum": 0, "maximum": p.default}
    if p.name in _DRAWS:
        made = _at_least_one(made)
    if p.name in _BARS:
        made = {**made, "minimum": p.default, "maximum": 1}
    if p.name == "seed":
        made = {**made, "minimum": 0, "maximum": 2**31 - 1}
    if p.default is not p.empty and p.default is not None:
        default = list(p.default) if isinstance(p.default, tuple) else p.default
        made = {**made, "default": default}
    return made


def _at_least_one(made: Schema) -> Schema:
    if made.get("type") == "integer":
        return {**made, "minimum": 1}
    return {**made, "anyOf": [_at_least_one(m) for m in made["anyOf"]]} if "anyOf" in made else made


# ------------------------------------------------------------------------------------------ annotations


def of_annotation(text: str, module: str) -> Schema | None:
    """The schema of an annotation as it stands in a module; None for what JSON cannot say."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    return _of_node(node, module)


def _of_node(node: ast.expr, module: str) -> Schema | None:
    if isinstance(node, ast.Constant):
        return {"type": "null"} if node.value is None else _of_text(node.value, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _either([_of_node(node.left, module), _of_node(node.right, module)])
    if isinstance(node, ast.Subscript):
        return _of_subscript(node, module)
    if isinstance(node, ast.Name):
        return _of_object(_resolve(node.id, module))
    return None


def _of_text(value: Any, module: str) -> Schema | None:
    return of_annotation(value, module) if isinstance(value, str) else None


def _of_subscript(node: ast.Subscript, module: str) -> Schema | None:
    name = node.value.id if isinstance(node.value, ast.Name) else ""
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return {"enum": [e.value for e in inner if isinstance(e, ast.Constant)]}
    if name not in ("Sequence", "list", "tuple"):
        return None
    if name == "tuple" and not (
        len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is Ellipsis
    ):
        return None
    return _list(_of_node(inner[0], module))


def _list(items: Schema | None) -> Schema | None:
    return None if items is None else {"type": "array", "items": items}


def _either(options: list[Schema | None]) -> Schema | None:
    """One of several; those that JSON cannot say are dropped. None where only null is left."""
    flat: list[Schema] = []
    for one in options:
        if one is not None:
            flat += one["anyOf"] if set(one) == {"anyOf"} else [one]
    if not any(one != {"type": "null"} for one in flat):
        return None if None in options or not flat else flat[0]
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _of_object(found: Any) -> Schema | None:
    """The schema of a type, an alias or a Literal."""
    simple = {
        str: dict(_STRING),
        int: {"type": "integer"},
        float: {"type": "number"},
        bool: {"type": "boolean"},
    }
    if isinstance(found, type) and found in simple:
        return simple[found]
    origin, arguments = typing.get_origin(found), typing.get_args(found)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return _either([{"type": "null"} if a is type(None) else _of_object(a) for a in arguments])
    return None


def _resolve(name: str, module: str) -> Any:
    """What a name in a module's annotations stands for: built in, its own, or imported for type checkers only."""
    known = {"str": str, "int": int, "float": float, "bool": bool}
    if name in known:
        return known[name]
    home = sys.modules[module]
    if hasattr(home, name):
        return getattr(home, name)
    source = inspect.getsource(home)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and any((a.asname or a.name) == name for a in node.names):
            package = home.__package__ or ""
            where = importlib.import_module(
                "." * node.level + (node.module or ""), package if node.level else None
            )
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return getattr(where, original, None)
    return None
