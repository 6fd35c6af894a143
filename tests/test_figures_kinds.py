"""Every kind of result draws: its own numbers, with and without what is optional, and by the Python it offers."""

from __future__ import annotations

import html
import importlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import microtome
import toy_results as toy
from microtome.errors import MicrotomeError, ResultError
from microtome.figures import (
    ablation,
    alignment,
    attention,
    attribution,
    behaviour,
    diffing,
    generalisation,
    lens,
    logits,
    overview,
    patching,
    pictures_of,
    prompts,
    sets,
    static_svg,
    thoughts,
    tokens,
)
from microtome.figures.panels import MODULES
from microtome.figures.tables import COLUMNS
from microtome.results import Labelled, Result, verdict

KINDS = {
    "behaviour": toy.behaviour,
    "residual": lambda: toy.patching(layers=2),
    "parts": lambda: toy.patching(("attn_out", "mlp_out"), 2),
    "heads": lambda: toy.heads(layers=4),
    "attribution": lambda: toy.heads("attribution_patching", layers=4),
    "direct": lambda: toy.direct(4),
    "lens": lambda: toy.lens(4),
    "ablation": lambda: toy.ablation(4),
    "attention": toy.attention,
    "all heads": lambda: toy.attention(all_heads=4),
    "set": toy.components,
    "alignment": toy.alignment,
    "evaluation": toy.evaluation,
    "robustness": toy.robustness,
    "unsupervised": toy.unsupervised,
    "generalisation": toy.generalisation,
    "probe": toy.probe,
    "paths": lambda: toy.paths(12),
    "dynamics": toy.dynamics,
    "dissect": lambda: toy.dissect(layers=4),
    "prompts": toy.prompts,
    "steering": toy.steering,
    "removal": toy.removal,
    "tokens": toy.attributed,
    "examples": toy.max_activating,
    "description": toy.score_description,
    "functions": toy.functions,
    "composition": lambda: toy.composed(4),
    "lenses": lambda: toy.lensed(4),
    "patchscope": toy.patchscoped,
    "vectors": toy.vectors,
    "roles": lambda: toy.roles(4),
    "difference": toy.difference,
    "across": toy.across,
    "chain": toy.chain,
}


@pytest.fixture(scope="module", params=KINDS)
def result(request):
    return KINDS[request.param]()


def words(figure):
    notes = [a.text for a in figure.layout.annotations]
    text = " | ".join([figure.layout.title.text, *notes]).replace("<br>", " ")
    return html.unescape(text.replace("<b>", "").replace("</b>", ""))


def test_every_picture_draws_says_its_unit_and_fits_a_phone(result):
    before = result.tables
    for picture in pictures_of(result):
        figure = picture.draw()
        layout = figure.layout
        assert picture.caption and len(static_svg(figure)) > 1000
        assert (
            layout.width is None and layout.height < 2400 and layout.margin.l < 190
        )  # leaves 150 pixels of 360
        assert layout.dragmode is False and layout.showlegend is False
        titles = [layout[k].title.text for k in layout.to_plotly_json() if k[1:5] == "axis"]
        assert any(titles), "no axis has a title"
        assert all(t is None or "_" not in t or "(" in t or t.islower() for t in titles)
    assert result.tables == before  # drawing changes nothing


def test_every_picture_carries_the_python_that_draws_it(result, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "saved")
    # the toys' results are drawn by their kind, whatever technique is registered here
    monkeypatch.setattr(Result, "figure", lambda self: pictures_of(self)[0].draw())
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: None)
    for picture in pictures_of(result):
        drawn = picture.draw()
        code = drawn.layout.meta["python"]
        assert ("figure()" in code) == (picture.call == "") and "mt.open('results/...')" in code
        namespace = {}
        exec(code.replace("results/...", str(folder)), namespace)
        again = namespace["figure"]
        assert again.to_json() == drawn.to_json()


def test_a_child_is_found_by_its_path():
    from microtome.figures.snippet import call, python

    code = python(call("patching", "donors"), folder="it's/here", path=(2, 0))
    assert 'mt.open("it\'s/here").children[2].children[0]' in code and "where you saved" not in code
    assert (
        call("lens", "top_tokens", prompt="</script>'", metric=None)
        == 'lens.top_tokens(result, prompt="</script>\'")'
    )
    assert microtome.open is not None


