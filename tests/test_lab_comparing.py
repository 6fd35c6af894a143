"""Two runs beside each other: what is planted is found, what is noise is not, and what cannot be paired is said."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lab_tools import leaf, opened, project
from measured import SITES, Model, Task, effects, measure, stages
from microtome.errors import LabError
from microtome.lab.comparing import ALPHA, compare
from microtome.lab.reading import Record
from microtome.results import Result, technique

N = 40
PLANTED = {"L1H1.z": 0.5, "L2H2.z": -0.8, "L3H3.z": 1.2}  # the second changes its sign
MANY = tuple(f"L{layer}H{head}.z" for layer in range(6) for head in range(6))


def _define():
    @technique("toy_given", "1", random=True)
    def given(model, task, *, values, sites=MANY, prompts=None, mode="denoise", method="a", seed=0):
        return Result("toy_given", effects=effects(values, sites, prompts))

    @technique("toy_table", "1")
    def table(model, *, values=(1.0, 2.0), kind="toy_table", layer=None):
        return Result(kind, tables={"found": pd.DataFrame({"value": list(values)})})

    return given, table


given, table = _define()


@pytest.fixture
def record(fast_path, monkeypatch):
    monkeypatch.setenv("MICROTOME_PERSON", "ada")
    place = project(fast_path)
    with opened(place):
        yield Record(place)


def noise(seed, sites=36, n=N, scale=0.1):
    return np.random.default_rng(seed).normal(0, scale, (sites, n))


def pair(record, first, second, task=None, **more):
    given(Model(), task or Task(), values=first, **more)
    given(Model(), task or Task(), values=second, **more)
    return compare(record, 1, 2)


def test_planted_differences_are_found_and_the_change_of_sign_comes_first(record):
    base = noise(0) + 0.4
    after = base + noise(1, scale=0.02)
    for site, size in PLANTED.items():
        after[MANY.index(site)] += size
    found = pair(record, base, after)
    assert [c.cell["site"] for c in found.cells[:3]] == ["L2H2.z", "L3H3.z", "L1H1.z"]
    assert [c.flipped for c in found.cells[:3]] == [True, False, False]
    for cell in found.cells[:3]:
        size = PLANTED[cell.cell["site"]]
        assert cell.p <= ALPHA and cell.low < size < cell.high
        assert cell.difference == pytest.approx(size, abs=0.02) and abs(cell.difference) > cell.null
        assert cell.difference == pytest.approx(cell.second - cell.first)
    assert all(c.p > ALPHA for c in found.cells[3:]) and len(found.cells) == len(MANY)
    assert not found.same and found.paired == N and found.why == ""
    assert (found.only_first, found.only_second) == (0, 0)
    assert {d.name for d in found.asked} == {"values"}


def test_noise_that_changes_sign_does_not_stand_before_a_difference_that_is_sure(record):
    base = noise(0, scale=0.01)
    after = noise(1, scale=0.01)
    base[7] += 2.0
    after[7] += 3.0
    found = pair(record, base, after)
    assert found.cells[0].cell["site"] == MANY[7] and not found.cells[0].flipped
    assert sum(c.flipped for c in found.cells) > 5  # of noise around nothing half change sign
    flips = [c.flipped for c in found.cells[1:]]
    assert flips == sorted(flips, reverse=True)


def test_the_differences_are_of_prompts_that_have_a_partner_whatever_their_order(record):
    base = noise(0, sites=2, n=6)
    order = [4, 2, 0, 5, 1, 3]
    given(Model(), Task(), values=base, sites=("L0H0.z", "L0H1.z"))
    given(
        Model(), Task(), values=(base + 0.25)[::-1, order], sites=("L0H1.z", "L0H0.z"), prompts=tuple(order)
    )
    given(Model(), Task(), values=base[:1, 2:5], sites=("L0H0.z",), prompts=(2, 3, 4))
    found = compare(record, 1, 2)
    assert found.paired == 6 and [c.difference for c in found.cells] == pytest.approx([0.25, 0.25])
    part = compare(record, 1, 3)
    assert (part.paired, part.only_first, part.only_second) == (3, 1, 0) and not part.same
    assert part.cells[0].difference == 0 and math.isnan(part.cells[0].p)
    assert compare(record, 3, 1).only_second == 1


@pytest.mark.parametrize("n", [11, 30])
def test_two_noisy_repeats_are_not_called_different_more_than_they_should(n):
    """200 placebos at the level of the whole family: at .001 none or one is called different by chance (3 or more: p < 2e-3).

    At .2 about a fifth is: the test does not simply never fire.
    """
    from microtome.lab.comparing import _cells

    rng = np.random.default_rng(n)
    labels = [{"site": str(i)} for i in range(12)]
    lowest = []
    for k in range(200):
        shared = rng.normal(0, 1, (12, n)) * rng.gamma(1, 1, (12, 1))
        x, y = (shared + rng.normal(0, 0.3, shared.shape) for _ in range(2))
        lowest.append(min(c.p for c in _cells(x, y, labels, k)[0]))
    assert sum(p <= ALPHA for p in lowest) <= 2
    assert 20 <= sum(p <= 0.2 for p in lowest) <= 60


def test_with_few_prompts_nothing_can_be_told_and_that_is_said(record):
    found = pair(record, np.zeros((3, 4)) + 1.0, np.zeros((3, 4)) + 2.0 + noise(0, 3, 4), sites=SITES)
    assert found.smallest_p > ALPHA and all(c.p > ALPHA for c in found.cells)
    single = np.ones((3, 1))
    given(Model(), Task(), values=single, sites=SITES, seed=1)
    given(Model(), Task(), values=-single, sites=SITES, seed=1)
    one = compare(record, 3, 4)
    assert (
        one.paired == 1
        and math.isnan(one.smallest_p)
        and all(math.isnan(c.p) and c.flipped for c in one.cells)
    )


def test_cells_that_are_not_measured_everywhere_are_left_out_and_counted(record):
    base, after = noise(0), noise(0) + 0.1
    base[3, 5] = after[8, 0] = math.nan
    after[9] = math.nan
    found = pair(record, base, after)
    assert len(found.cells) == len(MANY) - 3 and found.why.startswith(
        "3 cells are not measured on every prompt"
    )
    assert not {MANY[3], MANY[8], MANY[9]} & {c.cell["site"] for c in found.cells}


def test_nothing_but_nan_is_no_difference_and_no_crash(record):
    found = pair(record, np.full((3, 4), math.nan), np.zeros((3, 4)), sites=SITES)
    assert found.cells == () and not found.same and found.why.startswith("3 cells")
    given(Model(), Task(), values=np.full((3, 4), math.nan), sites=SITES)
    assert compare(record, 1, 3).same


def test_identical_runs_are_equal_to_the_bit_and_one_bit_is_seen(record):
    base = noise(0)
    found = pair(record, base, base)
    assert found.same and found.asked == () and all(c.difference == 0 == c.low == c.high for c in found.cells)
    other = base.astype(np.float32)
    other[0, 0] = np.nextafter(other[0, 0], np.float32(9))
    given(Model(), Task(), values=other)
    assert not compare(record, 1, 3).same


def test_cells_that_did_not_move_are_no_part_of_the_family(record):
    base = noise(0)
    after = base.copy()
    after[4] += 0.1 + noise(2, 1)[0]
    found = pair(record, base, after)
    moved, *still = found.cells
    assert moved.cell["site"] == MANY[4] and moved.p <= ALPHA
    assert (
        all(c.difference == 0 and math.isnan(c.p) and math.isnan(c.null) for c in still) and len(still) == 35
    )


@pytest.mark.parametrize("task", [Task("ioi", "1111" * 8), Task("sva", "1111" * 8)])
def test_other_prompts_have_no_partner(record, task):
    given(Model(), Task(), values=noise(0))
    given(Model(), task, values=noise(0))
    found = compare(record, 1, 2)
    assert (found.cells, found.paired, found.same) == (
        (),
        0,
        False,
    ) and "no prompt has a partner" in found.why
    assert [d.name for d in found.asked] == ["task"]


def test_other_kinds_and_layouts_are_not_paired(record):
    given(Model(), Task(), values=noise(0))
    measure(Model(), Task())
    leaf(Model())
    assert "have no cell in common" in compare(record, 1, 2).why and not compare(record, 1, 2).same
    given(
        Model(),
        Task(),
        values=noise(0, 3, 4),
        sites=("L0H0.z", "L0H1.z", "L0H2.z"),
        prompts=(100, 101, 102, 103),
    )
    assert compare(record, 1, 4).why == "they have no prompt in common"
    given(Model(), Task(), values=noise(0, 1, N), sites=("L30.mlp_out",))
    assert compare(record, 1, 5).why == "they have no site in common"


def test_without_effects_the_numbers_are_still_compared(record):
    table(Model()), table(Model()), table(Model(), values=(1.0, 2.5))
    assert (
        compare(record, 1, 2).same and compare(record, 1, 2).why == "there are no effects per prompt to pair"
    )
    assert not compare(record, 1, 3).same
    stages(Model(), Task()), stages(Model(), Task()), stages(Model(), Task(), size=0.1)
    assert compare(record, 4, 6).same and not compare(record, 4, 8).same
    assert "the runs that they called" in compare(record, 4, 6).why
    assert not compare(record, 5, 9).same and len(compare(record, 5, 9).cells) == 3  # the stages


def test_of_what_was_asked_only_the_difference_is_named(record):
    values = noise(0, 3, 4)
    ask = {"values": values, "sites": SITES}
    given(Model(), Task(), **ask)
    given(Model(), Task(), **ask, mode="noise", seed=4)
    given(Model("other", "9999" * 8), Task(), **ask, method="b")
    found = {d.name: (d.first, d.second) for d in compare(record, 1, 2).asked}
    assert found == {"mode": ("denoise", "noise"), "seed": (0, 4)}
    found = {d.name: (d.first, d.second) for d in compare(record, 1, 3).asked}
    assert found == {"model": ("toy abcdabcdabcd", "other 999999999999"), "parameter method": ("a", "b")}
    # 1 and True, 1 and 1.0 are other questions, and NaN is the same as NaN
    for layer in (1, True, 1.0, math.nan, math.nan):
        table(Model(), layer=layer)
    assert (
        [d.name for d in compare(record, 4, 5).asked]
        == ["layer"]
        == [d.name for d in compare(record, 4, 6).asked]
    )
    assert compare(record, 7, 8).asked == ()


def test_what_has_no_result_is_not_compared(record):
    measure(Model(), Task())
    with pytest.raises(ValueError, match="no"):
        measure(Model(), Task(), fail="no")
    with pytest.raises(LabError, match="compared with itself"):
        compare(record, 1, "1")
    with pytest.raises(LabError, match="run 2 has no result"):
        compare(record, 1, 2)
    with pytest.raises(LabError, match="no run 3"):
        compare(record, 1, 3)


def test_the_other_way_round_is_the_same_with_the_other_sign(record):
    one = pair(record, noise(0), noise(1) + 0.05)
    other = compare(record, 2, 1)
    both = {c.cell["site"]: c for c in other.cells}
    for cell in one.cells:
        back = both[cell.cell["site"]]
        assert (back.first, back.second, back.p, back.flipped) == (
            cell.second,
            cell.first,
            cell.p,
            cell.flipped,
        )
        assert (back.low, back.high) == pytest.approx((-cell.high, -cell.low))
