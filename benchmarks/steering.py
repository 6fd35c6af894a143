"""Steered generation beside plain generation, a hook by hand and peers: promised is at most 5 % more."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers import peers_python

PROMPTS = ("The children in the park were", "Yesterday at work we talked", "She opened the door and saw", "My neighbour told me that he",
           "After the long day I went", "The story begins with a man", "He looked at the sky and", "In the evening they all sat")  # fmt: skip
NEW, LAYER, WIDTH, NORM = 48, 14, 576, 4.0
OWN = {"plain generation": "plain", "hook by hand": "hook", "microtome, no edit": "own", "microtome, steered": "steered"}  # fmt: skip
TRUTH = {"microtome, no edit": "plain generation"}
"""Whose tokens should be the same; of every other way the hook's."""


def steering(start: Callable[..., Any], turns: Callable[..., dict], folder: str, tokenizer: Any, repeats: int, peers: Path | None, small: bool) -> dict:  # fmt: skip
    """Every way to generate, turn by turn, for one prompt and for eight of one length, the direction at every token."""
    rows = [tokenizer(text).input_ids for text in PROMPTS]
    shortest = min(map(len, rows))
    generator = random.Random(0)
    drawn = [generator.gauss(0, 1) for _ in range(WIDTH)]
    size = sum(x * x for x in drawn) ** 0.5
    work = {"new": 6 if small else NEW, "layer": LAYER, "direction": [NORM * x / size for x in drawn]}
    team = {"own": start(sys.executable, "own_steering", folder)}
    ways = {name: ("own", job) for name, job in OWN.items()}
    out = {}
    try:
        if peers is not None:
            python = peers_python(peers)
            team["tl"], team["sv"] = (start(python, name, folder) for name in ("transformerlens", "steering_vectors_"))  # fmt: skip
            ways["steering-vectors"] = ("sv", "steered")
            ways["TransformerLens, plain generation"], ways["TransformerLens, steered"] = ("tl", "plain"), ("tl", "steered")  # fmt: skip
        for n in (1, len(rows)):
            print(f"  steering, {n} prompts", flush=True)
            told = work | {"ids": [r[:shortest] for r in rows[:n]]}
            out[str(n)] = turns({name: (team[who], job, told, 1.0) for name, (who, job) in ways.items()}, repeats)  # fmt: skip
    finally:
        for worker in team.values():
            worker.close()
    for found in out.values():
        for name, who in found.items():
            if "tokens" in who and name not in ("plain generation", "hook by hand"):
                other = TRUTH.get(name, "plain generation" if "plain" in name else "hook by hand")
                who["same_tokens"] = who["tokens"] == found[other]["tokens"]
    return out
