"""Predictions in a real record: what decides them, what makes them post hoc, and that none can be changed unseen."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from sqlalchemy import select, update

import measured
from lab_tools import opened, project, runs
from measured import Model, Task, beside, during, measure, stages
from microtome.errors import LabError, SiteError
from microtome.lab import predicting, schema, seals
from microtome.lab.doctor import examine
from microtome.lab.expecting import expect
from microtome.lab.predicting import forecasts, predictions
from microtome.lab.questions import Question
from microtome.lab.reading import Record
from microtome.lab.scoring import by
from microtome.lab.study import study
from microtome.results import Query, emit_look
from microtome.results.events import END, running

ABOUT = Question(method="toy_effects", family="ioi", sites=("L9H6.z",))
HURTS = expect("effects", site="L9H6.z", low=-0.6, high=-0.3)


@pytest.fixture(autouse=True)
def person(monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")


@pytest.fixture
def toy(fast_path):
    """A study in a SQLite record, open."""
    with opened(project(fast_path)) as one:
        yield one


def predict(one, about=ABOUT, holds=HURTS, probability=0.7, statement="removing L9H6 hurts", **more):
    return one.predict(statement, probability, about, holds, **more)


def now(one, number=1):
    return predictions(one.database)[number - 1]


# ------------------------------------------------------------------------------------------- what decides


def test_in_either_database_the_first_run_that_answers_decides_and_no_later_one(lab):
    with opened(lab) as one:
        made = predict(one)
        assert (made.state, made.post_hoc, made.kind, made.after_run) == ("open", False, "computed", 0)
        measure(Model(), Task(), size=-0.4)
        decided = now(one)
        assert (decided.state, decided.run, decided.resolved_by) == ("true", 1, None)
        assert decided.observed == pytest.approx(-0.4) and decided.resolved_at >= decided.made_at
        measure(Model(), Task(), size=0.4, seed=1)
        assert now(one) == decided
        predict(one, statement="again")
        measure(Model(), Task(), size=0.4, seed=2)
        again = now(one, 2)
        assert (again.state, again.run, again.kind) == ("false", 3, "computed, post hoc")
        assert "expected from -0.6 to -0.3" in again.reason
    assert examine(lab).ok
    one.database.close()


def test_a_run_that_began_before_decides_nothing_even_if_it_ends_after(toy):
    ready, go = threading.Event(), threading.Event()

    def wait():
        ready.set()
        assert go.wait(20)

    worker = threading.Thread(target=lambda: during(wait, Model(), Task()))
    worker.start()
    assert ready.wait(20)
    predict(toy)
    go.set()
    worker.join()
    assert (
        [r.state for r in runs(toy.place)] == ["finished"]
        and now(toy).state == "open"
        and now(toy).reason == ""
    )
    measure(Model(), Task())
    assert (now(toy).state, now(toy).run) == ("true", 2)


def test_a_run_whose_row_came_late_began_before_and_decides_nothing(toy, monkeypatch):
    """The database was locked when it began: its number is above the prediction's, its beginning is not."""
    recorder, real = toy._recorder, toy._recorder._begin
    late = []
    monkeypatch.setattr(recorder, "_begin", late.append)
    other = study("other", folder=toy.place.folder)

    def meanwhile():
        predict(other)
        monkeypatch.setattr(recorder, "_begin", real)
        real(late[0])

    during(meanwhile, Model(), Task())
    assert runs(toy.place)[0].number > now(toy).after_run
    assert now(toy).state == "open" and "began before it was made" in now(toy).reason


@pytest.mark.parametrize(
    ("about", "holds"),
    [
        (Question(method="toy_effects", model="ffff" * 8), HURTS),
        (Question(method="toy_effects", model_name="another"), HURTS),
        (Question(method="toy_effects", family="greater_than"), HURTS),
        (Question(method="toy_effects", task="1111" * 8, family="ioi"), HURTS),
        (Question(method="toy_effects", sites=("L2H0.z",)), HURTS),
        (Question(method="toy_effects", family="ioi", parameters={"by": "zero"}), HURTS),
        (Question(method="toy_effects", family="ioi", parameters={"no_such": 1}), HURTS),
        (Question(method="toy_effects", family="ioi", seed=5), HURTS),
        (Question(method="ablation", family="ioi"), HURTS),
    ],
    ids=["hash", "name", "family", "sample", "site", "parameter", "unknown parameter", "seed", "method"],
)
def test_a_run_of_another_question_leaves_it_open(toy, about, holds):
    predict(toy, about, holds)
    measure(Model(), Task())
    assert (now(toy).state, now(toy).reason) == ("open", "")


