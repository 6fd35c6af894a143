"""Arguments checked against a signature before any work starts, with the nearest name in the error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MicrotomeError

if TYPE_CHECKING:
    import inspect


class ArgumentError(MicrotomeError, TypeError):
    """A call whose arguments the technique does not take."""


def nearest(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The known names that resemble `word`, best first; empty when none does."""
    import difflib

    names = {name.lower(): name for name in known}
    return [names[hit] for hit in difflib.get_close_matches(word.lower(), names, n=most, cutoff=0.5)]


def suggest(word: str, known: Iterable[str]) -> str:
    """One sentence for an error's `instead`: the nearest known names, or all of them."""
    known = sorted(known)
    close = nearest(word, known)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + (", ".join(known) if known else "none")


def bind(
    name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The arguments bound to the parameters, defaults filled in.

    Raises ArgumentError for an unknown parameter (naming the nearest), a missing one, one given twice and
    too many positional ones.
    """
    parameters = signature.parameters
    positional = [
        p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    by_name = [p.name for p in parameters.values() if p.kind is not p.POSITIONAL_ONLY]
    shape = f"{name}{signature}"
    if len(args) > len(positional):
        raise ArgumentError(
            f"{name} was given {len(args)} positional arguments",
            why=f"it takes at most {len(positional)}",
            instead=f"the signature is {shape}",
        )
    for key in kwargs:
        if key not in by_name:
            raise ArgumentError(
                f"{name} has no parameter {key!r}",
                why=f"the signature is {shape}",
                instead=suggest(key, by_name),
            )
    for key in positional[: len(args)]:
        if key in kwargs:
            raise ArgumentError(
                f"{name} was given {key!r} twice", why="by position and by name", instead="give it once"
            )
    given = {*positional[: len(args)], *kwargs}
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise ArgumentError(
            f"{name} needs {', '.join(repr(m) for m in missing)}",
            why="it has no default",
            instead=f"the signature is {shape}",
        )
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound
