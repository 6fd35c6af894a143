"""`microtome vector`: a task of a few demonstrations as one vector, tested where there are none."""

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

__all__ = ["vector"]

HELD = 0.5
"""Share of the layers that a patched forward still has to run, on average."""


def vector(
    relation: Annotated[
        str,
        typer.Argument(
            metavar="RELATION|FILE",
            help="Word pairs by name (capitals, antonyms, plural, ...; see `microtome tasks datasets`), or a file with the columns word and answer.",
            show_default=False,
        ),
    ],
    model: ModelName = DEFAULT,
    pairs: Annotated[
        int | None, typer.Option("-n", "--pairs", min=1, help="How many pairs.", show_default=False)
    ] = None,
    shots: Annotated[int, typer.Option(min=2, help="Demonstrations in a prompt.")] = 5,
    heads: Annotated[int, typer.Option(min=1, help="How many heads' means are summed.")] = 10,
    nulls: Annotated[
        int, typer.Option(min=1, help="Vectors from shuffled labels, each by the whole procedure.")
    ] = 19,
    template: Annotated[
        str, typer.Option(help="How a pair is written; \\n is a new line.")
    ] = r"Q: {x}\nA: {y}\n\n",
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find a function vector for a relation, and test it on pairs that it was not made from, beside vectors of shuffled labels.

    Writes OUT/report.html and OUT/result.
    """
    given = inputs.word_pairs(relation)
    folder = job.folder(out, "vector", given.name, Path(model).name)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    chosen = inputs.answerable(given, loaded, pairs, seed)
    job.stream(json).print(output.visible(repr(chosen)), soft_wrap=True)
    from microtome.methods.functions import FunctionOptions

    options = FunctionOptions(template=template.replace("\\n", "\n"), shots=shots, heads=heads, nulls=nulls)
    _announce(loaded, chosen, options, seed, to_stderr=json)
    result = job.run(lambda: _vector(loaded, chosen, options, seed), folder)
    asked = {"model": model, "pairs": pairs, "shots": shots, "heads": heads, "nulls": nulls, "template": template, "seed": seed,
             "dtype": dtype, "device": device}  # fmt: skip
    job.finish(result, folder, job.command(["vector", relation], asked), json=json)


def _vector(model: Any, pairs: Any, options: Any, seed: int) -> Result:
    from microtome.methods import function_vector

    return function_vector(model, pairs, options=options, seed=seed)


def _announce(model: Any, pairs: Any, o: Any, seed: int, *, to_stderr: bool) -> None:
    """Per procedure: means, every head put into every prompt, and the candidates for the layer on the pairs that build."""
    from microtome.methods import function_parts as parts

    build, test = parts.halves(parts.read_pairs(pairs), seed)
    writer = parts.Writer(model, o.template)
    rows = writer.ask(*parts.demonstrations(build, o.shots, o.prompts, seed, "timed", shuffled=False)).rows
    bare = estimate.length(writer.ask([[] for _ in build], build).rows)
    shown, facts = estimate.length(rows), model.facts
    n_heads = sum(layer.n_heads for layer in facts.layers)
    layers = min(facts.n_layers, 10)
    once = o.prompts * (shown + HELD * n_heads * REPLAYED) + 2 * layers * len(build) * bare
    tested = (o.nulls * 2 + o.randoms + 6) * len(test) * bare + 2 * len(test) * shown
    work = [Part("the vector", once), Part(f"{o.nulls} vectors from shuffled labels", o.nulls * once), Part("on held-out pairs", tested)]  # fmt: skip
    estimate.announce(model, rows, work, to_stderr=to_stderr)


REPLAYED = 2.0
"""Tokens' worth of a layer that a replay of one head at the last token costs."""
