""".ci/run with doubles for make and chromium: what is called, in which order, and how it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = test ] && echo "lint passed" && echo "$CLOSING" && exit "$TEST_CODE"
[ "$1" = calibrate ] && exit "$CALIBRATE_CODE"
echo "$LAST_STAGE"
exit "$DISSECT_CODE"
"""


def ci(
    tmp_path,
    *,
    closing="12 passed, 1 deselected in 3.21s",
    test=0,
    dissect=0,
    calibrate=0,
    chromium=True,
    last="done: circuit tests, 3.1 s",
    postgres=True,
    recorded='"state": "finished"',
):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    doubles = tmp_path / "bin"
    doubles.mkdir()
    for name, text in (
        ("make", MAKE),
        *((("chromium", "#!/bin/sh\n"),) if chromium else ()),
        ("id", "#!/bin/sh\necho 1000\n"),
    ):
        (doubles / name).write_text(text)
        (doubles / name).chmod(0o755)
    if postgres:
        (tmp_path / "postgresql" / "17" / "bin").mkdir(parents=True)
        (tmp_path / "postgresql" / "17" / "bin" / "initdb").symlink_to("/bin/true")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "microtome").write_text(f"#!/bin/sh\necho '{recorded}'\n")
    (tmp_path / ".venv" / "bin" / "microtome").chmod(0o755)
    for name in ("bash", "dirname", "mktemp", "tee", "grep", "tail", "rm"):
        (doubles / name).symlink_to(shutil.which(name))
    calls = tmp_path / "calls"
    calls.touch()
    environment = {
        "PATH": str(doubles),
        "CALLS": str(calls),
        "CLOSING": closing,
        "TEST_CODE": str(test),
        "DISSECT_CODE": str(dissect),
        "CALIBRATE_CODE": str(calibrate),
        "LAST_STAGE": last,
        "TMPDIR": str(tmp_path),
        "POSTGRES_ROOT": str(tmp_path / "postgresql"),
    }
    done = subprocess.run(
        [str(doubles / "bash"), ".ci/run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines()


@pytest.fixture(autouse=True)
def posix():
    assert os.name == "posix", "CI runs on Linux"


def test_tests_first_then_the_first_command_of_the_readme(tmp_path):
    done, calls = ci(tmp_path)
    assert done.returncode == 0 and calls[:2] == ["test", "dissect ARGS=--pairs 4"]
    assert len(calls) == 3 and calls[2].startswith("calibrate ARGS=--quick --check --out ")
    assert done.stdout.splitlines()[-1] == "12 passed, 1 deselected in 3.21s"


def test_a_failing_test_ends_it_and_its_closing_line_is_last(tmp_path):
    done, calls = ci(tmp_path, closing="1 failed, 11 passed in 3.21s", test=2)
    assert done.returncode == 2 and calls == ["test"]
    assert done.stdout.splitlines()[-1] == "1 failed, 11 passed in 3.21s"


def test_lint_that_fails_before_pytest_is_said(tmp_path):
    done, _ = ci(tmp_path, closing="Found 3 errors.", test=2)
    assert done.returncode == 2 and "did not come to its closing line" in done.stdout.splitlines()[-1]


def test_a_failing_dissection_fails_it(tmp_path):
    done, calls = ci(tmp_path, dissect=1)
    assert done.returncode == 1 and len(calls) == 2


def test_a_stale_calibration_fails_it(tmp_path):
    done, calls = ci(tmp_path, calibrate=1)
    assert done.returncode == 1 and len(calls) == 3 and "quick calibration ended with 1" in done.stdout


def test_a_dissection_that_ends_early_fails_it(tmp_path):
    done, _ = ci(tmp_path, last="done: behaviour, 0.9 s")
    assert done.returncode == 1 and "last stage" in done.stderr


def test_without_chromium_and_without_the_right_to_install_it(tmp_path):
    done, calls = ci(tmp_path, chromium=False)
    assert done.returncode == 1 and calls == [] and "chromium" in done.stderr


def test_without_postgresql_and_without_the_right_to_install_it(tmp_path):
    done, calls = ci(tmp_path, postgres=False)
    assert done.returncode == 1 and calls == [] and "PostgreSQL" in done.stderr


def test_a_dissection_that_left_no_record_fails_it(tmp_path):
    done, calls = ci(tmp_path, recorded="[]")
    assert done.returncode == 1 and len(calls) == 2 and "no recorded run" in done.stderr
