"""One contestant in a process of its own: a job per line of JSON on stdin, an answer per line on stdout."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Load the contestant named on the command line, say so, then serve."""
    warnings.filterwarnings("ignore")
    name, folder = sys.argv[1:3]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    path = Path(__file__).parent / "contestants" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    extra = sys.argv[3:]
    contestant = module.Contestant(folder, *extra)
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            said = getattr(contestant, job["job"])(job["work"])
        except Exception as error:  # noqa: BLE001  a contestant's failure is an answer, not the run's end
            said = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
