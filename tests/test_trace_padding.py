"""A prompt alone, batched, padded on either side, permuted: the same activations at every point, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from microtome.model.tokens import Tokens, pack
from microtome.points import POINTS
from microtome.trace.edits import Ablate, Edit, Patch, Steer
from microtome.trace.run import run
from microtome.trace.trace import Trace

ROWS = tiny.ragged([6, 3, 1])
_HYBRID = ["jamba", "falcon_h1", "qwen3_next", "minimax", "recurrent_gemma", "granitemoehybrid"]
NAMES = ["llama", "mistral", "gemma2", "gemma3", "olmo2", "phi3", "stablelm-parallel", "cohere2", "granite", "smollm3", "gpt2", "gpt_neox", "gptj", "gpt_neo",
         "opt", "opt-after", "bloom", "falcon", "falcon-alibi", "falcon-new", "mixtral", "gpt_oss", "deepseek_v3", "mpt", "codegen", "xglm", *_HYBRID]  # fmt: skip


def _all_sites(binding: Any) -> list[str]:
    sites = [p.name for p in POINTS.values() if p.scope == "stream" and binding.lacking(p.name, None) is None]
    for i in range(len(binding.slots)):
        sites += [
            f"L{i}.{p.name}"
            for p in POINTS.values()
            if p.scope == "layer" and binding.lacking(p.name, i) is None
        ]
    return sites


def _own(t: Trace, site: str, row: int) -> Tensor:
    """A prompt's own part of a value: [pos, ...], or [head, query, key]."""
    mask, value = t.mask[row], t[site][row] if site != "logits" else t.logits[row]
    if POINTS[site.rpartition(".")[2]].square:
        return value[:, mask][..., mask].clamp_min(-1e4)
    return value[mask]


_MORE = {"mistral", "gemma3", "phi3", "stablelm-parallel", "smollm3", "gpt_neox", "opt-after", "falcon", "granite", "codegen", "xglm", "jamba", "minimax", "granitemoehybrid"}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n in _MORE)) for n in NAMES])
def test_every_point_of_a_prompt_is_the_same_in_any_company(name: str) -> None:
    binding = tiny.bound(name)
    sites = _all_sites(binding)
    alone = [run(binding, pack([row]), capture=sites) for row in ROWS]
    for padding, order in (("right", (0, 1, 2)), ("left", (2, 0, 1))):
        if f"{padding} padding" in binding.limits:
            continue
        together = run(binding, pack([ROWS[i] for i in order], padding=padding), capture=sites)  # type: ignore[arg-type]
        for place, i in enumerate(order):
            for site in sites:
                if name == "mpt" and site.endswith("scores"):
                    continue  # its alibi counts from the last column: a number per query that the softmax takes away
                torch.testing.assert_close(
                    _own(together, site, place),
                    _own(alone[i], site, 0),
                    rtol=1e-4,
                    atol=1e-4,
                    msg=lambda m, s=site: f"{s}: {m}",
                )


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom", "gpt_oss", "deepseek_v3", "gptj"])
def test_edits_are_the_same_in_any_company(name: str) -> None:
    binding = tiny.bound(name)
    rows = tiny.ragged([7, 3, 5])
    donors = tiny.ragged([7, 3, 5], seed=1)
    d = torch.randn(binding.facts.d_model, generator=torch.Generator().manual_seed(0))
    sites = ["L1.z", "L1.pattern", "L2.resid_post"]

    def edits(source: Trace) -> list[Any]:
        return [
            Patch("L1.z@-1", source),
            Patch("L1H1.pattern", source),
            Steer("L2.resid_post@0", d, 1.0),
            Ablate("L1.v@-2:"),
            Edit("L0.mlp_out", lambda x: x / 2),
        ]

    alone = []
    for row, donor in zip(rows, donors, strict=True):
        source = run(binding, pack([donor]), capture=sites)
        alone.append(run(binding, pack([row]), edits=edits(source), capture=sites))
    for padding, order in (("right", (0, 1, 2)), ("left", (2, 0, 1)), ("left", (1, 2, 0))):
        source = run(binding, pack([donors[i] for i in order]), capture=sites)  # its own padding
        together = run(
            binding, pack([rows[i] for i in order], padding=padding), edits=edits(source), capture=sites
        )  # type: ignore[arg-type]
        for place, i in enumerate(order):
            for site in (*sites, "logits"):
                torch.testing.assert_close(
                    _own(together, site, place),
                    _own(alone[i], site, 0),
                    rtol=1e-4,
                    atol=1e-4,
                    msg=lambda m, s=site: f"{s}: {m}",
                )


_POINTS = [
    "z",
    "v",
    "k",
    "resid_mid",
    "mlp_out",
    "attn_out",
    "pattern",
    "ln2_out",
    "neurons",
    "head_out",
    "resid_pre",
    "ln1_scale",
]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["llama", "gpt2", "gemma2"]),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(_POINTS),
            st.integers(-6, 5),
            st.sampled_from(["zero", "half", "noise"]),
        ),
        min_size=1,
        max_size=4,
    ),
    padding=st.sampled_from(["right", "left"]),
    seed=st.integers(0, 5),
)
def test_any_edits_of_any_batch_equal_each_prompt_alone(
    name: str, lengths: list[int], steps: list[Any], padding: str, seed: int
) -> None:
    binding = tiny.bound(name, "eager")
    rows = tiny.ragged(lengths, seed)
    kinds = {"zero": torch.zeros_like, "half": lambda x: x / 2, "noise": lambda x: x + 0.3 * x.flip(-1)}

    def edits(n: int) -> list[Any]:
        return [Edit(f"L{layer}.{point}@{at}", kinds[kind]) for layer, point, at, kind in steps
                if -n <= at < n and not (point == "ln1_scale" and kind == "zero")]  # fmt: skip

    per_row = [edits(len(row)) for row in rows]
    together = run(binding, pack(rows, padding=padding), edits=per_row)  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        alone = run(binding, pack([row]), edits=[per_row[i]])
        torch.testing.assert_close(
            together.logits[i][together.mask[i]], alone.logits[0], rtol=1e-4, atol=1e-4
        )
    assert len(together.receipts) == sum(map(len, per_row))


def test_pad_ids_do_not_matter() -> None:
    binding = tiny.bound("llama")
    for padding in ("right", "left"):
        a, b = (run(binding, pack(ROWS, pad=pad, padding=padding), capture=["L*.z"]) for pad in (0, 4242))  # type: ignore[arg-type]
        torch.testing.assert_close(a.logits, b.logits, equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(a["L1.z"], b["L1.z"], equal_nan=True, rtol=0, atol=0)


def test_a_mask_that_is_all_true_is_no_padding() -> None:
    ids = torch.tensor(tiny.prompts(2, 5))
    for padding in ("right", "left"):
        tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool), padding)  # type: ignore[arg-type]
        assert not tokens.padded and tokens.starts == [0, 0]
        assert torch.equal(
            run(tiny.bound("llama"), tokens).logits, run(tiny.bound("llama"), pack(ids.tolist())).logits
        )
