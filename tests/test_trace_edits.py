"""Edits against the plain loop: every kind, everywhere, in order, per row, and on a prompt's own positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from microtome.errors import EditError, MicrotomeError, ModelError, SiteError
from microtome.model.tokens import Tokens, pack
from microtome.trace.edits import Ablate, BaseEdit, Edit, Keep, Patch, Remove, Steer
from microtome.trace.run import run
from microtome.trace.trace import Trace

FAMILIES = ("llama", "gpt2", "gemma2")
ROWS = tiny.ragged([7, 4, 5])
DONORS = tiny.ragged([7, 4, 5], seed=1)
BOTH = [
    (n, p, side)
    for i, n in enumerate(FAMILIES)
    for j, p in enumerate(oracle.POINTS[n])
    for side in (("right", "left")[(i + j) % 2],)
]
BOTH += [
    (n, p, side)
    for n, p, side in (("llama", "pattern", "left"), ("llama", "pattern", "right"), ("gpt2", "k", "left"))
    if (n, p, side) not in BOTH
]


def _run(
    name: str,
    rows: list[list[int]] | Tokens,
    edits: Any = (),
    capture: Any = (),
    attention: str | None = "eager",
    **kw: Any,
) -> Trace:
    tokens = rows if isinstance(rows, Tokens) else pack(rows)
    return run(tiny.bound(name, attention), tokens, edits=edits, capture=capture, **kw)


def _plain(name: str, row: list[int], edits: list[tuple[str, Callable[[Tensor], Tensor]]]) -> Tensor:
    return oracle.run(tiny.model(name, "eager"), row, [], edits)[0]


def _close(a: Tensor, b: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _on(value: Tensor, point: str, at: slice | int, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """The plain loop's value with fn at one position; queries are the second axis of scores and pattern."""
    out = value.clone()
    place = (slice(None), at) if point in ("scores", "pattern") else at
    out[place] = fn(value[place])
    return out


