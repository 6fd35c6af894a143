"""A result in a notebook: offline, a picture first, every text escaped."""

from __future__ import annotations

import base64
import re
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from microtome.errors import ResultError
from microtome.results import Control, Labelled, Query, Result, registry, technique, verdict
from microtome.results import html as html_module
from microtome.results.registry import KINDS

EVIL = "<script>alert(1)</script><img src=http://x onerror='x'>\"'&\ud800"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setattr(registry, "_objects", {kind: {} for kind in KINDS})
    monkeypatch.setattr(registry, "_HOMES", dict.fromkeys(KINDS, ()))
    monkeypatch.setattr(registry, "_plugins", {kind: {} for kind in KINDS})
    monkeypatch.setattr(html_module, "STATIC", "toy_absent_figures:static_svg")


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_offline(text):
    text.encode("utf-8")
    seen = Tags(text)
    allowed = {
        "div",
        "p",
        "strong",
        "small",
        "ul",
        "li",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "img",
    }
    assert set(seen.tags) <= allowed
    for name, value in seen.attributes:
        assert name in ("class", "style", "alt", "src"), name
        assert name != "src" or value.startswith("data:image/")
    return seen


def hostile(**changes):
    label = EVIL.replace("\ud800", "")
    sites = (label, "L9H6.z")
    effects = Labelled(
        np.array([[[1.0]], [[-5.0]]]),
        ("site", "prompt", "metric"),
        {"site": sites, "prompt": (0,), "metric": (label,)},
    )
    controls = (
        Control(EVIL, EVIL, EVIL, {EVIL: EVIL}, False, 2, (-1.0, 1.0), EVIL, gates=True),
        Control.not_run("donor", "x", "y", EVIL),
    )
    fields = {
        "query": Query(EVIL, EVIL, parameters={EVIL: EVIL}),
        "effects": effects,
        "controls": controls,
        "raw_examples": ({EVIL: EVIL},),
    }
    return Result("toy", **{**fields, **changes})


def test_hostile_text_is_escaped_everywhere():
    text = hostile(children=(hostile(),))._repr_html_()
    check_offline(text)
    assert "<script" not in text and "onerror='" not in text and "&lt;script&gt;" in text
    assert "invalid" in text and "FAILED" in text and "did not run" in text


@pytest.mark.parametrize(
    "sly", ["\u202eabc", "\u2066x", "a\u200bb", "\x1b[31m", "a\u2028b", "\ufeffa", "\udcff"]
)
def test_no_text_reorders_or_hides_what_stands_beside_it(sly):
    control = Control("noise", sly, sly, {sly: 1.0}, False, 2, detail=sly)
    text = Result("toy", query=Query("toy", "1"), controls=(control,))._repr_html_()
    check_offline(text)
    hidden = next(c for c in sly if not c.isprintable())
    assert hidden not in text and f"{ord(hidden):02x}" in text


def test_sentences_are_aligned_to_the_left_and_long_words_do_not_widen_the_page():
    text = hostile()._repr_html_()
    controls = text[text.index("<caption>Controls") :]
    assert "overflow-wrap:anywhere" in text
    assert controls.count("text-align:left") == controls.count("<td") + controls.count("<th ")


def test_stages_are_called_by_their_names():
    stages = pd.DataFrame(
        {"stage": ["attention", "MLPs", "heads"], "verdict": ["unchecked", "refused", "unchecked"]}
    )
    children = (Result("patching"), Result("patching"))
    text = Result("toy", query=Query("toy", "1"), tables={"stages": stages}, children=children)._repr_html_()
    assert "<li>attention: Patching: unchecked</li><li>heads: Patching: unchecked</li>" in text


def test_a_forgotten_escape_would_be_seen(monkeypatch):
    monkeypatch.setattr(html_module, "escaped", str)
    with pytest.raises(AssertionError):
        check_offline(hostile()._repr_html_().encode("utf-8", "replace").decode())


