"""Curriculum, progress, quizzes, and the critic of summaries: what counts, and what is dropped."""

from __future__ import annotations

import copy
import datetime
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from microtome.errors import ChatError, LabError
from microtome.llm import progress, quiz
from microtome.llm.chat import UnusableAnswer
from microtome.llm.curriculum import curriculum, status
from microtome.llm.progress import Entry, append, boxes, read
from microtome.llm.tutor import Tutor, copied, describe_technique, summarise_back
from scripted import Scripted

DAY = datetime.date(2026, 1, 10)
SOURCE = """The identity patch puts a run's own activations back into it. It should change nothing beyond the noise floor
of the arithmetic. If it changes anything, hooks or positions are wrong, and no other number can be trusted."""
ROW = {
    "question": "What should the identity patch change?",
    "right": "Nothing beyond the noise floor",
    "wrong": [
        "The attention patterns of later layers",
        "The metric by a small amount",
        "The norm of the patched layer",
    ],
    "because": "A run's own activations are put back.",
    "quote": "It should change nothing beyond the noise floor of the arithmetic.",
}


def test_the_curriculum_keeps_its_own_limits():
    plan = curriculum()
    ids = [t.id for t in plan.topics]
    assert len(set(ids)) == len(ids) and {t.need for t in plan.topics} == {"essential", "nice"}
    assert (plan.days, plan.hours) == (30, 200) and sum(t.hours for t in plan.topics) <= 200
    assert all(t.knowing and t.title and len(t.notes.split()) > 50 for t in plan.topics)
    core = {
        "activation-patching",
        "linear-probes",
        "sparse-autoencoders",
        "max-activating",
        "linear-algebra",
        "transformer",
    }
    assert core <= {t.id for t in plan.topics if t.need == "essential"}
    assert ids.index("linear-algebra") < ids.index("transformer") < ids.index("activation-patching")
    with pytest.raises(ChatError, match="'linear-probe'") as caught:
        plan.topic("linear-probe")
    assert "linear-probes" in caught.value.instead


def test_reading_alone_is_no_progress():
    read_only = [Entry(DAY, "linear-algebra", "reading", minutes=60)] * 20
    told = status(read_only, DAY)
    assert told.standings[0].state == "only read" and told.next.id == "linear-algebra" and told.hours == 20
    assert any("does not count: linear-algebra" in note for note in told.notes)
    assert any("20.0 h of 15 h" in note for note in told.notes)
    with pytest.raises(LabError, match="reading was passed"):
        Entry(DAY, "linear-algebra", "reading", passed=True)


def test_a_topic_is_known_by_a_quiz_and_something_produced():
    quiz_, summary = Entry(DAY, "linear-algebra", "quiz", True), Entry(DAY, "linear-algebra", "summary", True)
    failed = Entry(DAY, "linear-algebra", "exercise", False)
    states = [
        status(list(e), DAY).standings[0].state
        for e in ([failed], [quiz_], [summary], [quiz_, failed], [quiz_, summary])
    ]
    assert states == ["tried", "begun", "begun", "begun", "known"]
    assert status([quiz_, summary], DAY).next.id == "transformer", "the next essential one; nice ones wait"
    everything = [Entry(DAY, t.id, kind, True) for t in curriculum().topics for kind in ("quiz", "exercise")]
    assert status(everything, DAY).next is None and "mini-projects" in status(everything, DAY).notes[0]


@pytest.mark.parametrize(("days", "hours", "over"), [(29, 199, False), (30, 1, True), (1, 200, True)])
def test_the_stage_ends_by_days_or_by_hours(days, hours, over):
    entries = [Entry(DAY, "compute", "quiz", minutes=60)] * hours
    told = status(entries, DAY + datetime.timedelta(days=days))
    assert (told.days, told.hours) == (days, hours)
    assert over == any("at most 30 days and 200 h" in note for note in told.notes)


def test_entries_come_back_as_they_were_written_and_comments_stay(tmp_path):
    path = tmp_path / "notebook" / "learning.yaml"
    assert read(path) == ()
    entries = [Entry(DAY, "tokens", "quiz", True, 3.5, "4 of 5: \x1b[31m - 'x'", {"tok-space": True, "tok-temp": False}),
               Entry(DAY, "compute", "reading", minutes=10)]  # fmt: skip
    append(path, entries[0])
    path.write_text(path.read_text(encoding="utf-8") + "# my own note, without a line end", encoding="utf-8")
    append(path, entries[1])
    assert read(path) == tuple(entries)
    assert "# my own note, without a line end\n" in path.read_text(encoding="utf-8")


