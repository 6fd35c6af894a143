"""From a name, a folder, a file or a module to a model that is ready to be looked into. Offline unless told."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError, ResourceError
from microtome.model import embedded
from microtome.model.checkpoint import Checkpoint, inspect_folder, require_memory
from microtome.model.choices import check_causal, choose_device, choose_dtype, parse_dtype
from microtome.model.paths import Progress
from microtome.model.quiet import quiet

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")
_LOADING_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, IndexError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A model and how it came to be.

    Attributes
    ----------
    hf: the Hugging Face module; in evaluation mode and without gradients on its weights if it was loaded here,
        exactly as it was if it was already in memory.
    tokenizer: the tokenizer, None only for a module given without one.
    name, source: what to call it, and where it came from (a sentence).
    card: licence and what was done to the weights, as far as known here.
    dtype, device: those of the module.
    reasons: why each choice was made: "dtype", "device", "attention" and, where there is something to say,
        "weights" and "tokenizer".
    weight_hash: `checkpoint.module_hash` of the module where it is known without computing it, else None.
    asked: how to load the same again: "kind" ("embedded", "folder", "gguf" or "hub"), "name" (a name or an absolute path), "revision"
        (of a hub model the commit) and "own_tokenizer" (False: the caller gave one). None for a module that was in memory.
    """

    hf: Any
    tokenizer: Any
    name: str
    source: str
    card: str
    dtype: torch.dtype
    device: torch.device
    reasons: Mapping[str, str]
    weight_hash: str | None
    asked: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ask:
    """What the caller asked for; None is "choose for me and say why"."""

    tokenizer: Any = None
    dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    revision: str | None = None
    attn_implementation: str | None = None
    progress: Progress | None = None


def load_module(
    name_or_module: Any,
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    progress: Progress | None = None,
) -> Loaded:
    """Load a causal language model, or take one that is already in memory.

    Parameters
    ----------
    name_or_module: an embedded model ("default"), a local folder, a `.gguf` file, a hub id (from the local cache;
        the network only with `MICROTOME_ONLINE=1`), or a transformers module, which is never moved or changed.
    tokenizer: used instead of the model's own.
    dtype: default: the checkpoint's own type on CUDA where the device has it, float32 on a CPU.
    device: default: "cuda" where there is one, else "cpu"; "mps" only on request.
    revision: branch, tag or commit of a hub model.
    attn_implementation: "sdpa", "eager", ...; default: what transformers chooses.
    progress: receives a sentence per slow step.

    Raises
    ------
    ModelError: no such model, files missing or corrupt, pickled weights, code that would have to be trusted, not a
        causal decoder, or arguments that a module in memory does not satisfy.
    ResourceError: not enough memory or disk, or a registry or hub that cannot be reached.
    """
    ask = Ask(tokenizer, dtype, device, revision, attn_implementation, progress)
    if not isinstance(name_or_module, str | os.PathLike):
        return _from_memory(name_or_module, ask)
    name = os.fspath(name_or_module)
    source = embedded.find_source(name) if isinstance(name_or_module, str) else None
    if source is not None:
        return _from_embedded(source, ask)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _from_folder(path.absolute(), ask)
    if name and path.is_file():
        return _from_file(path.absolute(), ask)
    if (
        not isinstance(name_or_module, str)
        or not _HUB_ID.fullmatch(name)
        or name.endswith((".gguf", ".safetensors"))
    ):
        raise ModelError(
            f"There is no model {name!r}.",
            why="it is no embedded model, no folder or file, and cannot be a hub id",
            instead=("check the path; " if os.sep in name else "") + _instead(name),
        )
    return _from_hub(name, ask)


def _instead(name: str) -> str:
    known = [n for source in embedded.SOURCES.values() for n in (source.name, *source.aliases)]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the embedded models are {', '.join(embedded.SOURCES)}"


