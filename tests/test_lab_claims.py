"""Claims in a real record: what is refused, what evidence counts as, what caps it, and two processes that link at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pandas as pd
import pytest
from sqlalchemy import delete, insert, text, update
from typer.testing import CliRunner

import toy_results
from microtome.cli import lab_claims
from microtome.errors import LabError, SiteError
from microtome.lab import claiming, place, schema
from microtome.lab.cells import AtSites, at_sites
from microtome.lab.claim_rows import list_claims, read
from microtome.lab.claim_telling import as_dict, as_text, lines, steps
from microtome.lab.claiming import Link
from microtome.lab.expecting import expect
from microtome.lab.questions import Question
from microtome.lab.reading import Record
from microtome.lab.study import study
from microtome.results import Control, ObserverWarning, Query, Result, emit_look, technique, verdict
from microtome.results.frozen import dumps


class Model:
    def __init__(self, name="toy", mark="abcd" * 8):
        self.name, self.hash = name, mark


@dataclass(frozen=True)
class Task:
    name: str = "ioi"
    hash: str = "77c0" * 8


CONTROLS = ("identity", "noise", "held_out")


def _result(kind, outcomes, p):
    made = []
    for name in CONTROLS:
        passed = outcomes.get(name)
        made.append(Control.not_run(name, "that it is nothing", "it is something", f"no {name} was given", gates=name == "identity") if passed is None
                    else Control(name, "that it is nothing", "it is something", 0.1, passed, 8, gates=name == "identity"))  # fmt: skip
    return Result(kind, controls=made, verdict=verdict(made, ("identity", "noise"), p, 0.001, 0.0001))


def _toys():  # local: the registry of the whole test run knows nothing of them
    def make(name):
        @technique(name, "1", controls=CONTROLS, mandatory=("identity", "noise"), random=True)
        def toy(model, task, *, given=("identity", "noise"), failing=(), p=0.0002, sites="L9H6.z", seed=0):
            if p is None:
                raise ValueError("broken")
            return _result(name, {**dict.fromkeys(given, True), **dict.fromkeys(failing, False)}, p)

        return toy

    return {
        name: make(name) for name in ("activation_patching", "ablation", "logit_lens", "dissect", "plugin")
    }


TOYS = _toys()
patching, ablation = TOYS["activation_patching"], TOYS["ablation"]
ALL = ("identity", "noise", "held_out")
WORDS = {"alternatives": ["any head does it"], "falsifiers": ["removing it costs less than 10 %"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    monkeypatch.delenv("MICROTOME_LAB_URL", raising=False)
    place.init(tmp_path)
    with study("names", folder=tmp_path) as s:
        yield s
    s.database.close()


def fresh(record, rows):
    return {}


def claim(s, statement="L9H6 moves the name", **more):
    return s.claim(statement, **{**WORDS, **more})


def again(s, row, **more):
    record = Record(s.place)
    found = read(record, row.number, **{"stale": fresh, **more})
    record.close()
    return found


def link(s, row, thing, **more):
    claiming.link(s.database, row.number, Link(thing, **more) if more else thing, "ada")
    return again(s, row)


def reasons(row):
    return " | ".join(f"{c.piece}: {c.why}" for c in row.rung.caps)


# ------------------------------------------------------------------------------------------------ up the ladder


def test_a_claim_climbs_as_its_evidence_does(here):
    model = Model()
    seen = patching(model, Task())
    row = claim(here, evidence=[seen])
    assert (row.rung.name, row.rung.by) == ("causal on this prompt set", ("run 1",))
    assert "it began before the claim was made" in reasons(row)
    row = link(here, row, patching(model, Task(hash="1111" * 8), given=ALL))
    assert (row.rung.name, row.rung.by) == ("causal on held-out prompts", ("run 2",))
    row = link(here, row, ablation(model, Task()))
    assert (row.rung.name, row.rung.skipped) == ("replicated", ("predictive",))
    assert row.title == "names" and row.person == "ada" and [p.run for p in row.pieces] == [1, 2, 3]


def test_a_run_whose_mandatory_control_did_not_run_caps_and_the_reason_is_shown(here):
    row = claim(here)
    row = link(here, row, patching(Model(), Task(), given=("identity", "held_out")))
    assert row.rung.name == "observed"
    assert "the mandatory control noise did not run: no noise was given" in reasons(row)
    told = "\n".join(lines(row))
    assert "claim 1: observed" in told and "noise did not run" in told and "microtome lab show 1" in told
    row = link(here, row, patching(Model(), Task(hash="2222" * 8), failing=("noise",)))
    assert row.rung.name == "observed" and "the mandatory control noise failed" in reasons(row)


def test_the_same_question_asked_before_the_claim_is_post_hoc_whatever_the_seed_and_time(here):
    patching(Model(), Task(), given=ALL)
    row = claim(here)
    row = link(here, row, patching(Model(), Task(), given=ALL, seed=1))
    assert row.rung.name == "causal on this prompt set"
    assert "run 1 had asked the same before the claim was made" in reasons(row)


def test_a_seed_that_came_out_as_its_null_is_found_without_being_linked(here):
    # whether a toy is significant is no parameter of a real technique; here the seed decides it
    @technique("ablation", "1", controls=CONTROLS, mandatory=("identity", "noise"), random=True)
    def seeded(model, task, *, sites="L9H6.z", seed=0):
        return _result("ablation", dict.fromkeys(ALL, True), 0.4 if seed == 0 else 0.0002)

    row = claim(here)
    seeded(Model(), Task())
    row = link(here, row, seeded(Model(), Task(), seed=1))
    assert row.rung.name == "observed"
    assert "the same question came out as its null in run 1" in reasons(row)


def test_a_run_that_failed_gave_no_answer_away(here):
    @technique("activation_patching", "1", controls=CONTROLS, mandatory=("identity", "noise"), random=True)
    def fails_first(model, task, *, seed=0):
        if seed == 0:
            raise ValueError("broken")
        return _result("activation_patching", dict.fromkeys(ALL, True), 0.0002)

    with pytest.raises(ValueError, match="broken"):
        fails_first(Model(), Task())
    row = link(here, claim(here), fails_first(Model(), Task(), seed=1))
    assert row.rung.name == "causal on held-out prompts"


def test_falsifiers_written_after_the_evidence_test_nothing(here):
    row = claim(here, falsifiers=())
    row = link(here, row, patching(Model(), Task(), given=ALL))
    assert row.rung.name == "observed" and "nothing is written that would show it wrong" in reasons(row)
    claiming.add_texts(here.database, row.number, falsifiers=["another head does as much"])
    row = again(here, row)
    assert row.rung.name == "causal on this prompt set" and row.falsifiers[0].late
    assert "it began before anything was written that would show the claim wrong" in reasons(row)
    assert "post hoc: written after the first evidence" in "\n".join(lines(row))
    row = link(here, row, patching(Model(), Task(hash="3333" * 8), given=ALL))
    assert row.rung.name == "causal on held-out prompts"


def test_without_alternatives_it_is_observed(here):
    row = claim(here, alternatives=())
    row = link(here, row, patching(Model(), Task(), given=ALL))
    assert (row.rung.name, row.rung.evidence) == ("observed", "causal on held-out prompts")
    assert any(f"claim add {row.number} --alternative" in s for s in steps(row))
    claiming.add_texts(here.database, row.number, alternatives=["it copies any token"])
    assert again(here, row).rung.name == "causal on held-out prompts"


def test_a_look_is_observed_and_a_plugin_too(here):
    row = claim(here)
    emit_look(Model(), ["some text"], ["L9H6.z"])
    row = link(here, row, 1)
    assert row.rung.name == "observed" and "raw look" in reasons(row)
    row = link(here, row, TOYS["plugin"](Model(), Task()))
    assert row.rung.name == "observed" and "plug-in" in reasons(row)


def test_weights_and_directions_are_kept_and_count(here):
    row = claim(here)
    row = link(here, row, patching(Model(), Task(), given=ALL), weight="weak", note="few prompts")
    assert row.rung.name == "observed" and (row.pieces[0].weight, row.pieces[0].note) == (
        "weak",
        "few prompts",
    )
    row = link(here, row, ablation(Model(), Task(), given=ALL))
    assert row.rung.name == "causal on this prompt set"  # ablation has no control on held-out prompts
    row = link(here, row, TOYS["logit_lens"](Model(), Task()), supports=False)
    assert row.rung.name == "observed" and row.rung.caps[0].piece == "run 3" and row.rung.caps[0].against


def test_what_is_about_something_else_counts_for_nothing(here):
    about = {"model_name": "toy", "family": "ioi", "sites": ["L9H6.z"]}
    row = claim(here, about=about)
    row = link(here, row, patching(Model(), Task("greater_than", "4444" * 8), given=ALL))
    assert row.rung.name == "unsupported" and "it is about greater_than, the claim about ioi" in reasons(row)
    row = link(here, row, patching(Model(), Task(), given=ALL, sites="L3H1.z"))
    assert row.rung.name == "unsupported" and "it saw nothing of L9H6.z" in reasons(row)
    assert again(here, row, overlaps=lambda one, other: ("L9H6",)).rung.name == "causal on held-out prompts"
    with here.database.writing() as connection:
        connection.execute(delete(schema.run_site).where(schema.run_site.c.run == 2))
    assert again(here, row).rung.name == "causal on held-out prompts"  # sites that are not known may be any
    row = link(here, claim(here, about=about), patching(Model(), Task(hash="5555" * 8), given=ALL))
    assert row.rung.name == "causal on held-out prompts"


@pytest.mark.parametrize(
    ("family", "about"),
    [("ioi", True), ("ioi/held_out", True), ("sva+ioi", True), ("ioi2", False), ("sva", False)],
)
def test_a_family_has_parts_and_a_run_may_have_several(here, family, about):
    row = claim(here, about={"family": "ioi"})
    row = link(here, row, patching(Model(), Task(family), given=ALL))
    assert (row.rung.name == "causal on held-out prompts") is about


def test_another_model_replicates_and_does_not_establish(here):
    row = claim(here, about={"model_name": "toy", "family": "ioi"})
    with here.database.writing() as connection:
        for mark, name in (("abcd" * 8, "toy"), ("ef01" * 8, "other")):
            connection.execute(insert(schema.model), {"hash": mark, "name": name, "family": "", "card": "", "seen_at": 0.0})  # fmt: skip
    row = link(here, row, patching(Model("other", "ef01" * 8), Task(), given=ALL))
    assert row.rung.name == "unsupported" and "it is of other" in reasons(row)
    assert link(here, row, patching(Model(), Task(), given=ALL)).rung.name == "replicated"


def test_a_stale_run_is_observed_and_says_what_changed(here):
    row = claim(here)
    row = link(here, row, patching(Model(), Task(), given=ALL))
    old = again(here, row, stale=lambda record, rows: {r.number: ("the code of activation_patching has changed",) for r in rows})  # fmt: skip
    assert old.rung.name == "observed" and "out of date: the code of activation_patching has changed" in reasons(old)  # fmt: skip
    assert any("rerun 1" in c.instead for c in old.rung.caps)


def test_dissect_counts_as_its_stages(here):
    @technique("dissect", "3", random=True)
    def whole(model, task, seed=0):
        child = patching(model, task, given=ALL)
        return Result("dissect", children=(child,), verdict=verdict((), (), 0.0002, 0.001, 0.0001))

    row = link(here, claim(here), whole(Model(), Task()))
    assert row.rung.name == "causal on held-out prompts"
    assert row.pieces[0].piece.shown.methods == ("activation_patching",)


# ------------------------------------------------------------------------------------------------- predictions


def foretell(s, claim_number=None, **more):
    row = {"key": f"k{time.time_ns() % 10**12}", "study": s.number, "person": "ada", "statement": "it costs 30 %", "probability": 0.7,
           "about": dumps(Question(family="sva").as_json()), "holds": None, "made_at": time.time(), "after_run": 0, "post_hoc": False, "state": "open", "claim": claim_number,
           "seal": "x", **more}  # fmt: skip
    with s.database.writing() as connection:
        return connection.execute(insert(schema.prediction), row).inserted_primary_key[0]


def decide(s, number, state, run, **more):
    values = {"state": state, "run": run, "resolved_at": time.time(), **more}
    with s.database.writing() as connection:
        connection.execute(update(schema.prediction).where(schema.prediction.c.number == number).values(values))  # fmt: skip


def test_a_prediction_from_the_claim_that_came_true_lifts_it_and_counts_unlinked(here):
    row = link(here, claim(here), patching(Model(), Task()))
    number = foretell(here, row.number)
    assert again(here, row).rung.name == "causal on this prompt set" and "still open" in reasons(again(here, row))  # fmt: skip
    ablation(Model(), Task())
    decide(here, number, "true", 2)
    row = again(here, row)
    assert (row.rung.name, row.rung.by) == ("predictive", ("run 1", "prediction 1"))
    assert row.pieces[-1].number == 0 and row.pieces[-1].statement == "it costs 30 %"
    decide(here, number, "true", 2, resolved_by="ada")
    assert again(here, row).rung.name == "causal on this prompt set"


def test_a_false_prediction_cannot_be_left_out(here):
    row = link(here, claim(here), patching(Model(), Task(), given=ALL))
    number = foretell(here, row.number)
    ablation(Model(), Task())
    decide(here, number, "false", 2)
    row = again(here, row)
    assert row.rung.name == "causal on this prompt set" and row.rung.caps[0].against
    assert steps(row) == ("withdraw the claim and make a narrower one that allows for it",)


def test_a_prediction_that_is_linked_once_its_outcome_is_known_does_not_lift(here):
    row = link(here, claim(here), patching(Model(), Task()))
    early, late = foretell(here), foretell(here)
    claiming.link(here.database, row.number, Link(prediction=early), "ada")
    ablation(Model(), Task())
    decide(here, late, "true", 2)
    claiming.link(here.database, row.number, Link(prediction=late), "ada")
    row = again(here, row)
    assert row.rung.name == "causal on this prompt set" and "linked when its outcome was known" in reasons(row)  # fmt: skip
    decide(here, early, "true", 2)
    assert again(here, row).rung.name == "predictive"


def test_a_prediction_older_than_the_claim_does_not_lift(here):
    old = foretell(here)
    row = link(here, claim(here), patching(Model(), Task()))
    claiming.link(here.database, row.number, Link(prediction=old), "ada")
    ablation(Model(), Task())
    decide(here, old, "true", 2)
    row = again(here, row)
    assert row.rung.name == "causal on this prompt set" and "it was made before the claim" in reasons(row)


# ----------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize("statement", ["", "  \n", None, 3, "a\x00b", "\ud800", "x" * 5000])
def test_a_statement_that_says_nothing_or_cannot_be_kept(here, statement):
    with pytest.raises(LabError, match="the claim"):
        claim(here, statement)
    record = Record(here.place)
    assert list_claims(record) == ()


@pytest.mark.parametrize(("more", "said"), [
    ({"alternatives": [" "]}, "the alternative is empty"), ({"falsifiers": "one text"}, "falsifiers='one text'"), ({"limitations": [None]}, "the limitation is a NoneType"),
    ({"evidence": [99]}, "run 99 is not in this record"), ({"evidence": ["12"]}, "is no evidence"), ({"evidence": [True]}, "is no evidence"), ({"evidence": 3}, "evidence=3"),
    ({"evidence": [Link(1, weight="huge")]}, "weight='huge'"), ({"evidence": [Link(1, supports="yes")]}, "supports='yes'"), ({"evidence": [Link()]}, "a link names one thing"),
    ({"evidence": [Link(1, prediction=1)]}, "a link names one thing"), ({"evidence": [Link(prediction=4)]}, "prediction 4 is not in this record"),
    ({"evidence": [Link(prediction="1")]}, "is no evidence"), ({"about": {"colour": "red"}}, "a claim about colour"), ({"about": "ioi"}, "a claim about str"),
    ({"about": {"family": 3}}, "family=3"), ({"about": {"sites": [3]}}, "sites="), ({"evidence": [1, 1]}, "is linked to claim 1 already"),
])  # fmt: skip
def test_what_is_no_evidence_is_refused_and_nothing_of_the_claim_is_kept(here, more, said):
    patching(Model(), Task())
    with pytest.raises(LabError) as error:
        claim(here, **more)
    assert said in error.value.what and error.value.why and error.value.instead
    with here.database.reading() as connection:
        assert [connection.execute(text(f"SELECT count(*) FROM {t}")).scalar() for t in ("claim", "claim_text", "evidence")] == [0, 0, 0]  # fmt: skip


def test_a_claim_about_no_address_is_refused(here):
    with pytest.raises(SiteError):
        claim(here, about={"sites": ["L9H6.zz"]})


def test_a_result_of_elsewhere_a_child_and_a_run_without_a_result_are_refused(here):
    with pytest.raises(LabError, match="was not recorded here"):
        claim(here, evidence=[_result("activation_patching", {}, 0.2)])
    q = Query("activation_patching", "1", "abcd" * 8, "77c0" * 8)
    with pytest.raises(LabError, match="was not recorded here"):
        claim(here, evidence=[Result("activation_patching", q)])

    @technique("outer", "1")
    def outer(model):
        return Result("outer", children=(patching(model, Task()),))

    result = outer(Model())
    for child in (2, result.children[0]):
        with pytest.raises(LabError, match=r"run 2 \(activation_patching\) was called by run 1"):
            claim(here, evidence=[child])
    with pytest.raises(ValueError, match="broken"):
        patching(Model(), Task(), p=None)
    with pytest.raises(LabError, match="run 3 has no result") as error:
        claim(here, evidence=[3])
    assert "it is failed: ValueError: broken" in error.value.why


def test_a_row_of_another_project_is_refused_even_where_its_number_is_taken(here, tmp_path_factory):
    patching(Model(), Task())
    other = tmp_path_factory.mktemp("other")
    place.init(other)
    with study("theirs", folder=other) as theirs:
        patching(Model(), Task())
        record = Record(theirs.place)
        row = record.run(1)
        record.close()
    theirs.database.close()
    with pytest.raises(LabError, match="run 1 is not in this record"):
        claim(here, evidence=[row])
    mine = Record(here.place)
    assert claim(here, evidence=[mine.run(1)]).pieces[0].run == 1
    mine.close()


def test_a_run_that_was_removed_by_hand_counts_for_nothing_and_is_named(here):
    row = link(here, claim(here), patching(Model(), Task(), given=ALL))
    assert row.rung.name == "causal on held-out prompts"
    with pytest.raises(LabError, match="refused|has an error"), here.database.writing() as connection:
        connection.execute(
            delete(schema.run).where(schema.run.c.number == 1)
        )  # the record itself holds on to it
    import sqlite3

    with sqlite3.connect(here.place.database) as raw:
        raw.execute("DELETE FROM run WHERE number = 1")
    raw.close()
    row = again(here, row)
    assert row.rung.name == "unsupported" and "run 1 is not in the record any more" in reasons(row)
    assert "run 1" in "\n".join(lines(row))
    with pytest.warns(ObserverWarning, match="no pictures were kept: no run 1"):
        here.close()


def test_a_withdrawn_claim_stays_and_takes_nothing_more(here):
    row = claim(here)
    patching(Model(), Task())
    with pytest.raises(LabError, match="the reason is empty"):
        claiming.withdraw(here.database, row.number, " ")
    claiming.withdraw(here.database, row.number, "a bug in the task")
    for attempt in (lambda: claiming.link(here.database, 1, 1, "ada"), lambda: claiming.add_texts(here.database, 1, limitations=["x"]),
                    lambda: claiming.withdraw(here.database, 1, "again")):  # fmt: skip
        with pytest.raises(LabError, match="claim 1 was withdrawn"):
            attempt()
    row = again(here, row)
    assert row.why_withdrawn == "a bug in the task" and "withdrawn: a bug in the task" in "\n".join(
        lines(row)
    )
    assert steps(row) == ()
    record = Record(here.place)
    assert len(list_claims(record)) == 1 and list_claims(record, withdrawn=False) == ()
    record.close()


def test_no_such_claim_or_nothing_to_add(here):
    record = Record(here.place)
    with pytest.raises(LabError, match="no claim 7"):
        read(record, 7)
    record.close()
    with pytest.raises(LabError, match="no claim 7"):
        claiming.link(here.database, 7, 1, "ada")
    with pytest.raises(LabError, match="nothing to add"):
        claiming.add_texts(here.database, 7)


# ----------------------------------------------------------------------------------------------- two at once

LINK = """
import sys
from microtome.errors import LabError
from microtome.lab import claiming, place
from microtome.lab.database import Database
database = Database(place.here(sys.argv[1]))
refused = 0
for number in map(int, sys.argv[2].split(",")):
    try:
        claiming.link(database, 1, number, "ada")
    except LabError as error:
        assert "already" in error.what, error
        refused += 1
