"""Invariants of pairs, splits, hashes: each broken one is refused, each kept one survives subset and split."""

import copy
import dataclasses
import pickle

import pytest

from microtome.errors import TaskError
from microtome.tasks import (
    PairTask,
    Side,
    behaviour,
    columns,
    first_difference,
    groups,
    match,
    positions,
    show,
)
from microtome.tasks.checks import around, quote


def side(rows, spans=None, variables=(), surface=()):
    return Side(tuple(f"text {r}" for r in rows), rows, spans or {}, variables, surface)


def make(**changes):
    given = {
        "name": "t",
        "clean": side(((1, 2, 3), (4, 5, 6, 7)), {"x": ((0, 1), (1, 3))}),
        "corrupt": side(((1, 9, 3), (4, 5, 8, 7)), {"x": ((0, 1), (1, 3))}),
        "answers": (((10,),), ((11,),)),
        "wrong": (((12,),), ((13,),)),
        "groups": {"template": ("a", "b"), "entity": ("e", "e")},
        "provenance": {"seed": 0},
    }
    return PairTask(**{**given, **changes})


def test_a_good_task_and_its_plain_facts():
    task = make()
    assert (task.n, len(task), task.aligned) == (2, 2, False)
    assert first_difference(task) == (1, 2)
    assert repr(task) == f"<PairTask t: 2 pairs, metric logit_diff, hash {task.hash[:12]}>"
    assert repr(task.clean) == "<Side: 2 prompts of 3 to 4 tokens, spans x>"
    assert task.subset([1]).aligned and task.subset([1]).groups["template"] == ("b",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"corrupt": side(((1, 9, 3, 3), (4, 5, 8, 7)), {"x": ((0, 1), (1, 3))})},
            "has 3 tokens, the corrupt one 4",
        ),
        ({"corrupt": side(((1, 2, 3), (4, 5, 8, 7)), {"x": ((0, 1), (1, 3))})}, "same prompt"),
        ({"corrupt": side(((1, 9, 3),), {"x": ((0, 1),)})}, "2 clean prompts but 1 corrupt"),
        ({"wrong": (((10,),), ((13,),))}, "answer equals the wrong answer"),
        ({"wrong": ((), ((13,),))}, "wrong answer is empty"),
        ({"answers": (((10, 11),), ((11,),))}, "compares one token with one token"),
        ({"answers": (((10,), (11,)), ((11,),))}, "compares one token with one token"),
        ({"metric": "logprob_diff", "wrong": (((10, 3),), ((13,),))}, "is the beginning of"),
        ({"metric": "logprob_diff", "answers": (((10,), (10,)), ((11,),))}, "is the beginning of"),
        ({"groups": {"template": ("a",)}}, 'labels of "template"'),
        (
            {"corrupt": side(((1, 9, 3), (4, 5, 8, 7)), {"x": ((1, 2), (1, 3))})},
            "a span is one place in both",
        ),
        ({"corrupt": side(((1, 9, 3), (4, 5, 8, 7)))}, "only one side has the span"),
        ({"differs": frozenset({"io"})}, "which are not variables"),
    ],
)
def test_broken_invariants_are_refused(changes, message):
    with pytest.raises(TaskError, match=message) as caught:
        make(**changes)
    assert len(str(caught.value)) < 1500 and caught.value.instead


@pytest.mark.parametrize(
    ("rows", "spans", "message"),
    [
        ((), {}, "there are no prompts"),
        (((1,), ()), {}, "prompt 1 is empty"),
        (((1, -2),), {}, "token id -2"),
        (((1, 2),), {"x": ((1, 3),)}, '"x" is 1:3, the prompt has 2 tokens'),
        (((1, 2),), {"x": ((1, 1),)}, "half-open"),
        (((1, 2),), {"x": ()}, "0 ranges for 1 prompts"),
        (((1, 2),), {"a b": ((0, 1),)}, "cannot name a span"),
    ],
)
def test_broken_sides_are_refused(rows, spans, message):
    with pytest.raises(TaskError, match=message):
        side(rows, spans)


