"""Edges: attribution of all, circuits of some, exact sweeps and searches; as multiples of one plain pass of the same prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import pairs

HERE = Path(__file__).parent
PAIRS, STEPS = 32, 8
EVERY = 6
"""The exact sweep runs every sixth edge of a pair with a shared prefix, every 24th of one without."""
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
PEER_PAIRS = 4
FROM = 26
"""ACDC walks the edges into layers from here on: a plain walk of all 70,651 would take days."""


def work_of(tokenizer: Any, n: int, first: bool = False) -> dict:
    """n pairs of 16 names' sentences, repeated where there are more; first: they differ from the first token on."""
    few = pairs(tokenizer, min(n, 16), shared=not first)
    times = -(-n // 16)
    return {k: v * times if isinstance(v, list) else v for k, v in few.items()}


def edges(start: Callable[..., Any], turns: Callable[..., dict], folder: str, tokenizer: Any, repeats: int, peers: str | None) -> dict:  # fmt: skip
    """Everything about edges. start: (python, contestant, folder) -> worker; turns: see `benchmarks.__main__.turns`."""
    out: dict[str, Any] = {} if peers is None else {"peer": _peer(start, turns, peers, repeats)}
    own, plain = start(sys.executable, "own_edges", folder), start(sys.executable, "plain_edges", folder)
    try:
        out |= {
            f"scores, {_kind(first)}": _scores(own, plain, work_of(tokenizer, PAIRS, first), turns, repeats)
            for first in (False, True)
        }  # fmt: skip
        work = work_of(tokenizer, PAIRS)
        out["circuits"] = turns(
            {
                "one plain forward": (plain, "forward", work, 1.0),
                "one circuit": (own, "circuits", work | {"sizes": [0.01]}, 1.0),
                "ten circuits": (own, "circuits", work | {"sizes": SIZES}, 1.0),
            },
            repeats,
        )
        for first, every in ((False, EVERY), (True, 4 * EVERY)):
            one = work_of(tokenizer, 1, first)
            out[f"exact, {_kind(first)}"] = turns(
                {
                    "one plain forward": (plain, "forward", one | {"times": 10}, 0.1),
                    "all edges, one at a time": (own, "exact", one | {"every": every}, 1.0),
                },
                max(1, repeats // 2),
            )
        out["acdc"] = own("acdc", work_of(tokenizer, 4) | {"from": FROM, "threshold": 0.01})
    finally:
        own.close(), plain.close()
    return out


def _kind(first: bool) -> str:
    return "differ from the first token" if first else "share a prefix"


def _scores(own: Any, plain: Any, work: dict, turns: Callable[..., dict], repeats: int) -> dict:
    steps = {"steps": STEPS}
    found = turns(
        {
            "one plain forward and backward": (plain, "forward_backward", work, 1.0),
            "gradient": (own, "scores", work | {"how": "gradient"}, 1.0),
            "integrated gradients, 8 steps": (own, "scores", work | {"how": "ig-inputs"} | steps, 1.0),
        },
        repeats,
    )
    by_hand = plain("eap_ig", work | steps)  # a minute and a half: once
    found["the same by hand"] = by_hand | {"low": by_hand["seconds"], "high": by_hand["seconds"], "rounds": [by_hand["seconds"]]}  # fmt: skip
    mine, theirs = (found[k].pop("values") for k in ("integrated gradients, 8 steps", "the same by hand"))
    found["gradient"].pop("values")
    size = max(map(abs, theirs))
    return {"who": found, "edges": len(mine), "gap": max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / size}  # fmt: skip


def _peer(start: Callable[..., Any], turns: Callable[..., dict], python: str, repeats: int) -> dict:
    """Beside TransformerLens on a model that it accepts: a random one of GPT-2's shape."""
    with tempfile.TemporaryDirectory() as name:
        tokenizer = gpt2(Path(name))
        own, peer = start(sys.executable, "own_edges", name), start(python, "transformerlens", name)
        try:
            work = work_of(tokenizer, PEER_PAIRS)
            found = {}
            for of in ("node", "edge"):
                each = work | {"of": of}
                found[of] = turns(
                    {
                        "microtome": (own, "attribution", each, 1.0),
                        "TransformerLens": (peer, "attribution", each, 1.0),
                    },
                    repeats,
                )
        finally:
            own.close(), peer.close()
    for row in found.values():
        mine, theirs = (row[k].pop("values", None) for k in ("microtome", "TransformerLens"))
        if mine and theirs:
            size = max(abs(v) for v in theirs.values())
            row["gap"] = max(abs(mine[k] - theirs[k]) for k in theirs) / size
            row["compared"] = len(theirs)
    return found


def gpt2(folder: Path) -> Any:
    """A random model of GPT-2's shape with SmolLM2's tokenizer, saved; returns the tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from microtome.model.load import load_module

    tokenizer = load_module("default").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in (
            model.parameters()
        ):  # of the size that training gives: at the small start every head does nothing
            if p.dim() == 2:
                p.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def memory(folder: str, n: int = 128) -> dict:
    """Peak memory of scores of n pairs above the loaded model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", folder, str(n), "edges"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found