@pytest.mark.parametrize("kind", KINDS)
def test_missing_optional_tables_and_tensors_are_tolerated(kind):
    whole = KINDS[kind]()
    bare = replace(whole, tables={}, tensors={}, children=())
    for picture in pictures_of(bare):
        try:
            figure = picture.draw()
        except ResultError as error:
            assert error.why and error.instead
            continue
        if whole.kind != "behaviour":
            assert "no null was drawn" in words(figure)
    for name in whole.tables:
        fewer = replace(whole, tables={k: v for k, v in whole.tables.items() if k != name})
        for picture in pictures_of(fewer):
            try:
                picture.draw()
            except ResultError as error:
                assert name in error.what


@pytest.mark.parametrize("kind", KINDS)
def test_optional_columns_may_be_missing_and_others_are_asked_for_by_name(kind):
    whole = KINDS[kind]()
    for name in set(whole.tables) & set(COLUMNS) - {"stages", "checks", "about"} - (
        {"agreement"} if kind == "dissect" else set()
    ):
        must, may = COLUMNS[name]
        kept = whole.tables[name].drop(columns=[c for c in may if c in whole.tables[name].columns])
        for picture in pictures_of(replace(whole, tables={**whole.tables, name: kept})):
            picture.draw()
        broken = replace(whole, tables={**whole.tables, name: whole.tables[name].drop(columns=[must[-1]])})
        said = []
        for picture in pictures_of(broken):
            try:
                picture.draw()
            except MicrotomeError as error:
                said.append(error.what)
        assert any(repr(must[-1]) in what and name in what for what in said), (name, must[-1], said)


def test_a_difference_stands_on_its_null_layer_by_layer_and_says_what_no_weight_reaches():
    result = toy.difference()
    figure = diffing.draw(result)
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert (
        len(lines) == 3 and list(lines[0].y[:4]) == [0.0] * 4 and lines[0].marker.symbol[3] == "circle-open"
    )
    assert np.allclose(lines[0].y, result.effects.values[:12, :, 0].mean(1), atol=1e-6)
    assert "noise models" in words(figure) and "no changed weight reaches it" in words(figure)
    rows = result.tables["differing_tokens"]
    bars = {
        y: x for t in diffing.tokens(result).data if t.type == "bar" for y, x in zip(t.y, t.x, strict=True)
    }
    assert [bars[i] for i in range(8)] == rows["share"].tolist()
    assert "4 of 12 tensors are equal to the bit" in words(diffing.weights(result)) and "low-rank" in words(
        diffing.weights(result)
    )
    heat = [t for t in diffing.by_token(result, 7).data if t.type == "heatmap"][1]
    assert np.allclose(np.array(heat.z, float), result.tensors["token_map"][1])
    with pytest.raises(ResultError, match="text 3"):
        diffing.by_token(result, 3)


def test_hostile_tokens_of_a_difference_are_inert():
    for picture in pictures_of(toy.difference(evil=True)):
        drawn = picture.draw().to_json()
        assert not any(text in drawn for text in ("<script>", "<img", "<b>bold"))


def test_a_figure_module_per_kind_with_draw():
    for kind, module in MODULES.items():
        loaded = importlib.import_module(f"microtome.figures.{module}")
        assert callable(loaded.draw) and callable(loaded.pictures), kind


def test_importing_figures_and_the_report_loads_no_plotly_torch_or_scipy_stats():
    code = "import sys, microtome.figures, microtome.report, microtome.figures.panels; bad = {'torch', 'plotly', 'pandas', 'scipy.stats'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------- the numbers of single pictures


