"""`microtome diff`: where two models differ on the same tokens, and whether moving the weights at random would do as much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job
from microtome.cli.estimate import Part
from microtome.cli.inputs import Device, Dtype, Json, Seed
from microtome.cli.job import Out
from microtome.cli.watch import steps

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["diff"]

LEVELS = ("sites", "outputs", "words", "text")
NOISE = 1200.0
"""Making one noise model, in tokens read by the model: both grow with its weights. A rough count."""

Other = Annotated[str, typer.Argument(help="Another: an id, a folder, a .gguf file; or a copy of the first: int8 or int4 (rounded weights), lighthouse or baker (tuned on an invented fact).", show_default=False)]  # fmt: skip


def diff(
    first: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model: embedded, hub id, local folder or .gguf file.", show_default=False
        ),
    ],
    second: Other,
    data: Annotated[
        str | None,
        typer.Option(
            help="Texts: a file, or a built-in dataset; default: the standard library's text.",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--texts",
            min=2,
            help="How many texts; default: 32, or all where there are fewer.",
            show_default=False,
        ),
    ] = None,
    unrelated: Annotated[
        str | None,
        typer.Option(help="A third model, trained from the first on something else.", show_default=False),
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option(help="What the second may have learned; repeat for more.", show_default=False),
    ] = None,
    level: Annotated[
        str,
        typer.Option(
            help="sites; where only tokens agree: outputs; where only layers and width do: words; where nothing does: text."
        ),
    ] = "sites",
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Run two models in lock-step and hold their difference against noise of the same size.

    Writes OUT/report.html and OUT/result.
    """  # fmt: skip
    if level not in LEVELS:
        raise typer.BadParameter(f"--level {level}: {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    source = inputs.texts(data, texts, seed)
    folder = job.folder(out, Path(first).name, "and", Path(second).name)
    a = inputs.load(first, dtype, device)
    b = _second(a, second, dtype, device)
    c = None if unrelated is None else _second(a, unrelated, dtype, device)
    for one in (a, b, *([c] if c is not None else [])):
        job.say_origin(one, to_stderr=json)
    rows = source(a)
    options = {"data": data, "texts": texts, "unrelated": unrelated, "word": word, "level": level, "seed": seed,
               "dtype": dtype, "device": device}  # fmt: skip
    _announce(a, rows, level, c is not None, to_stderr=json)
    result = job.run(lambda: _diff(a, b, rows, c, word or [], level, seed), folder)
    job.finish(result, folder, job.command(["diff", first, second], options), json=json)


def _second(a: Any, name: str, dtype: str | None, device: str | None) -> Any:
    """The other model: one to load, or a copy of the first that is made here."""
    if Path(name).exists():
        return inputs.load(name, dtype, device)
    if name in ("int8", "int4"):
        from microtome.methods.diff_copies import quantised_copy

        return quantised_copy(a, int(name.removeprefix("int")))
    if name in ("lighthouse", "baker"):
        from microtome.zoo.tuned import narrow

        with steps() as say:
            say(f"tuning a copy on an invented fact ({name}): a minute or two")
            return narrow(a, name).model
    return inputs.load(name, dtype, device)


def _diff(a: Any, b: Any, rows: Any, c: Any, words: list[str], level: Any, seed: int) -> Result:
    from microtome.methods import model_diff

    return model_diff(a, b, rows, unrelated=c, words=words, level=level, seed=seed)


def _announce(model: Any, data: Any, level: str, third: bool, *, to_stderr: bool) -> None:
    """The texts through both models, and through every noise model, which is made first."""
    from microtome.methods import DiffOptions

    o = DiffOptions()
    texts = data.texts if hasattr(data, "texts") else data
    rows = [r[: o.most_tokens] for r in model.tokens(list(texts)).rows()]
    tokens = sum(map(len, rows))
    parts = [Part(f"{len(rows)} texts through both models", 4 * tokens)]
    if level == "sites":
        parts.append(Part(f"{o.draws} models moved as far at random", o.draws * (2 * tokens + NOISE)))
    if third:
        parts.append(Part("the third model", 2 * tokens))
    estimate.announce(model, rows, parts, to_stderr=to_stderr)
