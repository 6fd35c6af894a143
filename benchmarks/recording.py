"""What the record costs: recording a run, asking 10,000 runs, and the command that lists them.

    python -m benchmarks.recording [small]
"""  # fmt: skip

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUNS, STORED, REPEATS, CELLS = 200, 10_000, 5, 2_000
LISTING = """
from microtome.cli import output
from microtome.lab.reading import open_record
rows = open_record().runs()
output.table(("run", "method", "state", "about"), [(r.number, r.method, r.state, r.about) for r in rows])
"""


def middle(values: list[float]) -> dict[str, float]:
    """Median, least and most of seconds, in milliseconds."""
    return {
        name: round(1000 * f(values), 2)
        for name, f in (("ms", statistics.median), ("low", min), ("high", max))
    }


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Model:
    """Enough of a model."""

    hash = "abcd"


def toy() -> Callable:
    """A technique whose result is an array and a control."""
    import numpy as np

    from microtome.results import Control, Result, technique, verdict

    @technique("toy", "1")
    def call(model, value):
        control = Control(
            "identity", rules_out="nothing", expected="no change", observed=0.0, passed=True, n=1
        )
        values = {"values": np.full(1000, value, dtype=np.float32)}
        return Result("toy", tensors=values, controls=(control,), verdict=verdict((control,), ("identity",)))

    return call


def floor(folder: Path, sizes: list[int], turn: int) -> None:
    """The same bytes written and synced by hand: what any record that survives a power cut pays, a log of its own included."""
    for i, size in enumerate([*sizes, 4096]):
        path = folder / f"{turn}-{i}"
        with path.open("wb") as file:
            file.write(os.urandom(size))
            file.flush()
            os.fsync(file.fileno())
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def recording(runs: int) -> dict:
    """Milliseconds of a call outside a study, in one, and of its bytes alone; taken in turns."""
    from microtome.lab import place
    from microtome.lab.study import study

    call = toy()
    plain, kept, busy, bare = [], [], [], []
    sizes: list[int] = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # on a disk: /tmp may be memory
        folder = Path(name)
        place.init(folder)
        (folder / "floor").mkdir()
        one = study("toys", folder=folder, person="bench")
        for turn in range(-5, runs):  # the first five warm up
            plain.append(timed(lambda turn=turn: call(Model(), turn)))
        with one:
            for turn in range(-5, runs):
                begun = time.process_time()
                kept.append(timed(lambda turn=turn: call(Model(), turn)))
                busy.append(time.process_time() - begun)
                if not sizes:
                    sizes += [p.stat().st_size for p in (folder / ".microtome" / "files").glob("??/*")]
                bare.append(timed(lambda turn=turn, sizes=sizes: floor(folder / "floor", sizes, turn)))
    out = {"runs": runs, "files per run": len(sizes), "bytes per run": sum(sizes)}
    parts = {
        "outside a study": plain[5:],
        "in a study": kept[5:],
        "of that the processor": busy[5:],
        "its bytes alone": bare[5:],
    }
    out |= {name: middle(values) for name, values in parts.items()}
    each = [k - p - b for k, p, b in zip(kept[5:], plain[5:], bare[5:], strict=True)]
    return out | {"added, above its bytes": middle(each)}


def many(folder: Path, count: int) -> None:
    """A record of so many runs: one that was made, and copies of its rows."""
    from microtome.lab import place
    from microtome.lab.study import study

    where = place.init(folder)
    with study("toys", folder=folder, person="bench"):
        toy()(Model(), 1)
    with sqlite3.connect(where.database) as c:
        names = [row[1] for row in c.execute("PRAGMA table_info(run)") if row[1] not in ("number", "id")]
        listed = ", ".join(f'"{name}"' for name in names)
        c.execute(f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count - 1}) INSERT INTO run (id, {listed}) "
                  f"SELECT printf('x%d', i), {listed} FROM n, run WHERE number = 1")  # fmt: skip
        for table in ("run_file", "control"):
            names = [row[1] for row in c.execute(f"PRAGMA table_info({table})") if row[1] != "run"]
            listed = ", ".join(f'{table}."{name}"' for name in names)
            c.execute(
                f"INSERT INTO {table} SELECT number, {listed} FROM {table}, run WHERE {table}.run = 1 AND number > 1"
            )
    c.close()


def asking(count: int, repeats: int) -> dict:
    """Milliseconds of questions to a record of so many runs, and of the command that lists them."""
    from microtome.lab import place
    from microtome.lab.doctor import examine
    from microtome.lab.reading import Record, Wanted

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        many(folder, count)
        record = Record(place.here(folder))
        questions: dict[str, Callable[[], object]] = {
            "newest 30": record.runs,
            "newest 30 of a method": lambda: record.runs(Wanted(method="toy")),
            "none of a family": lambda: record.runs(Wanted(family="none")),
            "one run": lambda: record.run(count // 2),
            "studies": record.studies,
            "every run": lambda: record.runs(Wanted(), None),
            "doctor": lambda: examine(record.place),
        }
        out = {}
        for question, ask in questions.items():
            ask()
            out[question] = middle([timed(ask) for _ in range(repeats)])
        record.close()
        commands = {"microtome lab runs": [sys.executable, "-m", "microtome", "lab", "runs"], "python, listing alone": [sys.executable, "-c", LISTING]}  # fmt: skip
        for title, command in commands.items():
            done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            if done.returncode == 0:
                out[title] = middle([timed(lambda c=command: subprocess.run(c, cwd=folder, capture_output=True, check=True)) for _ in range(repeats)])  # fmt: skip
    return {"stored runs": count, **out}


def comparing(cells: int, repeats: int) -> dict:
    """Milliseconds of `microtome lab compare` of two runs with so many cells on 32 prompts."""
    import numpy as np

    from microtome.lab import place
    from microtome.lab.study import study
    from microtome.results import Labelled, Result, technique, verdict

    @technique("toy_sweep", "1")
    def call(model, turn):
        values = np.random.default_rng(turn).normal(size=(cells, 32, 1)).astype(np.float32)
        names = tuple(f"L{i // 100}H{i % 100}.z" for i in range(cells))
        coords = {"site": names, "prompt": tuple(range(32)), "metric": ("logit_diff",)}
        return Result(
            "toy_sweep", effects=Labelled(values, ("site", "prompt", "metric"), coords), verdict=verdict(())
        )

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        place.init(folder)
        with study("toys", folder=folder, person="bench"):
            for turn in (1, 2):
                call(Model(), turn)
        command = [sys.executable, "-m", "microtome", "lab", "compare", "1", "2"]
        taken = [
            timed(lambda: subprocess.run(command, cwd=folder, capture_output=True, check=True))
            for _ in range(repeats + 1)
        ]
    return {"cells": cells, "microtome lab compare": middle(taken[1:])}


def measure(small: bool) -> dict:
    """Everything; the keys are those of benchmarks/results.json."""
    return {"recording": recording(10 if small else RUNS), "asking": asking(500 if small else STORED, 2 if small else REPEATS), "comparing": comparing(50 if small else CELLS, 2 if small else REPEATS)}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure("small" in sys.argv[1:])))
