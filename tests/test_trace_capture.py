"""Captures against the plain loop, and what an index of a trace returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from microtome.errors import MicrotomeError, ModelError, SiteError
from microtome.model.tokens import Tokens, pack
from microtome.trace.run import run
from microtome.trace.trace import Trace

FAMILIES = ("llama", "gpt2", "gemma2")
EAGER = "eager"


def _trace(name: str, rows: list[list[int]], capture: list[str], **kw: object) -> Trace:
    return run(tiny.bound(name, EAGER), pack(rows), capture=capture, **kw)  # type: ignore[arg-type]


def _axis(value: Tensor, point: str) -> Tensor:
    """The oracle's [pos, ...] without what the mask hides."""
    return value.clamp_min(-1e4) if point == "scores" else value


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer", [0, 2])
def test_every_point_equals_the_plain_loop(name: str, layer: int) -> None:
    rows = tiny.prompts(3, 7)
    sites = [f"L{layer}.{p}" for p in oracle.POINTS[name]]
    trace = _trace(name, rows, sites)
    for i, row in enumerate(rows):
        logits, seen = oracle.run(tiny.model(name, EAGER), row, sites)
        torch.testing.assert_close(trace.logits[i], logits, rtol=1e-5, atol=1e-5)
        for site in sites:
            point = site.split(".")[1]
            torch.testing.assert_close(
                _axis(trace[site][i], point), _axis(seen[site], point), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "deepseek_v3", "falcon-new"])
@pytest.mark.parametrize(("n", "length"), [(4, 4), (2, 8), (8, 2), (1, 1)])
def test_sizes_that_coincide_do_not_confuse_axes(name: str, n: int, length: int) -> None:
    """Batch, prompt length, heads, key/value heads and d_head equal on purpose: each prompt as if it were alone."""
    binding = tiny.bound(name)
    rows = tiny.prompts(n, length)
    sites = [f"L1.{p}" for p in ("resid_post", "z", "v", "k", "pattern", "head_out", "ln2_out", "mlp_out")]
    together = run(binding, pack(rows), capture=sites)
    for i, row in enumerate(rows):
        alone = run(binding, pack([row]), capture=sites)
        for site in (*sites, "logits"):
            a, b = (t.logits if site == "logits" else t[site] for t in (together, alone))
            torch.testing.assert_close(a[i], b[0], rtol=1e-4, atol=1e-5)


def test_shapes_are_those_of_the_table() -> None:
    t = _trace(
        "llama",
        tiny.prompts(3, 7),
        ["L1.z", "L1.k", "L1.pattern", "L1.ln1_scale", "L1.neurons", "L1.head_out", "embed"],
    )
    assert t.logits.shape == (3, 7, tiny.VOCAB)
    assert t["L1.z"].shape == (3, 7, 4, 8) and t["L1H2.z"].shape == (3, 7, 8)
    assert t["L1.k"].shape == (3, 7, 2, 8) and t["L1KV1.k"].shape == (3, 7, 8)
    assert t["L1.pattern"].shape == (3, 4, 7, 7) and t["L1H3.pattern"].shape == (3, 7, 7)
    assert t["L1.ln1_scale"].shape == (3, 7, 1)
    assert t["L1N39.neurons"].shape == (3, 7)
    assert t["L1.head_out"].shape == (3, 7, 4, 24) and t["embed"].shape == (3, 7, 24)


def test_a_position_drops_its_axis_and_a_slice_keeps_it() -> None:
    t = _trace("llama", tiny.prompts(3, 7), ["L1.z", "L1.pattern"])
    whole, pattern = t["L1.z"], t["L1.pattern"]
    assert torch.equal(t["L1.z@-1"], whole[:, -1]) and torch.equal(t["L1.z@6"], whole[:, 6])
    assert torch.equal(t["L1.z@2:5"], whole[:, 2:5]) and torch.equal(t["L1.z@-2:"], whole[:, -2:])
    assert torch.equal(t["L1H1.z@0"], whole[:, 0, 1]) and torch.equal(t["L1H1.z@1:2"], whole[:, 1:2, 1])
    assert torch.equal(t["L1.pattern@-1"], pattern[:, :, -1]) and torch.equal(
        t["L1.pattern@2:5"], pattern[:, :, 2:5]
    )
    assert torch.equal(t["L1H3.pattern@-1"], pattern[:, 3, -1]) and torch.equal(
        t["L1H3.pattern@2:5"], pattern[:, 3, 2:5]
    )
    assert torch.equal(t["L1H3.pattern@-1<-2"], pattern[:, 3, -1, 2]) and torch.equal(
        t["L1.pattern@-1<-2"], pattern[:, :, -1, 2]
    )
    assert torch.equal(t["L1H3.pattern@2:5<-0:3"], pattern[:, 3, 2:5, :3])
    assert torch.equal(t["L1.pattern@2:5<-0"], pattern[:, :, 2:5, 0])


