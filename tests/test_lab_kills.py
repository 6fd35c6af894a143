"""Two hundred real kills of studies with the embedded model: nothing that was finished is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab_tools import project
from test_lab_durability import after_a_kill

SERVER = """
import os, sys
import microtome as mt
from microtome.lab.study import study
from microtome.results import add_observer

model = mt.load()
task = mt.task("ioi", model, n=2, seed=0)

def work(folder):
    said = os.open(folder + "/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(event):
        if event.kind in ("begin", "end"):
            os.write(said, f"{event.kind} {event.run}\\n".encode())

    with study("kills", folder=folder, person="ada"):
        add_observer(say)
        mt.methods.direct_logit_attribution(model, task, seed=1)
        model.run("When Mary and John", capture=["L0.resid_pre"])
        mt.methods.direct_logit_attribution(model, task, seed=2)

print("ready", flush=True)
for line in sys.stdin:  # each study in a process of its own, which has everything imported
    worker = os.fork()
    if not worker:
        work(line.strip())
        os._exit(0)
    print(worker, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
"""


class Server:
    """Runs studies that can be killed."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }  # a fork keeps no other threads
        self.process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1, env=environment)  # fmt: skip
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def study(self, folder: Path, kill_after: float | None = None) -> int:
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


@pytest.mark.long
def test_two_hundred_real_kills_of_studies(tmp_path):
    server = Server()
    folder = project(tmp_path / "warm").folder
    assert server.study(folder) == 0
    began = time.monotonic()
    assert server.study(folder) == 0
    seconds = time.monotonic() - began
    chance, kills, studies = random.Random(0), 0, 0
    while kills < 200:
        place = project(tmp_path / f"torn{studies % 4}")  # a record is killed again and again
        kills += server.study(place.folder, chance.uniform(0, seconds)) == -signal.SIGKILL
        said = place.folder / "said"
        after_a_kill(place, said.read_text().splitlines() if said.exists() else [])
        studies += 1
        assert studies < 1000
    server.close()
    assert studies > kills  # some came through: the kills were spread over the whole study
