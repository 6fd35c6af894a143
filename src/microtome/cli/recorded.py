"""What commands run in a project is recorded, each command's runs in a study of its name."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from microtome.cli import output
from microtome.errors import MicrotomeError

if TYPE_CHECKING:
    from microtome.lab.study import Study
    from microtome.llm.chat import Chat
    from microtome.llm.claim_text import ClaimText

__all__ = ["activity", "certified", "chat", "claim_text", "here", "keep", "long", "remind", "title"]

SHOWN = 3
"""Lines of timers that are shown after a run."""
_last: list[Study] = []


@contextmanager
def here() -> Iterator[None]:
    """Record what happens inside when the current folder is in a project.

    A record that cannot be opened or written to does not stop the measurement: it is said on stderr, and what was asked for
    is still saved in its own folder.
    """
    _last.clear()
    study = _opened()
    if study is None:
        yield
        return
    _last.append(study)
    try:
        yield
    finally:
        try:
            study.close()
        except MicrotomeError as error:
            _warn(error)


@contextmanager
def activity(name: str, parameters: Mapping[str, Any], model: Any = None) -> Iterator[None]:
    """Something that is no technique (a calibration, a certificate) as a run of its own, without a verdict."""
    from microtome.results.events import END, running
    from microtome.results.query import Query
    from microtome.results.stamp import content_hash, describe

    given = {k: describe(v, f"{name}: {k}") for k, v in parameters.items()}
    query = Query(name, "", model="" if model is None else content_hash(model), parameters=given)
    with here(), running(name, query, {} if model is None else {"model": model}) as run:
        yield
        run.tell(END)


def long(seconds: float, what: str) -> None:
    """Before something long in a project: say that the guide asks for quicker ways to know first."""
    from microtome.lab import place

    try:
        found = place.find()
        if found is None:
            return
        from microtome.lab.notebook.limits import read_limits

        most = read_limits(found.notebook).seconds("long_experiment")
    except MicrotomeError as error:
        _warn(error)
        return
    if seconds > most:
        line = f'microtome lab gate {seconds / 60:.0f} "{what}" --alternative "..." --alternative "..."'
        output.stderr().print(
            f"over {most / 60:.0f} min: are there quicker ways to know? {line}", soft_wrap=True
        )


def remind() -> None:
    """What the notebook's timers say, after something ran; nothing where nobody keeps a notebook."""
    from microtome.lab import place

    try:
        found = place.find()
        if found is None or not found.notebook.is_dir():
            return
        from microtome.cli.pace import due_now
        from microtome.lab.notebook import views

        for one in due_now()[:SHOWN]:
            output.stderr().print(f"timer: {views.triggers([one])[0]} (microtome lab timers)", soft_wrap=True)
    except MicrotomeError as error:
        _warn(error)


def certified(model: Any) -> None:
    """Keep a model's certificate, where its command was recorded."""
    if not _last:
        return
    study = _last[-1]
    from microtome.lab import keeping

    try:
        with study.database.writing() as connection:
            keeping.subjects(connection, keeping.Call(models=tuple(keeping.models([model]))))
    except MicrotomeError as error:
        _warn(error)


def keep(report: Path) -> int | None:
    """Attach a report to the run that was just recorded; the run's number, None where nothing was recorded."""
    if not _last:
        return None
    try:
        return _last.pop().attach(report)
    except MicrotomeError as error:
        _warn(error)
        return None


def title() -> str:
    """What the study of the present command is called: its words up to the first argument."""
    context = _context()
    if context is None:
        return "command line"
    words = context.command_path.split()[1:]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.param_type_name == "argument" and value:
            first = value[0] if isinstance(value, list | tuple) else value
            return " ".join([*words, Path(str(first)).stem])
    return " ".join(words)


def _context() -> Any:
    """The context of the present command, None outside any; from the click that Typer uses, which may be a copy of its own."""
    package = typer.Context.__mro__[1].__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.globals").get_current_context(silent=True)


def _opened() -> Study | None:
    from microtome.lab import place

    try:
        found = place.find()
        if found is None:
            return None
        from microtome.lab.study import study

        return study(title(), folder=found.folder).open()
    except MicrotomeError as error:
        _warn(error)
        return None


def _warn(error: MicrotomeError) -> None:
    output.stderr().print(output.visible(f"not recorded: {error}", keep="\n"), soft_wrap=True)


def claim_text(number: int) -> ClaimText:
    """A recorded claim, for the red team."""
    from microtome.lab.claim_rows import read
    from microtome.lab.claim_telling import as_text
    from microtome.lab.reading import open_record
    from microtome.llm.claim_text import claim_from

    return claim_from(as_text(read(open_record(), number)))


def chat() -> Chat | None:
    """The language model that is set up, said on stderr; None for none."""
    from microtome.cli import answering

    return answering.endpoint()