@pytest.mark.parametrize("padding", ["right", "left"])
def test_positions_count_the_prompts_own_tokens_whatever_the_padding(padding: str) -> None:
    rows = tiny.ragged([7, 4, 5])
    binding = tiny.bound("llama", EAGER)
    t = run(binding, pack(rows, padding=padding), capture=["L1.z", "L1.pattern"])  # type: ignore[arg-type]
    for i, row in enumerate(rows):
        alone = run(binding, pack([row]), capture=["L1.z", "L1.pattern"])
        for at in ("@0", "@-1", "@2", "@-4"):
            torch.testing.assert_close(t["L1.z" + at][i], alone["L1.z" + at][0], rtol=1e-5, atol=1e-5)
        own = t.mask[i]
        torch.testing.assert_close(t["L1.z"][i][own], alone["L1.z"][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            t["L1.pattern"][i][:, own][:, :, own], alone["L1.pattern"][0], rtol=1e-5, atol=1e-5
        )
    assert t["L1.z"][~t.mask].isnan().all() and not t["L1.z"][t.mask].isnan().any()
    assert (
        t["L1.pattern"][1][:, ~t.mask[1]].isnan().all() and t["L1.pattern"][1][..., ~t.mask[1]].isnan().all()
    )
    assert t.logits[~t.mask].isnan().all()
    assert t.positions[1].tolist() == (
        [0, 1, 2, 3, -1, -1, -1] if padding == "right" else [-1, -1, -1, 0, 1, 2, 3]
    )


def test_spans_are_ragged_and_belong_to_their_prompt() -> None:
    rows = tiny.ragged([7, 5])
    spans = ({"subject": (1, 4), "verb": (5, 6)}, {"subject": (0, 1), "verb": None})
    for padding in ("right", "left"):
        tokens = pack(rows, padding=padding, spans=spans)  # type: ignore[arg-type]
        t = run(tiny.bound("llama", EAGER), tokens, capture=["L1.resid_post", "L1.pattern"])
        whole = [t["L1.resid_post"][i][t.mask[i]] for i in range(2)]
        found = t["L1.resid_post@subject"]
        assert found.shape == (2, 3, 24)
        assert torch.equal(found[0], whole[0][1:4]) and torch.equal(found[1, :1], whole[1][:1])
        assert found[1, 1:].isnan().all()
        assert torch.equal(t["L1.resid_post@subject[-1]"], torch.stack([whole[0][3], whole[1][0]]))
        with pytest.raises(SiteError, match="verb"):
            t["L1.resid_post@verb"]


def test_a_capture_of_some_places_equals_the_same_of_all() -> None:
    rows = tiny.ragged([7, 4, 5])
    sites = [
        "L0.z@-1",
        "L0H2.z@1",
        "L1H1.pattern@-1",
        "L2KV1.v@0:2",
        "L1N5.neurons",
        "final_resid@-1",
        "L2.scores@2",
    ]
    binding = tiny.bound("llama", EAGER)
    for padding in ("right", "left"):
        tokens = pack(rows, padding=padding)  # type: ignore[arg-type]
        some = run(binding, tokens, capture=sites)
        everything = run(binding, tokens, capture=[s.split("@")[0].replace("H2", "").replace("H1", "").replace("KV1", "").replace("N5", "") for s in sites])  # fmt: skip
        for site in sites:
            torch.testing.assert_close(some[site], everything[site], equal_nan=True, rtol=0, atol=0)
        with pytest.raises(SiteError, match="not captured"):
            some["L0.z@0"]
        with pytest.raises(SiteError, match="not captured"):
            some["L1H2.pattern@-1"]


def test_logits_all_last_and_none() -> None:
    rows = tiny.ragged([7, 4, 5])
    binding = tiny.bound("gemma2")
    for padding in ("right", "left"):
        tokens = pack(rows, padding=padding)  # type: ignore[arg-type]
        whole = run(binding, tokens).logits
        last = run(binding, tokens, logits="last").logits
        assert last.shape == (3, 1, tiny.VOCAB)
        for i, n in enumerate(tokens.lengths):
            torch.testing.assert_close(last[i, 0], whole[i, tokens.column(i, n - 1)], rtol=1e-5, atol=1e-6)
        with pytest.raises(SiteError, match="no logits"):
            _ = run(binding, tokens, capture=["L0.z"], logits=None).logits


def test_logits_of_prompts_of_one_token() -> None:
    t = run(tiny.bound("llama"), pack([[5], [6]]), logits="last")
    assert t.logits.shape == (2, 1, tiny.VOCAB)
    assert torch.equal(t.logits, run(tiny.bound("llama"), pack([[5], [6]])).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "gpt_neox", "opt-after", "bloom", "mixtral"])
