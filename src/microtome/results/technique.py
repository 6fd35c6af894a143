"""The seam between methods and everything that records them.

A method is a function from a model and data to a Result. `technique` makes of it one that checks its
arguments, knows what was asked (Query), tells observers what happens, and lets no result pass in which a
declared control is missing or the verdict does not follow. Methods know nothing of who listens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, cast

from ..errors import ResultError
from . import registry
from .arguments import ArgumentError, bind
from .events import (
    END,
    ObserverWarning,
    add_observer,
    current_run,
    emit_look,
    in_this_run,
    observe,
    progress,
    remove_observer,
    running,
)
from .source import code_hash

if TYPE_CHECKING:
    import inspect

    from .query import Query
    from .result import Result
    from .spec import TechniqueSpec

__all__ = [
    "ArgumentError",
    "ObserverWarning",
    "Technique",
    "add_observer",
    "current_run",
    "emit_look",
    "in_this_run",
    "observe",
    "progress",
    "remove_observer",
    "technique",
]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RENDERER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

P = ParamSpec("P")


class Technique(Protocol[P]):
    """A technique: the function as it was, with its `spec`."""

    __name__: str
    spec: TechniqueSpec

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result:
        """Run it: a stamped Result."""
        ...


def technique(
    name: str,
    version: str | int,
    *,
    controls: Sequence[str] = (),
    mandatory: Sequence[str] = (),
    figure: str = "",
    random: bool = False,
) -> Callable[[Callable[P, Result]], Technique[P]]:
    """Make a technique of a function that returns a Result.

    Parameters: see TechniqueSpec. The function leaves its Result's query out; the seam stamps it (model: the
    first argument with a `.hash`; task, data, seed and parameters: see `microtome.results.stamp.make_query`)
    and settles the verdict: computed again from the result's controls, the declared mandatory ones and the
    p, alpha and smallest p of the verdict that the function gave. Stages that are techniques themselves are
    runs below this one; the function passes their results on as `children`.

    A function that can be imported by name is registered under "techniques".

    Raises ArgumentError when the declaration contradicts itself or the signature. A call raises ArgumentError
    for arguments the function does not take, and ResultError when it returns no Result, a Result that already
    answers another query, or one without a declared control.
    """

    def decorate(function: Callable[P, Result]) -> Technique[P]:
        import inspect

        signature = inspect.signature(function)
        spec = _specify(function, signature, name, str(version), controls, mandatory, figure, random)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            from .stamp import make_query

            bound = bind(spec.name, signature, args, kwargs)
            if spec.random:
                _check_seed(spec.name, bound.arguments["seed"])
            query = make_query(spec.name, spec.version, bound.arguments)
            with running(spec.name, query, dict(bound.arguments)) as run:
                result = _settle(spec, query, function(*bound.args, **bound.kwargs))
            run.tell(END, result=result)
            return result

        made = cast(Technique[P], call)
        made.spec = spec
        if "<" not in function.__qualname__:
            registry.register("techniques", spec.name, made)
        return made

    return decorate


def _specify(
    function: Any,
    signature: inspect.Signature,
    name: str,
    version: str,
    controls: Sequence[str],
    mandatory: Sequence[str],
    figure: str,
    random: bool,
) -> TechniqueSpec:
    where = f"technique {name!r}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"{where}: the name", why="names are lower case with underscores", instead="'logit_lens'"
        )
    for field, given in (("controls", controls), ("mandatory", mandatory)):
        if isinstance(given, str) or len(set(given)) != len(given):
            raise ArgumentError(
                f"{where}: {field}={given!r}",
                why="it is a sequence of distinct names",
                instead="('identity',)",
            )
    if extra := [c for c in mandatory if c not in controls]:
        raise ArgumentError(
            f"{where}: mandatory {extra} not among its controls",
            why="what is mandatory is declared",
            instead="add it to controls=",
        )
    if figure and not _RENDERER.fullmatch(figure):
        raise ArgumentError(
            f"{where}: figure={figure!r}", why="it is no path", instead="figure='package.module:function'"
        )
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ArgumentError(
                f"{where} takes *{parameter.name}",
                why="a query names every argument, and a mistyped one must be found",
                instead="write the parameters out",
            )
    if random and "seed" not in signature.parameters:
        raise ArgumentError(
            f"{where} is random and takes no seed", why="nobody could run it again", instead="add seed: int"
        )
    if not random and "seed" in signature.parameters:
        raise ArgumentError(
            f"{where} takes a seed and is not declared random",
            why="it draws or it does not",
            instead="random=True",
        )
    from .spec import TechniqueSpec

    return TechniqueSpec(
        name, version, tuple(controls), tuple(mandatory), figure, random, code_hash(function)
    )


def _check_seed(name: str, seed: Any) -> None:
    from .seeds import child

    try:
        child(seed, "check")
    except ResultError as error:
        raise ArgumentError(f"{name}: {error.what}", why=error.why, instead=error.instead) from None


def _settle(spec: TechniqueSpec, query: Query, result: Any) -> Result:
    """The result stamped and judged, or the reason why it may not pass."""
    from dataclasses import replace

    from .result import Result
    from .verdicts import verdict

    if not isinstance(result, Result):
        raise ResultError(
            f"{spec.name} returned a {type(result).__name__}",
            why="a technique returns a Result",
            instead="return Result(...)",
        )
    if result.query is not None and result.query != query:
        raise ResultError(
            f"{spec.name} returned a result of {result.query.method} that answers another question",
            why="it would be recorded under this one",
            instead="return a Result of its own and pass the other among children=",
        )
    have = {control.name for control in result.controls}
    if forgotten := [name for name in spec.controls if name not in have]:
        raise ResultError(
            f"{spec.name} declares the control {', '.join(map(repr, forgotten))} and returned none",
            why="a control that is silently left out reads like one that passed",
            instead="run it, or add Control.not_run(name, rules_out, expected, why)",
        )
    given = result.verdict
    mandatory = tuple(dict.fromkeys((*spec.mandatory, *given.mandatory)))
    judged = verdict(result.controls, mandatory, given.p, given.alpha, given.smallest_p)
    return replace(result, query=query, verdict=judged)
