"""From prompts as texts to what the model says to them: rendering, teacher-forced reading, sampling and parsing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from microtome.errors import TaskError
from microtome.metrics import Metric, Scoring, metric, scoring
from microtome.replay.sweep import Bench, measure
from microtome.results import seeds
from microtome.results.technique import progress
from microtome.results.verdicts import Control
from microtome.tasks.checks import quote
from microtome.tasks.encode import Encoder

if TYPE_CHECKING:
    from microtome.facade import Model

Read = Literal["logprob", "first_token", "samples"]
Extract = str | Callable[[str], str | None] | None
Floats = NDArray[np.float64]
OTHER, UNPARSED = "other", "unparsed"
CHUNK = 128
GAP = 1e-3
PARSED = 0.8


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled and read.

    n: samples per prompt; temperature > 0; max_new_tokens: of each. extract: how an answer is read from a text. A regular
    expression with one group; a function of the text that returns the answer or None; or None for the answer whose text comes
    first. What is read is compared with the answers' texts and names, without case and spaces around it.
    """

    n: int = 20
    temperature: float = 1.0
    max_new_tokens: int = 16
    extract: Extract = None

    def __post_init__(self) -> None:
        for name, value, least in (("n", self.n, 1), ("max_new_tokens", self.max_new_tokens, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TaskError(
                    f"{name}={value!r}", why="it counts", instead=f"{name}={least} or more, a whole number"
                )
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise TaskError(f"temperature={self.temperature!r}", why="at temperature 0 every sample is the same text",
                            instead="temperature=1.0 samples what the model says")  # fmt: skip
        if isinstance(self.extract, str):
            check_pattern(self.extract)


def check_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression with exactly one group.

    Raises
    ------
    TaskError: it is malformed, or has no group or several.
    """
    try:
        made = re.compile(pattern)
    except re.error as error:
        raise TaskError(f"extract={pattern!r} is no regular expression", why=str(error), instead=r"r'answer is (\w+)'") from error  # fmt: skip
    if made.groups != 1:
        raise TaskError(f"extract={pattern!r} has {made.groups} groups", why="the one group is the answer",
                        instead=r"one group, others as (?:...)")  # fmt: skip
    return made


def extractor(extract: Extract, answers: Sequence[tuple[str, Sequence[str]]]) -> Callable[[str], str]:
    """A function from a text to the name of an answer, OTHER (something else was read) or UNPARSED.

    answers: (name, texts) each.
    """
    names = {_plain(t): name for name, texts in answers for t in (name, *texts)}
    # what the texts say goes before what a name says
    names |= {_plain(t): name for name, texts in answers for t in texts}
    if extract is None:
        found = sorted({t for _, texts in answers for t in map(_plain, texts) if t}, key=lambda t: -len(t))
        words = "|".join(_edge(t[0]) + re.escape(t) + _edge(t[-1]) for t in found)
        first = re.compile(f"({words})")

        def by_text(output: str) -> str | None:
            hit = first.search(output.casefold())
            return None if hit is None else hit.group(1)

        read: Callable[[str], str | None] = by_text
    elif isinstance(extract, str):
        pattern = check_pattern(extract)

        def by_pattern(output: str) -> str | None:
            hit = pattern.search(output)
            return None if hit is None else hit.group(1)

        read = by_pattern
    else:
        read = extract

    def name_of(output: str) -> str:
        got = read(output)
        if got is None:
            return UNPARSED
        if not isinstance(got, str):
            raise TaskError(f"extract returned {got!r}", why="an answer is text, or None where there is none", instead="return str or None")  # fmt: skip
        return names.get(_plain(got), OTHER)

    return name_of


def _edge(letter: str) -> str:
    """Where a word begins or ends, so that "no" is not found in "nothing"."""
    return r"\b" if letter.isalnum() else ""


def _plain(text: str) -> str:
    return text.strip().casefold()


@dataclass(frozen=True)
class Rendered:
    """A prompt as fed: its text with all that the chat template adds, and its token ids."""

    text: str
    ids: tuple[int, ...]


def render(
    model: Model, encoder: Encoder, user: str, *, system: str = "", prefill: str = "", chat: bool = False
) -> Rendered:
    """A prompt with its system prompt under the model's chat template, or plain, followed by what the turn begins with.

    Raises
    ------
    TaskError: no chat template, one that refuses these messages, or nothing left to feed.
    """
    if not chat:
        text = user + prefill
        ids = encoder.ids(text)
    else:
        if getattr(model.tokenizer, "chat_template", None) is None:
            raise TaskError("this model has no chat template", why="its tokenizer defines none",
                            instead="chat=False, and write the prompt out as text")  # fmt: skip
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": user})
        text = _templated(model, messages) + prefill
        ids = encoder.plain(text)
    if not ids:
        raise TaskError("a prompt has no tokens", why="it is empty", instead="write some text")
    return Rendered(text, ids)


def _templated(model: Model, messages: list[dict[str, str]]) -> str:
    from jinja2 import TemplateError

    try:
        return str(model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        raise TaskError("the chat template refuses this prompt", why=str(error), instead="for example without a system prompt") from error  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Prompts with the continuations that are read after each.

    answers, rest: per prompt the token sequences of the measured answer, and of all other answers (empty: none was given).
    """

    ids: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[tuple[int, ...], ...], ...]
    rest: tuple[tuple[tuple[int, ...], ...], ...]


def asked(
    encoder: Encoder, prompts: Sequence[Rendered], sets: Sequence[Sequence[Sequence[str]]], *, first: bool
) -> Asked:
    """Tokenise the answers where they stand. sets: [prompt][answer][text]; first: keep first tokens only.

    Raises
    ------
    TaskError: an answer that re-cuts the prompt, answers that share their first token under first-token reading, one that begins
    another, a prompt over the context.
    """
    own, rest = [], []
    for i, (prompt, answers) in enumerate(zip(prompts, sets, strict=True)):
        where = f"prompt {i}: "
        told = [tuple(encoder.continuations(prompt.text, list(texts), where)) for texts in answers]
        every = [ids for several in told for ids in several]
        encoder.fits(f"prompt {i}", len(prompt.ids) + max(map(len, every)))
        if first:
            told = [tuple(dict.fromkeys(ids[:1] for ids in several)) for several in told]
            _first_tokens(told, answers, encoder, where)
        else:
            _no_prefix(told, encoder, where)
        own.append(told[0])
        rest.append(tuple(ids for several in told[1:] for ids in several))
    return Asked(tuple(p.ids for p in prompts), tuple(own), tuple(rest))


def _first_tokens(told: Sequence[Any], answers: Sequence[Sequence[str]], encoder: Encoder, where: str) -> None:  # fmt: skip
    for i, one in enumerate(told):
        for j in range(i):
            if both := set(one) & set(told[j]):
                raise TaskError(
                    f"{where}{quote(answers[j][0])} and {quote(answers[i][0])} begin with the same token {encoder.shown(next(iter(both)))}",
                    why="their first token cannot tell them apart",
                    instead='read="logprob" reads all their tokens',
                )


def _no_prefix(told: Sequence[Any], encoder: Encoder, where: str) -> None:
    every = sorted(ids for several in told for ids in several)
    for a, b in zip(every, every[1:], strict=False):
        if b[: len(a)] == a:
            raise TaskError(f"{where}the answer {encoder.shown(a)} begins the answer {encoder.shown(b)}", why="its probability would be counted twice",
                            instead="answers of which none begins another: end them alike, or leave one out")  # fmt: skip


def log_probabilities(model: Model, asking: Asked) -> tuple[Floats, Floats | None]:
    """log P of the measured answer set and of all other answers, [prompt] each, nats, teacher-forced; None where none were given."""
    alone = not any(asking.rest)
    rest = [_stand_in(a) for a in asking.answers] if alone else asking.rest
    metrics = (metric("logprob"), _REST)
    values = np.zeros((len(asking.ids), 2))
    for start in range(0, len(asking.ids), CHUNK):
        some = slice(start, start + CHUNK)
        bench = Bench(model.binding, asking.ids[some], scoring(asking.answers[some], rest[some]), metrics)
        values[some] = measure(bench).double().cpu().numpy()
        progress(min(start + CHUNK, len(asking.ids)), len(asking.ids), "prompts", "reading")
    return values[:, 0], None if alone else values[:, 1]


def _stand_in(answers: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """A token that begins no answer, so that a plan of rows can be made; it is never read."""
    taken = {ids[0] for ids in answers}
    return ((next(t for t in range(len(taken) + 1) if t not in taken),),)


def _swapped(logits: Tensor, plan: Scoring, columns: Tensor | None, base: Tensor | None) -> Tensor:
    turned = Scoring(plan.prompt, plan.tails, plan.wrong, plan.answers)
    return metric("logprob").fn(logits, turned, columns, base)


_REST = Metric("logprob of the others", "nats", "vocabulary", "the other answers are more likely", _swapped)


@dataclass(frozen=True)
class Samples:
    """Sampled continuations per prompt: texts [prompt][sample] and what was read from each (a name, OTHER or UNPARSED)."""

    texts: tuple[tuple[str, ...], ...]
    names: tuple[tuple[str, ...], ...]
    lengths: tuple[tuple[int, ...], ...]

    def share(self, name: str) -> Floats:
        """Share of samples that were read as `name`, [prompt]."""
        return np.array([np.mean([n == name for n in row]) for row in self.names], dtype=np.float64)


def sample(
    model: Model,
    ids: Sequence[Sequence[int]],
    how: Sampling,
    read: Sequence[Callable[[str], str]],
    *,
    seed: int,
    prefix: Sequence[str] = (),
) -> Samples:
    """Sample `how.n` continuations of each prompt, one batch per prompt, seeded by the prompt's own tokens.

    prefix: text that stands before each continuation when it is read (a prefill, the sentences so far).

    Raises
    ------
    TaskError: prompt and new tokens pass the context.
    """
    limit = model.facts.n_ctx
    longest = max(map(len, ids))
    if limit is not None and longest + how.max_new_tokens > limit:
        raise TaskError(f"a prompt of {longest} tokens and {how.max_new_tokens} new ones", why=f"this model's context is {limit} tokens",
                        instead="fewer new tokens, or a shorter prompt")  # fmt: skip
    texts, names, lengths = [], [], []
    for i, row in enumerate(ids):
        key = ",".join(map(str, row))
        made = model.generate([list(row)] * how.n, max_new_tokens=how.max_new_tokens, temperature=how.temperature,
                              seed=seeds.child(seed, f"samples/{key}"))  # fmt: skip
        before = prefix[i] if prefix else ""
        texts.append(made.text)
        names.append(tuple(read[i](before + text) for text in made.text))
        lengths.append(tuple(map(len, made.new)))
        if len(ids) > 1:
            progress(i + 1, len(ids), "prompts", "sampling")
    return Samples(tuple(texts), tuple(names), tuple(lengths))


def read_alone(model: Model, asking: Asked, values: Floats, seed: int, k: int = 4) -> float:
    """Largest |difference| between a prompt read in its batch and the same prompt read by one plain forward, nats."""
    pick = seeds.rng(seed, "read_alone").permutation(len(asking.ids))[:k].tolist()
    gaps = [abs(float(values[i]) - _plainly(model, asking.ids[i], asking.answers[i])) for i in pick]
    return max(gaps)


@torch.no_grad()
def _plainly(model: Model, ids: Sequence[int], answers: Sequence[Sequence[int]]) -> float:
    total = []
    for tokens in answers:
        logits = model.run([[*ids, *tokens[:-1]]]).logits[0].double()
        steps = logits[len(ids) - 1 :].log_softmax(-1)
        total.append(float(sum(steps[k, t] for k, t in enumerate(tokens))))
    return float(np.logaddexp.reduce(total))


def drawn_alone(
    model: Model, prompts: Sequence[Sequence[int]], how: Sampling, seed: int, k: int = 3
) -> Control:
    """The log-probabilities that tokens are drawn with, against those of one plain forward over prompt and output. Gates."""
    pick = seeds.rng(seed, "read_alone").permutation(len(prompts))[:k].tolist()
    gap, size = 0.0, 1.0
    for i in pick:
        made = model.generate([list(prompts[i])] * 2, max_new_tokens=min(how.max_new_tokens, 8), temperature=how.temperature,
                              seed=seeds.child(seed, "alone"))  # fmt: skip
        for row, new in enumerate(made.new):
            if not new:
                continue
            whole = model.run([list(made.sequences[row])]).logits[0].float()
            stretch = whole[len(prompts[i]) - 1 : -1].log_softmax(-1)
            drawn = made.logits[row, : len(new)].float().log_softmax(-1)
            at = np.arange(len(new)), np.array(new)
            gap = max(gap, float((stretch[at] - drawn[at]).abs().max()))
            size = max(size, float(drawn[at].abs().max()))
    floor = GAP * size
    return Control("alone", "that padding, batching or a cached prefix changes what is read",
                   f"drawn tokens have the log-probability of one plain forward over prompt and output, within {floor:.1g}",
                   gap, gap <= floor, len(pick), gates=True)  # fmt: skip


def parsed(got: Samples) -> Control:
    """Whether answers could be read from most samples."""
    lost = got.share(UNPARSED)
    share = 1 - float(np.mean([n == UNPARSED for row in got.names for n in row]))
    return Control("readable", "that what is counted is what could be parsed, not what was said",
                   f"an answer is read from {PARSED:.0%} of the samples", {"parsed": share, "least in a prompt": 1 - float(lost.max())},
                   share >= PARSED, sum(map(len, got.names)))  # fmt: skip
