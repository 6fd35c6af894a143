"""The examples of CONTRIBUTING.md, installed as they stand there: one package with a family, a task, a metric and a
technique, seen by the command line, the registry and the reference page, and working on a model."""  # fmt: skip

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

WORK = """
import json, sys
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import microtome as mt
from microtome.results import registry


class ToyConfig(LlamaConfig):
    model_type = "toy_llama"


class ToyLlama(LlamaForCausalLM):
    config_class = ToyConfig


AutoConfig.register("toy_llama", ToyConfig)
AutoModelForCausalLM.register(ToyConfig, ToyLlama)
words = ["<unk>", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *(" " + c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Split(Regex(" ?[A-Z]"), "isolated")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
torch.manual_seed(0)
config = ToyConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                   intermediate_size=40, vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5)
model = mt.load(ToyLlama(config).eval(), tokenizer=tokenizer)
task = mt.task("alphabet", model, n=12, seed=3)
result = registry.get("techniques", "zeroing")(model, task, seed=0)
logits = model.run([list(i) for i in task.clean.ids], logits="last").logits
ranks = mt.metrics.metric("rank")(logits, mt.metrics.scoring(task.answers, task.wrong))
best = [int((row > row[a[0][0]]).sum()) for row, a in zip(logits[:, -1], task.answers)]
print(json.dumps({
    "names": {kind: registry.names(kind) for kind in registry.KINDS},
    "family": model.facts.family, "known": model.facts.known_family, "certificate": model.certificate().passed,
    "task": [task.name, task.n, task.clean.texts[0]],
    "sites": list(result.frame()["site"]), "verdict": result.verdict.word, "method": result.query.method,
    "ranks": ranks.tolist(), "expected": best,
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package on disk, with the metadata that pip would have written."""
    folder = tmp_path_factory.mktemp("site")
    project = None
    for language, text in FENCE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        name = text.partition("\n")[0].removeprefix("# ")
        if language == "toml":
            project = tomllib.loads(text)["project"]
        elif language == "python" and name.endswith(".py"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    assert project is not None
    assert len(list((folder / "microtome_toy").glob("*.py"))) == 4
    (folder / "microtome_toy" / "__init__.py").touch()
    info = folder / f"microtome_toy-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in rows.items())
        for group, rows in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return folder


def python(package, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_work_on_a_model(package):
    told = json.loads(python(package, "-c", WORK).splitlines()[-1])
    assert {"zeroing", "activation_patching"} <= set(told["names"]["techniques"])
    assert {"alphabet", "ioi"} <= set(told["names"]["tasks"])
    assert {"rank", "logit_diff"} <= set(told["names"]["metrics"])
    assert {"toy_llama", "llama"} <= set(told["names"]["families"])
    assert (told["family"], told["known"], told["certificate"]) == ("toy_llama", True, True)
    assert told["task"][:2] == ["alphabet", 12] and re.fullmatch("[A-Z] [A-Z] [A-Z]", told["task"][2])
    assert told["sites"] == ["L0.attn_out@-1", "L1.attn_out@-1"] and told["method"] == "zeroing"
    assert told["verdict"] != "unchecked"
    assert told["ranks"] == told["expected"] and max(told["ranks"]) > 0


def test_they_show_on_the_command_line(package):
    said = python(package, "-m", "microtome.cli.main", "--help")
    assert all(name in said for name in ("alphabet", "rank", "zeroing", "toy_llama", "microtome-toy 1.0"))
    assert "alphabet" in python(package, "-m", "microtome.cli.main", "tasks", "list")
    assert "alphabet" in python(package, "-m", "microtome.cli.main", "dissect", "--help")


def test_they_show_on_the_reference_page(package):
    page = python(package, str(ROOT / "docs" / "generate.py"), "--print", "extensions")
    for name in ("zeroing", "alphabet", "rank", "toy_llama"):
        assert f"| `{name}` | microtome-toy 1.0 |" in page
    assert "Change of the logit difference when a layer's attention writes nothing" in page


def test_each_example_is_short():
    for language, text in FENCE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        if language == "python":
            code = [
                line
                for line in text.splitlines()
                if line.strip() and not line.startswith(("#", "import", "from"))
            ]
            assert len(code) <= 20, text.splitlines()[0]