def test_two_writers_lose_nothing(tmp_path):
    path = tmp_path / "learning.yaml"
    append(path, Entry(DAY, "tokens", "quiz"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append(path, Entry(DAY, "tokens", "quiz", detail=str(i))), range(100)))
    assert Counter(e.detail for e in read(path)) == Counter(["", *map(str, range(100))])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: 1", "is no list"),
        ("- [", "cannot be read"),
        ("- !!python/object/apply:os.system [echo]", "cannot be read"),
        ("- just text", "entry 1 is wrong"),
        ("- {date: 2026-01-10, topic: a, kind: quiz}\n- {date: soon, topic: a, kind: quiz}", "entry 2 is wrong"),
        ("- {date: 2026-01-10 10:00:00, topic: a, kind: quiz}", "date is no day"),
        ("- {date: 2026-01-10, topic: a, kind: nap}", "nap"),
        ("- {date: 2026-01-10, topic: a, kind: reading, passed: true}", "reading was passed"),
        ("- {date: 2026-01-10, topic: a, kind: quiz, passed: 'yes'}", "passed is true or false"),
        ("- {date: 2026-01-10, topic: a, kind: quiz, minutes: -1}", "-1 minutes"),
        ("- {date: 2026-01-10, topic: a, kind: quiz, minutes: .nan}", "nan minutes"),
        ("- {date: 2026-01-10, topic: a, kind: quiz, score: 3}", "may have"),
        ("- {date: 2026-01-10, topic: a, kind: quiz, answers: {x: 1}}", "answers are"),
        ("- {date: 2026-01-10, topic: 3, kind: quiz}", "are texts"),
    ],
)  # fmt: skip
def test_a_file_with_a_mistake_is_refused_with_its_place(tmp_path, text, match):
    path = tmp_path / "learning.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=match) as caught:
        read(path)
    assert caught.value.why


def answered(day, **answers):
    return Entry(DAY + datetime.timedelta(days=day), "tokens", "quiz", answers=answers)


def test_boxes_follow_leitner():
    stand = lambda *entries: {k: (b.number, (b.due - DAY).days) for k, b in boxes(entries).items()}  # noqa: E731
    assert stand(answered(0, a=True, b=False)) == {"a": (2, 2), "b": (1, 1)}
    assert stand(answered(0, a=True), answered(2, a=True)) == {"a": (3, 6)}
    assert stand(answered(0, a=True), answered(1, a=True)) == {"a": (2, 2)}, "too early: it does not move"
    assert stand(answered(0, a=True), answered(1, a=False)) == {"a": (1, 2)}
    days, day = [], 0
    for _ in range(7):
        days.append(answered(day, a=True))
        day = (boxes(days)["a"].due - DAY).days
    assert boxes(days)["a"].number == 6 and (boxes(days)["a"].due - days[-1].date).days == 32
    assert stand(answered(3, a=False), answered(0, a=True)) == {"a": (1, 4)}, (
        "by day, whatever the order in the file"
    )


def test_due_items_come_first_then_new_ones_and_the_same_every_time():
    items = [i for i in quiz.bank() if i.topic == "transformer"]
    names = [i.id for i in items]
    stand = boxes([answered(0, **{names[0]: True, names[1]: False, names[2]: True})])
    tomorrow, later = DAY + datetime.timedelta(days=1), DAY + datetime.timedelta(days=2)
    assert [i.id for i in quiz.choose(items, 1, stand=stand, today=tomorrow)] == [names[1]]
    chosen = [i.id for i in quiz.choose(items, 99, stand=stand, today=later, seed=3)]
    assert chosen[:3] == [names[1], *sorted([names[0], names[2]])] and set(chosen) == set(names)
    assert chosen == [i.id for i in quiz.choose(items, 99, stand=stand, today=later, seed=3)]
    others = {tuple(i.id for i in quiz.choose(items, 99, stand={}, today=DAY, seed=s)) for s in range(8)}
    assert len(others) > 1
    done = boxes([answered(0, **dict.fromkeys(names, True))])
    assert quiz.choose(items, 9, stand=done, today=DAY) == ()