def test_a_change_in_an_undeclared_variable_is_refused():
    clean = side(((1, 2),), variables=({"io": "Mary", "order": "ABBA"},))
    corrupt = side(((1, 3),), variables=({"io": "John", "order": "BABA"},))
    given = {"clean": clean, "corrupt": corrupt, "answers": (((5,),),), "wrong": (((6,),),), "groups": {}}
    with pytest.raises(TaskError, match="differ in \\['io', 'order'\\], declared is \\['io'\\]"):
        make(**given, differs=frozenset({"io"}))
    assert make(**given, differs=frozenset({"io", "order"})).n == 1


def test_the_length_error_shows_both_tokenisations_where_they_part():
    shown = (("When", " Mary", " went"), ("When", " Xav", "ier", " went"))
    clean = Side(("When Mary went",), ((1, 2, 3),), strings=(shown[0],))
    corrupt = Side(("When Xavier went",), ((1, 7, 8, 3),), strings=(shown[1],))
    with pytest.raises(TaskError) as caught:
        PairTask("t", clean, corrupt, (((5,),),), (((6,),),))
    assert '[" Mary"]' in str(caught.value) and '[" Xav"] "ier"' in str(caught.value)
    assert "3 tokens" in str(caught.value) and "4" in str(caught.value) and "token 1" in str(caught.value)


def test_equal_content_has_equal_hash_and_any_change_changes_it():
    base = make()
    assert make().hash == base.hash
    assert make(provenance={"seed": 1}).hash == base.hash  # where it came from is not content
    spans = {"x": ((0, 1), (1, 3))}
    others = [
        make(name="u"),
        make(answers=(((14,),), ((11,),))),
        make(wrong=(((14,),), ((13,),))),
        make(metric="logprob_diff"),
        make(groups={"template": ("a", "a"), "entity": ("e", "e")}),
        make(groups={"template": ("a", "b")}),
        make(clean=side(((1, 2, 30), (4, 5, 6, 7)), spans)),
        make(corrupt=side(((1, 9, 30), (4, 5, 8, 7)), spans)),
        make(clean=dataclasses.replace(base.clean, texts=("other", base.clean.texts[1]))),
        make(
            clean=side(base.clean.ids, {"y": spans["x"]}), corrupt=side(base.corrupt.ids, {"y": spans["x"]})
        ),
        make(clean=dataclasses.replace(base.clean, surface=({"place": "park"}, {}))),
        base.swap(),
        base.subset([1, 0]),
        base.subset([0]),
    ]
    hashes = [base.hash, *(t.hash for t in others)]
    assert len(set(hashes)) == len(hashes)


def test_hash_is_pinned_so_that_results_of_earlier_versions_are_recognised():
    assert make().hash == "5938b3e532454e0a756b0dafb3261fad"


def test_a_task_is_a_value():
    task = make()
    assert task == make() and hash(task) == hash(make()) and task != make(name="u")
    assert pickle.loads(pickle.dumps(task)).hash == task.hash == copy.deepcopy(task).hash
    for change in (lambda: task.groups.update(x=()), lambda: task.clean.spans.clear()):
        with pytest.raises(TypeError):
            change()


def test_swap_exchanges_sides_and_keeps_the_question():
    task = make()
    swapped = task.swap()
    assert (swapped.clean, swapped.corrupt) == (task.corrupt, task.clean)
    assert (swapped.answers, swapped.wrong) == (task.answers, task.wrong)
    assert swapped.swap() == dataclasses.replace(task, provenance={"seed": 0, "swapped": False})


@pytest.mark.parametrize("keep", [[], [2], [0, 0], [-1]])
def test_subsets_are_of_distinct_pairs_that_exist(keep):
    with pytest.raises(TaskError):
        make().subset(keep)


def many(n, clusters):
    rows = tuple((i, 0) for i in range(n))
    return PairTask(
        "many",
        side(rows),
        side(tuple((i, 1) for i in range(n))),
        (((5,),),) * n,
        (((6,),),) * n,
        groups={"template": tuple(f"c{i % clusters}" for i in range(n)), "entity": ("one",) * n},
    )