def test_without_a_figure_the_largest_rows_are_shown_with_their_nulls():
    values = np.linspace(-1, 1, 40).reshape(40, 1, 1)
    effects = Labelled(
        values, ("layer", "prompt", "metric"), {"layer": tuple(range(40)), "prompt": (0,), "metric": ("ld",)}
    )
    cells = pd.DataFrame({"layer": [39], "metric": ["ld"], "null_low": [-0.125], "null_high": [0.25]})
    text = Result("toy", query=Query("toy", "1"), effects=effects, tables={"cells": cells})._repr_html_()
    check_offline(text)
    assert "12 of 40 rows" in text and "No picture" in text and "-0.125" in text and "0.25" in text
    body = text.split("<tbody>")[1].split("</tbody>")[0]
    assert (
        body.count("<tr>") == 12
        and "<td>39</td>" in body
        and "<td>0</td>" in body
        and "<td>20</td>" not in body
    )
    assert "not calibrated" in text and "No cells" in Result("toy")._repr_html_()


def install(monkeypatch, name="toy_figures", figure="toy_figures:draw", **functions):
    registry._objects["techniques"].clear()
    module = types.ModuleType(name)
    module.__dict__.update(functions)
    module.__spec__ = types.SimpleNamespace(name=name)
    monkeypatch.setitem(sys.modules, name, module)

    @technique("toy_drawn", "1", figure=figure)
    def toy_drawn():
        return Result("toy", verdict=verdict([], [], 0.5, 0.001, 0.0))

    registry.register("techniques", "toy_drawn", toy_drawn)
    return toy_drawn()


SVG = "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


def inlined(text):
    kind, data = re.search(r'src="data:image/([a-z+]+);base64,([^"]*)"', text).groups()
    return kind, base64.b64decode(data)


def test_the_picture_comes_first_and_its_scripts_stay_data(monkeypatch):
    result = install(monkeypatch, draw=lambda r: SVG)
    assert result.figure() == SVG
    text = result._repr_html_()
    check_offline(text)
    assert inlined(text) == ("svg+xml", SVG.encode())
    assert text.index("<img") < text.index("Verdict") and "not distinguishable" in text.split("<img")[0]


def test_the_title_beside_a_picture_is_escaped_too(monkeypatch):
    result = install(monkeypatch, draw=lambda r: SVG)
    monkeypatch.setattr(Result, "title", lambda self: EVIL)
    text = result._repr_html_()
    assert "<img" in text and "<script" not in text and "http://x onerror='" not in text
    check_offline(text)


def test_drawings_that_show_themselves_are_asked(monkeypatch):
    png = types.SimpleNamespace(_repr_png_=lambda: b"\x89PNG")
    assert inlined(install(monkeypatch, draw=lambda r: png)._repr_html_()) == ("png", b"\x89PNG")
    svg = types.SimpleNamespace(_repr_svg_=lambda: SVG)
    assert inlined(install(monkeypatch, "f2", "f2:draw", draw=lambda r: svg)._repr_html_())[0] == "svg+xml"


def test_other_drawings_go_through_the_static_renderer(monkeypatch):
    module = types.ModuleType("toy_static")
    module.svg = lambda drawn: f"<svg>{drawn['n']}</svg>"
    module.__spec__ = types.SimpleNamespace(name="toy_static")
    monkeypatch.setitem(sys.modules, "toy_static", module)
    result = install(monkeypatch, draw=lambda r: {"n": 7})
    assert "No picture" in result._repr_html_()  # no static renderer: the table
    monkeypatch.setattr(html_module, "STATIC", "toy_static:svg")
    assert inlined(result._repr_html_()) == ("svg+xml", b"<svg>7</svg>")


def test_a_fault_in_a_renderer_is_not_hidden_by_the_table(monkeypatch):
    def draw(result):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        install(monkeypatch, draw=draw)._repr_html_()


@pytest.mark.parametrize("figure", ["", "toy_absent_figures:draw", "toy_figures:absent"])
def test_a_figure_that_is_not_there_is_said(monkeypatch, figure):
    result = install(monkeypatch, figure=figure)
    with pytest.raises(ResultError):
        result.figure()
    assert "No picture" in result._repr_html_()


def test_what_is_drawn_never_depends_on_what_a_file_says(tmp_path, monkeypatch):
    called = []
    module = types.ModuleType("toy_evil")
    module.run = called.append
    monkeypatch.setitem(sys.modules, "toy_evil", module)
    for method in ("toy_evil:run", "toy_evil", "os:system"):
        result = Result("toy", query=Query(method, "1", parameters={"figure": "toy_evil:run"}))
        assert "No picture" in result._repr_html_()
        with pytest.raises(ResultError if not method else LookupError):
            result.figure()
    assert called == []
