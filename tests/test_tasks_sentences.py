"""Sentences: the cut is exact, and falls where a reader would cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.tasks.sentences import split_sentences


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It costs 3.5 dollars. Pay.", ["It costs 3.5 dollars.", " Pay."]),
        ("Dr. Smith met Mr. J. Jones. They spoke.", ["Dr. Smith met Mr. J. Jones.", " They spoke."]),
        ("Fruit, e.g. apples, is good. Eat it.", ["Fruit, e.g. apples, is good.", " Eat it."]),
        ("We have apples, etc. Then we go.", ["We have apples, etc.", " Then we go."]),
        ("Wait... no. Yes", ["Wait...", " no.", " Yes"]),
        ('He said "no." Then left.', ['He said "no."', " Then left."]),
        ("First line\nsecond line", ["First line", "\nsecond line"]),
        ("Steps:\n1. Add 2. Then 3.\n2. Stop.", ["Steps:", "\n1. Add 2.", " Then 3.", "\n2. Stop."]),
        ("- one\n- two", ["- one", "\n- two"]),
        ("a) one\n\nb) two", ["a) one", "\n\nb) two"]),
        ("Run:\n```python\nx = 1. \ny = f(x).z\n```\nDone. Ok", ["Run:", "\n```python\nx = 1. \ny = f(x).z\n```", "\nDone.", " Ok"]),
        ("Use `a. b` here. Then.", ["Use `a. b` here.", " Then."]),
        ("See example.com for more. Bye", ["See example.com for more.", " Bye"]),
        ("So x = 7! Great", ["So x = 7!", " Great"]),
        ("今日は。元気？", ["今日は。", "元気？"]),
        ("Trailing.  \n", ["Trailing.  \n"]),
        ("  lead. x", ["  lead.", " x"]),
        ("no end", ["no end"]),
        ("", []),
        ("  \n ", []),
        ("```\nnever closed. x", ["```\nnever closed. x"]),
        ("I am Plan A. It works", ["I am Plan A. It works"]),
    ],
)  # fmt: skip
def test_where_a_reader_would_cut(text, pieces):
    assert list(split_sentences(text)) == pieces


@given(st.text(alphabet="ab .!?\n\"'`~$1239)(e.g-…。A", max_size=80))
def test_joined_they_are_the_text(text):
    pieces = split_sentences(text)
    assert "".join(pieces) == (text if text.strip() else "") and all(p.strip() for p in pieces)


@given(st.text(max_size=60))
def test_any_text_round_trips(text):
    assert "".join(split_sentences(text)) == (text if text.strip() else "")
