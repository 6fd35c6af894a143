"""What a cold process costs: import, help, load and first logits. Each figure is a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import time

PLAIN = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    "m = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.float32); t = AutoTokenizer.from_pretrained({folder!r})\n"
    "with torch.no_grad(): m(**t('Hello there', return_tensors='pt'))"
)
OWN = "import microtome as mt\nmt.load({folder!r}).run('Hello there')"
DEFAULT = "import microtome as mt\nmt.load('default').run('Hello there')"


def run(command: list[str]) -> float:
    """Seconds of one command.

    Raises
    ------
    CalledProcessError: it failed.
    """
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def commands(folder: str) -> dict[str, list[str]]:
    """What is measured, by name. `python` alone is the floor under each."""
    python = sys.executable
    return {
        "python": [python, "-c", "pass"],
        "import": [python, "-c", "import microtome"],
        "help": [python, "-m", "microtome", "--help"],
        "dissect --help": [python, "-m", "microtome", "dissect", "--help"],
        "plain cold": [python, "-c", PLAIN.format(folder=folder)],
        "own cold": [python, "-c", OWN.format(folder=folder)],
        "default cold": [python, "-c", DEFAULT],
    }
