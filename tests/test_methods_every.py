"""Every registered technique: runs, is saved, opened and drawn again; a dissection's tree is seen by an observer."""

from __future__ import annotations

import html
import json
import re

import numpy as np
import pytest

import aligned
import diffed
import planted
import probed
import relational
import steerable
import worded
from microtome import circuits, methods, zoo
from microtome.dissect import dissect
from microtome.figures import pictures_of
from microtome.methods.functions import FunctionOptions
from microtome.methods.prompting import Sampling
from microtome.methods.removing import RemovalOptions
from microtome.methods.steer import SteeringOptions
from microtome.methods.steer_measures import Words
from microtome.report import write_report
from microtome.results import observe, open_result, registry
from microtome.tasks.grid import grid
from microtome.tasks.thought import thought

SITES = ["L*H*.z", "L*.mlp_out"]


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def task(model):
    return planted.pairs_done(model)


@pytest.fixture(scope="module")
def held_out(model):
    return planted.pairs_done(model, n=24, seed=9)


@pytest.fixture(scope="module")
def single(model, task, held_out):
    return methods.activation_patching(model, task, sites=SITES, positions="all", held_out=held_out, seed=0)


@pytest.fixture(scope="module")
def dissected(model, task, held_out):
    """A whole dissection, and what a toy observer saw of it."""
    seen = []
    with observe(seen.append):
        result = dissect(model, task, held_out=held_out, seed=0)
    return result, seen


FEW = {"draws": 20, "inflated": 20, "permutations": 99, "subsets": 2}


def _circuit(m):
    edges = ("embed->L1KV1.k", "embed->L1KV1.v", "L1H2.z->logits")
    return circuits.Circuit(edges, circuits.graph(m).shape, m.hash)


def loudest(model):
    """Any number of a model."""
    return {"largest logit": float(model.run([[0, 1, 2, 1]]).logits.max())}


MOOD = Words(tuple(steerable.GLAD), tuple(steerable.SAD))


def steered():
    """A small sweep on the planted mood."""
    return methods.steering(steerable.model(), steerable.texts(), site=steerable.SITE, coefficients=[-1, 0.5, 1], prompts=steerable.prompts(8),
                            measure=MOOD, neutral=steerable.neutral(), when="both", options=SteeringOptions(tokens=6, draws=19, band=3), seed=0)  # fmt: skip


GRID = grid("w4 {x} w6 {item}", {"x": ["w8", "w9"], "item": ["w10", "w11", "w12"]}, [" w20", " w21"], paraphrases=["w5 {x} {item}"], over=["item"])  # fmt: skip

SMALL = {"context": 12, "draws": 19, "k": 4}


def corpus(model):
    """Documents of random tokens."""
    return np.random.default_rng(0).integers(1, model.facts.d_vocab, (24, 12)).tolist()


