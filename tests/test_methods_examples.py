"""Max-activating examples and descriptions: what a brute force finds, planted truths, placebos, faults, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import microtome as mt
import tiny
from microtome.controls.detection import area, areas
from microtome.controls.roc import roc
from microtome.errors import ControlError, EditError, MicrotomeError, ModelError, SiteError
from microtome.figures import pictures_of
from microtome.methods import describing, example_search, examples
from microtome.methods.described import Texts
from microtome.methods.ngrams import NGrams
from microtome.methods.units import units_of
from microtome.report import write_report

TOKEN = 7
SPIKE = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(5)), dim=0)
SMALL = {"context": 24, "draws": 99, "k": 6, "active": 0.02}


@pytest.fixture(scope="module")
def docs():
    """Documents of random tokens, of different lengths."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, tiny.VOCAB, int(n)).tolist() for n in rng.integers(20, 60, 120)]


@pytest.fixture
def model():
    return tiny.loaded("llama")


@pytest.fixture(scope="module")
def spiked():
    """A model in which token 7 brings a vector of its own into the stream."""
    hf = tiny.build("llama")
    with torch.no_grad():
        hf.model.embed_tokens.weight[TOKEN] += 9 * SPIKE
    return mt.load(hf)


@pytest.fixture(scope="module")
def planted(spiked):
    """That vector as a direction after the second layer."""
    return mt.Direction(SPIKE, "L1.resid_post", spiked.hash, "seven")


# ---------------------------------------------------------------------------- the pass


@pytest.mark.parametrize("of", ["L1.neurons", "L1N5,9.neurons", "L1.head_out", "L1H2.z"])
def test_top_and_sample_are_what_a_brute_force_finds(of, model, docs):
    units = units_of(model, of)
    items = example_search.blocks_of(model, docs[:30], 16, 10_000, 0)
    found = example_search.search(model, items, units, None, k=5, sample=200, first=False, batch=100, seed=0)
    alone = []
    for i in range(len(items)):
        value = model.run([items[i]], capture=units.site.whole, logits=None)[units.site.whole]
        alone.append(units.read(value)[0].numpy())
    for c in range(len(units.names)):
        best = sorted(((v[1:, c].max(), i) for i, v in enumerate(alone) if found.shown[i] and len(v) > 1), reverse=True)[:5]  # fmt: skip
        np.testing.assert_allclose(found.value[c], [b[0] for b in best], atol=1e-5)
        assert found.item[c].tolist() == [b[1] for b in best]
        for item, at, value in zip(found.item[c], found.at[c], found.value[c], strict=True):
            assert abs(alone[item][at, c] - value) < 1e-5
    for row, item, at in zip(found.sample, found.sample_item, found.sample_at, strict=True):
        np.testing.assert_allclose(row, alone[item][at], atol=1e-5)
    assert found.sample_at.min() == 1 and len(set(zip(found.sample_item, found.sample_at, strict=True))) == len(found.sample)  # fmt: skip


def test_batches_change_nothing(model, docs):
    units = units_of(model, "L1.neurons")
    items = example_search.blocks_of(model, docs[:30], 16, 10_000, 0)
    one, other = (example_search.search(model, items, units, None, k=5, sample=200, first=False, batch=b, seed=0) for b in (40, 4000))  # fmt: skip
    assert np.array_equal(one.item, other.item) and np.array_equal(one.at, other.at)
    np.testing.assert_allclose(one.sample, other.sample, atol=1e-5)


