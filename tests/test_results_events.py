"""Runs and observers: the tree is right in nesting, after exceptions and across threads."""

from __future__ import annotations

import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from microtome.results import (
    ObserverWarning,
    Result,
    add_observer,
    emit_look,
    in_this_run,
    observe,
    progress,
    remove_observer,
    technique,
)
from microtome.results import events as events_module
from microtome.results.arguments import ArgumentError
from microtome.results.events import current_run


class Model:
    hash = "abcd"


def _define():  # local, so that the registry of the whole test run knows nothing of it
    @technique("leaf", "1")
    def leaf(model, fail=None):
        progress(1, 2, "cells", "half")
        if fail == "interrupt":
            raise KeyboardInterrupt
        if fail == "exit":
            raise SystemExit(3)
        if fail == "stop":
            raise StopIteration
        if fail:
            raise ValueError(fail)
        return Result("toy")

    return leaf


leaf = _define()


@pytest.fixture
def heard():
    events: list = []
    with observe(events.append):
        yield events
    assert current_run() is None
    assert events_module._observers == ()


def told(events):
    return [(e.kind, e.method) for e in events]


def test_one_run_from_begin_to_end(heard):
    result = leaf(Model())
    begin, step, end = heard
    assert told(heard) == [("begin", "leaf"), ("progress", "leaf"), ("end", "leaf")]
    assert begin.run == step.run == end.run and begin.parent is None and len(begin.run) == 16
    assert begin.query == step.query == end.query == result.query
    assert begin.result is None and end.result is result
    assert (step.progress.done, step.progress.total, step.progress.unit, step.progress.note) == (
        1,
        2,
        "cells",
        "half",
    )
    assert 0 == begin.seconds <= step.seconds <= end.seconds < 60 and begin.at <= end.at
    leaf(Model())
    assert heard[3].run != begin.run


def test_nested_runs_are_children_and_the_parent_returns_after_an_exception(heard):
    @technique("parent", "1")
    def parent(model):
        first = leaf(model)
        with pytest.raises(ValueError, match="broken"):
            leaf(model, fail="broken")
        progress(1, None)
        second = middle(model)
        return Result("toy", children=(first, second))

    @technique("middle", "1")
    def middle(model):
        return Result("toy", children=(leaf(model),))

    result = parent(Model())
    begun = [e for e in heard if e.kind == "begin"]
    by_method = {e.method: e.run for e in begun}
    root = begun[0].run
    assert [(e.method, e.parent) for e in begun] == [
        ("parent", None),
        ("leaf", root),
        ("leaf", root),
        ("middle", root),
        ("leaf", by_method["middle"]),
    ]
    assert [e.error for e in heard if e.kind == "failed"] == ["ValueError: broken"]
    assert [e.run for e in heard if e.kind == "progress" and e.progress.total is None] == [root]
    assert heard[-1].kind == "end" and heard[-1].run == root and heard[-1].result is result
    finished = {e.run for e in heard if e.kind in ("end", "failed", "interrupted")}
    assert finished == {e.run for e in begun} and len(finished) == 5


@pytest.mark.parametrize(
    ("fail", "error", "kind"),
    [
        ("x", ValueError, "failed"),
        ("stop", StopIteration, "failed"),
        ("interrupt", KeyboardInterrupt, "interrupted"),
        ("exit", SystemExit, "interrupted"),
    ],
)
def test_what_went_wrong_is_told_and_raised_again(heard, fail, error, kind):
    with pytest.raises(error):
        leaf(Model(), fail=fail)
    assert [e.kind for e in heard] == ["begin", "progress", kind]
    assert heard[-1].error.startswith(error.__name__) and heard[-1].result is None
    assert current_run() is None
    leaf(Model())
    assert heard[-1].kind == "end" and heard[-1].parent is None


def test_an_interrupt_ends_the_whole_tree(heard):
    @technique("outer", "1")
    def outer(model):
        leaf(model, fail="interrupt")
        return Result("toy")

    with pytest.raises(KeyboardInterrupt):
        outer(Model())
    assert told(heard)[-2:] == [("interrupted", "leaf"), ("interrupted", "outer")]


# ------------------------------------------------------------------------------------------- threads


