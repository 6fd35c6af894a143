"""The runs of an archive made again and compared with what is stored in it. An archive names techniques of the registry only."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import LabError, MicrotomeError
from microtome.lab.arguments.values import read_text
from microtome.lab.equality import TOLERANCE, Equality, compared
from microtome.lab.writing import foreign
from microtome.lab.writing.unpacking import Manifest, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microtome.results import Result

__all__ = ["Again", "Reproduced", "reproduce"]

EQUAL, WITHIN, DIFFERS, FAILED, NOT_IN_IT = (
    "equal",
    "within tolerance",
    "differs",
    "failed",
    "not in the archive",
)


@dataclass(frozen=True)
class Again:
    """A run made again. outcome: equal (to the bit), within tolerance, differs, failed (it could not be run), or not in the archive
    (its makers say why it cannot be run elsewhere). largest: the difference relative to the largest number of its array; NaN unknown.
    """  # fmt: skip

    run: int
    method: str
    outcome: str
    said: str
    largest: float
    seconds: float
    verdict: str


@dataclass(frozen=True)
class Reproduced:
    """All runs of an archive. microtome: the version that made it; digest: of its manifest, which names the whole."""

    title: str
    microtome: str
    digest: str
    tolerance: float
    runs: tuple[Again, ...]

    @property
    def good(self) -> bool:
        """Whether at least one run was made again, and none differed or failed."""
        outcomes = [run.outcome for run in self.runs]
        return any(o in (EQUAL, WITHIN) for o in outcomes) and not any(o in (DIFFERS, FAILED) for o in outcomes)  # fmt: skip


def reproduce(
    path: str | Path,
    *,
    only: Sequence[int] = (),
    tolerance: float = TOLERANCE,
    progress: Callable[[str], None] = lambda text: None,
) -> Reproduced:
    """Check an archive, run what it holds again, and compare.

    Parameters
    ----------
    only: numbers of runs; () for all. tolerance: of a difference, relative to the largest number of its array. progress: told each run.

    Raises LabError: an archive that is refused (`unpacking.inspect`), or that has no run of such a number. That a run fails raises
    nothing: its row says why.
    """
    if not 0 <= tolerance < 1:
        raise LabError(f"the tolerance is {tolerance!r}", why="it is a share of the largest number", instead="0.001")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="microtome-archive-") as folder:
        root = Path(folder)
        manifest = unpack(path, root)
        wanted = _wanted(manifest, only)
        rows = []
        for run in wanted:
            progress(f"run {run['number']}: {run['method']}")
            rows.append(_again(run, root, tolerance))
    return Reproduced(manifest.title, manifest.microtome, manifest.digest, tolerance, tuple(rows))


def _wanted(manifest: Manifest, only: Sequence[int]) -> list[Mapping[str, Any]]:
    known = [run["number"] for run in manifest.runs]
    missing = [n for n in only if n not in known]
    if missing:
        raise LabError(f"the archive has no run {missing[0]}", why=f"it has {', '.join(map(str, known)) or 'none'}", instead="one of these")  # fmt: skip
    return [run for run in manifest.runs if not only or run["number"] in only]


def _again(run: Mapping[str, Any], root: Path, tolerance: float) -> Again:
    from microtome.results.calibration import technique_hash
    from microtome.results.store import open_result

    number, method = run["number"], run["method"]
    if not run["arguments"]:
        return Again(number, method, NOT_IN_IT, run["not_again"], float("nan"), 0.0, "")
    began = time.monotonic()
    try:
        stored = open_result(root / run["result"])
        if stored.query is None or stored.query.method != method or stored.query.id != run["query"]:
            raise LabError(f"the result of run {number} answers another question", why="its query is not the manifest's", instead="get the archive again")  # fmt: skip
        made = _run(run, root)
    except MicrotomeError as error:
        said = error.what + (f" ({error.why})" if error.why else "")
        return Again(number, method, FAILED, said, float("nan"), time.monotonic() - began, "")
    seconds = time.monotonic() - began
    found: Equality = compared(stored, made, tolerance)
    outcome = EQUAL if found.same else WITHIN if found.within else DIFFERS
    said = found.said
    if not found.same and run.get("code") != technique_hash(method):
        said += f"; the code of {method} is not what it was"
    return Again(number, method, outcome, said, found.largest, seconds, made.verdict.word)


def _run(run: Mapping[str, Any], root: Path) -> Result:
    from microtome.lab.arguments import run_again
    from microtome.results.store import open_result

    content = (root / run["arguments"]).read_bytes()
    files = _Files(root)

    def result_of(query: str) -> Result:
        folder = root / "references" / query
        if not query.isalnum() or not folder.is_dir():
            raise LabError(f"the archive does not hold the result of the query {query!r}", why="an argument was that result", instead="ask who made the archive")  # fmt: skip
        return open_result(folder)

    _refuse_local(read_text(content, f"the arguments of run {run['number']}"))
    return run_again(run["method"], content.decode("utf-8"), files, result_of=result_of)


class _Files:
    """The files of an archive that arguments name. What would be read from this machine is refused there too."""

    def __init__(self, root: Path) -> None:
        self.root = root / "files"

    def put(self, content: bytes, suffix: str) -> str:
        raise LabError("an archive is only read", why="nothing is added to it", instead="open a study")

    def get(self, key: str) -> bytes:
        if "/" in key or not (self.root / key).is_file():
            raise KeyError(key)
        content = (self.root / key).read_bytes()
        if key.endswith(".json"):
            _refuse_local(read_text(content, f"the file {key}"))
        return content


def _refuse_local(data: Any) -> None:
    """Raise LabError for arguments that would read files of this machine: an archive brings its own."""
    local = next(foreign.local_paths(data), None)
    if local is not None:
        raise LabError(
            f"the archive asks for {local}",
            why="an archive may not read from the machine that opens it",
            instead="ask who made it for an archive that holds what it needs",
        )
