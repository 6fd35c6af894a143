"""Runs the tests of an exercise in a process of its own: `python -I run_tests.py FOLDER OUT`. Imports nothing of Microtome.

OUT gets a JSON object: test -> "" where it passed, else what happened. A process that dies leaves none.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType

LARGEST_FILE = 50_000_000


def main(folder: Path, out: Path) -> None:
    """Run every function `test_*` of FOLDER/test_exercise.py, in the order in which they stand there."""
    _limit()
    sys.path.insert(0, str(folder))
    told: dict[str, str] = {}
    try:
        module = _module(folder / "test_exercise.py")
        tests = {
            name: thing
            for name, thing in vars(module).items()
            if name.startswith("test_") and callable(thing)
        }
    except BaseException as error:  # noqa: BLE001 - whatever a learner's code raises is a result
        told, tests = {"(import)": _said(error)}, {}
    for name, test in tests.items():
        try:
            test()
            told[name] = ""
        except BaseException as error:  # noqa: BLE001 - as above
            told[name] = _said(error)
    out.write_text(json.dumps(told), encoding="utf-8")


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_exercise", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules["test_exercise"] = module
    spec.loader.exec_module(module)
    return module


def _said(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith("exercise.py")]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"[:1000]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
