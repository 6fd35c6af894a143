"""An archive opened: everything about it is checked before anything of it is written, and nothing of it is imported or run."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from microtome.errors import LabError, ResourceError
from microtome.lab.writing.archive import FORMAT, SCHEMA_VERSION

__all__ = ["LARGEST", "Manifest", "inspect", "unpack"]

LARGEST = 4 << 30
"""Bytes that an archive may unpack to."""
MOST_FILES = 50_000
LARGEST_MANIFEST = 32 << 20
SUFFIXES = (".txt", ".json", ".html", ".md", ".parquet", ".safetensors", ".npy", ".csv", ".diff", "")
"""Kinds of files that are in archives; content-addressed files may have none."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_TOPS = ("README.txt", "manifest.json", "write-up.html", "write-up.md", "claims.json", "predictions.json", "controls.json",
         "environment.json", "constraints.txt")  # fmt: skip
_FOLDERS = ("results", "arguments", "files", "references")
_CHUNK = 1 << 20
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True)
class Manifest:
    """What an archive says it holds. digest: of manifest.json, which has the digests of all other files: it names the whole."""

    title: str
    microtome: str
    runs: tuple[Mapping[str, Any], ...]
    files: Mapping[str, tuple[str, int]]
    digest: str


def inspect(path: str | Path) -> Manifest:
    """Check an archive without writing anything: names, kinds, sizes, the manifest, and the digest of every file.

    Raises
    ------
    LabError: no zip file; a name that leads out of the folder, is absolute, is there twice, is a link or no kind of file that archives
    hold; more or larger files than are unpacked; a file that is not in the manifest, is missing, or is not what it was.
    """
    place = Path(path).expanduser()
    with _opened(place) as archive:
        entries = _entries(archive, place)
        manifest = _manifest(archive, entries, place)
        for name, (told, size) in manifest.files.items():
            _checked(archive, entries[name], told, size, place, None)
    return manifest


