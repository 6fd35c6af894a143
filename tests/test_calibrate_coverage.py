"""Coverage of intervals: right ones are accepted, wrong ones are not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats

from microtome.errors import ControlError
from microtome.zoo.calibrate.coverage import BAND, Cover, all_cases, band, cases, covers, failed


def known(random, n, factor):
    """The interval of a mean of 16 standard normal values, its spread known, made wider by a factor."""
    mean, half = random.standard_normal((n, 16)).mean(1), factor * 1.959964 / 4
    return mean - half, mean + half, 0.0


def test_every_interval_of_the_project_keeps_its_word():
    table = all_cases()
    assert len(table) == len(cases()) >= 10 and all(row["n"] >= 2_000 for row in table)
    assert failed(table) == [], table
    assert all_cases() == table  # same seeds, same numbers


def test_a_right_interval_is_accepted_and_a_narrow_or_wide_one_is_not():
    assert covers(Cover("right", partial(known, factor=1.0), two_sided=True))["accepted"]
    narrow = covers(Cover("narrow", partial(known, factor=0.9)))
    assert not narrow["accepted"] and failed([narrow]) == ["narrow"]
    wide = partial(known, factor=1.2)
    assert covers(Cover("wide", wide))["accepted"]  # it may only cover more often than it says
    assert not covers(Cover("wide", wide, two_sided=True))["accepted"]


@pytest.mark.parametrize("two_sided", [True, False])
def test_the_band_is_the_exact_binomials(two_sided):
    low, high = band(2_000, 0.95, two_sided=two_sided)
    law = stats.binom(2_000, 0.95)
    outside = law.cdf(low - 1) + law.sf(high)
    assert outside <= BAND < law.cdf(low) + law.sf(high - 1 if two_sided else high)


def test_too_few_replicates_are_refused():
    with pytest.raises(ControlError, match="1999 replicates"):
        covers(cases()[0], replicates=1_999)


def test_a_limit_that_is_no_number_covers_nothing():
    made = covers(Cover("none", lambda random, n: (np.full(n, np.nan), np.full(n, np.nan), 0.0)))
    assert made["hits"] == 0 and not made["accepted"]
