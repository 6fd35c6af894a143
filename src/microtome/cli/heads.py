"""`microtome heads`: which heads do induction: predicted from the weights, measured on text, confirmed by taking them away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microtome.cli import estimate, inputs, job, output
from microtome.cli.estimate import Part
from microtome.cli.inputs import DEFAULT, Device, Dtype, Json, ModelName, Seed
from microtome.cli.job import Out

if TYPE_CHECKING:
    from microtome.results import Result

__all__ = ["heads"]

LENGTH = 49
"""Tokens of a prompt of repeated random tokens."""
SHOWN = 4
"""Heads of each role on the screen."""
WEIGHTS = 60.0
"""Predicting every head from its weights, in forwards of all prompts. A rough count."""


def heads(
    model: ModelName = DEFAULT,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Natural text beside repeated random tokens: a file, a folder or hf:NAME; default: Python's standard library.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option("-n", "--prompts", min=2, help="Prompts of either kind of text.")
    ] = 8,
    context: Annotated[int, typer.Option(min=8, help="Tokens of a block of natural text.")] = 64,
    ablate: Annotated[
        int, typer.Option(min=0, help="How many of the best predicted induction heads are taken away.")
    ] = 4,
    sets: Annotated[
        int, typer.Option(min=1, help="Sets of as many other heads, taken away for comparison.")
    ] = 19,
    seed: Seed = 0,
    out: Out = None,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Find previous-token, induction and copying heads by their weights alone, and see whether they do what the weights say.

    Writes OUT/report.html and OUT/result.
    """
    from microtome.tasks.corpus import corpus as read

    text = read(corpus)
    folder = job.folder(out, "heads", model)
    loaded = inputs.load(model, dtype, device)
    job.say_origin(loaded, to_stderr=json)
    _announce(loaded, prompts, ablate, sets, to_stderr=json)
    options: dict[str, Any] = {"prompts": prompts, "context": context, "ablate": ablate, "random_sets": sets}
    result = job.run(lambda: _heads(loaded, text, options, seed), folder)
    asked = {"model": model, "corpus": corpus, "prompts": prompts, "context": context, "ablate": ablate, "sets": sets, "seed": seed, "dtype": dtype, "device": device}  # fmt: skip
    job.finish(result, folder, job.command(["heads"], asked), json=json, tables=_tables(result))


def _heads(model: Any, text: Any, options: Mapping[str, Any], seed: int) -> Result:
    from microtome.methods import head_roles

    return head_roles(model, text, **options, seed=seed)


def _announce(model: Any, prompts: int, ablate: int, sets: int, *, to_stderr: bool) -> None:
    rows = estimate.made_up(model, prompts, LENGTH)
    tokens = estimate.length(rows) * prompts * 2
    taken = ablate + 1 + sets if ablate else 0
    parts = [Part("predicted from the weights", WEIGHTS * tokens), Part("measured", 6 * tokens),
             Part(f"{taken} sets of heads taken away", taken * tokens)]  # fmt: skip
    estimate.announce(model, rows, parts, to_stderr=to_stderr)


def _tables(result: Result) -> dict[str, tuple[tuple[str, ...], list[tuple[object, ...]]]]:
    """The heads that stand out for each role, and what is lost without the predicted ones."""
    roles, rises = result.tables["roles"], result.tables.get("ablations")
    kinds = [k for k in ("repeated", "natural") if k in roles]
    rows: list[tuple[object, ...]] = []
    for role in dict.fromkeys(roles["role"]):
        own = roles[roles["role"] == role].sort_values("predicted", ascending=False, kind="stable")
        rows += [(role, r["site"], output.number(r["predicted"]), output.number(r["null_high"]), output.number(r["p"], 2), *(output.number(r[k]) for k in kinds), r["through"])
                 for r in own.head(SHOWN).to_dict("records")]  # fmt: skip
    head = ("role", "head", "predicted", "null", "p", *(f"measured, {k}" for k in kinds), "through")
    out = {"Heads, by what their weights say": (head, rows)}
    if rises is not None:
        kept = rises[~rises["heads"].str.startswith("random")]
        lost: list[tuple[object, ...]] = [
            (r["heads"], r["text"], r["where"], f"{output.number(r['rise'])} nats", output.interval(r["low"], r["high"]), output.interval(r["null_low"], r["null_high"]))
            for r in kept.to_dict("records")
        ]  # fmt: skip
        out["Rise of the loss without them"] = (("without", "text", "where", "rise", "interval", "as many other heads"), lost)  # fmt: skip
    return out