def _from_embedded(source: embedded.EmbeddedSource, ask: Ask) -> Loaded:
    _no_revision(ask, "an embedded model")
    folder, manifest = embedded.ensure(source, ask.progress)
    checkpoint = inspect_folder(folder, tokenizer=False)
    hf, tokenizer, reasons = _read(checkpoint, source.name, ask)
    own = hf.dtype == checkpoint.torch_dtype
    return Loaded(
        hf, tokenizer, source.name, f"embedded: {source.pin.package} {source.pin.version}", manifest["card"],
        hf.dtype, hf.device, reasons, manifest["weight_hash"] if own else None, _asked("embedded", source.name, ask),
    )  # fmt: skip


def _from_folder(folder: Path, ask: Ask) -> Loaded:
    _no_revision(ask, "a local folder")
    checkpoint = inspect_folder(folder, tokenizer=ask.tokenizer is None)
    hf, tokenizer, reasons = _read(checkpoint, folder.name, ask)
    card = f"Local folder {folder}; its licence is not known here."
    asked = _asked("folder", str(folder), ask)
    return Loaded(
        hf, tokenizer, folder.name, f"folder: {folder}", card, hf.dtype, hf.device, reasons, None, asked
    )


def _from_hub(name: str, ask: Ask) -> Loaded:
    from microtome.model.hub import snapshot

    folder = snapshot(name, ask.revision, ask.progress, hint=_instead(name))
    checkpoint = inspect_folder(folder, tokenizer=ask.tokenizer is None)
    hf, tokenizer, reasons = _read(checkpoint, name, ask)
    card = f"Hugging Face hub model {name}, commit {folder.name}; its licence is on its model card."
    asked = _asked("hub", name, ask, folder.name)
    return Loaded(
        hf, tokenizer, name, f"hub: {name}@{folder.name}", card, hf.dtype, hf.device, reasons, None, asked
    )


def _from_file(path: Path, ask: Ask) -> Loaded:
    from microtome.model import gguf_file

    _no_revision(ask, "a file")
    if path.suffix.lower() != ".gguf":
        raise ModelError(
            f"{path} is not a model.",
            why="a single file is read only if it is a .gguf; other weights need their folder with config.json",
            instead="give the folder, or a .gguf file",
        )
    info = gguf_file.inspect_gguf(path)
    device, why_device = choose_device(ask.device)
    dtype, why_dtype = choose_dtype(ask.dtype, None, device)
    require_memory(
        2 * info.n_weights, dtype.itemsize, path.name, cuda=device if device.type == "cuda" else None
    )
    tokenizer = ask.tokenizer if ask.tokenizer is not None else gguf_file.read_gguf_tokenizer(info)
    hf, report = gguf_file.read_gguf_model(info, dtype=dtype, attn_implementation=ask.attn_implementation)
    reasons = _reasons(hf, ask, (why_dtype, why_device), report, path.name)
    stored = f"dequantised from {info.quantised}" if info.quantised else "stored as floats"
    reasons["weights"] = "; ".join(filter(None, (f"read from a GGUF file, {stored}", reasons.get("weights"))))
    check_causal(hf.config, path.name)
    card = f"GGUF file {path}, {stored}; its licence is not known here."
    asked = _asked("gguf", str(path), ask)
    return Loaded(
        _ready(hf, device), tokenizer, path.stem, f"gguf: {path}", card, hf.dtype, hf.device, reasons, None, asked
    )  # fmt: skip


def _asked(kind: str, name: str, ask: Ask, revision: str | None = None) -> dict[str, Any]:
    """`Loaded.asked`."""
    return {"kind": kind, "name": name, "revision": revision, "own_tokenizer": ask.tokenizer is None}


def _no_revision(ask: Ask, what: str) -> None:
    if ask.revision is not None:
        raise ModelError(
            f"revision={ask.revision!r} was given for {what}.",
            why="only models on the hub have revisions",
            instead="leave revision out",
        )


