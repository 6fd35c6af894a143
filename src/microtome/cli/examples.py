"""`microtome examples`: the text at which units are most active, samples of the rest, and how far a description predicts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job, output
from microtome.cli.estimate import Part
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["examples"]

BLOCK = 128
"""Tokens of a block of the corpus."""
READ, ALONE = 1.15, 2500.0
"""Tokens of a forward: per token of the corpus with its activations sorted in, and of the examples run again."""


def examples(
    site: Annotated[
        str,
        typer.Argument(
            metavar="SITE|FOLDER",
            help="L12N7.neurons, L12.neurons (all of a layer), L5.head_out, or the folder of a saved direction.",
            show_default=False,
        ),
    ],
    model: ModelName = DEFAULT,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="A file or folder of text, or hf:NAME; default: Python's standard library.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=200, help="How many tokens are read.")] = 20_000,
    describe: Annotated[
        str | None,
        typer.Option(
            help="A description of one unit, to be scored on text that was not shown.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find where units are most active, beside samples of every quantile, random tokens and random directions.

    Writes OUT/report.html and OUT/result.
    """  # fmt: skip
    from microtome.tasks.corpus import corpus as read

    text = read(corpus)
    folder = job.folder(out, "examples", Path(site).name, Path(model).name)
    of = inputs.direction(site)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    job.stream(json).print(output.visible(f"{tokens:,} tokens of {text!r}"), soft_wrap=True)
    _announce(loaded, tokens, to_stderr=json)
    result = job.run(lambda: _examples(loaded, text, of, tokens, describe, seed), folder)
    options = {
        "model": model,
        "corpus": corpus,
        "tokens": tokens,
        "describe": describe,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    job.finish(result, folder, job.command(["examples", site], options), json=json)


def _examples(model: Any, text: Any, of: Any, tokens: int, describe: str | None, seed: int) -> Result:
    from microtome import methods

    options = {"tokens": tokens}
    if describe is None:
        return methods.max_activating(model, text, of, options=options, seed=seed)
    return methods.score_description(model, text, of, describe, options=options, seed=seed)


def _announce(model: Any, tokens: int, *, to_stderr: bool) -> None:
    """The corpus once, and what is shown again by itself."""
    parts = [Part(f"{tokens:,} tokens read once", READ * tokens), Part("examples by themselves", ALONE)]
    estimate.announce(model, estimate.made_up(model, estimate.TIMED, BLOCK), parts, to_stderr=to_stderr)