def test_a_nested_run_decides_and_the_run_around_it_is_asked_by_its_own_name(toy):
    predict(toy)
    predict(toy, Question(method="toy_stages", family="ioi"), expect("verdict", equals="unchecked"))
    stages(Model(), Task())
    inner, outer = now(toy), now(toy, 2)
    assert (inner.state, inner.run, outer.run) == ("true", 2, 1) and outer.state in ("true", "false")


def test_a_result_that_does_not_say_leaves_it_open_with_the_reason(toy):
    predict(toy, holds=expect("effects", site="L9H6.z", metric="prob_diff", low=0))
    predict(toy, holds=expect("control:noise", equals=True))
    predict(toy, holds=expect("effects", high=0))
    measure(Model(), Task())
    first, second, third = predictions(toy.database)
    assert {first.state, second.state, third.state} == {"open"} and third.run is None
    assert first.reason.startswith("run 1 did not tell: no row has") and "noise" in second.reason
    assert "3 rows agree" in third.reason
    size = np.full((3, 4), -0.5)
    size[0] = math.nan
    predict(toy, holds=expect("effects", site="L9H6.z", high=0))
    measure(Model(), Task(), size=size)
    assert now(toy, 4).state == "open" and "not known (NaN)" in now(toy, 4).reason
    measure(Model(), Task(), seed=3)
    assert now(toy, 4).state == "true"  # a later run may tell


def test_a_run_that_fails_or_is_interrupted_decides_nothing(toy):
    predict(toy)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="broken"):
        measure(Model(), Task(), fail="broken")
    with pytest.raises(KeyboardInterrupt):
        during(stop, Model(), Task())
    assert [r.state for r in runs(toy.place)] == ["failed", "interrupted"] and now(toy).state == "open"
    with pytest.raises(ValueError, match="late"):
        stages(Model(), Task(), fail="late")  # what it called had ended, and that is a run of its own
    assert (now(toy).state, now(toy).run) == ("true", 4)


def test_in_either_database_a_prediction_of_one_process_is_decided_by_another(lab):
    with opened(lab, "mine") as one:
        predict(one)
    one.database.close()
    child = os.fork()
    if not child:
        code = 1
        try:
            with opened(lab, "theirs", person="bob"):
                measure(Model(), Task())
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (decided,) = predictions(Record(lab).database)
    assert (decided.person, decided.state, decided.run) == ("ada", "true", 1)


def test_one_that_was_damaged_does_not_keep_the_others_open(toy):
    predict(toy)
    predict(toy)
    with toy.database.writing() as connection:
        bad = update(schema.prediction).where(schema.prediction.c.number == 1)
        connection.execute(bad.values(holds='{"field": "effects", "newer": 1}'))
    measure(Model(), Task())
    with toy.database.reading() as connection:
        p = schema.prediction
        rows = connection.execute(select(p.c.state, p.c.reason).order_by(p.c.number)).all()
    assert (rows[0].state, rows[1].state) == ("open", "true") and "could not decide it" in rows[0].reason


def test_a_run_on_several_data_answers_for_each(toy):
    predict(toy)
    measure(Model(), [Task("web", "1111" * 8), Task()])
    assert runs(toy.place)[0].family == "web+ioi" and now(toy).state == "true"
    assert "L9H6" in predict(toy, Question(family="web", sites=("L9H6.z",))).why_post_hoc
    assert not predict(toy, Question(family="we", sites=("L9H6.z",))).post_hoc


# ------------------------------------------------------------------------------------------------ post hoc


def look(model, sites=("L9H6.z",)):
    emit_look(model, ["a prompt"], list(sites))