@pytest.mark.parametrize(("name", "point", "padding"), BOTH)
def test_an_edit_at_any_point_equals_the_plain_loop(name: str, point: str, padding: str) -> None:
    site = f"L1.{point}"
    fn = lambda x: x * 0.5 if point != "scores" else x.clamp_min(-50) * 0.5  # noqa: E731
    edited = _run(name, pack(ROWS, padding=padding), [Edit(f"{site}@-2", fn)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        expected = _plain(name, row, [(site, lambda v: _on(v, point, -2, fn))])
        _close(edited.logits[i][edited.mask[i]], expected)
    (receipt,) = edited.receipts
    assert receipt.places == 3 and receipt.times == 1 and receipt.size > 0


@pytest.mark.parametrize(("name", "point", "padding"), [s for s in BOTH if s[1] != "scores"])
def test_a_patch_from_a_trace_equals_the_plain_loop(name: str, point: str, padding: str) -> None:
    site = f"L1.{point}"
    donors = [row[:1] + other[1:] for row, other in zip(ROWS, DONORS, strict=True)]
    source = _run(name, donors, capture=[site])  # padded on the right, whatever the run is
    edited = _run(name, pack(ROWS, padding=padding), [Patch(f"{site}@1:3", source)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        donor = oracle.run(tiny.model(name, "eager"), donors[i], [site])[1][site]
        place = (slice(None), slice(1, 3)) if point == "pattern" else slice(1, 3)
        expected = _plain(name, row, [(site, lambda v: _on(v, point, slice(1, 3), lambda _: donor[place]))])  # noqa: B023
        _close(edited.logits[i][edited.mask[i]], expected)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("point", ["pattern", "scores"])
def test_a_patch_of_a_square_point_follows_own_keys_not_columns(point: str, padding: str) -> None:
    """Source and run padded on opposite sides, and to other widths: keys are matched by own position."""
    source = _run("llama", pack([*DONORS, tiny.prompts(1, 9)[0]], padding="left"), capture=[f"L1.{point}"])
    with pytest.raises(EditError, match="4 prompts"):
        _run("llama", ROWS, [Patch(f"L1.{point}", source)])
    source = _run("llama", pack(DONORS, padding="left"), capture=[f"L1.{point}"])
    for rows, donors in ((ROWS, source), (ROWS[1:2], None)):
        donors = donors or _run("llama", DONORS[1:2], capture=[f"L1.{point}"])
        edited = _run("llama", pack(rows, padding=padding), [Patch(f"L1.{point}", donors)])  # type: ignore[arg-type]
        for i, row in enumerate(rows):
            donor = _run("llama", [DONORS[ROWS.index(row)]], capture=[f"L1.{point}"])[f"L1.{point}"][0]
            expected = _plain("llama", row, [(f"L1.{point}", lambda v: donor)])  # noqa: B023
            _close(edited.logits[i][edited.mask[i]], expected)


def test_a_patch_of_a_square_point_at_the_end_needs_the_same_keys() -> None:
    source = _run("llama", [DONORS[1]], capture=["L1.pattern"])
    with pytest.raises(EditError, match="shape"):
        _run("llama", [ROWS[0]], [Patch("L1.pattern@-1", source)])
    edited = _run("llama", [ROWS[0]], [Patch("L1.pattern@2", source)], capture=["L1.pattern"])
    _close(edited["L1.pattern@2"][0, :, :4], source["L1.pattern@2"][0])
    assert not edited["L1.pattern@2"][0, :, 4:].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_alone_equal_the_plain_loop(name: str) -> None:
    for unit, point, head in (
        ("H", "z", 2),
        ("H", "q_pre", 3),
        ("KV", "v", 1),
        ("KV", "k_pre", 0),
        ("H", "pattern", 1),
    ):
        site = f"L1.{point}"

        def fn(v: Tensor, head: int = head, point: str = point) -> Tensor:
            out = v.clone()
            place = (head,) if point == "pattern" else (slice(None), head)
            out[place] = 0
            return out

        edited = _run(name, ROWS, [Ablate(f"L1{unit}{head}.{point}")])
        for i, row in enumerate(ROWS):
            _close(edited.logits[i][edited.mask[i]], _plain(name, row, [(site, fn)]))


@pytest.mark.parametrize("name", FAMILIES)
def test_head_out_moves_the_stream_by_exactly_the_head(name: str) -> None:
    width = tiny.bound(name).facts.d_model
    delta = _noise(width)
    edited = _run(name, ROWS, [Steer("L1H2.head_out@-1", delta, 1.5)])
    for i, row in enumerate(ROWS):
        expected = _plain(
            name, row, [("L1.attn_raw", lambda v: _on(v, "attn_raw", -1, lambda x: x + 1.5 * delta))]
        )
        _close(edited.logits[i][edited.mask[i]], expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2", "qwen3", "phi-qknorm", "cohere-qknorm"])
def test_scales_divide(name: str) -> None:
    """Dividing by twice the divisor is halving what the norm gives before its bias."""
    binding = tiny.bound(name)
    rows = tiny.prompts(2, 5)
    norm = {"olmo2": ("ln1_post_scale", "attn_out"), "qwen3": ("q_scale", "q_pre"), "phi-qknorm": ("k_scale", "k_pre"),
            "cohere-qknorm": ("q_scale", "q_pre")}.get(name, ("ln2_scale", "ln2_out"))  # fmt: skip
    scale, out = (f"L1.{p}" for p in norm)
    base = run(binding, pack(rows), capture=[scale, out])
    halved = run(binding, pack(rows), capture=[scale, out], edits=[Edit(f"{scale}@2", lambda x: 2 * x)])
    part = {"ln2_scale": "ln2", "ln1_post_scale": "ln1_post", "q_scale": "q_norm", "k_scale": "k_norm"}[
        norm[0]
    ]
    bias = binding.norm(binding.slots[1].at(part) or "").bias
    _close(halved[out + "@2"] - bias, (base[out + "@2"] - bias) / 2)
    _close(halved[scale + "@2"], 2 * base[scale + "@2"])
    assert torch.equal(halved[out + "@3"], base[out + "@3"])
    by_hand = run(binding, pack(rows), edits=[Edit(f"{out}@2", lambda x: (x - bias) / 2 + bias)])
    _close(halved.logits, by_hand.logits)


def test_a_norm_over_all_heads_can_be_frozen_for_one() -> None:
    base = _run("olmo2", ROWS, capture=["L1.q_scale", "L1.q_pre"], attention=None)
    assert base["L1.q_scale"].shape == (3, 7, 4, 1)
    edited = _run("olmo2", ROWS, [Edit("L1H2.q_scale", lambda x: 2 * x)], ["L1.q_pre"], attention=None)
    own = base.mask
    _close(edited["L1H2.q_pre"][own], base["L1H2.q_pre"][own] / 2)
    assert torch.equal(edited["L1H1.q_pre"][own], base["L1H1.q_pre"][own])


# kinds ---------------------------------------------------------------------------------------------------------------

_D = _noise(24, seed=3)
_SUB = _noise(3, 24, seed=4)


def _projector(rows: Tensor) -> Tensor:
    return torch.linalg.pinv(rows) @ rows


KINDS: dict[str, tuple[BaseEdit, Callable[[Tensor], Tensor]]] = {
    "zero": (Ablate("L1.mlp_out"), torch.zeros_like),
    "raw": (Steer("L1.mlp_out", _D, 2.0), lambda x: x + 2 * _D),
    "direction_norm": (Steer("L1.mlp_out", _D, 2.0, unit="direction_norm"), lambda x: x + 2 * _D / _D.norm()),
    "resid_norm": (Steer("L1.mlp_out", _D, 0.5, unit="resid_norm"), lambda x: x + 0.5 * x.norm(dim=-1, keepdim=True) * _D / _D.norm()),
    "remove": (Remove("L1.mlp_out", _D), lambda x: x - x @ _projector(_D[None])),
    "keep": (Keep("L1.mlp_out", _SUB), lambda x: x @ _projector(_SUB)),
    "keep of dependent rows": (Keep("L1.mlp_out", torch.cat([_SUB, _SUB[:1] * 3 - _SUB[1:2]])), lambda x: x @ _projector(_SUB)),
    "keep of more rows than there are axes": (Keep("L1.mlp_out", torch.cat([_SUB] * 9)), lambda x: x @ _projector(_SUB)),
    "function": (Edit("L1.mlp_out", torch.tanh), torch.tanh),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_does_what_it_says(kind: str) -> None:
    edit, fn = KINDS[kind]
    edited = _run("llama", ROWS, [edit])
    for i, row in enumerate(ROWS):
        _close(edited.logits[i][edited.mask[i]], _plain("llama", row, [("L1.mlp_out", fn)]), 1e-4)


def test_mean_and_resample_take_their_reference() -> None:
    reference = tiny.ragged([6, 3, 8, 7, 5], seed=5)
    values = torch.stack(
        [oracle.run(tiny.model("llama", "eager"), r, ["L1.z"])[1]["L1.z"][-1] for r in reference]
    )
    mean = _run("llama", ROWS, [Ablate("L1.z@-1", "mean", over=reference)])
    for i, row in enumerate(ROWS):
        _close(
            mean.logits[i][mean.mask[i]],
            _plain("llama", row, [("L1.z", lambda v: _on(v, "z", -1, lambda _: values.mean(0)))]),
        )
    drawn = _run("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=3)], capture=["L1.z"])
    chosen = [int((values - drawn["L1.z@-1"][i]).abs().amax((1, 2)).argmin()) for i in range(3)]
    _close(drawn["L1.z@-1"], values[chosen])
    again = _run("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=3)])
    assert torch.equal(again.logits[again.mask], drawn.logits[drawn.mask])
    draws = {tuple(_draws(reference, seed)) for seed in range(6)}
    assert len(draws) > 3 and any(len(set(d)) > 1 for d in draws)


def _draws(reference: list[list[int]], seed: int) -> list[float]:
    t = _run("llama", ROWS, [Ablate("L1.z@-1", "resample", over=reference, seed=seed)], capture=["L1.z"])
    return [round(float(x), 4) for x in t["L1.z@-1"].sum((1, 2))]


def test_a_resampled_prompt_draws_the_same_alone_in_its_list() -> None:
    reference = tiny.prompts(6, 5, seed=5)
    edit = Ablate("L1.z@-1", "resample", over=reference, seed=3)
    together = _run("llama", ROWS, [edit])
    lists = _run("llama", ROWS, [[], [edit], []])
    assert torch.equal(together.logits[1][:4], lists.logits[1][:4])


def test_references_that_do_not_align_are_refused() -> None:
    with pytest.raises(EditError, match="do not align"):
        _run("llama", ROWS, [Ablate("L1.z", "mean", over=tiny.prompts(3, 7))])
    with pytest.raises(EditError, match="do not align"):  # keys of other lengths cannot be averaged
        _run("llama", ROWS, [Ablate("L1.pattern@-1", "mean", over=tiny.ragged([7, 5]))])
    _run("llama", tiny.prompts(2, 7), [Ablate("L1.z", "mean", over=tiny.prompts(3, 7, seed=2))])


# order, rows, before -------------------------------------------------------------------------------------------------


def test_edits_apply_in_list_order() -> None:
    double, shift = Edit("L1.mlp_out", lambda x: 2 * x), Steer("L1.mlp_out", _D, 1.0)
    for order, fn in (([double, shift], lambda x: 2 * x + _D), ([shift, double], lambda x: 2 * (x + _D))):
        edited = _run("llama", ROWS, order)
        for i, row in enumerate(ROWS):
            _close(edited.logits[i][edited.mask[i]], _plain("llama", row, [("L1.mlp_out", fn)]), 1e-4)
        assert [r.edit for r in edited.receipts] == [str(e) for e in order]


def test_edits_at_several_points_compose_in_model_order() -> None:
    edits: list[BaseEdit] = [
        Steer("L2.resid_pre@-1", _D, 1.0),
        Ablate("L1H1.z"),
        Edit("L0.resid_mid", lambda x: 0.5 * x),
    ]
    plain = [("L2.resid_pre", lambda v: _on(v, "", -1, lambda x: x + _D)), ("L1.z", lambda v: torch.where(torch.arange(4)[:, None] == 1, 0, v)),
             ("L0.resid_mid", lambda v: 0.5 * v)]  # fmt: skip
    for order in (edits, edits[::-1]):
        edited = _run("llama", ROWS, order)
        for i, row in enumerate(ROWS):
            _close(edited.logits[i][edited.mask[i]], _plain("llama", row, plain), 1e-4)


def test_one_list_per_row_touches_its_row_only() -> None:
    base = _run("llama", ROWS)
    lists: list[list[BaseEdit]] = [
        [Ablate("L1.z")],
        [],
        [Ablate("L1.mlp_out@-1"), Steer("L1.mlp_out@-1", _D, 1.0)],
    ]
    edited = _run("llama", ROWS, lists)
    _close(edited.logits[0][edited.mask[0]], _plain("llama", ROWS[0], [("L1.z", torch.zeros_like)]))
    assert torch.equal(edited.logits[1][edited.mask[1]], base.logits[1][base.mask[1]])
    _close(
        edited.logits[2][edited.mask[2]],
        _plain("llama", ROWS[2], [("L1.mlp_out", lambda v: _on(v, "", -1, lambda _: _D))]),
    )
    assert [r.places for r in edited.receipts] == [7, 1, 1]


def test_before_is_the_value_as_it_was() -> None:
    for site in (
        "L1.z",
        "L1.mlp_out",
        "L1.resid_mid",
        "L1.pattern",
        "L1.v",
        "L1.ln1_scale",
        "L1.resid_pre",
        "L1.head_out",
    ):
        base = _run("llama", ROWS, capture=[site])
        edited = _run(
            "llama",
            ROWS,
            [Edit(site, lambda x: 2 * x), Edit(site, lambda x: x + 1)],
            [site, f"{site}!before"],
        )
        for i in range(3):
            own = edited.mask[i]
            square = site == "L1.pattern"
            was, now, then = (
                t[s][i][:, own][..., own] if square else t[s][i][own]
                for t, s in ((base, site), (edited, site), (edited, f"{site}!before"))
            )
            assert torch.equal(then, was), site
            changed = 2 * was + 1
            torch.testing.assert_close(now, changed.tril() if square else changed)  # later keys stay unseen
    unedited = _run("llama", ROWS, capture=["L1.z!before"])
    assert torch.equal(unedited["L1.z!before@-1"], _run("llama", ROWS, capture=["L1.z"])["L1.z@-1"])


def test_reads_downstream_see_the_edit_and_upstream_do_not() -> None:
    base = _run("llama", ROWS, capture=["L*.resid_mid", "L*.resid_post"])
    edited = _run("llama", ROWS, [Steer("L1.mlp_out@-1", _D, 1.0)], ["L*.resid_mid", "L*.resid_post"])
    for site in ("L0.resid_post@-1", "L1.resid_mid@-1", "L2.resid_post@0"):
        assert torch.equal(base[site], edited[site])
    _close(edited["L1.resid_post@-1"], base["L1.resid_post@-1"] + _D)
    assert not torch.equal(base["L2.resid_mid@-1"], edited["L2.resid_mid@-1"])


# keys, neurons, spans ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_pattern_edit_can_name_its_keys(padding: str) -> None:
    spans = ({"subject": (1, 3)}, {"subject": (0, 1)}, {"subject": (2, 5)})
    tokens = pack(ROWS, padding=padding, spans=spans)  # type: ignore[arg-type]
    edited = _run(
        "llama",
        tokens,
        [Ablate("L1H2.pattern@-1<-subject"), Edit("L1.scores@-2<-0", lambda x: x - 3)],
        ["L1.pattern"],
    )
    assert [r.places for r in edited.receipts] == [3, 3]
    for i, row in enumerate(ROWS):
        low, high = spans[i]["subject"]

        def knock(v: Tensor, low: int = low, high: int = high) -> Tensor:
            out = v.clone()
            out[2, -1, low:high] = 0
            return out

        def lower(v: Tensor) -> Tensor:
            out = v.clone()
            out[:, -2, 0] -= 3
            return out

        expected = _plain("llama", row, [("L1.pattern", knock), ("L1.scores", lower)])
        _close(edited.logits[i][edited.mask[i]], expected)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_a_function_of_a_pattern_sees_own_keys_only(padding: str) -> None:
    """Uniform attention is over the prompt's tokens, never over its pads."""

    def uniform(p: Tensor) -> Tensor:
        return torch.full_like(p, 1 / p.shape[-1])

    edited = _run("llama", pack(ROWS, padding=padding), [Edit("L1.pattern@-1", uniform)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        _close(
            edited.logits[i][edited.mask[i]],
            _plain("llama", row, [("L1.pattern", lambda v: _on(v, "pattern", -1, uniform))]),
        )


def test_patching_named_keys_from_a_trace_and_from_a_tensor() -> None:
    rows, donors = tiny.prompts(2, 6), tiny.prompts(2, 6, seed=1)
    source = _run("llama", donors, capture=["L1.pattern"])
    whole = source["L1.pattern"]
    for site, tensor in (("L1H2.pattern@-1<-1", whole[:, 2, -1, 1]), ("L1H2.pattern@3:5<-0:2", whole[:, 2, 3:5, :2]),
                         ("L1.pattern@-1<-1:3", whole[:, :, -1, 1:3]), ("L1.pattern@3:5<-2", whole[:, :, 3:5, 2])):  # fmt: skip
        a, b = (
            _run("llama", rows, [Patch(site, source)], ["L1.pattern"]),
            _run("llama", rows, [Patch(site, tensor)], ["L1.pattern"]),
        )
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a[site], tensor)
        assert not torch.equal(a.logits, _run("llama", rows).logits)


def test_neurons_and_spans() -> None:
    spans = ({"s": (1, 4)}, {"s": (0, 1)}, {"s": (2, 4)})
    edited = _run(
        "llama",
        pack(ROWS, spans=spans),
        [Ablate("L1N7.neurons@s"), Edit("L1N3,9.mlp_gate@s[-1]", lambda x: x + 2)],
    )
    assert [r.places for r in edited.receipts] == [6, 6]
    for i, row in enumerate(ROWS):
        low, high = spans[i]["s"]

        def off(v: Tensor, low: int = low, high: int = high) -> Tensor:
            out = v.clone()
            out[low:high, 7] = 0
            return out

        def up(v: Tensor, high: int = high) -> Tensor:
            out = v.clone()
            out[high - 1, [3, 9]] += 2
            return out

        _close(
            edited.logits[i][edited.mask[i]], _plain("llama", row, [("L1.neurons", off), ("L1.mlp_gate", up)])
        )


def test_patching_everything_with_itself_changes_nothing() -> None:
    for name in ("llama", "gemma2", "gpt_oss", "bloom", "falcon-new", "olmo2", "deepseek_v3", "gpt_neox"):
        binding = tiny.bound(name, "eager")
        sites = [f"L{i}.{p}" for i in range(3) for p in _points(binding, i)]
        for padding in ("right", "left"):
            tokens = pack(ROWS, padding=padding)  # type: ignore[arg-type]
            source = run(binding, tokens, capture=sites)
            again = run(binding, tokens, edits=[Patch(s, source) for s in sites])
            torch.testing.assert_close(again.logits, source.logits, equal_nan=True, rtol=1e-5, atol=1e-5)
            assert all(r.places == 16 and r.size < 1e-4 for r in again.receipts)


def _points(binding: Any, layer: int) -> list[str]:
    from microtome.points import POINTS

    return [
        p.name
        for p in POINTS.values()
        if p.scope == "layer" and p.name not in binding.facts.layers[layer].lacks
    ]


# a patch by tensor ---------------------------------------------------------------------------------------------------


def test_a_tensor_of_exactly_the_sites_shape() -> None:
    rows = tiny.prompts(2, 6)
    source = _run("llama", tiny.prompts(2, 6, seed=1), capture=["L1.z", "L1.pattern", "final_resid"])
    for site in (
        "L1.z",
        "L1.z@-1",
        "L1.z@1:3",
        "L1H2.z",
        "L1H2.z@-1",
        "final_resid@0",
        "L1.pattern",
        "L1.pattern@-1",
        "L1.pattern@1:3",
        "L1H1.pattern@-1",
    ):
        a, b = _run("llama", rows, [Patch(site, source[site])]), _run("llama", rows, [Patch(site, source)])
        assert torch.equal(a.logits, b.logits), site
    one = _run("llama", rows, [[Patch("L1.z@-1", source["L1.z@-1"][:1])], []])
    assert torch.equal(one.logits[0], _run("llama", rows, [Patch("L1.z@-1", source)]).logits[0])


@pytest.mark.parametrize(
    ("site", "shape"),
    [("L1.z", (2, 6, 4, 7)), ("L1.z", (2, 5, 4, 8)), ("L1.z", (3, 6, 4, 8)), ("L1.z@-1", (2, 1, 4, 8)), ("L1H1.z@-1", (2, 4, 8)), ("L1.z@-1", (2, 8)),
     ("L1.pattern", (2, 4, 6, 5)), ("L1.pattern", (2, 4, 6, 9)), ("L1.pattern", (2, 6, 4, 6)), ("L1.pattern@-1<-0", (2, 4, 6)), ("L1N3.neurons@-1", (2, 1)), ("final_resid", (24,))],
)  # fmt: skip
def test_a_tensor_of_another_shape_is_refused(site: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(EditError, match="shape"):
        _run("llama", tiny.prompts(2, 6), [Patch(site, torch.zeros(shape))])


def test_a_tensor_cannot_cover_ragged_places() -> None:
    with pytest.raises(EditError, match="different lengths"):
        _run("llama", ROWS, [Patch("L1.z", torch.zeros(3, 7, 4, 8))])


# donors that do not fit ----------------------------------------------------------------------------------------------


def test_donors_that_do_not_fit_are_refused() -> None:
    donors = _run("llama", ROWS[:2], capture=["L1.z"], attention=None)
    with pytest.raises(EditError, match="2 prompts, the run 3"):
        _run("llama", ROWS, [Patch("L1.z@-1", donors)], attention=None)
    shorter = _run("llama", [r[:-1] for r in ROWS], capture=["L1.z"], attention=None)
    with pytest.raises(EditError, match="do not align"):
        _run("llama", ROWS, [Patch("L1.z", shorter)], attention=None)
    _run("llama", ROWS, [Patch("L1.z@-1", shorter)], attention=None)
    with pytest.raises(SiteError, match="not captured"):
        _run("llama", ROWS, [Patch("L2.z@-1", shorter)], attention=None)
    with pytest.raises(MicrotomeError):
        _run("gpt2", ROWS, [Patch("L1.z@-1", shorter)], attention=None)
    with pytest.raises(EditError, match="shape"):
        _run(
            "llama-mqa",
            ROWS,
            [Patch("L1.v@-1", _run("llama", ROWS, capture=["L1.v"], attention=None))],
            attention=None,
        )


def test_donors_of_another_kernel_or_dtype_are_refused() -> None:
    eager = _run("llama", ROWS, capture=["L1.z", "L1.pattern"], attention=None)
    assert eager.numerics["attention"] == "eager"
    with pytest.raises(EditError, match="attention eager, this run with sdpa"):
        _run("llama", ROWS, [Patch("L1.z", eager)], attention=None)
    run(tiny.bound("llama"), pack(ROWS), edits=[Patch("L1.z", eager)], attention="eager")
    half = run(tiny.bound("llama", None, torch.bfloat16), pack(ROWS), capture=["L1.z"])
    with pytest.raises(EditError, match="dtype bfloat16, this run with float32"):
        run(tiny.bound("llama"), pack(ROWS), edits=[Patch("L1.z", half)])
    with pytest.raises(EditError, match="bfloat16"):
        run(tiny.bound("llama"), pack(ROWS), edits=[Patch("L1.z@-1", half["L1.z@-1"])])


# refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Steer("L1.zz", _D, 1.0), SiteError, "did you mean"),
        (lambda: Ablate("L1.z!before"), EditError, "before"),
        (lambda: Ablate("L1.z", "median"), EditError, "median"),  # type: ignore[arg-type]
        (lambda: Ablate("L1.z", "mean"), EditError, "over"),
        (lambda: Ablate("L1.z", "resample", over=[[1]]), EditError, "seed"),
        (lambda: Steer("L1.z", torch.zeros(8), 1.0), EditError, "zero"),
        (lambda: Steer("L1.z", torch.full((8,), float("nan")), 1.0), EditError, "finite"),
        (lambda: Steer("L1.z", _D, 1.0, unit="std"), EditError, "std"),  # type: ignore[arg-type]
        (lambda: Remove("L1.z", _SUB), EditError, "one direction"),
        (lambda: Keep("L1.z", _D), EditError, "rows"),
    ],
)
def test_what_is_no_edit_is_refused_when_it_is_made(
    make: Callable[[], BaseEdit], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("edits", "match"),
    [
        ([Steer("L1.z", _D, 1.0)], "direction of shape"),
        ([Edit("L1.z", lambda x: x[..., 0])], "returned"),
        ([Edit("L1.z", lambda x: None)], "returned"),
        ([[Ablate("L1.z")]], "1 lists of edits for 3 prompts"),
        ([[Ablate("L1.z")], Ablate("L1.z"), []], "lists"),
        (["L1.z"], "is not an edit"),
        ([[], ["L1.z"], []], "is not an edit"),
        ([Patch("L*.z", torch.zeros(3, 7, 4, 8))], "names 3 tensors"),
    ],
)
def test_what_cannot_be_applied_is_refused(edits: Any, match: str) -> None:
    with pytest.raises(EditError, match=match):
        _run("llama", ROWS, edits)


@pytest.mark.parametrize(
    ("site", "match"),
    [("L1.z@9", "outside"), ("L1.z@-5", "outside"), ("L1.z@2:9", "outside"), ("L1.z@4:", "empty"), ("L1.z@subject", 'no span "subject"'), ("L9.z", "no layer 9"),
     ("L1H4.z", "no head 4"), ("L1H0.k", "say L1KV0.k"), ("L1KV0.z", "per query head"), ("L1N40.neurons", "no neuron 40"), ("L1.q_scale", "not normed"), ("pos_embed", "no learned position")],
)  # fmt: skip
def test_sites_that_these_prompts_do_not_have_are_refused_before_anything_runs(site: str, match: str) -> None:
    with pytest.raises(SiteError, match=match):
        _run("llama", ROWS, [Ablate(site)])


def test_an_edit_that_never_fires_is_an_error() -> None:
    with pytest.raises(EditError, match="never fired"):
        _run("llama", ROWS, [Ablate("L2.z")], capture=["L0.z"], logits=None)


def test_an_edit_that_makes_nan_is_named() -> None:
    with pytest.raises(ModelError, match=r"NaN.*Edit\(L1.z\)"):
        _run("llama", ROWS, [Edit("L1.z", lambda x: x * float("nan"))])


def test_hooks_and_modes_are_gone_after_an_exception_in_an_edit() -> None:
    def explode(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    for name in ("llama", "gptj", "bloom", "gpt_neo", "falcon"):
        before = run(tiny.bound(name), pack(ROWS)).logits
        for point in ("pattern", "z", "k", "resid_post", "ln1_scale", "head_out"):
            with pytest.raises(ZeroDivisionError):
                run(
                    tiny.bound(name),
                    pack(ROWS),
                    edits=[Edit(f"L1.{point}", explode)],
                    capture=["L*.pattern", "L*.v"],
                )
        assert not torch.overrides._get_current_function_mode_stack()
        after = run(tiny.bound(name), pack(ROWS)).logits
        assert torch.equal(before.nan_to_num(), after.nan_to_num())


# scope ---------------------------------------------------------------------------------------------------------------


def test_scoped_edits_come_first_and_are_taken_back() -> None:
    model = tiny.loaded("llama")
    other = tiny.loaded("gpt2")
    double, shift = Edit("L1.mlp_out", lambda x: 2 * x), Steer("L1.mlp_out", _D, 1.0)
    plain, elsewhere = model.run(ROWS).logits, other.run(ROWS).logits
    with model.editing(double) as scoped:
        assert scoped is model
        inside = model.run(ROWS, edits=[shift])
        assert torch.equal(inside.logits[0], run(model.binding, pack(ROWS), edits=[double, shift]).logits[0])
        rows = model.run(ROWS, edits=[[], [shift], []])
        assert torch.equal(rows.logits[0], run(model.binding, pack(ROWS), edits=[double]).logits[0])
        assert len(rows.receipts) == 4
        assert torch.equal(other.run(ROWS).logits[0], elsewhere[0])  # another model is not touched
        with pytest.raises(ZeroDivisionError), model.editing(shift):
            assert torch.equal(model.run(ROWS).logits[0], inside.logits[0])
            raise ZeroDivisionError
        assert torch.equal(model.run(ROWS).logits[0], rows.logits[0])
    assert torch.equal(model.run(ROWS).logits[0], plain[0])


def test_receipts_say_how_large_the_change_was() -> None:
    base = _run("llama", ROWS, capture=["L1.z"])
    edited = _run("llama", ROWS, [Ablate("L1H2.z"), Steer("L0.resid_post@-1", _D, 2.0)])
    sizes = [r.size for r in edited.receipts]
    own = torch.cat([base["L1H2.z"][i][base.mask[i]] for i in range(3)])
    first = _run("llama", ROWS, [Ablate("L1H2.z")]).receipts[0]
    assert first.size == pytest.approx(float(own.norm()), rel=1e-4)
    assert sizes[1] == pytest.approx(2 * float(_D.norm()) * 3**0.5, rel=1e-4)
    assert [r.places for r in edited.receipts] == [16, 3]


def test_edits_do_not_touch_their_source() -> None:
    source = _run("llama", DONORS, capture=["L1.z", "L1.pattern"])
    kept = {s: source[s].clone() for s in ("L1.z", "L1.pattern")}
    _run(
        "llama", ROWS, [Patch("L1.z", source), Edit("L1.z", lambda x: x.mul_(0)), Patch("L1.pattern", source)]
    )
    for site, value in kept.items():
        assert torch.equal(source[site].nan_to_num(), value.nan_to_num())


def test_nothing_is_left_of_heads_that_were_taken_away() -> None:
    """A rounding of 1e-8 in place of an exact zero would be blown up by the post-norm that follows."""
    for name in ("gemma2", "olmo2"):
        gone = _run(name, ROWS, [Ablate("L1.head_out")], ["L1.attn_raw", "L1.attn_out"])
        own = gone.mask
        assert not gone["L1.attn_raw"][own].any() and not gone["L1.attn_out"][own].any()
