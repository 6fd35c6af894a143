"""A model folder as it lies on disk: what is there, what is missing, what would be read. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError, ResourceError

if TYPE_CHECKING:
    import torch

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("tekken.json",),
    ("vocab.txt",),
)
"""Sets of files of which one is enough to build a tokenizer."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HEADER_LIMIT = 100_000_000  # safetensors refuses larger headers itself
_WIDTH = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip
_SPARE = 250_000_000  # for the tokenizer, the allocator and a first forward pass


@dataclass(frozen=True)
class Checkpoint:
    """What a model folder holds.

    `dtype` is the safetensors name ("F32", "BF16", ...) in which most weights are stored, `n_weights` their number.
    """

    folder: Path
    config: Mapping[str, Any]
    shards: tuple[Path, ...]
    n_weights: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The stored type as a torch type, None where it is not a plain float."""
        import torch

        names = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        return names.get(self.dtype)


def inspect_folder(folder: Path, *, tokenizer: bool) -> Checkpoint:
    """Read a folder's config and the headers of its weights, and check that everything needed is there.

    Parameters
    ----------
    tokenizer: whether tokenizer files are needed too.

    Raises
    ------
    ModelError: files are missing (each is named), unreadable, truncated, pickled, or not a whole model.
    """
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds a PEFT adapter.",
            why="an adapter changes the forward pass of another model",
            instead="merge it first (peft: model.merge_and_unload()), save the result, and load that folder",
        )
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    shards, lost = _shards(folder)
    missing += lost
    if tokenizer and not any(all((folder / f).is_file() for f in files) for files in TOKENIZERS):
        missing.append("tokenizer.json (or tokenizer.model, or vocab.json with merges.txt)")
    if missing:
        raise ModelError(
            f"The model folder {folder} is missing {_listed(missing)}.",
            why="a model needs config.json, safetensors weights with all their shards, and tokenizer files",
            instead="save it again with save_pretrained (model and tokenizer), or pass tokenizer= if only that is missing",
        )
    config = _json(folder / "config.json")
    headers = {shard: safetensors_header(shard) for shard in shards}
    _check_index(folder, shards, headers)
    return _summary(folder, config, headers)


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """The weight files of a folder, and the names of those that should be there and are not."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS], []
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        return [folder / n for n in names], [n for n in names if not (folder / n).is_file()]
    pickles = sorted(
        p.name for p in folder.glob("*") if p.suffix in _PICKLES and "training_args" not in p.name
    )
    if pickles:
        raise ModelError(
            f"{folder} has its weights only as a pickle: {_listed(pickles)}.",
            why="unpickling runs any code that the file contains, so Microtome never does",
            instead="where you trust the file, convert it once: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW) and the same for AutoTokenizer; load NEW",
        )
    return [], [f"{WEIGHTS} (or {INDEX} with its shards)"]


def _weight_map(folder: Path) -> Mapping[str, str]:
    index = _json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
        raise _corrupt(folder / INDEX, "it has no weight_map")
    if any(Path(name).name != name for name in index.values()):
        raise _corrupt(folder / INDEX, "it names weights outside of its folder")
    return index


def _check_index(folder: Path, shards: list[Path], headers: Mapping[Path, Mapping[str, Any]]) -> None:
    if shards == [folder / WEIGHTS]:
        return
    for tensor, shard in _weight_map(folder).items():
        if tensor not in headers[folder / shard]:
            raise _corrupt(folder / shard, f"it lacks the tensor {tensor} which {INDEX} says it holds")