SEEN = {
    "a run": lambda toy: measure(Model(), Task()),
    "another seed": lambda toy: measure(Model(), Task(), seed=7),
    "another sample of the task": lambda toy: measure(Model(), Task("ioi", "1111" * 8)),
    "other weights of the name": lambda toy: measure(Model("toy", "9999" * 8), Task()),
    "another method at another point": lambda toy: measure(Model(), Task(), sites=("L9H6.q",)),
    "all heads of the layer": lambda toy: measure(Model(), Task(), sites=("L9.attn_out",)),
    "a run within a run": lambda toy: stages(Model(), Task()),
    "a raw look": lambda toy: look(Model()),
    "a look of a task that is not known": lambda toy: look(Model(), ["L9H6.pattern"]),
    "the second model of a run": lambda toy: beside(Model("base", "eeee" * 8), Model(), Task()),
}
UNSEEN = {
    "nothing": lambda toy: None,
    "another family": lambda toy: measure(Model(), Task("greater_than")),
    "another site": lambda toy: measure(Model(), Task(), sites=("L2H0.z",)),
    "another head": lambda toy: measure(Model(), Task(), sites=("L9H7.z",)),
    "another model": lambda toy: measure(Model("other", "eeee" * 8), Task()),
    "another second model": lambda toy: beside(Model("base", "eeee" * 8), Model("more", "dddd" * 8), Task()),
    "a look at nothing but the output": lambda toy: look(Model(), []),
    "a look at another site": lambda toy: look(Model(), ["L2H0.z"]),
    "a look at another model": lambda toy: look(Model("other", "eeee" * 8)),
    "a run that failed": lambda toy: pytest.raises(ValueError, measure, Model(), Task(), fail="x"),
    "a certificate": lambda toy: activity(Model()),
    "a calibration": lambda toy: activity(None),
}
MINE = Question(method="ablation", model="abcd" * 8, model_name="toy", task="77c0" * 8, family="ioi", sites=("L9H6.z",))  # fmt: skip


def activity(model):
    """What `microtome models check` and `microtome calibrate` record: a run without a result."""
    asked = Query("certificate", "", model="" if model is None else model.hash)
    with running("certificate", asked, {} if model is None else {"model": model}) as run:
        run.tell(END)


@pytest.mark.parametrize("what", SEEN)
def test_what_was_seen_makes_it_post_hoc(toy, what):
    SEEN[what](toy)
    made = predict(toy, MINE)
    assert made.post_hoc and made.why_post_hoc.startswith("run ") and made.kind == "computed, post hoc"
    assert "it saw" in made.why_post_hoc and "post hoc: run" in repr(made)


@pytest.mark.parametrize("what", UNSEEN)
def test_what_was_not_seen_does_not(toy, what):
    UNSEEN[what](toy)
    assert len(runs(toy.place)) == (what != "nothing")
    made = predict(toy, MINE)
    assert (made.post_hoc, made.why_post_hoc, made.kind) == (False, "", "computed")


def test_a_look_without_captures_counts_for_the_output_alone(toy):
    look(Model(), [])
    assert Record(toy.place).sites(1) == ("logits",)
    assert predict(toy, Question(model_name="toy", sites=("logits",))).post_hoc
    assert not predict(toy, Question(model_name="toy", sites=("L0.resid_post",))).post_hoc
    assert predict(toy, Question(model_name="toy", family="ioi")).post_hoc  # about any site: the output too


def test_a_name_is_the_same_in_any_case_of_its_letters(toy):
    measure(Model("Toy", "9999" * 8), Task())
    assert predict(toy, MINE).post_hoc  # loaded in another type: another hash, and the same name


def test_in_either_database_another_person_in_another_study_has_seen_it(lab):
    with opened(lab, "theirs", person="bob"):
        measure(Model(), Task())
    with opened(lab, "mine") as one:
        assert predict(one, MINE).post_hoc and predict(one, MINE).why_post_hoc.startswith(
            "run 1: it saw ioi on toy at L9H6"
        )
    one.database.close()


def test_a_run_that_has_not_ended_has_shown_nothing_yet_and_what_it_called_has(toy):
    found = []
    during(lambda: found.append(predict(study("b", folder=toy.place.folder), MINE)), Model(), Task())
    assert not found[0].post_hoc and predict(toy, MINE).post_hoc


