"""An archive that reproduces a write-up with one command on a machine without its lab.

    README.txt          what to do
    manifest.json       format, runs, and BLAKE2b (256 bits) and size of every other file
    write-up.html       and write-up.md
    claims.json  predictions.json  controls.json  environment.json  constraints.txt
    results/12/...      of run 12, as mt.open reads it
    arguments/12.json   of its call, as microtome.lab.arguments writes them; files/KEY are the files that they name
    references/QUERY/   results that arguments name

The same write-up and record give the same bytes. Nothing in it names the machine it was made on, and no key is in it.
"""  # fmt: skip

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from microtome.errors import LabError, MicrotomeError
from microtome.lab import schema
from microtome.lab.claim_telling import as_dict
from microtome.lab.writing import foreign, html, markdown
from microtome.lab.writing.whole import write_whole
from microtome.results.frozen import dumps

if TYPE_CHECKING:
    from microtome.lab.reading import Record, RunRow
    from microtome.lab.writing.values import Experiment, WriteUp

__all__ = ["FORMAT", "SCHEMA_VERSION", "pack"]

FORMAT, SCHEMA_VERSION = "microtome.archive", 1
_WHEN = (1980, 1, 1, 0, 0, 0)
_TEXT = (".txt", ".json", ".html", ".md", ".svg")
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")


def pack(write_up: WriteUp, record: Record, path: str | Path) -> Path:
    """Write the archive of a write-up; its absolute path.

    Runs that cannot be run again elsewhere (arguments that were not kept, or that name a folder of this machine) are in it with their
    results, and it says why they cannot. Raises LabError: no run of it can be reproduced, a file is missing, or the archive would carry
    a path of this machine or a key; ResourceError when it cannot be written.
    """
    place = Path(path).expanduser().absolute()
    if place.suffix.lower() != ".zip":
        raise LabError(f"{place.name} is no name of an archive", why="it is a zip file", instead=f"{place.stem}.zip")  # fmt: skip
    members, runs = _runs(write_up, record)
    members |= _texts(write_up, record, runs)
    about = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "microtome": _version(), "title": write_up.title, "runs": runs}  # fmt: skip
    files = {name: {"blake2b": hashlib.blake2b(content, digest_size=32).hexdigest(), "bytes": len(content)}
             for name, content in sorted(members.items())}  # fmt: skip
    members["manifest.json"] = _json({**about, "files": files})
    folders = foreign.folders_of(record.place.folder)
    for name, content in members.items():
        if name.endswith(_TEXT):
            foreign.check_text(name, content, folders)
    _write(place, members)
    return place


def _write(place: Path, members: Mapping[str, bytes]) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as made:
        for name in ("README.txt", *sorted(set(members) - {"README.txt"})):
            info = zipfile.ZipInfo(name, _WHEN)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16  # fmt: skip
            made.writestr(info, members[name])
    write_whole(place, stream.getvalue())


def _runs(write_up: WriteUp, record: Record) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """(files of the runs, a mapping per run for the manifest)."""
    members: dict[str, bytes] = {}
    told: list[dict[str, Any]] = []
    once = {e.row.number: e for part in write_up.claims for e in part.experiments if e.result is not None}
    for number, e in sorted(once.items()):
        for f in record.files_of(number, "result"):
            members[f"results/{number}/{f.name}"] = record.files.get(f.key)
        why = _arguments(e.row, record, members)
        hub = b'"kind":"hub"' in members.get(f"arguments/{number}.json", b"")
        told.append({**_told(e, why), "from_hub": hub})
    if not any(run["arguments"] for run in told):
        reasons = (
            "; ".join(f"run {run['number']}: {run['not_again']}" for run in told[:3])
            or "it rests on raw looks"
        )
        raise LabError("no run of this write-up can be reproduced from an archive", why=reasons, instead="run them again with models, tasks and text that can be had anywhere (the embedded model, names of tasks), and link those runs")  # fmt: skip
    return members, told


def _told(e: Experiment, why: str) -> dict[str, Any]:
    row = e.row
    return {"number": row.number, "method": row.method, "version": row.version, "code": row.code, "query": row.query, "model": row.model,
            "model_name": row.model_name, "task": row.family, "seed": row.seed, "seconds": row.seconds, "verdict": row.verdict,
            "result": f"results/{row.number}", "arguments": "" if why else f"arguments/{row.number}.json", "not_again": why}  # fmt: skip


def _arguments(row: RunRow, record: Record, members: dict[str, bytes]) -> str:
    """Put the arguments of a run and all that they name among the members; or say why that cannot be."""
    if row.not_again:
        return "; ".join(row.not_again.splitlines())
    if row.arguments is None:
        return "its arguments were not recorded"
    found: dict[str, bytes] = {f"arguments/{row.number}.json": record.files.get(row.arguments)}
    waiting = [found[f"arguments/{row.number}.json"]]
    while waiting:
        data = _read(waiting.pop(), row)
        local = next(foreign.local_paths(data), None)
        if local is not None:
            return f"it was given {local}"
        for what, name in foreign.named(data):
            if what == "result":
                if problem := _reference(name, record, found):
                    return problem
            elif f"files/{name}" not in found and record.files.has(name):
                found[f"files/{name}"] = record.files.get(name)
                if name.endswith(".json"):
                    waiting.append(found[f"files/{name}"])
    members |= found
    return ""


