"""Labelled text as a value: groups that no split divides, refusals, and datasets that a package brings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microtome as mt
from microtome.errors import TaskError
from microtome.results import registry
from microtome.tasks.labelled import LabelledText


def toy(n=24, **groups):
    return LabelledText(
        "toy", tuple(f"text {i}" for i in range(n)), tuple(i % 2 for i in range(n)), groups=groups
    )


@given(
    template=st.lists(st.integers(0, 5), min_size=24, max_size=24),
    entity=st.lists(st.integers(0, 11), min_size=24, max_size=24),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_no_split_divides_a_group(template, entity, seed):
    data = toy(template=tuple(map(str, template)), entity=tuple(map(str, entity)))
    for by in (None, ("entity",), ("template",), ()):
        names = data.groups if by is None else by
        try:
            parts = data.split(0.5, 0.3, 0.2, by=by, seed=seed)
        except TaskError as error:
            assert "groups for a split" in str(error) or "has no '" in str(error)
            continue
        assert sorted(i for part in parts for i in part) == list(range(24))
        for name in names:
            homes = [{data.groups[name][i] for i in part} for part in parts]
            assert not homes[0] & homes[1] and not homes[0] & homes[2] and not homes[1] & homes[2]
        assert all({data.labels[i] for i in part} == {0, 1} for part in parts)
        assert parts == data.split(0.5, 0.3, 0.2, by=by, seed=seed)


def test_units_join_what_any_chain_of_groups_joins():
    data = toy(6, a=("x", "x", "y", "y", "z", "z"), b=("1", "2", "2", "3", "4", "5"))
    assert len(set(data.units)) == 2 and data.units[0] == data.units[3] != data.units[4] == data.units[5]
    assert (
        len(set(data.joined("a"))) == 3 and len(set(data.joined("b"))) == 5 and len(set(data.joined())) == 6
    )
    with pytest.raises(TaskError, match='no groups called "c"'):
        data.joined("c")


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.0), (0.8, 0.3), (-0.1, 0.5), ()])
def test_shares_that_are_none(shares):
    with pytest.raises(TaskError, match="shares"):
        toy().split(*shares, seed=0)


def test_shares_say_the_proportion_and_every_text_is_in_one_part():
    parts = toy(24).split(0.5, 0.25, seed=0)
    assert [len(p) for p in parts] == [16, 8]


@pytest.mark.parametrize(
    "groups, said",
    [
        ({"entity": ["a", None, "b", "c"]}, "text 1 has no group"),
        ({"entity": ["a", float("nan"), "b", "c"]}, "text 1 has no group"),
        ({"entity": ["a", " ", "b", "c"]}, "text 1 has no group"),
        ({"entity": "abcd"}, "one label per text"),
        ({"entity": 3}, "one label per text"),
        ({"entity": ["a", "b"]}, "4 texts and 2 entity"),
    ],
)
def test_groups_that_are_none(groups, said):
    with pytest.raises(TaskError, match=said):
        mt.labelled(["p", "q", "r", "s"], [0, 1, 0, 1], groups)


def test_groups_as_a_plain_list_and_as_numbers():
    data = mt.labelled(["p", "q", "r", "s"], [0, 1, 0, 1], np.array([1, 1, 2, 2]))
    assert data.groups == {"group": ("1", "1", "2", "2")}


def test_the_hash_is_of_content_and_of_nothing_else():
    one = toy(8)
    assert (
        one == toy(8)
        and hash(one) == hash(toy(8))
        and len({one.hash, toy(10).hash, toy(8, a=("x",) * 8).hash}) == 3
    )
    assert LabelledText(one.name, one.texts, one.labels, provenance={"from": "elsewhere"}).hash == one.hash
    some = one.subset([5, 2])
    assert some.texts == ("text 5", "text 2") and some.labels == (1, 0)
    for wrong in ([], [1, 1], [8], [-1]):
        with pytest.raises(TaskError, match="indices"):
            one.subset(wrong)


def test_what_no_labelled_text_is():
    for change, said in [
        ({"labels": (0, 1, 2, 0)}, "no class"), ({"classes": ("a", "a")}, "named once"), ({"labels": (0, 1)}, "4 texts and 2 labels"),
        ({"spans": {"x": ((0, 1), (0, 9), None, None)}}, "span"), ({"texts": ()}, "no texts"), ({"texts": ("a", "", "b", "c")}, "at least one letter"),
    ]:  # fmt: skip
        with pytest.raises(TaskError, match=said):
            LabelledText(**{"name": "x", "texts": ("p", "q", "r", "s"), "labels": (0, 1, 0, 1), **change})


def test_a_dataset_of_a_package(monkeypatch):
    monkeypatch.setattr(
        registry, "_objects", {**registry._objects, "datasets": dict(registry._objects["datasets"])}
    )
    registry.register("datasets", "mine", lambda n, seed: toy(n or 6))
    registry.register("datasets", "wrong", lambda n, seed: ["text"])
    assert len(mt.labelled("mine")) == 6 and len(mt.labelled("mine", n=10)) == 10
    with pytest.raises(TaskError, match="returned a list"):
        mt.labelled("wrong")
