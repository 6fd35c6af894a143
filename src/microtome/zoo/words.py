"""A tokenizer whose tokens are words, so that prompts of zoo models are readable text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from microtome.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, UNKNOWN = "<bos>", "<unk>"


def word_tokenizer(words: Sequence[str], *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer over the given words, split at spaces.

    Ids follow the order: "<bos>" first (id 0, put in front of every prompt) unless bos=False, then the words. Last comes
    "<unk>", for any other word: a model with `len(words) + bos` rows has no such id, so that the prompt is refused.

    Raises
    ------
    ModelError: a word twice, empty or with a space in it.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    every = [*([BOS] if bos else []), *words, UNKNOWN]
    bad = [w for w in every if not w or any(c.isspace() for c in w)]
    twice = sorted({w for w in every if every.count(w) > 1})
    if bad or twice:
        raise ModelError(
            f"these words cannot be tokens: {bad or twice}",
            why="words are split at spaces" if bad else "each token is one word, once",
            instead="give different words without spaces",
        )
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(every)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = WhitespaceSplit()
    if bos:
        inner.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=None, special_tokens=[(BOS, 0)])
    special = {"bos_token": BOS} if bos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, unk_token=UNKNOWN, **special
    )