def test_threads_do_not_become_each_others_children(heard):
    barrier = threading.Barrier(4, timeout=30)

    @technique("outer", "1")
    def outer(model, index):
        barrier.wait()  # all four runs are open at once
        if index == 3:
            leaf(model)
            raise ValueError("one fails")
        return Result("toy", children=(leaf(model), leaf(model)))

    def work(index):
        if index == 3:
            with pytest.raises(ValueError, match="one fails"):
                outer(Model(), index)
        else:
            outer(Model(), index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    roots = {e.run: e.query.parameters["index"] for e in heard if e.kind == "begin" and e.method == "outer"}
    assert sorted(roots.values()) == [0, 1, 2, 3]
    children = [e.parent for e in heard if e.kind == "begin" and e.method == "leaf"]
    assert sorted(roots[p] for p in children) == [0, 0, 1, 1, 2, 2, 3]
    assert all(e.parent is None for e in heard if e.method == "outer")
    ends = {e.run: e.kind for e in heard if e.kind in ("end", "failed")}
    assert {roots[r]: k for r, k in ends.items() if r in roots} == {0: "end", 1: "end", 2: "end", 3: "failed"}


def test_a_new_thread_starts_without_a_run_unless_it_is_carried(heard):
    both = threading.Barrier(2, timeout=30)

    def meet(model):
        both.wait()
        return leaf(model)

    @technique("outer", "1")
    def outer(model):
        with ThreadPoolExecutor(2) as pool:
            bare = pool.submit(leaf, model).result()
            carried = [pool.submit(in_this_run(leaf), model) for _ in range(4)]
            again = in_this_run(meet)  # one carrier, used by two threads at once
            carried += [pool.submit(again, model) for _ in range(4)]
            return Result("toy", children=(bare, *(c.result() for c in carried)))

    outer(Model())
    root = heard[0].run
    parents = [e.parent for e in heard if e.kind == "begin" and e.method == "leaf"]
    assert parents.count(None) == 1 and parents.count(root) == 8


def test_observers_may_come_and_go_while_others_run():
    counts = [0] * 4

    def work(index):
        for _ in range(50):
            mine: list = []
            with observe(mine.append):
                leaf(Model())
            counts[index] += any(e.kind == "end" for e in mine)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert counts == [50] * 4 and events_module._observers == ()


# ----------------------------------------------------------------------------------------- observers


def test_an_observer_that_raises_is_named_and_corrupts_nothing():
    before, after = [], []

    def broken_book(event):
        raise RuntimeError("disk full")

    failed = pytest.warns(
        ObserverWarning, match=r"broken_book failed at '\w+' of leaf: RuntimeError: disk full"
    )
    with observe(before.append), observe(broken_book), observe(after.append), failed as caught:
        result = leaf(Model())
    assert len(caught) == 3
    assert [e.kind for e in before] == [e.kind for e in after] == ["begin", "progress", "end"]
    assert after[-1].result is result and current_run() is None


@pytest.mark.parametrize(("fail", "error"), [("x", ValueError), ("interrupt", KeyboardInterrupt)])
def test_a_broken_observer_never_replaces_what_went_wrong(fail, error):
    def broken_book(event):
        if event.kind in ("failed", "interrupted"):
            raise RuntimeError("disk full")

    with observe(broken_book), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error) as caught:
            leaf(Model(), fail=fail)
    assert any("disk full" in note for note in caught.value.__notes__)
    assert current_run() is None


def test_an_interrupt_inside_an_observer_is_not_swallowed(heard):
    def impatient(event):
        if event.kind == "begin":
            raise KeyboardInterrupt

    with observe(impatient), pytest.raises(KeyboardInterrupt):
        leaf(Model())
    assert [e.kind for e in heard] == ["begin", "interrupted"] and current_run() is None


def test_adding_twice_and_removing_strangers_is_refused():
    def book(event):
        pass

    add_observer(book)
    try:
        with pytest.raises(ArgumentError, match="already"):
            add_observer(book)
    finally:
        remove_observer(book)
    with pytest.raises(ArgumentError, match="does not observe"):
        remove_observer(book)
    with pytest.raises(ArgumentError, match="no observer"):
        add_observer(None)
    with observe(book):
        remove_observer(book)  # the block's end does not stumble over it


def test_observing_touches_no_random_state(heard):
    random.seed(0), np.random.seed(0)  # noqa: NPY002 - the global state is what is looked at
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    leaf(Model())
    emit_look(Model(), ["a"], ["L0.z"])
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


# ------------------------------------------------------------------------------- progress and looking


def test_progress_outside_a_run_is_heard_by_nobody_and_nonsense_is_refused(heard):
    progress(1, 2)
    assert heard == []
    for done, total in ((-1, 2), (3, 2), (float("nan"), 2), (1, float("nan"))):
        with pytest.raises(ArgumentError, match="progress"):
            progress(done, total)


def test_raw_looking_counts(heard):
    emit_look(Model(), ["When Mary"], ["L9H6.pattern", "L0.z"])

    @technique("outer", "1")
    def outer(model):
        emit_look(model, np.array([[1, 2]]), ("L0.z",))
        return Result("toy")

    outer(Model())
    free, inner = (e for e in heard if e.kind == "look")
    assert (free.look.model, free.look.prompts, free.look.sites) == (
        "abcd",
        ["When Mary"],
        ("L9H6.pattern", "L0.z"),
    )
    assert free.parent is None and inner.parent == heard[1].run and free.run != inner.run
    assert inner.look.prompts["shape"] == [1, 2]


def test_looking_costs_nothing_without_observers():
    class Dear:
        @property
        def hash(self):
            raise AssertionError("the model was hashed for nobody")

    emit_look(Dear(), ["x"], ["L0.z"])
