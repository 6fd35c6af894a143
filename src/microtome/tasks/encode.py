"""From text with named places to tokens with named ranges, by the tokenizer of the model under study."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microtome.errors import TaskError
from microtome.tasks.checks import quote
from microtome.tasks.pairs import Side, Span

__all__ = ["Encoded", "Encoder", "Prompt", "render", "to_side"]


@dataclass(frozen=True)
class Prompt:
    """A prompt before it is tokenised.

    slots: name -> character range in `text`; when `ids` is given (a prompt without text of its own, fed as it
    is) a token range.
    """

    text: str
    slots: Mapping[str, Span] = field(default_factory=dict)
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Encoded:
    """A prompt's tokens (BOS included where the tokenizer adds one) and the token range of each slot."""

    ids: tuple[int, ...]
    slots: Mapping[str, Span]


def render(template: str, values: Mapping[str, str]) -> Prompt:
    """Fill "{slot}"s of a template, remembering where in the text each one went."""
    text, slots = "", {}
    for literal, slot, _, _ in string.Formatter().parse(template):
        text += literal
        if slot is not None:
            slots[slot] = (len(text), len(text) + len(values[slot]))
            text += values[slot]
    return Prompt(text, slots)


class Encoder:
    """A model's tokenizer, asked the way tasks ask: no padding, its own BOS policy, exact token ranges.

    Takes `model.tokenizer` and `model.facts.n_ctx` from the model and nothing else. With `tokenizer=None` only
    prompts given as token ids can be used.

    Raises
    ------
    TaskError: the tokenizer ends every text with a special token, so that nothing would follow the prompt.
    """

    def __init__(self, model: Any) -> None:
        self.tokenizer = model.tokenizer  # not the model itself: a task must not keep its weights alive
        self.n_ctx: int | None = getattr(getattr(model, "facts", None), "n_ctx", None)
        self._cache: dict[str, tuple[tuple[int, ...], tuple[Span, ...]]] = {}
        self.prefix = self._special_prefix() if self.tokenizer is not None else ()

    def _special_prefix(self) -> tuple[int, ...]:
        own = self._inner("a")
        fed = self._fed("a")
        at = len(fed) - len(own)
        if at < 0 or fed[at:] != own:
            raise TaskError(
                "this tokenizer does not end a prompt with the prompt's own last token",
                why=f"{quote('a')} becomes the ids {list(fed)}, its own part is {list(own)}",
                instead="tasks need a causal language model: what follows the last token is what they score",
            )
        return fed[:at]

    def _fed(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt by the rule of `Model.tokens`."""
        from microtome.model.tokens import encode

        return tuple(encode(self.tokenizer, text, bos="model"))

    def _told(self, text: str) -> tuple[tuple[int, ...], tuple[Span, ...]]:
        """Ids and character ranges of a text's own tokens; ranges are () for a slow tokenizer."""
        if text not in self._cache:
            if self.tokenizer is None:
                raise TaskError(
                    f"{quote(text)} cannot be tokenised",
                    why="this model was given without a tokenizer",
                    instead="give prompts and answers as token ids, or mt.load(module, tokenizer=...)",
                )
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise TaskError(
                    f"{quote(text)} is not text",
                    why=f"character {error.start} is half of a surrogate pair, which no tokenizer can read",
                    instead="remove it, or write the whole character",
                ) from error
            fast = bool(getattr(self.tokenizer, "is_fast", False))
            told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
            offsets = tuple((int(a), int(b)) for a, b in told["offset_mapping"]) if fast else ()
            self._cache[text] = tuple(told["input_ids"]), offsets
        return self._cache[text]

    def _inner(self, text: str) -> tuple[int, ...]:
        return self._told(text)[0]

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a prompt as they are fed to the model."""
        return self.prefix + self._inner(text)

    def plain(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that stands alone, without special tokens."""
        return self._inner(text)

    def strings(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Each token as the user sees it."""
        from microtome.model.tokens import token_strings

        return tuple(token_strings(self.tokenizer, ids))

    def shown(self, ids: Sequence[int]) -> str:
        """Tokens in quotes, for messages."""
        return " ".join(quote(s, 24) for s in self.strings(ids))

    def single(self, text: str) -> bool:
        """True when `text` is exactly one token where it stands. The token for what a tokenizer does not know is none: all
        such words are the same to the model.
        """
        from microtome.model.tokens import where_it_stands

        own = where_it_stands(self.tokenizer, text)
        return len(own) == 1 and own[0] != self._unknown

    @property
    def _unknown(self) -> int | None:
        found: int | None = getattr(self.tokenizer, "unk_token_id", None)
        return found

    def words(self, candidates: Iterable[str], what: str, *, least: int, before: str = " ") -> list[str]:
        """The candidates that are one token after a space, each once, in their order.

        Raises
        ------
        TaskError: fewer than `least` of them are.
        """
        every = list(dict.fromkeys(candidates))
        kept = [word for word in every if self.single(before + word)]
        if len(kept) < least:
            split = next((w for w in every if w not in kept), "")
            pieces = self.shown(self._inner(before + split)) if split else ""
            raise TaskError(
                f"{len(kept)} of {len(every)} {what} are one token for this tokenizer, {least} are needed",
                why=f"words of one token keep the prompts aligned; {quote(before + split)} is {pieces}",
                instead="use another task, or give pairs of your own (mt.pairs)",
            )
        return kept

    def encode(self, prompt: Prompt) -> Encoded:
        """Tokens and slot ranges of one prompt.

        Raises
        ------
        TaskError: a slot's ends do not fall between tokens, or the tokenizer cannot say where tokens lie.
        """
        if prompt.ids is not None:
            return Encoded(prompt.ids, prompt.slots)
        ids = self.ids(prompt.text)
        if not prompt.slots:
            return Encoded(ids, {})
        if not getattr(self.tokenizer, "is_fast", False):
            raise TaskError(
                "this tokenizer cannot say where its tokens lie in the text",
                why="it is a slow tokenizer, without offsets",
                instead="load its fast version, or use prompts without spans",
            )
        offsets = self._told(prompt.text)[1]
        found = {name: _tokens_in(prompt.text, offsets, name, at) for name, at in prompt.slots.items()}
        return Encoded(ids, {name: self._moved(at) for name, at in found.items()})

    def _moved(self, at: Span) -> Span:
        return at[0] + len(self.prefix), at[1] + len(self.prefix)

    def continuations(
        self, text: str, answers: Sequence[str], where: str = ""
    ) -> tuple[tuple[int, ...], ...]:
        """The tokens that each answer adds when it follows `text`.

        Raises
        ------
        TaskError: with an answer appended the tokenizer cuts the prompt itself differently, so that the
        model would never be asked for this answer after these tokens; or it does not know a word of the answer.
        """
        own = self._inner(text)
        whole = self.tokenizer([text + a for a in answers], add_special_tokens=False).input_ids
        for answer, ids in zip(answers, whole, strict=True):
            if tuple(ids[: len(own)]) != own or len(ids) <= len(own):
                raise TaskError(
                    f"{where}{quote(answer)} cannot follow {quote(text[-24:])}",
                    why=f"alone the prompt ends in {self.shown(own[-2:])}; with the answer it becomes {self.shown(ids[-3:])}",
                    instead="end the prompt without a space and start the answer with one"
                    if text.endswith(" ")
                    else "end the prompt where a token ends",
                )
            if self._unknown in ids[len(own) :] and self.tokenizer.unk_token not in answer:
                raise TaskError(
                    f"{where}this tokenizer does not know {quote(answer)}",
                    why="it becomes the token that stands for every word it does not know",
                    instead="choose another word",
                )
        return tuple(tuple(ids[len(own) :]) for ids in whole)

    def continuation(self, text: str, answer: str, where: str = "") -> tuple[int, ...]:
        """The tokens that one answer adds (see `continuations`)."""
        return self.continuations(text, [answer], where)[0]

    def fits(self, where: str, length: int) -> None:
        """Refuse prompts that with their answer exceed the model's context."""
        if self.n_ctx is not None and length > self.n_ctx:
            raise TaskError(
                f"{where}: the prompt with its answer has {length} tokens",
                why=f"this model's context is {self.n_ctx} tokens",
                instead="shorten it",
            )

    def confirm(self, texts: Sequence[str], ids: Sequence[tuple[int, ...]]) -> None:
        """Refuse when `Model.tokens` would feed other tokens than those the task was made of."""
        for text, have in zip(texts, ids, strict=True):
            fed = self._fed(text)
            if have != fed:
                raise TaskError(
                    f"{quote(text)} is tokenised in two ways",
                    why=f"as a prompt {list(fed)[:12]}, as plain text {list(have)[:12]}",
                    instead="remove special tokens from the text, or give token ids",
                )


def to_side(
    encoder: Encoder,
    prompts: Sequence[Prompt],
    spans: Sequence[Mapping[str, Span]],
    variables: Sequence[Mapping[str, str]] = (),
    surface: Sequence[Mapping[str, str]] = (),
) -> Side:
    """A side of a task from prompts and the token ranges of their spans ("end", the last token, is added).

    Raises
    ------
    TaskError: see `checks.side`; or the model would be fed other tokens.
    """
    ids = [encoder.ids(p.text) if p.ids is None else p.ids for p in prompts]
    plain = [i for i, p in enumerate(prompts) if p.ids is None]
    if plain:
        encoder.confirm([prompts[i].text for i in plain], [ids[i] for i in plain])
    every = [
        {**own, "end": (len(row) - 1, len(row))} if row else dict(own)
        for own, row in zip(spans, ids, strict=True)
    ]
    names = list(dict.fromkeys(name for own in every for name in own))
    return Side(
        texts=tuple(p.text for p in prompts),
        ids=tuple(ids),
        spans={name: tuple(own.get(name) for own in every) for name in names},
        variables=tuple(variables),
        surface=tuple(surface),
        strings=tuple(encoder.strings(row) for row in ids),
    )


def _tokens_in(text: str, offsets: Sequence[Span], name: str, at: Span) -> Span:
    inside = [k for k, (a, b) in enumerate(offsets) if a < at[1] and b > at[0] and b > a]
    if inside:
        before = text[min(offsets[k][0] for k in inside) : at[0]]
        after = text[at[1] : max(offsets[k][1] for k in inside)]
        if not before.strip() and not after.strip():
            return inside[0], inside[-1] + 1
    raise TaskError(
        f'the span "{name}" ({quote(text[at[0] : at[1]])}) does not begin and end between tokens',
        why=f"in {quote(text)} a token reaches across its edge",
        instead="choose a span made of whole tokens",
    )