def test_each_dataset_stands_in_its_column_and_dots_are_beyond_its_own_null():
    result = toy.generalisation()
    grid = generalisation._by_layer(generalisation._probes(result))
    assert list(grid.rows) == ["0", "1", "2", "3", "4", "5"] and list(grid.columns)[:2] == [
        "cities",
        "numbers",
    ]
    for j, child in enumerate(result.children):
        own = child.tables["probes"].query("what == 'probe'")
        assert (
            np.allclose(grid.values[: len(own), j], own["value"] - 0.5)
            and np.isnan(grid.values[len(own) :, j]).all()
        )
        assert grid.dots[: len(own), j].tolist() == (own["value"] > 0.64).tolist()
    assert 0 < grid.dots.sum() < grid.dots.size
    bare = replace(result, children=())
    assert [p.name for p in pictures_of(bare)] == ["matrix", "cosines"]
    with pytest.raises(ResultError, match="probe of its own"):
        generalisation.layers(bare)


def test_behaviour_shows_accuracy_interval_chance_and_every_prompt():
    result = toy.behaviour()
    figure = behaviour.draw(result)
    points = next(t for t in figure.data if t.type == "scatter" and t.marker.size == 11)
    assert list(points.x) == [0.97, 0.95]
    chance = next(t for t in figure.data if t.mode == "lines" and t.line.dash == "dot")
    assert set(chance.x) - {None} == {0.5}
    strip = next(t for t in figure.data if t.mode == "markers" and t.x is not None and len(t.x) == 48)
    assert np.allclose(strip.x, result.effects.values[:, 0])
    assert "mean 4.12" in words(figure)


def test_accuracy_of_a_subspace_stands_beside_every_placebo_and_its_ceiling():
    result = toy.alignment()
    figure = alignment.draw(result)
    points = [t for t in figure.data if t.mode == "markers"]
    assert len(points) == 2 and all(len(t.x) == 9 for t in points)  # held-out entities, held-out templates
    assert list(points[0].x[:4]) == [0.92, 0.97, 0.03, 0.1]
    assert list(figure.layout.yaxis.ticktext)[-1] == "random twin" and "carry io" in words(figure)
    lines = alignment.training(result).data
    assert len(lines) == 2 and lines[0].y[0] == 2.3


def test_direct_contributions_add_up_in_the_picture():
    result = toy.direct(10)
    figure = logits.draw(result, most=6)
    total = float(result.effects.values.mean(1).sum())
    bars = {y: x for t in figure.data if t.type == "bar" for y, x in zip(t.y, t.x, strict=True)}
    assert len(bars) == 8 and bars[7] == pytest.approx(total, abs=1e-4)
    assert sum(bars[i] for i in range(7)) == pytest.approx(total, abs=1e-4)  # six pieces and all the others
    ticks = figure.layout.yaxis.ticktext
    assert ticks[6] == f"{len(result.effects.coords['site']) - 6} others" and ticks[7] == "sum of all"
    assert "2 pieces outside the layers" in words(logits.by_layer(result))


def test_donors_stand_beside_the_real_one_at_every_cell():
    figure = patching.donors(toy.patching(layers=6))
    points = [t for t in figure.data if t.mode == "markers"]
    assert (
        len(points) == 5
        and len({t.marker.symbol for t in points}) == 5
        and all(len(t.x) == 2 for t in points)
    )
    assert (
        points[0].x[0] == 4.1 and points[3].x[0] == -2.2
    )  # real first, wrong value fourth, whatever the table's order
    assert list(figure.layout.yaxis.ticktext)[0].endswith("@ 9 ␣John") and "should do nothing" in words(
        figure
    )


def test_the_lens_draws_a_line_per_position_and_their_null():
    result = toy.lens(8)
    figure = lens.draw(result)
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert len(lines) == 2 and np.allclose(lines[1].y, result.effects.values[:, 1].mean(1)[:, 0], atol=1e-6)
    assert "null band" in words(figure) and "at last" in words(figure)


def test_a_lens_with_many_positions_says_what_it_leaves_out():
    values = np.zeros((3, 7, 2, 1), np.float32)
    effects = Labelled(values, ("site", "position", "prompt", "metric"),
                       {"site": ("L0.resid_post", "L1.resid_post", "final_resid"), "position": tuple(range(7)), "prompt": (0, 1), "metric": ("logit_diff",)})  # fmt: skip
    figure = lens.draw(Result("logit_lens", effects=effects))
    assert "6 other positions" in words(figure) and sum(t.mode == "lines+markers" for t in figure.data) == 1
    assert "final_resid" in figure.layout.xaxis.ticktext