RECIPES = {
    "circuit_discovery": lambda m, t, s: circuits.circuit_discovery(m, t, how="eap", size=6, seed=0),
    "circuit_evaluation": lambda m, t, s: circuits.circuit_evaluation(m, _circuit(m), t, held_out=planted.pairs_done(m, n=24, seed=9), options=FEW, seed=0),
    "circuit_robustness": lambda m, t, s: circuits.circuit_robustness(m, _circuit(m), t, seed=0),
    "max_activating": lambda m, t, s: methods.max_activating(m, corpus(m), "L1.z", options=SMALL, seed=0),
    "score_description": lambda m, t, s: methods.score_description(m, corpus(m), "L1H2.z", ["1", "2"], options=SMALL, seed=0),
    "activation_patching": lambda m, t, s: s,
    "attribution_patching": lambda m, t, s: methods.attribution_patching(m, t, sites=SITES, exact=s, seed=0),
    "ablation": lambda m, t, s: methods.ablation(m, t, by="zero", off_task=t.corrupt, seed=0),
    "attention_patterns": lambda m, t, s: methods.attention_patterns(m, t, texts={}, show=["L1H2"], seed=0),
    "composition": lambda m, t, s: methods.composition(m, draws=19, seed=0),
    "behaviour": lambda m, t, s: methods.behaviour(m, t, seed=0),
    "directional_ablation": lambda m, t, s: methods.directional_ablation(steerable.model(), steerable.texts(), site=steerable.SITE, prompts=steerable.moody(), harmless=steerable.prompts(4), measure=MOOD, options=RemovalOptions(draws=19, tokens=4), seed=0),
    "distributed_alignment_search": lambda m, t, s: methods.das(aligned.through_stream(), aligned.pairs(), variable="word", site="L1.resid_post@-1", k=3, steps=40, placebos=1, seed=0),
    "cross_model_patching": lambda m, t, s: methods.cross_model_patching(m, diffed.nudged(m), t, seed=0),
    "component_set": lambda m, t, s: methods.component_set(m, t, ranking=s, held_out=planted.pairs_done(m, n=24, seed=9), seed=0),
    "direct_logit_attribution": lambda m, t, s: methods.direct_logit_attribution(m, t, seed=0),
    "function_vector": lambda m, t, s: methods.function_vector(relational.model(), relational.PAIRS, options=FunctionOptions(template=relational.TEMPLATE, shots=3, heads=1, prompts=4, nulls=3, randoms=3), seed=0),
    "head_roles": lambda m, t, s: methods.head_roles(m, [list(r) * 2 for r in t.clean.ids], context=12, prompts=3, ablate=2, random_sets=3, seed=0),
    "vocabulary_svd": lambda m, t, s: methods.vocabulary_svd(m, tokens=4, seed=0),
    "logit_lens": lambda m, t, s: methods.logit_lens(m, t, seed=0),
    "model_diff": lambda m, t, s: methods.model_diff(m, diffed.nudged(m), t, options=diffed.FEW, seed=0),
    "path_patching": lambda m, t, s: methods.path_patching(m, t, sender=SITES, receiver="logits", freeze=("norms",), seed=0),
    "generalisation": lambda m, t, s: methods.generalisation(probed.model(), probed.halves(), options=probed.FAST, seed=0),
    "unsupervised": lambda m, t, s: methods.unsupervised(probed.model(), probed.texts(), site="L2.resid_post@-1", pairs=probed.contrasts(), options=probed.FAST, seed=0),
    "probe": lambda m, t, s: methods.probe(probed.model(), probed.texts(), ask=probed.ASK, options=probed.FAST, seed=0),
    "steering": lambda m, t, s: steered(),
    "prompt_grid": lambda m, t, s: methods.prompt_grid(worded.with_words(m), GRID, seed=0),
    "token_attribution": lambda m, t, s: methods.token_attribution(m, t, orders=4, seed=0),
    "chain_of_thought": lambda m, t, s: methods.chain_of_thought(worded.with_words(m), thought("w4 w5", ["w8", "w9"], " w6 w7\nw10 w11\nw12"), sampling=Sampling(n=4, max_new_tokens=3), seed=0),
    "training_dynamics": lambda m, t, s: zoo.dynamics(zoo.build("induction_heads", n=4).checkpoints()[:3], loudest, nulls=2, seed=0),
    "lenses": lambda m, t, s: methods.lenses(m, corpus(m), options=methods.FitOptions(context=12, blocks=12, skip=2, steps=20, tokens=48, columns=0, rate=1e-2), held_out=11, seed=0),
    "patchscope": lambda m, t, s: methods.patchscope(worded.with_words(m), ["w3", "w5", "w7"], "L1.resid_post", answers=["w3", "w5", "w7"], target_prompt="w9 w9 w11", placeholder="w11", randoms=2, seed=0),
}  # fmt: skip


STAGES = {"activation_patching", "attention_patterns", "attribution_patching", "behaviour", "circuit_discovery", "circuit_evaluation",
          "circuit_robustness", "component_set", "direct_logit_attribution", "training_dynamics"}  # fmt: skip


def test_every_technique_has_a_recipe() -> None:
    built_in = {n for n in registry.names("techniques") if registry.get("techniques", n).__module__.startswith("microtome.")}  # fmt: skip
    assert built_in == {*RECIPES, "dissect"}


def _same_after_saving(result, folder) -> None:
    again = open_result(result.save(folder))
    assert again.kind == result.kind and again.verdict == result.verdict and again.query == result.query
    if result.effects is not None:
        assert again.effects.dims == result.effects.dims and again.effects.coords == result.effects.coords
        np.testing.assert_array_equal(again.effects.values, result.effects.values)
    assert [c.name for c in again.controls] == [c.name for c in result.controls]
    assert [c.outcome for c in again.controls] == [c.outcome for c in result.controls]
    for name, table in result.tables.items():
        assert list(again.tables[name].columns) == list(table.columns) and len(again.tables[name]) == len(
            table
        )
    drawn, redrawn = result.figure(), again.figure()
    assert len(drawn.data) > 0
    assert json.loads(drawn.to_json()) == json.loads(redrawn.to_json())
    assert [c.kind for c in again.children] == [c.kind for c in result.children]
    for mine, theirs in zip(result.frame().columns, again.frame().columns, strict=True):
        assert mine == theirs


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_saved_result_is_the_same_and_draws_the_same(name, model, task, single, tmp_path) -> None:
    result = RECIPES[name](model, task, single)
    assert result.query is not None and result.query.method == name
    assert {c.name for c in result.controls} <= set(registry.get("techniques", name).spec.controls)
    _same_after_saving(result, tmp_path / name)


def test_a_saved_dissection_is_the_same_and_draws_the_same(dissected, tmp_path) -> None:
    result, _ = dissected
    _same_after_saving(result, tmp_path / "dissect")
    for child in result.children:
        _same_after_saving(child, tmp_path / f"child-{child.kind}-{id(child)}")


