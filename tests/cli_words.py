"""Small models of known behaviour under any name, and files about their words: what the commands beyond circuits are tried on."""

from __future__ import annotations

import json
from pathlib import Path

import diffed
import planted
import probed
import relational
import steerable
import worded
from cli_toys import run
from microtome.cli import inputs
from microtome.tasks.labelled import LabelledText

FAST = {
    "steer": ["--dose", "-1", "--dose", "1", "--up", "glad0", "--down", "sad0", "--when", "both"],
    "vector": ["--shots", "3", "--heads", "1", "--nulls", "3", "--template", relational.TEMPLATE],
    "examples": ["--tokens", "400"],
    "heads": ["--prompts", "2", "--context", "24", "--ablate", "1", "--sets", "2"],
    "diff": ["--texts", "6"],
    "ask": [],
    "probe": ["--kind", "mass_mean", "--site", "L2.resid_post@-1", "-n", "140"],
}


class Words:
    """Which model each command gets, what was loaded, and the files in `folder`."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.folder, self.loaded, self.models = folder, [], {}
        monkeypatch.setattr(inputs, "load", self.load)

    def load(self, name, *_, **__):
        self.loaded.append(name)
        return self.models[name]() if name in self.models else self.model()

    def ready(self, command: str) -> list[str]:
        """The arguments of a quick run of a command that succeeds."""
        self.model = {"steer": steerable.model, "vector": relational.model, "probe": probed.model}.get(command, words)  # fmt: skip
        self.models = {"other": lambda: diffed.nudged(words())}
        made = getattr(self, f"_{command}", list)()
        return [command, *map(str, made), *FAST[command]]

    def write(self, name: str, text: str) -> Path:
        """A file."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def labelled(self, name: str, data: LabelledText) -> Path:
        """Labelled text as a file, its first grouping as entities."""
        groups = next(iter(data.groups.values()), data.texts)
        rows = [
            {"text": t, "label": data.classes[y], "entity": g}
            for t, y, g in zip(data.texts, data.labels, groups, strict=True)
        ]
        return self.write(name, "\n".join(map(json.dumps, rows)))

    def _probe(self):
        return [self.labelled("words0.jsonl", probed.halves()[0])]

    def _steer(self):
        self.write("prompts.txt", "\n".join(steerable.prompts(6)))
        return [self.labelled("mood.jsonl", steerable.texts()), "--prompts", self.folder / "prompts.txt"]

    def _vector(self):
        return [self.write("pairs.csv", "word,answer\n" + "\n".join(",".join(p) for p in relational.PAIRS))]

    def _examples(self):
        return ["L1.z", "--corpus", self.corpus()]

    def _heads(self):
        return ["--corpus", self.corpus()]

    def _diff(self):
        return ["first", "other", "--data", self.corpus()]

    def _ask(self):
        grid = 'template: "w4 {x} w6 {item}"\nfactors:\n  x: [w8, w9]\n  item: [w10, w11, w12]\nanswers: [" w20", " w21"]\nparaphrases: ["w5 {x} {item}"]\nover: [item]\n'
        return [self.write("grid.yaml", grid)]

    def corpus(self) -> Path:
        """A folder of documents."""
        place = self.folder / "corpus"
        place.mkdir(exist_ok=True)
        for i in range(12):
            said = " ".join(f"w{3 + (7 * i + k * k) % 27}" for k in range(90))
            (place / f"{i}.txt").write_text(said, encoding="utf-8")
        return place


def words():
    """The one-head model with a tokenizer of words."""
    return worded.with_words(planted.one_head())


__all__ = ["FAST", "Words", "run", "words"]
