"""Hygiene: whatever a test does, the shared models and the global random state are left as they were."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

# what a developer runs in the clone is recorded there (the README's first command); tests leave that record alone
os.environ["MICROTOME_CEILING"] = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def hygiene(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no observer and no hook left, parameters, attention implementation, requires_grad, training
    mode, grad mode and random states as before. Models are checked when the test asked tests/tiny.py for them."""
    if "tiny" not in vars(request.module):
        yield
        _nobody_listens()
        return
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    import torch

    import tiny

    tiny.USED.clear()
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    yield
    _nobody_listens()
    assert torch.is_grad_enabled() == grad
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    _same_numpy(legacy)
    for name, hf, before in tiny.USED.values():
        left = [
            path
            for path, m in hf.named_modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
            if hooks
        ]
        assert not left, f"{name}: hooks left on {left}"
        assert tiny.state(hf) == before, name


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests that sync very often and never cut the power."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 500_000_000):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server, started when the first test asks for it."""
    import lab_servers

    with lab_servers.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def lab(request: pytest.FixtureRequest, fast_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A project whose record is a SQLite file, and one whose record is in PostgreSQL."""
    import lab_servers
    import lab_tools

    if request.param == "sqlite":
        yield lab_tools.project(fast_path)
        return
    with lab_servers.database(request.getfixturevalue("postgres")) as url:
        monkeypatch.setenv("MICROTOME_LAB_URL", url)  # a password may be in it
        yield lab_tools.project(fast_path)


def _nobody_listens() -> None:
    """A study that a test left open would hear the tests after it."""
    if events := sys.modules.get("microtome.results.events"):
        assert events._observers == ()


def _same_numpy(before: tuple[object, ...]) -> None:
    after = np.random.get_state()  # noqa: NPY002
    assert after[0] == before[0] and np.array_equal(after[1], before[1]) and after[2:] == before[2:]
