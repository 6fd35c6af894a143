"""Every Python fence of the README, the guide and the tutorial runs as it stands. Long where it loads the embedded model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("index", "circuits", "learning"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
FENCES = [
    pytest.param(text, id=f"{page.name}-{i}", marks=() if "mt.load(" not in text else pytest.mark.long)
    for page in PAGES
    for i, text in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("text", FENCES)
def test_the_fence_runs(text: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:microtome", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_the_quickstart_finds_something_and_leaves_files(tmp_path: Path) -> None:
    text = FENCE.search((ROOT / "README.md").read_text(encoding="utf-8"))[1]
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "torch.Size([1, " in done.stdout and "supported" in done.stdout
    assert (tmp_path / "runs" / "ioi-residual" / "result.json").exists()
