"""Raw prompts and outputs, drawn at random when the result was made, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..figures.text import number, visible
from .markup import Html, fold, join, tag, token, token_strip

if TYPE_CHECKING:
    from ..results.result import Result

MOST = 4
_SHOWN = ("prompt", "tokens", "top", "activations")


def examples(result: Result) -> Html:
    """Up to four of the result's raw examples; nothing where it keeps none."""
    rows = result.raw_examples
    if not rows:
        return join()
    shown = [example(row) for row in rows[:MOST]]
    of = f" of {len(rows)}" if len(rows) > MOST else ""
    return fold(
        f"Raw examples, drawn at random and not chosen ({len(shown)}{of})",
        shown,
        open_=result.kind == "behaviour",
        cls="examples",
    )


def example(row: Mapping[str, Any]) -> Html:
    """One raw example: its prompt or tokens, what is said of it, the most likely next tokens."""
    tokens: Any = row.get("tokens")
    prompt: Any = row.get("prompt")
    body: list[Html] = []
    if _is_list(tokens):
        body.append(token_strip(tokens, _strengths(row.get("activations"))))
    elif _is_list(prompt):
        body.append(token_strip(prompt))
    elif prompt is not None:
        body.append(tag("p", tag("bdi", visible(prompt, most=2000, prose=True)), cls="prompt"))
    facts = [(key, value) for key, value in row.items() if key not in _SHOWN]
    if facts:
        body.append(
            tag(
                "dl",
                [
                    tag("div", tag("dt", key.replace("_", " ")), tag("dd", _fact(value)))
                    for key, value in facts
                ],
                cls="facts",
            )
        )
    if _is_list(row.get("top")):
        body.append(_top(row["top"]))
    return tag("div", body, cls="example")


def _strengths(values: Any) -> list[float]:
    """Activations as parts of the largest among them; [] where there are none."""
    if not _is_list(values) or not all(isinstance(v, (int, float)) for v in values):
        return []
    largest = max((abs(float(v)) for v in values), default=0.0)
    return [float(v) / largest if largest else 0.0 for v in values]


def _top(top: Sequence[Any]) -> Html:
    """The most likely next tokens with their probabilities."""
    items = []
    for entry in top[:8]:
        if _is_list(entry) and len(entry) == 2 and isinstance(entry[1], (int, float)):
            width = max(0.0, min(1.0, float(entry[1])))
            bar = tag("span", cls="bar", style=f"--share:{width:.4f}", aria_hidden="true")
            items.append(tag("li", token(entry[0]), bar, tag("span", number(float(entry[1])), cls="num")))
        else:
            items.append(tag("li", token(entry)))
    return join(tag("p", "Most likely next tokens", cls="aside"), tag("ol", items, cls="top"))


def _fact(value: Any) -> Html:
    if isinstance(value, bool) or value is None:
        return join({True: "yes", False: "no", None: "–"}[value])
    if isinstance(value, (int, float)):
        return join(number(float(value)) if isinstance(value, float) else str(value))
    if _is_list(value):
        return join([[token(v), " "] for v in value[:24]])
    if isinstance(value, Mapping):
        return join([[f"{visible(k)} ", _fact(v), "; "] for k, v in list(value.items())[:24]])
    text = str(value)
    return token(text) if len(text) <= 40 else tag("bdi", visible(text, most=2000, prose=True))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))
