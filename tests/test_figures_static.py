"""The static renderer: the same picture as the interactive one, as SVG that can do nothing but be looked at."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET

import numpy as np
import plotly.graph_objects as go
import pytest

import toy_results as toy
from microtome.errors import ResultError
from microtome.figures import patching, pictures_of, static_svg
from microtome.figures.colours import INK, NEUTRAL, POSITIVE
from microtome.figures.static.axes import nice
from microtome.results import Result, registry, technique
from microtome.results import html as html_module
from microtome.results.registry import KINDS

NS = "{http://www.w3.org/2000/svg}"


def parse(text):
    root = ET.fromstring(text)
    assert root.tag == f"{NS}svg"
    return root


def everything(root, name):
    return list(root.iter(f"{NS}{name}"))


def square(z, **trace):
    """A figure of one heatmap whose panel is 100 x 100 pixels at (50, 20)."""
    heat = go.Heatmap(z=z, zmin=-1, zmax=1, showscale=False, **trace)
    return go.Figure(heat, layout={"height": 150, "margin": {"l": 50, "r": 10, "t": 20, "b": 30}, "template": {},
                                   "xaxis": {"range": [-0.5, 1.5]}, "yaxis": {"range": [1.5, -0.5]}})  # fmt: skip


def test_every_picture_is_wellformed_and_can_do_nothing():
    for result in (
        toy.behaviour(toy.EVIL),
        toy.patching(tokens=toy.EVIL * 2 + ("a", "b"), layers=3),
        toy.lens(5, tokens=toy.EVIL),
        toy.attention(tokens=toy.EVIL),
    ):
        for picture in pictures_of(result):
            root = parse(static_svg(picture.draw()))
            for element in root.iter():
                assert element.tag.removeprefix(NS) in {"svg", "rect", "path", "polygon", "circle", "text"}, (
                    element.tag
                )
                for name, value in element.attrib.items():
                    assert not name.startswith("on") and name not in ("id", "href", "style", "class"), name
                    assert "url(" not in value and "javascript" not in value.split("<")[0]


def test_text_arrives_as_it_is():
    figure = go.Figure(
        go.Scatter(x=[0, 1], y=[0, 1]),
        layout={"title": {"text": "<b>A</b> &lt;b&gt; &amp;amp;<br>second"}, "template": {}},
    )
    root = parse(static_svg(figure))
    shown = [t.text for t in everything(root, "text")]
    assert "A <b> &amp;" in shown and "second" in shown
    assert "A <b> &amp; second" in root.attrib["aria-label"]


def test_characters_that_xml_cannot_hold_are_replaced():
    figure = go.Figure(go.Scatter(x=[0], y=[0]), layout={"title": {"text": "a\x00b\ud800c"}})
    assert "a\ufffdb\ufffdc" in [t.text for t in everything(parse(static_svg(figure)), "text")]


def test_cells_have_the_colour_and_place_of_their_numbers():
    root = parse(
        static_svg(
            square([[0.0, 1.0], [np.nan, -1.0]], colorscale=[[0, "#ff0000"], [0.5, NEUTRAL], [1, "#0000ff"]]),
            width=160,
        )
    )
    cells = {(round(float(r.get("x")) + float(r.get("width")) / 2), round(float(r.get("y")) + float(r.get("height")) / 2)): r.get("fill")
             for r in everything(root, "rect") if float(r.get("width")) < 60}  # fmt: skip
    assert cells == {(75, 45): NEUTRAL, (125, 45): "#0000ff", (125, 95): "#ff0000"}  # NaN draws nothing


def test_colours_between_stops_are_mixed_as_plotly_does():
    root = parse(
        static_svg(square([[0.5]], colorscale=[[0, "#000000"], [0.5, "rgb(0,0,0)"], [1, "#64c800"]]))
    )
    assert "#326400" in {r.get("fill") for r in everything(root, "rect")}


def test_bars_reach_their_values_from_zero():
    figure = go.Figure(go.Bar(orientation="h", x=[2.0, -1.0], y=[0, 1], width=0.5, marker={"color": POSITIVE[2]}),
                       layout={"height": 100, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "template": {}, "xaxis": {"range": [-2, 3]}, "yaxis": {"range": [-0.5, 1.5]}})  # fmt: skip
    bars = [
        r for r in everything(parse(static_svg(figure, width=500)), "rect") if r.get("fill") == POSITIVE[2]
    ]
    spans = [(float(b.get("x")), float(b.get("x")) + float(b.get("width"))) for b in bars]
    assert spans == [(200, 400), (100, 200)]
    assert [float(b.get("height")) for b in bars] == [25, 25]


def test_log_axes_errors_and_gaps():
    trace = go.Scatter(x=[1, 10, None, 100], y=[1.0, 2, 3, 4], mode="lines+markers", error_y={"type": "data", "array": [0.5, 0, 0, 0], "arrayminus": [1.0, 0, 0, 0]},
                       marker={"color": INK})  # fmt: skip
    layout = {
        "height": 100,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "template": {},
        "xaxis": {"type": "log", "range": [0, 2]},
        "yaxis": {"range": [0, 4]},
    }
    root = parse(static_svg(go.Figure(trace, layout=layout), width=200))
    assert [float(c.get("cx")) for c in everything(root, "circle")] == [0, 100, 200]
    line = next(
        p.get("d")
        for p in everything(root, "path")
        if p.get("d").count("L") == 1 and p.get("d").count("M") == 2
    )
    assert line.startswith("M0.0 75.0L100.0 50.0M200.0")  # the gap is a gap
    bar = next(p.get("d") for p in everything(root, "path") if p.get("d").count("M") == 3)
    assert "M0.0 100.0L0.0 62.5" in bar


def test_a_figure_without_ranges_or_with_words_gets_its_axes_from_the_data():
    figure = go.Figure([go.Bar(x=["one", "two", "one more"], y=[1, 3, 2])])
    shown = [t.text for t in everything(parse(static_svg(figure)), "text")]
    assert {"one", "two", "one more"} <= set(shown) and "3" in shown


@pytest.mark.parametrize("low, high", [(-0.5, 0.5), (0, 1e-7), (0, 3), (-1234, 5678), (2, 2)])
def test_ticks_are_round_and_within_the_range(low, high):
    ticks = nice(low, high, 7)
    assert 1 <= len(ticks) <= 8
    for value, text in ticks:
        assert low - 1e-9 <= value <= high + 1e-9 and float(text.replace("−", "-")) == pytest.approx(
            value, abs=1e-12
        )


@pytest.mark.parametrize("figure", [go.Figure(go.Surface(z=[[1, 2], [2, 3]])), go.Figure(go.Scatter(x=[1], y=[1]), layout={"xaxis": {"type": "date"}}),
                                    go.Figure(go.Scatter(x=[1], y=[1]), layout={"shapes": [{"type": "circle"}]}), {"data": []}])  # fmt: skip
def test_what_it_cannot_draw_it_refuses(figure):
    with pytest.raises(ResultError, match="static picture"):
        static_svg(figure)


def test_a_page_may_exchange_the_inks():
    figure = patching.draw(toy.patching(layers=3))
    plain, themed = static_svg(figure), static_svg(figure, theme={INK: "currentColor", "paper": "none"})
    assert INK in plain and "currentColor" not in plain and INK not in themed and "currentColor" in themed
    assert plain.count("<rect") == themed.count("<rect") + 1  # the background


def test_a_label_that_looks_like_an_ink_stays_a_label():
    figure = go.Figure(go.Scatter(x=[0], y=[0]), layout={"title": {"text": INK}})
    assert INK in [t.text for t in everything(parse(static_svg(figure, theme={INK: "currentColor"})), "text")]


def test_a_notebook_shows_the_static_picture(monkeypatch):
    monkeypatch.setattr(registry, "_objects", {kind: {} for kind in KINDS})
    monkeypatch.setattr(registry, "_HOMES", dict.fromkeys(KINDS, ()))
    monkeypatch.setattr(registry, "_plugins", {kind: {} for kind in KINDS})
    assert html_module.STATIC == "microtome.figures:static_svg"

    def toy_patching():
        return toy.patching(layers=3, query=None)

    registry.register(
        "techniques",
        "toy_patching",
        technique("toy_patching", "1", figure="microtome.figures.patching:draw")(toy_patching),
    )
    result = registry.get("techniques", "toy_patching")()
    assert isinstance(result, Result) and isinstance(result.figure(), go.Figure)
    kind, data = re.search(r'src="data:image/([a-z+]+);base64,([^"]*)"', result._repr_html_()).groups()
    root = parse(base64.b64decode(data).decode())
    assert kind == "svg+xml" and len(everything(root, "rect")) > 30
    assert not re.search(r'(src|href)\s*=\s*"https?:', result._repr_html_())