def test_many_runs_are_searched_by_pages(toy, monkeypatch):
    monkeypatch.setattr(predicting, "_PAGE", 2)
    for n in range(5):
        measure(Model(), Task(), sites=("L2H0.z",), seed=n)
    assert not predict(toy, MINE).post_hoc
    measure(Model(), Task(), seed=9)
    assert predict(toy, MINE).why_post_hoc.startswith("run 6:")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("probability", "said"),
    [(0, "0 and 1 cannot be wrong"), (1, "0 and 1 cannot be wrong"), (1.0, "0 and 1"), ("likely", "words are not scored"),
     ("0.7", "words are not scored"), (True, "a probability is a number"), (math.nan, "between 0 and 1"), (70, "0.7 for 70 %"),
     (-0.1, "between 0 and 1"), (None, "a probability is a number"), (math.inf, "between 0 and 1")],
)  # fmt: skip
def test_what_is_no_probability_is_refused_and_nothing_is_recorded(toy, probability, said):
    with pytest.raises(LabError, match=said):
        predict(toy, probability=probability)
    assert predictions(toy.database) == ()
    with pytest.raises(LabError, match=said):
        predict(study("a study of its own", folder=toy.place.folder), probability=probability)
    record = Record(toy.place)
    assert [s.title for s in record.studies()] == ["toys"]  # not even a study is left behind
    record.close()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"statement": " "}, "nobody could tell"), ({"statement": 5}, "nobody could tell"), ({"statement": "a\0b"}, "no database keeps"),
     ({"statement": "half \udc80"}, "no database keeps"), ({"about": "ioi"}, "which runs"), ({"holds": "< 0"}, "it is data"),
     ({"claim": 3}, "claim 3 is not in this record")],
)  # fmt: skip
def test_what_could_not_be_decided_is_refused(toy, given, said):
    with pytest.raises(LabError, match=said):
        predict(toy, **given)
    assert predictions(toy.database) == ()


def test_a_site_that_is_none_is_refused_when_it_is_asked():
    with pytest.raises(SiteError):
        Question(sites=("L9H6.zz",))


def test_a_person_resolves_what_no_result_decides_with_a_reason_once(lab):
    with opened(lab) as one:
        judged = predict(one, holds=None)
        measure(Model(), Task())
        assert now(one).state == "open" and judged.kind == "judged"  # no run decides it
        for outcome, reason, said in ((True, " ", "no reason"), (True, "x\0", "no database keeps"), ("yes", "x", "came true or not"), (1, "x", "came true or not")):  # fmt: skip
            with pytest.raises(LabError, match=said):
                one.resolve(1, outcome, reason=reason)
        done = one.resolve(1, False, reason="the curve is flat")
        assert (done.state, done.resolved_by, done.reason, done.run) == (
            "false",
            "ada",
            "the curve is flat",
            None,
        )
        with pytest.raises(LabError, match="is false already"):
            one.resolve(1, True, reason="no")
        with pytest.raises(LabError, match="no prediction 9"):
            one.resolve(9, True, reason="x")
        predict(one, statement="computed")
        with pytest.raises(LabError, match="is decided by a result"):
            one.resolve(2, True, reason="I saw it")
        assert one.resolve(2, None, reason="the task had a defect").state == "void"
        measure(Model(), Task(), seed=3)
        assert now(one, 2).state == "void"  # nor does a run change it then
    one.database.close()


# --------------------------------------------------------------------------------------------------- seals


def test_in_either_database_an_edit_shows(lab):
    with opened(lab) as one:
        for n in range(4):
            predict(one, statement=f"number {n}", probability=0.1 + n / 10)
        measure(Model(), Task())
    p = schema.prediction

    def broken():
        with one.database.reading() as connection:
            return seals.broken(connection.execute(select(p).order_by(p.c.number)).mappings().all())

    assert broken() == ()
    for values in ({"probability": 0.99}, {"statement": "it helps"}, {"post_hoc": True}, {"made_at": 1.0}, {"person": "bob"}, {"after_run": 3}, {"holds": None}):  # fmt: skip
        with one.database.reading() as connection:
            before = dict(connection.execute(select(p).where(p.c.number == 2)).mappings().one())
        with opened(lab, person="bob"):
            pass
        with one.database.writing() as connection:
            connection.execute(update(p).where(p.c.number == 2).values(values))
        assert broken() == (2,), values
        assert not examine(lab).ok
        with one.database.writing() as connection:
            connection.execute(update(p).where(p.c.number == 2).values({k: before[k] for k in values}))
        assert broken() == ()
    with opened(lab):
        number = one.claim("it moves the name", about=ABOUT, alternatives=["any head does"], falsifiers=["a small loss"]).number  # fmt: skip
    with one.database.writing() as connection:  # as if it had been made from a claim, which it would lift
        connection.execute(update(p).where(p.c.number == 2).values(claim=number))
    assert broken() == (2,)
    with one.database.writing() as connection:
        connection.execute(update(p).where(p.c.number == 2).values(claim=None))
    assert broken() == ()
    with one.database.writing() as connection:
        connection.execute(p.delete().where(p.c.number == 2))
    assert broken() == (3,)
    one.database.close()


