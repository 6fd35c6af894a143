"""The tasks that have a name: built-in ones, and those that other packages add by entry point."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from microtome.errors import TaskError
from microtome.results import registry
from microtome.tasks.generator import Generator
from microtome.tasks.pairs import PairTask

__all__ = ["describe", "names", "task"]

TASKS = {
    "ioi": "microtome.tasks.ioi:IOI",
    "sva": "microtome.tasks.sva:SVA",
    "capitals": "microtome.tasks.capitals:Capitals",
    "greater_than": "microtome.tasks.greater_than:GreaterThan",
    "gendered_pronoun": "microtome.tasks.gendered_pronoun:GenderedPronoun",
    "induction": "microtome.tasks.induction:Induction",
    "colored_objects": "microtome.tasks.colored_objects:ColoredObjects",
}

for _name, _path in TASKS.items():
    registry.register("tasks", _name, registry.Lazy(_path))


def names() -> tuple[str, ...]:
    """Names of all tasks, sorted: built-in, registered in this process, and those of installed packages."""
    return registry.names("tasks")


def describe(name: str) -> dict[str, object]:
    """What a task is: name, summary, source, variables, counterfactuals, options; nothing is generated.

    Raises
    ------
    RegistryError: no such task; the nearest name is suggested.
    """
    made = registry.get("tasks", name)
    said: dict[str, object] = {"name": name, "options": _options(made)}
    generator = _generator(made)
    if generator is not None:
        changes = {k: sorted(v) for k, v in generator.counterfactuals.items()}
        said |= {"summary": generator.summary, "source": generator.source, "version": generator.version}
        said |= {"variables": list(generator.variables), "counterfactuals": changes}
    else:
        said["summary"] = (inspect.getdoc(made) or "").partition("\n")[0]
    return said


def task(name: str, model: Any, n: int = 64, seed: int = 0, **options: object) -> PairTask:
    """n pairs of a named task for this model's tokenizer.

    A task of a package is a `Generator`, or any callable (model, n, seed, **options) that returns a `PairTask`.

    model: anything with `tokenizer` and `facts` (n_ctx, d_vocab). The first k pairs do not depend on n.

    Raises
    ------
    RegistryError: no such task. TaskError: no such option (the nearest is suggested for both), n is not a
    positive whole number, or the tokenizer does not allow the task.
    """
    made = registry.get("tasks", name)
    known = _options(made)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            raise TaskError(
                f'the task "{name}" has no option {option!r}',
                why=f"its options: {', '.join(known) or 'none'}",
                instead=f'did you mean "{near[0]}"?' if near else "leave it out",
            )
    generator = _generator(made)
    if generator is not None:
        return generator(model, **options).task(n, seed)
    result = made(model, n=n, seed=seed, **options)
    if not isinstance(result, PairTask):
        raise TaskError(
            f'the task "{name}" returned a {type(result).__name__}',
            why="a task of a package is a Generator, or a function (model, n, seed, **options) -> PairTask",
            instead="correct the package that provides it",
        )
    return result


def _generator(made: Any) -> Any:
    """The class when `made` is a generator, else None."""
    return made if inspect.isclass(made) and issubclass(made, Generator) else None


def _options(made: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(made).parameters
    return [p for p in parameters if p not in ("model", "n", "seed", "self")]
