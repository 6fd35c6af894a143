"""Labelled, Query, Control and the frozen values under them."""

from __future__ import annotations

import copy
import enum
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.errors import MicrotomeError, ResultError
from microtome.results import Control, Labelled, Query
from microtome.results.frozen import FrozenDict, dumps, freeze_array, freeze_json, loads, thaw


def cube():
    values = np.arange(2 * 3 * 4, dtype=np.float64).reshape(2, 3, 4)
    coords = {"layer": (0, 1), "position": (0, "subject", -1), "prompt": ("a", "b", "c", "d")}
    return Labelled(values, ("layer", "position", "prompt"), coords)


# ------------------------------------------------------------------------------------- frozen trees

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
trees = st.recursive(
    leaves, lambda t: st.lists(t) | st.dictionaries(st.text(st.characters()), t), max_leaves=20
)


@settings(database=None, deadline=None, max_examples=100)
@given(trees)
def test_json_text_gives_back_exactly_what_went_in(tree):
    frozen = freeze_json(tree, "tree")
    text = dumps(frozen)
    assert text.isascii()
    back = loads(text)
    assert dumps(back) == text
    assert _kinds(back) == _kinds(frozen)


def _kinds(value):
    if isinstance(value, dict):
        return {k: _kinds(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_kinds(v) for v in value]
    return (type(value).__name__, repr(value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_numbers_never_become_null_or_bare_words(value):
    text = dumps({"x": [value]})
    assert "null" not in text and "NaN" not in text and "Infinity" not in text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"bare {word}"))
    assert repr(loads(text)["x"][0]) == repr(value)


def test_a_users_mapping_that_looks_like_our_nan_stays_a_mapping():
    for tree in ({"$float": "nan"}, {"$$float": "nan"}, {"$float": {"$float": "inf"}}, {"$": 1, "$a": 2}):
        assert thaw(loads(dumps(tree))) == tree


def test_bare_nan_in_a_file_is_refused():
    with pytest.raises(ValueError, match="bare NaN"):
        loads('{"x": NaN}')


@pytest.mark.parametrize(
    "bad", [object(), {1, 2}, np.zeros(3), b"x", 1j, len, {"deep": [{"er": object()}]}, {1: "x"}]
)
def test_what_json_cannot_hold_is_refused_by_name(bad):
    with pytest.raises(ResultError, match="parameter 'metric'"):
        Query("m", "1", parameters={"metric": bad})


def test_a_value_that_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ResultError, match="nested more than"):
        freeze_json(loop, "loop")


def test_scalars_of_numpy_and_enums_become_plain():
    class Colour(str, enum.Enum):  # noqa: UP042 - its str() is not its value
        RED = "red"

    frozen = freeze_json([np.int64(3), np.float32(0.5), np.bool_(True), Colour.RED, np.str_("t")], "x")
    assert frozen == (3, 0.5, True, "red", "t")
    assert [type(v) for v in frozen] == [int, float, bool, str, str]


def test_frozen_mapping_refuses_every_change_and_copies_and_pickles():
    frozen = freeze_json({"a": {"b": [1, {"c": 2}]}}, "x")
    inner = frozen["a"]["b"][1]
    for change in (
        lambda: inner.__setitem__("c", 3),
        lambda: inner.__delitem__("c"),
        lambda: inner.update(c=3),
        lambda: inner.setdefault("d", 3),
        lambda: inner.pop("c"),
        lambda: inner.popitem(),
        lambda: inner.clear(),
        lambda: inner.__ior__({"c": 3}),
    ):
        with pytest.raises(TypeError, match="frozen"):
            change()
    assert inner == {"c": 2}
    assert json.loads(json.dumps(frozen)) == thaw(frozen)
    for again in (pickle.loads(pickle.dumps(frozen)), copy.deepcopy(frozen)):
        assert again == frozen and isinstance(again["a"], FrozenDict)


def test_frozen_array_cannot_be_opened_again_and_is_not_the_callers():
    mine = np.arange(6, dtype=np.float64).reshape(2, 3)
    frozen = freeze_array(mine, "x")
    mine[0, 0] = 99
    assert frozen[0, 0] == 0
    with pytest.raises(ValueError):
        frozen[0, 0] = 1
    with pytest.raises(ValueError):
        frozen.setflags(write=True)
    assert freeze_array(frozen, "x") is frozen
    view = np.arange(4.0)
    view.setflags(write=False)  # read-only to us, writable to its owner
    assert not np.shares_memory(freeze_array(view, "x"), view)


@pytest.mark.parametrize("bad", [[1, 2], np.array(["a"]), np.array([None]), np.array([1j]), 3.0])
def test_arrays_that_would_need_a_pickle_are_refused(bad):
    with pytest.raises(ResultError, match="here"):
        freeze_array(bad, "here")


def test_byte_order_and_layout_are_settled_without_changing_numbers():
    strange = np.arange(12, dtype=">f8").reshape(3, 4).T
    frozen = freeze_array(strange, "x")
    assert frozen.dtype == np.dtype("float64") and frozen.dtype.isnative and frozen.flags.c_contiguous
    assert np.array_equal(frozen, strange)
    assert freeze_array(np.zeros((0, 3)), "x").shape == (0, 3)


