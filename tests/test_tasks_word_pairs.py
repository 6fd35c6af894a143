"""Pairs of words: true ones, split without a common answer, one token where a model asks for it."""

from __future__ import annotations

from collections import Counter

import pytest

from microtome.errors import TaskError
from microtome.tasks.word_pairs import KINDS, WordPairs, word_pairs
from test_tasks_standin import bpe

ALWAYS = [name for name in KINDS if name != "antonyms_wordnet"]


@pytest.mark.parametrize("name", ALWAYS)
def test_every_relation_is_there_and_the_same_again(name):
    found = word_pairs(name, seed=2)
    assert found == word_pairs(name, seed=2) and found.hash != word_pairs(name, seed=3).hash
    assert len(found) >= 60 and found.relation and found.source
    assert word_pairs(name, n=9, seed=2).pairs == found.pairs[:9]
    rest, out = found.split(0.4, seed=0)
    assert not set(rest.pairs) & set(out.pairs) and len(rest) + len(out) == len(found)
    assert not {b.casefold() for _, b in rest.pairs} & {b.casefold() for _, b in out.pairs}
    largest = max(Counter(b for _, b in found.pairs).values())
    assert abs(len(out) - 0.4 * len(found)) <= largest


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


DATA = """  1 a line of the licence
00000010 00 a 02 hot 0 torrid(p) 1 002 & 00000090 a 0000 ! 00000050 a 0101 | of a high temperature; "hot stove"
00000050 00 a 02 cold 0 icy 0 001 ! 00000010 a 0101 | of a low temperature
00000090 00 s 01 lukewarm 0 001 ! 00000050 a 0101 | never tagged
00000130 00 a 01 well-to-do 0 001 ! 00000170 a 0101 | no single word
00000170 00 a 01 poor 0 001 ! 00000130 a 0101 | of little money
"""


def test_antonyms_of_a_wordnet_of_the_users_own(tmp_path, monkeypatch):
    for variable in ("WNSEARCHDIR", "WNHOME", "NLTK_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("microtome.tasks.antonyms._PLACES", ())
    with pytest.raises(TaskError, match="no WordNet here"):
        word_pairs("antonyms_wordnet")
    (tmp_path / "data.adj").write_text(DATA)
    (tmp_path / "cntlist.rev").write_text(
        "hot%3:00:01:: 1 9\nhot%3:00:02:: 2 3\ncold%3:00:01:: 1 5\npoor%3:00:01:: 1 2\n"
    )
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    with pytest.raises(TaskError, match="data.verb"):
        word_pairs("antonyms_wordnet")
    for kind in ("verb", "noun"):
        (tmp_path / f"data.{kind}").write_text("  licence\n")
    assert word_pairs("antonyms_wordnet").pairs == (("hot", "cold"),)
    (tmp_path / "data.noun").write_text("00000010 00 n zz\n")
    with pytest.raises(TaskError, match="not a file of WordNet"):
        word_pairs("antonyms_wordnet")
