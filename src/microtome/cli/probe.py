"""`microtome probe`: is a label readable from activations, better than without them, and does the model use what is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job
from microtome.cli.estimate import Part
from microtome.cli.inputs import Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["probe"]

WHERE = "L*.resid_post@-1"
WORDINGS, QUESTION = 8, 24
"""Ways of asking that are compared, and what they add to a text, in tokens."""
FIT, ATTENDED, HALF = 0.1, 0.05, 0.08
"""Forwards of all texts that the fits of one kind at all layers of a model take, and an attention probe; and of a forward, what a
displaced replay of its last tokens from the middle layer on takes. Counted from the operations of each."""

Data = Annotated[list[str], typer.Argument(help="Labelled text: a file, or a built-in dataset (cities, ...); several give a matrix.", show_default=False)]  # fmt: skip


def probe(
    data: Data,
    model: ModelName = inputs.DEFAULT,
    texts: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--texts",
            min=20,
            help="How many texts of each dataset; default: all of a file, up to 400 of a built-in one.",
            show_default=False,
        ),
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option("--site", help="Where to read; repeat for more.", show_default="L*.resid_post@-1"),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Kinds of probe; repeat for more.", show_default="all")
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(help="Answers that stand for the classes: NEGATIVE,POSITIVE.", show_default=False),
    ] = None,
    positive: Annotated[
        str, typer.Option(help="The class to tell from the others.", show_default=False)
    ] = "",
    by: Annotated[
        list[str] | None,
        typer.Option(help="Groupings that may not straddle the split; repeat for more.", show_default="all"),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Train probes on labelled text and hold them against shuffled labels, an untrained twin, words, length and asking.

    Writes OUT/report.html and OUT/result.
    """
    ask = _ask(words)
    rows = [inputs.labels(one, texts, seed) for one in data]
    split = {"positive": positive, "by": tuple(by) if by else None}
    _can_be_split(rows, split, seed)
    folder = job.folder(out, "probe", *[row.name for row in rows][:3])
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    options = {"model": model, "texts": texts, "site": sites, "kind": kind, "words": words, "positive": positive or None, "by": by, "seed": seed,
               "dtype": dtype, "device": device}  # fmt: skip
    _announce(loaded, rows, sites, kind, to_stderr=json)
    result = job.run(
        lambda: _probe(loaded, rows, sites, kind, ask, split, seed),
        folder,
    )
    job.finish(result, folder, job.command(["probe", *data], options), json=json)


def _can_be_split(rows: list[Any], options: Any, seed: int) -> None:
    """Raises TaskError where the technique would, before a model is loaded."""
    from microtome.methods.probing.design import design
    from microtome.methods.probing.options import ProbeOptions

    for one in rows:
        design(one, ProbeOptions.of(options), seed)


def _ask(words: str | None) -> Any:
    if words is None:
        return None
    from microtome.methods.probing.options import Ask

    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2 or not all(parts):
        raise typer.BadParameter(f"--words {words}: two answers, NEGATIVE,POSITIVE")
    return Ask((parts[0], parts[1]))


def _probe(model: Any, rows: list[Any], sites: Any, kinds: Any, ask: Any, options: Any, seed: int) -> Result:
    from microtome import methods
    from microtome.methods.probing.options import KINDS

    where, which = sites or WHERE, tuple(kinds or KINDS)
    if len(rows) == 1:
        return methods.probe(model, rows[0], sites=where, kinds=which, ask=ask, options=options, seed=seed)
    return methods.generalisation(
        model, rows, sites=where, kinds=which, each=True, options=options, seed=seed
    )


def _announce(model: Any, data: list[Any], sites: Any, kinds: Any, *, to_stderr: bool) -> None:
    """Per dataset: the texts read by the model, its random twin and attention probes; wordings asked; null directions moved along."""
    from microtome.methods.probing.capture import encoded, places_of
    from microtome.methods.probing.options import KINDS, ProbeOptions

    o, wanted = ProbeOptions(), tuple(kinds or KINDS)
    where = places_of(model, sites or WHERE)
    places = len(where)
    parts: list[Part] = []
    rows: list[list[int]] = []
    for one in data:
        ids = [list(row) for row in encoded(model, one, where).ids]
        rows, n = rows or ids, len(ids)
        size = estimate.length(ids)
        attended = (
            o.attention_sites * (1 + ATTENDED * (1 + o.attention_shuffles)) if "attention" in wanted else 0
        )
        read = (2 + attended) * n * size
        fitted = places * len(wanted) * FIT * n * size / model.facts.n_layers
        asked = (WORDINGS * min(48, n) + n / 5) * (size + QUESTION)
        moved = 2 * o.prompts * (o.layers * 2 + HALF * 4 * o.directions) * (size + QUESTION)
        parts.append(Part(f"{one.name}: {n} texts, {places} place{'s' * (places != 1)}", read + fitted))
        parts.append(
            Part(
                f"{one.name}: asking, {2 * o.directions} directions moved along (more from an early layer)",
                asked + moved,
            )
        )
    if len(data) > 1:
        parts.append(Part("the matrix", sum(len(one) for one in data) * 2 * size))
    estimate.announce(model, rows, parts, to_stderr=to_stderr)
