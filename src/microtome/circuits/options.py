"""What may be asked of circuit discovery, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from microtome.circuits.acdc import check_threshold
from microtome.circuits.circuit import Choices
from microtome.errors import ControlError
from microtome.results.arguments import ArgumentError, suggest

IMPORTANCE = {
    "eap": "gradient",
    "eap-ig": "ig-inputs",
    "eap-ig-activations": "ig-activations",
    "relp": "relp",
    "exact": "",
}
"""Ways to score every edge, and what `edge_scores` calls them."""
HOWS = (*IMPORTANCE, "acdc", "edge-pruning")
WALKS = ("speculative", "plain", "groups")
_ALL = ("prune", "share", "nulls")
_SCORED = (*_ALL, "absolute", "sizes")
_PATHS = (*_SCORED, "steps", "tolerance", "most")
_OF: dict[str, tuple[str, ...]] = {
    "eap": _SCORED,
    "relp": _SCORED,
    "exact": _SCORED,
    "eap-ig": _PATHS,
    "eap-ig-activations": _PATHS,
    "acdc": (*_ALL, "walk", "batch", "from_layer", "check"),
    "edge-pruning": (*_ALL, "steps", "rate"),
}


@dataclass(frozen=True)
class Options:
    """Details of the searches.

    All: prune, take out edges on no path from the embedding to the logits; share, the faithfulness that the circuit should
    have; nulls, random circuits of its shape.
    Scores: absolute, rank by |score| (else edges that hurt come last); sizes, of circuits to measure (() is 0.1, 0.2, 0.5,
    1, 2, 5, 10, 20, 50 % of the units, as MIB). Integrated gradients: steps, tolerance and most of `edge_scores`.
    ACDC: walk, "speculative", "plain" or "groups"; batch, most decisions per call; from_layer, edges into earlier layers are
    not tested and stay in; check, group testing is compared with the plain walk where at most so many units are tested.
    Edge pruning: steps, and the learning rate.
    """

    prune: bool = True
    share: float = 0.8
    nulls: int = 20
    absolute: bool = True
    sizes: tuple[int, ...] = ()
    steps: int = 0
    tolerance: float = 0.02
    most: int = 64
    walk: str = "speculative"
    batch: int = 64
    from_layer: int = 0
    check: int = 2_000
    rate: float = 0.2


def options_of(how: str, given: Mapping[str, Any] | None) -> Options:
    """Options with defaults filled in.

    Raises
    ------
    ArgumentError: an unknown `how`, option or walk, or an option of another way to discover; says what was likely meant.
    """
    if how not in HOWS:
        raise ArgumentError(f"how={how!r} is no way to discover a circuit", why="each is a published method",
                            instead=suggest(how, HOWS))  # fmt: skip
    given = dict(given or {})
    known = {f.name for f in fields(Options)}
    for name in given:
        if name not in known or name not in _OF[how]:
            why = f"{how} has the options {', '.join(_OF[how])}"
            raise ArgumentError(
                f"option {name!r} of how={how!r}", why=why, instead=suggest(str(name), _OF[how])
            )
    given["sizes"] = tuple(given.get("sizes", ()))
    given.setdefault("steps", 200 if how == "edge-pruning" else 8)
    made = Options(**given)
    if made.walk not in WALKS:
        raise ArgumentError(f"walk={made.walk!r} is no walk", why="ACDC goes edge by edge, ahead in batches, or by blocks",
                            instead=suggest(made.walk, WALKS))  # fmt: skip
    for name in ("batch", "steps"):
        if getattr(made, name) < 1:
            raise ArgumentError(f"{name}={getattr(made, name)}", why="it counts", instead="1 or more")
    return made


def check_limits(how: str, size: int | None, threshold: float | None, select: str) -> None:
    """Refuse a size or threshold that does not go with the way to discover.

    Raises
    ------
    ControlError: both or the wrong one of size and threshold, a negative threshold, a size below 1.
    """
    if size is not None and threshold is not None:
        raise ControlError(
            "a size and a threshold", why="each decides how much is kept", instead="give one of them"
        )
    if size is not None and size < 1:
        raise ControlError(f"size={size}", why="a circuit has at least one edge", instead="size=500")
    if how == "acdc":
        if size is not None:
            raise ControlError("ACDC finds no circuit of a given size", why="it drops what changes the loss by less than a threshold",
                               instead="threshold=0.01, or how='eap-ig' with a size")  # fmt: skip
        check_threshold(threshold)
    elif how == "edge-pruning":
        if size is None:
            raise ControlError("edge pruning needs a size", why="its gates are driven to a share of all edges",
                               instead="size=500")  # fmt: skip
    elif threshold is not None:
        check_threshold(threshold)
        if select == "greedy":
            raise ControlError("a threshold with select='greedy'", why="it takes edges below others that it has not reached",
                               instead="select='top-n', or a size")  # fmt: skip


def metrics_of(how: str, metric: str, own: str, scored: str) -> tuple[tuple[str, ...], int]:
    """The metrics to measure, and which of them drives discovery.

    Raises
    ------
    ControlError: a metric whose gradient is zero where one gradient is taken.
    """
    default = "kl" if how in ("acdc", "edge-pruning") or scored == "all" else own
    driver = metric or default
    if how in ("eap", "relp") and driver in ("kl", "l2"):
        raise ControlError(f"{driver} has no gradient to attribute", why="it measures the distance from the unedited run, and has its minimum, 0, there",
                           instead=f"metric={own!r}, or how='eap-ig', whose gradients are taken on the way")  # fmt: skip
    if scored == "all" or driver == own:
        return (driver,), 0
    return ((driver, own), 0) if how in IMPORTANCE else ((own, driver), 1)


def check_choices(how: str, choices: Choices, driver: str) -> None:
    """Refuse choices under which a search asks nothing.

    Raises
    ------
    ControlError: distances from the clean run asked for in corrupt runs.
    """
    if choices.direction == "denoise" and driver in ("kl", "l2"):
        raise ControlError(f"{driver} with direction='denoise'", why="it measures the distance from the unedited run, which is the corrupt one here",
                           instead="direction='noise', or the task's own metric")  # fmt: skip
