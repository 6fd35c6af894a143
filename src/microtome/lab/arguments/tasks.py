"""Tasks by their content and by what made them; corpora by where they are.

A task's prompts are kept as they are. Its `source` draws donors and reference prompts: it is made again from the registry (or the
zoo), for the same tokenizer, and refused when it has other pools or another version than it had then.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from microtome.errors import LabError, MicrotomeError, ResultError

from .opening import Opening, checked
from .values import TAG, bad, field
from .writing import Writing

_SPLIT = ("rest", "held_out")


def write_task(writing: Writing, value: Any, depth: int) -> Any:
    """A task: its content as a file, its source by name."""
    made = writing.dataclass(value, depth, leave_out=("source",))
    return {
        TAG: "task",
        "hash": value.hash,
        "file": made["file"],
        "source": _write_source(writing, value, depth),
    }


def read_task(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The task. Raises LabError for content of another hash and for a source that is not what it was."""
    from microtome.tasks.pairs import PairTask

    source = _read_source(opening, data.get("source"), depth)
    return checked(PairTask(**opening.fields(data, depth), source=source), data)


def _write_source(writing: Writing, task: Any, depth: int) -> Any:
    source = task.source
    if source is None:
        return None
    model = _model_of(writing, source)
    if model is None:
        return _lost_source(
            writing, task, "it was made for another tokenizer than that of a model of this call"
        )
    if type(source).__module__.startswith("microtome.zoo."):
        return _write_zoo(writing, task, model, depth)
    return _write_generator(writing, task, model, depth)


def _write_generator(writing: Writing, task: Any, model: Any, depth: int) -> Any:
    from microtome.results import registry
    from microtome.tasks.generator import Generator

    source = task.source
    name = getattr(source, "name", None)
    if (
        not isinstance(source, Generator)
        or name not in registry.names("tasks")
        or registry.get("tasks", name) is not type(source)
    ):
        return _lost_source(
            writing, task, "it is no task of the registry, and draws donors and reference prompts"
        )
    wanted = [p for p in inspect.signature(type(source)).parameters if p != "model"]
    if missing := [p for p in wanted if not hasattr(source, p)]:
        return _lost_source(writing, task, f"it does not say which {', '.join(missing)} it was made with")
    return {
        TAG: "generator",
        "name": name,
        "version": source.version,
        "options": {p: writing.value(getattr(source, p), depth + 1) for p in wanted},
        "details": _details(source),
        "model": writing.value(model, depth + 1),
    }


def _write_zoo(writing: Writing, task: Any, model: Any, depth: int) -> Any:
    recipe = writing.model_of(model)
    if isinstance(recipe, str) or recipe.get("kind") != "zoo":
        return _lost_source(writing, task, "it belongs to a model of the zoo that was not made by zoo.build")
    return {
        TAG: "zoo_source",
        "recipe": dict(recipe),
        "class": type(task.source).__qualname__,
        "of": _subject(task.source),
    }


def _lost_source(writing: Writing, task: Any, why: str) -> Any:
    return writing.lost(task.source, f"the source of the task {task.name}: {why}")


def _read_source(opening: Opening, data: Any, depth: int) -> Any:
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise bad("the source of a task", f"it is a {type(data).__name__}")
    if data.get(TAG) == "zoo_source":
        return _read_zoo(opening, data)
    if data.get(TAG) == "generator":
        return _read_generator(opening, data, depth)
    return opening.value(data, depth + 1)  # the mark of a lost one says why