def test_a_run_without_logits_stops_early_with_the_same_captures(name: str) -> None:
    binding, rows = tiny.bound(name), tiny.prompts(2, 7)
    calls: list[str] = []
    handles = [
        layer.register_forward_hook(lambda m, a, o, i=i: calls.append(str(i)))
        for i, layer in enumerate(binding.layers)
    ]  # type: ignore[misc]
    try:
        for site, reached in (
            ("embed", 0),
            ("L1.resid_pre", 1),
            ("L0.mlp_out", 1),
            ("L1.resid_post", 2),
            ("L2.resid_post", 3),
            ("final_resid", 3),
        ):
            calls.clear()
            stopped = run(binding, pack(rows), capture=[site], logits=None)
            assert len(calls) == reached, (site, calls)
            assert torch.equal(stopped[site], run(binding, pack(rows), capture=[site])[site])
    finally:
        for handle in handles:
            handle.remove()


def test_captures_are_copies() -> None:
    binding, rows = tiny.bound("llama"), tiny.prompts(2, 5)
    t = run(binding, pack(rows), capture=["L1.resid_pre", "L1.resid_mid", "L1.v", "L0.resid_post"])
    for site in ("L1.resid_pre", "L1.resid_mid", "L1.v"):
        t[site].zero_()
    assert torch.equal(
        t["L0.resid_post"], run(binding, pack(rows), capture=["L0.resid_post"])["L0.resid_post"]
    )
    assert torch.equal(run(binding, pack(rows)).logits, t.logits)


def test_the_kernel_stays_unless_a_square_point_is_asked_for() -> None:
    binding, tokens = tiny.bound("llama"), pack(tiny.prompts(2, 5))
    assert run(binding, tokens).numerics["attention"] == "sdpa"
    assert run(binding, tokens, capture=["L1.z", "L1.q", "L1.k"]).numerics["attention"] == "sdpa"
    assert run(binding, tokens, capture=["L1.pattern"]).numerics["attention"] == "eager"
    assert run(binding, tokens, attention="eager").numerics["attention"] == "eager"