def test_the_bank_has_no_item_that_would_be_dropped_and_gives_nothing_away():
    items = quiz.bank()
    assert len(items) >= 40 and len({i.id for i in items}) == len({i.question for i in items}) == len(items)
    per = Counter(i.topic for i in items)
    assert set(per) == {t.id for t in curriculum().topics}
    assert min(per.values()) >= quiz.LEAST, "a quiz on every topic can be passed without a model"
    ends = [{o.endswith(".") for o in (i.right, *i.wrong)} for i in items]
    assert max(map(len, ends)) == 1, "nor its full stop"
    assert [(i.id, w) for i in items if (w := quiz.wrong_with(i))] == []
    longest = sum(len(i.right) > max(map(len, i.wrong)) for i in items)
    shortest = sum(len(i.right) < min(map(len, i.wrong)) for i in items)
    assert max(longest, shortest) < 0.4 * len(items), "the length of an option must not tell which is right"
    places = Counter(quiz.options(i).index(i.right) for i in items)
    assert min(places.values()) > len(items) / 10, "nor its place"


def test_options_are_shuffled_by_the_seed_and_grading_follows():
    items = quiz.bank()[:5]
    assert len({quiz.options(items[0], s) for s in range(20)}) > 5
    assert all(sorted(quiz.options(i, 7)) == sorted([i.right, *i.wrong]) for i in items)
    key = "".join("abcd"[quiz.options(i, 7).index(i.right)] for i in items)
    assert quiz.grade(items, key, 7).marks == (True,) * 5 and quiz.grade(items, key, 7).passed
    assert quiz.grade(items, key.upper()[:3] + ", - " + key[4:], 7).marks == (True, True, True, False, True)
    assert quiz.grade(items, key[:3] + "--", 7).passed is False
    assert quiz.grade(items[:3], key[:3], 7).passed is False, "three items are guessed too easily"
    assert quiz.grade(items, list(key), 7).chosen == tuple(i.right for i in items)
    for bad, match in (("abc", "3 answers to 5"), ("abcde", "'e'"), ("", "0 answers"), ("a1bcd", "'1'")):
        with pytest.raises(ChatError, match=match):
            quiz.grade(items, bad)


def faulty(**changes):
    return {**copy.deepcopy(ROW), **changes}


def test_a_good_item_is_kept_and_bad_ones_are_dropped_and_counted():
    rows = [
        ROW,
        faulty(question="Not quoted?", quote="It should change the noise floor of arithmetic only."),
        faulty(question="Short quote?", quote="It should change"),
        faulty(
            question="Beside the point, in other terms?",
            right="Hooks",
            quote="no other number can be trusted",
        ),
        faulty(question="What should be the same?", wrong=["a", "a ", "b"]),
        faulty(question="What is right twice?", right="The norm of the patched layer."),
        faulty(question="What of all?", wrong=["All of the above", "b", "c"]),
        faulty(question="What of both?", wrong=["Both a and b", "b", "c"]),
        faulty(question="What of letters?", wrong=["a) nothing", "b", "c"]),
        faulty(question="What should  the identity PATCH change?"),
    ]
    chat = Scripted({"items": rows})
    made = quiz.generate(chat, SOURCE, 10, topic="activation-patching")
    assert [i.question for i in made.items] == [ROW["question"]] and len(made.dropped) == 9
    for line, why in zip(made.dropped, ["quote is not in", "shorter than four", "nothing to do", "are the same", "are the same",
                                        "the other options", "the other options", "own letter", "asked before"], strict=True):  # fmt: skip
        assert why in line
    assert made.items[0].quote == ROW["quote"] and made.items[0].id.startswith("made-")
    assert SOURCE in chat.asked[0][1].content


@pytest.mark.parametrize(
    "rows",
    [
        [faulty(quote="I made this up, and it sounds right.")],
        [faulty(wrong=["one", "two"])],
        [{k: v for k, v in ROW.items() if k != "quote"}],
        [],
        [faulty(right=["a list"])],
        [ROW, ROW],
    ],
)
def test_no_false_quiz_comes_of_a_broken_answer(rows):
    with pytest.raises(UnusableAnswer) as caught:
        quiz.generate(Scripted({"items": rows}, {"items": rows}), SOURCE, 1)
    assert caught.value.came and caught.value.why


def test_a_quiz_of_nothing_is_refused():
    for source, n, match in ((" ", 3, "a source of 1"), ("x" * 200_001, 3, "200001"), (SOURCE, 0, "0 items"), (SOURCE, 21, "21 items")):  # fmt: skip
        with pytest.raises(ChatError, match=match):
            quiz.generate(Scripted(), source, n)


