"""Maps: every number at its place, 0 in the middle, what is no number looks like none, and no colour without its null."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import toy_results as toy
from microtome.errors import ResultError
from microtome.figures import patching
from microtome.figures.cells import cells_of
from microtome.figures.colours import BLACK, EMPTY
from microtome.results import Labelled, Result, verdict


def small(values, sites, positions=None, metrics=("logit_diff",), **fields):
    """A patching result whose means over prompts are `values` [site] or [site, position]."""
    values = np.asarray(values, float)
    dims = ("site", "position")[: values.ndim]
    raw = (
        np.repeat(values[..., None, None], 3, axis=-2) + np.array([-0.125, 0.0, 0.125])[:, None]
    )  # exact in float32
    coords = {"site": sites, "prompt": (0, 1, 2), "metric": metrics}
    if positions is not None:
        coords["position"] = positions
    effects = Labelled(raw.astype(np.float32), (*dims, "prompt", "metric"), coords)
    return Result("activation_patching", toy.query("activation_patching", mode="denoise"), effects, **fields)


def main(figure):
    """The heatmap of the map itself: the first that is not the colour bar."""
    return next(t for t in figure.data if t.type == "heatmap" and np.shape(t.z) != (1, 121))


def marks(figure, symbol):
    found = [
        t for t in figure.data if t.type == "scatter" and t.mode == "markers" and t.marker.symbol == symbol
    ]
    return {(round(y), round(x)) for t in found for x, y in zip(t.x, t.y, strict=True)}


def notes(figure):
    return " | ".join(a.text.replace("<br>", " ") for a in figure.layout.annotations)


def test_every_number_is_at_its_layer_and_position():
    values = np.arange(6).reshape(3, 2) - 2.0
    figure = patching.draw(small(values, ("L0.resid_pre", "L1.resid_pre", "L7.resid_pre"), (3, 9)))
    heat = main(figure)
    assert np.allclose(np.array(heat.z, float), values)
    y = figure.layout["yaxis" + heat.yaxis[1:]]
    x = figure.layout["xaxis" + heat.xaxis[1:]]
    assert (
        list(y.ticktext) == ["0", "1", "7"] and list(y.tickvals) == [0, 1, 2] and y.range[0] > y.range[1]
    )  # layer 0 on top
    assert list(x.ticktext) == ["3", "9"] and y.title.text == "layer" and x.title.text == "position"


def test_the_scale_is_centred_at_zero_and_says_its_unit():
    figure = patching.draw(small([[0.5, -2.0]], ("L0.resid_pre",), (0, 1)))
    for heat in (t for t in figure.data if t.type == "heatmap"):
        assert heat.zmin == -heat.zmax == -2.0
        assert heat.colorscale[5] == (0.5, "#f6f6f6")
    assert "logit difference (logits)" in notes(figure)


def test_sites_out_of_order_are_sorted_by_layer_and_not_by_name():
    sites = ("L10.mlp_out", "L2.mlp_out")
    figure = patching.draw(small([[1.0], [2.0]], sites, ("end",)))
    heat = main(figure)
    labels = list(figure.layout["yaxis" + heat.yaxis[1:]].ticktext)
    by_layer = dict(zip(labels, np.array(heat.z, float)[:, 0], strict=True))
    assert by_layer == {"10": 1.0, "2": 2.0} and labels == ["2", "10"]


def test_what_cannot_differ_is_hatched_and_what_was_not_measured_is_crossed_out():
    values = np.array([[0.0, 1.0], [np.nan, 0.0]])
    zero = np.array([[True, False], [False, False]])
    result = small(values, ("L0.resid_pre", "L1.resid_pre"), (0, 1), tensors={"structurally_zero": zero})
    figure = patching.draw(result)
    shown = np.array(main(figure).z, float)
    assert (
        np.isnan(shown[0, 0]) and np.isnan(shown[1, 0]) and shown[1, 1] == 0.0
    )  # a measured 0 keeps its colour
    grey = [t for t in figure.data if t.type == "heatmap" and t.colorscale[0][1] == EMPTY]
    assert len(grey) == 1 and np.array_equal(np.isfinite(np.array(grey[0].z, float)), zero)
    hatch = [
        t for t in figure.data if t.type == "scatter" and t.mode == "lines" and t.xaxis == main(figure).xaxis
    ]
    assert len(hatch) == 1 and hatch[0].x[0] == pytest.approx(-0.42)
    assert marks(figure, "x-thin-open") == {(1, 0)}
    assert "cannot differ" in notes(figure) and "not measured" in notes(figure)


def test_a_key_names_only_what_is_there():
    figure = patching.draw(small([[1.0, 2.0]], ("L0.resid_pre",), (0, 1)))
    assert "cannot differ" not in notes(figure) and "not measured" not in notes(figure)
    assert "no null was drawn" in notes(figure)


def with_cells(values=((0.1, 2.0), (-0.1, -3.0)), **columns):
    result = small(values, ("L0.resid_pre", "L1.resid_pre"), (0, 1))
    cells = pd.DataFrame(
        {
            "site": ["L0.resid_pre"] * 2 + ["L1.resid_pre"] * 2,
            "position": [0, 1, 0, 1],
            "metric": "logit_diff",
            **columns,
        }
    )
    return replace(result, tables={"cells": cells})


def test_dots_mark_what_stands_out_from_its_null_and_nothing_else():
    figure = patching.draw(with_cells(null_low=-0.5, null_high=0.5))
    assert marks(figure, "circle") == {(0, 1), (1, 1)}
    assert "outside its null band: 2 of 4 cells" in notes(figure)
    assert "widest null band, −0.50 to 0.50" in notes(figure)


def test_a_family_wise_p_decides_before_the_band():
    figure = patching.draw(with_cells(null_low=-0.5, null_high=0.5, p=[0.5, 0.5, 0.5, 0.0005]))
    assert marks(figure, "circle") == {(1, 1)} and "p ≤ 0.001" in notes(figure)


def test_no_dot_on_a_cell_that_cannot_differ():
    zero = np.array([[False, True], [False, False]])
    result = with_cells(((0.1, 0.0), (-0.1, -3.0)), null_low=-0.5, null_high=0.5, p=0.0001)
    assert (0, 1) not in marks(patching.draw(replace(result, tensors={"structurally_zero": zero})), "circle")


def test_the_bracket_on_the_scale_is_the_widest_null():
    figure = patching.draw(with_cells(null_low=[-0.5, -0.2, -0.9, -0.1], null_high=[0.5, 0.7, 0.1, 0.2]))
    lines = [t for t in figure.data if t.type == "scatter" and t.line.color == BLACK]
    known = [x for x in lines[0].x if x is not None]
    assert min(known) == pytest.approx(-0.9) and max(known) == pytest.approx(0.7)


def test_a_null_wider_than_all_effects_stays_on_the_scale():
    figure = patching.draw(with_cells(null_low=-50.0, null_high=50.0))
    known = [
        x for t in figure.data if t.type == "scatter" and t.line.color == BLACK for x in t.x if x is not None
    ]
    assert max(known) == pytest.approx(3.0) and "−50.0 to 50.0" in notes(figure)


def test_heads_with_positions_show_their_largest_effect_and_say_where():
    values = np.array([[0.25, -1.5], [0.75, 0.125]])
    figure = patching.draw(small(values, ("L3H0.z", "L3H1.z"), ("subject", "end")))
    heat = main(figure)
    assert np.allclose(np.array(heat.z, float), [[-1.5, 0.75]])
    assert "position of its largest effect (of 2)" in notes(figure)
    assert "end" in heat.hovertext[0][0] and "subject" in heat.hovertext[0][1]


def test_heads_and_mlps_share_one_grid_without_positions():
    figure = patching.draw(small([1.0, 2.0, 3.0, 4.0], ("L0H0.z", "L1H1.z", "L0.mlp_out", "L1.mlp_out")))
    heat = main(figure)
    assert list(figure.layout["xaxis" + heat.xaxis[1:]].ticktext) == ["0", "1", "mlp_out"]
    shown = np.array(heat.z, float)
    assert shown[0, 0] == 1 and shown[1, 1] == 2 and list(shown[:, 2]) == [3, 4] and np.isnan(shown[0, 1])
    assert marks(figure, "x-thin-open") == set()  # a head that is no cell of the result is not "not measured"


def test_a_point_outside_the_layers_joins_the_map_as_a_row():
    figure = patching.draw(small([[1.0], [2.0]], ("L0.resid_pre", "final_resid"), ("end",)))
    heat = main(figure)
    assert list(figure.layout["yaxis" + heat.yaxis[1:]].ticktext) == ["0", "final"] and np.shape(heat.z) == (
        2,
        1,
    )


def test_sites_without_layer_grid_become_bars_with_their_intervals():
    sites = ("L0.attn_out", "L1.attn_out")
    cells = pd.DataFrame(
        {
            "site": sites,
            "metric": "logit_diff",
            "low": [0.8, -2.5],
            "high": [1.2, -1.5],
            "null_low": -0.5,
            "null_high": 0.5,
        }
    )
    figure = patching.draw(replace(small([1.0, -2.0], sites), tables={"cells": cells}))
    bars = [t for t in figure.data if t.type == "bar"]
    assert sorted(v for t in bars for v in t.x) == [-2.0, 1.0]
    error = next(t.error_x for t in figure.data if t.type == "scatter" and t.error_x.array is not None)
    assert np.allclose(error.array, [0.2, 0.5]) and np.allclose(error.arrayminus, [0.2, 0.5])
    bands = [s for s in figure.layout.shapes if s.type == "rect"]
    assert len(bands) == 2 and all(s.x0 == -0.5 and s.x1 == 0.5 for s in bands)


def test_positions_that_are_not_aligned_are_spans():
    table = pd.DataFrame({"position": ["subject", "rest"], "label": [" Mary", "all other tokens"]})
    figure = patching.draw(
        replace(small([[1.0, 2.0]], ("L0.resid_pre",), ("subject", "rest")), tables={"positions": table})
    )
    assert list(figure.layout["xaxis" + main(figure).xaxis[1:]].ticktext) == ["subject", "rest"]


def test_tokens_that_occur_twice_stay_two_columns():
    table = pd.DataFrame({"position": ["0", "1"], "label": [" John", " John"]})
    figure = patching.draw(
        replace(small([[1.0, 2.0]], ("L0.resid_pre",), (0, 1)), tables={"positions": table})
    )
    assert list(figure.layout["xaxis" + main(figure).xaxis[1:]].ticktext) == ["0 ␣John", "1 ␣John"]


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ResultError, match="structurally_zero"):
        patching.draw(
            small(
                [[1.0, 2.0]], ("L0.resid_pre",), (0, 1), tensors={"structurally_zero": np.zeros((3, 1), bool)}
            )
        )


def test_a_metric_the_result_has_not_is_refused_by_name():
    with pytest.raises(ResultError, match="prob"):
        patching.draw(small([[1.0]], ("L0.resid_pre",), (0,)), metric="prob")


def test_another_metric_is_drawn_with_its_own_numbers_and_without_the_others_null():
    result = toy.patching(layers=3)
    first, second = cells_of(result), cells_of(result, "prob_diff")
    assert first.null is not None and second.null is None and second.significant is None
    assert "no null was drawn" in notes(
        patching.draw(result, "prob_diff")
    ) and "probability difference" in notes(patching.draw(result, "prob_diff"))


@pytest.mark.parametrize(
    "p, least, word",
    [
        (0.0002, 0.0001, "supported"),
        (0.4, 0.0001, "not distinguishable from its null"),
        (0.5, 0.25, "underpowered"),
        (None, None, "unchecked"),
    ],
)
def test_the_title_carries_the_verdict_unless_it_is_supported(p, least, word):
    result = small([[1.0]], ("L0.resid_pre",), (0,), verdict=verdict((), (), p, 0.001, least))
    title = patching.draw(result).layout.title.text
    assert (
        result.verdict == word
        and (f"Verdict: {word}" in title) == (word != "supported")
        and "supported" not in title
    )


def test_nothing_measured_still_draws():
    figure = patching.draw(small([[np.nan, np.nan]], ("L0.resid_pre",), (0, 1)))
    assert "not measured" in notes(figure)


def test_the_largest_are_listed_with_how_many_are_not():
    result = toy.patching(layers=6)
    figure = patching.strongest(result, most=5)
    size = sorted((abs(v) for t in figure.data if t.type == "bar" for v in t.x), reverse=True)
    frame = result.frame()
    expected = np.sort(frame[frame["metric"] == "logit_diff"]["value"].abs())[::-1][:5]
    assert np.allclose(size, expected, atol=1e-5) and "5 of 35 cells" in notes(figure)


def test_whatever_occurs_in_a_label_is_shown_and_not_obeyed():
    names = tuple(e.replace("\ud800", "") for e in toy.EVIL)
    result = small([[1.0, 2.0]] * len(names), tuple(f"L{i}.resid_pre" for i in range(len(names))), names[:2])
    table = pd.DataFrame({"position": list(names[:2]), "label": list(names[:2])})
    drawn = patching.draw(replace(result, tables={"positions": table})).to_json()
    assert "<script" not in drawn and "<img" not in drawn and "<a " not in drawn
    figure = patching.draw(small([[1.0]] * len(names), names, ("end",)))
    ticks = figure.layout["yaxis" + main(figure).yaxis[1:]].ticktext
    assert all("<" not in t for t in ticks)
