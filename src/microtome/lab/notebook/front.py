"""Front matter: a small part of YAML that means the same to a person and to a program.

Text, whole numbers, numbers, true and false, null, lists and mappings. Dates stay text; "yes", "no", "on" and "12:30" are
text too (in YAML 1.1 they are not, and a page called "No" would be called False). Anchors, aliases and tags are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError
from microtome.results.frozen import FrozenDict, thaw

if TYPE_CHECKING:
    import yaml

__all__ = ["Raw", "dump", "freeze", "load", "salvage", "shown"]

_DEEPEST = 32
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})\Z")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?\Z")
_TAG = "tag:yaml.org,2002:"
_TAGS = {"str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq"}
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_LINE = re.compile(r"([A-Za-z_][\w -]*):(?:[ \t]+(.*))?\Z")
# what YAML, or a program that reads text by lines, would not give back as it was
_UNSAFE = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


class Raw(Exception):
    """YAML that cannot be read: the line (from 1) within the text, and why."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def load(text: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The mapping in a YAML text: its values, the plain scalars as they are written, and what is odd about it.

    A key that stands twice is named among the odd things; the last one counts, as in any other reader of YAML.

    Raises
    ------
    Raw: no YAML, not a mapping, or a part of YAML that is not read here.
    """
    import yaml

    try:
        node = _loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Raw(line, " ".join(str(error.problem or error).split())) from error
    except yaml.YAMLError as error:
        raise Raw(1, " ".join(str(error).split())) from error
    except RecursionError as error:
        raise Raw(1, "it is nested too deeply") from error
    if node is None:
        return {}, {}, []
    if not isinstance(node, yaml.MappingNode):
        raise Raw(node.start_mark.line + 1, 'it is no list of "key: value" lines')
    odd: list[str] = []
    values = _mapping(node, odd, 0)
    written = {
        key.value: value.value
        for key, value in node.value
        if isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)
    }
    return values, written, odd


def _loader(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """No aliases: a short text must not stand for a long one."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise Raw(
                    event.start_mark.line + 1, "anchors (&) and aliases (*) are not read: quote the text"
                )
            return super().compose_node(parent, index)

    return Loader(text)


def _value(node: yaml.Node, odd: list[str], depth: int) -> Any:
    import yaml

    if depth > _DEEPEST:
        raise Raw(node.start_mark.line + 1, f"it is nested more than {_DEEPEST} deep")
    if str(node.tag).removeprefix(_TAG) not in _TAGS:
        raise Raw(node.start_mark.line + 1, f"the tag {node.tag} is not read here")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, odd, depth)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, odd, depth + 1) for item in node.value]
    return _scalar(node.value) if getattr(node, "style", None) is None else node.value


def _mapping(node: yaml.MappingNode, odd: list[str], depth: int) -> dict[str, Any]:
    import yaml

    made: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise Raw(key.start_mark.line + 1, "a key is a list or a mapping")
        if key.value in made:
            odd.append(
                f'line {key.start_mark.line + 1}: the key "{key.value}" is there twice; the last one counts'
            )
        made[key.value] = _value(value, odd, depth + 1)
    return made


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


def salvage(text: str) -> dict[str, str]:
    """What a person meant by lines that are no YAML ("title: L9H6: the name mover"): key and rest of the line, as text."""
    found = {}
    for line in text.splitlines():
        if match := _LINE.match(line.rstrip()):
            found[match[1].strip()] = (match[2] or "").strip()
    return found


def shown(text: str) -> str:
    """Text with every character that front matter cannot hold written as an escape."""
    return _UNSAFE.sub(lambda m: repr(m[0])[1:-1], text)


def freeze(value: Any, where: str, depth: int = 0) -> Any:
    """The value as an immutable tree of what front matter holds.

    Raises
    ------
    LabError: anything else (dates are given as text), a key that is not text, a number that is not finite or has more than
    18 digits, text with control characters.
    """
    if depth > _DEEPEST:
        raise _refused(where, f"it is nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if match := _UNSAFE.search(value):
            raise _refused(where, f"it holds the character {match[0]!r}")
        return str(value)
    if isinstance(value, int) and abs(value) < 10**18:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(freeze(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _refused(where, f"it has the key {key!r}, which is no text")
            freeze(key, where, depth + 1)
        return FrozenDict({k: freeze(v, f"{where}[{k!r}]", depth + 1) for k, v in value.items()})
    raise _refused(where, f"it is {value!r}")


def _refused(where: str, why: str) -> LabError:
    return LabError(
        f"{where} cannot stand in front matter",
        why=why,
        instead="give text without control characters, finite numbers, true, false, lists or mappings",
    )


def dump(fields: Mapping[str, Any]) -> str:
    """Fields as YAML, in their order; `load` gives them back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Text is quoted where this module, or a reader of YAML 1.1, would take it for something else."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        quoted = not isinstance(_scalar(value), str) or "\n" in value
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if quoted else None)

    Dumper.add_representer(str, text)
    # dates are written as people write them: here they are text in any case
    Dumper.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in every if not tag.endswith(":timestamp")]
        for first, every in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }
    made: str = yaml.dump(thaw(fields), Dumper=Dumper, allow_unicode=True, sort_keys=False, width=10**9, default_flow_style=False)  # fmt: skip
    return made
