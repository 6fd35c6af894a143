"""`microtome ask`: what one change of the prompt does to the answer, before anything inside the model is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job, output
from microtome.cli.estimate import GENERATED, Part
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["ask"]

ALONE = 16
"""Prompts that are run again by themselves."""


def ask(
    grid: Annotated[
        str,
        typer.Argument(
            metavar="GRID|FILE",
            help="A YAML or JSON file, or a built-in grid: capitals, suggestion.",
            show_default=False,
        ),
    ],
    model: ModelName = DEFAULT,
    read: Annotated[
        str, typer.Option(help="logprob, first_token, or samples (how often sampled texts give the answer).")
    ] = "logprob",
    one: Annotated[
        bool,
        typer.Option(
            "--one", help="Change one factor at a time from the reference, instead of every combination."
        ),
    ] = False,
    samples: Annotated[int, typer.Option(min=1, help="Texts per prompt, with --read samples.")] = 20,
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Vary a prompt one factor at a time, and hold each factor's effect against changes of wording alone.

    Writes OUT/report.html and OUT/result.
    """  # fmt: skip
    from microtome.tasks.grid_files import read_grid

    if read not in ("logprob", "first_token", "samples"):
        raise typer.BadParameter(f"--read {read}: logprob, first_token or samples")
    prompts = read_grid(grid)
    folder = job.folder(out, prompts.name, Path(model).name)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    design = "one" if one else "all"
    line = f"{len(prompts.prompts(design))} prompts: {prompts!r}"
    job.stream(json).print(output.visible(line), soft_wrap=True)
    _announce(loaded, prompts, read, design, samples, to_stderr=json)
    result = job.run(lambda: _ask(loaded, prompts, read, design, samples, seed), folder)
    options = {"model": model, "read": read, "one": one, "seed": seed, "dtype": dtype, "device": device}
    options |= {"samples": samples} if read == "samples" else {}
    job.finish(result, folder, job.command(["ask", grid], options), json=json)


def _ask(model: Any, prompts: Any, read: Any, design: Any, samples: int, seed: int) -> Result:
    from microtome.methods import prompt_grid
    from microtome.methods.prompting import Sampling

    sampling = Sampling(n=samples) if read == "samples" else None
    return prompt_grid(model, prompts, read=read, design=design, sampling=sampling, seed=seed)


def _announce(model: Any, grid: Any, read: str, design: Any, samples: int, *, to_stderr: bool) -> None:
    """Every prompt once, a few alone; or every prompt's samples, token by token."""
    from microtome.methods.prompting import Sampling

    rows = model.tokens([r.user for r in grid.prompts(design)]).rows()
    size = estimate.length(rows)
    if read == "samples":
        work = Part(f"{samples} texts of {len(rows)} prompts", len(rows) * (size + samples * GENERATED * Sampling().max_new_tokens))  # fmt: skip
    else:
        work = Part(f"{len(rows)} prompts", (len(rows) + ALONE) * size)
    estimate.announce(model, rows, [work], to_stderr=to_stderr)
