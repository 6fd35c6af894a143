"""The colours: both arms readable by lightness alone, and apart for every common kind of colour blindness."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from microtome.figures import colours
from microtome.figures.static.traces import colour_at

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
BLIND = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
    "none": np.eye(3),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colour, seen_as="none"):
    """CIE L*a*b* of "#rrggbb" as somebody with this kind of vision sees it."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.array(BLIND[seen_as]) @ linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def along(scale, n=41):
    return [colour_at(scale, i / (n - 1)) for i in range(n)]


@pytest.mark.parametrize("vision", BLIND)
def test_lightness_falls_along_both_arms(vision):
    light = np.array([lab(c, vision)[0] for c in along(colours.diverging())])
    middle = len(light) // 2
    assert light.argmax() == middle
    assert (np.diff(light[:middle]) > 0).all() and (np.diff(light[middle:]) < 0).all()


def test_equal_sizes_are_equally_light():
    light = np.array([lab(c)[0] for c in along(colours.diverging())])
    assert np.abs(light - light[::-1]).max() < 2.5
    assert light.max() > 95 and light.min() < 32


@pytest.mark.parametrize("vision", BLIND)
def test_the_sign_is_seen_by_everybody(vision):
    scale = colours.diverging()
    for size in np.linspace(0.2, 1, 17):
        plus, minus = (lab(colour_at(scale, 0.5 + 0.5 * s), vision) for s in (size, -size))
        assert np.linalg.norm(plus - minus) > 18, (vision, size)


@pytest.mark.parametrize("vision", BLIND)
def test_a_measured_zero_is_no_hatched_cell_and_no_background(vision):
    neutral, empty, hatch = (lab(c, vision) for c in (colours.NEUTRAL, colours.EMPTY, colours.HATCH))
    assert np.linalg.norm(neutral - hatch) > 20 and np.linalg.norm(empty - hatch) > 15


@pytest.mark.parametrize("vision", BLIND)
def test_neighbouring_series_differ(vision):
    """The first five by colour alone; all by colour and shape."""
    for a, b in itertools.combinations(range(5), 2):
        assert np.linalg.norm(lab(colours.SERIES[a], vision) - lab(colours.SERIES[b], vision)) > 25, (a, b)
    assert len({colours.series(i) for i in range(8)}) == 8 == len(set(colours.SYMBOLS)) == len(colours.GLYPHS)


def test_red_and_green_of_equal_lightness_would_fail():
    """The test can fail: an ordinary red-green scale does."""
    scale = [[0.0, "#a83232"], [0.5, "#f6f6f6"], [1.0, "#3f7a2f"]]
    worst = min(
        np.linalg.norm(
            lab(colour_at(scale, 0.5 + s), "deuteranopia") - lab(colour_at(scale, 0.5 - s), "deuteranopia")
        )
        for s in (0.2, 0.35, 0.5)
    )
    assert worst < 18


def test_a_dark_page_exchanges_no_colour_of_the_scale():
    data = {c for _, c in (*colours.diverging(), *colours.sequential())} | {
        colours.BLACK,
        colours.WHITE,
        colours.EMPTY,
        colours.HATCH,
    }
    assert not data & {*colours.SERIES, colours.INK, colours.MUTED, colours.GRID, colours.BAND}


def test_text_on_a_cell_can_be_read():
    for value in np.linspace(-1, 1, 41):
        cell, ink = lab(colour_at(colours.diverging(), 0.5 + value / 2)), lab(colours.on(value, 1.0))
        assert abs(cell[0] - ink[0]) > 40, value
