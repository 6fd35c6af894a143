"""Pictures of cross-model patching: which place, taken from the other model, carries its behaviour over."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .maps import draw_map, draw_strongest
from .panels import Picture
from .patching import draw_donors
from .snippet import call

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

DONORS = {
    "real": "the other model",
    "noise models": "weights moved as far in random directions: should do less",
    "unrelated": "an unrelated fine-tune: should do less",
}


def draw(result: Result) -> go.Figure:
    """The map: patched minus unpatched, per site and position. Raises ResultError without effects."""
    parameters = {} if result.query is None else result.query.parameters
    back = parameters.get("into") == "second"
    title = f"The {'first' if back else 'second'} model's activations put into the {'second' if back else 'first'}"
    return draw_map(result, title, "effect")


def strongest(result: Result, most: int = 16) -> go.Figure:
    """The largest effects as bars with intervals and null bands."""
    return draw_strongest(result, "The places that carry most over", "effect", most=most, call=call("cross_patching", "strongest"))  # fmt: skip


def donors(result: Result) -> go.Figure:
    """What noise models and an unrelated fine-tune do at the same places (tables["donors"]).

    Raises ResultError when no donor controls ran.
    """
    return draw_donors(result, DONORS, "The same places, other models", call("cross_patching", "donors"))


def pictures(result: Result) -> tuple[Picture, ...]:
    """All pictures of a cross-model patching."""
    made = [
        Picture("map", "Below the first changed weight both models are the same: hatched.", partial(draw, result)),
        Picture("strongest", "The same numbers with their intervals.", partial(strongest, result), call("cross_patching", "strongest"), secondary=True),
    ]  # fmt: skip
    if len(result.tables.get("donors", ())):
        made.append(Picture("donors", "A place counts where the other model does what noise of the same size does not.",
                            partial(donors, result), call("cross_patching", "donors")))  # fmt: skip
    return tuple(made)
