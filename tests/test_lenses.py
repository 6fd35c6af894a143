"""Lenses: fitted ones against what is known, saved and refused, and each control with a fault that it catches."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import microtome as mt
import tiny
from microtome import methods
from microtome.errors import ModelError, ResourceError, TaskError
from microtome.methods.lensing import comparing, fitting, reading
from microtome.methods.lensing.translators import Translators, identity
from microtome.methods.texts import Blocks, blocks_of

FEW = methods.FitOptions(context=12, blocks=16, skip=2, steps=40, tokens=64, columns=0, rate=1e-2)


def texts(n=32, length=12, seed=0):
    return tiny.prompts(n, length, seed)


@pytest.fixture(scope="module")
def model():
    return tiny.loaded("llama")


@pytest.fixture(scope="module")
def tuned(model):
    return methods.tuned_lens(model, texts(), options=FEW)


def mean_jacobian(model, blocks, layers, options, seed):
    lens = fitting.fit_jacobian(model, blocks, replace(options, layers=layers), seed)
    return torch.stack([lens.matrices[k].T.double() for k in layers])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_a_jacobian_is_that_of_the_model(name) -> None:
    """Against central differences of whole runs in which the stream is moved at one position after the other."""
    model = tiny.loaded(name, dtype=torch.float64)
    blocks = Blocks(tuple(map(tuple, texts(3))), tuple("abc"))
    o = replace(FEW, skip=3)
    found = mean_jacobian(model, blocks, [0, 2], o, 0)
    u = torch.randn(model.facts.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(layer, pos, size):
        edit = mt.Steer(f"L{layer}.resid_pre@{pos}", u, size)
        return model.run([list(b) for b in blocks.ids], "final_resid", edits=[edit], logits=None)[
            "final_resid"
        ][:, 3:11].sum((0, 1))

    for k, layer in enumerate((0, 2)):
        want = sum((end(layer, p, 3e-3) - end(layer, p, -3e-3)) / 6e-3 for p in range(3, 11)) / (3 * 8)
        assert (found[k] @ u - want).norm() < 2e-3 * want.norm()  # norms of some families are float32 inside


def test_random_probes_are_unbiased_and_all_of_them_are_exact(model) -> None:
    blocks = Blocks(tuple(map(tuple, texts(2))), tuple("ab"))
    whole = mean_jacobian(model, blocks, [1], FEW, 0)
    every = mean_jacobian(model, blocks, [1], replace(FEW, probes=model.facts.d_model), 0)
    assert torch.allclose(whole, every)
    some = torch.stack([mean_jacobian(model, blocks, [1], replace(FEW, probes=6), k) for k in range(60)])
    error = (some.mean(0) - whole).norm() / (some - whole).flatten(1).norm(dim=1).mean()
    assert error < 2 / 60**0.5


def test_the_end_and_its_own_jacobian(model) -> None:
    """Nothing lies behind the last layer of a model whose parts write nothing: every map is the identity."""
    import planted

    still = planted.nothing()
    lens = methods.jacobian_lens(still, texts(4), options=replace(FEW, blocks=4))
    assert all(torch.allclose(m, torch.eye(len(m)), atol=1e-6) for m in lens.matrices.values())
    assert max(lens.made["split_half"].values()) < 1e-6
    other = methods.jacobian_lens(model, texts(4), options=replace(FEW, blocks=4))
    assert max(other.made["split_half"].values()) > 0.01


def test_a_map_that_is_there_is_found() -> None:
    """The least-squares start finds a planted affine map; on a stream that is the end already it stays the identity."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=gen)
    a, b = torch.randn(8, 8, generator=gen), torch.randn(8, generator=gen)
    matrix, offset = fitting._ridge(x, x @ a + b)
    assert (matrix - a).norm() < 0.05 * a.norm() and (offset - b).norm() < 0.1 * b.norm()
    same, none = fitting._ridge(x, x)
    assert torch.allclose(same, torch.eye(8), atol=1e-5) and torch.allclose(none, torch.zeros(8), atol=1e-5)


@pytest.mark.parametrize("start", ["identity", "ridge"])
@pytest.mark.parametrize("columns", [0, 12])
def test_descent_comes_nearer_to_the_end_on_text_that_it_did_not_see(model, start, columns) -> None:
    lens = methods.tuned_lens(model, texts(), options=replace(FEW, start=start, columns=columns, steps=60))
    judged = blocks_of(model, texts(12, seed=5), context=12, most=12, seed=0)
    found = reading.read(model, {"logit": Translators("logit"), "tuned": lens}, judged, [0, 1, 2], 2)
    kl = found.values[0].mean(-1)
    assert (kl[:-1, 1] < kl[:-1, 0]).all() and found.gap < 1e-4
    if columns == 0:
        assert all(last < first for first, last in lens.made["divergence"].values())


