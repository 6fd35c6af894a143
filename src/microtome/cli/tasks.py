"""`microtome tasks`: which behaviours come with Microtome and its plug-ins, and what their prompts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from microtome.cli import inputs, output
from microtome.cli.inputs import DEFAULT, Json, ModelName, Seed

app = typer.Typer(no_args_is_help=True, help="List tasks, and show their prompts token by token.")


@app.command("list")
def list_(json: Json = False) -> None:
    """Every task: what is asked, its variables, and how its counterfactuals differ. Plug-ins are included."""
    from microtome.tasks import describe, names

    every = [describe(name) for name in names()]
    if json:
        output.print_json(every)
        return
    rows = [
        (d["name"], d["summary"], _join(d.get("variables")), _join(d.get("counterfactuals"))) for d in every
    ]
    output.table(("name", "asks", "variables", "counterfactuals"), rows)
    output.say("see one: microtome tasks show NAME")


def _join(values: Any) -> str:
    return ", ".join(values or ())


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A task, or a file of pairs.", show_default=False)
    ],
    model: ModelName = DEFAULT,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pairs.")] = 2,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Pairs with everything a method sees: tokens, ids, positions, spans, variables, answers."""
    from microtome.tasks import show as rows_of

    inputs.check(name)
    loaded = inputs.load(model)
    pairs = _pairs(name, loaded, k, seed)
    rows = rows_of(pairs, loaded, k)
    if json:
        output.print_json({"task": pairs.name, "hash": pairs.hash, "metric": pairs.metric, "aligned": pairs.aligned,
                           "differs": pairs.differs, "provenance": pairs.provenance, "pairs": rows})  # fmt: skip
        return
    output.say(
        f"{pairs.name}: scored by {pairs.metric}; corrupt differs in {_join(sorted(pairs.differs)) or 'what is not declared'}"
    )
    for line in inputs.notes(pairs):
        output.say(line)
    for row in rows:
        _show_pair(row)


def _pairs(name: str, model: Any, k: int, seed: int) -> Any:
    if inputs.is_file(name):
        from microtome.tasks import pairs

        return pairs(model, name)
    from microtome.tasks import task

    return task(name, model, n=k, seed=seed)


def _show_pair(row: Mapping[str, Any]) -> None:
    groups = ", ".join(f"{by} {label}" for by, label in row["groups"].items())
    output.say("")
    output.say(f"pair {row['pair']} ({groups})", style="bold")
    for side in ("clean", "corrupt"):
        output.say(f"{side}: {row[side]['text']}")
        for kind in ("variables", "surface"):
            if row[side][kind]:
                output.say(f"  {kind}: " + ", ".join(f"{k}={v}" for k, v in row[side][kind].items()))
    for side in ("answers", "wrong"):
        more = row[f"n_{side}"] - len(row[side])
        output.say(f"{side}: " + ", ".join(map(repr, row[side])) + (f" and {more} more" if more else ""))
    output.table(
        ("position", "id", "clean", "id", "corrupt", "differs", "spans"),
        list(_tokens(row["clean"]["tokens"], row["corrupt"]["tokens"])),
    )


def _tokens(
    clean: Sequence[Mapping[str, Any]], corrupt: Sequence[Mapping[str, Any]]
) -> list[tuple[object, ...]]:
    return [
        (
            a["position"],
            a["id"],
            repr(a["token"]),
            b["id"],
            repr(b["token"]),
            "*" if a["differs"] else "",
            " ".join(a["spans"]),
        )
        for a, b in zip(clean, corrupt, strict=True)
    ]
