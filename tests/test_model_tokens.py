"""Tokens: BOS is explicit, pads never count, ids and texts and sides of tasks come in alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import ModelError
from microtome.model.tokens import Tokens, chat_text, check_ids, encode, pack, token_strings, tokens_of


@dataclass
class _Words:
    """A tokenizer of words; adds a BOS by itself or not."""

    adds: bool = True
    bos_token_id: int | None = 1
    pad_token_id: int | None = 9
    chat_template: str | None = None
    vocabulary: dict[str, int] = field(default_factory=dict)

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [self.vocabulary.setdefault(w, 10 + len(self.vocabulary)) for w in text.split()]
        first = (
            [self.bos_token_id] if self.adds and add_special_tokens and self.bos_token_id is not None else []
        )
        return type("Encoding", (), {"input_ids": first + ids})()

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = True) -> str:
        names = {i: w for w, i in self.vocabulary.items()}
        return "".join(names.get(i, "\ufffd") for i in ids)

    def convert_ids_to_tokens(self, i: int) -> str:
        return f"<{i}>"

    def apply_chat_template(
        self, messages: list[Any], add_generation_prompt: bool, return_dict: bool
    ) -> dict[str, list[int]]:
        assert return_dict
        return {"input_ids": [1, *range(20, 20 + len(messages)), *([2] if add_generation_prompt else [])]}


@pytest.mark.parametrize(
    ("adds", "bos", "expected"),
    [(True, "model", [1, 10, 11]), (False, "model", [10, 11]), (True, True, [1, 10, 11]), (False, True, [1, 10, 11]), (True, False, [10, 11]), (False, False, [10, 11])],
)  # fmt: skip
def test_bos_is_explicit_and_never_double(adds: bool, bos: Any, expected: list[int]) -> None:
    assert encode(_Words(adds), "a b", bos=bos) == expected


def test_bos_without_a_bos_token_and_no_tokenizer_are_refused() -> None:
    with pytest.raises(ModelError, match="no BOS"):
        encode(_Words(bos_token_id=None), "a", bos=True)
    assert encode(_Words(bos_token_id=None), "a", bos=False) == [10]
    with pytest.raises(ModelError, match="no tokenizer"):
        encode(None, "a")
    with pytest.raises(ModelError, match="no tokenizer"):
        tokens_of("a", None)


def test_a_text_that_starts_with_bos_gets_no_second() -> None:
    class Written(_Words):
        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return type("Encoding", (), {"input_ids": [1, 10]})()

    assert encode(Written(), "<s> a", bos=True) == [1, 10]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from(["right", "left"]),
    st.integers(0, 50),
)
def test_packing_keeps_every_row(rows: list[list[int]], padding: Any, pad: int) -> None:
    tokens = pack(rows, pad=pad, padding=padding)
    assert tokens.rows() == rows and tokens.lengths == [len(r) for r in rows] and len(tokens) == len(rows)
    assert tokens.ids.shape == tokens.mask.shape == (len(rows), max(map(len, rows)))
    assert (tokens.ids[~tokens.mask] == pad).all()
    assert tokens.padded == (len(set(tokens.lengths)) > 1)
    for i, row in enumerate(rows):
        for position, token in enumerate(row):
            assert (
                int(tokens.ids[i, tokens.column(i, position)]) == token
                and tokens.column(i, position) == tokens.starts[i] + position
            )


def test_every_way_of_giving_prompts() -> None:
    words = _Words(adds=False)
    assert tokens_of("a b", words).rows() == [[10, 11]]
    assert tokens_of(["a b", "c"], words).rows() == [[10, 11], [12]]
    assert tokens_of([[3, 4], [5]], words).rows() == [[3, 4], [5]]
    assert tokens_of([3, 4, 5], words).rows() == [[3, 4, 5]]
    assert tokens_of((3, 4), None).rows() == [[3, 4]]
    assert tokens_of(torch.tensor([[3, 4], [5, 6]]), None).rows() == [[3, 4], [5, 6]]
    mixed = tokens_of(["a", [7, 8]], words)
    assert mixed.rows() == [[10], [7, 8]] and int(mixed.ids[0, 1]) == 9
    same = pack([[1]])
    assert tokens_of(same, None) is same


def test_a_side_of_a_task_brings_its_spans() -> None:
    side = type(
        "Side",
        (),
        {"ids": ((3, 4, 5), (6, 7)), "spans": {"subject": ((0, 2), (1, 2)), "object": ((2, 3), None)}},
    )()
    tokens = tokens_of(side, None, padding="left")
    assert tokens.rows() == [[3, 4, 5], [6, 7]] and tokens.padding == "left"
    assert tokens.spans == ({"subject": (0, 2), "object": (2, 3)}, {"subject": (1, 2), "object": None})


@pytest.mark.parametrize(
    "prompts",
    [
        torch.tensor([1, 2]),
        torch.tensor([[1.0, 2.0]]),
        torch.zeros(1, 2, 3, dtype=torch.long),
        [],
        [[]],
        [[1], []],
        "",
    ],
)
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(ModelError):
        tokens_of(prompts, _Words(adds=False))


def test_ids_outside_the_vocabulary_and_long_prompts_are_refused() -> None:
    tokens = pack([[1, 2, 3], [4]])
    check_ids(tokens, 5, 3)
    with pytest.raises(ModelError, match="token id 4"):
        check_ids(tokens, 4, None)
    with pytest.raises(ModelError, match="3 tokens"):
        check_ids(tokens, 5, 2)


def test_a_pad_id_does_not_count_as_a_token() -> None:
    """A tokenizer whose pad lies beyond the model's vocabulary is no reason to refuse the prompts."""
    check_ids(pack([[1, 2, 3], [4]], pad=99), 5, None)