def _read(checkpoint: Checkpoint, name: str, ask: Ask) -> tuple[Any, Any, dict[str, str]]:
    """Load a checked folder: module, tokenizer, reasons."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    folder = str(checkpoint.folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        with _reading(f"The configuration of {name}", "check config.json, or save the model again"):
            config = _config(checkpoint, name)
        device, why_device = choose_device(ask.device)
        dtype, why_dtype = choose_dtype(ask.dtype, checkpoint.torch_dtype, device)
        cuda = device if device.type == "cuda" else None
        require_memory(checkpoint.n_weights, dtype.itemsize, name, cuda=cuda)
        tokenizer = ask.tokenizer
        if tokenizer is None:
            with _reading(f"The tokenizer of {name}", "save or download its files (tokenizer*.json) again"):
                tokenizer = AutoTokenizer.from_pretrained(folder, config=config, **options)
        if ask.attn_implementation is not None:
            options["attn_implementation"] = ask.attn_implementation
        with _reading(name, "check that config.json and the weights belong together"):
            hf, report = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )  # fmt: skip - mismatches are in the report, and refused with their names
    reasons = _reasons(hf, ask, (why_dtype, why_device), report, name)
    rows = int(hf.get_input_embeddings().weight.shape[0])
    if ask.tokenizer is None and (spoken := len(tokenizer)) > rows:
        reasons["tokenizer"] = (
            f"the tokenizer has {spoken:,} tokens and the model {rows:,}: prompts with one of the others are refused"
        )
    return _ready(hf, device), tokenizer, reasons


@contextmanager
def _reading(what: str, instead: str) -> Iterator[None]:
    """Whatever transformers raises while it reads a part of a model, as an error that names the part."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (*_LOADING_ERRORS, SafetensorError, StrictDataclassError) as error:
        raise _not_loaded(what, error, instead) from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise _not_loaded(
            what, error, instead
        ) from error  # what the tokenizers library raises is nothing more special


def _config(checkpoint: Checkpoint, name: str) -> Any:
    """The configuration, refused where the model is not a causal decoder of code that is installed here."""
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = checkpoint.config.get("model_type")
    if kind is None:
        raise ModelError(
            f"The config.json of {name} names no model_type.",
            why="without it nobody can say which architecture the weights belong to",
            instead="save the model again with save_pretrained",
        )
    if kind not in CONFIG_MAPPING:
        foreign = "auto_map" in checkpoint.config
        raise ModelError(
            f"{name} is of the type {kind!r}, which the installed transformers does not have.",
            why="it brings its own code, and Microtome never runs code that comes with a model"
            if foreign
            else "it is newer than the installed transformers, or not a transformers model",
            instead="update transformers, or take a model of a family that it has",
        )
    config = AutoConfig.from_pretrained(
        str(checkpoint.folder), local_files_only=True, trust_remote_code=False
    )
    check_causal(config, name)
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        raise ModelError(
            f"{name} has quantised weights ({dict(packed).get('quant_method', 'of an unknown method')}).",
            why="packed weights are no matrices: attribution, replay and weight views would be wrong",
            instead="load the unquantised release, or dequantise and save it first",
        )
    if checkpoint.torch_dtype is None:
        raise ModelError(
            f"{name} stores its weights as {checkpoint.dtype}.",
            why="without the scales of whoever packed them these numbers are not the weights",
            instead="load the unquantised release, or save it as float32, bfloat16 or float16 first",
        )
    return config


