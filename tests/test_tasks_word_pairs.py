"""Pairs of words: true ones, split without a common answer, one token where a model asks for it."""

from __future__ import annotations

import pytest

from microtome.errors import TaskError
from microtome.tasks.word_pairs import KINDS, WordPairs, word_pairs
from test_tasks_standin import bpe


@pytest.mark.parametrize("name", KINDS)
def test_every_relation_is_there_and_the_same_again(name):
    found = word_pairs(name, seed=2)
    assert found == word_pairs(name, seed=2) and found.hash != word_pairs(name, seed=3).hash
    assert len(found) >= 60 and found.relation and found.source
    assert word_pairs(name, n=9, seed=2).pairs == found.pairs[:9]
    rest, out = found.split(0.4, seed=0)
    assert not set(rest.pairs) & set(out.pairs) and len(rest) + len(out) == len(found)
    assert not {b.casefold() for _, b in rest.pairs} & {b.casefold() for _, b in out.pairs}
    assert abs(len(out) - 0.4 * len(found)) <= 3


def test_known_pairs_are_among_them():
    for name, pair in [
        ("capitals", ("France", "Paris")),
        ("plural", ("child", "children")),
        ("past_tense", ("go", "went")),
    ]:
        assert pair in word_pairs(name).pairs


def test_answers_of_one_token():
    model = bpe()
    kept = word_pairs("capitals", model)
    assert 0 < len(kept) <= len(word_pairs("capitals"))
    assert all(len(model.tokenizer(" " + b, add_special_tokens=False).input_ids) == 1 for _, b in kept.pairs)
    both = word_pairs("capitals", model, single="both")
    assert set(both.pairs) <= set(kept.pairs)
    assert len(word_pairs("capitals", model, single="none")) == len(word_pairs("capitals"))


def test_bad_pairs():
    for pairs, said in [
        ([], "no pairs"), ([("a", "")], "no pair of words"), ([("a", "a")], "paired with itself"), ([("a", "b"), ("a", "c")], "has the answers"),
        ([("a", "b"), ("a", "b")], "there twice"), ([("a", 1)], "no pair of words"),
    ]:  # fmt: skip
        with pytest.raises(TaskError, match=said):
            word_pairs(pairs)
    with pytest.raises(TaskError, match="'capitals'"):
        word_pairs("capitls")
    with pytest.raises(TaskError, match="pairs"):
        word_pairs("capitals", n=10_000)
    with pytest.raises(TaskError, match="single"):
        word_pairs("capitals", single="always")
    two = WordPairs("two", (("a", "b"), ("c", "b")))
    for share in (0, 1, 0.5):
        with pytest.raises(TaskError, match="side empty"):
            two.split(share, seed=0)
