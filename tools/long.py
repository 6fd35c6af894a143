"""Run the tests that take longer, and keep a dated line of how it went in tests/long.jsonl.

    python tools/long.py [arguments for pytest]

The file is kept in the repository: what was run last, when, on what, and with which outcome.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests" / "long.jsonl"


def outcome(report: Path) -> dict:
    """Counts and the names of what failed, from pytest's XML."""
    cases = list(ET.parse(report).iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": [f"{c.get('classname')}::{c.get('name')}" for c in bad],
        "skipped": [f"{c.get('classname')}::{c.get('name')}" for c in skipped],
        "slowest": {
            f"{c.get('name')}": round(float(c.get("time", 0)), 1) for c in sorted(cases, key=_seconds)[-5:]
        },
    }


def _seconds(case: ET.Element) -> float:
    return float(case.get("time", 0))


def commit() -> str:
    """The commit, with a + when files differ from it; "" outside a repository."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def main() -> int:
    """Run, record, and end as pytest did."""
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "long", f"--junit-xml={report}", *sys.argv[1:]]
        code = subprocess.call(command, cwd=ROOT)
        if not report.exists():
            return code
        line = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "seconds": round(time.time() - began),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "arguments": sys.argv[1:],
            **outcome(report),
        }
    with RECORD.open("a", encoding="utf-8") as record:
        record.write(json.dumps(line) + "\n")
    print(f"recorded in {RECORD.relative_to(ROOT)}")
    return 0 if code == 5 else code  # 5: no test is long yet


if __name__ == "__main__":
    sys.exit(main())