print(refused)
"""


def test_two_processes_that_link_at_once_lose_nothing_and_link_nothing_twice(here, tmp_path):
    row = claim(here)
    for k in range(12):
        patching(Model(), Task(hash=f"{k:04x}" * 8))
    runs = ",".join(map(str, range(1, 13)))
    started = [subprocess.Popen([sys.executable, "-c", LINK, str(tmp_path), runs], stdout=subprocess.PIPE, text=True) for _ in range(2)]  # fmt: skip
    refused = [int(p.communicate(timeout=120)[0]) for p in started]
    assert [p.returncode for p in started] == [0, 0] and sum(refused) == 12
    assert sorted(p.run for p in again(here, row).pieces) == list(range(1, 13))


# ------------------------------------------------------------------------------------------------ as text, cli


def test_a_claim_as_text_for_a_red_team_and_as_data(here):
    row = claim(here, evidence=[patching(Model(), Task(), seed=3)], limitations=["one model"])
    told = as_text(row)
    assert told["statement"] == "L9H6 moves the name" and told["falsifiers"] == WORDS["falsifiers"]
    (piece,) = told["evidence"]
    assert piece["method"] == "activation_patching" and piece["post_hoc"] is True and piece["seeds"] == [3]
    assert piece["controls"] == {"identity": True, "noise": True, "held_out": None}
    assert as_dict(row)["rung"] == "causal on this prompt set"
    json.dumps(told)


def invoke(here, *words, fails=False):
    done = CliRunner().invoke(lab_claims.app, [*words, "--folder", str(here.place.folder)])
    if fails:
        assert isinstance(done.exception, LabError), done.output
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_commands_from_a_new_claim_to_its_withdrawal(here):
    patching(Model(), Task())
    ablation(Model(), Task())
    assert "no claim in" in invoke(here, "list")
    said = invoke(here, "new", "heads \x1b[31m move\nnames", "--run", "1", "--task", "ioi", "--alternative", "any head", "--falsifier", "no cost")  # fmt: skip
    assert "claim 1: causal on this prompt set" in said and "\x1b" not in said and "move\\nnames" in said
    assert "run 1: it is post hoc" in said and "what would lift it" in said
    found = json.loads(invoke(here, "link", "1", "2", "--against", "--note", "it costs nothing", "--json"))
    assert (
        found["rung"] == "observed"
        and found["caps"][0]["against"] is True
        and found["caps"][0]["piece"] == "run 2"
    )
    found = json.loads(
        invoke(here, "add", "1", "--limitation", "one model", "--limitation", "one task", "--json")
    )
    assert [t["text"] for t in found["limitations"]] == ["one model", "one task"]
    assert "run 2: it contradicts the claim" in invoke(here, "list")
    assert "withdrawn: it was wrong" in invoke(here, "withdraw", "1", "--why", "it was wrong")
    assert json.loads(invoke(here, "list", "--json"))[0]["why_withdrawn"] == "it was wrong"
    assert "claim 1: observed" in invoke(here, "show", "1")


def test_the_commands_refuse_with_a_reason(here):
    assert "no claim 3" in invoke(here, "show", "3", fails=True)
    assert "nothing to add" in invoke(here, "add", "3", fails=True)
    assert "a link names one thing" in invoke(here, "link", "3", fails=True)
    assert "no study '7'" in invoke(here, "new", "x", "--study", "7", fails=True)
    assert "no study 'other'" in invoke(here, "list", "--study", "other", fails=True)
    assert "run 44 is not in this record" in invoke(here, "new", "x", "--run", "44", fails=True)
    assert invoke(here, "new", "x", "--study", "names").startswith("claim 1: unsupported")


def test_a_title_makes_a_study_and_several_studies_have_to_be_named(here):
    said = invoke(here, "new", "x", "--study", "later", "--sites", "L9H6.z", "--model", "toy")
    assert "claim 1: unsupported" in said and "in 'later', about toy; L9H6.z" in said
    assert "which study" in invoke(here, "new", "y", fails=True)
    assert json.loads(invoke(here, "list", "--study", "names", "--json")) == []
    assert len(json.loads(invoke(here, "list", "--study", "later", "--json"))) == 1


def test_commands_in_a_project_where_nothing_was_recorded_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    place.init(tmp_path)
    done = CliRunner().invoke(lab_claims.app, ["list", "--folder", str(tmp_path)])
    assert isinstance(done.exception, LabError) and "nothing was recorded yet" in str(done.exception)
    done = CliRunner().invoke(lab_claims.app, ["new", "x", "--study", "first", "--folder", str(tmp_path)])
    assert done.exit_code == 0 and "claim 1: unsupported" in done.output


def test_reading_claims_imports_neither_torch_nor_pandas():
    code = "import sys, microtome.lab.claiming, microtome.lab.claim_rows, microtome.lab.claim_telling, microtome.cli.lab_claims\nprint([m for m in ('torch', 'pandas', 'plotly', 'alembic') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------- which cells


def same(one, other):
    """Overlap of addresses as they are written; an empty list is not known."""
    return sorted({*one} & {*other}) if one and other else ("any part",)


def test_only_the_cells_at_the_sites_of_the_claim_count():
    swept = toy_results.heads()  # L15H3, L18H6, L29H1 and L16H0 are planted
    assert at_sites(swept, ["L15H3.z"], same) == AtSites()
    assert at_sites(swept, ["L15H3.z", "L2H0.z"], same) == AtSites(nothing=("L2H0.z",))
    assert at_sites(swept, ["L40H0.z"], same) == AtSites()  # of what was not swept nothing is known
    donors = pd.DataFrame({"donor": ["real", "noise"], "site": ["L15H3.z", "L18H6.z"]})
    swept = replace(swept, tables={**swept.tables, "donors": donors})
    assert at_sites(swept, ["L15H3.z", "L18H6.z", "L2H0.z"], same) == AtSites(("L2H0.z",), ("L18H6.z",))


def test_of_a_dissection_the_stages_that_change_something_count():
    strong, lens = toy_results.heads(), toy_results.lens()
    whole = Result("dissect", children=(lens, strong))
    assert at_sites(whole, ["L15H3.z", "L2H0.z"], same) == AtSites(nothing=("L2H0.z",))
    assert (
        at_sites(whole, ["L29.resid_post"], same) == AtSites()
    )  # only the lens saw it, and it changed nothing
    weak = replace(strong, controls=(), verdict=verdict(()))
    assert at_sites(Result("dissect", children=(weak,)), ["L2H0.z"], same) == AtSites()


def test_labels_that_are_no_addresses_and_results_without_cells_say_nothing():
    assert at_sites(Result("ablation"), ["L2H0.z"], same) == AtSites()
    frame = pd.DataFrame({"site": ["set of 5"], "metric": ["logit_diff"], "value": [0.0], "n": [4], "low": [0.0], "high": [0.0],
                          "null_low": [-1.0], "null_high": [1.0]})  # fmt: skip
    assert (
        at_sites(Result("component_set", tables={"cells": frame}), ["L2H0.z"], lambda a, b: ("any",))
        == AtSites()
    )


def _sweep():
    @technique("activation_patching", "9", controls=CONTROLS, mandatory=("identity", "noise"))
    def swept(model, task):
        """A sweep whose planted heads are L15H3, L18H6, L29H1 and L16H0; its donors ran on the first."""
        found = toy_results.heads()
        donors = pd.DataFrame({"donor": ["real"], "site": ["L15H3.z"]})
        return replace(_result("activation_patching", dict.fromkeys(ALL, True), 0.0002), effects=found.effects,
                       tables={"cells": found.tables["cells"], "donors": donors})  # fmt: skip

    return swept


swept_toy = _sweep()


@pytest.mark.parametrize(("site", "name", "said"), [("L15H3.z", "causal on held-out prompts", ""), ("L18H6.z", "observed", "ran on other cells than L18H6.z"),
                                                    ("L2H0.z", "unsupported", "no effect beyond its null at L2H0.z")])  # fmt: skip
def test_a_sweep_does_not_support_a_claim_about_another_cell(here, site, name, said):
    row = claim(here, about={"sites": [site]})
    link(here, row, swept_toy(Model(), Task()))
    row = again(here, row, overlaps=same)
    assert row.rung.name == name and said in reasons(row)


def test_a_result_that_cannot_be_read_supports_no_claim_about_a_site(here):
    row = claim(here, about={"sites": ["L15H3.z"]})
    link(here, row, swept_toy(Model(), Task()))
    record = Record(here.place)
    for f in record.files_of(1, "result"):
        record.files.path(f.key).write_bytes(b"damaged")
    record.close()
    row = again(here, row, overlaps=same)
    assert row.rung.name == "unsupported" and "is damaged" in reasons(row)
    with pytest.warns(ObserverWarning, match="no pictures were kept: the file .* is damaged"):
        here.close()


@pytest.mark.parametrize(("low", "name"), [(0.5, "predictive"), (5.0, "causal on this prompt set")])
def test_a_prediction_with_what_must_hold_decides_over_the_claim_that_it_was_made_from(here, low, name):
    row = claim(here, about=Question(family="ioi", sites=("L15H3.z",)))
    row = link(here, row, swept_toy(Model(), Task()))
    assert row.rung.name == "causal on held-out prompts"
    asked = Question(method="activation_patching", family="sva", sites=("L15H3.z",))
    here.predict("as much on another task", probability=0.8, about=asked, holds=expect("effects", site="L15H3.z", low=low, high=9), claim=row.number)  # fmt: skip
    swept_toy(Model(), Task("sva", "6666" * 8))
    row = again(here, row)
    assert (row.rung.name, row.pieces[-1].run) == (name, 2), reasons(row)


def test_in_either_database_many_that_link_at_once_link_each_run_once(lab, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    with study("names", folder=lab.folder) as s:
        row = claim(s)
        for k in range(6):
            patching(Model(), Task(hash=f"{k:04x}" * 8), given=ALL)

        def one(number):
            try:
                return claiming.link(s.database, row.number, number, "ada")
            except LabError as error:
                assert "already" in error.what
                return 0

        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(one, [n for n in range(1, 7) for _ in range(3)]))
            list(
                pool.map(
                    lambda i: claiming.add_texts(s.database, row.number, limitations=[f"limit {i}"]), range(6)
                )
            )
        row = again(s, row)
        assert sum(bool(x) for x in made) == len(row.pieces) == 6 and {p.run for p in row.pieces} == {
            *range(1, 7)
        }
        assert {t.text for t in row.limitations} == {f"limit {i}" for i in range(6)}
        assert row.rung.name == "causal on held-out prompts"
        claiming.withdraw(s.database, row.number, "done")
        assert again(s, row).why_withdrawn == "done"
    s.database.close()
