"""Result and its one long frame."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from microtome.errors import ResultError
from microtome.results import Control, Labelled, Query, Result

COLUMNS = [
    "site",
    "layer",
    "head",
    "position",
    "metric",
    "value",
    "low",
    "high",
    "null_low",
    "null_high",
    "n",
]
DTYPES = ["string", "Int64", "Int64", "object", "string", *["float64"] * 5, "int64"]


def effects(values=None):
    if values is None:
        values = np.random.default_rng(0).normal(size=(3, 2, 4, 2))
    coords = {
        "layer": (0, 1, 2),
        "position": (0, "subject"),
        "prompt": tuple(range(4)),
        "metric": ("ld", "kl"),
    }
    return Labelled(values, ("layer", "position", "prompt", "metric"), coords)


def cells(**columns):
    made = {
        "layer": [2, 0],
        "position": ["subject", 0],
        "metric": ["kl", "ld"],
        "low": [-9.0, -8.0],
        "high": [9.0, 8.0],
    }
    return pd.DataFrame({**made, **columns})


def row(frame, **keys):
    for name, key in keys.items():
        frame = frame[frame[name] == key]
    assert len(frame) == 1
    return frame.iloc[0]


def test_schema_is_the_same_for_every_result():
    full = Result("toy", effects=effects(), tables={"cells": cells()}).frame()
    for frame in (full, Result("toy").frame(), Result("toy", effects=effects()).frame()):
        assert list(frame.columns) == COLUMNS
        assert [str(t) for t in frame.dtypes] == DTYPES
    assert len(Result("toy").frame()) == 0
    assert len(full) == 3 * 2 * 2


def test_value_is_the_mean_over_prompts_of_that_cell_and_metric():
    result = Result("toy", effects=effects())
    for layer in (0, 1, 2):
        for position in (0, "subject"):
            for metric in ("ld", "kl"):
                raw = result.effects.sel(layer=layer, position=position, metric=metric).values
                hit = row(result.frame(), layer=layer, position=position, metric=metric)
                assert hit.value == pytest.approx(raw.astype(float).mean()) and hit.n == 4
                assert hit["head"] is pd.NA and hit["site"] is pd.NA and math.isnan(hit.low)


def test_bounds_land_on_their_own_cell_whatever_the_order():
    table = cells(null_low=[-1.0, -2.0], null_high=[1.0, np.nan])
    frame = Result("toy", effects=effects(), tables={"cells": table}).frame()
    hit = row(frame, layer=2, position="subject", metric="kl")
    assert (hit.low, hit.high, hit.null_low, hit.null_high) == (-9, 9, -1, 1)
    hit = row(frame, layer=0, position=0, metric="ld")
    assert (hit.low, hit.high, hit.null_low) == (-8, 8, -2) and math.isnan(hit.null_high)
    assert frame.low.notna().sum() == 2
    flipped = Result("toy", effects=effects(), tables={"cells": table.iloc[::-1]}).frame()
    pd.testing.assert_frame_equal(frame, flipped)


def test_an_unmeasured_prompt_counts_neither_in_value_nor_in_n():
    values = np.ones((3, 2, 4, 2))
    values[0, 0, :2, 0] = np.nan
    values[0, 0, 2, 0] = 4.0
    values[1, 1, :, 1] = np.nan
    frame = Result("toy", effects=effects(values)).frame()
    hit = row(frame, layer=0, position=0, metric="ld")
    assert hit.value == 2.5 and hit.n == 2
    gone = row(frame, layer=1, position="subject", metric="kl")
    assert math.isnan(gone.value) and gone.n == 0


def test_rows_that_are_no_mean_over_prompts_come_from_the_table():
    table = cells(metric=["normalised", "ld"], value=[0.8, np.nan], n=[4, np.nan], head=[3, np.nan])
    frame = Result("toy", effects=effects(), tables={"cells": table}).frame()
    assert len(frame) == 13
    extra = row(frame, metric="normalised")
    assert (extra.layer, extra["head"], extra.position, extra.value, extra.low, extra.n) == (
        2,
        3,
        "subject",
        0.8,
        -9,
        4,
    )
    alone = Result("toy", tables={"cells": table.iloc[:1]}).frame()
    assert len(alone) == 1 and alone.value.item() == 0.8


def test_layer_head_and_position_are_read_from_the_address():
    sites = (
        "L9H6.z",
        "L10.resid_pre@-1",
        "L9KV2.k",
        "embed",
        "L2.mlp_out@subject",
        "L5H3.z->L9KV2.k",
        "L9H6.pattern@-1<-3",
    )
    raw = Labelled(
        np.zeros((7, 1, 1)), ("site", "prompt", "metric"), {"site": sites, "prompt": (0,), "metric": ("m",)}
    )
    frame = Result("toy", effects=raw).frame()
    got = [
        tuple(None if x is pd.NA else x for x in r)
        for r in zip(frame.layer, frame["head"], frame.position, strict=True)
    ]
    assert got == [
        (9, 6, None),
        (10, None, -1),
        (None, None, None),
        (None, None, None),
        (2, None, "subject"),
        (None, None, None),
        (None, None, None),
    ]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (cells().drop(columns="metric"), "no column 'metric'"),
        (cells().drop(columns="layer"), "no column 'layer'"),
        (cells(layer=[0, 0], position=[0, 0], metric=["ld", "ld"]), "two rows"),
        (cells(low=[10.0, -8.0]), "low 10 above high 9"),
        (cells(null_low=[1.0, 1.0], null_high=[0.0, 2.0]), "null_low"),
        (cells(value=[123.0, np.nan]), "effects' mean"),
        (cells(layer=[7, 0]), "no column 'value', 'n'"),
        (cells(layer=[7, 0], value=[1.0, np.nan], n=[np.nan, np.nan]), "n counts"),
        (cells(metric=["k1", "ld"], value=[1.0, np.nan], n=[2.5, 1]), "n counts"),
    ],
)
def test_a_cells_table_that_contradicts_is_refused_when_the_result_is_made(table, says):
    with pytest.raises(ResultError, match=says):
        Result("toy", effects=effects(), tables={"cells": table})


@pytest.mark.parametrize(
    ("dims", "coords", "says"),
    [
        (("layer", "metric", "prompt"), {"layer": (0,), "metric": ("m",), "prompt": (0,)}, "dims"),
        (("layer", "prompt"), {"layer": (0,), "prompt": (0,)}, "dims"),
        (("neuron", "prompt", "metric"), {"neuron": (0,), "prompt": (0,), "metric": ("m",)}, "dims"),
        (("layer", "prompt", "metric"), {"layer": ("L0",), "prompt": (0,), "metric": ("m",)}, "integers"),
        (("site", "prompt", "metric"), {"site": (0,), "prompt": (0,), "metric": ("m",)}, "text"),
        (("prompt", "metric"), {"prompt": (0,), "metric": (0,)}, "text"),
    ],
)
def test_effects_are_cells_then_prompt_then_metric(dims, coords, says):
    with pytest.raises(ResultError, match=says):
        Result("toy", effects=Labelled(np.zeros((1,) * len(dims)), dims, coords))


def test_effects_without_cells_give_one_row_per_metric():
    raw = Labelled([[1.0, 10.0], [3.0, 30.0]], ("prompt", "metric"), {"prompt": (0, 1), "metric": ("a", "b")})
    assert Result("toy", effects=raw).frame().value.tolist() == [2.0, 20.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Has Blanks"},
        {"kind": "../up"},
        {"query": "patching"},
        {"effects": np.zeros(3)},
        {"tables": {"../up": pd.DataFrame()}},
        {"tables": {"cells": [1]}},
        {"tables": {"t": pd.DataFrame({0: [1]})}},
        {"tables": {"t": pd.DataFrame([[1, 2]], columns=["a", "a"])}},
        {"tables": {"t": pd.DataFrame({"a": [object()]})}},
        {"tensors": {"w": [1.0]}},
        {"tensors": {"w": np.array([object()])}},
        {"tensors": {"": np.zeros(1)}},
        {"tensors": {"\ud800": np.zeros(1)}},
        {"controls": ("identity",)},
        {"controls": (Control("a", "b", "c", 1, True, 1), Control("a", "b", "c", 1, True, 1))},
        {"raw_examples": ({"prompt": object()},)},
        {"raw_examples": ("text",)},
        {"children": ("x",)},
        {"schema_version": 2},
    ],
)
def test_result_refuses(changes):
    with pytest.raises(ResultError):
        Result(**{"kind": "toy", **changes})


def test_table_with_attrs_is_refused():
    table = pd.DataFrame({"a": [1]})
    table.attrs["model"] = object()
    with pytest.raises(ResultError, match="attrs"):
        Result("toy", tables={"t": table})


def test_nothing_outside_can_change_a_result():
    table, array, example = cells(), np.zeros(3), {"tokens": ["a"]}
    result = Result(
        "toy", effects=effects(), tables={"cells": table}, tensors={"w": array}, raw_examples=[example]
    )
    twin = Result(
        "toy",
        effects=effects(),
        tables={"cells": cells()},
        tensors={"w": np.zeros(3)},
        raw_examples=[example],
    )
    table.loc[0, "low"] = -99.0
    array[0] = 1
    example["tokens"].append("b")
    mine = result.tables["cells"]
    mine.loc[0, "low"] = -99.0
    assert result.tables["cells"].low.tolist() == [-9.0, -8.0]
    assert result.raw_examples == ({"tokens": ("a",)},)
    assert result.tensors["w"].tolist() == [0, 0, 0]
    with pytest.raises(AttributeError):
        result.kind = "x"
    with pytest.raises(TypeError):
        result.tables["x"] = table
    with pytest.raises(TypeError):
        result.tensors["x"] = array
    assert result.effects == twin.effects and result.tables == twin.tables


def test_equality_sees_every_field():
    query = Query("toy", "1")
    ok = Control("a", "b", "c", math.nan, True, 1)
    base = Result(
        "toy",
        query=query,
        effects=effects(),
        tables={"cells": cells()},
        tensors={"w": np.array([np.nan, 1.0])},
        controls=(ok,),
        raw_examples=({"x": math.nan},),
        children=(Result("child", query=query),),
    )
    assert base == replace(base) == pickle.loads(pickle.dumps(base)) and hash(base) == hash(replace(base))
    assert not pickle.loads(pickle.dumps(base)).tensors["w"].flags.writeable
    for change in (
        {"kind": "other"},
        {"query": Query("toy", "2")},
        {"effects": None, "tables": {}},
        {"tables": {}},
        {"tables": {"cells": cells(low=[-9.0, -8.5])}},
        {"tables": {"cells": cells().astype({"layer": "int32"})}},
        {"tensors": {"w": np.array([np.nan, 2.0])}},
        {"tensors": {"w": np.array([np.nan, 1.0], np.float32)}},
        {"controls": (replace(ok, detail="x"),)},
        {"raw_examples": ()},
        {"children": ()},
        {"children": (Result("child", query=query, tensors={"w": np.zeros(1)}),)},
    ):
        assert base != replace(base, **change), change


def test_control_is_found_by_name_and_the_nearest_is_named():
    result = Result("toy", controls=(Control("identity", "b", "c", 1, True, 1),))
    assert result.control("identity").n == 1
    with pytest.raises(ResultError, match="did you mean 'identity'"):
        result.control("identty")
    assert "toy" in repr(result) and len(repr(result)) < 200