def test_top_tokens_are_where_their_rank_and_layer_say():
    result = toy.lens(8)
    figure = lens.top_tokens(result, 3)
    heat = [t for t in figure.data if t.type == "heatmap"][1]
    row = result.tables["top"].query("prompt == 3 and site == 'L4.resid_post' and rank == 2").iloc[0]
    assert heat.z[4][2] == pytest.approx(row["probability"]) and html.unescape(heat.text[4][2]) == row[
        "token"
    ].replace(" ", "␣")
    with pytest.raises(ResultError, match="99"):
        lens.top_tokens(result, 99)


def test_a_head_is_scored_by_its_worst_text():
    table = pd.DataFrame(
        [{"layer": 1, "head": 2, "detector": "induction", "distribution": text, "score": score, "null_low": 0.0, "null_high": null}
         for text, score, null in (("task", 0.9, 0.3), ("repeated", 0.4, 0.5))]
    )  # fmt: skip
    figure = attention.draw(Result("attention_patterns", tables={"detectors": table}))
    heat = [t for t in figure.data if t.type == "heatmap"][1]
    assert heat.z[0][0] == 0.4 and "repeated: 0.40, null 0 to 0.50" in html.unescape(heat.hovertext[0][0])
    assert not [
        t for t in figure.data if t.type == "scatter" and t.mode == "markers"
    ]  # above its null on one text only: no dot
    table.loc[1, "null_high"] = 0.3
    figure = attention.draw(Result("attention_patterns", tables={"detectors": table}))
    assert len([t for t in figure.data if t.type == "scatter" and t.mode == "markers"]) == 1


def test_of_many_heads_the_best_of_each_detector_are_shown_and_counted():
    result = toy.attention(all_heads=30)
    figure = attention.draw(result)
    assert "of 270 heads" in words(figure)
    heads = list(figure.layout.yaxis2.ticktext)
    lowest = result.tables["detectors"].groupby(["detector", "layer", "head"])["score"].min()
    for detector in ("previous", "induction"):
        layer, head = lowest[detector].idxmax()
        assert f"L{layer}H{head}" in heads
    assert np.shape([t for t in attention.every_head(result).data if t.type == "heatmap"][1].z) == (30, 9)


def test_a_pattern_hides_the_future_only_where_it_is_masked():
    causal = np.tril(np.ones((4, 4), np.float32)) / np.arange(1, 5, dtype=np.float32)[:, None]
    both = np.full((4, 4), 0.25, np.float32)
    result = Result("attention_patterns", tensors={"pattern/L0H0": causal, "pattern/L0H1": both})
    masked, open_ = attention.pattern(result, "L0H0"), attention.pattern(result, "L0H1")
    assert "masked" in words(masked) and "masked" not in words(open_)
    assert np.isnan(np.array([t for t in masked.data if t.type == "heatmap"][1].z, float)[0, 3])
    assert np.allclose(np.array([t for t in open_.data if t.type == "heatmap"][1].z, float), 0.25)
    with pytest.raises(ResultError, match="L9H9"):
        attention.pattern(result, "L9H9")


def test_a_set_is_drawn_beside_its_null_sets_and_on_held_out_prompts():
    result = toy.components()
    figure = sets.draw(result)
    held = next(t for t in figure.data if t.marker.symbol == "diamond" and t.error_y.array is not None)
    assert held.y[0] == 0.81 and held.error_y.array[0] == pytest.approx(0.08)
    nulls = [t for t in figure.data if t.mode == "markers" and len(t.y) == 40]
    assert len(nulls) == 2 and np.allclose(nulls[0].y, result.tables["nulls"]["value"][:40])
    assert figure.layout.yaxis.range == figure.layout.yaxis2.range  # one scale for both
    assert "40 drawn" in words(figure)


