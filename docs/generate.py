"""Write the reference pages that are made from the code.

    python docs/generate.py            write docs/reference/*.md
    python docs/generate.py --check    end with 1, naming the page, if one is not what the code says
    python docs/generate.py --print extensions

Plug-ins that are installed beside Microtome appear in `extensions` like its own parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "reference"
HEAD = "<!-- Written by docs/generate.py from the code. Change the code, then `make docs`. -->\n\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(" ".join(str(c).replace("|", "\\|").split()) for c in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


def points() -> str:
    """The table of points and the grammar of addresses."""
    from microtome import sites
    from microtome.points import LAYER, POINTS, RESERVED

    grammar = str(sites.__doc__).split("\n\n")[1]
    groups: dict[str, list[tuple[object, ...]]] = {}
    for p in POINTS.values():
        letters = ", ".join(p.letters)
        name = f"`L5.{p.name}`" if p.scope == LAYER else f"`{p.name}`"
        row = (
            name,
            "[" + ", ".join(p.axes).replace("one", "1") + "]",
            letters,
            p.unit,
            "yes" if p.writable else "no",
            p.meaning,
        )
        groups.setdefault(p.group, []).append(row)
    head = ("address", "shape", "narrowed by", "unit", "writable", "meaning")
    parts = [f"## {name}\n\n{_table(head, rows)}" for name, rows in groups.items()]
    return f"""# Points and addresses

One string names one tensor. `model.run(prompts, capture=["L9H6.pattern", "L*.resid_pre@-1"])` reads it, an edit at the
same address writes it.

```text
{grammar}
```

`@` is only ever a position and counts the prompt's own tokens: 0 is the first (BOS where present), -1 the last,
whatever the padding side. `L9H6.z` is query head 6 of layer 9, `L9KV2.k` a key/value head, `L3N1021.neurons` a neuron.
In `pattern` and `scores` a position may be a pair, query and key: `L9H6.pattern@-1<-subject`.

A point that a model does not have is refused with the reason; `microtome models check NAME` lists those of one model.

{chr(10).join(parts)}
## Reserved

{_table(("name", "why it is refused"), ((f"`{name}`", why) for name, why in RESERVED.items()))}"""


def extensions() -> str:
    """What is registered under each kind, built in or by a plug-in, and how to add to it."""
    from microtome.results import registry

    parts = []
    for kind, (intro, head, row) in _KINDS.items():
        if kind == "families":
            import microtome.model.families  # noqa: F401  its rows register themselves
        owners = _owners(kind)
        rows = [
            (f"`{name}`", owners.get(name, "built in"), *row(registry.get(kind, name)))
            for name in registry.names(kind)
        ]
        parts.append(f"## {kind.capitalize()}\n\n{intro}\n\n{_table(('name', 'from', *head), rows)}")
    return f"""# What can be extended

A family, a task, a dataset, a metric or a technique is one file and one registry entry. A package of your own adds one by an entry
point in the group `microtome.families`, `microtome.tasks`, `microtome.datasets`, `microtome.metrics` or
`microtome.techniques`; nothing in Microtome changes. CONTRIBUTING.md has an example of each in about 20 lines. This page lists what is installed here.

{chr(10).join(parts)}
{_word_pairs()}"""


def _word_pairs() -> str:
    """Relations of words and corpora: no registry, a table all the same."""
    from microtome.tasks.corpus import CORPORA
    from microtome.tasks.word_pairs import KINDS, word_pairs

    # WordNet is the user's own: whether it is there must not change this page
    made = {name: word_pairs(name) for name in KINDS if name != "antonyms_wordnet"}
    rows = [(f"`{name}`", w.relation, len(w), w.source) for name, w in made.items()]
    rows.append(
        ("`antonyms_wordnet`", "word -> its opposite", "", "the user's own WordNet, where there is one")
    )
    pairs = _table(("name", "relation", "pairs", "source"), rows)
    corpora = _table(("call", "what it holds"), [(f"`{call}`", what) for call, what in CORPORA.items()])
    head = "`microtome.tasks.word_pairs.word_pairs(NAME, model)`; pairs of your own are a list."
    return f"## Word pairs\n\n{head}\n\n{pairs}\n## Corpora\n\n{corpora}"


def _owners(kind: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    return {
        p.name: f"{p.dist.name} {p.dist.version}" if p.dist else "?"
        for p in entry_points(group=f"microtome.{kind}")
    }


def _family(found: Any) -> Sequence[object]:
    return found.name, found.positions


def _task(found: Any) -> Sequence[object]:
    summary = getattr(found, "summary", None) or str(found.__doc__ or "").partition("\n")[0]
    changes = ", ".join(getattr(found, "counterfactuals", {}))
    return summary, ", ".join(getattr(found, "variables", ())), changes


def _dataset(found: Any) -> Sequence[object]:
    summary = getattr(found, "summary", None) or str(found.__doc__ or "").partition("\n")[0]
    most = found.most() * found.per if hasattr(found, "most") else ""
    return (
        summary,
        getattr(found, "about", ""),
        most,
        getattr(found, "readable", "") or "no word",
        getattr(found, "source", ""),
    )


def _metric(found: Any) -> Sequence[object]:
    return found.unit, found.higher


def _technique(found: Any) -> Sequence[object]:
    summary = str(found.__doc__ or "").partition("\n")[0]
    controls = ", ".join(f"**{c}**" if c in found.spec.mandatory else c for c in found.spec.controls)
    return found.spec.version, summary, controls


_KINDS: dict[str, tuple[str, Sequence[str], Callable[[Any], Sequence[object]]]] = {
    "techniques": (
        "A function from a model and data to a `Result`, decorated with `microtome.results.technique`. Controls in bold are\n"
        'mandatory: without them the verdict is "unchecked".',
        ("version", "what it asks", "controls"),
        _technique,
    ),
    "tasks": (
        "A subclass of `microtome.tasks.generator.Generator`, or any function `(model, n, seed, **options) -> PairTask`.",
        ("asks", "variables", "counterfactuals"),
        _task,
    ),
    "datasets": (
        "A `microtome.tasks.sets.base.Dataset`, or any function `(n, seed) -> LabelledText`; `mt.labelled(NAME)` gives it.",
        ("for example", "the label says", "texts at most", "what of the words tells the label", "source"),
        _dataset,
    ),
    "metrics": (
        "A `microtome.metrics.Metric`: a pure function from logits to one number per prompt.",
        ("unit", "larger means"),
        _metric,
    ),
    "families": (
        "A `microtome.model.family.Family`, registered under the `model_type` of its config. A model of a type that is not\n"
        "listed is resolved by structure, and every name that its certificate does not confirm is withdrawn.",
        ("family", "positions"),
        _family,
    ),
}


def benchmarks() -> str:
    """The page of measurements, from the last run's file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.table import page as measured

    return measured()


