"""Edits against the plain loop: everywhere, in order, per row, scoped, and on a prompt's own positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracle
import tiny
from edit_tools import (
    BOTH,
    DIRECTION,
    DONORS,
    FAMILIES,
    ROWS,
    close_to,
    noise_of,
    on_point,
    plain_run,
    run_on,
)
from microtome.errors import EditError
from microtome.model.tokens import pack
from microtome.trace.edits import Ablate, BaseEdit, Edit, Patch, Steer
from microtome.trace.run import run


@pytest.mark.parametrize(("name", "point", "padding"), BOTH)
def test_an_edit_at_any_point_equals_the_plain_loop(name: str, point: str, padding: str) -> None:
    site = f"L1.{point}"
    fn = lambda x: x * 0.5 if point != "scores" else x.clamp_min(-50) * 0.5  # noqa: E731
    edited = run_on(name, pack(ROWS, padding=padding), [Edit(f"{site}@-2", fn)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        expected = plain_run(name, row, [(site, lambda v: on_point(v, point, -2, fn))])
        close_to(edited.logits[i][edited.mask[i]], expected)
    (receipt,) = edited.receipts
    assert receipt.places == 3 and receipt.times == 1 and receipt.size > 0


@pytest.mark.parametrize(("name", "point", "padding"), [s for s in BOTH if s[1] != "scores"])
def test_a_patch_from_a_trace_equals_the_plain_loop(name: str, point: str, padding: str) -> None:
    site = f"L1.{point}"
    donors = [row[:1] + other[1:] for row, other in zip(ROWS, DONORS, strict=True)]
    source = run_on(name, donors, capture=[site])  # padded on the right, whatever the run is
    edited = run_on(name, pack(ROWS, padding=padding), [Patch(f"{site}@1:3", source)])  # type: ignore[arg-type]
    for i, row in enumerate(ROWS):
        donor = oracle.run(tiny.model(name, "eager"), donors[i], [site])[1][site]
        place = (slice(None), slice(1, 3)) if point == "pattern" else slice(1, 3)
        expected = plain_run(
            name, row, [(site, lambda v, put=donor[place]: on_point(v, point, slice(1, 3), lambda _: put))]
        )
        close_to(edited.logits[i][edited.mask[i]], expected)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("point", ["pattern", "scores"])
def test_a_patch_of_a_square_point_follows_own_keys_not_columns(point: str, padding: str) -> None:
    """Source and run padded on opposite sides, and to other widths: keys are matched by own position."""
    source = run_on("llama", pack([*DONORS, tiny.prompts(1, 9)[0]], padding="left"), capture=[f"L1.{point}"])
    with pytest.raises(EditError, match="4 prompts"):
        run_on("llama", ROWS, [Patch(f"L1.{point}", source)])
    source = run_on("llama", pack(DONORS, padding="left"), capture=[f"L1.{point}"])
    for rows, donors in ((ROWS, source), (ROWS[1:2], None)):
        donors = donors or run_on("llama", DONORS[1:2], capture=[f"L1.{point}"])
        edited = run_on("llama", pack(rows, padding=padding), [Patch(f"L1.{point}", donors)])  # type: ignore[arg-type]
        for i, row in enumerate(rows):
            donor = run_on("llama", [DONORS[ROWS.index(row)]], capture=[f"L1.{point}"])[f"L1.{point}"][0]
            expected = plain_run("llama", row, [(f"L1.{point}", lambda v: donor)])  # noqa: B023
            close_to(edited.logits[i][edited.mask[i]], expected)


def test_a_patch_of_a_square_point_at_the_end_needs_the_same_keys() -> None:
    source = run_on("llama", [DONORS[1]], capture=["L1.pattern"])
    with pytest.raises(EditError, match="shape"):
        run_on("llama", [ROWS[0]], [Patch("L1.pattern@-1", source)])
    edited = run_on("llama", [ROWS[0]], [Patch("L1.pattern@2", source)], capture=["L1.pattern"])
    close_to(edited["L1.pattern@2"][0, :, :4], source["L1.pattern@2"][0])
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

        edited = run_on(name, ROWS, [Ablate(f"L1{unit}{head}.{point}")])
        for i, row in enumerate(ROWS):
            close_to(edited.logits[i][edited.mask[i]], plain_run(name, row, [(site, fn)]))


@pytest.mark.parametrize("name", FAMILIES)
def test_head_out_moves_the_stream_by_exactly_the_head(name: str) -> None:
    width = tiny.bound(name).facts.d_model
    delta = noise_of(width)
    edited = run_on(name, ROWS, [Steer("L1H2.head_out@-1", delta, 1.5)])
    for i, row in enumerate(ROWS):
        expected = plain_run(
            name, row, [("L1.attn_raw", lambda v: on_point(v, "attn_raw", -1, lambda x: x + 1.5 * delta))]
        )
        close_to(edited.logits[i][edited.mask[i]], expected)


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
    close_to(halved[out + "@2"] - bias, (base[out + "@2"] - bias) / 2)
    close_to(halved[scale + "@2"], 2 * base[scale + "@2"])
    assert torch.equal(halved[out + "@3"], base[out + "@3"])
    by_hand = run(binding, pack(rows), edits=[Edit(f"{out}@2", lambda x: (x - bias) / 2 + bias)])
    close_to(halved.logits, by_hand.logits)


def test_a_norm_over_all_heads_can_be_frozen_for_one() -> None:
    base = run_on("olmo2", ROWS, capture=["L1.q_scale", "L1.q_pre"], attention=None)
    assert base["L1.q_scale"].shape == (3, 7, 4, 1)
    edited = run_on("olmo2", ROWS, [Edit("L1H2.q_scale", lambda x: 2 * x)], ["L1.q_pre"], attention=None)
    own = base.mask
    close_to(edited["L1H2.q_pre"][own], base["L1H2.q_pre"][own] / 2)
    assert torch.equal(edited["L1H1.q_pre"][own], base["L1H1.q_pre"][own])


# order, rows, before -------------------------------------------------------------------------------------------------


def test_edits_apply_in_list_order() -> None:
    double, shift = Edit("L1.mlp_out", lambda x: 2 * x), Steer("L1.mlp_out", DIRECTION, 1.0)
    for order, fn in (
        ([double, shift], lambda x: 2 * x + DIRECTION),
        ([shift, double], lambda x: 2 * (x + DIRECTION)),
    ):
        edited = run_on("llama", ROWS, order)
        for i, row in enumerate(ROWS):
            close_to(edited.logits[i][edited.mask[i]], plain_run("llama", row, [("L1.mlp_out", fn)]), 1e-4)
        assert [r.edit for r in edited.receipts] == [str(e) for e in order]


def test_edits_at_several_points_compose_in_model_order() -> None:
    edits: list[BaseEdit] = [
        Steer("L2.resid_pre@-1", DIRECTION, 1.0),
        Ablate("L1H1.z"),
        Edit("L0.resid_mid", lambda x: 0.5 * x),
    ]
    plain = [("L2.resid_pre", lambda v: on_point(v, "", -1, lambda x: x + DIRECTION)), ("L1.z", lambda v: torch.where(torch.arange(4)[:, None] == 1, 0, v)),
             ("L0.resid_mid", lambda v: 0.5 * v)]  # fmt: skip
    for order in (edits, edits[::-1]):
        edited = run_on("llama", ROWS, order)
        for i, row in enumerate(ROWS):
            close_to(edited.logits[i][edited.mask[i]], plain_run("llama", row, plain), 1e-4)


def test_one_list_per_row_touches_its_row_only() -> None:
    base = run_on("llama", ROWS)
    lists: list[list[BaseEdit]] = [
        [Ablate("L1.z")],
        [],
        [Ablate("L1.mlp_out@-1"), Steer("L1.mlp_out@-1", DIRECTION, 1.0)],
    ]
    edited = run_on("llama", ROWS, lists)
    close_to(edited.logits[0][edited.mask[0]], plain_run("llama", ROWS[0], [("L1.z", torch.zeros_like)]))
    assert torch.equal(edited.logits[1][edited.mask[1]], base.logits[1][base.mask[1]])
    close_to(
        edited.logits[2][edited.mask[2]],
        plain_run("llama", ROWS[2], [("L1.mlp_out", lambda v: on_point(v, "", -1, lambda _: DIRECTION))]),
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
        base = run_on("llama", ROWS, capture=[site])
        edited = run_on(
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
    unedited = run_on("llama", ROWS, capture=["L1.z!before"])
    assert torch.equal(unedited["L1.z!before@-1"], run_on("llama", ROWS, capture=["L1.z"])["L1.z@-1"])


def test_reads_downstream_see_the_edit_and_upstream_do_not() -> None:
    base = run_on("llama", ROWS, capture=["L*.resid_mid", "L*.resid_post"])
    edited = run_on(
        "llama", ROWS, [Steer("L1.mlp_out@-1", DIRECTION, 1.0)], ["L*.resid_mid", "L*.resid_post"]
    )
    for site in ("L0.resid_post@-1", "L1.resid_mid@-1", "L2.resid_post@0"):
        assert torch.equal(base[site], edited[site])
    close_to(edited["L1.resid_post@-1"], base["L1.resid_post@-1"] + DIRECTION)
    assert not torch.equal(base["L2.resid_mid@-1"], edited["L2.resid_mid@-1"])


# scope ---------------------------------------------------------------------------------------------------------------


def test_scoped_edits_come_first_and_are_taken_back() -> None:
    model = tiny.loaded("llama")
    other = tiny.loaded("gpt2")
    double, shift = Edit("L1.mlp_out", lambda x: 2 * x), Steer("L1.mlp_out", DIRECTION, 1.0)
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
    base = run_on("llama", ROWS, capture=["L1.z"])
    edited = run_on("llama", ROWS, [Ablate("L1H2.z"), Steer("L0.resid_post@-1", DIRECTION, 2.0)])
    sizes = [r.size for r in edited.receipts]
    own = torch.cat([base["L1H2.z"][i][base.mask[i]] for i in range(3)])
    first = run_on("llama", ROWS, [Ablate("L1H2.z")]).receipts[0]
    assert first.size == pytest.approx(float(own.norm()), rel=1e-4)
    assert sizes[1] == pytest.approx(2 * float(DIRECTION.norm()) * 3**0.5, rel=1e-4)
    assert [r.places for r in edited.receipts] == [16, 3]


def test_edits_do_not_touch_their_source() -> None:
    source = run_on("llama", DONORS, capture=["L1.z", "L1.pattern"])
    kept = {s: source[s].clone() for s in ("L1.z", "L1.pattern")}
    run_on(
        "llama", ROWS, [Patch("L1.z", source), Edit("L1.z", lambda x: x.mul_(0)), Patch("L1.pattern", source)]
    )
    for site, value in kept.items():
        assert torch.equal(source[site].nan_to_num(), value.nan_to_num())


def test_nothing_is_left_of_heads_that_were_taken_away() -> None:
    """A rounding of 1e-8 in place of an exact zero would be blown up by the post-norm that follows."""
    for name in ("gemma2", "olmo2"):
        gone = run_on(name, ROWS, [Ablate("L1.head_out")], ["L1.attn_raw", "L1.attn_out"])
        own = gone.mask
        assert not gone["L1.attn_raw"][own].any() and not gone["L1.attn_out"][own].any()
