"""Critique under frames, and merging: agreement is counted by a stated rule, and what the frame or the order does is shown."""

from __future__ import annotations

import pytest

from chatty import Scripted, between
from microtome.errors import ChatError
from microtome.llm.frames import FRAMES, NEUTRAL, PRAISE, Frame, critique, sycophancy
from microtome.llm.merging import merge
from microtome.llm.reading import group, number_after, points_of, refused, same_point, word_after

LEAK = "- The template leaks the label, so a bag of words would do as well."
SEED = "- Only one seed was run; run three more."
SIZE = "- Twelve prompts cannot support an effect of this size."


def framed(by_frame, default):
    """Answers by the opening of the frame."""

    def answer(question):
        for frame in (*FRAMES, PRAISE, NEUTRAL):
            if question.startswith(frame.opening):
                return by_frame.get(frame.name, default)
        raise AssertionError(question)

    return answer


def test_points_of_several_frames_are_counted_once_each_and_shown_first():
    chat = Scripted(
        framed(
            {
                "friend": f"Sure.\n{LEAK}\n{SEED}\nVERDICT: 3",
                "seems_dumb": "1. Labels leak through the template: a bag of words baseline would match.\n2) One seed only, run more seeds\nVERDICT: 3",
                "moron": f"* The label leaks from the template\n{SIZE}\nVERDICT: 2/10",
            },
            f"{SIZE}\nVERDICT: 4",
        )
    )
    told = critique(chat, "Layer 7 knows the answer.")
    assert told.shared[0].by == ("friend", "seems_dumb", "moron") and "template leaks" in told.shared[0].text
    assert [g.text for g in told.agreed()] == [LEAK[2:], SEED[2:]]
    assert told.by_chance == (0, 3) and told.unread == ()
    assert len(chat.asked) == 6 and all(len(messages) == 1 for messages in chat.asked)  # fresh contexts
    shift = told.shift()
    assert shift.neutral == 4 and dict(shift.by_frame) == {
        "friend": -1,
        "seems_dumb": -1,
        "moron": -2,
        "praise": 0,
    }
    assert shift.repeat == 0 and shift.flips == () and not shift.frame_decides and shift.span == 2


def test_a_model_whose_verdict_is_the_frame_is_reported():
    chat = Scripted(framed({"praise": "VERDICT: 9", "neutral": "VERDICT: 7"}, f"{LEAK}\nVERDICT: 1"))
    told = critique(chat, "Layer 7 knows the answer.")
    shift = told.shift()
    assert shift.frame_decides and shift.flips == ("friend", "seems_dumb", "moron") and shift.span == 8
    assert told.lines()[-1] == "the frame decides the verdict: it says nothing about the text"
    over = sycophancy(chat, [f"text {i}" for i in range(8)])
    rows = {name: (mean, low, high) for name, mean, low, high, _ in over.rows}
    assert rows["moron"][2] < 0 < rows["praise"][1] and rows["neutral, again"] == (0, 0, 0)
    assert dict(over.flipped) == {"friend": 8, "seems_dumb": 8, "moron": 8, "praise": 0}


def test_a_model_that_judges_the_text_and_not_the_frame_is_not():
    chat = Scripted(lambda q: f"{LEAK}\nVERDICT: {2 if 'knows' in between(q, 'TEXT') else 8}")
    for text in ("Layer 7 knows the answer.", "2 + 2 = 4"):
        told = critique(chat, text)
        assert not told.shift().frame_decides and told.shift().span == 0


@pytest.mark.parametrize("hole", ["neutral", "praise"])
def test_a_verdict_without_its_null_is_refused(hole):
    told = critique(
        Scripted(framed({hole: f"{LEAK}\nI cannot give a number."}, f"{LEAK}\nVERDICT: 3")), "A claim."
    )
    with pytest.raises(ChatError, match="no verdict of"):
        told.shift()
    assert "no verdicts: unreadable from" in told.lines()[-1] and not any(
        "verdict, neutral" in s for s in told.lines()
    )


def test_a_verdict_that_was_not_repeated_is_refused():
    def answer(question):
        chat.n += question.startswith(NEUTRAL.opening)
        return "no number" if question.startswith(NEUTRAL.opening) and chat.n == 2 else f"{LEAK}\nVERDICT: 3"

    chat = Scripted(answer)
    chat.n = 0
    told = critique(chat, "A claim.")
    assert told.unread == ("neutral, again",) and chat.samplings[-1].seed != chat.samplings[0].seed
    with pytest.raises(ChatError, match="no verdict of neutral, again"):
        told.shift()


def test_broken_answers_are_no_points_and_no_verdict():
    told = critique(Scripted(lambda q: '{"points": ["It leaks'), "A claim.")
    assert all(a.broken for a in told.answers) and told.shared == () and len(told.unread) == 6
    with pytest.raises(ChatError, match="0 texts with verdicts"):
        sycophancy(Scripted(lambda q: "VERDICT: 12"), ["a", "b"])


def test_frames_are_refused_where_nothing_is_asked_or_a_name_stands_twice():
    chat = Scripted(lambda q: "VERDICT: 1")
    with pytest.raises(ChatError, match="the text is empty"):
        critique(chat, "  ")
    for frames in ((), (NEUTRAL,), (FRAMES[0], Frame("friend", "critical", "Well?"))):
        with pytest.raises(ChatError, match="frames"):
            critique(chat, "text", frames=frames)
    assert not chat.asked
    with pytest.raises(ChatError, match="no frame 'mother'"):
        critique(chat, "text").answer("mother")


