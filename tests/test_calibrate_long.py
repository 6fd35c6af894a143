"""The whole calibration, compared with what ships (`make long`)."""

from __future__ import annotations

import pytest

from microtome.results import calibration
from microtome.zoo.calibrate import calibrate, coverage, jobs, table


def without(value, names=("seconds", "date")):
    """A copy without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without(v) for k, v in value.items() if k not in names}
    return [without(v) for v in value] if isinstance(value, list) else value


@pytest.mark.long
def test_the_whole_calibration_gives_what_ships(tmp_path):
    """Half an hour on two cores. Counts and rates are equal to the last digit on one machine, and to rounding elsewhere."""
    lines = calibrate(jobs(), tmp_path, workers=2)
    covered = coverage.all_cases()
    assert coverage.failed(covered) == []
    path = table.write(lines, covered, "2025-01-02", tmp_path / "calibration.json")
    made = without(calibration.plain(calibration._content(path)))
    assert made == without(calibration.plain(calibration.shipped())), f"see {path}"