def calibration() -> str:
    """How often each technique is right on models of known mechanism, from the shipped file."""
    from microtome.zoo.calibrate.table import page as measured

    return measured()


def zoo() -> str:
    """The compiled programs and the trained models, with what was published beside what these weights do."""
    sys.path.insert(0, str(Path(__file__).parent))
    from zoo_page import page as described

    return described(_table)


def battery() -> str:
    """Each way in which a claim could be wrong, with its check."""
    sys.path.insert(0, str(Path(__file__).parent))
    from battery_page import page as described

    return described(_table)


def record() -> str:
    """The tables of a record, column by column."""
    from microtome.lab import schema

    lines = [
        "# The tables of a record",
        "",
        '`microtome lab sql "SELECT ..."` reads them; nothing but Microtome writes them. Times are seconds since 1970 (UTC):',
        "`datetime(begun_at, 'unixepoch')` in SQLite, `to_timestamp(begun_at)` in PostgreSQL. JSON is text.",
        f"The schema is at revision {schema.REVISION}; a record of another revision is upgraded (`microtome lab doctor --upgrade`) or refused.",
    ]
    for table in schema.metadata.tables.values():
        lines += ["", f"## {table.name}", "", table.comment or "", ""]
        rows = [(f"`{c.name}`", _column(c), c.comment or "") for c in table.columns]
        lines.append(_table(("column", "type", "what"), rows))
    return "\n".join(lines)


def _column(column: Any) -> str:
    kind = {
        "TEXT": "text",
        "STRING": "text",
        "FLOAT": "number",
        "INTEGER": "integer",
        "BIG_INTEGER": "integer",
        "BOOLEAN": "boolean",
    }
    words = [kind[str(column.type.__visit_name__).upper()]]
    words += ["key"] if column.primary_key else []
    words += [f"-> {next(iter(column.foreign_keys)).target_fullname}"] if column.foreign_keys else []
    words += ["may be null"] if column.nullable else []
    return ", ".join(words)


def runs() -> str:
    """What real runs gave, from their saved results."""
    sys.path.insert(0, str(Path(__file__).parent))
    from runs_page import page as made

    return made(_table)


def pictures() -> dict[Path, Callable[[], str]]:
    """The pictures of the real runs: file and what draws it."""
    sys.path.insert(0, str(Path(__file__).parent))
    import runs_page

    return runs_page.pictures()


PAGES: dict[str, Callable[[], str]] = {
    "points": points,
    "extensions": extensions,
    "benchmarks": benchmarks,
    "record": record,
    "battery": battery,
    "runs": runs,
    "zoo": zoo,  # last: they load the zoo, whose family is no part of what is installed
    "calibration": calibration,
}


def page(name: str) -> str:
    """The text of one page."""
    return HEAD + PAGES[name]().rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, check or print; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", dest="only", choices=sorted(PAGES))
    given = parser.parse_args(arguments)
    if given.only:
        sys.stdout.write(page(given.only))
        return 0
    stale = []
    files = {FOLDER / f"{name}.md": (lambda name=name: page(name)) for name in PAGES}
    for file, write in {**files, **pictures()}.items():
        text = write()
        if given.check and (not file.exists() or file.read_text(encoding="utf-8") != text):
            stale.append(str(file))
        elif not given.check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for file_name in stale:
        print(f"{file_name} is not what the code says: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