# ---------------------------------------------------------------------------------------- Labelled


def test_sel_by_label_is_numpy_by_index():
    x = cube()
    raw = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(x.sel(layer=1).values, raw[1])
    assert x.sel(layer=1).dims == ("position", "prompt")
    picked = x.sel(prompt=["d", "a"], position=-1)
    assert np.array_equal(picked.values, raw[:, 2][:, [3, 0]])
    assert picked.coords == {"layer": (0, 1), "prompt": ("d", "a")}
    assert x.sel(layer=[1]).shape == (1, 3, 4)
    assert x.sel(layer=1, position=0, prompt="b").values.item() == raw[1, 0, 1]
    assert x.sel(position="subject").sel(layer=0) == x.sel(layer=0, position="subject")
    assert x.sel(layer=np.int64(1)) == x.sel(layer=1)


def test_a_label_is_not_an_index_and_one_is_not_true():
    x = cube()
    assert np.array_equal(x.sel(position=-1).values, x.values[:, 2])
    for wrong in (True, 1.0, "0", 2):
        with pytest.raises(ResultError, match="no label"):
            x.sel(layer=wrong)
    with pytest.raises(ResultError, match="subject"):
        x.sel(position="subjet")
    with pytest.raises(ResultError, match="did you mean 'layer'"):
        x.sel(layr=1)


def test_mean_is_over_the_dimension_named_and_nan_is_not_hidden():
    x = cube()
    assert np.allclose(x.mean("prompt").values, x.values.mean(axis=2))
    assert x.mean("prompt").dims == ("layer", "position")
    assert np.allclose(x.mean(["layer", "prompt"]).values, x.values.mean(axis=(0, 2)))
    holed = x.values.copy()
    holed[0, 0, 0] = np.nan
    holed[1, 1, :] = np.nan
    y = Labelled(holed, x.dims, x.coords)
    assert math.isnan(y.mean("prompt").values[0, 0]) and not math.isnan(y.mean("prompt").values[0, 1])
    skipped = y.mean("prompt", skipna=True).values
    assert skipped[0, 0] == pytest.approx(2.0) and math.isnan(skipped[1, 1])
    with pytest.raises(ResultError, match="length 0"):
        Labelled(np.zeros((0,)), ("prompt",), {"prompt": ()}).mean("prompt")


def test_mean_is_summed_in_float64():
    big = np.full(10_000, 16_777_216.0, np.float32)
    big[1:] = 1.0
    x = Labelled(big, ("prompt",), {"prompt": tuple(range(10_000))})
    assert x.mean("prompt").values.item() == np.float32(big.astype(np.float64).mean())


def test_to_frame_names_every_number():
    frame = cube().to_frame()
    assert list(frame.columns) == ["layer", "position", "prompt", "value"] and len(frame) == 24
    hit = frame[(frame.layer == 1) & (frame.position == "subject") & (frame.prompt == "c")]
    assert hit.value.item() == cube().sel(layer=1, position="subject", prompt="c").values.item()


@pytest.mark.parametrize(
    ("values", "dims", "coords", "says"),
    [
        (np.zeros((2, 3)), ("a",), {"a": (0, 1)}, "2 axes but 1 names"),
        (np.zeros(2), ("a",), {"b": (0, 1)}, "coords name"),
        (np.zeros(2), ("a",), {"a": (0, 1), "b": (0,)}, "coords name"),
        (np.zeros(2), ("a",), {"a": (0,)}, "1 labels for the 2"),
        (np.zeros(2), ("a",), {"a": (0, 0)}, "twice"),
        (np.zeros(2), ("a",), {"a": (0, True)}, "bool"),
        (np.zeros(2), ("a",), {"a": (0, 0.5)}, "float"),
        (np.zeros(2), ("a",), {"a": "xy"}, "one text"),
        (np.zeros(2), "a", {"a": (0, 1)}, "sequence of names"),
        (np.zeros((2, 2)), ("a", "a"), {"a": (0, 1)}, "repeat"),
        (np.array(["x", "y"]), ("a",), {"a": (0, 1)}, "dtype"),
        (np.zeros(2), ("a",), {"a": ("x", "\ud800")}, "surrogate"),
        (np.array([1e300, 0]), ("a",), {"a": (0, 1)}, "exceed float32"),
    ],
)
def test_labelled_refuses_what_does_not_fit(values, dims, coords, says):
    with pytest.raises(ResultError, match=says):
        Labelled(values, dims, coords)


def test_labelled_takes_no_tensor():
    class Tensor:
        def detach(self):
            return self

        def __array__(self, *args, **kwargs):
            return np.zeros(1)

    with pytest.raises(ResultError, match="not a NumPy array"):
        Labelled(Tensor(), ("a",), {"a": (0,)})


