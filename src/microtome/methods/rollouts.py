"""Continuations of a chain of thought at its cuts and after edits, each cut sampled once however often it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microtome.controls.distributions import Shift, compare, counts
from microtome.errors import TaskError
from microtome.methods import prompting
from microtome.methods.prompting import UNPARSED, Samples, Sampling
from microtome.results.seeds import child
from microtome.results.technique import progress
from microtome.tasks.checks import quote
from microtome.tasks.encode import Encoder
from microtome.tasks.thought import Thought

if TYPE_CHECKING:
    from microtome.facade import Model

Read = Callable[[str], str]


@dataclass(frozen=True)
class Rolled:
    """Samples at one cut: texts after it, what was read from each, [sample]."""

    texts: tuple[str, ...]
    names: tuple[str, ...]


class Rollouts:
    """The question under one way of sampling."""

    def __init__(self, model: Model, question: Thought, how: Sampling, seed: int) -> None:
        self.model, self.question, self.how, self.seed = model, question, how, seed
        self.encoder = Encoder(model)
        self.front = prompting.render(
            model,
            self.encoder,
            question.prompt,
            system=question.system,
            prefill=question.opening,
            chat=question.chat,
        )
        self.read = prompting.extractor(how.extract, list(question.answers.items()))
        self._kept: dict[str, Rolled] = {}
        self._done = self._total = 0

    def plan(self, total: int) -> None:
        """How many cuts there will be, for progress."""
        self._total = total

    def text(self, body: Sequence[str]) -> str:
        """All that stands before a cut."""
        return self.front.text + "".join(body)

    def ids(self, body: Sequence[str]) -> tuple[int, ...]:
        """The same as tokens."""
        text = self.text(body)
        return self.encoder.plain(text) if self.question.chat else self.encoder.ids(text)

    def written(self) -> str:
        """The chain that the model writes by itself, greedily.

        Raises
        ------
        TaskError: it writes nothing.
        """
        made = self.model.generate([list(self.ids(()))], max_new_tokens=self.how.max_new_tokens)
        if not made.text[0].strip():
            raise TaskError("the model writes no chain of thought", why="its greedy continuation is empty", instead="give chain=, or another prompt")  # fmt: skip
        return made.text[0]

    def at(self, body: Sequence[str], again: str = "") -> Rolled:
        """Samples after these sentences; again: a name for a second, independent batch."""
        key = again + "\0" + "".join(body)
        if key not in self._kept:
            got = prompting.sample(self.model, [self.ids(body)], self.how, [self.read], seed=child(self.seed, f"rollouts {again}"),
                                   prefix=["".join(body)])  # fmt: skip
            self._kept[key] = Rolled(got.texts[0], got.names[0])
            self._done += 1
            progress(min(self._done, self._total), max(self._total, 1), "cuts", "sampling")
        return self._kept[key]

    def all(self) -> Samples:
        """Every sample so far, a row per cut."""
        rows = list(self._kept.values())
        return Samples(tuple(r.texts for r in rows), tuple(r.names for r in rows), ())

    def compare(self, first: Rolled, second: Rolled, names: Sequence[str], draws: int, name: str) -> Shift:
        """The second's distribution of answers against the first's."""
        both = counts(first.names, names), counts(second.names, names)
        return compare(*both, seed=self.seed, name=name, draws=draws)


@dataclass(frozen=True)
class Edited:
    """A changed chain. against: the cut of the unedited chain it is compared with; place: where the change is; forced: new text."""

    site: str
    body: tuple[str, ...]
    against: int
    place: int
    forced: str = ""


def body_of(chain: Thought, read: Read) -> tuple[str, ...]:
    """The sentences before the one in which an answer is first said.

    Raises
    ------
    TaskError: the first sentence says it already, or there are none.
    """
    sentences = chain.sentences
    for k in range(len(sentences)):
        if read("".join(sentences[: k + 1])) != UNPARSED:
            sentences = sentences[:k]
            break
    if not sentences:
        raise TaskError("there is no reasoning before the answer", why=f"the chain begins {quote(chain.chain[:80])}",
                        instead="another chain, or extract= with a pattern that finds the final answer only")  # fmt: skip
    return sentences


def deletions(body: tuple[str, ...]) -> list[Edited]:
    """Each sentence left out, the others kept."""
    return [
        Edited(f"delete {k}: {shown(text)}", body[:k] + body[k + 1 :], len(body), k)
        for k, text in enumerate(body)
    ]


def kinds_of(body: tuple[str, ...], kinds: Mapping[str, str]) -> list[Edited]:
    """Every sentence of a kind left out.

    Raises
    ------
    TaskError: a malformed pattern, or one that finds no sentence.
    """
    out = []
    for name, pattern in kinds.items():
        try:
            made = re.compile(pattern, re.I)
        except re.error as error:
            raise TaskError(f'the kind "{name}" is no regular expression', why=str(error), instead=r"r'\bwait\b'") from error  # fmt: skip
        kept = tuple(s for s in body if not made.search(s))
        if len(kept) == len(body):
            raise TaskError(f'no sentence is of the kind "{name}"', why=f"{pattern!r} finds nothing in {len(body)} sentences", instead="another pattern")  # fmt: skip
        first = next(k for k, s in enumerate(body) if made.search(s))
        out.append(Edited(f"delete {len(body) - len(kept)} of kind {shown(name)}", kept, len(body), first))
    return out


def forcings(body: tuple[str, ...], force: Sequence[tuple[int, str]], read: Read) -> list[Edited]:
    """A sentence replaced, everything after it regenerated.

    Raises
    ------
    TaskError: a number out of range, a text that is empty, the same, or says an answer.
    """
    out = []
    for pair in force:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TaskError(f"force holds {pair!r}", why="each is a number and a text", instead='force=[(0, "Another sentence.")]')  # fmt: skip
        k, text = pair
        if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k < len(body):
            raise TaskError(f"there is no sentence {k!r} before the answer", why=f"they are 0 to {len(body) - 1}", instead="a number of tables['sentences']")  # fmt: skip
        if not isinstance(text, str) or not text.strip():
            raise TaskError(f"the text to force is {text!r}", why="leaving a sentence out is delete", instead="give a sentence")  # fmt: skip
        if text.strip() == body[k].strip():
            raise TaskError(f"sentence {k} is forced to be what it is", why="nothing would change", instead="another sentence")  # fmt: skip
        lead = body[k][: len(body[k]) - len(body[k].lstrip())]
        new = (*body[:k], lead + text.strip())
        if read("".join(new)) != UNPARSED:
            raise TaskError(f"the forced sentence {quote(text)} says an answer", why="what is read would be the edit itself",
                            instead="a sentence that an answer may follow from")  # fmt: skip
        out.append(Edited(f"force {k}: {shown(text)}", new, k + 1, k, text.strip()))
    return out


def shown(text: str, most: int = 32) -> str:
    """A sentence short enough for a label."""
    flat = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
