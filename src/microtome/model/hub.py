"""Models of the Hugging Face hub: from its local cache, and from the network only when told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from microtome.errors import MicrotomeError, ModelError, ResourceError
from microtome.model.paths import Progress, is_disk_full, require_space
from microtome.model.quiet import quiet

ONLINE_VARIABLE = "MICROTOME_ONLINE"

# Never pickles, code or other formats. Weights below folders are other copies (onnx/, original/).
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*.safetensors"]


def online() -> bool:
    """Whether the user allowed loading to use the network (`MICROTOME_ONLINE=1`)."""
    return os.environ.get(ONLINE_VARIABLE, "").strip().lower() in ("1", "true", "yes", "on")


def snapshot(name: str, revision: str | None, progress: Progress | None = None, *, hint: str = "") -> Path:
    """The folder of a hub model: the local cache's, else downloaded if `online()`.

    Raises
    ------
    ModelError: no such model or revision on the hub, or it is closed.
    ResourceError: it is not in the cache and the network is not allowed or not reachable.
    """
    folder, whole = _cached(name, revision)
    if folder is not None and (whole or not online()):
        return folder  # a part is returned too: the folder check then names what is missing
    if online():
        return download(name, revision, progress)
    at = f" at revision {revision!r}" if revision else ""
    raise ResourceError(
        f"{name!r}{at} is neither an embedded model nor a local folder nor in the local Hugging Face cache.",
        why="Microtome is offline unless told otherwise",
        instead=f"`microtome models pull {name}`, or set {ONLINE_VARIABLE}=1 to let loading use the network"
        + (f"; {hint}" if hint.startswith("did you mean") else ""),
    )


def _cached(name: str, revision: str | None) -> tuple[Path | None, bool]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except HFValidationError as error:
        raise ModelError(f"{name!r} cannot be a hub id.", why=_first_line(error)) from error
    except LocalEntryNotFoundError as error:
        part = getattr(error, "snapshot_path", None)
        return (Path(part) if part else None), False
    folder = Path(found)
    return folder, any(folder.glob("*.safetensors"))


def download(name: str, revision: str | None = None, progress: Progress | None = None) -> Path:
    """Bring a hub model's config, tokenizer and safetensors into the Hugging Face cache, and return its folder.

    Uses the network whatever `MICROTOME_ONLINE` says: calling it is the permission.

    Raises
    ------
    ModelError: no such model or revision, no access to it, or it has no safetensors weights.
    ResourceError: the hub cannot be reached, or the disk is too small.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    say = progress or (lambda message: None)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    patterns: dict[str, Any] = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    options: dict[str, Any] = {"revision": revision, "endpoint": endpoint, **patterns}
    unreachable = (errors.HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError)
    try:
        with quiet():
            say(f"asking the hub for {name}")
            info = HfApi(endpoint=endpoint).model_info(name, revision=revision)
            listed = filter_repo_objects([file.rfilename for file in info.siblings or ()], **patterns)
            if not any(file.endswith(".safetensors") for file in listed):
                raise _no_safetensors(name)
            files = snapshot_download(name, dry_run=True, **options)
            needed = sum(file.file_size for file in files if file.will_download)
            require_space(Path(constants.HF_HUB_CACHE), needed, f"Downloading {name}")
            say(f"downloading {name} ({needed / 1e9:.2f} GB)")
            return Path(snapshot_download(name, **options))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise _not_there(name, revision, error) from error
    except unreachable as error:
        if is_disk_full(error):
            raise ResourceError(
                f"The disk became full while {name} was downloaded.", why=str(error)
            ) from error
        raise ResourceError(
            f"The Hugging Face hub could not be reached for {name}.",
            why=_first_line(error),
            instead="check the network and HF_ENDPOINT, copy the model's folder here and load it by its path, "
            'or use the embedded model ("default")',
        ) from error


def _no_safetensors(name: str) -> MicrotomeError:
    return ModelError(
        f"{name} has no safetensors weights on the hub.",
        why="its weights are pickles or another format; unpickling runs any code in the file, so it is never done",
        instead="where you trust it, convert it once with save_pretrained and load the new folder",
    )


def _not_there(name: str, revision: str | None, error: Exception) -> MicrotomeError:
    kind = type(error).__name__
    reasons = {
        "GatedRepoError": "its owner asks for an agreement first: accept it on the model's page and log in (`hf auth login`)",
        "RevisionNotFoundError": f"it has no revision {revision!r}",
        "RepositoryNotFoundError": "there is no such repository, or it is private and you are not logged in",
    }
    return ModelError(f"The hub does not give out {name!r}.", why=reasons.get(kind, _first_line(error)))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
