"""`microtome tasks`: which behaviours and datasets come with Microtome and its plug-ins, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from microtome.cli import inputs, output
from microtome.cli.inputs import DEFAULT, Json, ModelName, Seed

app = typer.Typer(no_args_is_help=True, help="List tasks and datasets, and show what is in them.")


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
    output.say(
        "see one: microtome tasks show NAME; labelled text, word pairs and corpora: microtome tasks datasets"
    )


def _join(values: Any) -> str:
    return ", ".join(values or ())


@app.command()
def datasets(json: Json = False) -> None:
    """Labelled datasets, word pairs and corpora. Plug-ins are included."""
    from microtome.tasks import sets
    from microtome.tasks.corpus import CORPORA
    from microtome.tasks.word_pairs import describe

    labelled = [sets.describe(name) for name in sets.names()]
    pairs = describe()
    if json:
        output.print_json({"labelled": labelled, "word_pairs": pairs, "corpora": CORPORA})
        return
    rows = [(d["name"], d["summary"], d.get("about", ""), d.get("most", "")) for d in labelled]
    output.table(("dataset", "for example", "the label says", "texts"), rows)
    output.table(
        ("word pairs", "relation", "pairs", "source"),
        [(d["name"], d["relation"], d["pairs"], d["source"]) for d in pairs],
    )
    output.table(("corpus", "what it holds"), list(CORPORA.items()))
    output.say("see one, and what the linter says of it: microtome tasks describe NAME|FILE")


@app.command(name="describe")
def describe_(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="A labelled dataset, hf:NAME, or a file with the columns text and label.",
            show_default=False,
        ),
    ],
    n: Annotated[int | None, typer.Option("-n", min=1, help="How many texts.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts to show.")] = 6,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """A labelled dataset: texts of it, and what the linter finds before anything is fitted to it."""
    from microtome.tasks import sets
    from microtome.tasks.dataset import labelled
    from microtome.tasks.lint import lint

    data = labelled(name, n=n, seed=seed)
    found = lint(data, seed=seed)
    told = sets.describe(name) if name in sets.names() else {"name": data.name}
    rows = [
        {
            "label": data.classes[data.labels[i]],
            "text": data.texts[i],
            **{g: v[i] for g, v in data.groups.items()},
        }
        for i in range(min(k, len(data)))
    ]
    findings = [
        {"kind": f.kind, "severity": f.severity, "detail": f.detail, "examples": f.examples}
        for f in found.findings
    ]
    notes = list(data.provenance.get("notes", ()))
    if json:
        output.print_json(
            {
                **told,
                "n": len(data),
                "counts": data.counts,
                "hash": data.hash,
                "notes": notes,
                "findings": findings,
                "texts": rows,
            }
        )
        return
    output.say(repr(data))
    for key in ("about", "source", "readable"):
        if told.get(key):
            output.say(f"{key}: {told[key]}")
    for note in notes:
        output.say(f"note: {note}")
    output.table(("label", "text", *data.groups), [tuple(row.values()) for row in rows])
    for f in findings:
        output.say(f"{f['severity']}: {f['kind']}: {f['detail']}")
    output.say(
        f"linter: {len(found.measured)} checks against shuffled labels, false alarms at most {found.alpha:.0%} together; {'nothing' if found.clean else 'see above'} to look at first"
    )


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