def test_labelled_equality_knows_nan_labels_and_order():
    x, y = cube(), cube()
    assert x == y and hash(x) == hash(y) and x != 3
    holed = x.values.copy()
    holed[0, 0, 0] = np.nan
    assert Labelled(holed, x.dims, x.coords) == Labelled(holed, x.dims, x.coords)
    assert Labelled(holed, x.dims, x.coords) != x
    assert Labelled(x.values, x.dims, {**x.coords, "layer": (1, 0)}) != x
    with pytest.raises(AttributeError):
        x.dims = ()
    again = pickle.loads(pickle.dumps(x))
    assert again == x and not again.values.flags.writeable and isinstance(again.coords, FrozenDict)
    infinite = Labelled(np.array([np.inf, -np.inf, np.nan]), ("a",), {"a": (0, 1, 2)})
    assert np.isposinf(infinite.values[0]) and math.isnan(infinite.mean("a", skipna=True).values.item())


# ------------------------------------------------------------------------------------------- Query

BASE = {
    "method": "patching",
    "version": "1",
    "model": "aa",
    "task": "bb",
    "data": "",
    "parameters": {"sites": "L*.z", "k": 3},
    "seed": 0,
    "numerics": {"dtype": "float32"},
}
OTHER = {
    "method": "ablation",
    "version": "2",
    "model": "ab",
    "task": "bc",
    "data": "cc",
    "parameters": {"sites": "L*.z", "k": 4},
    "seed": 1,
    "numerics": {"dtype": "float16"},
}


@pytest.mark.parametrize("field", list(BASE))
def test_every_field_moves_the_id_and_only_version_seed_numerics_leave_the_question(field):
    one, two = Query(**BASE), Query(**{**BASE, field: OTHER[field]})
    assert one.id != two.id and one != two
    assert one.same_question(two) is (field in ("version", "seed", "numerics"))


def test_id_is_stable_over_order_and_processes():
    flipped = {**BASE, "parameters": dict(reversed(BASE["parameters"].items()))}
    assert Query(**BASE).id == Query(**flipped).id
    assert Query(**BASE) == Query(**flipped) and len({Query(**BASE), Query(**flipped)}) == 1
    # a literal: an id that changes orphans every stored result
    assert Query("m", "1", parameters={"x": math.nan}, seed=3).id == "0b087467b98d18836581e46c709b8218"


def test_query_cannot_be_changed_through_what_it_was_given():
    inner = [1, 2]
    query = Query("m", "1", parameters={"x": inner})
    before = query.id
    inner.append(3)
    assert query.parameters["x"] == (1, 2) and query.id == before
    with pytest.raises(TypeError):
        query.parameters["x"] = 1
    assert pickle.loads(pickle.dumps(query)) == query


@pytest.mark.parametrize(
    "change",
    [
        {"method": ""},
        {"method": 3},
        {"seed": True},
        {"seed": 0.5},
        {"model": None},
        {"parameters": [1]},
        {"version": 1},
    ],
)
def test_query_refuses(change):
    with pytest.raises(ResultError):
        Query(**{**BASE, **change})


def test_rerunnable_is_found_at_any_depth():
    assert Query("m", "1", parameters={"a": [{"b": 1}]}).rerunnable
    assert not Query("m", "1", parameters={"a": [{"b": {"rerunnable": False}}]}).rerunnable


# ----------------------------------------------------------------------------------------- Control


def control(**changes):
    made = {
        "name": "identity",
        "rules_out": "a broken edit",
        "expected": "0",
        "observed": 0.0,
        "passed": True,
        "n": 8,
    }
    return Control(**{**made, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n": 0}, "on nothing"),
        ({"n": 0, "passed": False}, "on nothing"),
        ({"passed": None, "n": 0}, "does not say why"),
        ({"passed": 1}, "passed=1"),
        ({"passed": "yes"}, "passed"),
        ({"gates": None}, "gates"),
        ({"n": -1}, "n=-1"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": True}, "n=True"),
        ({"observed": None}, "observed None"),
        ({"observed": [1]}, "observed"),
        ({"observed": object()}, "JSON cannot hold"),
        ({"name": " "}, "no name"),
        ({"rules_out": ""}, "no rules_out"),
        ({"expected": ""}, "no expected"),
        ({"null": (1.0, 0.0)}, "low must not exceed"),
        ({"null": (math.nan, 0.0)}, "low must not exceed"),
        ({"null": 3}, "low, high"),
    ],
)
def test_control_refuses(changes, says):
    with pytest.raises(ResultError, match=says):
        control(**changes)


def test_control_takes_numpys_scalars_and_says_its_outcome():
    made = control(
        passed=np.bool_(False), n=np.int64(3), observed={"max": np.float32(0.5)}, null=[np.float64(-1), 1]
    )
    assert (
        made.passed is False
        and type(made.n) is int
        and made.observed == {"max": 0.5}
        and made.null == (-1.0, 1.0)
    )
    assert made.outcome == "failed" and control().outcome == "passed"
    idle = Control.not_run("donors", "noise", "0", "no variables declared")
    assert idle.outcome == "did not run" and idle.passed is None and idle.n == 0
    assert issubclass(ResultError, MicrotomeError)
