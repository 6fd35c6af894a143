"""Structure out of answers, and answers that are pasted."""

from __future__ import annotations

import json
import os
import pickle
from io import StringIO

import pytest

from microtome.errors import ChatError
from microtome.llm.answers import ask_for, find_value, problems
from microtome.llm.chat import Message, UnusableAnswer
from microtome.llm.pasting import END, Pasting, as_text
from scripted import Scripted

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "name": {"type": "string", "minLength": 1}},
}
GOOD = '{"x": 1, "name": "a"}'
ASK = [Message("system", "Be exact."), Message("user", "Where is it?")]


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"\n  {GOOD}\n",
        f"Sure! Here it is:\n```json\n{GOOD}\n```\nI hope this helps.",
        f"~~~\n{GOOD}\n~~~",
        f"The answer is {GOOD}, as asked.",
        f'A set {{1, 2}} is no object, but {GOOD} is; {{"x": "no"}} is another.',
        f'<think>Perhaps {{"x": 2, "name": "b"}}?</think>\n{GOOD}',
        f"{GOOD} and again {GOOD}",
        f"```\n{{broken\n```\nso: {GOOD}",
    ],
)
def test_one_value_is_found_wherever_it_stands(text):
    assert find_value(text, POINT) == ({"x": 1, "name": "a"}, ())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no JSON value"),
        ("I do not know.", "no JSON value"),
        ('{"x": 1, "name": "a"', "no JSON value"),
        ("{'x': 1, 'name': 'a'}", "no JSON value"),
        ('{"x": 1, "name": "a",}', "no JSON value"),
        ('{"x": 1, "x": 2, "name": "a"}', "stands twice"),
        ('{"x": NaN, "name": "a"}', "NaN is no JSON"),
        ('[{"x": 1, "name": "a"}]', "not of type object"),
        ('{"x": 1.5, "name": "a"}', "x is 1.5, not of type integer"),
        ('{"x": true, "name": "a"}', "x is true, not of type integer"),
        ('{"x": 1, "name": " "}', "0 characters, at least 1"),
        ('{"x": 1}', "has no 'name'"),
        ('{"x": 1, "name": "a", "more": 1}', "not asked for"),
        ('{"x": 1, "name": "\\ud800"}', "half a character"),
        (GOOD + '{"x": 2, "name": "a"}', "2 different values"),
        ("[" * 100_000, "no JSON value"),
        ("{" * 100_000, "no JSON value"),
        ("x" * 1_000_001, "1000001 characters"),
    ],
)
def test_what_is_no_such_value_is_told_and_not_repaired(text, match):
    value, wrong = find_value(text, POINT)
    assert value is None and match in "; ".join(wrong)


def test_lists_numbers_and_choices_are_checked():
    schema = {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"type": "number", "minimum": 0, "maximum": 1},
    }
    assert problems([0, 1.0], schema) == ()
    assert problems([], schema) == ("the value has 0 items, at least 1 are needed",)
    assert problems([2, -1, 0], schema) == ("the value has 3 items, at most 2 are allowed", "the value[0] is 2, more than 1",
                                            "the value[1] is -1, less than 0")  # fmt: skip
    assert problems("c", {"type": "string", "enum": ["a", "b"]}) == ('the value is "c", not one of a, b',)
    with pytest.raises(ChatError, match="pattern"):
        problems("c", {"type": "string", "pattern": "c"})


def test_a_second_try_is_told_what_was_wrong():
    chat = Scripted("No idea.", GOOD)
    got = ask_for(chat, ASK, POINT)
    assert got.value == {"x": 1, "name": "a"} and len(got.replies) == 2
    assert json.dumps(POINT) in chat.asked[0][-1].content
    roles = [m.role for m in chat.asked[1]]
    assert roles == ["system", "user", "assistant", "user"] and "no JSON value" in chat.asked[1][-1].content


