"""Model diffing: planted differences are found and placebos are not; what cannot be compared is refused with what can."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

import diffed
import planted
import tiny
from microtome import methods
from microtome.controls.draws import against_draws, combined_p, stricter
from microtome.errors import ControlError, EditError, ModelError, ResultError, SiteError, TaskError
from microtome.facade import Model
from microtome.methods import DiffOptions, diff_runs, diff_words, diffing
from microtome.methods.diff_runs import Lockstep
from microtome.methods.diff_tokens import tokenizer_diff
from microtome.methods.diff_weights import weight_diff
from microtome.methods.setting import sites_of
from microtome.model.load import load_module
from microtome.model.noise import KINDS, RandomChange, fitting
from microtome.tasks.labelled import LabelledText
from microtome.zoo.words import word_tokenizer

ROWS = tiny.ragged([7, 9, 8, 12, 6, 10, 11, 9])


@pytest.fixture(scope="module")
def llama():
    return Model(load_module(tiny.build("llama")))


@pytest.fixture(scope="module")
def backdoor():
    return diffed.backdoored()


@pytest.fixture(scope="module")
def found(backdoor):
    a, b, rows, _ = backdoor
    return methods.model_diff(a, b, rows, seed=0)


# ---------------------------------------------------------------------------- the test against draws


def test_draws_are_exact_and_call_a_null_map_at_their_level():
    rng, hits, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        x = np.exp(rng.normal(size=(20, 7)) * np.linspace(0.5, 3, 7))
        hits += against_draws(x[0], x[1:], alpha=0.05).min_p <= 0.05
    assert binom.sf(hits - 1, runs, 0.05) > 1e-3  # an exact test is called in 5 % of null runs, and no more
    assert hits > 0.03 * runs


def test_families_together_keep_the_level():
    rng, hits, runs = np.random.default_rng(1), 0, 2000
    for _ in range(runs):
        x = rng.normal(size=(20, 9))
        tests = [against_draws(x[0, :3], x[1:, :3]), against_draws(x[0, 3:], x[1:, 3:], studentised=False)]
        hits += combined_p(tests) <= 0.05
    assert binom.sf(hits - 1, runs, 0.05) > 1e-3


def test_a_planted_cell_is_found_whatever_its_scale_and_an_equal_one_never():
    x = np.random.default_rng(2).normal(size=(20, 5)) * [1, 10, 0.1, 1, 0]
    x[0, 2] += 2
    test = against_draws(x[0], x[1:])
    assert test.p[2] == 0.05 and test.significant.tolist() == [False, False, True, False, False]
    assert test.p[4] > 0.5 and test.null_high[2] < x[0, 2]
    assert np.isnan(against_draws(x[0], x[1:], outside=[True, False, False, False, False]).p[0])


def test_what_nobody_would_look_at_is_no_finding_and_the_level_holds():
    """A null of little spread: a cell a hundredth above all draws counts without a least distance, and not with one."""
    x = np.random.default_rng(3).normal(size=(20, 5)) * 1e-4
    x[0, 1] += 0.01
    assert against_draws(x[0], x[1:]).min_p == 0.05
    test = against_draws(x[0], x[1:], least=0.1)
    assert test.min_p == 1.0 and not test.significant.any() and test.null_high[1] >= 0.1
    x[0, 1] += 0.2
    assert against_draws(x[0], x[1:], least=0.1).significant.tolist() == [False, True, False, False, False]
    rng, hits, runs = np.random.default_rng(4), 0, 2000
    for _ in range(runs):
        y = rng.normal(size=(20, 6)) * np.linspace(0.1, 0.5, 6)
        families = [
            against_draws(y[0, :3], y[1:, :3], least=0.1),
            against_draws(y[0, 3:], y[1:, 3:], least=0.4),
        ]
        hits += combined_p(families) <= 0.05
    assert binom.sf(hits - 1, runs, 0.05) > 1e-3 and hits > 0


def test_the_stricter_of_two_tests_is_called_where_both_are():
    x = np.random.default_rng(5).normal(size=(20, 3))
    x[0] = 9.0, 9.0, 0.0
    wide = x * [1.0, 4.0, 1.0]
    one, other = against_draws(x[0], x[1:]), against_draws(x[0], wide[1:])
    both = stricter(one, other)
    assert (both.p == np.maximum(one.p, other.p)).all() and (both.null_high >= one.null_high).all()
    assert (both.significant == (one.significant & other.significant)).all()


@pytest.mark.parametrize("factor", [0.5, 1.2, 30.0, 1000.0])
def test_noise_is_rescaled_until_the_outputs_differ_as_much(factor):
    """KL grows with the square of a change until it saturates; noise whose outputs already differ as much stays as it is."""

    def made(scale):
        kl = torch.full((2, 4), float(factor * 3 * np.tanh(scale**2 / 3)))
        return diff_runs.Compared(torch.zeros(0), torch.zeros(0), kl, torch.zeros(0))

    ran = []
    real = diff_runs.Compared(torch.zeros(0), torch.zeros(0), torch.ones(2, 4), torch.zeros(0))
    got = diffing._rescaled(real, own := made(1.0), lambda s: ran.append(s) or made(s), 1)
    assert (got is own) == (factor == 1.2) and len(ran) <= diffing.TRIES
    assert float(got.kl.mean()) == pytest.approx(1.0, rel=diffing.CLOSE - 1)
    still = diff_runs.Compared(torch.zeros(0), torch.zeros(0), torch.zeros(2, 4), torch.zeros(0))
    assert diffing._rescaled(still, own, made, 1) is own


def test_ties_count_against_and_too_few_draws_are_refused():
    assert against_draws([3.0, 1.0], np.tile([3.0, 1.0], (19, 1))).min_p == 1.0
    with pytest.raises(ControlError, match="2 draws"):
        against_draws([1.0], [[0.0], [1.0]])
    with pytest.raises(ControlError, match="not finite"):
        against_draws([np.nan], [[0.0], [1.0], [2.0]])
    with pytest.raises(ControlError, match="No cell"):
        against_draws([1.0], [[0.0], [1.0], [2.0]], outside=[True])


# ---------------------------------------------------------------------------- lock-step


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "gpt_neox", "falcon", "bloom"])
@pytest.mark.parametrize("start", [0, 2, 3])
def test_what_is_shared_is_what_a_whole_run_gives(name, start):
    """The other model continues from the first one's run: equal to both run whole, with and without padding."""
    a = tiny.loaded(name)
    hf = copy.deepcopy(a.hf)
    names = [n for n, _ in hf.named_parameters()]
    prefix = [f"{s.path}." for s in a.binding.slots]
    with torch.no_grad():
        for n, p in hf.named_parameters():
            if any(n.startswith(x) for x in prefix[start:]) or (start == 3 and n == _last(a, names)):
                p.mul_(1.01)
    b = Model(load_module(hf.eval()))
    assert weight_diff(a, b).start == start
    sites = sites_of(a, ["L*.resid_post", "L*.attn_out", "L*.mlp_out"])
    lock = Lockstep(a.binding, ROWS, sites, start, 30)
    got = lock.compare(b.binding)
    for i, row in enumerate(ROWS):
        one, two = (m.run([row], [str(s) for s in sites]) for m in (a, b))
        for k, site in enumerate(sites):
            relative, cosine = diff_runs.distance(one[site][0], two[site][0])
            torch.testing.assert_close(got.relative[k, i, : len(row)], relative, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(got.cosine[k, i, : len(row)], cosine, rtol=1e-3, atol=1e-5)
        kl = diff_runs.divergence(*(t.logits[0].log_softmax(-1) for t in (one, two)))
        torch.testing.assert_close(got.kl[i, : len(row)], kl, rtol=1e-2, atol=1e-5)
        assert bool(torch.isnan(got.kl[i, len(row) :]).all())


def _last(a, names):
    norm = a.binding.stack["final_norm"]
    return next(n for n in names if n.startswith(f"{norm}."))


def test_layers_below_the_first_change_are_not_run_twice(llama):
    b = diffed.nudged(llama, layer=2)
    ran = []
    hooks = [layer.register_forward_hook(lambda m, a, o, k=k: ran.append(k)) for k, layer in enumerate(b.hf.model.layers)]  # fmt: skip
    result = methods.model_diff(llama, b, ROWS, options=diffed.FEW, seed=0)
    for hook in hooks:
        hook.remove()
    assert set(ran) == {2}
    zero = dict(zip(result.effects.coords["site"], result.tensors["structurally_zero"], strict=True))
    assert zero["L1.resid_post"] and zero["L2.attn_out"] and not zero["L2.mlp_out"]
    about = result.tables["about"].set_index("name")["value"]
    assert "layers below 2 were run once" in about["weights"]


def test_heads_are_compared_like_any_point_and_a_changed_embedding_shares_nothing(llama):
    def move(hf):
        hf.model.embed_tokens.weight[3:] *= 1.1

    b = diffed.changed(llama, move)
    assert weight_diff(llama, b).start is None
    r = methods.model_diff(llama, b, ROWS, sites=["L*H*.z", "L1.neurons"], options=diffed.FEW, seed=0)
    assert len(r.effects.coords["site"]) == 13 and (r.effects.values[..., 0] > 0).all()
    with pytest.raises(SiteError, match="pattern"):
        methods.model_diff(llama, b, ROWS, sites="L*.pattern", options=diffed.FEW)


# ---------------------------------------------------------------------------- planted and placebo


def test_a_planted_backdoor_is_found_and_located(found, backdoor):
    _, _, _, triggered = backdoor
    assert found.verdict == "supported" and found.control("noise_models").passed
    tokens = found.tables["differing_tokens"]
    most = tokens[tokens["share"] > 10]
    # a noise model too may have most of its KL on one token: by its own share alone, one token is not beyond all of them
    assert set(zip(most["document"], most["at"], strict=True)) == {(d, 5) for d in triggered} and (most["p"] <= 0.15).all()  # fmt: skip
    cells = found.tables["cells"]
    focus = cells[cells["metric"] == "focus"]
    band = focus.dropna(subset=["null_low"])
    assert len(band) and (band["null_low"] >= 1).all() and (band["null_high"] <= band["n"]).all()
    clear = set(focus.loc[focus["p"] <= 0.05, "site"])
    assert {"L0.attn_out", "L1.mlp_out", "logits"} <= clear and not clear & {"L0.mlp_out", "L1.attn_out"}
    weights = found.tables["weight_changes"]
    moved = set(weights.loc[weights["changed"], "tensor"])
    assert {"model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"} <= moved
    assert not any("layers.0.mlp" in n or "layers.1.self_attn" in n or "embed" in n for n in moved)


def test_placebos_are_called_at_the_stated_level_and_no_more(backdoor):
    """`a` moved as far in random directions is one more noise model; the test itself is held to its level over 2,000 runs above."""
    a, b, rows, _ = backdoor
    runs = [methods.model_diff(a, diffed.placebo(a, b, k), rows[:14], seed=k).verdict for k in range(20)]
    assert binom.sf(runs.count("supported") - 1, len(runs), 0.05) > 1e-3 and set(runs) <= {
        "supported",
        "not distinguishable from its null",
    }


def test_a_backdoor_without_its_trigger_shows_in_the_weights_alone(backdoor):
    a, b, rows, triggered = backdoor
    plain = [row for i, row in enumerate(rows) if i not in triggered]
    r = methods.model_diff(a, b, plain, seed=0)
    assert r.verdict == "not distinguishable from its null" and r.effects.sel(metric="relative_norm", site="L1.mlp_out").values.max() == 0  # fmt: skip
    assert r.tables["weight_changes"]["changed"].any()


def test_a_low_rank_update_shows_as_one(llama):
    def adapt(hf):
        weight = hf.model.layers[1].self_attn.q_proj.weight
        gen = torch.Generator().manual_seed(0)
        weight += 0.01 * torch.randn(weight.shape[0], 2, generator=gen) @ torch.randn(2, weight.shape[1], generator=gen)  # fmt: skip

    table = weight_diff(llama, diffed.changed(llama, adapt)).table
    row = table[table["changed"]].iloc[0]
    assert row["rank"] == 2 and 1 < row["effective_rank"] <= 2 and row["full"] == 24 and row["layer"] == "1"
    full = weight_diff(llama, diffed.nudged(llama)).table
    assert full.loc[full["changed"], "rank"].item() == 24


def test_the_same_model_is_no_finding(llama):
    r = methods.model_diff(llama, diffed.changed(llama, lambda hf: None), ROWS, seed=0)
    assert r.verdict == "not distinguishable from its null" and (r.effects.values == 0).all()
    assert "equal to the bit" in r.control("noise_models").observed


def test_random_changes_keep_what_they_say():
    gen = torch.Generator().manual_seed(0)
    old = torch.randn(9, 64, generator=gen)
    low = torch.randn(9, 3, generator=gen) @ torch.randn(3, 64, generator=gen)
    for kind in KINDS:
        drawn = [RandomChange({"w": old}, {"w": low}, kind).draw("w", seed) for seed in (0, 0, 1)]
        assert all(abs(float(d.norm() / low.norm()) - 1) < 1e-6 for d in drawn)
        assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    other = RandomChange({"w": old}, {"w": low}, "spectrum").draw("w", 0)
    torch.testing.assert_close(torch.linalg.svdvals(other), torch.linalg.svdvals(low.double()), atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_another_rounding_errs_as_much_in_each_block(bits, turned):
    from microtome.model.copies import _round

    gen = torch.Generator().manual_seed(bits)
    old = torch.randn(96, 64, generator=gen) * torch.linspace(0.1, 3, 96)[:, None]
    delta = (_round(old.double(), bits, 32) - old).float()
    old, delta = (old.T, delta.T) if turned else (old, delta)
    assert fitting({"w": old}, {"w": delta}, (64, 64)) == "rounding"
    other = RandomChange({"w": old}, {"w": delta}, "rounding").draw("w", 0).float()
    real, drawn = ((t.T if turned else t)[:, :32].norm(dim=1) for t in (delta, other))
    assert float((drawn / real).log().abs().mean()) < 0.2
    assert float(torch.corrcoef(torch.stack([delta.flatten(), other.flatten()]))[0, 1]) < (0.8 if bits == 3 else 0.6)  # fmt: skip


def test_the_null_fits_the_change(llama):
    gen = torch.Generator().manual_seed(0)
    old = torch.randn(64, 64, generator=gen)
    full = 0.1 * torch.randn(64, 64, generator=gen)
    low = full[:, :2] @ full[:2]
    pruned = torch.where(old.abs() < old.abs().quantile(0.5), -old, torch.zeros_like(old))
    one_head = torch.where(torch.arange(64)[:, None] < 8, -old, torch.zeros_like(old))
    for delta, rank, kind in ((full, 64, "gaussian"), (low, 2, "spectrum"), (pruned, 64, "gaussian"), (one_head, 8, "spectrum")):  # fmt: skip
        assert fitting({"w": old}, {"w": delta}, (rank, 64)) == kind
    r = methods.model_diff(llama, methods.quantised_copy(llama, 4), ROWS, options=diffed.FEW, seed=0)
    assert "other roundings of the same coarseness" in r.control("noise_models").rules_out
    assert "other roundings" in r.tables["about"].set_index("name")["value"]["noise models"]
    low_rank = methods.model_diff(llama, diffed.nudged(llama), ROWS, options=replace(diffed.FEW, noise="spectrum"), seed=0)  # fmt: skip
    assert "singular values" in low_rank.control("noise_models").expected


# ---------------------------------------------------------------------------- every control can fail


def test_a_comparison_that_makes_a_difference_is_invalid(llama, monkeypatch):
    true = Lockstep.other

    def off(self, binding, batch, base):
        seen = true(self, binding, batch, base)
        return replace(seen, log_probs=seen.log_probs + 1e-6)

    monkeypatch.setattr(Lockstep, "other", off)
    r = methods.model_diff(llama, diffed.nudged(llama), ROWS, options=diffed.FEW, seed=0)
    assert r.verdict == "invalid" and not r.control("same_model").passed


def test_noise_of_another_size_is_no_null(llama, monkeypatch):
    real = RandomChange.draw
    monkeypatch.setattr(RandomChange, "draw", lambda self, *args: 0.5 * real(self, *args))
    r = methods.model_diff(llama, diffed.nudged(llama, size=0.5), ROWS, seed=0)
    assert not r.control("noise_size").passed and r.verdict != "supported"


def test_a_difference_of_rounding_size_is_none(llama):
    r = methods.model_diff(llama, diffed.nudged(llama, size=1e-7), ROWS, options=diffed.FEW, seed=0)
    assert not r.control("batching").passed


def test_an_unrelated_model_that_moves_as_much_is_said(llama):
    small, large = diffed.nudged(llama, size=0.1), diffed.nudged(llama, size=0.5, seed=4)
    less = methods.model_diff(llama, large, ROWS, unrelated=small, options=diffed.FEW, seed=0)
    more = methods.model_diff(llama, small, ROWS, unrelated=large, options=diffed.FEW, seed=0)
    assert less.control("unrelated").passed and less.control("unrelated").observed["ratio"] > 2
    assert more.control("unrelated").passed is False and more.control("unrelated").observed["below"] > 0
    assert {"value", "unrelated", "low", "high"} <= set(less.tables["drift"].columns)


def test_the_reading_finds_a_planted_word_and_not_another():
    """What the last MLP writes is moved along what the unembedding reads as one word: promoted everywhere, another word not."""
    tokenizer = word_tokenizer([f"w{i}" for i in range(95)])
    a = Model(load_module(tiny.build("llama-bias"), tokenizer=tokenizer))

    def push(hf):
        hf.model.layers[2].mlp.down_proj.bias += 2 * hf.lm_head.weight[tokenizer.convert_tokens_to_ids("w50")]

    b = diffed.changed(a, push)
    texts = [f"w{k} w{k + 3} w{2 * k} w7 w{40 - k}" for k in range(1, 9)]
    r = methods.model_diff(a, b, texts, words=["w50"], seed=0)
    top = r.tables["reading"].query("source == 'difference' and site == 'L2.resid_post'")
    assert r.control("reading").passed and set(top.loc[top["rank"] == 0, "token"]) == {"w50"}
    assert not methods.model_diff(a, b, texts, words=["w51"], seed=0).control("reading").passed
    bare = [Model(load_module(m.hf)) for m in (a, b)]
    with pytest.raises(TaskError, match="tokenizer"):
        methods.model_diff(*bare, ROWS, words=["good"], options=diffed.FEW)


def test_the_difference_steers_the_first_model_towards_the_second():
    """A constant added to the last MLP's bias is the difference, at every token; adding it gives the other model."""
    import microtome as mt

    a = Model(load_module(tiny.build("llama-bias")))

    def push(hf):
        hf.model.layers[2].mlp.down_proj.bias += torch.linspace(-1, 1, 24)

    b = diffed.changed(a, push)
    r = methods.model_diff(a, b, ROWS, options=diffed.FEW, seed=0)
    found = methods.difference_direction(r, "L2.resid_post")
    torch.testing.assert_close(found.vector, torch.linspace(-1, 1, 24), atol=1e-5, rtol=1e-5)
    assert found.model == a.hash and found.made["second"] == b.hash
    steered = a.run([ROWS[0]], edits=[mt.Steer("L2.resid_post", found.vector, 1.0)]).logits
    torch.testing.assert_close(steered, b.run([ROWS[0]]).logits, atol=1e-4, rtol=1e-4)
    for site, position in (("L2.mlp_out", None), ("L2.resid_post", 9)):
        with pytest.raises(ResultError, match="kept"):
            methods.difference_direction(r, site, position)
    with pytest.raises(EditError):
        methods.difference_direction(r, "L1.resid_post")


# ---------------------------------------------------------------------------- data, options and bad input


def test_pair_tasks_are_compared_position_by_position(llama):
    task = planted.pairs(llama)
    r = methods.model_diff(
        llama, diffed.nudged(llama), task, options=replace(diffed.FEW, positions=True), seed=0
    )
    assert r.effects.dims == ("site", "position", "prompt", "metric") and r.effects.shape[1] == planted.LENGTH
    with pytest.raises(ModelError, match="other places"):
        methods.model_diff(llama, llama, ROWS, options=DiffOptions(positions=True))


def test_labelled_text_is_clustered_by_its_units_and_cut_texts_are_counted(backdoor):
    a, b, _, _ = backdoor
    texts = [
        "red old calm quick is",
        "many small hope tall is",
        "cyclamen red fear old is",
        "red old calm thin is",
    ]
    data = LabelledText("few", tuple(texts), (0, 1, 0, 1), groups={"entity": ("x", "y", "x", "z")})
    r = methods.model_diff(a, b, data, options=replace(diffed.FEW, most_tokens=5), seed=0)
    about = r.tables["about"].set_index("name")["value"]
    assert about["texts"] == "4 in 3 documents, 4 of them cut" and r.effects.shape[1] == 4


def test_passages_of_a_corpus_are_clustered_by_their_files(tmp_path):
    import microtome as mt

    words = [f"w{i}" for i in range(90)]
    a = Model(load_module(tiny.build("llama"), tokenizer=word_tokenizer(words)))
    for k in range(6):
        (tmp_path / f"{k}.txt").write_text(" ".join(words[k : k + 60]))
    options = replace(diffed.FEW, passages=6, most_tokens=20)
    r = methods.model_diff(a, diffed.nudged(a), mt.corpus(tmp_path), options=options, seed=0)
    about = r.tables["about"].set_index("name")["value"]
    assert about["texts"] == "6 in 6 documents" and r.effects.shape[1] == 6


@pytest.mark.parametrize("asked", [{"draws": 2}, {"leave_out": -1}, {"noise": "pink"}, {"passages": 1}])
def test_options_that_cannot_be_are_refused(asked):
    with pytest.raises(ControlError, match="cannot be asked for"):
        DiffOptions(**asked)


def test_the_same_model_predicts_text_no_better(backdoor):
    a, _, _, _ = backdoor
    texts = ["red old calm quick is", "many small hope tall is", "some red fear old is"]
    r = methods.model_diff(a, diffed.changed(a, lambda hf: None), texts, level="text", seed=0)
    assert r.control("paired").passed is False and r.verdict == "not distinguishable from its null"


def test_one_text_and_too_short_ones_are_refused(llama):
    with pytest.raises(TaskError, match="no sample"):
        methods.model_diff(llama, llama, [ROWS[0]])
    with pytest.raises(TaskError, match="left out"):
        methods.model_diff(llama, llama, [[5], [5, 6]])


def test_other_numerics_are_refused(llama):
    with pytest.raises(ModelError, match="bfloat16"):
        methods.model_diff(llama, Model(load_module(copy.deepcopy(llama.hf).bfloat16())), ROWS)


def test_other_tokenizers_are_told_apart_and_text_is_still_compared():
    words = [f"w{i}" for i in range(90)]
    one, two = word_tokenizer(words), word_tokenizer([*words[:40], *words[60:], *words[40:60]])
    hf = tiny.build("llama")
    a, b = Model(load_module(hf, tokenizer=one)), Model(load_module(copy.deepcopy(hf), tokenizer=two))
    texts = [f"w1 w2 w{k} w{k + 5} w7 w{k + 30}" for k in range(20, 30)]
    with pytest.raises(ModelError) as error:
        methods.model_diff(a, b, texts)
    assert (
        "another id" in error.value.why
        and "10 of the texts have other ids" in error.value.why
        and "cut" not in error.value.why
    )
    assert "level='text'" in error.value.instead and "level='outputs'" not in error.value.instead
    r = methods.model_diff(a, b, texts, level="text", seed=0)
    assert r.effects.coords["metric"] == ("loss_per_character",) and r.control("paired").n
    assert r.control("noise_models").passed is None and "tokens differ" in r.control("noise_models").detail
    assert {"first", "second"} <= set(r.raw_examples[0]) and len(r.tables["documents"]) == 10
    r.figure()
    with pytest.raises(TaskError, match="ids of one tokenizer"):
        methods.model_diff(a, b, ROWS, level="text")


def test_activations_are_compared_at_the_ends_of_words_where_both_have_them(monkeypatch):
    """One tokenizer cuts words into letters, the other does not; both read the same embedding at the end of a word."""
    hf = tiny.build("llama")
    a, b = (
        Model(load_module(hf, tokenizer=_letters())),
        Model(load_module(copy.deepcopy(hf), tokenizer=_letters("a0"))),
    )
    texts = [f"a{k % 9} b{k % 7} a0 c{k % 5} b{k % 3}" for k in range(12)]
    with pytest.raises(ModelError, match="level 'sites'") as error:
        methods.model_diff(a, b, texts)
    assert "level='words'" in error.value.instead and "level='text'" in error.value.instead
    r = methods.model_diff(a, b, texts, sites="L*.resid_post", level="words", seed=0)
    assert r.verdict == "supported" and r.control("other_words").observed["sites where it is"] == 3
    cells = r.tables["cells"]
    assert (cells["null_low"] > r.effects.values.mean(1)[:, 0]).all()
    r.figure()
    monkeypatch.setattr(
        diff_words.np, "roll", lambda x, n: x
    )  # the null of other words that are the same ones
    assert (
        methods.model_diff(a, b, texts, sites="L*.resid_post", level="words", seed=0).verdict != "supported"
    )
    monkeypatch.undo()
    with pytest.raises(TaskError, match="2 words"):
        methods.model_diff(a, b, ["a1 b2", "a1 b2 c3 a4"], level="words")
    other = Model(load_module(tiny.build("llama", num_hidden_layers=2), tokenizer=_letters("a0")))
    with pytest.raises(ModelError, match="no common places") as error:
        methods.model_diff(a, other, texts, level="words")
    assert "3 layers of width 24 against 2 of 24" in error.value.why


def _letters(*whole):
    """Words cut into letters and digits, but for those in `whole`; the same ids for the pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {c: 3 + i for i, c in enumerate("abc0123456789?")} | {w: 60 + i for i, w in enumerate(whole)}
    made = Tokenizer(models.BPE(vocab, [("a", "0")] if whole else [], unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_the_first_text_that_is_cut_otherwise_is_shown():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("w0123456789?")}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")])  # fmt: skip
    found = tokenizer_diff(
        word_tokenizer(["w1", "w23"]), PreTrainedTokenizerFast(tokenizer_object=letters), ["w1 w23"]
    )
    assert not found.same and found.sizes == (4, 12) and found.differing == 1
    assert found.first == ("w1 w23", ("<bos>", "w1", "w23"), ("w", "1", "w"))
    assert (
        "bos_token is '<bos>' against None" in found.sentence
        and "cut otherwise is 'w1 w23'" in found.sentence
    )
    assert (
        tokenizer_diff(None, None, []).same
        and not tokenizer_diff(None, PreTrainedTokenizerFast(tokenizer_object=letters), []).same_here
    )


def test_a_vocabulary_that_grew_by_tokens_nobody_uses_here_is_the_same_here():
    words = [f"w{i}" for i in range(90)]
    hf = tiny.build("llama")
    a = Model(load_module(hf, tokenizer=word_tokenizer(words)))
    b = Model(load_module(copy.deepcopy(hf), tokenizer=word_tokenizer([*words, "extra"])))
    r = methods.model_diff(a, b, ["w1 w2 w3", "w4 w5 w6"], options=diffed.FEW, seed=0)
    about = r.tables["about"].set_index("name")["value"]
    assert "1 tokens only in the second ('extra')" in about["tokenizers"]


def test_other_depths_are_compared_by_their_outputs(llama):
    b = Model(load_module(tiny.build("llama", num_hidden_layers=2)))
    with pytest.raises(ModelError, match="level 'sites'") as error:
        methods.model_diff(llama, b, ROWS)
    assert "first model only" in error.value.why and "level='outputs'" in error.value.instead
    r = methods.model_diff(llama, b, ROWS, level="outputs", seed=0)
    assert r.effects.coords["metric"] == ("loss_per_token",) and (r.tables["kl"]["kl"] >= 0).all()
    with pytest.raises(ModelError, match="no level"):
        methods.model_diff(llama, b, ROWS, level="deep")


# ---------------------------------------------------------------------------- copies


def test_a_rounded_copy_says_so_and_fewer_bits_differ_more(llama):
    before = tiny.state(llama.hf).hash
    sizes = {}
    for bits in (4, 8):
        b = methods.quantised_copy(llama, bits, group=8)
        assert f"rounded to {bits} bits" in b.reasons["weights"] and b.hash != llama.hash
        table = weight_diff(llama, b).table
        assert not table.loc[table["layer"] == "", "changed"].any()
        sizes[bits] = (
            methods.model_diff(llama, b, ROWS, options=diffed.FEW, seed=0).effects.values[..., 0].mean()
        )
    assert sizes[4] > 8 * sizes[8] and tiny.state(llama.hf).hash == before
    weight = methods.quantised_copy(llama, 3, group=8).hf.model.layers[0].mlp.up_proj.weight
    assert len(weight[0, :8].unique()) <= 7
    for bits, group in ((1, 8), (9, 8), (4, 0)):
        with pytest.raises(ModelError, match="cannot be rounded"):
            methods.quantised_copy(llama, bits, group)


def test_an_adapter_is_merged_into_a_copy(llama):
    import peft

    from microtome.model.quiet import quiet

    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj"], init_lora_weights=False, layers_to_transform=[1]
        )
        wrapped = peft.get_peft_model(copy.deepcopy(llama.hf), config).eval()
    with pytest.raises(ModelError, match="not a transformers model"):
        load_module(wrapped)
    b = methods.merged_copy(wrapped)
    assert "rank 2" in b.reasons["weights"] and "q_proj" in b.reasons["weights"]
    ids = torch.tensor([ROWS[0]])
    torch.testing.assert_close(b.run(ids).logits, wrapped(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    row = (table := weight_diff(llama, b).table)[table["changed"]]
    assert row["tensor"].tolist() == ["model.layers.1.self_attn.q_proj.weight"] and row["rank"].item() == 2
    with wrapped.disable_adapter(), pytest.raises(ModelError, match="switched off"):
        methods.merged_copy(wrapped)
    with pytest.raises(ModelError, match="no adapter"):
        methods.merged_copy(llama.hf)


def test_no_control_is_declared_and_never_judged(found):
    assert {c.name for c in found.controls} == set(methods.model_diff.spec.controls)