def _read(content: bytes, row: RunRow) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LabError(f"the arguments of run {row.number} cannot be read", why=str(error), instead="microtome lab doctor") from error  # fmt: skip


def _reference(query: str, record: Record, found: dict[str, bytes]) -> str:
    """A result that arguments name, under references/; or why it cannot be had."""
    folder = f"references/{query}"
    if not re.fullmatch(r"[0-9a-f]{1,64}", query):
        return f"it was given the result of a query called {query[:20]!r}"
    if f"{folder}/result.json" in found:
        return ""
    run = schema.run.c
    wanted = select(run.number).where(run.query == query, run.result.is_not(None)).order_by(run.number.desc())
    with record.database.reading() as connection:
        number = connection.execute(wanted.limit(1)).scalar()
    if number is None:
        return f"it was given the result of the query {query}, which is not in the record"
    try:
        for f in record.files_of(int(number), "result"):
            found[f"{folder}/{f.name}"] = record.files.get(f.key)
    except MicrotomeError as error:
        return f"it was given the result of run {number}: {error.what}"
    return ""


def _texts(write_up: WriteUp, record: Record, runs: list[dict[str, Any]]) -> dict[str, bytes]:
    experiments = {e.row.number: e for part in write_up.claims for e in part.experiments}
    told = {p.number: p for part in write_up.claims for p in [*part.foretold, *(q for e in part.experiments for q in e.predictions)]}  # fmt: skip
    versions = dict(write_up.environment)
    return {
        "README.txt": _readme(write_up, runs).encode("utf-8"),
        "write-up.html": html.page(write_up).encode("utf-8"),
        "write-up.md": markdown.page(write_up).encode("utf-8"),
        "claims.json": _json([_claim(part.claim) for part in write_up.claims]),
        "predictions.json": _json([_prediction(p) for _, p in sorted(told.items())]),
        "controls.json": _json({str(n): [asdict(c) for c in record.controls(n)] for n in sorted(experiments)}),
        "environment.json": _json(versions),
        "constraints.txt": _constraints(versions).encode("ascii"),
    }  # fmt: skip


def _claim(claim: Any) -> dict[str, Any]:
    from microtome.results.frozen import freeze_json

    def plain(value: Any) -> Any:
        if hasattr(value, "__dataclass_fields__"):
            return {k: plain(getattr(value, k)) for k in value.__dataclass_fields__}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return dict(freeze_json(plain(as_dict(claim)), "claim"))


def _prediction(p: Any) -> dict[str, Any]:
    kept = ("number", "person", "by", "statement", "probability", "made_at", "after_run", "post_hoc", "why_post_hoc", "state", "run",
            "reason", "resolved_by", "resolved_at", "claim", "observed")  # fmt: skip
    more = {"about": p.about.as_json(), "holds": None if p.holds is None else p.holds.as_json()}
    return {**{name: getattr(p, name) for name in kept}, **more}


def _json(value: Any) -> bytes:
    from microtome.results.frozen import freeze_json

    return (dumps(freeze_json(value, "archive"), indent=1) + "\n").encode("ascii")


def _constraints(versions: Mapping[str, str]) -> str:
    """Pins of the packages that decide numbers, as pip reads them; local parts (+cpu) name builds and are left out."""
    lines = []
    for name, version in versions.items():
        plain = version.partition("+")[0]
        if name not in ("python", "platform", "microtome") and _PLAIN.fullmatch(plain):
            lines.append(f"{name.replace('_', '-')}=={plain}")
    return "".join(f"{line}\n" for line in lines)


def _readme(write_up: WriteUp, runs: list[dict[str, Any]]) -> str:
    from microtome.lab.writing.telling import plain

    again = [run for run in runs if run["arguments"]]
    seconds = sum(run["seconds"] or 0.0 for run in again)
    lines = [
        plain(write_up.title, 400), f"by {', '.join(plain(a, 200) for a in write_up.authors)}", "",
        "Read write-up.html in a browser, or write-up.md.", "",
        "Every run in it is made again, and compared with what was recorded, by one command:", "",
        "    microtome lab reproduce THIS_FILE.zip", "",
        f"It needs Microtome ({_version()} made this) and no lab: pip install microtome -c constraints.txt gives the versions of then.",
        f"{len(again)} of {len(runs)} runs can be run again; together they took {seconds:.0f} seconds, loading of models aside.",
    ]  # fmt: skip
    if any(run["from_hub"] for run in again):
        lines.append(
            "A model that is not on the machine is fetched from the hub only with MICROTOME_ONLINE=1."
        )
    lines += [f"Run {run['number']} ({run['method']}) cannot be: {plain(run['not_again'], 400)}." for run in runs if not run["arguments"]]  # fmt: skip
    lines += [
        "",
        'A result by itself: import microtome as mt; mt.open("results/N"), from the unpacked archive.',
    ]
    return "\n".join(lines) + "\n"


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("microtome")
    except metadata.PackageNotFoundError:
        return "unknown"
