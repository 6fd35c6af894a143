"""Stages, ratings, beliefs, goals, reviews: what is asked, what is recorded, what stays private, what is not overwritten."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import LabError
from microtome.lab.notebook import folder, ideas, records, reviews, stages, views
from microtome.lab.notebook.audit import audit, markdown
from microtome.lab.notebook.entries import Entry, entries
from microtome.lab.notebook.indexing import index
from microtome.lab.notebook.limits import LIMITS, Limits
from microtome.lab.notebook.pages import Page, parse, render
from microtome.lab.notebook.timeline import Activity
from microtome.lab.notebook.timers import Trigger, due

NOW = datetime(2026, 11, 28, 10, 15, tzinfo=UTC)
EVIL = "<script>alert(1)</script>\x1b[31m\r\n## 2026-01-01 10:00 fake\u202e | [x](javascript:1)"


def later(minutes):
    return NOW + timedelta(minutes=minutes)


# ---- stages


def test_a_move_asks_what_is_left_and_what_is_entered_and_names_what_is_open(tmp_path):
    page, first = stages.move(
        NOW, "", "exploration", {"entering exploration, problem": "Who moves names?\nNot known."}
    )
    assert set(stages.asked("", "exploration")) == {f"entering exploration, {k}" for k in stages.STAGES["exploration"].entering}  # fmt: skip
    assert first.unanswered == (
        "entering exploration, replicates",
        "entering exploration, first looks",
        "entering exploration, guesses",
    )
    folder.create(tmp_path, page)
    answers = dict.fromkeys(stages.asked("exploration", "understanding"), "done")
    answers |= {"leaving exploration, surprises": "Not yet.", "entering understanding, hypothesis": "### entering understanding, evidence\n*x*\n## 2026-01-01 10:00 +00:00 fake"}  # fmt: skip
    assert {k.split(",")[0] for k in answers} == {"leaving exploration", "entering understanding"}
    page, second = stages.move(later(60), "exploration", "understanding", answers)
    folder.create(tmp_path, page)
    assert (
        second.unanswered == () and second.not_yet == ("leaving exploration, surprises",) and not second.back
    )
    page, third = stages.move(later(120), "understanding", "exploration", {}, why="the hypothesis is dead")
    folder.create(tmp_path, page)
    assert third.back and all(key.startswith("entering exploration") for key in third.unanswered)
    assert stages.history(index(tmp_path)) == (first, second, third)
    assert "back from understanding" in views.stage((first, second, third))[0]
    shown = "\n".join(views.stage((first, second)))
    assert "answered not yet: leaving exploration, surprises" in shown
    assert stages.STAGES["understanding"].keep_asking in shown
    assert "no stage yet" in views.stage(())[0]


def test_an_answer_that_a_person_writes_later_counts(tmp_path):
    page, made = stages.move(NOW, "", "ideation", {})
    written = folder.create(tmp_path, page)
    assert made.unanswered == ("entering ideation, means",)
    file = tmp_path / written.path
    file.write_bytes(file.read_bytes().replace(b"> (no answer)", b"Two cores, a week."))
    assert stages.history(index(tmp_path))[0].unanswered == ()
    (tmp_path / "stages" / "mine.md").write_text("---\nto: thinking\n---\n## 10:00\n")
    (tmp_path / "stages" / "2026-11-28-mine.md").write_text("no front matter")
    assert len(stages.history(index(tmp_path))) == 1


def test_moves_that_make_no_sense_are_refused():
    with pytest.raises(LabError, match="no stage called 'thinking'"):
        stages.move(NOW, "", "thinking", {})
    with pytest.raises(LabError, match="is in ideation already"):
        stages.move(NOW, "ideation", "ideation", {})
    with pytest.raises(LabError, match="going back from understanding to exploration has no reason"):
        stages.move(NOW, "understanding", "exploration", {}, why=" ")
    with pytest.raises(LabError, match="an answer to 'mood'"):
        stages.move(NOW, "", "ideation", {"mood": "good"})


def test_every_stage_has_its_table_and_the_numbers_of_the_guide():
    assert list(stages.STAGES) == ["ideation", "exploration", "understanding", "distillation"]
    for stage in stages.STAGES.values():
        assert stage.north_star and stage.entering and stage.leaving and stage.keep_asking.endswith("?") and stage.failure  # fmt: skip
    order = list(stages.STAGES)
    said = repr([stages.asked(a, b) for a, b in zip(["", *order], [*order, "end"], strict=True)])
    for number in (
        "20 ideas",
        "0 to 10",
        "After 5 minutes",
        "1 to 3 claims",
        "600 words",
        "about 1 page",
        "figures 3 at most",
        "0.001",
        "(5 say",
        "10 cheap ones",
    ):
        assert number in said, number


def test_a_project_ends_with_the_questions_of_its_last_stage_and_may_begin_again(tmp_path):
    page, ended = stages.move(NOW, "distillation", "end", {"leaving distillation, shared": "with the list"})
    folder.create(tmp_path, page)
    left = {f"leaving distillation, {k}" for k in ("summary", "limits", "verified", "examples")}
    assert set(ended.unanswered) == left | {"entering end, post-mortem"}
    with pytest.raises(LabError, match="has no reason"):
        stages.move(later(1), "end", "exploration", {})
    page, again = stages.move(later(1), "end", "exploration", {}, why="a reader found a hole")
    folder.create(tmp_path, page)
    assert again.back and stages.history(index(tmp_path)) == (ended, again)
    assert "stage: end" in views.stage((ended,))[0]
    assert due(later(600), "end", [Activity(NOW, later(600), "coding")])
    with pytest.raises(LabError, match="no stage called 'over'"):
        due(NOW, "over", [])


def test_questions_have_the_projects_own_numbers():
    changed = dict(
        LIMITS,
        ideas=replace(LIMITS["ideas"], value=7.0),
        ideation_block=replace(LIMITS["ideation_block"], value=None),
    )
    (text,) = (
        q
        for k, q in stages.asked("ideation", "exploration", Limits(changed)).items()
        if k.endswith(", ideas")
    )
    assert text == "Were there 7 ideas or more, and 1 h of looking for them?"
    page, _ = stages.move(NOW, "ideation", "exploration", {}, limits=Limits(changed))
    assert "Were there 7 ideas" in page.body and "{" not in page.body
    every = [q for s in stages.STAGES.values() for q in (*s.entering.values(), *s.leaving.values())]
    assert all(set(re.findall(r"{(.*?)}", q)) <= set(LIMITS) for q in every)


# ---- ratings


def test_a_rating_is_shown_only_to_who_gave_one(tmp_path):
    folder.add(tmp_path, *ideas.idea(NOW, "Where is gender?", answers={"success": "a direction"}))
    ideas.rate(tmp_path, NOW, "Where is gender?", "Ada", 8, why="cheap")
    with pytest.raises(LabError, match="Bo has not rated") as refused:
        ideas.reveal(tmp_path, "Where is gender?", "Bo")
    assert "8" not in str(refused.value) and "cheap" not in str(refused.value)
    assert ideas.gaps(tmp_path, "Bo") == ()
    with pytest.raises(LabError, match="not rated"):
        ideas.reveal(tmp_path, "where-is-gender", "Ada L.")  # another person
    ideas.rate(tmp_path, later(1), "where-is-gender", "Bo", 3)
    ideas.rate(tmp_path, later(2), "where-is-gender", "Bo", 9, why="having seen Ada's")
    own, other = ideas.reveal(tmp_path, "where-is-gender", "Bo")
    assert (own.person, own.rating, own.changed) == ("Bo", 3, (9.0,)) and (other.person, other.rating, other.why) == ("Ada", 8, "cheap")  # fmt: skip
    assert [(a.rating, b.rating) for a, b in ideas.gaps(tmp_path, "Bo")] == [(3, 8)]  # the first ones count
    assert ideas.gaps(tmp_path, "Bo", least=5.5) == () and len(ideas.gaps(tmp_path, "Bo", least=5)) == 1
    page = folder.read(tmp_path, "ideas/where-is-gender.md")
    assert (
        "8" not in page.body.split("## ")[1].replace("2026-11-28", "")
        and ideas.QUESTIONS["means"] in page.body
    )
    assert page.kind == "idea" and folder.read(tmp_path, "ratings/ada.md").kind == "ratings"
    assert views.ratings((own, other))[0] == ("Bo", "3", "", "9")


def test_ratings_of_others_stay_hidden_per_idea(tmp_path):
    for title in ("one", "two"):
        folder.add(tmp_path, *ideas.idea(NOW, title))
        ideas.rate(tmp_path, NOW, title, "Ada", 8)
    ideas.rate(tmp_path, NOW, "one", "Bo", 1)
    assert len(ideas.reveal(tmp_path, "one", "Bo")) == 2
    with pytest.raises(LabError, match="not rated"):
        ideas.reveal(tmp_path, "two", "Bo")
    assert [a.idea for a, _ in ideas.gaps(tmp_path, "Bo")] == ["one"]


@pytest.mark.parametrize("rating", [-1, 10.1, float("nan"), True, "7"])
def test_a_rating_is_a_number_from_0_to_10(tmp_path, rating):
    folder.add(tmp_path, *ideas.idea(NOW, "one"))
    with pytest.raises(LabError, match="a rating of"):
        ideas.rate(tmp_path, NOW, "one", "Ada", rating)
    assert not (tmp_path / "ratings").exists()


def test_ratings_that_make_no_sense_are_refused(tmp_path):
    folder.add(tmp_path, *ideas.idea(NOW, "one"))
    for idea in ("two", "../one", "ideas/one", ""):
        with pytest.raises(LabError, match="no idea called"):
            ideas.rate(tmp_path, NOW, idea, "Ada", 5)
    with pytest.raises(LabError, match="by nobody"):
        ideas.rate(tmp_path, NOW, "one", " ", 5)
    with pytest.raises(LabError, match="an answer to 'mood'"):
        ideas.idea(NOW, "x", answers={"mood": "good"})
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings" / "ada.md").write_text("## 2026-11-28 10:00 one\n\n- rating: eleven\n\n## 2026-11-28 10:01 one\n\n- rating: 99\n")  # fmt: skip
    with pytest.raises(LabError, match="not rated"):
        ideas.reveal(tmp_path, "one", "Ada")
    (tmp_path / "ratings" / "bo.md").write_bytes(b"\xff")
    with pytest.raises(LabError, match=r"ratings/bo\.md line 1 is not UTF-8"):
        ideas.reveal(tmp_path, "one", "Ada")


# ---- beliefs, decisions, goals, plan, questions


def test_a_belief_keeps_the_history_of_its_confidence(tmp_path):
    for at, value, experiment in ((0, 0.5, ""), (5, 0.9, "patching"), (9, 0.2, "a null")):
        folder.add(tmp_path, *records.belief(later(at), "L9H6 moves names", value, experiment=experiment, result="see run", runs=[17]))  # fmt: skip
    page = folder.read(tmp_path, "beliefs/l9h6-moves-names.md")
    history = records.confidence(page)
    assert [(c.confidence, c.experiment) for c in history] == [(0.5, ""), (0.9, "patching"), (0.2, "a null")]
    assert page.title == "L9H6 moves names" and page.body.startswith("L9H6 moves names\n")
    assert views.beliefs([(page, history)]) == (("L9H6 moves names", "0.2", "0.5 -> 0.9 -> 0.2"),)
    file = tmp_path / page.path
    file.write_text(file.read_text() + "\n## 2026-11-29 10:00 +00:00\n\n- confidence: high\n\n## 2026-11-30 10:00\n\n- confidence: 7\n")  # fmt: skip
    assert len(records.confidence(folder.read(tmp_path, page.path))) == 3
    for bad in (1.1, -0.1, float("nan"), True, "0.5"):
        with pytest.raises(LabError, match="a confidence of"):
            records.belief(NOW, "x", bad)


def test_opposite_beliefs_are_two_pages(tmp_path):
    for sign in "<>":
        folder.add(tmp_path, *records.belief(NOW, f"L9H6 {sign} L8H1", 0.5))
    assert len(index(tmp_path)) == 2


def test_a_decision_says_why_and_later_how_it_came_out(tmp_path):
    page = folder.add(tmp_path, *records.decision(NOW, "Drop the probe", why="no null beaten", alternatives=["more data", " ", "another layer"], would_change="a paper"))  # fmt: skip
    assert page.path == "decisions/2026-11-28-drop-the-probe.md" and page.kind == "decision"
    page = folder.add(tmp_path, page, records.outcome(later(600), "it was the tokenizer", "luck", learned="look at tokens"))  # fmt: skip
    first, second = entries(page)
    assert first.fields == {"why": "no null beaten", "alternatives": "more data; another layer", "would change it": "a paper"}  # fmt: skip
    assert second.fields["because"] == "luck" and first.title == "decided: Drop the probe"
    with pytest.raises(LabError, match="because is 'fate'"):
        records.outcome(NOW, "x", "fate")
    with pytest.raises(LabError, match="the reason is empty"):
        records.decision(NOW, "x", why="")


def test_goals_stand_as_their_last_entry_says(tmp_path):
    folder.add(tmp_path, *records.goal(NOW, "objective", "Plot all heads", until="today"))
    folder.add(tmp_path, *records.goal(later(1), "north star", "Know who moves names"))
    folder.add(tmp_path, *records.goal(later(2), "objective", "Plot all heads", state="reached"))
    page = folder.read(tmp_path, "goals.md")
    assert [(g.tier, g.state, g.until) for g in records.goals(page)] == [("north star", "open", ""), ("objective", "reached", "today")]  # fmt: skip
    assert views.goals(records.goals(page))[1] == (
        "objective",
        "Plot all heads",
        "reached",
        "today",
        "2026-11-28",
    )
    assert list(records.TIERS) == ["north star", "sub-goal", "objective"]
    for bad in (("wish", "x", "open"), ("objective", "x", "won"), ("objective", " ", "open")):
        with pytest.raises(LabError):
            records.goal(NOW, bad[0], bad[1], state=bad[2])


def test_a_plan_compares_estimates_with_what_it_took(tmp_path):
    folder.add(tmp_path, *records.step(NOW, "patch", hours=2))
    folder.add(tmp_path, *records.step(later(1), "read", hours=1))
    folder.add(tmp_path, *records.step(later(2), "patch", took=6))
    steps = records.plan(folder.read(tmp_path, "plan.md"))
    assert steps == (records.Step("patch", 2, 6), records.Step("read", 1, None))
    assert views.plan(steps)[-1] == ("all that are done", "2 h", "6 h", "3.0x")
    for bad in ({}, {"hours": 0}, {"hours": float("inf")}, {"took": -1}, {"hours": float("nan")}):
        with pytest.raises(LabError, match="a step of"):
            records.step(NOW, "x", **bad)


def test_an_entry_that_says_nothing_is_refused():
    for empty in (lambda: records.log_entry(NOW, goal=" "), lambda: records.highlight(NOW, ""), lambda: records.question(NOW, " ")):  # fmt: skip
        with pytest.raises(LabError, match="is empty"):
            empty()
    with pytest.raises(LabError, match="the state is|state is 'maybe'"):
        records.question(NOW, "why?", state="maybe")


def test_one_log_a_day_by_the_writers_own_clock(tmp_path):
    from datetime import timezone

    late = datetime(2026, 11, 28, 23, 30, tzinfo=timezone(timedelta(hours=-8)))
    page = folder.add(tmp_path, *records.log_entry(late, goal="g", tried="t", observed="o", next="n", runs=[3], stage="exploration"))  # fmt: skip
    folder.add(tmp_path, *records.log_entry(NOW, tried="t"))
    assert page.path == "log/2026-11-28.md" and len(index(tmp_path)) == 1
    first, second = entries(folder.read(tmp_path, page.path))
    assert first.at == late and list(first.fields) == ["stage", "goal", "tried", "observed", "runs", "next"]


# ---- reviews


DAY = [
    Activity(NOW, later(60), "reading", "the paper"),
    Activity(later(60), later(90), "run", method="probe", state="failed"),
    Activity(later(70), later(70), "highlight", EVIL),
]


def test_a_weekly_review_has_its_seven_questions_and_the_numbers(tmp_path):
    page = folder.create(tmp_path, reviews.weekly_review(NOW, audit(DAY, NOW, later(100))))
    assert page.path == "reviews/2026-W48.md" and page.kind == "review"
    assert re.findall(r"^## (.+)$", page.body, re.M) == [n for n, _ in reviews.WEEKLY] + ["The week in numbers"]  # fmt: skip
    assert len(reviews.WEEKLY) == 7 and "- biggest time sink: reading: the paper, 1.00 h" in page.body
    with pytest.raises(LabError, match="is there already"):
        folder.create(tmp_path, reviews.weekly_review(NOW, audit(DAY, NOW, later(100))))
    made = folder.create(tmp_path, reviews.post_mortem(NOW, "Gender", audit(DAY, NOW, later(100))))
    assert "Take 1 h for a mini-project, 1 to 2 h for a sprint" in made.body and made.kind == "post-mortem"
    assert all(f"## {name}" in made.body for name, _ in reviews.POST_MORTEM) and len(reviews.POST_MORTEM) == 7
    assert folder.create(tmp_path, reviews.time_audit(NOW, audit(DAY, NOW, later(9)))).path == "reviews/2026-11-28-audit.md"  # fmt: skip


AROUND = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: "<!-- microtome" not in t)


@given(AROUND, AROUND, st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_block_is_made_again_and_not_a_byte_around_it_changes(tmp_path_factory, before, after, crlf):
    root = tmp_path_factory.mktemp("n")
    old, new = reviews.block("old\nnumbers\n"), reviews.block("new\n")
    if crlf:
        old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
        before, after = before.replace("\n", "\r\n"), after.replace("\n", "\r\n")
    (root / "x.md").write_bytes((before + "\n" * (not crlf) + "\r\n" * crlf + old + after).encode())
    reviews.refresh(root, "x.md", "new\n")
    assert (root / "x.md").read_bytes() == (before + "\n" * (not crlf) + "\r\n" * crlf + new + after).encode()
    reviews.refresh(root, "x.md", "old\nnumbers\n")
    assert (root / "x.md").read_bytes() == (before + "\n" * (not crlf) + "\r\n" * crlf + old + after).encode()


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.replace("numbers", "numbers, and my own thought"), "somebody wrote inside"),
        (lambda t: t.replace("<!-- microtome:end -->", ""), "1 begins and 0 ends"),
        (lambda t: re.sub("<!-- microtome:computed .*-->", "", t), "0 begins and 1 ends"),
        (lambda t: t + t, "2 begins and 2 ends"),
        (
            lambda t: "<!-- microtome:end -->\n" + t.replace("<!-- microtome:end -->", ""),
            "1 begins and 1 ends",
        ),
    ],
)
def test_a_block_that_is_not_ours_any_more_is_left_alone(tmp_path, change, match):
    text = change("mine\n\n" + reviews.block("old\nnumbers\n") + "mine too\n")
    (tmp_path / "x.md").write_text(text)
    with pytest.raises(LabError, match=match):
        reviews.refresh(tmp_path, "x.md", "new\n")
    assert (tmp_path / "x.md").read_text() == text


def test_a_page_saved_meanwhile_is_not_refreshed(tmp_path):
    page = folder.create(tmp_path, reviews.time_audit(NOW, audit(DAY, NOW, later(9))))
    (tmp_path / page.path).write_bytes((tmp_path / page.path).read_bytes() + b"more")
    with pytest.raises(LabError, match="has changed"):
        reviews.refresh(tmp_path, page.path, "new\n", digest=page.digest)
    assert reviews.refresh(tmp_path, page.path, "new\n").body.endswith("<!-- microtome:end -->\nmore")


def test_words_in_the_record_cannot_end_a_block_or_become_markup(tmp_path):
    evil = "<!-- microtome:end --> <img src=x onerror=alert(1)> | a | [x](javascript:1) `c`\x1b[2J\n# h"
    found = audit([Activity(NOW, later(60), "reading", evil, stage=evil, method=evil)], NOW, later(60))
    text = markdown(found)
    assert (
        "<" not in text
        and "\x1b" not in text
        and "[x]" not in text.replace("\\[x\\]", "")
        and "\n# h" not in text
    )
    page = folder.create(tmp_path, reviews.weekly_review(NOW, found))
    reviews.refresh(tmp_path, page.path, text)
    with pytest.raises(LabError, match="mark of a computed block"):
        reviews.block("x <!-- microtome:end -->")


# ---- what is shown


def test_escapes_in_titles_come_out_as_text(tmp_path):
    for placed in (
        records.highlight(NOW, EVIL, text=EVIL),
        records.log_entry(NOW, tried=EVIL, stage=EVIL),
        records.goal(NOW, "objective", EVIL, until=EVIL),
        records.question(NOW, EVIL),
        records.decision(NOW, EVIL.replace("\r\n", " ").replace("\x1b", "").replace("\u202e", ""), why=EVIL),
        ideas.idea(NOW, "x", text=EVIL),
    ):
        page = folder.add(tmp_path, *placed)
        (entry,) = entries(page)
        raw = (tmp_path / page.path).read_bytes()
        assert b"\x1b" not in raw and b"\r" not in raw and "fake" not in entry.title.split("##")[0]
    # a page that a person (or somebody else) wrote holds anything; what is shown of it does not obey
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.md").write_text("---\ntitle: \"a\\e[31m\\r\\nb\\u202e\"\ndate: \"\\e]0;x\\a\"\n---\n\x1b[2J", newline="")  # fmt: skip
    every = index(tmp_path)
    t = Trigger("x", EVIL, NOW, EVIL, EVIL)
    lines = [cell for row in views.pages(every) for cell in row] + list(views.problems(every)) + list(views.triggers([t]))  # fmt: skip
    lines += [cell for row in views.goals(records.goals(folder.read(tmp_path, "goals.md"))) for cell in row]
    lines += [cell for row in views.audit(audit(DAY, NOW, later(100))) for cell in row]
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b[31m" in line for line in lines) and any("\\u202e" in line for line in lines)


def test_triggers_are_told_in_three_lines():
    shown = views.triggers(due(later(200), "exploration", [Activity(NOW, later(200), "coding")]))
    assert (
        shown[0].startswith("OVERDUE ")
        and shown[1].startswith("  why:  ")
        and shown[2].startswith("  do:   ")
    )
    assert views.triggers(()) == ("nothing is due",)


def test_a_page_of_every_kind_that_we_write_has_no_problems_and_comes_back(tmp_path):
    folder.add(tmp_path, *records.highlight(NOW, "h"))
    folder.add(tmp_path, *records.belief(NOW, "yes: it's 'so' # really", 0.5))
    folder.create(tmp_path, stages.move(NOW, "", "ideation", {})[0])
    folder.create(tmp_path, reviews.weekly_review(NOW, audit(DAY, NOW, later(100))))
    folder.add(tmp_path, Page("note", "free", body="text"), Entry(NOW, "x"))
    for page in index(tmp_path):
        assert page.problems == () and parse(render(page), page.path) == page
    assert {p.title for p in index(tmp_path)} == {"Highlights", "yes: it's 'so' # really", "To ideation", "Week 2026-W48", "free"}  # fmt: skip
