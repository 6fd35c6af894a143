"""A study that is killed anywhere loses nothing that it had finished, and nothing that is half done is served."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from sqlalchemy.engine.default import DefaultDialect

from lab_faults import Moments, forked, whole_study
from lab_tools import Model, leaf, opened, project, runs, sound
from microtome.lab.doctor import collect
from microtome.lab.files import Files
from microtome.lab.reading import Record


def after_a_kill(place, said: list[str]) -> None:
    """What must be true of a record whose writer was killed, given what it had said before."""
    ended = [line.split()[1] for line in said if line.startswith("end")]
    begun = [line.split()[1] for line in said if line.startswith("begin")]
    record = Record(place)
    if not record.database.exists():
        assert not said  # nothing was promised
    else:
        before = {r.id: r for r in runs(place)} if said else {}
        for run in before.values():
            assert run.state in ("finished", "interrupted")
            if run.state == "finished" and run.method != "look":
                assert record.result(run.number).query.id == run.query
        assert {before[run].state for run in ended} <= {"finished"} and set(begun) <= set(before)
        if "look" in said:
            assert any(run.method == "look" and run.parent is None for run in before.values())
        if "prediction" in said:
            with record.database.reading() as connection:
                assert connection.exec_driver_sql("SELECT count(*) FROM prediction").scalar() >= 1
    record.close()
    with opened(place, "after"):
        leaf(Model(), 3)
    kept = runs(place)
    assert kept[-1].state == "finished" and len({r.number for r in kept}) == len(kept)
    assert not [r for r in kept if r.state == "running"]
    used = sound(place)
    collect(place, now=True)
    assert {key for key, _ in Files(place.files).stored()} == used
    assert not list(place.files.glob("??/.*.new"))
    sound(place)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_fsync_rename_and_commit(after, fast_path):
    with opened(project(fast_path / "warm")):  # everything is imported before the forks
        leaf(Model())
    whole = Moments()

    def count(say):
        with whole.watched():
            whole_study(project(fast_path / "whole"), say)
        say(str(whole.count))

    code, said = forked(count)
    moments = int(said[-1])
    assert code == 0 and moments > 30
    for at in range(moments):
        folder, moment = fast_path / f"{at}", Moments(at, after=after)

        def work(say, folder=folder, moment=moment):
            with moment.watched():
                whole_study(project(folder), say)

        code, said = forked(work)
        assert code == -signal.SIGKILL, at
        after_a_kill(project(folder), said)


def test_a_commit_names_only_what_a_power_cut_leaves(fast_path, monkeypatch):
    """Before every commit: each new file was synced before its rename, and its folder after it."""
    place = project(fast_path)
    synced, loose, commits = set(), set(), []
    fsync, replace, commit = os.fsync, os.replace, DefaultDialect.do_commit

    def syncing(handle):
        path = os.readlink(f"/proc/self/fd/{handle}")
        synced.add(path)
        loose.discard(path)
        fsync(handle)

    def replacing(old, new):
        if str(new).startswith(str(place.files)):
            assert str(old) in synced
            loose.add(os.path.dirname(new))
        replace(old, new)

    def committing(*given):
        assert not loose
        commits.append(len(synced))
        return commit(*given)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(DefaultDialect, "do_commit", committing)
    whole_study(place, lambda _line: None)
    assert len(commits) > 8 and str(place.files) in synced and len(synced) > 8


def killed(count: int, folder, work, after) -> int:
    """So many kills at random times of `work(place, say)`; how many of them hit it while it ran."""
    began = time.monotonic()
    code, _ = forked(lambda say: work(project(folder / "whole"), say))
    seconds = time.monotonic() - began
    assert code == 0
    chance, hits = random.Random(0), 0
    for i in range(count):
        place = project(folder / f"torn{i % 5}")  # a record is killed again and again

        def stop(child):
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)

        code, said = forked(lambda say, place=place: work(place, say), stop)
        assert code in (0, -signal.SIGKILL)
        hits += code != 0
        after(place, said)
    return hits


def test_twenty_real_kills(fast_path):
    with opened(project(fast_path / "warm")):
        leaf(Model())
    assert killed(20, fast_path, whole_study, after_a_kill) > 5