def test_fitting_leaves_the_model_and_its_gradients_alone(model, tuned) -> None:
    assert all(p.grad is None for p in model.hf.parameters())
    assert tuned.model == model.hash and tuned.layers == (0, 1, 2)


def test_an_untrained_lens_is_the_logit_lens(model) -> None:
    lens = methods.tuned_lens(model, texts(), options=replace(FEW, start="identity", steps=0))
    x = torch.randn(5, model.facts.d_model, generator=torch.Generator().manual_seed(0))
    for made in (lens, identity(model)):
        assert torch.equal(made.logits(model, 1, x), Translators("logit").logits(model, 1, x))
    assert torch.equal(Translators("logit").logits(model, None, x), model.binding.unembed(x[None])[0])


# saved and refused


def test_a_saved_lens_is_the_same_and_is_refused_where_it_does_not_belong(model, tuned, tmp_path) -> None:
    again = Translators.load(tuned.save(tmp_path / "lens"), model)
    assert again.hash == tuned.hash and again.made == tuned.made and again.kind == "tuned"
    with pytest.raises(ModelError, match="another model"):
        Translators.load(tmp_path / "lens", tiny.loaded("llama-mha"))
    with pytest.raises(ModelError, match="another model"):
        methods.lenses(tiny.loaded("llama-mha"), texts(), tuned=again, options=FEW)
    narrow = Translators("tuned", {0: torch.eye(3)})
    with pytest.raises(ModelError, match="width 3"):
        narrow.check(model)
    with pytest.raises(ModelError, match="layers"):
        Translators("tuned", {9: torch.eye(model.facts.d_model)}).check(model)


def test_half_written_and_changed_lenses_are_refused(tuned, tmp_path) -> None:
    folder = tuned.save(tmp_path / "lens")
    content = (folder / "lens.safetensors").read_bytes()
    (folder / "lens.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResourceError, match="no saved lens"):
        Translators.load(folder)
    changed = bytearray(content)
    changed[-1] ^= 1
    (folder / "lens.safetensors").write_bytes(bytes(changed))
    with pytest.raises(ResourceError, match="not the one"):
        Translators.load(folder)
    (folder / "lens.safetensors").write_bytes(content)
    card = json.loads((folder / "lens.json").read_text())
    (folder / "lens.json").write_text(json.dumps({**card, "model": "0" * 32}))
    with pytest.raises(ResourceError, match="not the one"):
        Translators.load(folder)
    with pytest.raises(ResourceError, match="no saved lens"):
        Translators.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "maps",
    [
        {0: torch.ones(2, 3)},
        {0: torch.eye(2), 1: torch.eye(3)},
        {0: torch.full((2, 2), torch.nan)},
        {0: torch.ones(2)},
    ],
)
def test_what_is_no_map_is_refused(maps) -> None:
    with pytest.raises(ModelError):
        Translators("tuned", maps)


# the comparison and its controls


@pytest.fixture(scope="module")
def result(model):
    return methods.lenses(model, texts(48), options=replace(FEW, blocks=32, steps=60), held_out=16, seed=0)


def test_lenses_are_compared_on_the_same_text(result) -> None:
    frame = result.frame().set_index(["site", "metric"])
    assert result.verdict == "supported" and all(c.passed for c in result.controls)
    assert frame.loc[("L1.resid_pre", "kl tuned"), "value"] < frame.loc[("L1.resid_pre", "kl logit"), "value"]
    assert frame.loc[("final_resid", "kl jacobian"), "value"] == pytest.approx(0, abs=1e-5)
    assert set(result.tables["calibration"].lens) == {"logit", "tuned", "jacobian", "constant"}
    assert (result.tables["calibration"].low <= result.tables["calibration"].high).all()


