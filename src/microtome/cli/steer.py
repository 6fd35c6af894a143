"""`microtome steer`: what adding a direction does to what the model says, dose by dose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job, output
from microtome.cli.estimate import GENERATED, Part
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
DOSES = (-2.0, -1.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SIBLING, SIBLING_TEXTS = "sentiment", 64
NEUTRAL, PASSAGE = 16, 32
"""Passages of text that has nothing to do with it, and tokens of each."""
ABOVE = 0.25
"""Of a forward, what a replay of a prompt's steered layers takes: half of the layers, in large batches."""


Data = Annotated[str, typer.Argument(metavar="DATA|FILE|FOLDER", help="A contrast (a dataset of two classes by name, or a file with the columns text and label), or the folder of a saved direction.", show_default=False)]  # fmt: skip
Labels = Annotated[str | None, typer.Option(help="For a saved direction: the labelled text it came from; its null directions are made of it.", show_default=False)]  # fmt: skip
SiteName = Annotated[str | None, typer.Option(help="Where to add it; default: the stream after the middle layer, or a saved direction's own site.", show_default=False)]  # fmt: skip
Dose = Annotated[list[float] | None, typer.Option(help=f"Multiples of the difference of means; repeat. Default: {', '.join(f'{d:g}' for d in DOSES)}.", show_default=False)]  # fmt: skip
Up = Annotated[list[str] | None, typer.Option(help="A word that should become likelier, with its leading space; repeat.", show_default=False)]  # fmt: skip
Down = Annotated[list[str] | None, typer.Option(help="A word that should become less likely; repeat.", show_default=False)]  # fmt: skip
Text = Annotated[bool, typer.Option("--text", help="Count the words in generated text instead of reading the next token's log-odds.")]  # fmt: skip
Prompts = Annotated[Path | None, typer.Option(help="A text file, one prompt a line; default: 24 open beginnings.", show_default=False)]  # fmt: skip
System = Annotated[str, typer.Option(help="A prompt that asks for the same by words: the baseline to beat.", show_default=False)]  # fmt: skip
Sibling = Annotated[str | None, typer.Option(help="Another contrast, of a concept beside this one: it must do less.", show_default=False)]  # fmt: skip


def steer(
    data: Data,
    model: ModelName = DEFAULT,
    labels: Labels = None,
    site: SiteName = None,
    dose: Dose = None,
    up: Up = None,
    down: Down = None,
    text: Text = False,
    prompts: Prompts = None,
    system: System = "",
    sibling: Sibling = None,
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
    contrast, null = _subject(data, labels, seed)
    words = (tuple(up or ()), tuple(down or ()))
    shots: tuple[str, ...] = ()
    if contrast.name == "happiness" and not any(words):
        words, shots = ((LIKE_UP, LIKE_DOWN) if text else (UP, DOWN)), SHOTS
        system, sibling = system or SYSTEM, sibling or SIBLING
    if not words[0]:
        raise typer.BadParameter('say what should become likelier: --up " word" (and --down)')
    if when not in ("prompt", "generated", "both"):
        raise typer.BadParameter(f"--when {when}: prompt, generated or both")
    other = (
        None
        if sibling is None
        else inputs.labels(sibling, SIBLING_TEXTS if sibling == SIBLING else None, seed)
    )
    rows = inputs.lines(prompts)
    folder = job.folder(out, contrast.name, Path(model).name)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    job.stream(json).print(output.visible(repr(contrast)), soft_wrap=True)
    measure = _measure(words, text)
    where = _where(site, contrast, loaded)
    question = Question(where, list(dose or DOSES), rows, measure, system, shots, other, when)
    _announce(loaded, question, to_stderr=json)
    result = job.run(lambda: _steer(loaded, contrast, null, question, seed), folder)
    options = {
        "model": model,
        "labels": labels,
        "site": site,
        "dose": dose,
        "up": up,
        "down": down,
        "text": text,
        "prompts": prompts,
        "system": system or None,
        "sibling": sibling,
        "when": when,
        "seed": seed,
        "dtype": dtype,
        "device": device,
    }
    job.finish(result, folder, job.command(["steer", data], options), json=json)


@dataclass(frozen=True)
class Question:
    """What is steered where, and how it is measured."""

    site: str | None
    doses: list[float]
    prompts: list[str]
    measure: Any
    system: str
    shots: tuple[str, ...]
    sibling: Any
    when: Any


def _subject(data: str, labels: str | None, seed: int) -> tuple[Any, Any]:
    """Labelled text, or a saved direction with the labelled text of its null directions (None where none is given)."""
    if Path(data).is_dir():
        from microtome.directions.direction import Direction

        return Direction.load(data), None if labels is None else inputs.labels(labels, None, seed)
    if labels is not None:
        raise typer.BadParameter(
            "--labels goes with the folder of a saved direction: here the labels are DATA"
        )
    return inputs.labels(data, None, seed), None


def _where(site: str | None, subject: Any, model: Any) -> str | None:
    """The site that was asked for, a saved direction's own (None), or the stream after the middle layer."""
    if site is not None or hasattr(subject, "vector"):
        return site
    return f"L{model.facts.n_layers // 2}.resid_post"


def _measure(words: tuple[tuple[str, ...], tuple[str, ...]], text: bool) -> Any:
    from microtome.methods.steer_measures import Lexicon, Words

    up, down = words
    return Lexicon(tuple(map(str.strip, up)), tuple(map(str.strip, down))) if text else Words(up, down)


def _steer(model: Any, contrast: Any, null: Any, q: Question, seed: int) -> Result:
    from microtome.methods import steering
    from microtome.methods.steer import SteeringOptions
    from microtome.tasks.corpus import corpus

    neutral = list(corpus().passages(model, NEUTRAL, context=PASSAGE, seed=seed).texts)
    options = SteeringOptions(system_prompt=q.system, few_shot=q.shots, sibling=q.sibling, data=null)
    return steering(
        model,
        contrast,
        site=q.site,
        coefficients=q.doses,
        prompts=q.prompts,
        measure=q.measure,
        neutral=neutral,
        when=q.when,
        options=options,
        seed=seed,
    )


def _announce(model: Any, q: Question, *, to_stderr: bool) -> None:
    """The doses, the null directions, the texts, and neutral text: read by replay from the steered layer on, or written token by token."""
    from microtome.methods.steer import BY_LOGPROB, BY_TEXT, SteeringOptions
    from microtome.methods.steer_measures import of_text

    o = SteeringOptions()
    rows = model.tokens(q.prompts).rows()
    n, size, doses = len(rows), estimate.length(rows), len([d for d in q.doses if d]) + 1
    written = size + GENERATED * o.tokens
    text = of_text(q.measure)
    each = written if text else ABOVE * size
    band, draws = (5, 2 * BY_TEXT) if text else (19, 2 * BY_LOGPROB)
    parts = [
        Part(f"{doses} doses on {n} prompts", doses * n * each),
        Part("null directions", (band * (doses - 1) * n + draws * n / 2) * each),
        Part("texts at every dose", 2 * doses * o.texts * written),
        Part("neutral text", NEUTRAL * 22 * PASSAGE),
    ]
    estimate.announce(model, rows, parts, to_stderr=to_stderr)
