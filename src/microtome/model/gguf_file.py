"""GGUF files: what they hold, and a plain Hugging Face module made from one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError
from microtome.model.quiet import quiet

if TYPE_CHECKING:
    import torch

# llama.cpp's names of byte-level pre-tokenizers. The plain ones split text by GPT-2's expression; the others also
# cut every digit off first, which transformers' reader does not know ("\n\n1" would become other tokens).
_PLAIN_PRE = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"})
_DIGITS_PRE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})

_UNREADABLE = (
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    TypeError,
    AttributeError,
    RuntimeError,
    OSError,
)


@dataclass(frozen=True)
class GgufInfo:
    """What a GGUF file says about itself.

    `stored` maps a storage type ("Q4_1", "F32") to its number of tensors, most weights first.
    """

    path: Path
    architecture: str
    pre_tokenizer: str
    tokenizer: str
    n_weights: int
    stored: Mapping[str, int]

    @property
    def quantised(self) -> str:
        """The block types among the storage types, as a phrase: "Q4_1 and Q8_0"; "" where all are floats."""
        return " and ".join(name for name in self.stored if name not in ("F64", "F32", "F16", "BF16"))


def inspect_gguf(path: Path) -> GgufInfo:
    """Read a GGUF file's header and check that the file is as long as the header says.

    Raises
    ------
    ModelError: not a GGUF file, corrupt, truncated, or without what a language model needs.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        weights: dict[str, int] = {}
        tensors: dict[str, int] = {}
        for tensor in reader.tensors:
            kind = tensor.tensor_type.name
            weights[kind] = weights.get(kind, 0) + int(tensor.n_elements)
            tensors[kind] = tensors.get(kind, 0) + 1
        fields = {
            name: str(field.contents())
            for name in ("general.architecture", "tokenizer.ggml.pre", "tokenizer.ggml.model")
            if (field := reader.fields.get(name)) is not None
        }
    except _UNREADABLE as error:
        raise ModelError(
            f"{path} is not a readable GGUF file.",
            why=f"its header or tensors cannot be read ({error}): it is corrupt, truncated, or of another kind",
            instead="download or copy the file again",
        ) from error
    if not weights or "general.architecture" not in fields:
        raise ModelError(f"{path} holds no model.", why="its header names no tensors or no architecture")
    order = sorted(weights, key=lambda kind: -weights[kind])
    return GgufInfo(
        path, fields["general.architecture"], fields.get("tokenizer.ggml.pre", ""),
        fields.get("tokenizer.ggml.model", ""), sum(weights.values()), {kind: tensors[kind] for kind in order},
    )  # fmt: skip


def read_gguf_model(
    info: GgufInfo, *, dtype: torch.dtype, attn_implementation: str | None = None
) -> tuple[Any, Mapping[str, Any]]:
    """The model of a GGUF file with every weight unpacked, as the module that its family's own class builds.

    transformers marks what it reads from a GGUF as quantised, and may keep weights packed or swap layers for
    kernels; so the weights are moved into a fresh module of the same class and configuration, which is the plain
    one that `save_pretrained` accepts and that weights can be read from.

    Returns
    -------
    The module, and transformers' report of missing, unexpected and mismatched keys.

    Raises
    ------
    ModelError: transformers cannot read this architecture, or the file is corrupt.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if hasattr(transformers, "GgufConfig"):  # later 5.x can keep weights packed: never here
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        with quiet(stderr=True):
            loaded, report = auto.from_pretrained(str(info.path.parent), gguf_file=info.path.name, **options)
            return _plain(loaded), report
    except _UNREADABLE as error:
        raise _not_read(info, error) from error


def _plain(loaded: Any) -> Any:
    """The same weights in a fresh module of the same class, without a trace of where they came from."""
    import torch

    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    for name, buffer in loaded.named_buffers(remove_duplicate=False):  # those that no state dict carries
        parent, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(parent), leaf, buffer)
    plain.generation_config = copy.deepcopy(loaded.generation_config)
    return plain.eval()


def read_gguf_tokenizer(info: GgufInfo) -> Any:
    """The tokenizer that a GGUF file describes, splitting text as the file says.

    Raises
    ------
    ModelError: the file names a way of splitting text that is not known here; the tokens could be others than
        those the model was trained on.
    """
    from transformers import AutoTokenizer

    try:
        with quiet(stderr=True):
            tokenizer = AutoTokenizer.from_pretrained(
                str(info.path.parent),
                gguf_file=info.path.name,
                local_files_only=True,
                trust_remote_code=False,
            )
    except _UNREADABLE as error:
        raise _not_read(info, error) from error
    if info.tokenizer == "gpt2":
        _split(tokenizer, info)
    return tokenizer


def _split(tokenizer: Any, info: GgufInfo) -> None:
    from tokenizers import pre_tokenizers

    backend, kind = tokenizer.backend_tokenizer, info.pre_tokenizer
    if kind in _DIGITS_PRE:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind not in _PLAIN_PRE and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise ModelError(
            f"{info.path} splits text by the rule {kind or '(none named)'!r}, which is not known here.",
            why="transformers would split by GPT-2's rule instead, and the tokens could be wrong without a word",
            instead="pass the model's own tokenizer: mt.load(PATH, tokenizer=AutoTokenizer.from_pretrained(...))",
        )


def _not_read(info: GgufInfo, error: BaseException) -> ModelError:
    return ModelError(
        f"The GGUF file {info.path} (architecture {info.architecture!r}) cannot be loaded.",
        why=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
        instead="load the safetensors version of this model",
    )
