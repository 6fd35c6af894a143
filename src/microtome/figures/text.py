"""Text for pictures: tokens made visible, hostile text made inert.

Plotly reads a small HTML of its own in every label (<b>, <br>, <a href=...>), entities, MathJax between dollar
signs and templates of the form %{...}. A token may contain any of these; `inert` takes their meaning away.
"""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata

_MARKS = {" ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\xa0": "⍽"}
_UNITS = {
    "logit_diff": "logit difference (logits)",
    "logprob_diff": "log-probability difference (nats)",
    "logprob": "log-probability (nats)",
    "prob_diff": "probability difference",
    "prob": "probability",
    "kl": "KL divergence (nats)",
    "relative_norm": "relative norm (0 to 2)",
    "cosine_distance": "1 − cosine",
    "loss_per_character": "loss (nats per character)",
    "loss_per_token": "loss (nats per token)",
    "frequency": "share of samples",
    "total_variation": "total variation (0 to 1)",
}


def visible(text: object, *, most: int = 24, prose: bool = False) -> str:
    """A token as a reader can tell it from another: ␣ ⏎ ⇥ for blanks, \\u202e for what does not print.

    Longer than `most` characters: the beginning and "…". With ``prose`` ordinary spaces stay (a whole prompt).
    Bidirectional controls, zero-width characters and lone surrogates are written out, so that no token can
    reorder or hide the text beside it.
    """
    plain = str(text)
    cut = len(plain) > most
    out = [_char(c, prose) for c in (plain[: most - 1] if cut else plain)]
    if plain and unicodedata.combining(plain[0]):
        out.insert(0, "◌")  # a mark alone would sit on whatever stands before it
    return "".join(out) + ("…" if cut else "")


def _char(c: str, prose: bool) -> str:
    if c == " " and prose:
        return c
    if c in _MARKS:
        return _MARKS[c]
    if c.isprintable():
        return c
    return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"


def inert(text: object) -> str:
    """Text for a Plotly label that shows exactly these characters: no tags, entities, MathJax or templates."""
    safe = html.escape(str(text), quote=False)
    return safe.replace("$", "&#36;").replace("%{", "&#37;{")


def label(text: object, *, most: int = 24) -> str:
    """`visible`, then `inert`."""
    return inert(visible(text, most=most))


def change_of(site: object) -> str:
    """ "tone: lol - (nothing)", a prompt's factor changed, as a reader says it: "tone: lol (against nothing)"."""
    factor, found, level = str(site).partition(": ")
    changed, against, reference = level.rpartition(" - ")
    if not found or not against:
        return str(site)
    plain = {"(nothing)": "nothing"}
    return (
        f"{factor}: {plain.get(changed, changed).strip()} (against {plain.get(reference, reference).strip()})"
    )


def label_lines(text: object, *, width: int = 27, most: int = 3) -> str:
    """Prose for a label: lines of `width` characters, at most `most` of them, the middle left out where there is more. See `stacked`."""
    plain = " ".join(str(text).split())
    room = width * most - most  # lines break at words, so that none is quite full
    if len(plain) > room:
        plain = f"{plain[: room * 3 // 5].rstrip()} … {plain[len(plain) - room * 2 // 5 + 3 :].lstrip()}"
    return "\n".join(wrap(visible(plain, most=room + 9, prose=True), width)[: most + 1])


def stacked(label: str) -> str:
    """Lines of a label as Plotly writes them, inert."""
    return "<br>".join(map(inert, label.split("\n")))


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters (a longer word is broken)."""
    return textwrap.wrap(text, width) or [""]


def unit(metric: str) -> str:
    """A metric's name with its unit, for an axis; the bare name where it is not known here."""
    return _UNITS.get(metric, metric.replace("_", " "))


def number(value: float, *, sign: bool = False) -> str:
    """Three significant digits with a proper minus; "–" for NaN."""
    if value != value:
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1000:
        text = f"{value:+,.0f}" if sign else f"{value:,.0f}"
    elif size >= 1e-3:
        digits = 3 if size < 0.1 else 2 if size < 10 else 1 if size < 100 else 0
        text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    else:
        text = f"{value:+.1e}" if sign else f"{value:.1e}"
    return text.replace("-", "−")


def interval(low: float, high: float) -> str:
    """ "[0.12, 0.34]"; empty where neither is known."""
    return "" if low != low and high != high else f"[{number(low)}, {number(high)}]"


def layer_of(site: object) -> str:
    """The number of a site's layer; the site itself, made visible, where it names none."""
    found = re.match(r"L(\d+)\.", str(site))
    return found[1] if found else visible(site, most=10)


def site_label(site: str) -> str:
    """A site as a label: inert, as long as addresses are."""
    return label(site, most=32)
