"""`microtome steer`: what adding a direction does to what the model says, dose by dose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import inputs, job, output
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["steer"]

# No word of the happiness contrast itself, so that more than its own words must rise.
UP = (" excited", " proud", " pleased", " grateful", " relieved", " confident")
DOWN = (" angry", " tired", " afraid", " sorry", " worried", " upset")
LIKE_UP = (*UP, "happy", "glad", "joy", "laugh", "laughed", "smile", "smiled", "love", "loved", "wonderful", "great", "good", "beautiful", "fun",
           "hope", "hopeful", "better", "best")  # fmt: skip
LIKE_DOWN = (*DOWN, "sad", "unhappy", "cry", "cried", "tears", "fear", "hate", "hated", "terrible", "bad", "lost", "alone", "lonely", "pain",
             "dead", "died", "worse", "worst")  # fmt: skip
SYSTEM = "This is a story in which everyone is very happy and everything goes well."
SHOTS = ("When the letter came, he felt delighted.", "On the way home, we were all in the best of moods.")
DOSES = (-2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SIBLING_TEXTS = 64


def steer(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA|FILE",
            help="A contrast: a dataset of two classes by name, or a file with the columns text and label.",
            show_default=False,
        ),
    ],
    model: ModelName = DEFAULT,
    site: Annotated[
        str | None,
        typer.Option(help="Where to add it; default: the stream after the middle layer.", show_default=False),
    ] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help=f"Multiples of the difference of means; repeat. Default: {', '.join(f'{d:g}' for d in DOSES)}.",
            show_default=False,
        ),
    ] = None,
    up: Annotated[
        list[str] | None,
        typer.Option(
            help="A word that should become likelier, with its leading space; repeat.", show_default=False
        ),
    ] = None,
    down: Annotated[
        list[str] | None,
        typer.Option(help="A word that should become less likely; repeat.", show_default=False),
    ] = None,
    text: Annotated[
        bool,
        typer.Option(
            "--text", help="Count the words in generated text instead of reading the next token's log-odds."
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A text file, one prompt a line; default: 24 open beginnings.", show_default=False),
    ] = None,
    system: Annotated[
        str,
        typer.Option(
            help="A prompt that asks for the same by words: the baseline to beat.", show_default=False
        ),
    ] = "",
    when: Annotated[str, typer.Option(help="prompt, generated or both.")] = "both",
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Add a contrast's direction with growing doses, beside null directions, prompting, fluency and neutral text.

    Writes OUT/report.html and OUT/result.
    """  # fmt: skip
    contrast = inputs.labels(data, None, seed)
    words = (tuple(up or ()), tuple(down or ()))
    shots: tuple[str, ...] = ()
    if contrast.name == "happiness" and not any(words):
        words, shots = ((LIKE_UP, LIKE_DOWN) if text else (UP, DOWN)), SHOTS
        system = system or SYSTEM
    if not words[0]:
        raise typer.BadParameter('say what should become likelier: --up " word" (and --down)')
    if when not in ("prompt", "generated", "both"):
        raise typer.BadParameter(f"--when {when}: prompt, generated or both")
    rows = inputs.lines(prompts)
    folder = job.folder(out, contrast.name, Path(model).name)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    job.stream(json).print(output.visible(repr(contrast)), soft_wrap=True)
    at = site or f"L{loaded.facts.n_layers // 2}.resid_post"
    result = job.run(
        lambda: _steer(loaded, contrast, at, dose or DOSES, rows, words, text, (system, shots), when, seed),
        folder,
    )
    options = {
        "model": model,
        "site": site,
        "dose": dose,
        "up": up,
        "down": down,
        "text": text,
        "prompts": prompts,
        "system": system or None,
        "when": when,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    job.finish(result, folder, job.command(["steer", data], options), json=json)


def _steer(
    model: Any,
    contrast: Any,
    site: str,
    doses: Any,
    prompts: Any,
    words: Any,
    text: bool,
    asking: tuple[str, tuple[str, ...]],
    when: Any,
    seed: int,
) -> Result:
    from microtome.methods import steering
    from microtome.methods.steer import SteeringOptions
    from microtome.methods.steer_measures import Lexicon, Words
    from microtome.tasks.corpus import corpus
    from microtome.tasks.dataset import labelled

    up, down = words
    measure: Any = (
        Lexicon(tuple(map(str.strip, up)), tuple(map(str.strip, down))) if text else Words(up, down)
    )
    neutral = list(corpus().passages(model, 16, context=32, seed=seed).texts)
    other = labelled("formality" if contrast.name == "sentiment" else "sentiment", n=SIBLING_TEXTS, seed=seed)
    options = SteeringOptions(system_prompt=asking[0], few_shot=asking[1], sibling=other)
    return steering(
        model,
        contrast,
        site=site,
        coefficients=list(doses),
        prompts=list(prompts),
        measure=measure,
        neutral=neutral,
        when=when,
        options=options,
        seed=seed,
    )
