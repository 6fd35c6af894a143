"""What a server holds between calls: loaded models, pairs and data by handle, and who is working."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.agents.bounds import inside
from microtome.agents.jobs import Job, listen, working
from microtome.agents.settings import Settings
from microtome.errors import ModelError, TaskError
from microtome.results.arguments import suggest
from microtome.results.events import add_observer, remove_observer

if TYPE_CHECKING:
    from microtome.facade import Model
    from microtome.lab.place import Place
    from microtome.lab.reading import Record
    from microtome.lab.study import Study

__all__ = ["DEFAULT", "Call", "Desk"]

DEFAULT = "smollm2-135m-instruct"
_MODELS = 3  # loaded at once
_HANDLES = 200


class Desk:
    """The state of one server, shared by its clients. Models are used by one call at a time. Raises LabError for a record that cannot be written to.

    Nothing of it is lost that the record does not have: handles say what made them, and are made again by the same call.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.busy = threading.Lock()  # held by whoever uses a model
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._jobs: set[Job] = set()
        _make_record(settings.place)
        add_observer(listen)

    def close(self, seconds: float = 10.0) -> bool:
        """Stop what runs and wait until it has stopped, at most so long each; whether all of it has."""
        with self._lock:
            jobs = tuple(self._jobs)
        for job in jobs:
            job.stop()
        stopped = [job.wait(seconds) for job in jobs]
        remove_observer(listen)
        return all(stopped)

    @contextmanager
    def job(self, job: Job) -> Iterator[Job]:
        """Be at work in this thread, known to `close`."""
        with self._lock:
            self._jobs.add(job)
        try:
            with working(job):
                yield job
        finally:
            job.over()
            with self._lock:
                self._jobs.discard(job)

    # ------------------------------------------------------------------------------------------ models

    def model(self, name: str) -> Model:
        """A model by name, loaded when it is not yet.

        Raises ModelError for a name that an agent may not load, LabError for a folder outside the project, and what loading raises.
        """
        source = self._source(name)
        with self._lock:
            if source in self._models:
                self._models.move_to_end(source)
                return self._models[source]
        import microtome

        model = microtome.load(source)
        with self._lock:
            self._models[source] = model
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
        return model

    def called(self, name: str) -> str:
        """What the record calls the model of this name: an alias or a path has another there; what is none stays as it is."""
        from microtome.model import embedded

        own = embedded.find_source(name)
        if own is not None:
            return own.name
        with self._lock:
            found = [m.name for source, m in self._models.items() if source == name or Path(source) == self.settings.place.folder.resolve() / name]  # fmt: skip
        return found[0] if found else name

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models that are in memory."""
        with self._lock:
            return tuple(m.name for m in self._models.values())

    def _source(self, name: str) -> str:
        """What to give to `mt.load`, decided here and not by what lies in the server's current folder."""
        from microtome.model import catalog, embedded

        if not name.strip() or name != name.strip():
            raise ModelError(f"a model called {name!r}", why="it is no name", instead="models_list has names")
        own = embedded.find_source(name)
        if own is not None:
            if embedded.present(own) is None and not self.settings.download:
                raise self._not_here(name)
            return own.name
        cached = {e.name: e for e in catalog.list_models() if e.kind == catalog.HUB_CACHE}
        if name in cached and cached[name].present:
            # by name where nothing in the server's own folder could be meant: a path would name the model by its commit
            return str(cached[name].folder) if Path(name).exists() else name
        here = self.settings.place.folder
        path = inside(here, name)
        if (path / "config.json").is_file() or path.suffix.lower() == ".gguf" and path.is_file():
            return str(inside(here, name, below=True))
        if self.settings.download and not Path(name).exists():
            return str(catalog.pull(name).folder)
        raise self._not_here(name)

    def _not_here(self, name: str) -> ModelError:
        from microtome.model import catalog

        known = [e.name for e in catalog.list_models() if e.present]
        return ModelError(
            f"there is no model {name!r} here",
            why="this server loads embedded models, those of the local cache and folders of the project, and "
            + ("could not get it" if self.settings.download else "downloads nothing"),
            instead=suggest(name, known),
        )

    # ----------------------------------------------------------------------------------------- handles

    def keep(self, value: Any) -> str:
        """The handle of pairs or data: its name and the first digits of its hash, the same for the same content."""
        handle = f"{value.name or 'data'}:{value.hash[:12]}"
        with self._lock:
            self._handles[handle] = value
            self._handles.move_to_end(handle)
            while len(self._handles) > _HANDLES:
                self._handles.popitem(last=False)
        return handle

    def get(self, handle: str, kind: type | tuple[type, ...]) -> Any:
        """What a handle stands for. Raises TaskError for an unknown one and for one of another kind."""
        with self._lock:
            found, known = self._handles.get(handle), list(self._handles)
        if found is None:
            raise TaskError(
                f"no handle {handle!r}",
                why="handles are given by task_make and data_make of this server, and end with it",
                instead=suggest(handle, known) if known else "task_make, data_make",
            )
        if not isinstance(found, kind):
            raise TaskError(
                f"{handle!r} is a {type(found).__name__}",
                why="pairs (task_make) and data (data_make) are not the same",
                instead="the other tool",
            )
        return found


def _make_record(place: Place) -> None:
    """A record that can be read before anything ran. Raises LabError for one that cannot be written to."""
    from microtome.lab.database import Database

    database = Database(place)
    try:
        with database.writing():
            pass
    finally:
        database.close()


@dataclass(frozen=True)
class Call:
    """One call of a tool: where, by whom, and its job."""

    desk: Desk
    agent: str
    job: Job

    @contextmanager
    def models(self) -> Iterator[None]:
        """Use models: wait until nobody else does. Raises Stopped when the call is cancelled meanwhile."""
        self.job.take(self.desk.busy)
        try:
            yield
        finally:
            self.desk.busy.release()

    @contextmanager
    def recording(self) -> Iterator[Study]:
        """Use models, and record what happens as this agent's. Raises LabError where it cannot be recorded."""
        with self.models(), self.study() as study:
            yield study

    def study(self) -> Study:
        """The server's study as this agent works in it; not opened. Raises LabError when the name is a person's."""
        from microtome.lab.study import study

        settings = self.desk.settings
        return study(settings.study, folder=settings.place.folder, person=self.agent, agent=True)

    @contextmanager
    def writing(self) -> Iterator[Study]:
        """The same, for what is no run: the study and this agent are in the record, and the connection is given back."""
        study = self.study()
        try:
            study._known()
            yield study
        finally:
            study.database.close()

    @contextmanager
    def record(self) -> Iterator[Record]:
        """The project's record, for reading."""
        from microtome.lab.reading import Record

        record = Record(self.desk.settings.place)
        try:
            yield record
        finally:
            record.close()

    @property
    def project(self) -> Path:
        """The project's folder."""
        return self.desk.settings.place.folder


def texts_of(call: Call, given: Any, model: Any) -> Any:
    """Texts given as they are, or by the handle of a corpus or of labelled text."""
    from microtome.tasks.corpus import Corpus
    from microtome.tasks.labelled import LabelledText

    if not isinstance(given, str):
        return given
    found = call.desk.get(given, (Corpus, LabelledText))
    return list(found.texts) if isinstance(found, LabelledText) else found


def labelled_of(call: Call, handle: str) -> Any:
    """Labelled text by its handle."""
    from microtome.tasks.labelled import LabelledText

    return call.desk.get(handle, LabelledText)


def task_of(call: Call, handle: str) -> Any:
    """Pairs by their handle."""
    from microtome.tasks.pairs import PairTask

    return call.desk.get(handle, PairTask)
