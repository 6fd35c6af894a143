"""Tensors and donors that do not fit, and everything else that an edit refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from edit_tools import (
    DIRECTION,
    ROWS,
    SUBSPACE,
    run_on,
)
from microtome.errors import EditError, MicrotomeError, ModelError, SiteError
from microtome.model.tokens import pack
from microtome.trace.edits import Ablate, BaseEdit, Edit, Keep, Patch, Remove, Steer
from microtome.trace.run import run


def test_a_tensor_of_exactly_the_sites_shape() -> None:
    rows = tiny.prompts(2, 6)
    source = run_on("llama", tiny.prompts(2, 6, seed=1), capture=["L1.z", "L1.pattern", "final_resid"])
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
        a, b = (
            run_on("llama", rows, [Patch(site, source[site])]),
            run_on("llama", rows, [Patch(site, source)]),
        )
        assert torch.equal(a.logits, b.logits), site
    one = run_on("llama", rows, [[Patch("L1.z@-1", source["L1.z@-1"][:1])], []])
    assert torch.equal(one.logits[0], run_on("llama", rows, [Patch("L1.z@-1", source)]).logits[0])


@pytest.mark.parametrize(
    ("site", "shape"),
    [("L1.z", (2, 6, 4, 7)), ("L1.z", (2, 5, 4, 8)), ("L1.z", (3, 6, 4, 8)), ("L1.z@-1", (2, 1, 4, 8)), ("L1H1.z@-1", (2, 4, 8)), ("L1.z@-1", (2, 8)),
     ("L1.pattern", (2, 4, 6, 5)), ("L1.pattern", (2, 4, 6, 9)), ("L1.pattern", (2, 6, 4, 6)), ("L1.pattern@-1<-0", (2, 4, 6)), ("L1N3.neurons@-1", (2, 1)), ("final_resid", (24,))],
)  # fmt: skip
def test_a_tensor_of_another_shape_is_refused(site: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(EditError, match="shape"):
        run_on("llama", tiny.prompts(2, 6), [Patch(site, torch.zeros(shape))])


def test_a_tensor_cannot_cover_ragged_places() -> None:
    with pytest.raises(EditError, match="different lengths"):
        run_on("llama", ROWS, [Patch("L1.z", torch.zeros(3, 7, 4, 8))])


# donors that do not fit ----------------------------------------------------------------------------------------------


def test_donors_that_do_not_fit_are_refused() -> None:
    donors = run_on("llama", ROWS[:2], capture=["L1.z"], attention=None)
    with pytest.raises(EditError, match="2 prompts, the run 3"):
        run_on("llama", ROWS, [Patch("L1.z@-1", donors)], attention=None)
    shorter = run_on("llama", [r[:-1] for r in ROWS], capture=["L1.z"], attention=None)
    with pytest.raises(EditError, match="do not align"):
        run_on("llama", ROWS, [Patch("L1.z", shorter)], attention=None)
    run_on("llama", ROWS, [Patch("L1.z@-1", shorter)], attention=None)
    with pytest.raises(SiteError, match="not captured"):
        run_on("llama", ROWS, [Patch("L2.z@-1", shorter)], attention=None)
    with pytest.raises(MicrotomeError):
        run_on("gpt2", ROWS, [Patch("L1.z@-1", shorter)], attention=None)
    with pytest.raises(EditError, match="shape"):
        run_on(
            "llama-mqa",
            ROWS,
            [Patch("L1.v@-1", run_on("llama", ROWS, capture=["L1.v"], attention=None))],
            attention=None,
        )


def test_donors_of_another_kernel_or_dtype_are_refused() -> None:
    eager = run_on("llama", ROWS, capture=["L1.z", "L1.pattern"], attention=None)
    assert eager.numerics["attention"] == "eager"
    with pytest.raises(EditError, match="attention eager, this run with sdpa"):
        run_on("llama", ROWS, [Patch("L1.z", eager)], attention=None)
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
        (lambda: Steer("L1.zz", DIRECTION, 1.0), SiteError, "did you mean"),
        (lambda: Ablate("L1.z!before"), EditError, "before"),
        (lambda: Ablate("L1.z", "median"), EditError, "median"),  # type: ignore[arg-type]
        (lambda: Ablate("L1.z", "mean"), EditError, "over"),
        (lambda: Ablate("L1.z", "resample", over=[[1]]), EditError, "seed"),
        (lambda: Steer("L1.z", torch.zeros(8), 1.0), EditError, "zero"),
        (lambda: Steer("L1.z", torch.full((8,), float("nan")), 1.0), EditError, "finite"),
        (lambda: Steer("L1.z", DIRECTION, 1.0, unit="std"), EditError, "std"),  # type: ignore[arg-type]
        (lambda: Remove("L1.z", SUBSPACE), EditError, "one direction"),
        (lambda: Keep("L1.z", DIRECTION), EditError, "rows"),
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
        ([Steer("L1.z", DIRECTION, 1.0)], "direction of shape"),
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
        run_on("llama", ROWS, edits)


@pytest.mark.parametrize(
    ("site", "match"),
    [("L1.z@9", "outside"), ("L1.z@-5", "outside"), ("L1.z@2:9", "outside"), ("L1.z@4:", "empty"), ("L1.z@subject", 'no span "subject"'), ("L9.z", "no layer 9"),
     ("L1H4.z", "no head 4"), ("L1H0.k", "say L1KV0.k"), ("L1KV0.z", "per query head"), ("L1N40.neurons", "no neuron 40"), ("L1.q_scale", "not normed"), ("pos_embed", "no learned position")],
)  # fmt: skip
def test_sites_that_these_prompts_do_not_have_are_refused_before_anything_runs(site: str, match: str) -> None:
    with pytest.raises(SiteError, match=match):
        run_on("llama", ROWS, [Ablate(site)])


def test_an_edit_that_never_fires_is_an_error() -> None:
    with pytest.raises(EditError, match="never fired"):
        run_on("llama", ROWS, [Ablate("L2.z")], capture=["L0.z"], logits=None)


def test_an_edit_that_makes_nan_is_named() -> None:
    with pytest.raises(ModelError, match=r"NaN.*Edit\(L1.z\)"):
        run_on("llama", ROWS, [Edit("L1.z", lambda x: x * float("nan"))])


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