def test_memory_does_not_grow_with_the_corpus(model):
    """What is kept has the size of the units, not of the text (the process's peak is measured by the benchmarks)."""
    rng = np.random.default_rng(0)
    kept = []
    for tokens in (4_000, 20_000):
        items = example_search.blocks_of(
            model, rng.integers(3, 97, (tokens // 20, 20)).tolist(), 20, tokens, 0
        )
        found = example_search.search(model, items, units_of(model, "L1.neurons"), None, k=5, sample=500, first=False, batch=2048, seed=0)  # fmt: skip
        kept.append([a.nbytes for a in (found.value, found.item, found.at, found.first, found.sample)])
    assert kept[0] == kept[1]


def test_halves_share_no_document_and_long_texts_are_cut_into_blocks_of_theirs(model, docs):
    items = example_search.blocks_of(model, docs, 16, 10_000, 0)
    document, shown = example_search.halves(items, 0)
    assert not set(document[shown]) & set(document[~shown]) and max(items.lengths) == 16
    assert [i for d in range(3) for i in docs[d]] == items.ids[: sum(len(docs[d]) for d in range(3))].tolist()
    share = items.lengths[shown].sum() / len(items.ids)
    assert 0.45 < share < 0.55


def test_units_write_what_they_add_to_the_stream(model):
    u = units_of(model, "L1N5.neurons")
    run = model.run([[3, 4, 5]], capture=["L1.neurons", "L1.mlp_out"])
    bias = model.weights.b_out(1)
    whole = run["L1.neurons"][0] @ units_of(model, "L1.neurons").writes + (0 if bias is None else bias)
    torch.testing.assert_close(whole, run["L1.mlp_out"][0], atol=1e-5, rtol=1e-4)
    assert u.writes.shape == (1, 24) and units_of(model, "L1.head_out").writes is None
    along = torch.randn(8, generator=torch.Generator().manual_seed(0))
    z = units_of(model, "L1H2.z", along)
    torch.testing.assert_close(z.writes[0], along / along.norm() @ model.weights.W_O(1)[2])


# ---------------------------------------------------------------------------- truths and placebos


def test_a_planted_direction_is_found_with_its_token_and_stands_above_random_ones(spiked, docs, planted):
    r = mt.methods.max_activating(spiked, docs, planted, options={**SMALL, "active": 0.01}, seed=0)
    assert r.verdict == "supported", r.verdict.reasons
    assert set(r.tables["tops"]["token"]) == {str(TOKEN)}
    cell = r.frame().iloc[0]
    assert cell["site"] == "seven" and cell["low"] > cell["null_high"]
    context = r.tables["contexts"]
    assert set(context[context["peak"] & (context["stratum"] == "top")]["token"]) == {str(TOKEN)}
    assert {"top", "random", "0-50 %", "99-100 %"} <= set(context["stratum"])


def test_units_without_meaning_are_not_told_from_random_directions(model, docs):
    """Random directions themselves as units, and the neurons of a random model: false alarms at about the stated level."""
    rng = torch.Generator().manual_seed(0)
    for of, directions in (("L1.neurons", None), ("L1.resid_post", torch.randn(40, 24, generator=rng))):
        r = mt.methods.max_activating(model, docs, of, directions=directions, options=SMALL, seed=0)
        assert r.verdict == "not distinguishable from its null"


def test_false_alarms_of_one_placebo_direction_come_at_the_stated_rate():
    """2,000 seeded draws of the rank p where the unit is one more random direction (exact binomial, .001)."""
    from scipy import stats

    rng = np.random.default_rng(0)
    hits = sum(examples.rank_p(v[:1], v[1:])[0] <= 0.05 for v in rng.random((2000, 100)))
    assert hits <= stats.binom.isf(0.001, 2000, 0.05)
    several = sum(examples.rank_p(v[:30], v[30:])[0] <= 0.05 for v in rng.random((2000, 130)))
    assert several <= stats.binom.isf(0.001, 2000, 0.05)


def test_the_right_keyword_is_believed_and_another_is_not(spiked, docs, planted):
    options = {**SMALL, "active": 0.01}
    right = mt.methods.score_description(spiked, docs, planted, [str(TOKEN)], options=options, seed=0)
    assert right.verdict == "supported", right.verdict.reasons
    row = right.tables["predictors"].set_index("reader").loc["lexical"]
    assert row["value"] > 0.85 and row["main"]
    wrong = mt.methods.score_description(spiked, docs, planted, ["9"], options=options, seed=0)
    assert wrong.verdict == "not distinguishable from its null"
    assert wrong.control("shuffled_descriptions").passed is False
    pattern = mt.methods.score_description(
        spiked, docs, planted, f"/(?<!\\d){TOKEN}$/", options=options, seed=0
    )
    assert (
        pattern.frame().set_index("metric").loc["lexical", "value"] == 0.5
    )  # ids stand without spaces between


def test_a_description_of_the_same_seed_is_tried_on_documents_that_showed_no_example(spiked, docs, planted):
    shown = mt.methods.max_activating(spiked, docs, planted, options=SMALL, seed=3)
    assert shown.control("disjoint").passed
    items = example_search.blocks_of(spiked, docs, 24, 20_000, 0)
    _, half = example_search.halves(items, 3)
    assert all(half[i] for i in shown.tables["tops"]["item"])


def judge_of(model, direction, docs):
    """A judge that knows the answer: whether the marked token is the one that the description names."""

    def judge(description, contexts):
        names = {w.strip(" ,") for w in description.split(":")[-1].split()}
        return [float(c.partition("«")[2].rstrip("»") in names) for c in contexts]

    return judge


def test_a_judge_that_reads_is_believed_and_one_that_does_not_is_found_out(spiked, docs, planted):
    options = {**SMALL, "active": 0.01}
    judge = judge_of(spiked, planted, docs)
    r = mt.methods.score_description(spiked, docs, planted, str(TOKEN), judge=judge, options=options, seed=0)
    assert r.verdict == "supported", r.verdict.reasons
    deaf = mt.methods.score_description(spiked, docs, planted, str(TOKEN), judge=lambda d, c: [float("«7»" in x) for x in c], options=options, seed=0)  # fmt: skip
    assert deaf.control("random_directions").passed and deaf.control("shuffled_descriptions").passed is False
    assert deaf.verdict == "not distinguishable from its null"


@pytest.mark.parametrize("answer", [[1.0], ["high"] * 200, [float("nan")] * 200, None])
def test_a_judge_that_does_not_answer_is_refused(answer, spiked, docs, planted):
    with pytest.raises(ControlError, match="judge"):
        mt.methods.score_description(
            spiked, docs[:40], planted, "seven", judge=lambda d, c: answer, options=SMALL
        )


# ---------------------------------------------------------------------------- controls, each with its fault


def test_same_alone_fails_where_examples_are_off_by_one(model, docs, monkeypatch):
    real = example_search._Best.add

    def shifted(self, got, mask, items):
        real(self, got, mask, items)
        self.at = (self.at - 1).clamp_min(0)

    monkeypatch.setattr(example_search._Best, "add", shifted)
    r = mt.methods.max_activating(model, docs, "L1N5.neurons", options=SMALL)
    assert r.control("same_alone").passed is False and r.verdict == "invalid"


def test_disjoint_fails_where_the_halves_leak(model, docs):
    units = units_of(model, "L1N5.neurons")
    items = example_search.blocks_of(model, docs[:30], 16, 10_000, 0)
    found = example_search.search(model, items, units, None, k=5, sample=200, first=False, batch=2048, seed=0)
    assert examples.disjoint(found).passed
    leaked = replace(found, document=found.document // 2)
    assert examples.disjoint(leaked).passed is False and examples.disjoint(leaked).gates


def test_first_tokens_are_left_out_unless_asked_for_and_then_the_control_fails(model, docs):
    """Heads of this model write most at the first token, which attends to itself alone."""
    left = mt.methods.max_activating(model, docs, "L1.head_out", options=SMALL)
    assert left.control("first_token").passed and left.tables["summary"]["first_tokens"].max() > 0.3
    kept = mt.methods.max_activating(model, docs, "L1.head_out", options={**SMALL, "first": True})
    assert kept.control("first_token").passed is False
    assert (left.tables["tops"]["position"] > 0).all() and (kept.tables["tops"]["position"] == 0).any()


def test_beyond_the_top_fails_where_a_story_fits_the_top_only():
    activation = np.arange(400.0)
    o = examples.ExampleOptions()

    def told(scores):
        return describing.Scored(
            "x", np.arange(400), scores, 0.9, 0.8, 1.0, np.full(99, 0.6), np.full(9, 0.5)
        )

    assert describing._below_top(told(activation), activation, o).passed
    top_only = np.where(activation >= 396, 1.0, np.random.default_rng(0).random(400) / 2)
    assert describing._below_top(told(top_only), activation, o).passed is False
    held = examples.Held(np.stack([top_only] * 60, 1), np.zeros((400, 60), bool), np.stack([activation] * 60, 1), np.arange(400), np.zeros(60))  # fmt: skip
    assert examples._beyond(held, 1, o).passed is False
    better = np.stack([activation, *[top_only] * 59], 1)
    assert examples._beyond(replace(held, predicted=better), 1, o).passed


def test_ngrams_is_beaten_or_not():
    def scored(value):
        return describing.Scored("x", np.arange(9), np.arange(9.0), value, 0, 1, np.zeros(9), np.zeros(9))

    assert describing._against_ngrams(scored(0.9), scored(0.8)).passed
    assert describing._against_ngrams(scored(0.7), scored(0.8)).passed is False


# ---------------------------------------------------------------------------- parts


def test_areas_are_those_of_the_roc_and_intervals_cover():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 8, (60, 3)).astype(float), rng.random((60, 3)) < 0.3
    for c in range(3):
        assert areas(scores, truth)[c] == pytest.approx(roc(scores[:, c], truth[:, c]).area)
    assert areas(scores[:, 0], truth)[1] == pytest.approx(roc(scores[:, 0], truth[:, 1]).area)
    document = rng.integers(0, 20, 60)
    one, turned = (area(s * scores[:, 0], truth[:, 0], document) for s in (1, -1))
    assert [1 - one.high, 1 - one.value, 1 - one.low] == pytest.approx(
        [turned.low, turned.value, turned.high]
    )
    covered = 0
    for _ in range(
        400
    ):  # positives are one higher: the true area is P(Z > -1 / sqrt 2) = 0.7602; documents shift both
        document = np.repeat(np.arange(30), 8)
        positive = rng.random(240) < 0.3
        found = area(rng.standard_normal(240) + positive, positive, document)
        covered += found.low <= 0.76025 <= found.high
    assert 0.90 <= covered / 400 <= 0.985
    for bad in ((scores[:, :2], truth), (np.full((60, 3), np.nan), truth), (scores, np.ones((60, 3), bool))):
        with pytest.raises(ControlError):
            areas(*bad)


def test_ngrams_predict_means_and_lean_where_little_is_known():
    before, here = np.array([1, 1, 2, 2, 5]), np.array([3, 3, 3, 4, 4])
    values = np.array([[2.0], [4.0], [0.0], [1.0], [3.0]])
    fitted = NGrams(before, here, values)
    by_token = (2 + 4 + 0 + 2.0) / 4  # leans towards the mean of all, 2
    assert fitted.of_tokens(np.array([3]))[0, 0] == pytest.approx(by_token)
    assert fitted(np.array([1]), np.array([3]))[0, 0] == pytest.approx((6 + by_token) / 3)
    assert fitted(np.array([9]), np.array([3]))[0, 0] == pytest.approx(by_token)
    assert fitted(np.array([9]), np.array([99]))[0, 0] == pytest.approx(2.0)


def test_words_are_found_whole_and_fade():
    texts = Texts(
        [[0] * 3] * 4, [[" the", " cat", " sat"], [" con", "cat", "enate"], [" a", " 19", "87"], ["Cat"]]
    )
    assert texts.lexical(["cat"]).tolist() == [
        0.5,
        0.5,
        0.0,
        1.0,
    ]  # "cat" is a token of its own in "concatenate"
    assert texts.lexical(r"/\d{4}/").tolist() == [0, 0, 1, 0]
    assert texts.lexical("something about cats or a cat").tolist() == [0.5, 0.5, 0.0, 1.0]
    assert texts.marked()[2] == " a 19«87»"


# ---------------------------------------------------------------------------- bad input, pages


@pytest.mark.parametrize(
    ("of", "kind", "match"),
    [
        ("L*.neurons", SiteError, "points or layers"),
        ("L1.resid_post", SiteError, "no units of its own"),
        ("L1.pattern", SiteError, "every pair"),
        ("L1.neurons@-1", SiteError, "position"),
        ("L1N99.neurons", SiteError, "neuron 99"),
    ],
)
def test_addresses_without_units_are_refused(of, kind, match, model, docs):
    with pytest.raises(kind, match=match):
        mt.methods.max_activating(model, docs, of)


def test_directions_that_do_not_belong_here_are_refused(model, docs):
    good = mt.Direction(torch.ones(24), "L1.resid_post", model.hash, "a")
    for bad, match in (
        (mt.Direction(torch.ones(9), "L1.resid_post"), "9 components"),
        (mt.Direction(torch.ones(24), "L1.resid_post", "ffff"), "another model"),
        ([good, mt.Direction(torch.ones(24), "L0.resid_post", name="b")], "one pass reads one site"),
        ([good, good], "two directions"),
    ):
        with pytest.raises(EditError, match=match):
            mt.methods.max_activating(model, docs, bad)
    for rows in (torch.ones(2, 9), torch.zeros(2, 24), torch.full((2, 24), torch.nan)):
        with pytest.raises(EditError):
            mt.methods.max_activating(model, docs, "L1.resid_post", directions=rows)


@pytest.mark.parametrize(
    ("corpus", "match"),
    [([], "no items"), ([[3, 4, 5]], "one document"), ([[3], [4], [5]], "no token to look at"), ([[3, 4], [5, 6]], "held-out tokens")],
)  # fmt: skip
def test_a_corpus_with_too_little_text_is_refused(corpus, match, model):
    with pytest.raises(MicrotomeError, match=match):
        mt.methods.max_activating(model, corpus, "L1N5.neurons")


@pytest.mark.parametrize(
    "options", [{"kk": 1}, {"k": 0}, {"strata": (0, 1, 0.5)}, {"active": 0.7}, {"draws": 3}, {"sample": 2}]
)
def test_options_that_make_no_sense_are_refused(options, model, docs):
    with pytest.raises(MicrotomeError):
        mt.methods.max_activating(model, docs, "L1N5.neurons", options=options)


@pytest.mark.parametrize("description", ["", "  ", [], ["", "a"], "/(/", 7])
def test_descriptions_that_say_nothing_are_refused(description, model, docs):
    with pytest.raises(MicrotomeError):
        mt.methods.score_description(model, docs, "L1N5.neurons", description)


def test_activations_that_are_not_finite_are_named(docs):
    hf = tiny.build("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[5] = torch.inf
    with pytest.raises(ModelError, match=r"L1N5.neurons, block \d+, position"):
        mt.methods.max_activating(mt.load(hf), docs, "L1.neurons")


def test_the_report_shows_examples_and_escapes_them(spiked, docs, planted, tmp_path, monkeypatch):
    monkeypatch.setattr(type(spiked), "strings", lambda self, ids: [f"<b>{i}</b>&" for i in ids])
    r = mt.methods.max_activating(spiked, docs, planted, options=SMALL)
    names = [p.name for p in pictures_of(r)]
    assert names[0] == "detection" and {"activations of seven", "top of seven", "strata of seven", "random of seven", "logits of seven"} <= set(names)  # fmt: skip
    page = write_report(r, tmp_path / "r.html").read_text("utf-8")
    assert "<b>7</b>" not in page and "&lt;b&gt;7&lt;/b&gt;&amp;" in page
    assert all(len(e["tokens"]) == len(e["activations"]) for e in r.raw_examples)
    assert page.count('class="tok up"') > 5 and page.count('class="tok down"') > 5
