"""Tokens with an explicit BOS policy and padding that never counts."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from microtome.errors import ModelError

Bos = Literal["model"] | bool
Padding = Literal["right", "left"]
Spans = Mapping[str, tuple[int, int] | None]


@dataclass(frozen=True)
class Tokens:
    """Prompts as one rectangle of token ids.

    Shapes: ids, mask [prompt, pos]; mask is True at a prompt's own tokens. `spans` has one mapping per prompt.
    """

    ids: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]
    padding: Padding = "right"
    spans: tuple[Spans, ...] = field(default=())

    @property
    def lengths(self) -> list[int]:
        """Own tokens of each prompt."""
        return [int(n) for n in self.mask.sum(-1)]

    @property
    def padded(self) -> bool:
        """True when any position is a pad."""
        return not bool(self.mask.all())

    def column(self, prompt: int, position: int) -> int:
        """The column of a prompt's own position."""
        shift = self.ids.shape[1] - self.lengths[prompt] if self.padding == "left" else 0
        return position + shift

    @property
    def starts(self) -> list[int]:
        """The column of each prompt's first own token."""
        width = self.ids.shape[1]
        return [width - n if self.padding == "left" else 0 for n in self.lengths]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self) -> list[list[int]]:
        """The ids of each prompt, without padding."""
        return [self.ids[i][self.mask[i]].tolist() for i in range(len(self))]


def pack(
    rows: Sequence[Sequence[int]],
    *,
    pad: int | None = None,
    padding: Padding = "right",
    spans: Sequence[Spans] = (),
) -> Tokens:
    """Put prompts of ids into one rectangle.

    pad: the id that fills it up; None takes each prompt's first token, which the model has for certain.

    Raises
    ------
    ModelError: no prompts, or an empty one.
    """
    if not len(rows):
        raise ModelError(
            "no prompts were given", why="the list is empty", instead='for example model.run(["Hello"])'
        )
    empty = [i for i, row in enumerate(rows) if not len(row)]
    if empty:
        raise ModelError(f"prompt {empty[0]} has no tokens", why="a model needs at least one token",
                         instead="give it text, or bos=True")  # fmt: skip
    width = max(len(row) for row in rows)
    fill = [row[0] if pad is None else pad for row in rows]
    ids = torch.tensor(fill, dtype=torch.long)[:, None].repeat(1, width)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        own = slice(0, len(row)) if padding == "right" else slice(width - len(row), width)
        ids[i, own] = torch.tensor(list(row), dtype=torch.long)
        mask[i, own] = True
    return Tokens(ids, mask, padding, tuple(spans))


def encode(tokenizer: Any, text: str, *, bos: Bos = "model") -> list[int]:
    """Token ids of one text.

    bos: "model" does what the tokenizer does by itself; True puts exactly one BOS in front; False none.

    Raises
    ------
    ModelError: no tokenizer, or bos=True for a tokenizer without a BOS token.
    """
    if tokenizer is None:
        raise ModelError(
            "this model has no tokenizer",
            why="it was given as a module",
            instead="pass token ids, or mt.load(module, tokenizer=...)",
        )
    if bos == "model":
        return list(tokenizer(text).input_ids)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    if not bos:
        return ids
    first = tokenizer.bos_token_id
    if first is None:
        raise ModelError(
            "this tokenizer has no BOS token",
            why="bos=True asks for one",
            instead='use bos="model" or bos=False',
        )
    return ids if ids[:1] == [first] else [first, *ids]