def unpack(path: str | Path, folder: Path) -> Manifest:
    """Check an archive, then write its files into an empty folder. Raises what `inspect` does, ResourceError for a full disk."""
    place = Path(path).expanduser()
    manifest = inspect(place)
    root = folder.resolve()
    try:
        with _opened(place) as archive:
            entries = _entries(archive, place)
            for name, (told, size) in manifest.files.items():
                target = root / name
                if root not in target.resolve().parents:  # names were checked: this cannot be
                    raise _bad(place, f"{name!r} leads out of the folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    _checked(archive, entries[name], told, size, place, out)
    except OSError as error:
        raise ResourceError(f"{place.name} cannot be unpacked", why=error.strerror or str(error), instead="free some space, or set TMPDIR") from error  # fmt: skip
    return manifest


@contextmanager
def _opened(place: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(place) as archive:
            yield archive
    except FileNotFoundError as error:
        raise LabError(f"no archive at {place}", why="the file does not exist", instead="check the path") from error  # fmt: skip
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise _bad(place, f"it is no whole zip file: {error}") from error
    except RuntimeError as error:  # zipfile says so of encrypted members
        raise _bad(place, str(error)) from error


def _entries(archive: zipfile.ZipFile, place: Path) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    listed = archive.infolist()
    if len(listed) > MOST_FILES:
        raise _bad(place, f"it lists {len(listed)} files, and {MOST_FILES} are read at most")
    if sum(entry.file_size for entry in listed) > LARGEST:
        raise _bad(place, f"it unpacks to more than {LARGEST >> 30} GiB")
    for entry in listed:
        problem = _wrong(entry)
        if problem:
            raise _bad(place, f"{_shown(entry.orig_filename)} {problem}")
        if entry.filename.casefold() in seen:
            raise _bad(place, f"{_shown(entry.filename)} is in it twice")
        seen.add(entry.filename.casefold())
        found[entry.filename] = entry
    return found


def _wrong(entry: zipfile.ZipInfo) -> str:
    """Why a member is refused by what the zip says of it; "" where nothing is wrong."""
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if name != entry.filename or "\\" in name or name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path, or has a backslash or NUL in it"
    parts = name.split("/")
    if ".." in parts or "." in parts:
        return "leads out of the folder"
    if kind not in (0, stat.S_IFREG):
        return "is a link, folder or device, and no file"
    if not all(_PART.fullmatch(part) and not _RESERVED.fullmatch(part) and part[-1] != "." for part in parts):
        return "is no name that an archive of Microtome has"
    if not (name in _TOPS or (len(parts) > 1 and parts[0] in _FOLDERS)):
        return "is no file that an archive of Microtome has"
    if Path(name).suffix not in SUFFIXES:
        return "is of a kind that no archive of Microtome has"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that no archive of Microtome is"
    return ""


def _manifest(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], place: Path) -> Manifest:
    entry = entries.get("manifest.json")
    if entry is None:
        raise _bad(place, "it has no manifest.json")
    if entry.file_size > LARGEST_MANIFEST:
        raise _bad(place, "its manifest is too large")
    content = b"".join(_read(archive, entry, place))
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _bad(place, f"its manifest is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise _bad(place, "its manifest is not one of Microtome")
    version = data.get("schema_version")
    if type(version) is not int or version < 1:
        raise _bad(place, f"its schema version is {version!r}")
    if version > SCHEMA_VERSION:
        raise LabError(f"{place.name} has schema version {version}", why=f"this version of Microtome reads up to {SCHEMA_VERSION}", instead="update Microtome")  # fmt: skip
    files = _files(data.get("files"), place)
    if set(files) != set(entries) - {"manifest.json"}:
        other = sorted(set(files) ^ (set(entries) - {"manifest.json"}))[0]
        raise _bad(place, f"{_shown(other)} is {'missing' if other in files else 'not in its manifest'}")
    runs = _runs(data.get("runs"), files, place)
    title, made = (data.get(key) if isinstance(data.get(key), str) else "" for key in ("title", "microtome"))
    return Manifest(str(title), str(made), runs, files, hashlib.blake2b(content, digest_size=32).hexdigest())


def _files(data: Any, place: Path) -> dict[str, tuple[str, int]]:
    found = {}
    for name, told in (data if isinstance(data, dict) else {"": None}).items():
        mark, size = (told.get("blake2b"), told.get("bytes")) if isinstance(told, dict) else (None, None)
        if not isinstance(mark, str) or not re.fullmatch(r"[0-9a-f]{64}", mark) or type(size) is not int:
            raise _bad(place, f"its manifest does not give digest and size of {_shown(name)}")
        found[name] = (mark, size)
    return found


_RUN = {"number": int, "method": str, "query": str, "result": str, "arguments": str, "not_again": str}


def _runs(data: Any, files: Mapping[str, Any], place: Path) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(data, list):
        raise _bad(place, "its manifest lists no runs")
    for run in data:
        if not isinstance(run, dict) or any(type(run.get(k)) is not kind for k, kind in _RUN.items()):
            raise _bad(place, "a run of its manifest lacks a part")
        if f"{run['result']}/result.json" not in files or (run["arguments"] and run["arguments"] not in files):  # fmt: skip
            raise _bad(place, f"the files of run {run['number']} are not in it")
    numbers = [run["number"] for run in data]
    if len(set(numbers)) != len(numbers):
        raise _bad(place, "a run is in its manifest twice")
    return tuple(data)


def _checked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, told: str, size: int, place: Path, out: IO[bytes] | None) -> None:  # fmt: skip
    if entry.file_size != size:
        raise _bad(place, f"{entry.filename} has {entry.file_size} bytes, its manifest says {size}")
    mark = hashlib.blake2b(digest_size=32)
    for chunk in _read(archive, entry, place):
        mark.update(chunk)
        if out is not None:
            out.write(chunk)
    if mark.hexdigest() != told:
        raise _bad(place, f"{entry.filename} is not what it was: its digest differs from the manifest's")


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, place: Path) -> Iterator[bytes]:
    """The bytes of a member, and never more of them than the zip declared."""
    import zlib

    left = entry.file_size
    try:
        with archive.open(entry) as source:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise _bad(place, f"{entry.filename} is larger than it says")
                yield chunk
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise _bad(place, f"{entry.filename} cannot be read: {error}") from error
    if left:
        raise _bad(place, f"{entry.filename} is smaller than it says")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:117] + "...")


def _bad(place: Path, why: str) -> LabError:
    return LabError(f"{place.name} is no archive that can be opened", why=why, instead="get it again from where it came; nothing was written")  # fmt: skip
