"""A technique that does what it is told confirms a claim on pairs that nothing in the record had seen."""

from __future__ import annotations

import json

import pytest

import planted
import tiny  # noqa: F401 - the fixture `hygiene` looks at the models
from microtome.lab import claiming, place
from microtome.lab.claim_rows import read
from microtome.lab.freshness import Prompts, prompts_of, shared
from microtome.lab.reading import open_record
from microtome.lab.study import study
from microtome.results import Control, Result, technique, verdict

HELD, HERE = "causal on held-out prompts", "causal on this prompt set"
SITE = "L1H2.z"


def _toy(name):  # the registry of the whole test run knows nothing of it
    @technique(name, "1", controls=("identity",), mandatory=("identity",), random=True)
    def toy(model, task, *, sites=SITE, held_out=None, seed=0):
        made = [Control("identity", "that it is nothing", "no change", 0.0, True, 8, gates=True)]
        return Result(name, controls=made, verdict=verdict(made, ("identity",), 0.0002, 0.001, 0.0001))

    return toy


ablation, patching, paths = _toy("ablation"), _toy("activation_patching"), _toy("path_patching")


@pytest.fixture(scope="module")
def model():
    return planted.one_head()


@pytest.fixture(scope="module")
def halves(model):
    """Pairs in two halves that share no entity."""
    return planted.pairs(model, n=24).split("entity", seed=0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    place.init(tmp_path)
    with study("names", folder=tmp_path) as s:
        yield s
    s.database.close()


def claim(s, model, evidence, **about):
    about = {"model": model.hash, "sites": [SITE], **about}
    return s.claim("it moves the token", about={k: v for k, v in about.items() if v}, evidence=[evidence], alternatives=["any does"], falsifiers=["it costs nothing"])  # fmt: skip


def linked(s, row, result):
    claiming.link(s.database, row.number, result, "ada")
    record = open_record(s.place.folder)
    found = read(record, row.number, stale=lambda record, rows: {})
    record.close()
    return found


def why(row):
    return "; ".join(c.why for c in row.rung.caps if c.piece == row.pieces[-1].piece.name)


@pytest.mark.parametrize("told", [ablation, paths], ids=["ablation", "paths"])
def test_pairs_that_nothing_saw_before_the_claim_are_held_out(here, model, halves, told):
    kept, other = halves
    row = claim(here, model, told(model, kept))
    assert row.rung.name == HERE
    row = linked(here, row, told(model, other))
    assert row.rung.name == HELD and row.rung.by == ("run 2",)


def test_the_same_pairs_a_part_of_them_or_their_entities_are_not(here, model, halves):
    kept, other = halves
    row = claim(here, model, ablation(model, kept))
    row = linked(here, row, ablation(model, kept.subset(range(4))))
    assert row.rung.name == HERE and "4 of 4 pairs are the same" in why(row)
    mixed = planted.pairs(model, n=24)
    row = linked(here, row, ablation(model, mixed))
    assert row.rung.name == HERE and "are the same" in why(row)


def test_what_was_held_out_then_was_seen_and_so_was_what_no_claim_links(here, model, halves):
    kept, other = halves
    first = patching(model, kept, held_out=other)
    row = claim(here, model, first)
    row = linked(here, row, ablation(model, other))
    assert row.rung.name == HERE and "run 1 saw these sites before the claim" in why(row)


def test_a_task_inside_a_long_argument_was_seen(here, model, halves):
    kept, other = halves
    first = patching(model, kept, held_out={"note": "x" * 5000, "more": [other]})
    row = claim(here, model, first)
    row = linked(here, row, ablation(model, other))
    assert row.rung.name == HERE and "run 1 saw these sites before the claim" in why(row)


def test_only_runs_about_these_sites_count_and_a_look_at_them_does(here, model, halves):
    kept, other = halves
    patching(model, other, sites="L0H1.z")
    row = claim(here, model, ablation(model, kept))
    assert linked(here, row, ablation(model, other)).rung.name == HELD
    model.run([list(other.clean.ids[0])], "L1H2.z")
    row = claim(here, model, ablation(model, kept, seed=1))
    row = linked(here, row, paths(model, other))
    assert row.rung.name == HERE and "(look), which saw these sites before the claim, were not kept" in why(
        row
    )


def test_a_run_after_the_claim_does_not_spoil_another_and_one_before_it_stays_post_hoc(here, model, halves):
    kept, other = halves
    row = claim(here, model, ablation(model, kept))
    paths(model, other)
    assert linked(here, row, ablation(model, other)).rung.name == HELD
    late = claim(here, model, ablation(model, other))
    assert late.rung.name == HERE and "post hoc" in "; ".join(c.why for c in late.rung.caps)


def test_a_sweep_and_a_claim_without_a_site_are_not_lifted(here, model, halves):
    kept, other = halves
    row = claim(here, model, ablation(model, kept), sites=None)
    assert linked(here, row, ablation(model, other)).rung.name == HERE
    row = claim(here, model, ablation(model, kept, seed=1))
    row = linked(here, row, patching(model, other))
    assert row.rung.name == HERE and "held_out did not run" in why(row)


def test_arguments_that_are_gone_are_not_known_and_count_as_seen(here, model, halves):
    kept, other = halves
    row = claim(here, model, ablation(model, kept))
    second = ablation(model, other)
    record = open_record(here.place.folder)
    linked(here, row, second)
    run = record.run(1)
    path = record.files.path(run.arguments)
    content = json.loads(path.read_bytes())
    assert prompts_of(record, run, {})[0].pairs and content["arguments"]["task"]["$"] == "task"
    path.unlink()
    assert prompts_of(record, run, {}) == ()
    found = read(record, row.number, stale=lambda record, rows: {})
    assert (
        found.rung.name == HERE
        and "run 1 (ablation), which saw these sites before the claim, were not kept" in why(found)
    )
    record.close()


def test_by_template_entities_may_come_again_and_templates_not():
    def made(pair, template, entity, by):
        return Prompts(
            frozenset({pair}), {"template": frozenset({template}), "entity": frozenset({entity})}, by
        )

    old = [made("a", "t1", "e1", "entity")]
    assert shared(made("b", "t2", "e1", "template"), old) == ""
    assert "the entity 'e1' is in both" in shared(made("b", "t2", "e1", "entity"), old)
    assert "the template 't1' is in both" in shared(made("b", "t1", "e2", "template"), old)
    assert "1 of 1 pairs" in shared(made("a", "t2", "e2", "template"), old)
    assert shared(made("b", "t2", "e2", "template"), []) == ""