@pytest.mark.parametrize("name", ["gemma2", "bloom", "gptj"])
def test_a_kernel_that_the_family_does_not_have_is_refused(name: str) -> None:
    """gemma2 under sdpa would lose its softcap, gptj has no other kernel than its own."""
    with pytest.raises(ModelError, match="sdpa"):
        run(tiny.bound(name), pack(tiny.prompts(2, 5)), attention="sdpa")
    assert run(tiny.bound(name), pack(tiny.prompts(2, 5)), attention="eager").numerics["attention"] == "eager"


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ModelError, match="flash"):
        run(tiny.bound("llama"), pack(tiny.prompts(2, 5)), attention="flash_attention_2")


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "falcon-new", "mistral"])
def test_both_kernels_give_the_same_numbers(name: str, kernel: str) -> None:
    rows = tiny.ragged([7, 4, 5])
    binding = tiny.bound(name)
    for padding in ("right", "left"):
        tokens = pack(rows, padding=padding)  # type: ignore[arg-type]
        a, b = run(binding, tokens), run(binding, tokens, attention=kernel)
        torch.testing.assert_close(a.logits, b.logits, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_what_a_trace_refuses() -> None:
    t = _trace("llama", tiny.prompts(2, 5), ["L*.z"])
    with pytest.raises(SiteError, match="3 tensors"):
        t["L*.z"]
    with pytest.raises(SiteError, match="not captured"):
        t["L1.v"]
    with pytest.raises(SiteError, match="outside"):
        t["L1.z@5"]
    with pytest.raises(SiteError, match="there is no layer 3"):
        t["L3.z"]
    with pytest.raises(SiteError, match="no point called"):
        t["L1.zz"]
    assert "L1.z" in t and "L1H1.z@-1" in t and "L1.v" not in t


def test_a_starred_capture_leaves_out_layers_without_the_point() -> None:
    t = run(tiny.bound("qwen3_moe"), pack(tiny.prompts(2, 5)), capture=["L*.neurons"])
    assert "L1.neurons" in t and "L0.neurons" not in t
    with pytest.raises(SiteError, match="router"):
        run(tiny.bound("qwen3_moe"), pack(tiny.prompts(2, 5)), capture=["L0.neurons"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_activations_is_refused_and_named(bad: float) -> None:
    hf = tiny.build("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[3, 3] = bad
    from microtome.model.binding import bind

    with pytest.raises(ModelError, match=r"NaN or infinity.*L1\.resid_post"):
        run(bind(hf), pack(tiny.prompts(2, 5)))
    with pytest.raises(ModelError, match=r"L1\.resid_post"):
        run(bind(hf), pack(tiny.prompts(2, 5)), capture=["L2.resid_post@-1"], logits=None)
    before = run(bind(hf), pack(tiny.prompts(2, 5)), capture=["L1.resid_pre"], logits=None)
    assert before["L1.resid_pre"].isfinite().all()


def test_nothing_is_left_after_an_exception_inside_the_model() -> None:
    for name in ("llama", "gptj", "bloom", "gpt_neo", "falcon"):
        binding = tiny.bound(name)
        tokens = pack(tiny.prompts(2, 5))
        before = run(binding, tokens).logits

        def explode(module: object, args: object) -> None:
            raise ZeroDivisionError

        handle = binding.layers[1].register_forward_pre_hook(explode)
        out = binding.module(binding.slots[1].at("o") or "").register_forward_pre_hook(explode)
        for _ in (handle, out):
            with pytest.raises(ZeroDivisionError):
                run(binding, tokens, capture=["L*.pattern", "L*.resid_post", "L*.k"])
        for broken in (handle, out):
            broken.remove()
        assert torch.equal(run(binding, tokens).logits, before)
        assert not torch.overrides._get_current_function_mode_stack()


def test_bad_ids_and_prompts_are_refused() -> None:
    binding = tiny.bound("llama")
    with pytest.raises(ModelError, match="not in the vocabulary"):
        run(binding, pack([[3, tiny.VOCAB]]))
    with pytest.raises(ModelError, match="not in the vocabulary"):
        run(binding, pack([[3, -1]]))
    with pytest.raises(ModelError, match="context is 64"):
        run(binding, pack([[3] * 65]))
    with pytest.raises(ModelError, match="no tokens"):
        pack([[3], []])
    with pytest.raises(ModelError, match="no prompts"):
        pack([])
    run(tiny.bound("bloom"), pack([[3] * 80]))  # alibi sets no limit


def test_training_mode_is_refused() -> None:
    from microtome.model.binding import bind

    hf = tiny.build("llama")
    hf.model.layers[1].train()
    hf.training = True
    with pytest.raises(ModelError, match="training mode"):
        run(bind(hf), pack([[3, 4]]))
    hf.training = False  # a part left in training mode is as random as the whole
    with pytest.raises(ModelError, match="training mode"):
        run(bind(hf), pack([[3, 4]]))


def test_captures_do_not_depend_on_the_grad_mode() -> None:
    binding, tokens = tiny.bound("llama"), pack(tiny.prompts(2, 5))
    with torch.enable_grad():
        t = run(binding, tokens, capture=["L1.z"])
    assert not t["L1.z"].requires_grad and not t.logits.requires_grad


def test_tokens_are_what_was_asked() -> None:
    tokens = pack(tiny.ragged([3, 5]), padding="left")
    assert isinstance(tokens, Tokens) and tokens.starts == [2, 0]
    with pytest.raises(MicrotomeError):
        run(tiny.bound("llama"), tokens, capture=["L1H4.z"])
