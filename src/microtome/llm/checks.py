"""A check that can be run, as data: a technique with arguments, or a command line; what it would show if the claim is right or wrong.

Nothing here runs anything. A check is validated against the registered techniques and their signatures, so that what is printed works.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from microtome.errors import ChatError, MicrotomeError

__all__ = ["INSTRUMENTS", "Call", "Check", "Command", "Commands", "Name", "allowed", "filled", "validate"]

Commands = Mapping[str, frozenset[str]]
"""What the command line takes: the command ("dissect", "models check") with its options."""

INSTRUMENTS = {
    "calibrate_judge": "microtome.llm.judge_report:calibrate_judge",
    "check_quoting": "microtome.llm.quotes:check_quoting",
    "sycophancy": "microtome.llm.frames:sycophancy",
}
"""What a check may call besides techniques."""

_IDENTIFIER = re.compile(r"[A-Za-z_]\w{0,60}")
_PLAIN = re.compile(r"[\w./:@ -]+")
_BLANKS = {"{model}": "MODEL", "{task}": "TASK", "{site}": "SITE"}


@dataclass(frozen=True)
class Name:
    """A value of the reader's own session (`model`, `task`, `other_texts`), written as it is."""

    text: str


Value = None | bool | int | float | str | Name | tuple[str | int | float, ...]


@dataclass(frozen=True)
class Call:
    """A technique by its registered name, or one of `INSTRUMENTS`, with arguments in the order written."""

    technique: str
    arguments: tuple[tuple[str, Value], ...]

    def line(self) -> str:
        """One line of Python."""
        return f"{_home(self.technique)}({', '.join(f'{k}={_written(v)}' for k, v in self.arguments)})"


@dataclass(frozen=True)
class Command:
    """A command line, word by word, without "microtome"."""

    words: tuple[str, ...]

    def line(self) -> str:
        """The line as it is typed."""
        return shlex.join(("microtome", *self.words))


@dataclass(frozen=True)
class Check:
    """rules_out: how the claim would be wrong. if_right, if_wrong: what is seen when the claim is right, or wrong in this way.

    cost: a guess, on the embedded model and a laptop. given: what the names in the call stand for.
    """

    rules_out: str
    run: Call | Command
    if_right: str
    if_wrong: str
    cost: str
    given: str = ""

    def line(self) -> str:
        """What is run."""
        return self.run.line()


def _home(technique: str) -> str:
    if technique in INSTRUMENTS:
        return INSTRUMENTS[technique].replace(":", ".")
    if technique == "dissect":
        return "mt.dissect.dissect"
    if technique.startswith("circuit_"):
        return f"mt.circuits.{technique}"
    if technique == "training_dynamics":
        return "mt.zoo.training_dynamics"
    return "mt.methods.das" if technique == "distributed_alignment_search" else f"mt.methods.{technique}"


def _written(value: Value) -> str:
    if isinstance(value, Name):
        return value.text
    return repr(list(value)) if isinstance(value, tuple) else repr(value)


def filled(check: Check, *, model: str = "", task: str = "", site: str = "") -> Check:
    """The check with {model}, {task} and {site} put in; what is not known stands as MODEL, TASK, SITE for the reader to replace."""
    given_texts = {"{model}": model, "{task}": task, "{site}": site}
    known = {
        k: "" if v.startswith("-") else v for k, v in given_texts.items()
    }  # it would be read as an option

    def fill(text: str) -> str:
        for blank, default in _BLANKS.items():
            text = text.replace(blank, known[blank] or default)
        return text

    # it stands between quotation marks in a line that may be copied: a name with a mark in it would end them
    plain = {blank: text if _PLAIN.fullmatch(text) else "" for blank, text in known.items()}
    given = check.given
    for blank, default in _BLANKS.items():
        given = given.replace(blank, plain[blank] or default)
    run = check.run
    if isinstance(run, Command):
        return replace(check, given=given, run=Command(tuple(fill(w) for w in run.words)))

    def value(v: Value) -> Value:
        if isinstance(v, tuple):
            return tuple(fill(item) if isinstance(item, str) else item for item in v)
        return fill(v) if isinstance(v, str) else v

    return replace(
        check,
        run=Call(run.technique, tuple((k, value(v)) for k, v in run.arguments)),
        given=given,
    )


def allowed() -> dict[str, tuple[str, ...]]:
    """Techniques (and instruments) that a check may call, with their parameters; the required ones first."""
    from microtome.results import registry

    out = {}
    for name in (*registry.names("techniques"), *INSTRUMENTS):
        parameters = _signature(name).values()
        out[name] = tuple(p.name for p in sorted(parameters, key=lambda p: p.default is not p.empty))
    return out


