"""A tiny GGUF model in a tiny wheel, and a registry folder: what the tests of loading use instead of a network.

The few tests here check that the fakes are what they claim to be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest

from microtome.model.embedded import EmbeddedSource
from microtome.model.fetch import WheelPin

LAYERS, WIDTH, MLP, HEADS, KV_HEADS = 2, 64, 96, 4, 2
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def vocabulary():
    """Tokens and merges: bytes, a few pairs, and runs of blanks, so that how text is split shows."""
    alphabet = byte_alphabet()
    space, newline = alphabet[32], alphabet[10]
    merges = [(space, space), (newline, newline), ("t", "h"), ("th", "e"), (space, "the"), ("1", "2")]
    return [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)], [" ".join(pair) for pair in merges]


def write_gguf(path: Path, *, seed: int = 0, pre: str = "smollm", architecture: str = "llama") -> Path:
    """A random tiny llama whose matrices are stored as Q4_1, its norms as F32."""
    rng = np.random.default_rng(seed)
    tokens, merges = vocabulary()
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    for name, shape in shapes(len(tokens)).items():
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, np.float32(1.0) + values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shapes(n_tokens: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_tokens, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    narrow = WIDTH // HEADS * KV_HEADS
    for i in range(LAYERS):
        found |= {
            f"blk.{i}.attn_norm.weight": (WIDTH,),
            f"blk.{i}.ffn_norm.weight": (WIDTH,),
            f"blk.{i}.attn_q.weight": (WIDTH, WIDTH),
            f"blk.{i}.attn_k.weight": (narrow, WIDTH),
            f"blk.{i}.attn_v.weight": (narrow, WIDTH),
            f"blk.{i}.attn_output.weight": (WIDTH, WIDTH),
            f"blk.{i}.ffn_gate.weight": (MLP, WIDTH),
            f"blk.{i}.ffn_up.weight": (MLP, WIDTH),
            f"blk.{i}.ffn_down.weight": (WIDTH, MLP),
        }
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(folder: Path, model: Path, *, name: str = "fake_smol", version: str = "0.1.0") -> Path:
    """A valid wheel with the model in it; it depends on a package that exists nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}/tiny.Q4_1.gguf": model.read_bytes(),
        f"{name}/__init__.py": b"raise SystemExit('code of the wheel was run')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        "Requires-Dist: no-such-package-anywhere\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in files.items()
    )
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as parcel:
        for path, data in files.items():
            parcel.writestr(path, data)
        parcel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return wheel


@dataclass(frozen=True)
class Registry:
    """A folder that pip and uv take as `--find-links`, the wheel in it, and the pinned source of it."""

    folder: Path
    wheel: Path
    gguf: Path
    source: EmbeddedSource


def make_registry(root: Path, *, seed: int = 0) -> Registry:
    root.mkdir(parents=True, exist_ok=True)
    model = write_gguf(root / f"tiny-{seed}.gguf", seed=seed)
    wheel = write_wheel(root / "registry", model)
    pin = WheelPin(
        "fake-smol",
        "0.1.0",
        wheel.name,
        sha256(wheel),
        wheel.stat().st_size,
        "fake_smol/tiny.Q4_1.gguf",
        sha256(model),
    )
    source = EmbeddedSource(
        "tiny", ("small",), pin, 2_000_000, "A random model, dequantised from Q4_1. Apache-2.0."
    )
    return Registry(wheel.parent, wheel, model, source)


def use_registry(monkeypatch: pytest.MonkeyPatch, registry: Registry | None, cache: Path) -> None:
    """An environment in which pip and uv know one folder (or nothing) and no network."""
    for variable in list(os.environ):
        if variable.startswith(("PIP_", "UV_", "MICROTOME_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("MICROTOME_CACHE", str(cache))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if registry is not None:
        monkeypatch.setenv("PIP_FIND_LINKS", str(registry.folder))


def fake_uv(folder: Path, wheel: Path) -> Path:
    """A program called uv that writes down how it was called and unpacks `wheel` where it is told to."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "uv"
    script.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, zipfile\n"
        f"note = {{'args': sys.argv[1:], 'env': dict(os.environ), 'cwd': os.getcwd()}}\n"
        f"open({str(folder / 'calls.json')!r}, 'w').write(json.dumps(note))\n"
        f"zipfile.ZipFile({str(wheel)!r}).extractall(sys.argv[sys.argv.index('--target') + 1])\n",
        encoding="utf-8",
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def calls(uv: Path) -> dict:
    return json.loads(uv.with_name("calls.json").read_text(encoding="utf-8"))


def test_the_fake_gguf_is_one_that_the_gguf_package_reads(tmp_path):
    reader = gguf.GGUFReader(str(write_gguf(tmp_path / "a.gguf")))
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds == {"Q4_1", "F32"} and len(reader.tensors) == 2 + 9 * LAYERS


def test_two_seeds_give_two_wheels(tmp_path):
    one, two = make_registry(tmp_path / "1"), make_registry(tmp_path / "2", seed=1)
    assert one.source.pin.wheel == two.source.pin.wheel
    assert one.source.pin.wheel_sha256 != two.source.pin.wheel_sha256
