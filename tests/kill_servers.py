"""A process that imports what is needed once, and forks a worker for every job, which can be killed at a chosen time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LOOP = """
print("ready", flush=True)
for line in sys.stdin:  # each job in a process of its own
    worker = os.fork()
    if not worker:
        work(line.strip())
        os._exit(0)
    print(worker, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
"""


class Server:
    """Runs `work(folder)`, which the code defines after it has imported what it needs."""

    def __init__(self, code: str) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",  # a fork keeps no other threads
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", f"import os, sys\n{code}\n{LOOP}"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1, env=environment)  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, folder: Path, kill_after: float | None = None) -> int:
        """The worker's exit code: 0, or minus the signal."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        worker = int(self._line())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return int(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()
