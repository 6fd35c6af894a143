"""`microtome probe`: whether a label can be read from activations, where, and whether the model uses what is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import inputs, job, output
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["probe"]

SITES = "L*.resid_post@-1"


def probe(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA|FILE...",
            help="Datasets by name (microtome tasks datasets) or files with the columns text and label; several give a matrix.",
            show_default=False,
        ),
    ],
    model: ModelName = DEFAULT,
    site: Annotated[
        list[str] | None,
        typer.Option(help=f"Where to read; repeat for more. Default: {SITES}.", show_default=False),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--texts",
            min=8,
            help="Texts of each dataset; default: 400, of a file all.",
            show_default=False,
        ),
    ] = None,
    causal: Annotated[bool, typer.Option(help="Test whether the model uses the direction.")] = True,
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Read a label from activations, beside shuffled labels, a random twin of the model, surface features and asking the model.

    With several datasets also: whether a probe of one works on the others. Writes OUT/report.html and OUT/result.
    """  # fmt: skip
    sets = [inputs.labels(name, n, seed) for name in data]
    folder = job.folder(out, *(s.name for s in sets[:3]), Path(model).name)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    for one in sets:
        job.stream(json).print(output.visible(repr(one)), soft_wrap=True)
    sites = tuple(site or [SITES])
    result = job.run(lambda: _probe(loaded, sets, sites, causal, seed), folder)
    options = {
        "model": model,
        "site": site,
        "texts": n,
        "no-causal": not causal,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    job.finish(result, folder, job.command(["probe", *data], options), json=json)


def _probe(model: Any, sets: list[Any], sites: tuple[str, ...], causal: bool, seed: int) -> Result:
    from microtome import methods
    from microtome.methods.probing.options import KINDS

    options = {"causal": causal}
    if len(sets) == 1:
        return methods.probe(model, sets[0], sites=sites, options=options, seed=seed)
    return methods.generalisation(
        model, sets, sites=sites, kinds=KINDS, each=True, options=options, seed=seed
    )