def where_it_stands(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text as it follows another word if it begins with a space, and as it stands alone if not.

    Alone, " Mary" is two tokens for a tokenizer that puts a space of its own in front of every text (Llama 2). Empty where
    the text melts into the word before it.
    """
    if not text.startswith(" "):
        return encode(tokenizer, text, bos=False)
    before, whole = (encode(tokenizer, part, bos=False) for part in ("x", "x" + text))
    return whole[len(before) :] if whole[: len(before)] == before else []


def tokens_of(prompts: Any, tokenizer: Any, *, bos: Bos = "model", padding: Padding = "right") -> Tokens:
    """Tokens from text, texts, ids, a side of a task (anything with `ids` and `spans`), or Tokens themselves.

    Raises
    ------
    ModelError: anything else, an empty prompt, or text without a tokenizer.
    """
    if isinstance(prompts, Tokens):
        return prompts
    pad = getattr(tokenizer, "pad_token_id", None)
    if isinstance(prompts, str):
        prompts = [prompts]
    if hasattr(prompts, "ids") and hasattr(prompts, "spans"):
        per_prompt = [
            {name: where[i] for name, where in prompts.spans.items()} for i in range(len(prompts.ids))
        ]
        return pack(prompts.ids, pad=pad, padding=padding, spans=per_prompt)
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or prompts.is_floating_point():
            raise ModelError(f"token ids of shape {tuple(prompts.shape)}", why="ids are a [prompt, pos] tensor of integers",
                             instead="pass texts, lists of ids, or such a tensor")  # fmt: skip
        prompts = prompts.tolist()
    if hasattr(prompts, "tolist"):  # of NumPy
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise _no_prompt(prompts, "this")
    if prompts and _is_id(prompts[0]):
        prompts = [prompts]
    rows = [
        encode(tokenizer, p, bos=bos) if isinstance(p, str) else _ids(p, f"prompt {i}")
        for i, p in enumerate(prompts)
    ]
    return pack(rows, pad=pad, padding=padding)


def _is_id(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def _ids(prompt: Any, where: str) -> list[int]:
    """A prompt that is given as token ids. `bytes` would pass for numbers, and mean something else."""
    row = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(row, Sequence) or isinstance(row, bytes) or not all(map(_is_id, row)):
        raise _no_prompt(prompt, where)
    ids = [int(one) for one in row]
    if any(abs(one) >= 1 << 63 for one in ids):
        raise ModelError(f"{where} holds a number that is no token id: {max(ids, key=abs):.3g}", why="it is not in any vocabulary",
                         instead="tokenise with this model's own tokenizer")  # fmt: skip
    return ids


def _no_prompt(value: Any, where: str) -> ModelError:
    inside = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return ModelError(f"{where} is no prompt but a {type(value).__name__}{inside}", why="a prompt is text, or a list of token ids",
                      instead='for example model.run(["Hello"]) or model.run([[1, 5, 9]])')  # fmt: skip


def chat_text(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation under the model's own chat template.

    Raises
    ------
    ModelError: the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ModelError(
            "this model has no chat template",
            why="its tokenizer defines none",
            instead="write the prompt out as text",
        )
    out = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=add_generation_prompt, return_dict=True
    )
    return list(out["input_ids"])


def token_strings(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token as the user sees it: its text with the space before it, and bytes that are no text of their own as <0x..>.

    A character of several tokens (an emoji, a rare letter) shows as the bytes of each.
    """  # fmt: skip
    if tokenizer is None:
        return [str(i) for i in ids]
    return [_string(tokenizer, int(i)) for i in ids]


def _string(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if _SPACE in piece:  # SentencePiece; decoding a token by itself drops its space
        return piece.replace(_SPACE, " ")
    if "\ufffd" not in text and text:
        return text
    table = _byte_letters()
    if not all(letter in table for letter in piece):
        return piece
    return bytes(table[letter] for letter in piece).decode("utf-8", errors=_AS_BYTES)


_SPACE = "\u2581"
_AS_BYTES = "microtome_as_bytes"


def _as_bytes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{b:02X}>" for b in error.object[error.start : error.end]), error.end


codecs.register_error(_AS_BYTES, _as_bytes)


@cache
def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level tokenizers write bytes (gpt2's table): printable ones stand for themselves, the others
    for 256 and up in order."""  # fmt: skip
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def check_ids(tokens: Tokens, d_vocab: int, n_ctx: int | None) -> None:
    """Refuse ids outside the vocabulary and prompts over the context length. Pads are not looked at: some tokenizers
    have one that the model lacks."""
    own = tokens.ids[tokens.mask]
    low, high = int(own.min()), int(own.max())
    if low < 0 or high >= d_vocab:
        raise ModelError(f"token id {low if low < 0 else high} is not in the vocabulary", why=f"ids go from 0 to {d_vocab - 1}",
                         instead="tokenise with this model's own tokenizer")  # fmt: skip
    longest = max(tokens.lengths)
    if n_ctx is not None and longest > n_ctx:
        raise ModelError(f"a prompt has {longest} tokens", why=f"this model's context is {n_ctx} tokens",
                         instead="shorten it, or split it into several prompts")  # fmt: skip