def test_a_lens_that_saw_the_text_fails(model) -> None:
    lens = methods.tuned_lens(model, texts(8), options=replace(FEW, blocks=8, steps=1))
    jacobian = methods.jacobian_lens(model, texts(4, seed=9), options=replace(FEW, blocks=4))
    leaked = methods.lenses(model, texts(8), tuned=lens, jacobian=jacobian, held_out=8, options=FEW, seed=0)
    assert leaked.control("held_out").passed is False and leaked.verdict == "invalid"
    fresh = methods.lenses(
        model, texts(8, seed=7), tuned=lens, jacobian=jacobian, held_out=8, options=FEW, seed=0
    )
    assert fresh.control("held_out").passed


def test_another_unembedding_fails(model, tuned, monkeypatch) -> None:
    judged = blocks_of(model, texts(4, seed=3), context=12, most=4, seed=0)
    real = Translators.logits
    monkeypatch.setattr(Translators, "logits", lambda self, m, layer, x: real(self, m, layer, 1.0 + x))
    found = reading.read(model, {"logit": Translators("logit")}, judged, [0], 2)
    assert comparing._last_layer(found).passed is False
    monkeypatch.setattr(
        Translators,
        "logits",
        lambda self, m, layer, x: real(self, m, layer, x if not self.matrices else 1.0 + x),
    )
    assert comparing._untrained(model, judged, [0, 1], 2).passed is False


def test_a_lens_that_reads_nothing_fails(model) -> None:
    judged = blocks_of(model, texts(6, seed=3), context=12, most=6, seed=0)
    nothing = fitting.constant_lens(model, judged, [0, 1, 2], 2)
    deaf = replace(nothing, kind="tuned")
    found = reading.read(
        model, {"logit": Translators("logit"), "tuned": deaf, "constant": nothing}, judged, [0, 1, 2], 2
    )
    assert comparing._constant(found).passed is False and comparing._other_text(found).passed is False


def test_calibration_error_of_what_is_known() -> None:
    assert reading.calibration_error(np.full(10, 0.75), np.arange(10) < 5) == pytest.approx(0.25)
    gen = np.random.default_rng(0)
    confidence = gen.uniform(0, 1, 20000)
    assert reading.calibration_error(confidence, gen.uniform(0, 1, 20000) < confidence) < 0.02
    rows = reading.reliability(np.array([0.05, 0.95, 1.0]), np.array([0, 1, 1]))
    assert [r["n"] for r in rows] == [1, 2] and rows[1]["observed"] == 1


# bad input


@pytest.mark.parametrize(
    "wrong",
    [
        {"start": "zero"},
        {"skip": 11},
        {"skip": -1},
        {"tokens": 0},
        {"rate": 0.0},
        {"probes": 0},
        {"rate": float("nan")},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(TaskError):
        replace(FEW, **wrong)


def test_texts_that_give_nothing_are_refused(model) -> None:
    for bad in ([], "a text", [[1, 2, 3]], None):
        with pytest.raises(TaskError):
            methods.tuned_lens(model, bad, options=FEW)
    with pytest.raises(TaskError, match="one document"):
        methods.lenses(model, [sum(texts(8), [])], options=FEW, held_out=4)
    with pytest.raises(TaskError, match="halves"):
        methods.jacobian_lens(model, texts(1), options=FEW)
    with pytest.raises(TaskError, match="held-out"):
        methods.lenses(model, texts(), options=FEW, held_out=1)
    with pytest.raises(ModelError, match="layers"):
        methods.tuned_lens(model, texts(), options=replace(FEW, layers=(7,)))
    with pytest.raises(TaskError, match="reads"):
        methods.tuned_lens(model, texts(), options=replace(FEW, context=5000))


def test_documents_never_lie_on_both_sides() -> None:
    blocks = Blocks(tuple((k, k) for k in range(30)), tuple(f"d{k % 7}" for k in range(30)))
    for seed in range(20):
        first, second = blocks.split(0.6, seed)
        assert not set(first.documents) & set(second.documents) and len(first) + len(second) == 30


def test_a_corpus_gives_blocks_of_different_files_first() -> None:
    import worded
    from microtome.tasks.corpus import corpus

    words = worded.copier()
    given = corpus([" ".join(f"w{3 + (i * k) % 60}" for i in range(90)) for k in range(1, 7)])
    found = blocks_of(words, given, context=10, most=6, seed=0)
    assert len(found) == 6 == len(set(found.documents)) and {len(b) for b in found.ids} == {10}
    many = blocks_of(words, given, context=10, most=14, seed=0)
    assert len(many) == 14 and len(set(many.documents)) == 6
    with pytest.raises(TaskError, match="no text|no block"):
        blocks_of(words, corpus(["w3 w4"]), context=10, most=2, seed=0)
