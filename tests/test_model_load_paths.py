"""Where the cache is, and the file operations that must survive a crash."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from microtome.errors import ResourceError
from microtome.model import paths


@pytest.mark.parametrize(
    "own, xdg, expected",
    [
        ("/a", "/b", "/a"),
        ("~/mine", "/b", "HOME/mine"),
        (None, "/b", "/b/microtome"),
        (None, "relative", "HOME/.cache/microtome"),
        (None, None, "HOME/.cache/microtome"),
        ("", "", "HOME/.cache/microtome"),
    ],
)
def test_the_cache_folder(own, xdg, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in (("MICROTOME_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert paths.cache_dir() == Path(expected.replace("HOME", str(tmp_path)))
    assert not paths.cache_dir().exists()


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="MICROTOME_CACHE"):
        paths.make_folder(tmp_path / "file" / "cache")


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert paths.free_bytes(tmp_path / "a" / "b") > 0
    with pytest.raises(ResourceError, match="free disk"):
        paths.require_space(tmp_path / "a", 1 << 60, "A test")
    paths.require_space(tmp_path / "a", 1, "A test")


HOLDER = """
import sys, time
from pathlib import Path
from microtome.model import paths
with paths.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_keeps_others_out_until_its_holder_dies(tmp_path):
    path = tmp_path / "deep" / "a.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        waited = []

        def kill_holder():
            waited.append(time.monotonic())
            holder.kill()

        with paths.lock(path, kill_holder):
            assert len(waited) == 1
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_free_lock_does_not_wait_and_is_given_back_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), paths.lock(tmp_path / "a.lock"):
        1 / 0  # noqa: B018
    with paths.lock(tmp_path / "a.lock", lambda: pytest.fail("it waited")):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    if sys.platform == "win32":
        return

    def refuse(descriptor, flags):
        raise OSError("no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ResourceError, match="no locks available"), paths.lock(tmp_path / "a.lock"):
        pass


def test_publish_replaces_a_folder_in_one_step(tmp_path):
    (tmp_path / "new" / "sub").mkdir(parents=True)
    (tmp_path / "new" / "sub" / "file").write_text("new")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "stale").write_text("old")
    paths.publish(tmp_path / "new", tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["sub"]


def test_everything_is_on_disk_before_the_name_is_given(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").write_text("x")
    synced = []
    monkeypatch.setattr(
        paths, "fsync", lambda path: synced.append((path.name, (tmp_path / "target").exists()))
    )
    paths.publish(tmp_path / "new", tmp_path / "target")
    assert synced == [("file", False), ("new", False), (tmp_path.name, True)]


def test_write_text_leaves_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    paths.write_text(path, "old")

    def fail(path):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(paths, "fsync", fail)
    with pytest.raises(OSError) as caught:
        paths.write_text(path, "new")
    assert path.read_text() == "old" and paths.is_disk_full(caught.value)
    assert not paths.is_disk_full(PermissionError(13, "no"))


def test_the_command_line_can_list_models_without_torch(tmp_path):
    code = (
        "import sys; import microtome.model.catalog, microtome.model.load; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
