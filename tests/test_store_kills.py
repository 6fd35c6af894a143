"""A capture that is stopped anywhere, and gone on with, leaves the very bytes of one that was not."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

import microtome as mt
import tiny
from kill_servers import Server
from microtome.activations import Store, files, layout
from microtome.errors import ResourceError

SITES = ["L*.resid_post@-1", "L1.neurons", "L0.z@0"]
LENGTHS = [5, 9, 3, 7, 7, 12, 4, 9, 2, 6]


class Stopped(BaseException):
    """The process is gone."""


class Stopping(files.Disk):
    """Counts every fsync and rename, and stops before or after one of them.

    lossy: a power cut instead of a kill: what no fsync has forced to the disk is lost.
    """

    def __init__(self, at: int = -1, *, after: bool = False, lossy: bool = False) -> None:
        self.at, self.after, self.lossy, self.count = at, after, lossy, 0
        self.synced: dict[Path, bytes] = {}

    def fsync(self, path: Path) -> None:
        self._at(False)
        assert path.exists()  # the real call would only take time: no power is cut here
        if self.lossy and path.is_file():
            self.synced[path] = path.read_bytes()
        self._at(True)

    def rename(self, old: Path, new: Path) -> None:
        self._at(False)
        super().rename(old, new)
        if old in self.synced:
            self.synced[new] = self.synced.pop(old)
        self._at(True)

    def _at(self, after: bool) -> None:
        if self.count == self.at and after == self.after:
            for path in {p.parent for p in self.synced}:
                for file in path.iterdir():
                    if file.name != files.LOCK:
                        file.write_bytes(self.synced.get(file, b""))
            raise Stopped
        self.count += after


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != files.LOCK}


@pytest.fixture
def small(monkeypatch):
    """Many windows and several files from a few items."""
    monkeypatch.setattr(layout, "WINDOW_TOKENS", 16)
    monkeypatch.setattr(layout, "SHARD_BYTES", 4000)


def capture(folder: Path, disk: files.Disk, monkeypatch, model) -> None:
    monkeypatch.setattr(files, "disk", disk)
    mt.store(model, tiny.ragged(LENGTHS, seed=3), SITES, folder, batch=20)


@pytest.mark.parametrize("lossy", [False, True], ids=["kill", "power cut"])
def test_stopped_before_and_after_every_fsync_and_rename_and_gone_on_with(small, lossy, monkeypatch, tmp_path):  # fmt: skip
    model = tiny.loaded("llama")
    whole = Stopping()
    capture(tmp_path / "whole", whole, monkeypatch, model)
    want = content(tmp_path / "whole")
    assert len(want) >= 4 and whole.count > 20
    for at in range(whole.count):
        for after in (False, True):
            folder = tmp_path / f"{at}-{after}"
            with pytest.raises(Stopped):
                capture(folder, Stopping(at, after=after, lossy=lossy), monkeypatch, model)
            if not (folder / files.MANIFEST).exists():
                with pytest.raises(ResourceError, match="half-written|no store|cannot be read"):
                    Store.open(folder)
            capture(folder, files.Disk(), monkeypatch, model)
            assert content(folder) == want, (at, after)


def test_stopped_again_and_again(small, monkeypatch, tmp_path):
    """Each attempt gets a little further than the one before; the end is the same."""
    model = tiny.loaded("llama")
    capture(tmp_path / "whole", files.Disk(), monkeypatch, model)
    for at in (5, 9, 4, 7, 3, 6):
        with pytest.raises(Stopped):
            capture(tmp_path / "torn", Stopping(at, lossy=True), monkeypatch, model)
    capture(tmp_path / "torn", files.Disk(), monkeypatch, model)
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


CAPTURE = """
sys.path.insert(0, {tests!r})
import tiny, microtome as mt
from microtome.activations import layout
layout.WINDOW_TOKENS, layout.SHARD_BYTES = 16, 4000
model, data = tiny.loaded("llama"), tiny.ragged({lengths!r}, seed=3)

def work(folder):
    mt.store(model, data, {sites!r}, folder, batch=20)
"""


def killed(count: int, tmp_path: Path, lengths: list[int]) -> int:
    """So many real kills at random moments of captures, most of a folder several times; returns how many folders."""
    server = Server(CAPTURE.format(tests=str(Path(__file__).parent), lengths=lengths, sites=SITES))
    began = time.monotonic()
    assert server.run(tmp_path / "whole") == 0
    seconds = time.monotonic() - began
    want = content(tmp_path / "whole")
    chance, kills, folders = random.Random(0), 0, 0
    while kills < count:
        target = tmp_path / "torn"
        for _ in range(chance.randrange(1, 5)):
            kills += server.run(target, chance.uniform(0, seconds)) == -signal.SIGKILL
        assert server.run(target) == 0
        assert content(target) == want, kills
        shutil.rmtree(target)
        folders += 1
    server.close()
    return folders


def test_a_real_kill(tmp_path):
    killed(3, tmp_path, LENGTHS)


@pytest.mark.long
def test_two_hundred_real_kills(tmp_path):
    assert killed(200, tmp_path, LENGTHS * 8) >= 50
