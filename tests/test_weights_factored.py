"""Factored products equal dense ones, whatever is asked of them; what does not multiply is refused."""

from __future__ import annotations

import pytest
import torch

import tiny
from microtome.errors import ModelError
from microtome.methods.weights import HeadCircuits
from microtome.model.factored import FactoredMatrix


def pair(m=13, k=4, n=11, lead=(), seed=0):
    gen = torch.Generator().manual_seed(seed)
    made = (torch.randn(*lead, a, b, generator=gen, dtype=torch.float64) for a, b in ((m, k), (k, n)))
    f = FactoredMatrix(*made)
    return f, f.left @ f.right


SHAPES = [(13, 4, 11), (11, 4, 13), (5, 9, 6), (6, 6, 6), (1, 3, 7), (7, 1, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_every_answer_is_that_of_the_dense_product(shape, lead) -> None:
    f, dense = pair(*shape, lead=lead)
    assert f.shape == dense.shape
    assert torch.allclose(f.dense(), dense)
    assert torch.allclose(f.norm, torch.linalg.matrix_norm(dense))
    rank = min(shape)
    assert torch.allclose(f.singular_values[..., :rank], torch.linalg.svdvals(dense)[..., :rank])
    u, s, v = f.svd
    assert torch.allclose(u * s[..., None, :] @ v.mT, dense)
    assert torch.allclose(f.T.dense(), dense.mT)
    assert torch.allclose(f.rows([0, -1]), dense[..., [0, -1], :]) and torch.allclose(
        f.rows(0), dense[..., 0, :]
    )
    assert torch.allclose(f.columns([0, -1]), dense[..., [0, -1]]) and torch.allclose(
        f.columns(0), dense[..., 0]
    )
    assert torch.allclose(f.diagonal, dense.diagonal(dim1=-2, dim2=-1))
    other = torch.randn(shape[2], 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose((f @ other).dense(), dense @ other)
    left = torch.randn(5, shape[0], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose((left @ f).dense(), left @ dense)
    assert torch.allclose((f @ f.T).dense(), dense @ dense.mT)


@pytest.mark.parametrize("k", [2, 8, 12])
def test_eigenvalues_are_those_of_the_dense_product(k) -> None:
    f, dense = pair(8, k, 8)
    want = torch.linalg.eigvals(dense)
    want = want[want.abs().argsort(descending=True)][: min(k, 8)]
    got = f.eigenvalues
    assert torch.allclose(got.abs(), want.abs())
    assert torch.allclose(got.sum().real, dense.trace()) and torch.allclose(f.trace, dense.trace())
    assert torch.allclose(f.eigenvalues.abs().sum(), torch.linalg.eigvals(dense).abs().sum())


@pytest.mark.parametrize("chunk", [1, 30, 1 << 20])
def test_top_entries_are_those_of_the_dense_product(chunk) -> None:
    f, dense = pair(13, 4, 11)
    for kwargs, key in (({}, dense), ({"largest": False}, -dense), ({"absolute": True}, dense.abs())):
        top = f.top(7, chunk=chunk, **kwargs)
        want = key.reshape(-1).topk(7)
        assert torch.allclose(top.values, dense.reshape(-1)[want.indices])
        assert torch.equal(top.rows * 11 + top.columns, want.indices)
    assert torch.allclose(f.entries(top.rows, top.columns), top.values)


def test_half_precision_factors_have_double_statistics() -> None:
    f, _ = pair(64, 8, 64)
    half = FactoredMatrix(f.left.bfloat16(), f.right.bfloat16())
    assert half.norm.dtype == half.singular_values.dtype == torch.float64
    assert torch.allclose(half.norm, torch.linalg.matrix_norm(half.left.double() @ half.right.double()))


def test_what_does_not_multiply_is_refused() -> None:
    a, b = torch.ones(4, 3), torch.ones(3, 5)
    for left, right in (
        (a, b.T),
        (a[0], b),
        (a.long(), b),
        (torch.ones(2, 4, 3), torch.ones(3, 3, 5)),
        ("a", b),
    ):
        with pytest.raises(ModelError):
            FactoredMatrix(left, right)
    f = FactoredMatrix(a, b)
    for ask in (lambda: f.eigenvalues, lambda: f.trace, lambda: f.inner, lambda: f.top(0), lambda: f.top(21)):
        with pytest.raises(ModelError):
            ask()
    wide = FactoredMatrix(torch.zeros(9000, 1), torch.zeros(1, 9000))
    with pytest.raises(ModelError, match="64 M"):
        wide.dense()
    with pytest.raises(ModelError, match="batch"):
        pair(lead=(2,))[0].top(1)


# circuits of heads


def test_folding_is_named_and_leaves_the_model_alone() -> None:
    model = tiny.loaded("gpt2")
    before = model.hash
    folded, raw = HeadCircuits(model), HeadCircuits(model, fold=())
    assert set(folded.transforms) == {"ln1", "post", "final_norm"} and raw.transforms == {}
    assert not torch.allclose(folded.W_Q(0), raw.W_Q(0))
    assert torch.allclose(raw.W_Q(1), model.weights.W_Q(1).double())
    assert model.hash == before
    with pytest.raises(ModelError, match="transform"):
        HeadCircuits(model, fold=("ln2",))


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "phi", "olmo2", "mistral", "gpt_oss", "opt"]
)
def test_attention_of_the_first_layer_follows_from_weights(name) -> None:
    model = tiny.loaded(name)
    ids = torch.tensor(tiny.prompts(2, 10))
    got = HeadCircuits(model).bare_pattern(0, ids)
    want = model.run(ids.tolist(), "L0.pattern", logits=None)["L0.pattern"]
    assert (got - want.double()).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "phi3", "cohere"])
