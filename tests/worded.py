"""Models of tests with a tokenizer of one word per token, so that prompts can be texts."""

from __future__ import annotations

import planted
import tiny
from microtome.facade import Model
from microtome.model.load import load_module

WORDS = ("<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, tiny.VOCAB)))
"""Word i has the id i."""


def tokenizer(template: str | None = None):
    """Words at spaces; unknown ones become the pad."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    fast.chat_template = template
    return fast


def with_words(model: Model, template: str | None = None) -> Model:
    """The same module with that tokenizer."""
    return Model(load_module(model.hf, tokenizer=tokenizer(template)))


def copier() -> Model:
    """`planted.copier`: says the word at place 3, whatever the others are."""
    return with_words(planted.copier())