def test_after_the_second_try_the_answer_is_kept_in_the_error():
    with pytest.raises(UnusableAnswer, match="in 2 tries") as caught:
        ask_for(Scripted("No.", "Still no.", finish="length"), ASK, POINT)
    assert caught.value.came == "Still no." and "cut by its length" in caught.value.why
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.came, str(again)) == ("Still no.", str(caught.value))


def test_what_a_check_finds_is_told_too():
    chat = Scripted(GOOD, '{"x": 2, "name": "a"}')
    got = ask_for(chat, ASK, POINT, check=lambda v: () if v["x"] == 2 else ("x must be 2",))
    assert got.value["x"] == 2 and "x must be 2" in chat.asked[1][-1].content


def test_prompts_are_pasted_with_their_roles():
    assert as_text([Message("user", " Only this. ")]) == "Only this.\n"
    assert as_text(ASK) == "[INSTRUCTIONS]\nBe exact.\n\n[QUESTION]\nWhere is it?\n"


def test_a_pasted_answer_is_read_up_to_its_end_mark():
    shown, heard = [], []
    lines = StringIO(f"\nIt is\nthere.\n  {END} \nthe next answer\n{END}\n")
    chat = Pasting(show=shown.append, lines=lines)
    reply = chat.ask(ASK, on_text=heard.append)
    assert (reply.text, reply.model, reply.finish, reply.prompt_tokens) == (
        "It is\nthere.",
        "pasted",
        "",
        None,
    )
    assert "Where is it?" in shown[0] and END in shown[1] and heard
    assert chat.ask(ASK).text == "the next answer"


@pytest.mark.parametrize(
    ("text", "match"),
    [("half an ans", "no line END"), (f" \n{END}\n", "nothing was pasted"), ("", "no line")],
)
def test_what_was_not_pasted_whole_is_no_answer(text, match):
    with pytest.raises(UnusableAnswer, match=match) as caught:
        Pasting(show=lambda _: None, lines=StringIO(text)).ask(ASK)
    assert caught.value.came == text.replace(f"{END}\n", "")


def test_files_go_out_and_come_back_in_two_runs(tmp_path):
    prompt, answer = tmp_path / "prompt.txt", tmp_path / "answer.txt"
    answer.write_text("an answer to an older question", encoding="utf-8")
    chat = Pasting(prompt_to=prompt, answer_from=answer)
    with pytest.raises(ChatError, match="waits for its answer"):
        chat.ask(ASK)
    assert "Where is it?" in prompt.read_text(encoding="utf-8")
    os.utime(answer, (1, 1))
    with pytest.raises(ChatError, match="waits for its answer"):
        chat.ask(ASK)  # the answer is older than the question
    answer.write_text("There.\n", encoding="utf-8")
    assert chat.ask(ASK).text == "There."
    with pytest.raises(ChatError, match="waits"):
        chat.ask([Message("user", "And now?")])


def test_a_second_try_is_not_asked_of_files(tmp_path):
    prompt, answer = tmp_path / "prompt.txt", tmp_path / "answer.txt"
    chat = Pasting(prompt_to=prompt, answer_from=answer)
    with pytest.raises(ChatError, match="waits"):
        ask_for(chat, ASK, POINT)
    answer.write_text("no", encoding="utf-8")
    with pytest.raises(UnusableAnswer, match=r"in 1 try\b.*\n.*\n.*save its new answer"):
        ask_for(chat, ASK, POINT)
    answer.write_text(GOOD, encoding="utf-8")
    assert ask_for(chat, ASK, POINT).value["x"] == 1


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ChatError, match="cannot be used"):
        Pasting(prompt_to=tmp_path, answer_from=tmp_path / "a").ask(ASK)
    bad = tmp_path / "bad"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ChatError, match="bad cannot be used"):
        Pasting(show=lambda _: None, answer_from=bad).ask(ASK)
    with pytest.raises(ChatError, match="nowhere"):
        Pasting(lines=StringIO())
    with pytest.raises(ChatError, match="nowhere to read"):
        Pasting(show=print)