def _summary(
    folder: Path, config: Mapping[str, Any], headers: Mapping[Path, Mapping[str, Any]]
) -> Checkpoint:
    stored: Counter[str] = Counter()
    for header in headers.values():
        for entry in header.values():
            count = 1
            for size in entry["shape"]:
                count *= size
            stored[entry["dtype"]] += count
    dtype = stored.most_common(1)[0][0] if stored else ""
    if not stored:
        raise _corrupt(next(iter(headers)), "it holds no tensors")
    return Checkpoint(folder, config, tuple(headers), sum(stored.values()), dtype)


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """The table of tensors of a safetensors file: name -> dtype, shape, data_offsets.

    Also checks that the file is as long as its table says, so a download or copy that stopped early is found
    before anything is loaded. Source of the layout: the safetensors format description.

    Raises
    ------
    ModelError: the file is not safetensors, or truncated, or has too much at its end.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights.",
                    why="the repository was cloned without its large files",
                    instead="`git lfs pull` in its folder, or download the file itself",
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
                raise _corrupt(path, "its first bytes are no safetensors header")
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in table.values()), default=0)
        for entry in table.values():
            _check_entry(path, entry)
    except OSError as error:
        raise ModelError(f"{path} cannot be read.", why=str(error)) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _corrupt(path, f"its header cannot be read ({error})") from error
    if 8 + length + end != size:
        raise _corrupt(path, f"its header describes {8 + length + end} bytes, the file has {size}")
    return table


def _check_entry(path: Path, entry: Mapping[str, Any]) -> None:
    count = 1
    for size in entry["shape"]:
        count *= size
    begin, end = entry["data_offsets"]
    if end - begin != count * _WIDTH.get(entry["dtype"], 1) and entry["dtype"] in _WIDTH:
        raise _corrupt(path, f"a tensor of shape {entry['shape']} is given {end - begin} bytes")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _corrupt(path, str(error)) from error
    if not isinstance(found, dict):
        raise _corrupt(path, "it is not a JSON object")
    return found


def _corrupt(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is corrupt.", why=reason, instead="download or save the file again")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def available_memory() -> int | None:
    """Bytes of main memory that a new allocation can use now, None if the system does not say.

    The kernel's estimate, lowered to what the control group (a container's limit) leaves.
    """
    found, limit = _meminfo(), _cgroup_room(Path("/sys/fs/cgroup"))
    return limit if found is None else found if limit is None else min(found, limit)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        try:
            import psutil
        except ImportError:
            return None
        return int(psutil.virtual_memory().available)
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def _cgroup_room(group: Path) -> int | None:
    """What a control group (v2) leaves: its limit less its use, cached file pages not counted as use."""
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # not Linux, no control group, or "max": no limit
        return None
    return max(limit - used + int(stat.get("active_file", 0)) + int(stat.get("inactive_file", 0)), 0)


def require_memory(n_weights: int, width: int, name: str, *, cuda: torch.device | None = None) -> None:
    """Check that `n_weights` numbers of `width` bytes fit, before anything is read.

    Raises
    ------
    ResourceError: main memory, or that of the CUDA device, is too small.
    """
    needed = n_weights * width
    rooms = {"main memory": available_memory()}
    if cuda is not None:
        import torch

        rooms[f"memory on {cuda}"] = torch.cuda.mem_get_info(cuda)[0]
    for place, free in rooms.items():
        if free is not None and needed + _SPARE > free:
            raise ResourceError(
                f"{name} needs about {(needed + _SPARE) / 1e9:.2f} GB of {place}; {free / 1e9:.2f} GB are free.",
                why=f"{n_weights:,} weights of {width} bytes each",
                instead='close other programs, take a smaller model, or load in half precision (dtype="bfloat16")',
            )


def content_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 of named tensors, whatever file or order they come in.

    Over the names in sorted order: name, type, shape and the raw bytes of each.
    """
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def module_hash(module: torch.nn.Module) -> str:
    """`content_hash` of a module's parameters and saved buffers; a tied tensor counts once, under its first name.

    Equal to the hash recorded when the embedded model was converted, for that model loaded as float32.
    """
    saved = module.state_dict()
    first = {name for name, _ in module.named_parameters()}
    every = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return content_hash({n: t for n, t in saved.items() if n in first or n not in every})


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())
