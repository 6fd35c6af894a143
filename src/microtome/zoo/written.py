"""Specimens whose weights are written down rather than compiled from a program: prompts, pairs and the mechanism around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from microtome.errors import ModelError, TaskError
from microtome.results.seeds import rng
from microtome.tasks import checks
from microtome.tasks.encode import Encoder, Prompt, to_side
from microtome.tasks.pairs import Continuations, Donors, PairTask, Side
from microtome.zoo.decoys import Decoys, with_decoys
from microtome.zoo.mechanism import CHANGES, Mechanism, Variable
from microtome.zoo.spec import Array, Spec, assemble, sources, true_edges
from microtome.zoo.specimen import Specimen
from microtome.zoo.words import word_tokenizer

if TYPE_CHECKING:
    from microtome.zoo.module import ZooForCausalLM

__all__ = ["Story", "StorySource", "Written", "confirmed", "specimen"]

Values = Mapping[str, str]
_SAMPLE, _TRIES = 64, 2000


@dataclass(frozen=True)
class Story:
    """How prompts are made from values, and what should follow them.

    variables: name -> its values; flips: those in which the two prompts of a pair differ. surface: what may change without
    changing a variable, drawn at random; layout: surface that donors keep, since it decides where tokens stand. write:
    values -> (span name or "", word) in order; answer: values -> word. groups: grouping -> the surface slot of its labels.
    clean: values that every clean prompt has.
    """

    name: str
    variables: Mapping[str, tuple[str, ...]]
    flips: tuple[str, ...]
    surface: Callable[[np.random.Generator], dict[str, str]]
    write: Callable[[Values], Sequence[tuple[str, str]]]
    answer: Callable[[Values], str]
    layout: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    clean: Values = field(default_factory=dict)

    def prompt(self, values: Values) -> Prompt:
        """The prompt with its named places."""
        text, slots = "", {}
        for slot, word in self.write(values):
            text += " " if text else ""
            if slot:
                slots[slot] = (len(text), len(text) + len(word))
            text += word
        return Prompt(text, slots)

    def draw(self, random: np.random.Generator) -> tuple[dict[str, str], dict[str, str]]:
        """Values of a clean and of a corrupt prompt."""
        clean = {k: v[int(random.integers(len(v)))] for k, v in self.variables.items()} | self.surface(random)
        clean |= self.clean
        corrupt = dict(clean)
        for name in self.flips:
            corrupt[name] = _other(self.variables[name], (clean[name],), random)
        return clean, corrupt


def _other(values: Sequence[str], without: Sequence[str], random: np.random.Generator) -> str:
    left = [v for v in values if v not in without]
    if not left:
        raise TaskError(
            "there is no third value", why=f"the variable has only {', '.join(values)}", instead="report this as not run"
        )  # fmt: skip
    return left[int(random.integers(len(left)))]


class StorySource:
    """Makes tasks, donors, reference prompts and interchanges from a story."""

    def __init__(self, model: Any, story: Story, words: Sequence[str]) -> None:
        self.encoder, self.story, self.words = Encoder(model), story, tuple(words)

    def task(self, n: int, seed: int) -> PairTask:
        """n different pairs, the metric read at the last position.

        Raises
        ------
        TaskError: fewer different pairs can be had.
        """
        checks.count(n, "n")
        seen = self.drawn(n, seed)
        if len(seen) < n:
            raise TaskError(
                f"{self.story.name} has no {n} different pairs",
                why=f"{_TRIES} draws gave {len(seen)}",
                instead=f"ask for n <= {len(seen)}",
            )
        left, right = ([pair[k] for pair in seen] for k in (0, 1))
        return PairTask(
            name=f"zoo/{self.story.name}",
            clean=self.side(left),
            corrupt=self.side(right),
            answers=tuple(self.follows(v) for v in left),
            wrong=tuple(self.follows(v) for v in right),
            differs=frozenset(self.story.flips),
            groups={by: tuple(v[slot] for v in left) for by, slot in self.story.groups.items()},
            provenance={"task": f"zoo/{self.story.name}", "n": n, "seed": seed, "source": "microtome.zoo", "flips": True},
            source=self,
        )  # fmt: skip

    def drawn(self, n: int, seed: int) -> list[tuple[dict[str, str], dict[str, str]]]:
        """Values of at most n different pairs."""
        random, seen = rng(seed, f"zoo/{self.story.name}"), dict[str, tuple[dict[str, str], dict[str, str]]]()
        for _ in range(_TRIES):
            if len(seen) == n:
                break
            clean, corrupt = self.story.draw(random)
            texts = [self.story.prompt(v).text for v in (clean, corrupt)]
            seen.setdefault(" | ".join(texts), (clean, corrupt))
        return list(seen.values())

    def side(self, rows: Sequence[Values]) -> Side:
        """Prompts of some values."""
        prompts = [self.story.prompt(v) for v in rows]
        spans = [self.encoder.encode(p).slots for p in prompts]
        variables = [{k: v[k] for k in self.story.variables} for v in rows]
        surface = [{k: x for k, x in v.items() if k not in self.story.variables} for v in rows]
        return to_side(self.encoder, prompts, spans, variables, surface)

    def follows(self, values: Values) -> Continuations:
        """What should follow."""
        return ((self.words.index(self.story.answer(values)),),)

    def outcome(self, values: Values, variable: str, value: str) -> Continuations:
        """What should follow if a variable had another value."""
        return self.follows({**values, variable: value} if variable in self.story.variables else values)

    def donors(self, task: PairTask, kind: str, seed: int) -> Donors:
        """See `PairTask.donors`.

        Raises
        ------
        TaskError: a variable with two values has no third one.
        """
        rows = [self._donor(task, i, kind, seed) for i in range(task.n)]
        side = self.side(rows)
        plain = {name: getattr(side, name) for name in Side.__dataclass_fields__}
        right: tuple[Continuations, ...] = ()
        wrong: tuple[Continuations, ...] = ()
        if kind == "wrong_value":
            right = tuple(self.follows(v) for v in rows)
            wrong = tuple(self.follows(task.corrupt.values(i)) for i in range(task.n))
        return Donors(**plain, kind=kind, answers=right, wrong=wrong)

    def _donor(self, task: PairTask, i: int, kind: str, seed: int) -> dict[str, str]:
        clean, corrupt = task.clean.values(i), task.corrupt.values(i)
        random = rng(seed, f"zoo/donors/{kind}/{task.clean.texts[i]}/{task.corrupt.texts[i]}")
        base = corrupt if kind == "irrelevant" else clean
        variables = {k: base[k] for k in self.story.variables}
        if kind == "wrong_value":
            for name in task.differs:
                variables[name] = _other(self.story.variables[name], (clean[name], corrupt[name]), random)
        for _ in range(_TRIES):
            values = self.story.surface(random) | {k: clean[k] for k in self.story.layout} | variables
            if self.story.prompt(values).text not in (task.clean.texts[i], task.corrupt.texts[i]):
                return values
        raise TaskError(f"{self.story.name} has no other prompt with the values of pair {i}")

    def reference(self, task: PairTask, n: int, seed: int) -> Side:
        """n different prompts, their layouts those of the task's prompts in turn."""
        random, seen = rng(seed, "zoo/reference"), dict[str, dict[str, str]]()
        for k in range(_TRIES):
            if len(seen) == n:
                break
            layout = task.clean.values(len(seen) % task.n)
            values = self.story.draw(random)[k % 2] | {name: layout[name] for name in self.story.layout}
            seen.setdefault(self.story.prompt(values).text, values)
        if len(seen) < n:
            raise TaskError(
                f"{n} reference prompts were asked for and {self.story.name} gave {len(seen)}",
                instead=f"ask for n <= {len(seen)}",
            )
        return self.side(list(seen.values()))


