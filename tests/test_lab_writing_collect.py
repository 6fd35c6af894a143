"""What a write-up says is what the record has: experiments, predictions, limitations, what is left out; and what is refused."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import update

import toy_record as toy
from microtome.errors import LabError
from microtome.lab import claiming, place, schema
from microtome.lab.claiming import Link
from microtome.lab.predicting import resolve
from microtome.lab.questions import query
from microtome.lab.reading import Record
from microtome.lab.study import study
from microtome.lab.writing import Words, collect
from microtome.lab.writing.refusing import words_in


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    place.init(tmp_path)
    with study("names", folder=tmp_path) as s:
        yield s
    s.database.close()


def gather(s, claims=(), **words):
    record = Record(s.place)
    try:
        seed = words.pop("seed", 0)
        return collect(record, claims, Words(**words), seed=seed)
    finally:
        record.close()


def claim(s, evidence, **more):
    return s.claim("a head does it", evidence=evidence, **{**toy.WORDS, **more})


def refusal(s, claims=()):
    with pytest.raises(LabError) as caught:
        gather(s, claims)
    return caught.value


# ----------------------------------------------------------------------------------------------- what is told


def test_experiments_come_with_their_predictions_numbers_and_controls(here):
    row = toy.fill(here)
    made = gather(here, summary="short", why={f"{row.number}.1": "it stands out"})
    (part,) = made.claims
    first, second = part.experiments
    assert (first.row.method, second.row.method) == ("activation_patching", "ablation")
    assert [p.statement for p in first.predictions] == ["patching finds a place"]
    assert [(p.state, p.post_hoc) for p in second.predictions] == [("false", True)]
    assert first.numbers and first.numbers[0].null_low < first.numbers[0].value and first.n == 8
    assert first.why == "it stands out" and second.why == ""
    assert dict(second.what)["model"].startswith("toy (") and "took" in dict(second.what)
    assert part.rung == part.claim.rung.name and any("false" in cap for cap in part.caps)
    assert made.runs == (1, 2) and made.title == "L3H3 carries the name" and made.authors == ("ada",)


def test_without_words_of_the_author_the_note_of_the_link_says_why(here):
    toy.fill(here)
    assert gather(here).claims[0].experiments[0].why == "the place where the name is moved"


def test_runs_that_are_left_out_are_counted_by_state_and_verdict(here):
    toy.fill(here)
    made = gather(here)
    told = {(x.state, x.verdict, x.method): x.runs for x in made.left_out}
    assert told == {
        ("failed", "", "behaviour"): 1,
        ("finished", "supported", "behaviour"): 1,
        ("finished", "not distinguishable from its null", "behaviour"): 1,
    }
    assert made.looks == 1


def test_examples_are_drawn_by_the_seed_and_not_by_order(here):
    toy.fill(here)
    one, same = gather(here, seed=3), gather(here, seed=3)
    assert one.claims[0].experiments[0].examples == same.claims[0].experiments[0].examples
    assert one.claims[0].experiments[0].examples.of == 3


def test_computed_limitations_say_what_the_author_did_not(here):
    toy.fill(here)
    said = " ".join(gather(here).computed_limitations)
    for expected in ("One model only: toy", "One kind of prompts only: ioi", "post hoc for claim 1", "not calibrated",
                     "certificate of toy was never asked for", "names only", "Prediction 2 is post hoc"):  # fmt: skip
        assert expected in said, expected
    assert "One technique only" not in said


def test_a_control_that_is_not_mandatory_and_failed_is_a_limitation(here):
    result = toy.patching(toy.Model(), toy.Task(), given=("identity", "noise"), failing=("irrelevant",))
    claim(here, [result])
    said = gather(here).computed_limitations
    assert any("the control irrelevant failed; not ruled out is that irrelevant does it" in x for x in said)
    assert any("the control held_out did not run" in x for x in said)


def test_what_was_checked_names_runs_that_asked_again(here):
    result = toy.patching(toy.Model(), toy.Task())
    toy.patching(toy.Model(), toy.Task())
    claim(here, [Link(1)])
    said = gather(here).checked
    assert result.query is not None
    assert "Run 2 asked the same as run 1: every number is equal to the bit." in said
    assert any("every file has the digest that was recorded" in x for x in said)


def test_a_prediction_that_was_edited_is_told(here):
    toy.fill(here)
    with here.database.writing() as connection:
        connection.execute(update(schema.prediction).values(probability=0.99))
    assert any("do not fit what is recorded" in x for x in gather(here).checked)


def test_predictions_are_scored_and_too_few_are_said_to_be(here):
    toy.fill(here)
    about = query("ablation", model="another")
    for i in range(10):
        p = here.predict(f"number {i}", 0.9 if i < 8 else 0.2, about)
        resolve(here.database, p.number, i < 7, reason="seen", person="ada")
    scored = {s.kind: s for s in gather(here).scored}
    assert scored["judged"].curve and scored["judged"].score.n == 10
    assert not scored["computed"].curve and scored["computed"].made == 1
    assert scored["computed, post hoc"].score.came_true == 0


def test_a_prediction_that_a_person_judges_stands_at_the_runs_that_it_is_about(here):
    before = here.predict("it will look like a diagonal", 0.6, query("activation_patching", model="toy"))
    other = here.predict("something of another model", 0.6, query("activation_patching", model="another"))
    result = toy.patching(toy.Model(), toy.Task())
    late = here.predict("it will be seen again", 0.6, query("activation_patching", model="toy"))
    claim(here, [result])
    (e,) = gather(here).claims[0].experiments
    assert [p.number for p in e.predictions] == [before.number] != [other.number, late.number]
    resolve(here.database, before.number, True, reason="seen", person="ada")
    toy.patching(toy.Model(), toy.Task(hash="2222" * 8))
    claim(here, [Link(2)])
    assert [p.number for p in gather(here, [2]).claims[0].experiments[0].predictions] == [late.number]


def test_a_run_against_the_claim_is_told_though_its_control_did_not_run(here):
    good = toy.patching(toy.Model(), toy.Task())
    toy.ablation(toy.Model(), toy.Task(), given=("identity",))
    claim(here, [good, Link(2, supports=False)])
    made = gather(here)
    assert [e.link.supports for e in made.claims[0].experiments] == [True, False]
    assert any("speaks against it" in x for x in made.computed_limitations)


def test_a_look_is_told_as_a_look(here):
    from microtome.results import emit_look

    emit_look(toy.Model(), ["a prompt"], ["L0.resid_pre"])
    claim(here, [Link(1)])
    (e,) = gather(here).claims[0].experiments
    assert (e.verdict, e.result, e.numbers) == ("a raw look", None, ())


def test_a_capped_claim_is_written_with_its_cap(here):
    result = toy.patching(toy.Model(), toy.Task())
    here.claim("a head does it", evidence=[result])
    part = gather(here).claims[0]
    assert part.rung == "observed" and any("no alternative is written" in cap for cap in part.caps)


def test_a_claim_that_rests_on_its_null_only_is_refused(here):
    claim(here, [toy.patching(toy.Model(), toy.Task(), p=0.3)])
    claim(here, [toy.patching(toy.Model(), toy.Task(hash="2222" * 8))])
    assert "nothing supports claim 1" in refusal(here).what
    assert gather(here, [2]).claims[0].rung == "causal on this prompt set"


def test_controls_of_stages_that_failed_are_not_out_of_sight(here):
    from microtome.lab.writing import html, markdown

    claim(here, [toy.whole(toy.Model(), toy.Task())])
    made = gather(here)
    (e,) = made.claims[0].experiments
    assert (
        e.question == "Which parts of SmolLM2-135M-Instruct name the indirect object?"
        and e.n == 48
        and e.examples.of == 3
    )
    assert any("9 of 37 controls of its stages failed (irrelevant)" in x for x in made.computed_limitations)
    for text in (html.page(made), markdown.page(made)):
        assert "residual stream" in text and "controls that passed" in text


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("missing", ["identity", "noise"])
def test_a_mandatory_control_that_did_not_run_is_refused_by_name(here, missing):
    given = [c for c in toy.CONTROLS if c != missing]
    claim(here, [toy.patching(toy.Model(), toy.Task(), given=given)])
    found = refusal(here)
    assert (
        f"claim 1 rests on run 1 (activation_patching), whose mandatory control {missing} did not run"
        == found.what
    )
    assert (
        f"no {missing} prompts were given" in found.why and "microtome lab claim link 1 RUN" in found.instead
    )


@pytest.mark.parametrize("failed", ["identity", "noise"])
def test_a_mandatory_control_that_failed_is_refused_by_name(here, failed):
    given = [c for c in toy.CONTROLS if c != failed]
    claim(here, [toy.patching(toy.Model(), toy.Task(), given=given, failing=(failed,))])
    found = refusal(here)
    assert found.what.endswith(f"whose mandatory control {failed} failed")
    assert f"that {failed} does it" in found.why and "withdraw" in found.instead


def test_weak_evidence_is_no_way_around_a_control(here):
    good = toy.patching(toy.Model(), toy.Task())
    toy.ablation(toy.Model(), toy.Task(), given=("identity",))
    claim(here, [good, Link(2, weight="weak")])
    assert "run 2 (ablation), whose mandatory control noise did not run" in refusal(here).what


def test_the_control_run_afterwards_sets_the_first_run_aside_and_says_so(here):
    toy.patching(toy.Model(), toy.Task(), given=("identity",))
    toy.patching(toy.Model(), toy.Task(hash="2222" * 8))
    claim(here, [Link(1), Link(2)])
    (part,) = gather(here).claims
    assert [e.row.number for e in part.experiments] == [2]
    assert part.set_aside == (
        "run 1 was linked, and not all of its mandatory controls could tell; run 2 asked again with them",
    )


def test_an_earlier_run_sets_nothing_aside(here):
    toy.patching(toy.Model(), toy.Task(hash="2222" * 8))
    toy.patching(toy.Model(), toy.Task(), given=("identity",))
    claim(here, [Link(1), Link(2)])
    assert "run 2 (activation_patching), whose mandatory control noise did not run" in refusal(here).what


@pytest.mark.parametrize(
    "other",
    [
        lambda: toy.ablation(toy.Model(), toy.Task()),
        lambda: toy.patching(toy.Model(mark="9999" * 8), toy.Task()),
        lambda: toy.patching(toy.Model(), toy.Task(name="other")),
        lambda: toy.patching(toy.Model(), toy.Task(), given=("noise",)),
    ],
    ids=["technique", "model", "prompts", "control"],
)
def test_another_question_sets_nothing_aside(here, other):
    toy.patching(toy.Model(), toy.Task(), given=("identity",))
    other()
    claim(here, [Link(1), Link(2)], about=None)
    assert "run 1 (activation_patching), whose mandatory control noise did not run" in refusal(here).what


def test_a_control_that_failed_is_not_set_aside_by_a_run_in_which_it_passed(here):
    toy.patching(toy.Model(), toy.Task(), given=("identity",), failing=("noise",))
    toy.patching(toy.Model(), toy.Task(hash="2222" * 8))
    claim(here, [Link(1), Link(2)])
    assert "run 1 (activation_patching), whose mandatory control noise failed" in refusal(here).what


def test_a_control_that_failed_for_want_of_prompts_is_set_aside_by_more_of_them(here):
    toy.patching(toy.Model(), toy.Task(), given=("identity",), failing=("noise",), smallest_p=0.1, p=0.2)
    row = claim(here, [Link(1)])
    found = refusal(here)
    assert "noise failed (it is underpowered)" in found.what and "again with more prompts" in found.instead
    claiming.link(
        here.database, row.number, Link(toy.patching(toy.Model(), toy.Task(hash="2222" * 8))), "ada"
    )
    assert [e.row.number for e in gather(here).claims[0].experiments] == [2]


def test_an_underpowered_run_whose_controls_passed_is_written_and_said_to_be(here):
    claim(here, [toy.patching(toy.Model(), toy.Task(), smallest_p=0.1, p=0.2)])
    made = gather(here)
    assert made.claims[0].rung == "observed"
    assert any("is underpowered: no outcome of it could have counted" in x for x in made.computed_limitations)


def test_a_control_that_is_not_in_the_result_at_all_is_missing():
    from microtome.lab.writing.refusing import lacks

    assert lacks(("identity", "noise"), ["noise", "held_out"]) == ("identity",)


def test_four_claims_are_refused_and_it_is_said_which_to_choose(here):
    for i in range(4):
        here.claim(f"claim number {i}", evidence=[toy.patching(toy.Model(), toy.Task(hash=f"{i}" * 32))], **toy.WORDS)  # fmt: skip
    found = refusal(here)
    assert found.what == "4 claims are too many for one write-up"
    assert (
        "3 (causal on this prompt set): claim number 2" in found.why
        and "--claim 1 --claim 2 --claim 3" in found.instead
    )
    assert len(gather(here, [4, 2]).claims) == 2
    assert [p.claim.number for p in gather(here, [4, 2]).claims] == [4, 2]
    assert "named twice" in refusal(here, [2, 2]).what


def test_no_claim_and_a_withdrawn_claim_are_refused(here):
    assert "no claim to write up" in refusal(here).what
    row = claim(here, [toy.patching(toy.Model(), toy.Task())])
    claiming.withdraw(here.database, row.number, "it was wrong")
    found = refusal(here, [row.number])
    assert (found.what, found.why) == ("claim 1 was withdrawn", "it was wrong")


def test_a_deleted_run_is_refused(here):
    claim(here, [toy.patching(toy.Model(), toy.Task())])
    here.close()  # a study that closes keeps pictures of its runs
    _without_keys(here, "DELETE FROM run WHERE number = 1")
    assert refusal(here).what == "claim 1 rests on run 1, which is not in the record any more"


def _without_keys(s, statement):
    import sqlite3

    s.database.close()
    connection = sqlite3.connect(s.place.database)
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_missing_file_of_a_result_is_refused(here):
    claim(here, [toy.patching(toy.Model(), toy.Task())])
    record = Record(here.place)
    key = record.files_of(1, "result")[0].key
    record.close()
    here.close()
    here.files.path(key).unlink()
    assert key in refusal(here).what


def test_601_words_are_refused_with_the_count_and_600_are_not(here):
    toy.fill(here)
    assert words_in("- **one** two\n\n— three-four `5`") == 4
    assert gather(here, summary="word " * 600).summary
    with pytest.raises(LabError, match="the summary has 601 words") as caught:
        gather(here, summary="word " * 601)
    assert "cut 1" in caught.value.instead


def test_everything_that_is_told_is_json_able(here):
    from microtome.cli.lab_report import _data

    toy.fill(here)
    json.dumps(_data(gather(here)))
