"""The peers' environments, made when they are not there: nothing of them is installed beside Microtome."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CONSTRAINTS = ["-c", str(Path(__file__).parent.parent / "constraints.txt")]
PEERS = ("transformer-lens==4.3.0", "nnsight==0.8.1")
LOOSE = "steering-vectors==0.12.2"
"""Asks for transformers below 5 and runs on 5: installed without its dependencies, which are there but for scikit-learn."""
BEHIND = ("nnterp==1.3.0", "nnsight==0.6.3")
"""nnterp does not import with nnsight 0.8.1: a second environment, which sees the first one's torch and transformers."""
ALL = (*PEERS, LOOSE, f"{BEHIND[0]} on {BEHIND[1]}")


def peers_python(venv: Path) -> str:
    """TransformerLens, nnsight and steering-vectors. Raises CalledProcessError: something cannot be installed."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        _pip(python, "torch==" + version("torch").split("+")[0])
        _pip(python, *CONSTRAINTS, *PEERS)
    if not any(_packages(venv).glob("steering_vectors-*")):
        _pip(python, *CONSTRAINTS, "scikit-learn")
        _pip(python, "--no-deps", LOOSE)
    return str(python)


def nnterp_python(venv: Path) -> str:
    """nnterp, in an environment beside the peers'. Raises CalledProcessError: something cannot be installed."""
    peers_python(venv)
    beside = venv.with_name(venv.name + "-nnterp")
    python = beside / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(beside)], check=True)
    if not any(_packages(beside).glob("nnterp-*")):
        (_packages(beside) / "peers.pth").write_text(f"{_packages(venv).resolve()}\n")
        _pip(python, *CONSTRAINTS, *BEHIND)
    return str(python)


def _pip(python: Path, *wanted: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)


def _packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python3*")) / "site-packages"