@dataclass(frozen=True)
class Written:
    """A model written down: its weights, its words (BOS first), its prompts, its variables with their directions.

    directions: variable -> rows of the unrotated stream, one per value or one for a number. [value, d_model].
    """

    name: str
    tier: str
    spec: Spec
    words: tuple[str, ...]
    story: Story
    variables: tuple[Variable, ...]
    directions: Mapping[str, Array]


def specimen(
    made: Written, *, seed: int, n: int, decoys: Decoys | None = None, module: ZooForCausalLM | None = None
) -> Specimen:
    """The specimen: checked on prompts of its story, its edges confirmed by cutting them one at a time.

    module: the weights in another form (with norms); edges are then confirmed on the form without.

    Raises
    ------
    ModelError: some prompt is not answered as the story says.
    TaskError: fewer than n different pairs.
    """
    from microtome.facade import Model
    from microtome.model.load import load_module

    spec, moved = (made.spec, None) if decoys is None else with_decoys(made.spec, decoys, seed=seed)
    plain = assemble(spec)
    hf = plain if module is None else module
    hf.config.name_or_path = f"zoo/{made.name}"
    model = Model(load_module(hf, tokenizer=word_tokenizer(made.words[1:])))
    source = StorySource(model, made.story, made.words)
    sample = [values for pair in source.drawn(_SAMPLE, seed=0) for values in pair]
    prompts = source.side(sample)
    ids = torch.tensor(prompts.ids)
    _answers(made, source, sample, hf, ids)
    variables = tuple(
        v if moved is None else Variable(v.name, moved[v.site], v.meaning, v.kind, v.values) for v in made.variables
    )  # fmt: skip
    edges = true_edges(spec)
    every, last = confirmed(plain, ids, edges)
    true = {edge.split("->")[0] for edge in edges}
    mechanism = Mechanism(
        name=made.name,
        n_layers=len(spec.blocks),
        n_heads=spec.n_heads,
        mlp=hf.config.intermediate_size > 0,
        nodes=tuple(node for node, _ in sources(spec) if node in true),
        edges=tuple(edges),
        confirmed=every,
        confirmed_last=last,
        decoys=tuple(node for node, w in sources(spec) if node not in true and bool(np.any(w))),
        variables=variables,
    )
    task = source.task(n, seed)
    return Specimen(
        made.name, seed, made.tier, model, mechanism, task, made.words, decoys, _spec=spec, _directions=made.directions
    )  # fmt: skip


def confirmed(
    module: ZooForCausalLM, ids: torch.Tensor, edges: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Edges that change some logit when they alone are cut: (anywhere, at the last position). ids [prompt, pos]."""
    from microtome.zoo.oracle import changes

    found = changes(module, ids, edges)
    return tuple(tuple(e for e in edges if found[e][k] > CHANGES) for k in (0, 1))  # type: ignore[return-value]


def _answers(
    made: Written, source: StorySource, sample: Sequence[Values], hf: Any, ids: torch.Tensor
) -> None:
    with torch.no_grad():
        found = hf(ids).logits[:, -1].argmax(-1).tolist()
    wrong = [v for v, word in zip(sample, found, strict=True) if source.follows(v) != ((word,),)]
    if wrong:
        raise ModelError(
            f"{made.name} answers {len(wrong)} of {len(found)} prompts otherwise than it should",
            why=f"the first is {made.story.prompt(wrong[0]).text!r}",
            instead="this is a defect of its construction: report it",
        )