SUMMARY = """One puts what a run computed back where it was taken from. Nothing may move by more than rounding errors do. When
something moves all the same, one has found a fault of the set-up, such as a hook at another place, and goes no further."""


def test_a_critique_keeps_what_can_be_looked_up_and_counts_the_rest():
    said = {
        "missing": [
            {"point": "the name", "quote": "The identity patch puts a run's own activations back into it."},
            {"point": "invented", "quote": "It was introduced by Vig and others in 2020."},
        ],
        "wrong": [
            {
                "said": "a fault of the set-up",
                "why": "it is of hooks",
                "quote": "hooks or positions are wrong",
            },
            {"said": "layer norm is folded", "why": "no", "quote": "hooks or positions are wrong"},
            {"said": "Nothing may move", "why": "no", "quote": "everything may move a little"},
        ],
        "well": ["rounding errors", "words that were never said"],
    }
    chat = Scripted(said)
    got = summarise_back(chat, SOURCE, SUMMARY)
    assert [m.point for m in got.missing] == ["the name"] and [w.said for w in got.wrong] == [
        "a fault of the set-up"
    ]
    assert (
        got.well == ("rounding errors",) and len(got.dropped) == 4 and got.by == "scripted" and not got.passed
    )
    assert len(chat.asked[0]) == 2, "a context of its own"
    system, user = chat.asked[0]
    assert "did not write" in system.content and SOURCE.strip() in user.content and "SUMMARY" in user.content


def test_what_the_summary_says_in_the_sources_own_words_is_not_missing():
    summary = SUMMARY + " It should change nothing beyond the noise floor."
    said = {"missing": [{"point": "noise", "quote": "should change nothing beyond the noise floor"}], "wrong": [], "well": ["rounding errors"]}  # fmt: skip
    got = summarise_back(Scripted(said), SOURCE, summary)
    assert got.missing == () and "the summary says it" in got.dropped[0] and got.passed


def test_a_critique_that_says_nothing_is_none():
    empty = {"missing": [], "wrong": [], "well": []}
    with pytest.raises(UnusableAnswer, match="in 2 tries"):
        summarise_back(Scripted(empty, empty), SOURCE, SUMMARY)
    invented = {
        "missing": [{"point": "x", "quote": "this was never written anywhere"}],
        "wrong": [],
        "well": [],
    }
    with pytest.raises(UnusableAnswer) as caught:
        summarise_back(Scripted(invented, invented), SOURCE, SUMMARY)
    assert "word for word" in caught.value.why


def test_a_copy_is_no_summary():
    assert copied(SOURCE, SOURCE) == 1.0 and copied(SOURCE, SUMMARY) == 0.0
    with pytest.raises(ChatError, match="100% of the summary stands word for word"):
        summarise_back(Scripted(), SOURCE, SOURCE.upper())
    with pytest.raises(ChatError, match="a summary of 3 words"):
        summarise_back(Scripted(), SOURCE, "It changes nothing.")
    with pytest.raises(ChatError, match="a source of 0"):
        summarise_back(Scripted(), "", SUMMARY)


def test_a_technique_is_described_against_its_notes():
    topic = curriculum().topic("activation-patching")
    said = {
        "missing": [{"point": "backups", "quote": "Backup heads can take over when a head is removed"}],
        "wrong": [],
        "well": [],
    }
    chat = Scripted(said)
    assert describe_technique(chat, topic, SUMMARY).missing[0].point == "backups"
    assert topic.notes.strip() in chat.asked[0][1].content


def test_a_tutor_asks_within_a_frame_and_forgets_a_question_without_an_answer():
    topic = curriculum().topic("tokens")
    tutor = Tutor(Scripted("What is a token?", "Why?"), topic)
    tutor.say("Begin.")
    tutor.say("A piece of text.")
    system = tutor.messages[0].content
    assert (
        "Socratic" in system
        and topic.knowing[0] in system
        and topic.notes.strip() in system
        and "Ways to fail" in system
    )
    assert [m.role for m in tutor.messages] == ["system", "user", "assistant", "user", "assistant"]
    with pytest.raises(IndexError):
        tutor.say("Nobody answers.")
    assert len(tutor.messages) == 5
    with pytest.raises(ChatError, match="nothing was said"):
        tutor.say(" ")
    assert "SOURCE TEXT" in Tutor(Scripted(), topic, "SOURCE TEXT").messages[0].content
    assert progress.KINDS[0] == "reading"