def validate(run: Call | Command, commands: Commands | None = None) -> None:
    """Raises ChatError for a technique, parameter or choice that does not exist, a missing argument, or a command line that
    Microtome does not take (or whose commands are not known here: `commands` is None)."""
    if isinstance(run, Command):
        _check_command(run, commands)
        return
    parameters = _signature(run.technique)
    given = [name for name, _ in run.arguments]
    unknown = [name for name in given if name not in parameters]
    if unknown or len(set(given)) != len(given):
        raise ChatError(f"{run.technique} does not take {', '.join(unknown) or 'an argument twice'}", why=f"its parameters are {', '.join(parameters)}", instead="one of these")  # fmt: skip
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if missing:
        raise ChatError(
            f"{run.technique} lacks {', '.join(missing)}", why="it has no default", instead="give it"
        )
    for name, value in run.arguments:
        choices = _choices(run.technique, parameters[name].annotation)
        if choices and isinstance(value, str) and value not in choices:
            raise ChatError(f"{run.technique}({name}={value!r})", why=f"it is one of {', '.join(map(repr, choices))}", instead="one of these")  # fmt: skip


def read_call(technique: Any, arguments: Any) -> Call:
    """A call from what a model wrote: JSON values only; a text that is the name of a variable stands for it where the parameter takes
    an object (model, task, data, ...). Raises ChatError for anything else."""
    if not isinstance(technique, str) or not isinstance(arguments, Mapping):
        raise ChatError("no technique with arguments", why="a check names a technique and gives its arguments by name", instead='{"technique": "ablation", "arguments": {...}}')  # fmt: skip
    return Call(technique, tuple((str(k), _value(str(k), v)) for k, v in arguments.items()))


_OBJECTS = frozenset(
    {"model", "task", "a", "b", "data", "corpus", "texts", "direction", "held_out", "off_task", "reference", "circuit", "ranking", "exact"}
    | {"pairs", "neutral", "harmless", "measure", "prompts", "unrelated", "judge", "labelled", "positive", "negative", "chat", "sources", "other"}
)  # fmt: skip


def _value(name: str, value: Any) -> Value:
    if isinstance(value, str):
        return Name(value) if name in _OBJECTS and _IDENTIFIER.fullmatch(value) else value
    if value is None or isinstance(value, bool | int) or _finite(value):
        return value
    if isinstance(value, list) and all(isinstance(v, str) or type(v) is int or _finite(v) for v in value):  # fmt: skip
        return tuple(value)
    raise ChatError(f"{name} is a {type(value).__name__}", why="arguments are texts, numbers, true, false, or lists of them", instead="a variable's name for anything else")  # fmt: skip


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _function(technique: str) -> Any:
    from importlib import import_module

    from microtome.results import registry

    if technique in INSTRUMENTS:
        module, _, name = INSTRUMENTS[technique].partition(":")
        return getattr(import_module(module), name)
    try:
        return registry.get("techniques", technique)
    except MicrotomeError as error:
        raise ChatError(f"no technique is called {technique!r}", why="a check runs what is registered", instead=error.instead) from error  # fmt: skip


def _signature(technique: str) -> Any:
    import inspect

    return inspect.signature(_function(technique)).parameters


def _choices(technique: str, annotation: Any) -> tuple[str, ...]:
    """The texts that a parameter takes, where its annotation is a Literal (or the name of one in the technique's module)."""
    if isinstance(annotation, str):
        function = _function(technique)
        home = getattr(getattr(function, "__wrapped__", function), "__globals__", {})
        inline = re.fullmatch(r"Literal\[((?:'[^']*'(?:, )?)+)\]", annotation)
        if inline:
            return tuple(re.findall(r"'([^']*)'", inline[1]))
        annotation = home.get(annotation)
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def _check_command(run: Command, commands: Commands | None) -> None:
    if commands is None:
        raise ChatError("a command line that cannot be checked here", why="the list of commands was not given", instead="commands=, or a technique")  # fmt: skip
    words = run.words
    name = next((n for n in (" ".join(words[:2]), " ".join(words[:1])) if n in commands), None)
    if name is None:
        raise ChatError(f"microtome {' '.join(words[:2])}", why="there is no such command", instead="one of " + ", ".join(sorted(commands)))  # fmt: skip
    options = [w.partition("=")[0] for w in words if re.match(r"-{1,2}[A-Za-z]", w)]
    if unknown := [o for o in options if o not in commands[name] and o not in ("-h", "--help")]:
        raise ChatError(f"microtome {name} {' '.join(unknown)}", why="it has no such option", instead="one of " + ", ".join(sorted(commands[name])))  # fmt: skip