@pytest.mark.parametrize(
    ("clusters", "held_out", "away"), [(2, 0.5, 1), (3, 0.5, 2), (7, 0.9, 6), (15, 0.5, 8), (4, 0.01, 1)]
)
def test_splits_share_no_cluster_and_lose_no_pair(clusters, held_out, away):
    task = many(30, clusters)
    for seed in range(5):
        kept, held = task.split("template", held_out, seed=seed)
        a, b = set(kept.groups["template"]), set(held.groups["template"])
        assert not a & b and len(b) == away and len(a | b) == clusters
        assert sorted(kept.clean.ids + held.clean.ids) == sorted(task.clean.ids)
        assert kept.provenance["split"]["of"] == task.hash
    assert len({task.split(seed=s)[1].hash for s in range(20)}) > 1
    assert task.split(seed=3)[1].hash == task.split(seed=3)[1].hash


def test_splits_that_cannot_be_are_refused():
    for given, message in [
        (("entity",), "one entity cluster"),
        (("colour",), "not grouped"),
        (("template", 1.0), "share"),
    ]:
        with pytest.raises(TaskError, match=message):
            many(6, 3).split(*given, seed=0)


def test_user_pairs_have_no_donors_and_their_own_prompts_as_reference():
    task = make()
    with pytest.raises(TaskError, match="no same_value donors"):
        task.donors("same_value", 0)
    with pytest.raises(TaskError, match="no kind of donor 'noise'"):
        task.donors("noise", 0)
    reference = task.reference(4, 0)
    assert set(reference.ids) == {*task.clean.ids, *task.corrupt.ids}
    assert match(task, reference)[0] and all(len(reference.ids[j]) == 4 for j in match(task, reference)[1])
    with pytest.raises(TaskError, match="there are 4"):
        task.reference(5, 0)
    with pytest.raises(TaskError, match="no reference prompt is aligned with prompt 1"):
        match(task, task.clean.take([0]))


def test_groups_are_by_length_and_place_of_spans():
    spans = {"io": ((0, 1), (1, 2), (0, 1)), "s": ((1, 2), (0, 1), (1, 2))}
    three = side(((1, 2), (3, 4), (5, 6)), spans)
    assert [g.indices for g in groups(three)] == [(0, 2), (1,)]
    assert [g.indices for g in groups(three, roles=False)] == [
        (0, 1, 2)
    ]  # the order of the names is no layout


def test_positions_are_the_addresses_of_sites():
    task = make()
    assert positions(task, "x") == ((0, 1), (1, 3))
    assert positions(task, "x[-1]") == ((0, 1), (2, 3))
    assert positions(task, -1) == ((2, 3), (3, 4))
    with pytest.raises(Exception, match="no span"):
        positions(task, "y")


def test_columns_cut_every_prompt_completely_and_name_overlaps():
    spans = {"subject": ((1, 3), (0, 1)), "end": ((2, 3), (4, 5))}
    cut = columns(side(((1, 2, 3), (1, 2, 3, 4, 5)), spans))
    assert cut == {
        "..subject": ((0, 1), None),
        "subject": ((1, 2), (0, 1)),
        "subject..end": (None, (1, 4)),
        "subject+end": ((2, 3), None),
        "end": (None, (4, 5)),
    }
    for i, length in enumerate((3, 5)):
        covered = sorted(p for row in cut.values() if row[i] for p in range(*row[i]))
        assert covered == list(range(length))


def test_show_is_plain_data_without_a_model():
    rows = show(make(), k=1)
    assert len(rows) == 1 and rows[0]["first_difference"] == 1
    tokens = rows[0]["clean"]["tokens"]
    assert tokens[0] == {"position": 0, "id": 1, "token": "<1>", "spans": ["x"], "differs": False}
    assert tokens[1]["differs"]


def test_behaviour_asks_the_corrupt_side_only_where_the_answer_flips():
    asked, other = behaviour(make())
    assert asked.answers == make().answers and other is None
    flips = make(provenance={"flips": True})
    for task in (flips, flips.swap()):
        asked, other = behaviour(task)
        assert asked.prompts == flips.clean and other.prompts == flips.corrupt
        assert (other.answers, other.wrong) == (flips.wrong, flips.answers)


def test_messages_show_hostile_text_on_one_line():
    assert quote('a"\n\x1b[31m' + "x" * 99) == '"a\\"\\n\\x1b[31m' + "x" * 51 + '…"'
    assert "\n" not in around(["\n", "\r", "ok"], 1)
