"""The colours of all pictures. Two arms of equal lightness, blue for positive and orange-brown for negative.

Both arms fall in lightness (CIE L*) from 97 to 29 in equal steps, so that a number's size can be read without
its hue, and the hues differ for every common kind of colour blindness (tests/test_figures_colours.py simulates them).
"""

from __future__ import annotations

NEUTRAL = "#f6f6f6"
POSITIVE = ("#c0dbf0", "#80bae4", "#2996d2", "#0771a6", "#004871")
NEGATIVE = ("#f2d2b0", "#e5a764", "#ce7927", "#a5550f", "#703302")

# Inks. A page with a dark background may exchange exactly these; what is drawn on a heatmap uses BLACK and WHITE.
INK = "#20242a"
MUTED = "#6b7280"
GRID = "#e3e5e8"
BAND = "#d5d8dd"
BLACK = "#000000"
WHITE = "#ffffff"
EMPTY = "#e9e9e9"
HATCH = "#b3b3b3"

# For series: distinct under colour blindness, with a marker shape each so that colour is never alone. None of them
# occurs in the arms, so that a dark page may exchange them and leave the scale as it is.
SERIES = ("#0a74a8", "#cf7a28", "#8c164f", "#7f39ee", "#5a4310", "#02b08e", "#96764a", "#1a3b95")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "circle-open")
GLYPHS = "●■◆▲✕▼✚○"  # the symbols as characters, for keys


def diverging() -> list[list[float | str]]:
    """A Plotly colour scale over [-m, m]: 0 is the neutral middle."""
    colours = [*reversed(NEGATIVE), NEUTRAL, *POSITIVE]
    return [[round(i / (len(colours) - 1), 6), colour] for i, colour in enumerate(colours)]


def sequential() -> list[list[float | str]]:
    """A scale over [0, m]: the positive arm, so that equal colours mean equal numbers in every picture."""
    colours = [NEUTRAL, *POSITIVE]
    return [[round(i / (len(colours) - 1), 6), colour] for i, colour in enumerate(colours)]


def series(index: int) -> tuple[str, str]:
    """Colour and marker symbol of the index-th series."""
    return SERIES[index % len(SERIES)], SYMBOLS[index % len(SYMBOLS)]


def pale(colour: str, opacity: float = 0.18) -> str:
    """A colour for the area of an interval."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{opacity:g})"


def on(value: float, limit: float) -> str:
    """Black or white, whichever reads better on the colour of `value` in a scale that ends at `limit`."""
    return WHITE if limit > 0 and abs(value) > 0.62 * limit else BLACK