def test_the_agreement_names_its_rank_correlation_and_what_chance_gives():
    rng = np.random.default_rng(0)
    estimate = rng.normal(size=101)
    table = pd.DataFrame(
        {"site": [f"L{i}.z" for i in range(101)], "estimate": estimate, "exact": estimate**3}
    )
    figure = attribution.agreement(Result("attribution_patching", tables={"agreement": table}))
    assert "rank correlation 1.00 over 101 sites" in words(figure) and "±0.20" in words(figure)
    rho, n = attribution.rank_correlation(np.array([1.0, 2, 2, np.nan, 5]), np.array([3.0, 1, 2, 9, 7]))
    assert n == 4 and rho == pytest.approx(1.5 / np.sqrt(4.5 * 5))  # ties share their rank
    assert np.isnan(attribution.rank_correlation(np.ones(5), np.arange(5.0))[0])


def test_damage_is_compared_with_damage_elsewhere_on_equal_axes():
    figure = ablation.off_task(toy.ablation(10))
    assert figure.layout.xaxis.range == figure.layout.yaxis.range and figure.layout.xaxis.type == "log"
    with_zero = replace(
        toy.ablation(10),
        tables={"off_task": pd.DataFrame({"site": ["L0.z", "L1.z"], "on": [0.0, 2.0], "off": [0.1, 0.1]})},
    )
    assert ablation.off_task(with_zero).layout.xaxis.type == "linear"


def test_a_dissection_is_drawn_by_its_first_map_and_says_so_when_it_has_none():
    result = toy.dissect(layers=10)
    assert overview.draw(result).layout.title.text == patching.draw(result.children[1]).layout.title.text
    assert overview.pictures(result) == ()  # the agreement is in its stage
    alone = replace(result, children=result.children[:1])
    assert [p.name for p in overview.pictures(alone)] == ["agreement"]
    with pytest.raises(ResultError):
        overview.draw(Result("dissect", verdict=verdict((), (), None)))


def test_a_kind_of_another_package_has_the_figure_its_technique_names():
    assert pictures_of(Result("homegrown")) == ()
    assert pictures_of(Result("homegrown", query=toy.query("nobody_installed_this"))) == ()


def test_a_factor_stands_on_the_band_of_wordings_and_every_wording_is_drawn():
    result = toy.prompts()
    figure = prompts.draw(result)
    bars = {
        y: x for t in figure.data if t.type == "bar" and t.xaxis == "x" for y, x in zip(t.y, t.x, strict=True)
    }
    assert bars[0] == pytest.approx(float(np.nanmean(result.effects.values[0])), abs=1e-5)
    assert len([t for t in figure.data if t.type == "bar" and t.xaxis == "x2"]) >= 1
    assert any(s.x0 == -0.9 and s.x1 == 0.9 for s in figure.layout.shapes)
    assert "in other words" in words(figure)
    points = [t for t in prompts.wordings(result).data if t.mode == "markers"]
    assert len(points) == 3 and all(len(t.x) == 3 for t in points)


def test_deletion_curves_start_at_nothing_removed_and_stand_on_random_orders():
    result = toy.attributed()
    figure = tokens.draw(result)
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    assert len(lines) == 6 and all(t.x[0] == 0 and t.y[0] == 0 for t in lines)
    assert list(lines[0].y[1:]) == pytest.approx([-3 * x**0.4 for x in (0.25, 0.5, 0.75, 1.0)])
    assert {t.line.dash for t in lines} == {"solid", "dot"} and "random orders" in words(figure)
    bars = tokens.tokens(result, prompt=2)
    first = {
        y: x for t in bars.data if t.type == "bar" and t.xaxis == "x" for y, x in zip(t.y, t.x, strict=True)
    }
    assert first[3] == pytest.approx(float(result.effects.values[0, 3, 2, 0]), abs=1e-6)
    with pytest.raises(ResultError, match="prompt 9"):
        tokens.tokens(result, 9)


def test_sentences_stand_in_their_order_on_shuffled_samples():
    result = toy.chain()
    figure = thoughts.draw(result)
    bars = {
        y: x for t in figure.data if t.type == "bar" and t.xaxis == "x" for y, x in zip(t.y, t.x, strict=True)
    }
    assert [round(bars[i], 3) for i in range(4)] == [0.05, 0.8, 0.1, 0.0]
    assert sum(s.x0 == 0 and s.x1 == 0.25 for s in figure.layout.shapes) == 6
    lines = [t for t in thoughts.answers(result).data if t.mode == "lines+markers"]
    assert len(lines) == 4 and len(lines[0].x) == 5
