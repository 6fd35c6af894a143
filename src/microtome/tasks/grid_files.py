"""A prompt grid from a YAML or JSON file, or one error that says what is wrong with it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from microtome.errors import TaskError
from microtome.tasks.checks import quote
from microtome.tasks.grid import PromptGrid, grid
from microtome.tasks.table import read_text, unique

__all__ = ["KEYS", "built_in", "of_mapping", "read_grid"]

FOLDER = Path(__file__).with_name("grids")

NEEDED = ("template", "factors", "answers")
KEYS = (*NEEDED, "paraphrases", "over", "system", "prefill", "chat", "name")


def built_in() -> tuple[str, ...]:
    """Names of the grids that come with Microtome."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def read_grid(path: str | Path) -> PromptGrid:
    """The grid of a .yaml, .yml or .json file, or a built-in one by its name.

    A file holds one mapping with the arguments of `microtome.tasks.grid.grid`.

    Raises
    ------
    TaskError: no such file, another ending, not UTF-8, malformed, a key twice, missing or unknown keys (the nearest is
    suggested), or a grid that is refused.
    """
    file = Path(path)
    if str(path) in built_in():
        file = FOLDER / f"{path}.yaml"
    kind = file.suffix.lower()
    if kind not in (".yaml", ".yml", ".json"):
        if not kind and not file.exists():
            near = difflib.get_close_matches(str(path), built_in(), n=1, cutoff=0.5)
            raise TaskError(f"there is no grid called {quote(str(path))}", why=f"built-in ones: {', '.join(built_in())}",
                            instead=f'did you mean "{near[0]}"?' if near else "one of these, or a .yaml file")  # fmt: skip
        raise TaskError(f"{quote(file.name)} does not say what it is by its ending", why="a grid is a .yaml, .yml or .json file",
                        instead="rename it, or write it as YAML")  # fmt: skip
    text = read_text(file)
    if not text.strip():
        raise TaskError(f"{quote(file.name)} is empty", why="it holds no grid", instead=f"give it the keys {', '.join(NEEDED)}")  # fmt: skip
    data = _json(text, file.name) if kind == ".json" else _yaml(text, file.name)
    made = of_mapping(data, file.name)
    made = replace(made, name=file.stem) if "name" not in data else made
    return replace(made, provenance={"file": file.name})


def of_mapping(data: Any, where: str = "the grid") -> PromptGrid:
    """The grid of a mapping such as a file holds.

    Raises
    ------
    TaskError: as `read_grid`.
    """
    if not isinstance(data, Mapping):
        raise TaskError(f"{where} holds a {type(data).__name__}", why="a grid is a mapping", instead=f"give it the keys {', '.join(NEEDED)}")  # fmt: skip
    for key in data:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1, cutoff=0.6)
            raise TaskError(f"{where}: there is no key {quote(str(key))}", why=f"keys: {', '.join(KEYS)}",
                            instead=f'did you mean "{near[0]}"?' if near else "remove it")  # fmt: skip
    missing = [key for key in NEEDED if key not in data]
    if missing:
        raise TaskError(f"{where}: the key {quote(missing[0])} is missing", why=f"found {', '.join(data) or 'none'}",
                        instead=f"a grid has the keys {', '.join(NEEDED)}")  # fmt: skip
    rest = {key: value for key, value in data.items() if key not in NEEDED}
    return grid(data["template"], data["factors"], data["answers"], **rest)


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda cells: unique(cells, name, "key"))
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"{quote(name)} is not JSON", why=str(error), instead="write one JSON object"
        ) from error


def _yaml(text: str, name: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only, and no name twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            unique([(key, None) for key in names], f"{name} line {node.start_mark.line + 1}", "key")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as error:
        short = " ".join(str(error).split())[:200]
        raise TaskError(f"{quote(name)} is not YAML", why=short, instead="quote texts that hold braces or colons") from error  # fmt: skip
