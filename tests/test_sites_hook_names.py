"""TransformerLens's names: every line of the table against its own activations, tensor by tensor (stored fixtures)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

import microtome as mt
from microtome.errors import SiteError
from microtome.hook_names import PLAIN, REFUSED, translate
from microtome.sites import expand, parse

DATA = Path(__file__).parent / "data"
FAMILIES = ("llama", "gpt2", "gemma2", "qwen3")


class Fixture:
    """A tiny model with TransformerLens's activations of a prompt."""

    def __init__(self, family: str) -> None:
        with safe_open(DATA / f"transformerlens_{family}.safetensors", "pt") as file:
            about = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(about["config"])
        hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
        weights = {k.removeprefix("weight "): v for k, v in tensors.items() if k.startswith("weight ")}
        missing, unexpected = hf.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}
        hf.tie_weights()
        self.model = mt.load(hf, tokenizer=None)
        self.ids = json.loads(about["ids"])
        self.theirs = {k.removeprefix("hook "): v for k, v in tensors.items() if k.startswith("hook ")}

    def ours(self, name: str) -> torch.Tensor:
        return self.model.run(self.ids, [name], attention="eager")[translate(name, self.model.facts)]


@pytest.fixture(scope="module", params=FAMILIES)
def fixture(request) -> Fixture:
    return Fixture(request.param)


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    floor = [x.clamp_min(-1e9) for x in (ours, theirs)]  # masked scores: -inf here, a large number there
    return ours.shape == theirs.shape and torch.allclose(*floor, atol=1e-5)


def test_every_name_holds_their_tensor_or_is_refused(fixture: Fixture) -> None:
    compared, refused = set(), set()
    for name, theirs in fixture.theirs.items():
        short = name.replace("blocks.0.", "blocks.").replace("blocks.1.", "blocks.")
        if short not in PLAIN:
            continue
        try:
            ours = fixture.ours(name)
        except SiteError as error:
            assert "counterpart" in str(error)
            refused.add(short)
            continue
        assert _same(ours, theirs), name
        compared.add(short)
    assert len(compared) >= 20
    assert refused == ({"blocks.attn.hook_q", "blocks.attn.hook_k"} if fixture.model.facts.family == "qwen3" else set())  # fmt: skip


def test_a_wrong_line_of_the_table_would_be_seen(fixture: Fixture, monkeypatch) -> None:
    """The fixture tells apart what the table keeps apart: exchanged lines fail."""
    for one, other in (("blocks.hook_resid_pre", "resid_mid"), ("blocks.mlp.hook_post", "mlp_pre"), ("blocks.attn.hook_rot_q", "z"), ("blocks.ln1.hook_scale", "ln2_scale")):  # fmt: skip
        monkeypatch.setitem(PLAIN, one, other)
        name = one.replace("blocks.", "blocks.1.")
        if name in fixture.theirs:
            assert not _same(fixture.ours(name), fixture.theirs[name]), one
        monkeypatch.undo()


def test_names_take_positions_and_meanings_that_depend_on_the_family_are_asked_of_it() -> None:
    facts = Fixture("llama").model.facts
    assert [str(s) for s in expand("blocks.1.attn.hook_z@-1", facts)] == ["L1.z@-1"]
    assert [str(s) for s in expand("blocks.0.mlp.hook_pre!before", facts)] == ["L0.mlp_gate!before"]
    assert str(expand("blocks.0.mlp.hook_pre", Fixture("gpt2").model.facts)[0]) == "L0.mlp_pre"
    assert str(parse("blocks.3.hook_resid_mid@subject")) == "L3.resid_mid@subject"
    with pytest.raises(SiteError, match="depends on the family"):
        parse("blocks.0.attn.hook_q")


@pytest.mark.parametrize("name", ["blocks.0.ln1.hook_normalized", "hook_unembed", "blocks.2.hook_q_input", "blocks.0.attn.hook_nothing"])  # fmt: skip
def test_names_without_a_counterpart_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(SiteError, match="no exact counterpart") as caught:
        parse(name)
    assert caught.value.why


def test_what_is_refused_is_no_line_of_the_table() -> None:
    assert not {f"blocks.{name}" for name in REFUSED} & set(PLAIN) and not set(REFUSED) & set(PLAIN)
