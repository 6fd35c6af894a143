"""Write tests/data/transformerlens_*.safetensors: tiny models, a prompt, and every TransformerLens activation of it.

    python tools/transformerlens_fixture.py      in an environment with transformer-lens 4.3 and transformers 5

The test of the table of names compares tensor by tensor; this is run by hand when the table or TransformerLens changes.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

FOLDER = Path(__file__).parents[1] / "tests" / "data"
IDS = [[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]]
SIZE = {
    "vocab_size": 48,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS = {
    "llama": LlamaConfig(**SIZE),
    "gpt2": GPT2Config(vocab_size=48, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0),
    "gemma2": Gemma2Config(**SIZE, query_pre_attn_scalar=6, sliding_window=4),
    "qwen3": Qwen3Config(**SIZE),
}  # fmt: skip


def _tokenizer():
    """The bridge asks for one; prompts are given as ids."""
    words = {f"<{i}>": i for i in range(48)}
    special = {"unk_token": "<0>", "pad_token": "<0>", "bos_token": "<0>", "eos_token": "<0>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<0>")), **special)


def write(name, config):
    """One fixture."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    for parameter in hf.parameters():  # norms and biases at their initial 1 and 0 would hide a wrong one
        parameter.data += 0.1 * torch.randn_like(parameter)
    weights = {k: v.clone() for k, v in hf.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        hf.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(torch.tensor(IDS))
    kept = {
        key: cache[key]
        for key in cache
        if isinstance(cache[key], torch.Tensor) and not key.endswith(("hook_in", "hook_cos", "hook_sin"))
    }
    tensors = {
        f"weight {k}": v.contiguous()
        for k, v in weights.items()
        if k != "lm_head.weight" or not config.tie_word_embeddings
    }
    tensors |= {f"hook {k}": v.detach().float().contiguous().clone() for k, v in kept.items()}
    about = {"config": json.dumps(config.to_dict()), "ids": json.dumps(IDS), "transformer_lens": version("transformer-lens"), "transformers": version("transformers")}  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    save_file(tensors, FOLDER / f"transformerlens_{name}.safetensors", metadata=about)
    print(name, len(kept), "activations")


if __name__ == "__main__":
    for each, its in MODELS.items():
        write(each, its)
