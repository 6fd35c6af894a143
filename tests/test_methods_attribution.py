"""Attribution patching: exact where the model is linear, caught where the gradient is blind, and repaired by AtP*."""

from __future__ import annotations

import numpy as np
import pytest

import planted
import tiny
from microtome import methods
from microtome.errors import SiteError, TaskError
from microtome.results import open_result

HEAD = f"L{planted.QUERY[0]}H{planted.QUERY[1]}"


@pytest.fixture(scope="module")
def looker():
    return planted.looker()


@pytest.fixture(scope="module")
def looked():
    return planted.looked()


@pytest.fixture(scope="module")
def linear():
    return planted.linear()


@pytest.fixture(scope="module")
def pairs(linear):
    return planted.pairs(linear, n=6)


def _error(r):
    table = r.tables["agreement"]
    return float((table["estimate"] - table["exact"]).abs().max() / table["exact"].abs().max())


def _quantity(r, name):
    return float(r.tables["certificate"].set_index("quantity").loc[name, "value"])


@pytest.mark.parametrize("of", ["nodes", "edges"])
@pytest.mark.parametrize("how", ["gradient", "ig-inputs", "atp*"])
def test_on_a_linear_network_every_way_is_exact(linear, pairs, of, how) -> None:
    r = methods.attribution_patching(linear, pairs, of=of, how=how, verify=10_000, seed=0)
    assert len(r.tables["agreement"]) == r.effects.shape[0]
    assert _error(r) < 1e-4 and _quantity(r, "slope") == pytest.approx(1, abs=1e-4)
    assert _quantity(r, "missed") == 0 and r.control("missed").passed and r.control("approximation").passed
    if how == "ig-inputs":
        assert r.control("completeness").passed and r.control("completeness").observed["steps"] == 8
    # what is linear adds up: the remainder's joint effect is the sum of its estimates
    seen = r.control("remainder").observed
    if of == "edges":
        writers = r.tables["writers"]
        assert len(writers) == 16 and (how == "ig-inputs" or writers["difference"].abs().max() < 1e-4)
        total = r.effects.values[..., 0].astype(float).mean(1)
        flagged = r.tables["agreement"].query("flagged")["site"].tolist()
        rest = sum(v for v, site in zip(total, r.effects.coords["site"], strict=True) if site not in flagged)
        assert seen["estimated"] == pytest.approx(rest, abs=1e-4)


def test_a_saturated_head_is_missed_by_the_gradient_caught_by_the_certificate_and_repaired(
    looker, looked
) -> None:
    sites = ["L*H*.q", "L*H*.z", "L*.mlp_out"]
    plain = methods.attribution_patching(looker, looked, sites=sites, verify=100, seed=0)
    table = plain.tables["agreement"].set_index("site")
    exact, estimate = table.loc[f"{HEAD}.q", "exact"], table.loc[f"{HEAD}.q", "estimate"]
    assert exact > 0.5 and abs(estimate) < 1e-3 * exact
    control = plain.control("missed")
    assert control.observed["found"] >= 1 and f"{HEAD}.q" in control.detail
    sharp = plain.tables["saturation"].set_index(["layer", "head"])["share"]
    assert sharp[planted.QUERY] == 1.0
    star = methods.attribution_patching(looker, looked, sites=sites, how="atp*", verify=100, seed=0)
    mended = star.tables["agreement"].set_index("site").loc[f"{HEAD}.q"]
    assert (
        mended["flagged"] and 0.5 < mended["estimate"] / exact < 1.5
    )  # the final norm stays a first-order guess
    assert star.control("missed").passed and star.control("saturation").passed


def test_the_same_for_edges_whose_strongest_ends_in_a_saturated_query(looker, looked) -> None:
    edge = f"embed->{HEAD}.q"
    plain = methods.attribution_patching(looker, looked, of="edges", verify=10_000, seed=0)
    exact = plain.tables["agreement"].set_index("site").loc[edge]
    assert exact["exact"] > 0.5 and not exact["flagged"]
    assert edge in plain.control("missed").detail
    star = methods.attribution_patching(looker, looked, of="edges", how="atp*", verify=10_000, seed=0)
    mended = star.tables["agreement"].set_index("site").loc[edge]
    assert mended["flagged"] and 0.5 < mended["estimate"] / exact["exact"] < 1.5
    assert star.control("missed").passed


def test_a_map_of_nothing_but_rounding_is_never_supported(looker, looked) -> None:
    """Only queries: the head that decides everything has the largest estimate, of about 1e-16."""
    r = methods.attribution_patching(looker, looked, sites="L*H*.q", verify=100, seed=0)
    value = _quantity(r, "slope")
    assert r.verdict != "supported" and (np.isnan(value) or abs(value) > 1000)


def test_effects_per_position_add_up_and_save(looker, looked, tmp_path) -> None:
    sites = ["L*.resid_pre", "L1H2.q"]
    apart = methods.attribution_patching(
        looker, looked, sites=sites, positions=list(range(planted.LENGTH)), verify=8, seed=0
    )
    together = methods.attribution_patching(looker, looked, sites=sites, verify=8, seed=0)
    assert apart.effects.dims == ("site", "position", "prompt", "metric")
    np.testing.assert_allclose(apart.effects.values.sum(1), together.effects.values, atol=1e-4)
    assert "position" in apart.tables["cells"].columns
    again = open_result(apart.save(tmp_path / "r"))
    assert again.frame().equals(apart.frame()) and again.verdict == apart.verdict
    assert len(again.figure().data) > 0


def test_edges_save_load_and_draw(looker, looked, tmp_path) -> None:
    from microtome.figures import pictures_of

    r = methods.attribution_patching(looker, looked, of="edges", how="atp*", mode="noise", seed=0)
    again = open_result(r.save(tmp_path / "edges"))
    assert again.effects.coords["site"] == r.effects.coords["site"] and again.frame().equals(r.frame())
    for picture in pictures_of(again):
        assert len(picture.draw().data) > 0, picture.name
    bars = again.figure()
    assert (
        any("->" in str(t) for t in bars.layout.to_plotly_json().values())
        or "-&gt;" in bars.to_json()
        or "->" in bars.to_json()
    )


def test_a_sample_too_small_is_not_certified(pairs, linear) -> None:
    r = methods.attribution_patching(linear, pairs, of="edges", verify=4, seed=0)
    assert r.control("missed").passed is None and "would do" in r.control("missed").detail
    assert r.verdict == "unchecked"


def test_a_metric_at_its_minimum_and_families_without_a_graph(linear, pairs) -> None:
    from dataclasses import replace

    flat = replace(pairs, metric="kl")
    with pytest.raises(TaskError, match="minimum"):
        methods.attribution_patching(linear, flat, seed=0)
    clip = tiny.loaded("olmo-clip")
    r = methods.attribution_patching(clip, planted.pairs(clip, n=4), seed=0)
    assert r.effects.shape[0] > 0
    with pytest.raises(SiteError, match="no graph"):
        methods.attribution_patching(clip, planted.pairs(clip, n=4), of="edges", seed=0)


def test_denoising_and_noising_of_a_linear_network_are_opposite(linear, pairs) -> None:
    there, back = (
        methods.attribution_patching(linear, pairs, mode=mode, seed=0).effects.values
        for mode in ("denoise", "noise")
    )
    np.testing.assert_allclose(there, -back, atol=1e-4 * float(np.abs(there).max()))