def test_an_outcome_that_was_edited_shows_when_its_result_is_asked_again(lab):
    with opened(lab) as one:
        predict(one)
        predict(one, statement="a person decides", holds=None)
        one.resolve(2, True, reason="seen")
        measure(Model(), Task(), size=0.4)
        predict(one, statement="open still")
    p = schema.prediction

    def found():
        return [f.what for f in examine(lab, deep=True).findings if f.grave]

    assert now(one).state == "false" and found() == []
    with one.database.writing() as connection:
        connection.execute(update(p).where(p.c.number == 1).values(state="true"))
    assert found() == ["prediction 1 is recorded as true and is false by the stored result of run 1"]
    assert examine(lab).ok  # only a deep look reads results
    with one.database.writing() as connection:
        connection.execute(update(p).where(p.c.number == 1).values(run=None))
    assert found() == ["prediction 1 is recorded as true and is not decided by any run"]
    with opened(lab):
        measure(Model(), Task(), size=-0.4)
        measure(Model(), Task("sva", "1111" * 8), size=-0.4)
    assert now(one, 3).run == 2
    for run in (1, 3, 2):  # it began before the prediction; is about something else; decided it
        with one.database.writing() as connection:
            connection.execute(update(p).where(p.c.number == 3).values(run=run))
        wrong = [f"prediction 3 is recorded as true and is not decided by the stored result of run {run}"]
        assert found()[1:] == ([] if run == 2 else wrong)
    one.database.close()


def test_in_either_database_predictions_made_at_once_are_one_chain(lab):
    with opened(lab, "warm") as warm:
        predict(warm)
    warm.database.close()
    children = []
    for i in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                one = study(f"study {i}", folder=lab.folder, person=f"person {i}")
                with ThreadPoolExecutor(3) as pool:
                    list(pool.map(partial(predict, one), [ABOUT] * 9))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0] * 3
    record = Record(lab)
    with record.database.reading() as connection:
        p = schema.prediction
        rows = connection.execute(select(p).order_by(p.c.number)).mappings().all()
    assert len(rows) == 28 and seals.broken(rows) == () and len({r["seal"] for r in rows}) == 28
    record.close()


# -------------------------------------------------------------------------------------------------- scores


def test_people_agents_kinds_and_post_hoc_are_scored_apart(toy):
    predict(toy, probability=0.8)
    predict(toy, holds=None, probability=0.6)
    robot = study("robot's", folder=toy.place.folder, person="robot", agent=True)
    assert predict(robot, probability=0.9, holds=expect("effects", site="L9H6.z", low=0)).by == "agent"
    measure(Model(), Task())
    toy.resolve(2, True, reason="it is so")
    predict(toy, probability=0.99)
    measure(Model(), Task(), seed=1)
    predict(toy, probability=0.5)  # open: not scored
    toy.resolve(predict(toy, holds=None, probability=0.3).number, None, reason="void")
    found = forecasts(predictions(toy.database))
    assert [(f.person, f.kind, f.probability, f.outcome) for f in found] == [
        ("ada", "computed", 0.8, True), ("ada", "judged", 0.6, True), ("robot", "computed", 0.9, False), ("ada", "computed, post hoc", 0.99, True),
    ]  # fmt: skip
    kinds = by(found, "kind", seed=0)
    assert {name: s.n for name, s in kinds.items()} == {"computed": 2, "judged": 1, "computed, post hoc": 1}
    assert kinds["computed"].brier == pytest.approx((0.2**2 + 0.9**2) / 2)
    assert [p.number for p in predictions(toy.database, person="robot")] == [3]
    assert [p.number for p in predictions(toy.database, state="open")] == [5]
    assert len(predictions(toy.database, study=toy.number)) == 5


def test_a_study_that_was_never_opened_predicts_and_one_that_was_closed(fast_path):
    place = project(fast_path)
    one = study("toys", folder=place.folder)
    assert predict(one).study == 1
    with one:
        measure(Model(), Task())
    assert now(one).state == "true" and predict(one).post_hoc
    one.database.close()


def test_the_toys_measure_what_they_are_asked():
    assert measure(Model(), Task(), size=0.25).effects.values.mean() == pytest.approx(0.25)
    assert measured.SITES[0] == "L9H6.z"
