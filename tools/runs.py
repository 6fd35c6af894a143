"""The real runs of the docs, each by one command, on the embedded model: keeps their results in docs/results.

    python tools/runs.py                 all of them (see --list for what each takes)
    python tools/runs.py happiness       one

What a run says is not chosen: the page (docs/reference/runs.md, by `make docs`) shows whatever came out.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(__file__).parents[1] / "docs" / "results"
RUNS = json.loads((HOME / "runs.json").read_text("utf-8"))


def main() -> None:
    """Run and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=", ".join(RUNS))
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    for name in given.names or RUNS:
        if name not in RUNS:
            sys.exit(f"there is no run called {name!r}; there are {', '.join(RUNS)}")
        if given.list:
            print(f"{name}: {RUNS[name]['command']}")
        else:
            run(name)


def run(name: str) -> None:
    """One command in a process of its own; its result takes the place of the last one when it is whole."""
    fresh = HOME / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    words = shlex.split(RUNS[name]["command"])
    assert words[0] == "microtome"
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", *words, "--out", str(fresh)], check=True)
    place = HOME / name
    shutil.rmtree(place, ignore_errors=True)
    (fresh / "result").rename(place)
    shutil.rmtree(fresh)
    told = {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.monotonic() - begun)}
    (place / "run.json").write_text(json.dumps(told) + "\n", "utf-8")


if __name__ == "__main__":
    main()