def _read_generator(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    from microtome.results import registry
    from microtome.tasks.generator import Generator

    name = field(data, "name", str)
    made = registry.get("tasks", name)
    if not (inspect.isclass(made) and issubclass(made, Generator)):
        raise bad(f"the source of the task {name!r}", "the registry has no generator of that name")
    options = {p: opening.value(v, depth + 1) for p, v in field(data, "options", dict).items()}
    source = made(opening.value(data.get("model"), depth + 1), **options)
    now, then = [source.version, _details(source)], [data.get("version"), data.get("details")]
    if now != then:
        raise LabError(
            f"the task {name!r} draws from other prompts than it did",
            why=f"its version and the digest of its pools are {now[0]} {now[1]}, the record says {then[0]} {then[1]}",
            instead="call the technique anew with a task of today: donors and reference prompts would differ",
        )
    return source


def _read_zoo(opening: Opening, data: Mapping[str, Any]) -> Any:
    source = opening.zoo.specimen(field(data, "recipe", dict)).task.source
    now = (type(source).__qualname__, _subject(source))
    if now != (data.get("class"), data.get("of")):
        raise bad(
            "the source of a task of the zoo",
            f"it is {now[0]} of {now[1]}, the record says {data.get('class')} of {data.get('of')}",
        )
    return source


def _subject(source: Any) -> str:
    """What a source of the zoo makes prompts about: its program, story or data."""
    found = next((getattr(source, k) for k in ("program", "story", "subject") if hasattr(source, k)), None)
    return str(getattr(found, "name", ""))


def _details(source: Any) -> str:
    """Digest of what the provenance says of a generator's pools."""
    from microtome.results.frozen import digest, dumps, freeze_json

    try:
        return digest(dumps(freeze_json(dict(source.details()), "details")))
    except ResultError:  # a plug-in's details that are no JSON: the version alone has to do
        return ""


def _model_of(writing: Writing, source: Any) -> Any:
    """The model of the call whose tokenizer a source uses: the very object, else one that writes every text alike."""
    encoder = getattr(source, "encoder", None)
    if encoder is None:
        return writing.models[0] if writing.models else None
    fitting = [m for m in writing.models if m.facts.n_ctx == encoder.n_ctx]
    same = [m for m in fitting if m.tokenizer is encoder.tokenizer]
    alike = [m for m in fitting if not same and _tokenizer(m.tokenizer) == _tokenizer(encoder.tokenizer)]
    return next(iter([*same, *alike]), None)


def _tokenizer(tokenizer: Any) -> Any:
    """What decides how a fast tokenizer cuts text; of others the object itself, equal to nothing else."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return tokenizer
    return (
        fast.to_str(),
        sorted(tokenizer.special_tokens_map.items(), key=str),
        getattr(tokenizer, "add_bos_token", None),
    )


def write_corpus(writing: Writing, value: Any, depth: int) -> Any:
    """A corpus by what `mt.corpus` was given (texts as a file), the parts taken of it, and its hash."""
    if not value.asked:
        return writing.lost(
            value, f"{value.name} was not read by mt.corpus, and nothing says how to read it again"
        )
    asked = {name: writing.value(v, depth + 1) for name, v in value.asked.items()}
    parts = [
        [str(p[0]), *(writing.value(x, depth + 1) for x in p[1:])] for p in value.provenance.get("part", ())
    ]
    ending = "".join(f"/{p[0]}" for p in parts)
    return {
        TAG: "corpus",
        "hash": value.hash,
        "name": value.name.removesuffix(ending),
        "file": writing.put_json({"asked": asked, "parts": parts}),
    }


def read_corpus(opening: Opening, data: Mapping[str, Any], depth: int) -> Any:
    """The corpus, read and taken apart as it was. Raises LabError where its text is not there or has changed."""
    from microtome.tasks.corpus import corpus

    told = opening.json(data.get("file"))
    if not isinstance(told, dict):
        raise bad("a corpus", "its file holds no mapping")
    asked = {name: opening.value(v, depth + 1) for name, v in field(told, "asked", dict).items()}
    try:
        found = corpus(**asked, name=field(data, "name", str))
    except MicrotomeError as error:
        raise LabError(f"the corpus {data['name']!r} cannot be read again: {error.what}", why=error.why,
                       instead="put its files back where they were") from error  # fmt: skip
    for part in field(told, "parts", list):
        found = _part(found, part)
    if found.hash != data.get("hash"):
        raise LabError(
            f"the corpus {data['name']!r} is not the one that was recorded",
            why=f"its text has the hash {found.hash}, the record says {data.get('hash')}",
            instead="put the files back as they were, or call the technique anew",
        )
    return found


def _part(whole: Any, part: Any) -> Any:
    if not isinstance(part, list) or not part or not isinstance(part[0], str):
        raise bad("a part of a corpus", f"it is {part!r}")
    if part[0] in _SPLIT and len(part) == 3:
        seed, held_out = part[1:]
        return whole.split(held_out, seed)[_SPLIT.index(part[0])]
    return whole.kinds(*part[0].split("+"))