def test_a_query_head_reads_its_own_group_and_turns_by_the_offset(name) -> None:
    """x_q (W_Q R_d W_K^T) x_k is the model's own score at that distance."""
    model = tiny.loaded(name)
    c = HeadCircuits(model, fold=())
    layer, (query, key) = 1, (7, 4)
    trace = model.run(tiny.prompts(1, 10), [f"L{layer}.{p}" for p in ("ln1_out", "scores")], logits=None)
    read, scores = trace[f"L{layer}.ln1_out"][0].double(), trace[f"L{layer}.scores"][0].double()
    bias_free = model.weights.b_Q(layer) is None and model.weights.b_K(layer) is None
    for head in range(model.facts.n_heads):
        got = read[query] @ c.qk(layer, head, query - key).dense() @ read[key]
        if bias_free:
            assert abs(float(got - scores[head, query, key])) < 1e-4
        q = c.rotation(layer).by(torch.tensor([query - key]))[0]
        full_q = read[query] @ c.W_Q(layer)[head] + (
            0 if bias_free else model.weights.b_Q(layer)[head].detach().double()
        )
        full_k = read[key] @ c.W_K(layer)[head] + (
            0 if bias_free else model.weights.b_K(layer)[c.group(layer, head)].detach().double()
        )
        assert abs(float(full_q @ q @ full_k * c.scaling(layer) - scores[head, query, key])) < 1e-4


def test_full_circuits_equal_dense_ones() -> None:
    model = tiny.loaded("llama")
    c = HeadCircuits(model)
    w = model.weights
    gain = (w.norm_gain(2).double()[:, None], w.norm_gain(None).double()[:, None])
    dense = (
        w.W_E.double()
        @ (gain[0] * w.W_V(2)[c.group(2, 3)].double())
        @ w.W_O(2)[3].double()
        @ (gain[1] * w.W_U.double())
    )
    assert torch.allclose(c.full_ov(2, 3).dense(), dense)
    qk = (
        w.W_E.double()
        @ (gain[0] * w.W_Q(2)[3].double())
        @ (gain[0] * w.W_K(2)[c.group(2, 3)].double()).T
        @ w.W_E.double().T
    )
    assert torch.allclose(c.full_qk(2, 3).dense(), qk * c.scaling(2))
    learned = HeadCircuits(tiny.loaded("gpt2"))
    assert learned.positions_qk(0, 1).shape == (64, 64)


@pytest.mark.parametrize(
    ("name", "why"), [("bloom", "added to the scores"), ("gptj", "rotary"), ("olmo-clip", "clip")]
)
def test_positions_that_no_weights_tell_of_are_refused_and_the_rest_works(name, why) -> None:
    c = HeadCircuits(tiny.loaded(name))
    assert c.ov(0, 0).norm > 0
    with pytest.raises(ModelError, match=why):
        c.qk(0, 0, 1)


def test_heads_that_are_not_there_are_refused() -> None:
    c = HeadCircuits(tiny.loaded("llama"))
    for layer, head in ((0, 99), (-1, 0), (9, 0)):
        with pytest.raises(ModelError, match="no head"):
            c.ov(layer, head)
    with pytest.raises(ModelError, match="no heads"):
        HeadCircuits(tiny.loaded("deepseek_v3"))
