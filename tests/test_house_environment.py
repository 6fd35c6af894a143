"""tools/environment.py: which Python, which torch, and what is said when neither can be had."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLAIN, CPU = ("2.13.0", "https://files.example/torch.whl"), ("2.13.0+cpu", "file:///wheels/torch%2Bcpu.whl")


@pytest.fixture
def env(monkeypatch):
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "gpu_driver", lambda: "")
    monkeypatch.setattr(module, "megabytes", lambda url: 190.0 if "cpu" in url else 800.0)
    return module


def index(env, monkeypatch, plain, cpu):
    monkeypatch.setattr(env, "would_take", lambda python, pin, options=(): cpu if options else plain)


def test_the_configured_index_with_a_cpu_build(env, monkeypatch):
    index(env, monkeypatch, CPU, None)
    options, said, size = env.choose_torch("python", "torch==2.13.0")
    assert options == [] and "CPU build" in said and size == 190


def test_the_cpu_index_where_the_configured_one_has_cuda_only(env, monkeypatch):
    index(env, monkeypatch, PLAIN, CPU)
    options, said, size = env.choose_torch("python", "torch==2.13.0")
    assert options == ["--index-url", env.CPU_INDEX] and "CPU build" in said and size == 190


def test_without_any_cpu_build_the_size_is_said_in_full(env, monkeypatch):
    index(env, monkeypatch, PLAIN, None)
    options, said, size = env.choose_torch("python", "torch==2.13.0")
    assert options == [] and "cannot use" in said and size == 800 + env.CUDA_LIBRARIES


def test_a_driver_gets_the_plain_build(env, monkeypatch):
    monkeypatch.setattr(env, "gpu_driver", lambda: "/dev/nvidiactl")
    index(env, monkeypatch, PLAIN, CPU)
    options, said, size = env.choose_torch("python", "torch==2.13.0")
    assert options == [] and "/dev/nvidiactl" in said and size == 800 + env.CUDA_LIBRARIES


def test_a_mac_gets_the_plain_build_without_cuda(env, monkeypatch):
    monkeypatch.setattr(env.sys, "platform", "darwin")
    index(env, monkeypatch, PLAIN, None)
    assert env.choose_torch("python", "torch==2.13.0")[2] == 800


def test_no_index_is_an_error_with_a_way_out(env, monkeypatch):
    index(env, monkeypatch, None, None)
    with pytest.raises(env.Failed, match="instead: "):
        env.choose_torch("python", "torch==2.13.0")


def test_a_torch_that_is_there_is_kept_and_pinned(env, monkeypatch, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.8.1+cu129'")
    (tmp_path / "torch-2.8.1.dist-info").mkdir()  # as PyPI's build has it: pip would find no 2.8.1+cu129
    (tmp_path / "torch-2.8.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.8.1\n"
    )
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.4.6\ntorch==2.13.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(env, "pip", lambda *a: pytest.fail("nothing is to be installed"))
    assert env.torch_of(sys.executable) == ("2.8.1", str(tmp_path))
    kept = env.install_torch(sys.executable, sys.executable, str(tmp_path), str(constraints))
    assert Path(kept).read_text() == "numpy==2.4.6\ntorch==2.8.1\n"


def test_one_of_the_callers_python_is_seen_through_a_path_file(env, monkeypatch, tmp_path):
    constraints = tmp_path / "c.txt"
    constraints.write_text("torch==2.13.0\n")
    monkeypatch.setattr(
        env, "torch_of", lambda python: ("2.9.0", "/elsewhere/site-packages") if python == "base" else None
    )
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: str(tmp_path))
    env.install_torch("inside", "base", str(tmp_path), str(constraints))
    assert (tmp_path / "microtome-torch.pth").read_text() == "/elsewhere/site-packages\n"


def test_one_that_is_too_old_is_not_kept(env, monkeypatch, tmp_path):
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: "2.5.1\n/x")
    assert env.torch_of("python") is None
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: None)
    assert env.torch_of("python") is None


def test_the_report_of_pip_is_read(env, monkeypatch):
    report = {"install": [{"metadata": {"version": "2.13.0+cpu"}, "download_info": {"url": "file:///x"}}]}
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: json.dumps(report))
    assert env.would_take("python", "torch") == ("2.13.0+cpu", "file:///x")
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: "")
    assert env.would_take("python", "torch") is None


def test_an_old_python_looks_for_a_newer_one(env, monkeypatch):
    monkeypatch.setattr(env.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(
        env.shutil, "which", lambda name: "/usr/bin/" + name if name == "python3.12" else None
    )
    monkeypatch.setattr(env, "answer", lambda command, timeout=0: "1")
    assert env.find_python() == "/usr/bin/python3.12"
    monkeypatch.setattr(env.shutil, "which", lambda name: None)
    with pytest.raises(env.Failed, match="too old"):
        env.find_python()


def test_sizes_of_local_files(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("environment", ROOT / "tools" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "a+b.whl").write_bytes(b"x" * 2_000_000)
    assert module.megabytes((tmp_path / "a+b.whl").as_uri()) == 2.0
    assert module.megabytes("file:///nowhere") is None
