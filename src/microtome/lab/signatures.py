"""The names of a technique's parameters, read from its source where its module is not loaded.

Importing a technique imports torch (seconds); to find a mistyped parameter in a prediction its `def` is enough.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["parameters_of"]


def parameters_of(method: str) -> tuple[str, ...]:
    """Names of the parameters of a registered technique, in order.

    Raises RegistryError for a name that no technique has.
    """
    from ..results import registry

    module = registry.module_of("techniques", method)
    if module is not None and module not in sys.modules:
        found = _from_source(module, method)
        if found is not None:
            return found
    import inspect

    return tuple(inspect.signature(registry.get("techniques", method)).parameters)


def _from_source(module: str, method: str) -> tuple[str, ...] | None:
    """The parameters of the one function that is decorated as this technique; None where that cannot be told."""
    path = _file_of(module)
    if path is None:
        return None
    tree = ast.parse(path.read_bytes())
    techniques = [(name, function) for function in tree.body if isinstance(function, ast.FunctionDef) for name in _names(function)]  # fmt: skip
    named = [function for name, function in techniques if name == method]
    # a name that is not written out (a constant of the module) is only taken where there is no other technique
    candidates = named or ([function for _, function in techniques] if len(techniques) == 1 else [])
    if len(candidates) != 1:
        return None
    given = candidates[0].args
    return tuple(arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs))


def _file_of(module: str) -> Path | None:
    """The source of a module. By hand: `find_spec` imports every package on the way, and theirs import torch."""
    from importlib.util import find_spec

    top, *below = module.split(".")
    spec = find_spec(top)
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in (Path(root, *below).with_suffix(".py"), Path(root, *below, "__init__.py")):
            if path.is_file():
                return path
    return None


def _names(function: ast.FunctionDef) -> Iterator[str | None]:
    """For each `@technique(name, ...)` over a function its name, None where it is not written out."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "technique":  # fmt: skip
            first = decorator.args[0] if decorator.args else None
            name = first.value if isinstance(first, ast.Constant) else None
            yield name if isinstance(name, str) else None
