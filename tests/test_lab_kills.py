"""Two hundred real kills of studies with the embedded model: nothing that was finished is lost."""

from __future__ import annotations

import random
import signal
import time

import pytest

from kill_servers import Server
from lab_tools import project
from test_lab_durability import after_a_kill

STUDY = """
import microtome as mt
from microtome.lab.study import study
from microtome.results import observe

model = mt.load()
task = mt.task("ioi", model, n=2, seed=0)

def work(folder):
    said = os.open(folder + "/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(event):
        if event.kind in ("begin", "end"):
            os.write(said, f"{event.kind} {event.run}\\n".encode())

    with study("kills", folder=folder, person="ada"), observe(say):
        mt.methods.direct_logit_attribution(model, task, seed=1)
        model.run("When Mary and John", capture=["L0.resid_pre"])
        mt.methods.direct_logit_attribution(model, task, seed=2)
"""


@pytest.mark.long
def test_two_hundred_real_kills_of_studies(tmp_path):
    server = Server(STUDY)
    folder = project(tmp_path / "warm").folder
    assert server.run(folder) == 0
    began = time.monotonic()
    assert server.run(folder) == 0
    seconds = time.monotonic() - began
    chance, kills, studies = random.Random(0), 0, 0
    while kills < 200:
        place = project(tmp_path / f"torn{studies % 4}")  # a record is killed again and again
        kills += server.run(place.folder, chance.uniform(0, 1.2 * seconds)) == -signal.SIGKILL
        said = place.folder / "said"
        after_a_kill(place, said.read_text().splitlines() if said.exists() else [])
        studies += 1
        assert studies < 1000
    server.close()
    assert studies > kills  # some came through: the kills were spread over the whole study
