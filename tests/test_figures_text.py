"""Text in pictures: tokens a reader can tell apart, and nothing that Plotly would obey."""

from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.figures.static.pen import lines_of
from microtome.figures.text import inert, number, visible, wrap
from toy_results import EVIL


def test_blanks_and_controls_become_visible():
    assert visible(" Mary") == "␣Mary" and visible("a b", prose=True) == "a b"
    assert visible("\n\t\xa0") == "⏎⇥⍽"
    assert visible("\u202eabc\u200b\u2028\x07") == "\\u202eabc\\u200b\\u2028\\u0007"
    assert visible("\ud800") == "\\ud800" and visible("\u0301x") == "◌\u0301x"
    assert visible("x" * 50, most=10) == "x" * 9 + "…" and visible("x" * 10, most=10) == "x" * 10


@given(st.text(st.characters(), max_size=20))
def test_nothing_invisible_or_reordering_is_left(text):
    shown = visible(text, most=1000)
    assert all(c.isprintable() for c in shown)
    shown.encode("utf-8")


@pytest.mark.parametrize("text", [*EVIL, "<br>", "&amp;", "&#60;b&#62;", "$a$ %{x}", "a<b>c"])
def test_an_inert_label_shows_exactly_its_characters(text):
    safe = inert(text)
    assert "<" not in safe and "$" not in safe and "%{" not in safe
    assert html.unescape(safe) == text
    assert lines_of(safe) == [(text, False)]  # the static renderer reads it as Plotly does


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (-0.5, "−0.50"),
        (1234.5, "1,234"),
        (12.34, "12.3"),
        (0.01234, "0.012"),
        (1e-5, "1.0e−05"),
        (float("nan"), "–"),
    ],
)
def test_numbers_have_three_digits_and_a_minus(value, text):
    assert number(value) == text
    assert number(0.5, sign=True) == "+0.50"


def test_lines_are_no_longer_than_asked():
    assert all(len(line) <= 20 for line in wrap("a very long heading with averyveryverylongwordinsideit", 20))
    assert wrap("", 10) == [""]


def test_a_long_label_of_prose_keeps_both_ends_in_few_lines():
    from microtome.figures.text import change_of, label_lines, stacked

    label = label_lines("opinion: I am sure that it is Springfield, whatever anybody says about it, and so on " * 3 + "the end")  # fmt: skip
    lines = label.split("\n")
    assert len(lines) <= 4 and max(map(len, lines)) <= 27 and "␣" not in label
    assert lines[0].startswith("opinion: I am") and lines[-1].endswith("end") and "…" in label
    assert stacked("<b>x</b>\ny") == "&lt;b&gt;x&lt;/b&gt;<br>y"
    assert change_of("tone: lol  - (nothing)") == "tone: lol (against nothing)" and change_of("x") == "x"
