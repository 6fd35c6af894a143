"""Folders, files and modules: what loads, what is refused, and what the refusal says."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from microtome.errors import ModelError, ResourceError
from microtome.model import checkpoint, choices
from microtome.model.checkpoint import content_hash, inspect_folder, module_hash
from microtome.model.gguf_file import inspect_gguf, read_gguf_tokenizer
from microtome.model.load import load_module
from test_model_load_fakes import use_registry, write_gguf


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def tokenizer(gguf_path):
    return read_gguf_tokenizer(inspect_gguf(gguf_path))


def tiny_llama(**changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=265, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **changes,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    use_registry(monkeypatch, None, tmp_path / "cache")


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# Folders


def test_a_folder_loads_as_itself(folder):
    loaded = load_module(folder)
    assert loaded.name == "tiny-llama" and loaded.source == f"folder: {folder}" and loaded.weight_hash is None
    assert content_hash(loaded.hf.state_dict()) == content_hash(tiny_llama().state_dict())
    assert not loaded.hf.training and not any(p.requires_grad for p in loaded.hf.parameters())
    assert str(load_module(str(folder)).device) == "cpu"


@pytest.mark.parametrize(
    "lost, named",
    [
        (["config.json"], "config.json"),
        (["model.safetensors"], "model.safetensors"),
        (["tokenizer.json"], "tokenizer.json"),
        (["config.json", "model.safetensors"], r"config\.json, model\.safetensors"),
    ],
)
def test_a_folder_that_misses_files_names_them(folder, lost, named):
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(ModelError, match=f"is missing {named}"):
        load_module(folder)


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json, model\.safetensors .*tokenizer\.json"):
        load_module(tmp_path)


def test_a_tokenizer_of_one_s_own_stands_in_for_a_missing_one(folder, tokenizer):
    (folder / "tokenizer.json").unlink()
    loaded = load_module(folder, tokenizer=tokenizer)
    assert loaded.tokenizer is tokenizer and loaded.reasons["tokenizer"] == "given by the caller"


def test_shards(folder):
    tiny_llama().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert content_hash(load_module(folder).hf.state_dict()) == content_hash(tiny_llama().state_dict())
    tensors = load_file(shards[1])
    save_file({k: v for i, (k, v) in enumerate(tensors.items()) if i}, shards[1], {"format": "pt"})
    with pytest.raises(ModelError, match="lacks the tensor"):
        load_module(folder)
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"is missing {shards[1].name}"):
        load_module(folder)


def test_a_shard_index_cannot_point_out_of_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside"):
        load_module(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(ModelError, match="pickle") as caught:
        load_module(folder)
    assert name in caught.value.what and "save_pretrained" in caught.value.instead


def test_a_pickle_beside_safetensors_is_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert load_module(folder).hf is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: os.truncate(p, p.stat().st_size - 1),
        lambda p: os.truncate(p, 4),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(p.read_bytes() + b"\0"),
        lambda p: p.write_bytes(b"\xff" * 4096),
        lambda p: p.write_bytes(struct.pack("<Q", 4) + b"{{{{" + bytes(100)),
        lambda p: p.write_bytes(struct.pack("<Q", 2) + b"{}"),
        lambda p: p.write_bytes(struct.pack("<Q", 9) + b'{"a": []}'),
        lambda p: p.write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538090408\n"
        ),
    ],
    ids=["short", "stub", "empty", "long", "noise", "json", "no-tensors", "no-dtype", "lfs-pointer"],
)
def test_corrupt_safetensors(folder, spoil):
    spoil(folder / "model.safetensors")
    with pytest.raises(ModelError, match="corrupt") as caught:
        load_module(folder)
    assert "model.safetensors" in caught.value.what and len(str(caught.value)) < 800


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"], ids=["empty", "cut", "list", "not-utf8"])
def test_corrupt_config(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json is corrupt"):
        load_module(folder)


def test_a_corrupt_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelError, match="The tokenizer of tiny-llama cannot be loaded"):
        load_module(folder)


def test_a_tokenizer_that_the_reader_in_rust_refuses(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"special"', '"spezial"'))
    with pytest.raises(ModelError, match=r"(?s)The tokenizer of tiny-llama.*missing field `special`"):
        load_module(folder)


def test_weights_that_no_file_gives_are_refused_not_made_up(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"does not fill.*layers\.1\.mlp\.up_proj"):
        load_module(folder)


def test_weights_of_another_shape_are_refused(folder):
    edit_config(folder, intermediate_size=40)
    with pytest.raises(ModelError, match="tiny-llama"):
        load_module(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 8}, r"q_proj.weight \(\[32, 32\] in the file, \[64, 32\] by config.json\)"),
        ({"num_hidden_layers": 0}, "has 0 layers"),
        ({"num_hidden_layers": -1}, "has -1 layers"),
        ({"num_hidden_layers": "two"}, "(?s)configuration of tiny-llama cannot be loaded.*num_hidden_layers"),
        ({"hidden_act": "warp"}, "(?s)cannot be loaded.*KeyError: 'warp'"),
        ({"model_type": None}, "names no model_type"),
    ],
)
def test_configs_that_describe_another_model_are_refused_in_their_own_words(folder, changes, message):
    edit_config(folder, head_dim=8, **changes)
    with pytest.raises(ModelError, match=message):
        load_module(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_packed_weights_without_their_scales_are_refused(folder, dtype):
    path = folder / "model.safetensors"
    save_file({name: t.to(dtype) for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="stores its weights as"):
        load_module(folder)


def test_a_pointer_of_git_lfs_says_what_it_is(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(ModelError, match=r"(?s)Git LFS pointer.*git lfs pull"):
        load_module(folder)


def test_a_tokenizer_larger_than_the_model_is_told(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = 200
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert "265 tokens and the model 200" in load_module(folder).reasons["tokenizer"]


def test_weights_that_nothing_uses_are_mentioned(folder):
    edit_config(folder, num_hidden_layers=1)
    assert "layers.1" in load_module(folder).reasons["weights"]


def test_an_adapter_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="adapter"):
        load_module(folder)


def test_code_that_comes_with_a_model_is_never_run(folder, tmp_path):
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (folder / "modeling_x.py").write_text(trap)
    (folder / "configuration_x.py").write_text(trap)
    auto = {
        "AutoConfig": "configuration_x.C",
        "AutoModelForCausalLM": "modeling_x.M",
        "AutoTokenizer": ["modeling_x.T", None],
    }
    edit_config(folder, model_type="x", auto_map=auto)
    with pytest.raises(ModelError, match="never runs code"):
        load_module(folder)
    edit_config(folder, model_type="llama")  # a type that transformers has: its own class is used
    assert type(load_module(folder).hf) is transformers.LlamaForCausalLM
    assert not (tmp_path / "ran").exists()


def test_an_unknown_type(folder):
    edit_config(folder, model_type="of-next-year")
    with pytest.raises(ModelError, match="of-next-year") as caught:
        load_module(folder)
    assert "update transformers" in caught.value.instead


@pytest.mark.parametrize(
    "kind, word",
    [("bert", "encoder-only"), ("t5", "encoder-decoder"), ("vit", "not a causal"), ("clip", "not a causal")],
)
def test_other_kinds_of_model(folder, kind, word):
    edit_config(folder, model_type=kind, architectures=None)
    with pytest.raises(ModelError, match=word):
        load_module(folder)


def test_quantised_weights_are_refused(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"quantised weights \(gptq\)"):
        load_module(folder)


def test_memory_is_checked_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "available_memory", lambda: 1_000_000)
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("it was read")
    )
    with pytest.raises(ResourceError, match="main memory"):
        load_module(folder)


def test_the_size_of_a_model_is_read_from_its_headers(folder):
    found = inspect_folder(folder, tokenizer=True)
    assert found.n_weights == sum(p.numel() for p in tiny_llama().parameters()) and found.dtype == "F32"
    tiny_llama().bfloat16().save_pretrained(folder)
    assert inspect_folder(folder, tokenizer=True).torch_dtype == torch.bfloat16


def test_available_memory_is_plausible():
    assert 10_000_000 < checkpoint.available_memory() < 1 << 50


def test_a_container_s_limit_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\nactive_file 80\ninactive_file 20\n")
    assert checkpoint._cgroup_room(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert checkpoint._cgroup_room(tmp_path) is None


# Names


@pytest.mark.parametrize("name", ["", "no/such/thing/here", "./nowhere", "weights.gguf", "a b"])
def test_what_cannot_be_a_model(name):
    with pytest.raises(ModelError, match="There is no model"):
        load_module(name)


def test_a_path_object_is_never_a_hub_id():
    with pytest.raises(ModelError, match="There is no model"):
        load_module(Path("gpt2"))


def test_a_file_that_is_no_model(folder):
    with pytest.raises(ModelError, match="folder"):
        load_module(folder / "model.safetensors")


@pytest.mark.parametrize("what", ["folder", "gguf"])
def test_a_revision_needs_a_hub(folder, gguf_path, what):
    with pytest.raises(ModelError, match="revision"):
        load_module(folder if what == "folder" else gguf_path, revision="main")


# GGUF files


def test_a_gguf_file_becomes_a_plain_module(gguf_path, capfd):
    loaded = load_module(gguf_path)
    assert type(loaded.hf) is transformers.LlamaForCausalLM and loaded.name == "tiny"
    assert "dequantised from Q4_1" in loaded.card and "Q4_1" in loaded.reasons["weights"]
    assert all(
        type(m).__module__.startswith(("torch.", "transformers.models.", "transformers.act"))
        for m in loaded.hf.modules()
    )
    assert not hasattr(loaded.hf, "hf_quantizer") and not hasattr(loaded.hf.config, "quantization_config")
    assert loaded.hf.model.rotary_emb.inv_freq.device.type == "cpu"
    ids = torch.arange(12)[None]
    assert torch.isfinite(loaded.hf(ids).logits).all()
    assert copy.deepcopy(loaded.hf) is not None and capfd.readouterr() == ("", "")
    other = load_module(gguf_path, dtype="bfloat16", attn_implementation="eager").hf
    assert other.dtype == torch.bfloat16 and other.config._attn_implementation == "eager"
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_the_plain_module_computes_what_transformers_own_does(gguf_path):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf_path.parent), gguf_file=gguf_path.name, dtype=torch.float32
    )
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, load_module(gguf_path).hf(ids).logits)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: os.truncate(p, p.stat().st_size // 2),
        lambda p: os.truncate(p, 20),
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"GGUF" + bytes(200)),
        lambda p: p.write_bytes(b"PK\3\4" + bytes(4000)),
        lambda p: p.write_bytes(p.read_bytes()[:24] + b"\xff" * 64 + p.read_bytes()[88:]),
    ],
    ids=["half", "stub", "empty", "zeros", "zip", "header"],
)
def test_corrupt_gguf(gguf_path, tmp_path, spoil):
    path = Path(shutil.copy(gguf_path, tmp_path / "a.gguf"))
    spoil(path)
    with pytest.raises(ModelError, match=r"a\.gguf") as caught:
        load_module(path)
    assert len(str(caught.value)) < 800


def test_an_unknown_way_of_splitting_text_is_refused(tmp_path, tokenizer):
    path = write_gguf(tmp_path / "a.gguf", pre="of-next-year")
    with pytest.raises(ModelError, match="of-next-year"):
        load_module(path)
    assert load_module(path, tokenizer=tokenizer).tokenizer is tokenizer
    plain = load_module(write_gguf(tmp_path / "b.gguf", pre="gpt-2")).tokenizer
    assert plain.tokenize("\n\n12") == ["Ċ", "Ċ", "12"]


def test_an_architecture_that_transformers_cannot_read(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", architecture="of-next-year")
    with pytest.raises(ModelError, match="of-next-year"):
        load_module(path)


# Modules in memory


def fingerprint(module):
    return (
        module_hash(module), module.training, [p.requires_grad for p in module.parameters()], module.device,
        module.dtype, json.dumps(module.config.to_dict(), default=str), [id(p) for p in module.parameters()],
        module.config._attn_implementation, len(module._forward_hooks),
    )  # fmt: skip


def test_a_module_in_memory_is_taken_as_it_is():
    module = tiny_llama()
    module.train()  # llama without dropout computes the same in either mode: accepted, and left so
    before = fingerprint(module)
    loaded = load_module(module)
    assert loaded.hf is module and loaded.tokenizer is None and fingerprint(module) == before
    assert loaded.name == "LlamaForCausalLM" and "token ids" in loaded.reasons["tokenizer"]
    equal = load_module(module, dtype="float32", device="cpu", attn_implementation="sdpa")
    assert equal.hf is module and fingerprint(module) == before


@pytest.mark.parametrize(
    "asked",
    [{"dtype": "bfloat16"}, {"dtype": torch.float64}, {"device": "cuda:0"}, {"device": "meta"},
     {"attn_implementation": "eager"}, {"revision": "main"}],
    ids=str,
)  # fmt: skip
def test_a_module_in_memory_is_not_converted(asked):
    module = tiny_llama()
    before = fingerprint(module)
    with pytest.raises(ModelError, match=next(iter(asked))):
        load_module(module, **asked)
    assert fingerprint(module) == before


def bert():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return transformers.BertForMaskedLM(config)


def t5():
    config = transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


def dropout():
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config).train()


def on_meta():
    with torch.device("meta"):
        return tiny_llama()


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: torch.nn.Linear(2, 2), "not a transformers model"),
        (lambda: torch.nn.DataParallel(tiny_llama()), "not a transformers model"),
        (lambda: torch.compile(tiny_llama(), backend="eager"), "not a transformers model"),
        (lambda: 3, "not a transformers model"),
        (lambda: None, "not a transformers model"),
        (lambda: tiny_llama().model, "language-modelling head"),
        (bert, "encoder-only"),
        (t5, "encoder-decoder"),
        (dropout, "training mode"),
        (on_meta, "meta device"),
    ],
    ids=["linear", "parallel", "compiled", "number", "none", "headless", "bert", "t5", "dropout", "meta"],
)
def test_modules_that_are_refused(make, word):
    with pytest.raises(ModelError, match=word):
        load_module(make())


def test_a_decoder_with_dropout_in_evaluation_mode_is_taken():
    assert load_module(dropout().eval()).hf.config.model_type == "gpt2"


def test_a_bert_made_a_decoder_is_taken():
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    assert load_module(transformers.BertLMHeadModel(config).eval()).name == "BertLMHeadModel"


# Type and device


@pytest.mark.parametrize(
    "asked, stored, device, bf16, expected",
    [
        (None, torch.bfloat16, "cpu", True, torch.float32),
        (None, torch.float16, "mps", True, torch.float32),
        (None, torch.float64, "cpu", True, torch.float64),
        (None, torch.float32, "cpu", True, torch.float32),
        (None, None, "cuda", True, torch.float32),
        (None, torch.bfloat16, "cuda", True, torch.bfloat16),
        (None, torch.bfloat16, "cuda", False, torch.float32),
        (None, torch.float16, "cuda", False, torch.float16),
        ("bf16", torch.float32, "cpu", True, torch.bfloat16),
        (torch.float16, torch.float32, "cpu", True, torch.float16),
    ],
)
def test_the_type_is_chosen_and_the_reason_given(asked, stored, device, bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    dtype, why = choices.choose_dtype(asked, stored, torch.device(device))
    assert dtype == expected and why.startswith(str(expected).removeprefix("torch."))
    assert ("asked for" in why) == (asked is not None)


def test_a_half_precision_checkpoint_on_a_cpu_says_so(folder):
    tiny_llama().bfloat16().save_pretrained(folder)
    loaded = load_module(folder)
    assert loaded.dtype == torch.float32 and "bfloat16" in loaded.reasons["dtype"]
    kept = load_module(folder, dtype=torch.bfloat16)
    assert kept.dtype == torch.bfloat16 and "asked for" in kept.reasons["dtype"]


def test_the_attention_is_chosen_and_the_reason_given(folder):
    assert load_module(folder).reasons["attention"].startswith("sdpa: what transformers")
    eager = load_module(folder, attn_implementation="eager")
    assert eager.hf.config._attn_implementation == "eager" and "asked for" in eager.reasons["attention"]
    with pytest.raises(ModelError, match="no-such"):
        load_module(folder, attn_implementation="no-such")


@pytest.mark.parametrize("asked", ["int8", "float8_e4m3fn", torch.int64, "auto"])
def test_types_that_nothing_is_computed_in(folder, asked):
    with pytest.raises(ModelError, match="not a type to compute in"):
        load_module(folder, dtype=asked)


def test_devices(folder, monkeypatch):
    with pytest.raises(ModelError, match="not a device"):
        load_module(folder, device="gpu")
    for kind in ("meta", "vulkan"):
        with pytest.raises(ModelError, match=f"'{kind}' holds no model"):
            load_module(folder, device=kind)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match="0 device"):
        load_module(folder, device="xpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ResourceError, match="0 device"):
        load_module(folder, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, why = choices.choose_device(None)
    assert device.type == "cpu" and "no CUDA" in why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert choices.choose_device(None)[0] == torch.device("cuda", 0)


# Hashes


def test_the_hash_sees_every_value_shape_type_and_name():
    base = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    others = [
        {**base, "a": torch.tensor([0.0, 0, 0, 1e-30])},
        {**base, "b": torch.ones(4)},
        {**base, "a": torch.zeros(8, dtype=torch.float16)},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    hashes = [content_hash(tensors) for tensors in (base, *others)]
    assert len(set(hashes)) == len(hashes)
    assert content_hash(dict(reversed(base.items()))) == hashes[0]
    assert content_hash({**base, "b": torch.ones(2, 4)[:, ::2]}) == hashes[0]


def test_a_tied_weight_counts_once():
    tied, untied = tiny_llama(tie_word_embeddings=True), tiny_llama()
    names = {name for name, _ in tied.named_parameters()}
    assert module_hash(tied) == content_hash({n: t for n, t in tied.state_dict().items() if n in names})
    assert module_hash(untied) == content_hash(untied.state_dict()) != module_hash(tied)