def test_tokens_as_the_user_sees_them() -> None:
    words = _Words(adds=False)
    ids = encode(words, "a b")
    assert token_strings(words, [*ids, 77]) == ["a", "b", "<77>"]
    assert token_strings(None, [3, 4]) == ["3", "4"]


def test_chat_needs_a_template() -> None:
    with pytest.raises(ModelError, match="chat template"):
        chat_text(_Words(), [{"role": "user", "content": "hi"}])
    assert chat_text(_Words(chat_template="x"), [{"role": "user", "content": "hi"}]) == [1, 20, 2]
    assert chat_text(_Words(chat_template="x"), [{}, {}], add_generation_prompt=False) == [1, 20, 21]


def test_tokens_are_frozen() -> None:
    with pytest.raises(AttributeError):
        pack([[1]]).padding = "left"  # type: ignore[misc]
    assert isinstance(pack([[1]]), Tokens)


def _fast(pieces: list[str], decoder: Any) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    inner.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_sentencepiece_strings_keep_the_space_before_a_word() -> None:
    """Decoded by itself, a word with a space before it and one without look the same."""
    from tokenizers import decoders

    pieces = ["\u2581world", "world", "\u2581", "\u2581\u2581", "<0xF0>", "\n", "<s>"]
    metaspace = decoders.Metaspace()
    llama = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    for decoder in (metaspace, llama):
        shown = token_strings(_fast(pieces, decoder), range(len(pieces)))
        assert shown == [" world", "world", " ", "  ", "<0xF0>", "\n", "<s>"]


def test_byte_level_strings_show_bytes_and_never_their_letters() -> None:
    from tokenizers import decoders, pre_tokenizers

    def written(text: str) -> str:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return str(level.pre_tokenize_str(text)[0][0])

    accent, emoji = written("\u00e9"), written("\U0001f600")
    pieces = [
        written(" caf") + accent[0],
        accent[1],
        written(" "),
        emoji[:3],
        emoji[3] + written(" \ufffd"),
        written("\n"),
    ]
    shown = token_strings(_fast(pieces, decoders.ByteLevel()), range(len(pieces)))
    assert shown == [" caf<0xC3>", "<0xA9>", " ", "<0xF0><0x9F><0x98>", "<0x80> \ufffd", "\n"]


@pytest.mark.parametrize(
    "prompts", [None, 5, {"a": 1}, b"abc", [b"abc"], [["a", "b"]], [[1.5]], [[True]], [None], [[10**30]], 1.5]
)
def test_what_is_no_prompt_is_refused_in_words(prompts: Any) -> None:
    with pytest.raises(ModelError, match="no prompt|no token id"):
        tokens_of(prompts, _Words())


def test_ids_of_any_kind_of_integer_are_ids() -> None:
    import numpy as np

    for prompts in (
        [3, 4],
        [np.int64(3), 4],
        [[3, 4]],
        [(3, 4)],
        np.array([[3, 4]]),
        torch.tensor([[3, 4]]),
        [torch.tensor([3, 4])],
        (range(3, 5),),
    ):
        assert tokens_of(prompts, None).rows() == [[3, 4]], prompts
