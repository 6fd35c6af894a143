"""What a record of calls needs in tests: files in a mapping, and models that are found again by their number."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager

from microtome.lab import arguments as a
from microtome.results import observe


class Kept(dict):
    """Files by the hash of their content."""

    def put(self, content: bytes, suffix: str) -> str:
        key = hashlib.blake2b(content, digest_size=16).hexdigest()
        self[f"{key[:2]}/{key}{suffix}"] = content
        return f"{key[:2]}/{key}{suffix}"

    def get(self, key: str) -> bytes:
        return self[key]


class Shelf:
    """Models held in memory, by number: tests of arguments need no second copy of them."""

    def __init__(self) -> None:
        self.models = []

    def model_of(self, model):
        made = a.recipe_of(model)
        if not isinstance(made, str):
            return made
        if not any(m is model for m in self.models):
            self.models.append(model)
        return {"kind": "toy", "name": str([m is model for m in self.models].index(True))}

    def load(self, recipe):
        return self.models[int(recipe["name"])] if recipe["kind"] == "toy" else a.load_again(recipe)


class Recorder:
    """Encodes what is told at the begin of each run, as a record does."""

    def __init__(self, files, shelf) -> None:
        self.files, self.shelf, self.begun, self.results = files, shelf, {}, {}

    def __call__(self, event) -> None:
        if event.kind == "begin":
            encoded = a.encode(event.arguments, self.files, model_of=self.shelf.model_of)
            text = json.dumps(json.loads(encoded.text()))  # what a database gives back
            self.begun[event.run] = (event.method, event.query, encoded, text)
        elif event.kind == "end":
            self.results[event.run] = event.result

    def runs(self, method):
        """(query, encoded, text, result) of the runs of a technique, in order."""
        return [(q, e, t, self.results[run]) for run, (m, q, e, t) in self.begun.items() if m == method]


@contextmanager
def recording():
    """(recorder, files, shelf) while the block runs."""
    files, shelf = Kept(), Shelf()
    recorder = Recorder(files, shelf)
    with observe(recorder):
        yield recorder