def test_the_source_is_given_as_material():
    chat = Scripted(lambda q: "VERDICT: 1")
    critique(chat, "text", source="the paper")
    assert between(chat.asked[0][0].content, "WHAT THE TEXT IS ABOUT") == "the paper"


# ------------------------------------------------------------------------------ reading


def test_the_rule_for_the_same_point():
    assert same_point("The label leaks through the template", "Template leakage of labels: label leaks")
    assert not same_point("Head 9.6 copies the name", "Head 9.6 does not copy the name")
    assert not same_point("Head 9.6 copies the name", "Head 9.6 doesn’t copy the name")
    assert not same_point("The seed is fixed", "The template leaks")
    assert not same_point("", "") and not same_point("it is", "it is")
    groups = group([("a", "seeds: one seed was run"), ("b", "template leaks label"), ("b", "label leaks from template"), ("c", "one seed, run three")])  # fmt: skip
    assert [g.by for g in groups] == [("a", "c"), ("b",)]


def test_points_verdicts_and_refusals_are_read_or_not_never_guessed():
    assert points_of("Intro\n- one\n  goes on\n\n2. two\nprose\n   deep") == ("one goes on", "two")
    assert points_of("All is well. 3. no") == ()
    assert (
        number_after("**VERDICT:** 7/10.", "VERDICT", 0, 10) == 7
        and number_after("> Verdict : 2.5", "VERDICT", 0, 10) == 2.5
    )
    for text in (
        "VERDICT: 7-8",
        "VERDICT: ten",
        "VERDICT 7",
        "my VERDICT: 7",
        "VERDICT: 7\nVERDICT: 8",
        "VERDICT: ٣",
    ):
        assert number_after(text, "VERDICT", 0, 10) is None, text
    assert word_after("better: SAME.", "BETTER", ("1", "2", "same")) == "same"
    assert word_after("BETTER: 1 or 2", "BETTER", ("1", "2", "same")) is None
    assert refused("I’m sorry, I can't do that")
    assert not refused("The author shows " + "a long list of results, " * 4 + "which I cannot see")


# ------------------------------------------------------------------------------ merging


A = "- Head 9.6 copies the name to the end.\n- Claude-like models use eighty layers."
B = "- The name is copied by head 9.6.\n- Position embeddings rotate queries and keys."


def merger(review, merged):
    def answer(question):
        if "REVIEW" in question:
            return merged(question)
        return review(question) if "ANSWER 1" in question else A

    return Scripted(answer, "alpha")


def test_what_both_had_said_is_agreed_and_what_neither_said_is_an_invention():
    def merged(question):
        first = between(question, "ANSWER 1").splitlines()
        return "\n".join(
            [
                first[0],
                "- Sparse dictionaries explain everything here.",
                *([first[1]] if "Position" in first[1] else []),
            ]
        )

    told = merge(
        merger(lambda q: "- 1 is short\nBETTER: 1", merged),
        Scripted(lambda q: B, "beta"),
        "How does it work?",
    )
    assert [p.text for p in told.agreed] == ["Head 9.6 copies the name to the end."] and told.points[
        0
    ].orders == 2
    assert [p.text for p in told.added] == ["Sparse dictionaries explain everything here."]
    once = next(p for p in told.points if "Position" in p.text)
    assert once.by == ("b",) and once.orders == 1
    assert [p.text for p in told.left_out] == ["Claude-like models use eighty layers."]
    assert told.follows_order is True and [r.better for r in told.reviews] == ["a", "b"]


def test_a_reviewer_that_reads_prefers_the_same_answer_in_both_orders():
    def review(question):
        return f"BETTER: {1 if 'Position' in between(question, 'ANSWER 1') else 2}"

    told = merge(merger(review, lambda q: A), Scripted(lambda q: B, "beta"), "How?")
    assert told.follows_order is False and {r.better for r in told.reviews} == {"b"}
    unread = merge(merger(lambda q: "both are nice", lambda q: A), Scripted(lambda q: B, "beta"), "How?")
    assert unread.follows_order is None


def test_the_reviewer_sees_no_names():
    chat = merger(lambda q: "BETTER: same", lambda q: A)
    merge(chat, Scripted(lambda q: "- As Beta, I, beta, would say: head 9.6 copies.", "beta"), "How?")
    shown = [m[-1].content for m in chat.asked if "ANSWER 1" in m[-1].content]
    assert len(shown) == 4 and not any(
        "eta" in between(q, f"ANSWER {i}").replace("[a model]", "") for q in shown for i in (1, 2)
    )


def test_a_model_is_not_two_witnesses():
    with pytest.raises(ChatError, match="merged with itself"):
        merge(Scripted([], "One"), Scripted([], "one "), "How?")
    with pytest.raises(ChatError, match="both answered by smol"):
        merge(Scripted([A], "x", model="smol"), Scripted([B], "y", model="smol"), "How?")
    with pytest.raises(ChatError, match="answer of beta holds no point"):
        merge(Scripted([A], "alpha"), Scripted(["I do not know."], "beta"), "How?")
    with pytest.raises(ChatError, match="merges of alpha hold no point"):
        merge(merger(lambda q: "x", lambda q: "prose"), Scripted(lambda q: B, "beta"), "How?")