def _ready(hf: Any, device: torch.device) -> Any:
    hf = hf.eval().requires_grad_(False)
    if device.type == "cpu":
        return hf
    try:
        return hf.to(device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        raise _not_loaded(str(device), error) from error


def _reasons(hf: Any, ask: Ask, why: tuple[str, str], report: Mapping[str, Any], name: str) -> dict[str, str]:
    """Why the module is as it is; refuses one with weights that no file gave (they would be random)."""
    wrong = {key: report.get(key) or () for key in ("missing_keys", "mismatched_keys", "error_msgs")}
    if any(wrong.values()):
        lost = sorted(_lost(item) for items in wrong.values() for item in items)
        raise ModelError(
            f"{name} does not fill its own architecture: {', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}.",
            why=f"weights that are missing or of another shape: {len(lost)}; transformers would make them up at random",
            instead="check that config.json and the weights belong together",
        )
    chosen = getattr(hf.config, "_attn_implementation", None)
    reasons = {
        "dtype": why[0],
        "device": why[1],
        "attention": f"{chosen}: {'asked for' if ask.attn_implementation else 'what transformers chooses here'}",
    }
    spare = sorted(report.get("unexpected_keys") or ())
    if spare:
        more = " ..." if len(spare) > 3 else ""
        reasons["weights"] = (
            f"{len(spare)} weights of the checkpoint are not used: {', '.join(spare[:3])}{more}"
        )
    if ask.tokenizer is not None:
        reasons["tokenizer"] = "given by the caller"
    return reasons


def _lost(item: object) -> str:
    """A weight's name; with both shapes where they differ."""
    if isinstance(item, tuple) and len(item) == 3:
        return f"{item[0]} ({list(item[1])} in the file, {list(item[2])} by config.json)"
    return str(item)


def _not_loaded(
    name: str, error: BaseException, instead: str = "take a smaller model"
) -> ModelError | ResourceError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = " ".join(lines[:2])[:300]
    if not isinstance(error, OSError | ValueError | RuntimeError) or not why:
        why = f"{type(error).__name__}: {why}".rstrip(": ")  # a KeyError says no more than the key
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate" in str(error):
        return ResourceError(
            f"Memory ran out while {name} was loaded.", why=why, instead="take a smaller model"
        )
    return ModelError(f"{name} cannot be loaded.", why=why, instead=instead)


def _from_memory(module: Any, ask: Ask) -> Loaded:
    """A module that the caller holds: checked, never moved or changed."""
    import torch
    from transformers import PreTrainedModel

    kind = type(module).__name__
    if not isinstance(module, PreTrainedModel):
        raise ModelError(
            f"A {kind} is not a transformers model.",
            why="sites are found by the structure of transformers' own classes",
            instead="give the PreTrainedModel itself (peft: mt.methods.merged_copy(module, tokenizer); torch.compile: the model before it; "
            "DataParallel: .module), or a name or path",
        )
    check_causal(module.config, kind)
    if module.get_output_embeddings() is None:
        raise ModelError(
            f"{kind} has no language-modelling head.",
            why="without logits there is no behaviour to explain",
            instead="load the ...ForCausalLM class of this model",
        )
    if any(p.is_meta for p in module.parameters()):
        raise ModelError(
            f"{kind} has weights on the meta device.", why="they hold no numbers", instead="load it fully"
        )
    if module.training and any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in module.modules()):
        raise ModelError(
            f"{kind} is in training mode and has dropout.",
            why="two runs of one prompt would differ, and Microtome does not change a module that you hold",
            instead="call model.eval() first",
        )
    _same_as_asked(module, ask)
    reasons = {
        "dtype": f"{str(module.dtype).removeprefix('torch.')}: the module's own, left as it is",
        "device": f"{module.device}: where the module is, not moved",
        "attention": f"{module.config._attn_implementation}: the module's own",
    }
    if ask.tokenizer is None:
        reasons["tokenizer"] = "none given: prompts are token ids"
    name = getattr(module.config, "name_or_path", "") or kind
    return Loaded(
        module, ask.tokenizer, name, f"module in memory: {kind}", "Module in memory; its licence is not known here.",
        module.dtype, module.device, reasons, None,
    )  # fmt: skip


def _same_as_asked(module: Any, ask: Ask) -> None:
    asked = {
        "dtype": (ask.dtype, module.dtype, ask.dtype is None or parse_dtype(ask.dtype) == module.dtype),
        "device": (ask.device, module.device, ask.device is None or _same_device(ask.device, module.device)),
        "attn_implementation": (
            ask.attn_implementation,
            module.config._attn_implementation,
            ask.attn_implementation in (None, module.config._attn_implementation),
        ),
        "revision": (ask.revision, None, ask.revision is None),
    }
    for argument, (wanted, has, same) in asked.items():
        if not same:
            raise ModelError(
                f"{argument}={str(wanted)!r} was asked for, but the module in memory has {has}.",
                why="a module that you hold is used as it is: moving or converting it would change it under your hands",
                instead=f"leave {argument} out, or change the module yourself before loading it",
            )


def _same_device(asked: str | torch.device, has: torch.device) -> bool:
    import torch

    wanted = torch.device(asked)
    return wanted.type == has.type and wanted.index in (None, has.index)
