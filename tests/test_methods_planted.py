"""Every method finds what is there and reports nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

import planted
import tiny
from microtome import methods
from microtome.errors import ModelError, SiteError, TaskError
from microtome.results import open_result

HEAD = f"L{planted.HEAD[0]}H{planted.HEAD[1]}"


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs(model)


@pytest.fixture(scope="module")
def single(model, task):
    return methods.activation_patching(
        model,
        task,
        sites=["L*H*.z", "L*.mlp_out"],
        positions="all",
        held_out=planted.pairs(model, n=24, seed=9),
        seed=0,
    )


def test_patching_finds_the_planted_head_and_nothing_else(single) -> None:
    mean = single.effects.values[..., 0].mean(1)
    sites = single.effects.coords["site"]
    total = single.tensors["total"][:, 0].mean()
    assert mean[sites.index(f"{HEAD}.z")] == pytest.approx(total, rel=1e-3)
    others = [abs(m) for s, m in zip(sites, mean, strict=True) if s != f"{HEAD}.z"]
    assert max(others) < 1e-5 * abs(total)
    cells = single.tables["cells"].set_index("site")
    assert cells.loc[f"{HEAD}.z", "p"] <= 0.001 < cells.drop(f"{HEAD}.z")["p"].min()
    assert single.control("identity").passed and single.control("receipts").passed
    assert single.control("held_out").passed


def test_a_task_without_variables_caps_the_verdict(single) -> None:
    assert single.control("irrelevant").passed is None and single.verdict == "unchecked"


def test_patching_per_position_is_zero_before_the_difference(model, task) -> None:
    r = methods.activation_patching(model, task, sites="L*.resid_pre", seed=0, controls="none")
    values = r.effects.values[..., 0].mean(2)
    assert r.effects.dims == ("site", "position", "prompt", "metric")
    assert np.abs(values[:, : planted.WHERE]).max() == 0
    assert bool(r.tensors["structurally_zero"][:, : planted.WHERE].all())
    before, after = values[planted.HEAD[0]], values[planted.HEAD[0] + 1]
    assert abs(before[planted.WHERE]) > 100 * abs(before[-1]) + 1e-6
    assert abs(after[-1]) > 100 * abs(after[planted.WHERE])


def test_noising_is_denoising_seen_from_the_other_side(model, task) -> None:
    forward = methods.activation_patching(
        model, task, sites="L0.resid_pre", positions="all", seed=0, controls="none"
    )
    back = methods.activation_patching(
        model, task, sites="L0.resid_pre", positions="all", mode="noise", seed=0, controls="none"
    )
    assert np.allclose(forward.effects.values, -back.effects.values, atol=1e-4)


def test_nothing_is_found_where_there_is_nothing() -> None:
    empty = planted.nothing()
    r = methods.activation_patching(
        empty, planted.pairs(empty), sites=["L*H*.z", "L*.mlp_out"], positions="all", seed=0
    )
    assert float(np.abs(r.effects.values).max()) < 1e-4
    assert r.tables["cells"]["p"].min() > 0.001 and r.verdict != "supported"
    assert "normalised" not in r.tables  # a share of a total that may be 0 is refused


def test_direct_attribution_adds_up_and_names_the_head(model, task) -> None:
    r = methods.direct_logit_attribution(model, task, seed=0)
    assert r.control("sums").passed and r.control("sums").observed <= 1e-4
    mean = dict(
        zip(
            r.effects.coords["site"],
            np.abs(r.effects.values[..., 0].mean(1) - r.tensors["corrupt"].mean(1)),
            strict=True,
        )
    )
    strongest = max(mean, key=mean.get)
    assert strongest == f"{HEAD}.head_out"


@pytest.mark.parametrize(
    "family", ("gpt2", "gemma2", "olmo2", "granite", "cohere", "phi", "gpt_neox", "opt", "qwen3_moe")
)
def test_direct_attribution_adds_up_in_every_style_of_block(family) -> None:
    model = tiny.loaded(family)
    r = methods.direct_logit_attribution(model, planted.pairs(model, n=4), seed=0)
    assert r.control("sums").passed, r.control("sums").observed


def test_direct_attribution_is_refused_where_the_stream_is_no_sum() -> None:
    model = tiny.loaded("opt-after")
    with pytest.raises(ModelError, match="additive"):
        methods.direct_logit_attribution(model, planted.pairs(model, n=4), seed=0)


def test_attribution_agrees_with_exact_patching_on_the_planted_head(model, task, single) -> None:
    r = methods.attribution_patching(model, task, sites=["L*H*.z", "L*.mlp_out"], exact=single, seed=0)
    table = r.tables["agreement"].set_index("site")
    assert table["estimate"].abs().idxmax() == f"{HEAD}.z" == table["exact"].abs().idxmax()
    zero = table.drop(f"{HEAD}.z")
    assert zero["estimate"].abs().max() < 1e-4


def test_logit_lens_ends_where_the_model_does(model, task) -> None:
    r = methods.logit_lens(model, task, seed=0)
    assert r.control("last_layer").passed
    by_layer = r.effects.values[:, 0, :, 0].mean(1)
    assert by_layer[-1] - by_layer[planted.HEAD[0]] > 5 * abs(by_layer[planted.HEAD[0]] - by_layer[0])


def test_ablation_finds_the_head_and_compares_the_same_damage(model, task) -> None:
    r = methods.ablation(model, task, by="zero", off_task=task.corrupt, seed=0)
    mean = dict(zip(r.effects.coords["site"], np.abs(r.effects.values[..., 0]).mean(1), strict=True))
    assert max(mean, key=mean.get) == f"{HEAD}.z"
    assert r.control("off_task").passed is False  # the same head matters on the corrupt side just as much
    assert set(r.tables["off_task"].columns) == {"site", "on", "off"}
    assert methods.ablation(model, task, by="zero", seed=0).control("off_task").passed is None


def test_head_detectors_see_a_planted_previous_token_head() -> None:
    import torch

    hf = tiny.build("gpt2")
    with torch.no_grad():
        block = hf.transformer.h[0]
        d = hf.config.n_embd
        width = d // hf.config.n_head
        block.ln_1.weight.fill_(1)
        block.ln_1.bias.zero_()
        hf.transformer.wte.weight.mul_(1e-3)
        one = torch.nn.functional.one_hot(torch.arange(hf.config.n_positions) % d, d).float()
        hf.transformer.wpe.weight.copy_(one)
        block.attn.c_attn.weight.zero_()
        block.attn.c_attn.bias.zero_()
        # query of position p equals the key of position p-1 (positions written as one-hot, five dimensions are enough here)
        mix = torch.randn(d, width, generator=torch.Generator().manual_seed(0))
        block.attn.c_attn.weight[:, d : d + width] = mix
        block.attn.c_attn.weight[:, :width] = 3 * torch.roll(mix, 1, 0)
    from microtome.facade import Model
    from microtome.model.load import load_module

    model = Model(load_module(hf.eval()))
    r = methods.attention_patterns(model, planted.pairs(model, n=4), show=["L0H0"], seed=0)
    table = r.tables["detectors"]
    mine = table[(table.site == "L0H0.pattern") & (table.distribution == "task")].set_index("detector")[
        "score"
    ]
    assert mine.idxmax() == "previous" and mine["previous"] > 0.4
    assert r.control("rows_sum").passed and r.tensors["pattern/L0H0"].shape == (
        planted.LENGTH,
        planted.LENGTH,
    )


def test_component_set_is_the_planted_head(model, task, single) -> None:
    r = methods.component_set(
        model, task, ranking=single, held_out=planted.pairs(model, seed=9), nulls=20, seed=0
    )
    assert list(r.tables["components"]["site"]) == [f"{HEAD}.z"]
    assert r.tables["held_out"]["value"][0] == pytest.approx(1, abs=1e-3)
    assert r.control("empty_and_full").passed and r.control("receipts").passed
    nulls = r.tables["nulls"]
    assert nulls.empty or nulls["value"].max() < 0.9 or HEAD in str(r.tables["components"])


def test_behaviour_says_so_when_the_model_does_not(model, task) -> None:
    good = methods.behaviour(model, task, seed=0)
    assert good.tables["sides"]["accuracy"][0] > 0.5
    swapped = planted.pairs(planted.nothing())
    poor = methods.behaviour(planted.nothing(), swapped, seed=0)
    assert poor.verdict != "supported"


def test_results_survive_saving(tmp_path, single) -> None:
    single.save(tmp_path / "r")
    again = open_result(tmp_path / "r")
    assert again.verdict == single.verdict and again.frame().equals(single.frame())


def test_bad_requests_are_refused(model, task) -> None:
    with pytest.raises(SiteError, match="no point called"):
        methods.activation_patching(model, task, sites="L*.resid_prr", seed=0)
    with pytest.raises(TaskError, match="direction"):
        methods.activation_patching(model, task, mode="sideways", seed=0)
    with pytest.raises(TaskError, match="span"):
        methods.activation_patching(model, task, positions=["verb"], seed=0)
    for wrong, said in (
        ({"of": "paths"}, "neither nodes nor edges"),
        ({"how": "magic"}, "no way to attribute"),
        ({"of": "edges", "positions": ["subject"]}, "no positions"),
        ({"positions": "subject"}, "list of positions"),
        ({"verify": 0}, "patched exactly"),
    ):
        with pytest.raises(TaskError, match=said):
            methods.attribution_patching(model, task, seed=0, **wrong)
