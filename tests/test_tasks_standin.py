"""Small tokenizers made on the fly, and a model of which tasks see nothing but its tokenizer."""

from functools import lru_cache
from types import SimpleNamespace

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from microtome.errors import TaskError
from microtome.model.tokens import encode, tokens_of, where_it_stands
from microtome.tasks import capitals, colored_objects, first_names, gendered_pronoun, greater_than, ioi, sva
from microtome.tasks.encode import Encoder

EXTRA = " is are was were has have he she and then . , Mary went to the store John gave a book when It's"
BOS = "<s>"


class Standin:
    """What a task may ask of a model."""

    def __init__(self, tokenizer, n_ctx=512, d_vocab=None):
        self.tokenizer = tokenizer
        self.facts = SimpleNamespace(n_ctx=n_ctx, d_vocab=d_vocab or len(tokenizer))

    def tokens(self, prompts, *, bos="model", padding="right"):
        return tokens_of(prompts, self.tokenizer, bos=bos, padding=padding)

    def single_token(self, text):
        ids = encode(self.tokenizer, text, bos=False)
        if len(ids) != 1:
            raise TaskError(f"{text!r} is {len(ids)} tokens")
        return ids[0]


def corpus():
    """Every word that a built-in task can write."""
    out = [EXTRA]
    for module in (ioi, sva, capitals, greater_than, gendered_pronoun, colored_objects):
        for name, value in vars(module).items():
            if name.startswith("_") and name[1:2].isupper() and not isinstance(value, int):
                words = value.split() if isinstance(value, str) else [str(v) for v in value]
                out.append(" " + " ".join(words))
    nouns = [sva._plural(noun) for noun in sva._NOUNS]
    return [
        *out,
        " " + " ".join(nouns),
        *(" " + " ".join(names[:60]) for names in first_names._lists()),
        " ".join(f"{a} {b}" for a, b in [("", ""), *capitals.countries().items()]),
    ]


def _fast(raw, **special):
    return PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False, **special)


@lru_cache
def words():
    """Whole words with their leading space, digits in pairs (as GPT-2 has them), no BOS."""
    pieces = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\d{1,2}| ?[^\s\p{L}\d]|\s"), "isolated")
    vocab = {"<unk>": 0}
    for text in [*corpus(), *(f"{y:02d} {y:02d}" for y in range(100))]:
        for piece, _ in pieces.pre_tokenize_str(text):
            vocab.setdefault(piece, len(vocab))
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pieces
    return Standin(_fast(raw, unk_token="<unk>"))


@lru_cache
def bpe(bos=True, size=6000):
    """Byte-level BPE with digits alone (as SmolLM2 has them) and, with bos, a BOS in front of every prompt."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return Standin(_fast(raw, bos_token=BOS))


@lru_cache
def sentencepiece():
    """As Llama 2 has it: spaces are part of words, a text gets one in front, digits alone, a BOS."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("▁"), "merged_with_next"),
            pre_tokenizers.Split(Regex("[,.]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    letters = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=6000, special_tokens=["<unk>", BOS], initial_alphabet=["▁", *letters], show_progress=False)  # fmt: skip
    raw.train_from_iterator(corpus(), trainer)
    raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return Standin(_fast(raw, bos_token=BOS, unk_token="<unk>"))


@lru_cache
def pieces():
    """A BPE with hardly a merge: no word is one token."""
    return bpe(bos=False, size=270)


@pytest.mark.parametrize("model", [words(), bpe(), sentencepiece()])
def test_a_word_with_its_space_is_one_token_where_it_stands(model):
    assert len(where_it_stands(model.tokenizer, " Mary")) == 1
    assert len(where_it_stands(model.tokenizer, " Mary gave")) == 2
    assert len(encode(sentencepiece().tokenizer, " Mary", bos=False)) == 2  # what a text by itself would say


def test_words_that_a_tokenizer_does_not_know_are_not_one_token():
    """A tokenizer of whole words has one token for all of them: two such names would be one prompt."""
    encoder = Encoder(words())
    assert encoder.single(" John") and not encoder.single(" Ermintrude")


@pytest.mark.parametrize("model", [words(), bpe()])
def test_the_standins_have_names_as_single_tokens(model):
    assert model.single_token(" Mary") != model.single_token(" John")


def test_the_standins_cut_years_in_the_two_ways_that_matter():
    assert len(words().tokenizer(" 1743").input_ids) == 2
    assert len(bpe(False).tokenizer(" 1743").input_ids) == 5