def test_an_observer_sees_the_whole_tree_of_a_dissection(dissected) -> None:
    result, seen = dissected
    begun = [e for e in seen if e.kind == "begin"]
    ended = {e.run: e for e in seen if e.kind == "end"}
    (root,) = [e for e in begun if e.parent is None]
    assert root.method == "dissect" and set(ended) == {e.run for e in begun}
    children = [e for e in begun if e.parent == root.run]
    assert [ended[e.run].result.kind for e in children] == [c.kind for c in result.children]
    assert ended[root.run].result is result
    order = [e.run for e in seen if e.kind in ("begin", "end")]
    assert order[0] == order[-1] == root.run and len(children) == 12
    progress = [e.progress for e in seen if e.kind == "progress"]
    assert progress and all(p.total is None or 0 <= p.done <= p.total for p in progress)


def test_a_dissection_says_what_was_dissected_and_with_which_pairs(dissected, task, held_out) -> None:
    about = dissected[0].tables["about"].set_index("name")["value"]
    assert about["hash of the pairs"] == task.hash and about["hash of the held-out pairs"] == held_out.hash


def test_the_same_seed_gives_the_same_numbers(model, task, held_out, dissected) -> None:
    again = dissect(model, task, held_out=held_out, seed=0)
    for one, other in zip(dissected[0].children, again.children, strict=True):
        if one.effects is not None:
            np.testing.assert_array_equal(one.effects.values, other.effects.values)
        assert [(c.name, c.outcome) for c in one.controls] == [(c.name, c.outcome) for c in other.controls]


def _figures(page):
    """(data and layout that the page draws, Python that the reader copies) of every figure."""
    parts = re.findall(r'class="plot-data">(.*?)</script>.*?<code>(import microtome.*?)</code>', page, re.S)
    assert len(parts) == page.count('class="plot-data"') == page.count('class="copy"')
    return [(json.loads(data), html.unescape(code)) for data, code in parts]


def _every_copied_python_draws_its_figure(result, folder, monkeypatch):
    """Run what each button copies, as a stranger would, and compare all that it draws."""
    shown = []
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda self: shown.append(self))
    saved = result.save(folder / "it's here")
    page = write_report(open_result(saved), folder / "report.html", folder=saved).read_text("utf-8")
    figures = _figures(page)
    for drawn, code in figures:
        exec(compile(code, "copied", "exec"), {})
        again = json.loads(shown.pop().to_json())
        again["layout"].pop("meta", None)
        drawn["layout"].pop("meta", None)
        assert again == drawn, code
    return len(figures)


def test_every_copy_as_python_of_a_dissection_draws_the_same_numbers(
    dissected, tmp_path, monkeypatch
) -> None:
    assert _every_copied_python_draws_its_figure(dissected[0], tmp_path, monkeypatch) >= 15


@pytest.mark.parametrize("name", sorted({*RECIPES} - STAGES))  # those that are no stage of a dissection
def test_every_copy_as_python_of_a_technique_draws_the_same_numbers(name, model, task, single, tmp_path, monkeypatch) -> None:  # fmt: skip
    result = RECIPES[name](model, task, single)
    assert _every_copied_python_draws_its_figure(result, tmp_path, monkeypatch) == len(pictures_of(result))


def test_every_effect_stands_beside_its_null(dissected) -> None:
    """Each cell that can differ has a null band, in every stage that tests cells."""
    tested = [c for c in dissected[0].children if c.effects is not None and "cells" in c.tables]
    assert {"activation_patching", "attribution_patching", "direct_logit_attribution"} <= {
        c.kind for c in tested
    }
    for child in tested:
        frame = child.frame()
        zero = child.tensors.get("structurally_zero", np.zeros(len(frame), bool)).reshape(-1).astype(bool)
        assert frame.loc[~zero, ["low", "high", "null_low", "null_high"]].notna().all().all(), child.kind


def test_a_vocabulary_of_four_words_and_a_context_of_six_tokens_are_enough():
    import microtome.zoo as zoo
    from microtome import methods

    z = zoo.build("shift")
    assert z.model.facts.d_vocab < 6 and z.model.facts.n_ctx < 49
    found = methods.behaviour(z.model, z.task)
    assert len(found.raw_examples[0]["top"]) == min(5, z.model.facts.d_vocab)
    table = methods.attention_patterns(z.model, z.task).tables["detectors"]
    top = table.sort_values("score").iloc[-1]
    assert (top["site"], top["detector"]) == ("L0H0.pattern", "previous") and top["score"] > 0.9


def test_one_component_is_no_choice():
    import microtome.zoo as zoo
    from microtome import methods
    from microtome.errors import ControlError

    z = zoo.build("shift")
    ranking = methods.activation_patching(z.model, z.task, sites="L*H*.z", positions="all", controls="none")
    with pytest.raises(ControlError, match="one component is no choice"):
        methods.component_set(z.model, z.task, ranking=ranking, held_out=None)
