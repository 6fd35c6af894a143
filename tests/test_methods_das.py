"""Distributed alignment search: a planted subspace is found, an illusion is caught, and nothing is found where there is nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import aligned
import planted
import tiny
from microtome import methods
from microtome.errors import SiteError, TaskError
from microtome.methods import alignment_controls, alignment_setup, rotation
from microtome.results import observe
from microtome.results.arguments import ArgumentError

STREAM, NEURONS = "L1.resid_post@-1", "L2.neurons@-1"
FAST = {"steps": 80, "placebos": 1, "seed": 0}


def accuracy(result, what, part="entity"):
    table = result.tables["accuracy"]
    (row,) = table[(table["what"] == what) & (table["part"] == part)].to_dict("records")
    return row


def search(model, task, **changes):
    return methods.das(model, task, **{"variable": "word", "site": STREAM, "k": 3, **FAST, **changes})


@pytest.fixture(scope="module")
def stream_model():
    return aligned.through_stream()


@pytest.fixture(scope="module")
def stream(stream_model):
    return search(stream_model, aligned.pairs())


@pytest.fixture(scope="module")
def neurons():
    return search(aligned.through_neurons(), aligned.pairs(), site=NEURONS)


@pytest.fixture(scope="module")
def illusion():
    return search(aligned.illusion(), aligned.pairs(words=2), site=NEURONS, k=1)


# ---------------------------------------------------------------------------- planted truth


def test_a_planted_subspace_is_found_and_supported(stream) -> None:
    assert stream.verdict == "supported" and stream.verdict.p <= 0.001
    for part in ("entity", "template"):
        assert (
            accuracy(stream, "subspace", part)["value"]
            == 1.0
            == accuracy(stream, "full vector", part)["value"]
        )
        assert (
            accuracy(stream, "no intervention", part)["value"] < 0.4
            and accuracy(stream, "chance", part)["value"] == 0.25
        )
        assert accuracy(stream, "unpatched model right", part)["value"] == 1.0
    assert stream.control("ceiling").passed
    assert {"held_out_entities", "held_out_templates", "random_twin", "irrelevant_variable"} <= set(
        stream.verdict.mandatory
    )


def test_the_basis_is_orthonormal_and_spans_the_differences_of_words(stream) -> None:
    basis = stream.tensors["basis"]
    assert basis.shape == (24, 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    words = np.eye(24)[:4] - np.eye(24)[:4].mean(0)
    truth = np.linalg.svd(words)[2][:3]
    # cosines of the principal angles; what nothing reads and no prompt moves is free, so they need not be 1
    cosines = np.linalg.svd(truth @ basis)[1]
    drawn = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 24, 3)))[0]
    random = np.linalg.svd(truth @ drawn)[1]
    assert cosines.min() > np.quantile(random.min(-1), 0.99) and cosines.mean() > random.mean(-1).max() > 0.3


def test_a_split_by_the_reader_is_refused_where_there_is_none(stream) -> None:
    for name in ("row_space", "null_space", "natural_variance"):
        control = stream.control(name)
        assert control.passed is None and "no one wide linear reader" in control.detail
    assert stream.tables["subspace"]["natural_variance"].min() > 1


def test_at_neurons_that_are_read_the_row_space_does_it_and_the_rest_nothing(neurons) -> None:
    assert neurons.verdict == "supported"
    assert {"row_space", "null_space", "natural_variance"} <= set(neurons.verdict.mandatory)
    assert accuracy(neurons, "row space only")["value"] == 1.0
    assert accuracy(neurons, "null space only")["value"] == accuracy(neurons, "no intervention")["value"]
    assert (
        neurons.tables["subspace"]["read_share"].min() > 0.5
        and neurons.control("natural_variance").observed < 1.5
    )


def test_effects_are_exchanged_minus_left_alone_prompt_by_prompt(stream) -> None:
    table, values = stream.tables["interchanges"], stream.effects.values[0]
    assert stream.effects.coords["site"] == (STREAM,) and len(table) == values.shape[0]
    np.testing.assert_allclose(values[:, 0], table["hit"] - table["base_hit"])
    assert (values[table["changes"].to_numpy(), 1] > 0).all()
    for row in table.head(20).to_dict("records"):
        assert (
            row["label"] == str(row["source"].split()[aligned.WHERE])
            or row["label"].strip("<>") in row["source"]
        )


# ---------------------------------------------------------------------------- the subspace illusion


def test_the_illusion_reaches_full_accuracy_on_held_out_prompts(illusion) -> None:
    for part in ("entity", "template"):
        assert accuracy(illusion, "subspace", part)["value"] == 1.0
        assert accuracy(illusion, "no intervention", part)["value"] < 0.6
    assert illusion.control("sign_flip").passed
    for name in (
        "random_twin",
        "shuffled_labels",
        "irrelevant_variable",
        "random_subspace",
        "held_out_entities",
        "held_out_templates",
    ):
        assert illusion.control(name).passed, name  # no placebo sees through it


def test_without_a_reader_doing_more_than_the_whole_site_decides(monkeypatch, stream) -> None:
    monkeypatch.setattr(alignment_controls, "refused", lambda model, found: "no reader here")
    result = search(aligned.illusion(), aligned.pairs(words=2), site=NEURONS, k=1)
    assert accuracy(result, "subspace")["value"] == 1.0 and result.control("row_space").passed is None
    assert result.verdict == "not distinguishable from its null"
    assert any("ceiling" in reason for reason in result.verdict.reasons)
    assert "ceiling" in stream.verdict.mandatory  # where nothing is wrong it passes


def test_the_illusion_is_caught_by_the_reader_and_the_variance(illusion) -> None:
    assert illusion.verdict == "not distinguishable from its null"
    assert not illusion.control("row_space").passed and not illusion.control("natural_variance").passed
    assert illusion.control("null_space").passed
    assert illusion.control("natural_variance").observed > 100
    assert not illusion.control("ceiling").passed and "ceiling" not in illusion.verdict.mandatory
    # neither half does anything, nor does the whole site: the model carries the word elsewhere
    for what in ("row space only", "null space only", "full vector"):
        assert accuracy(illusion, what)["value"] == accuracy(illusion, "no intervention")["value"], what
    # part of it follows the word and is not read, part is read and never moves (the rest of the direction is neither)
    basis = np.abs(illusion.tensors["basis"][:, 0])
    assert min(basis[0], basis[1]) > np.quantile(basis, 0.9)


# ---------------------------------------------------------------------------- nothing where there is nothing


def test_nothing_is_found_before_the_word_arrives(stream_model) -> None:
    result = search(stream_model, aligned.pairs(), site="L0.resid_post@-1")
    assert result.verdict == "not distinguishable from its null" and result.verdict.p == 1.0
    assert np.abs(result.effects.values[..., 0]).max() == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_random_labels_give_no_subspace(stream_model, seed) -> None:
    class Random(aligned.Copied):
        def outcome(self, values, variable, value):
            named = [int(values[v]) for v in ("word", "other", "who", "filler")]
            draw = np.random.default_rng([seed, *named, int(value)])
            return ((int(draw.choice(list(aligned.WORDS))),),)

    result = search(stream_model, aligned.pairs(source=Random()), seed=seed)
    assert result.verdict == "not distinguishable from its null"
    gain = accuracy(result, "subspace")["value"] - accuracy(result, "no intervention")["value"]
    assert gain < 0.25  # of 0.7 where labels are true


@pytest.mark.parametrize("seed", [0, 1])
def test_a_causal_model_that_the_network_does_not_follow_has_no_subspace(stream_model, seed) -> None:
    """The task claims that token 0 decides; the model copies the word whatever token 0 is."""
    code = {str(filler): (aligned.WORDS[i],) for i, filler in enumerate(aligned.FILLERS[:3])}

    class False_(aligned.Copied):
        def outcome(self, values, variable, value):
            return (code[value if variable == "other" else values["other"]],)

    task = aligned.pairs(seed=seed, source=False_())
    said = tuple((code[v["other"]],) for v in task.clean.variables)
    other = tuple(((aligned.WORDS[3],),) for _ in said)
    task = replace(task, answers=said, wrong=other, provenance={"flips": False})
    result = search(stream_model, task, variable="other", seed=seed)
    assert (
        result.verdict == "not distinguishable from its null"
        and not result.control("held_out_entities").passed
    )
    assert accuracy(result, "unpatched model right")["value"] < 0.6


def test_as_many_directions_as_the_site_has_are_no_finding(stream_model) -> None:
    result = search(stream_model, aligned.pairs(), k=24)
    assert accuracy(result, "subspace")["value"] == 1.0
    assert not result.control("random_subspace").passed and result.verdict != "supported"


def test_one_direction_of_three_is_not_the_variable(stream_model) -> None:
    result = search(stream_model, aligned.pairs(), k=1, steps=150)
    share = result.control("share_of_ceiling")
    assert (
        result.control("sign_flip").passed
        and 0.1 < share.observed["gain"] < 0.5 * share.observed["whole site"] + 0.05
    )
    assert not share.passed and result.verdict == "not distinguishable from its null"


# ---------------------------------------------------------------------------- boundless


def test_boundless_training_decides_how_many_directions_there_are(stream_model) -> None:
    result = search(stream_model, aligned.pairs(), k=24, boundless=True, steps=200)
    assert result.verdict == "supported" and 3 <= result.tensors["basis"].shape[1] <= 6
    training = result.tables["training"]
    real, placebo = (training[training["run"].str.startswith(run)] for run in ("real", "shuffled"))
    assert real["k"].iloc[0] > 10 and set(placebo["k"]) == {result.tensors["basis"].shape[1]}


def test_boundless_training_keeps_nothing_where_there_is_nothing(stream_model) -> None:
    result = search(stream_model, aligned.pairs(), site="L0.resid_post@-1", k=8, boundless=True, steps=200)
    assert result.tensors["basis"].shape == (24, 0) and result.verdict != "supported"


# ---------------------------------------------------------------------------- controls that can fail


def _found(model, **changes):
    task = aligned.pairs()
    site = alignment_setup.one_site(model, changes.pop("site", STREAM))
    return alignment_setup.search(model, alignment_setup.split(task, None, 0), "word", site, 0)


def test_a_prompt_exchanged_with_itself_is_itself(stream_model) -> None:
    found = _found(stream_model)
    basis = torch.linalg.qr(torch.randn(24, 3, generator=torch.Generator().manual_seed(0)))[0]
    assert alignment_controls.exact(found, basis).passed
    data = found.held_out[0].data
    own = rotation.exchanged(replace(data, source=data.base), torch.arange(data.n), basis)
    assert torch.equal(own, data.swaps.values[data.base])
    data.swaps.values = data.swaps.values + torch.randn(
        24, generator=torch.Generator().manual_seed(1)
    )  # a fault: the recorded values are not those of the run
    assert not alignment_controls.exact(found, basis).passed


def test_a_write_that_did_not_happen_is_seen(stream_model) -> None:
    found = _found(stream_model)
    for part in found.parts:
        rotation.measure(part.data, None)
    assert alignment_controls.fired(found).passed
    found.training.data.swaps.planned += 1
    assert alignment_controls.fired(found).passed is False


FAULTS = {
    "shuffled_labels": ("_shuffled", lambda data, seed: data.label),
    "irrelevant_variable": ("_mapped", lambda part, variable, seed: part.data),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_placebo_that_says_the_truth_fails_its_control(name, stream_model, monkeypatch) -> None:
    monkeypatch.setattr(alignment_controls, *FAULTS[name])
    result = search(stream_model, aligned.pairs())
    assert result.control(name).passed is False and result.verdict == "not distinguishable from its null"


def test_a_twin_that_is_the_model_fails_its_control(stream_model, monkeypatch) -> None:
    import copy

    monkeypatch.setattr("microtome.model.twin.twin", lambda hf, seed: copy.deepcopy(hf))
    result = search(stream_model, aligned.pairs())
    assert result.control("random_twin").passed is False and result.verdict != "supported"


def test_labels_that_hold_for_the_trained_templates_only_fail_on_the_others(stream_model) -> None:
    class Elsewhere(aligned.Copied):
        def outcome(self, values, variable, value):
            word = int(value if variable == "word" else values["word"])
            return ((word if int(values["template"]) < 28 else aligned.WORDS[(word - 9) % 4],),)

    task = aligned.pairs(source=Elsewhere())
    train = task.subset([i for i in range(task.n) if int(task.clean.variables[i]["template"]) < 28])
    rest = task.subset([i for i in range(task.n) if int(task.clean.variables[i]["template"]) >= 28])
    rest = replace(rest, provenance={**rest.provenance, "split": {"by": "template"}})
    result = search(stream_model, train, held_out=rest)
    assert result.control("held_out_templates").passed is False and result.verdict != "supported"
    assert result.control("held_out_entities").passed is None


def test_a_reader_that_is_not_the_only_one_makes_the_numbers_invalid(monkeypatch) -> None:
    model = aligned.through_neurons()
    wrong = model.weights.W_out(2).roll(5, 0)
    monkeypatch.setattr(type(model.weights), "W_out", lambda self, layer: wrong)
    result = search(model, aligned.pairs(), site=NEURONS)
    assert result.control("null_space").passed is False and result.verdict == "invalid"


# ---------------------------------------------------------------------------- held-out pairs, seeds, hygiene


def test_held_out_pairs_can_be_given_by_both_kinds(stream_model) -> None:
    task = aligned.pairs()
    rest, entities = task.split("entity", 0.3, seed=3)
    train, templates = rest.split("template", 0.3, seed=4)
    result = search(stream_model, train, held_out=[templates, entities])
    assert result.verdict == "supported"
    assert accuracy(result, "subspace", "template")["n"] == 4 * 2 * templates.n
    assert accuracy(result, "subspace", "entity")["n"] == 4 * 2 * entities.n
    alone = search(stream_model, rest, held_out=entities)
    assert alone.control("held_out_templates").passed is None and alone.control("held_out_entities").passed
    assert alone.verdict == "underpowered"  # four entities, eleven templates


def test_sources_never_come_from_another_part(stream_model) -> None:
    found = _found(stream_model)
    for part in found.parts:
        assert set(part.exchange.task.groups["entity"]) == set(part.exchange.groups("entity"))
    training, held = found.training.exchange, found.held_out[0].exchange
    assert not set(training.groups("entity")) & set(held.groups("entity"))
    assert set(found.training.data.source.tolist()) <= set(range(len(training.prompts)))


def test_the_same_seed_gives_the_same_numbers_and_nothing_is_left_behind() -> None:
    model = aligned.through_stream()
    for p in model.hf.parameters():
        p.requires_grad_(True)
    before, random = tiny.state(model.hf), torch.get_rng_state()
    one, again = (search(model, aligned.pairs(24), steps=20) for _ in range(2))
    other = search(model, aligned.pairs(24), steps=20, seed=1)
    assert tiny.state(model.hf) == before and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.hf.parameters()) and not any(
        m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules()
    )
    np.testing.assert_array_equal(one.tensors["basis"], again.tensors["basis"])
    np.testing.assert_array_equal(one.effects.values, again.effects.values)
    assert not np.array_equal(one.tensors["basis"], other.tensors["basis"])


def test_training_runs_only_the_layers_above_the_site(stream_model) -> None:
    found = _found(stream_model)
    calls = [0] * 3
    hooks = [
        layer.register_forward_pre_hook(lambda m, a, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(stream_model.binding.layers)
    ]
    try:
        rotation.train(found.training.data, rotation.Recipe(3, False, 5, 0.01, 0))
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == [0, 0, 5]


def test_observers_see_every_training(stream_model) -> None:
    seen = []
    with observe(seen.append):
        search(stream_model, aligned.pairs(24), steps=10)
    notes = {e.progress.note for e in seen if e.kind == "progress"}
    assert {"training", "placebo: shuffled_labels", "placebo: random_twin"} <= notes


def test_a_head_and_a_span_are_sites_too(stream_model) -> None:
    head = search(stream_model, aligned.pairs(), site="L1H2.z@-1")
    assert accuracy(head, "subspace")["value"] == 1.0 and head.tensors["basis"].shape == (6, 3)
    # any half of a head's six dimensions holds half of what differs, and that does it here: nothing was found
    assert head.control("random_subspace").passed is False and head.verdict != "supported"
    assert "null space to speak of" in head.control("row_space").detail
    early = search(stream_model, aligned.pairs(), site="L0.resid_post@word")
    assert early.verdict == "supported"


# ---------------------------------------------------------------------------- refusals


def test_refusals_say_what_to_do(stream_model) -> None:
    task = aligned.pairs(24)
    with pytest.raises(TaskError, match="did you mean 'word'"):
        search(stream_model, task, variable="wrd")
    with pytest.raises(SiteError, match="24 dimensions, 25 directions"):
        search(stream_model, task, k=25)
    with pytest.raises(SiteError, match="names 3 sites"):
        search(stream_model, task, site="L*.resid_post@-1")
    with pytest.raises(SiteError, match="no basis"):
        search(stream_model, task, site="L1H2.pattern@-1")
    for name, value in (("k", 0), ("steps", 0), ("placebos", True), ("lr", 0.0), ("lr", float("nan"))):
        with pytest.raises(ArgumentError, match=name):
            search(stream_model, task, **{name: value})
    with pytest.raises(TaskError, match="never changes the answer"):
        search(stream_model, task, variable="other")
    with pytest.raises(TaskError, match="declares no variables"):
        search(stream_model, replace(planted.pairs(stream_model), groups=task.subset(range(14)).groups))


def test_held_out_pairs_that_are_not_held_out_are_refused(stream_model) -> None:
    task = aligned.pairs(48)
    half, rest = task.subset(range(24)), task.subset(range(24, 48))
    with pytest.raises(TaskError, match="not held out") as error:
        search(stream_model, half, held_out=rest)
    assert "the entity" in error.value.why
    with pytest.raises(TaskError, match="not held out"):
        search(stream_model, half, held_out=half.subset(range(4)))
    train, away = task.split("entity", seed=0)
    with pytest.raises(TaskError, match="two held-out parts"):
        search(stream_model, train, held_out=[away.subset(range(8)), away.subset(range(8, 16))])
    with pytest.raises(TaskError, match="has no pairs"):
        search(stream_model, train, held_out=[])
    single = replace(task, groups={})
    with pytest.raises(TaskError, match="nothing can be held out"):
        search(stream_model, single)


def test_positions_that_are_not_one_place_are_refused(stream_model) -> None:
    task = aligned.pairs(24)
    short = {
        s: replace(getattr(task, s), ids=(getattr(task, s).ids[0][1:], *getattr(task, s).ids[1:]), spans={})
        for s in ("clean", "corrupt")
    }
    ragged = replace(task, **short)
    for site in ("L1.resid_post", "L1.resid_post@3", "L1.resid_post@2:4"):
        with pytest.raises(TaskError, match="no one place") as error:
            search(stream_model, ragged, site=site)
        assert "@-1" in error.value.instead
    wide = {
        s: replace(getattr(task, s), spans={"word": ((3, 5), *getattr(task, s).spans["word"][1:])})
        for s in ("clean", "corrupt")
    }
    with pytest.raises(TaskError, match="1 to 2 tokens"):
        search(stream_model, replace(task, **wide), site="L1.resid_post@word")


def test_a_task_without_another_variable_has_no_such_placebo_and_says_so(stream_model) -> None:
    task = aligned.pairs()
    word = {
        s: replace(
            getattr(task, s),
            variables=tuple({"word": v["word"]} for v in getattr(task, s).variables),
            surface=(),
        )
        for s in ("clean", "corrupt")
    }
    result = search(stream_model, replace(task, source=None, **word))
    assert (
        result.control("irrelevant_variable").passed is None
        and "irrelevant_variable" not in result.verdict.mandatory
    )
    assert result.verdict == "supported"


def test_a_site_that_no_path_leads_from_is_refused(stream_model) -> None:
    for site in ("L2.resid_post@3", "L2.mlp_out@3", "L2H1.z@0"):
        with pytest.raises(SiteError, match="cannot reach"):
            search(stream_model, aligned.pairs(24), site=site)
