"""What follows when two prompts exchange one variable: labels of every built-in task, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

import aligned
from microtome.errors import TaskError
from microtome.tasks import interchanges, task
from test_tasks_standin import words

ONE_TOKEN = {"ioi": "io", "sva": "number", "capitals": "country", "gendered_pronoun": "gender", "induction": "answer", "colored_objects": "query"}  # fmt: skip


@pytest.mark.parametrize("name", ONE_TOKEN)
def test_taking_over_every_variable_gives_the_sources_answer_and_the_own_value_the_own(name) -> None:
    made = task(name, words(), 24, 0)
    found = interchanges(made, ONE_TOKEN[name])
    rows = found.rows(8, 0, "x")
    assert len(rows) > 24 and (rows.base != rows.source).all()
    changed = 0
    for base, source, label in zip(rows.base, rows.source, rows.label, strict=True):
        mine, theirs = (found.prompts.values(int(i)) for i in (base, source))
        same = mine[found.variable] == theirs[found.variable]
        assert not same or label == found.own[base]
        changed += label != found.own[base]
        assert label in found.candidates[base] and found.own[base] in found.candidates[base]
    assert changed
    assert found.label(0, 0) == found.own[0] == made.answers[0][0][0]


def test_the_new_indirect_object_is_the_answer_and_nobody_is_both() -> None:
    made = task("ioi", words(), 24, 0)
    found = interchanges(made, "io")
    told = words().tokenizer
    for base in range(0, 48, 5):
        for source in range(0, 48, 7):
            mine, theirs = found.prompts.values(base), found.prompts.values(source)
            label = found.label(base, source)
            if theirs["io"] == mine["subject"]:
                assert label == -1
            else:
                assert label == told(" " + theirs["io"], add_special_tokens=False).input_ids[0]
    rows = found.rows(4, 0, "x")
    assert {"order", "subject", "place", "object", "template"} <= set(
        found.inert(rows)
    ) and "io" not in found.inert(rows)


def test_a_variable_that_decides_nothing_is_refused() -> None:
    with pytest.raises(TaskError, match="never changes the answer"):
        interchanges(task("ioi", words(), 24, 0), "order").rows(4, 0, "x")


def test_pairs_without_a_generator_exchange_what_alone_differs() -> None:
    made = replace(aligned.pairs(12), source=None)
    found = interchanges(made, "word")
    values = [found.prompts.values(i) for i in range(24)]
    for base in range(24):
        for source in range(24):
            alike = all(values[base][v] == values[source][v] for v in ("other", "template"))
            want = (
                found.own[base]
                if values[base]["word"] == values[source]["word"]
                else found.own[source]
                if alike
                else -1
            )
            assert found.label(base, source) == want


def test_draws_depend_on_seed_and_name_alone() -> None:
    found = interchanges(aligned.pairs(12), "word")
    one, again, other = found.rows(4, 0, "a"), found.rows(4, 0, "a"), found.rows(4, 1, "a")
    assert (one.source == again.source).all() and (one.source != other.source).any()


def test_swapped_tasks_keep_each_prompt_with_its_own_answer() -> None:
    made = aligned.pairs(12)
    there, back = interchanges(made, "word"), interchanges(made.swap(), "word")
    one = dict(zip(there.prompts.ids, there.own, strict=True))
    assert one == dict(zip(back.prompts.ids, back.own, strict=True))


def test_refusals_name_the_variable_and_the_reason() -> None:
    with pytest.raises(TaskError, match="did you mean 'word'"):
        interchanges(aligned.pairs(12), "wrod")
    bare = aligned.pairs(12)
    none = tuple({} for _ in range(12))
    sides = {s: replace(getattr(bare, s), variables=none, surface=none) for s in ("clean", "corrupt")}
    with pytest.raises(TaskError, match="declares no variables"):
        interchanges(replace(bare, **sides, differs=frozenset()), "word")
    with pytest.raises(TaskError, match="one token"):
        interchanges(task("greater_than", words(), 12, 0), "year")
