"""The store against a plain forward stopped at the same layer, by number of sites; against peers; its peak memory."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.memory import peak
from benchmarks.peers import nnterp_python, peers_python

BATCH, LAST, MIDDLE = 2048, 29, 12
ITEMS, BLOCKS, FEW = 1000, 48, 200
MEMORY = (20_000, 100_000, 1_000_000)
SMALL = {"items": 30, "blocks": 3, "few": 12, "tokens": (3_000, 12_000)}
"""Sizes to try the machinery with; what they measure means nothing."""


def rows_of(n: int, low: int, high: int) -> list[list[int]]:
    """Random token ids: what they are does not matter to the time."""
    generator = random.Random(0)
    return [[generator.randrange(100, 40_000) for _ in range(generator.randint(low, high))] for _ in range(n)]


def alike(rows: list[list[int]], tokens: int) -> Iterator[list[list[int]]]:
    """Batches of rows of one length, of at most so many tokens."""
    by_length: dict[int, list[list[int]]] = {}
    for row in sorted(rows, key=len):
        by_length.setdefault(len(row), []).append(row)
    for length, group in by_length.items():
        size = max(1, tokens // length)
        yield from (group[k : k + size] for k in range(0, len(group), size))


def cases(items: int = ITEMS, blocks: int = BLOCKS) -> dict[str, dict]:
    """What is captured: statements at the last token and at three, whole blocks at all; each with few sites and many."""
    short, long = rows_of(items, 8, 24), rows_of(blocks, 128, 128)
    streams = ["L0.resid_pre", "L*.resid_post"]
    parts = [*streams, "L*.attn_out", "L*.mlp_out", f"L{LAST}.resid_mid", f"L{LAST}.ln2_out"]
    return {
        "statements, last token, 1 site": {"rows": short, "sites": [f"L{MIDDLE}.resid_post@-1"], "layer": MIDDLE},
        "statements, last token, 31 sites": {"rows": short, "sites": [f"{s}@-1" for s in streams], "layer": LAST},
        "statements, three tokens, 93 sites": {"rows": short, "sites": [f"{s}@{p}" for p in (0, 2, -1) for s in streams], "layer": LAST},
        "blocks, all tokens, 1 site": {"rows": long, "sites": [f"L{MIDDLE}.resid_post"], "layer": MIDDLE},
        "blocks, all tokens, 31 sites": {"rows": long, "sites": streams, "layer": LAST},
        "blocks, all tokens, 93 sites": {"rows": long, "sites": parts, "layer": LAST},
    }  # fmt: skip


def store(start: Callable[..., Any], turns: Callable[..., dict], folder: str, repeats: int, small: bool) -> dict:  # fmt: skip
    """Every case beside its plain forward."""
    items, blocks = (SMALL["items"], SMALL["blocks"]) if small else (ITEMS, BLOCKS)
    own, plain = start(sys.executable, "own_store", folder), start(sys.executable, "plain_store", folder)
    out: dict[str, Any] = {}
    try:
        for name, case in cases(items, blocks).items():
            print(f"  {name}", flush=True)
            work = case | {"batch": BATCH}
            out[name] = turns({"plain forward, stopped": (plain, "stopped", work, 1.0), "store": (own, "capture", work, 1.0)}, repeats)  # fmt: skip
    finally:
        own.close(), plain.close()
    return out


def beside(start: Callable[..., Any], turns: Callable[..., dict], folder: str, repeats: int, peers: Path | None, small: bool) -> dict:  # fmt: skip
    """Last tokens of every layer, by everyone who can; the largest difference of the means from hooks by hand."""
    rows = rows_of(SMALL["few"] if small else FEW, 8, 24)
    work = {"rows": rows, "alike": list(alike(rows, BATCH)), "batch": BATCH, "layer": LAST, "sites": ["L*.resid_post@-1"]}  # fmt: skip
    team = {"own": start(sys.executable, "own_store", folder), "plain": start(sys.executable, "plain_store", folder)}  # fmt: skip
    entries = {
        "plain forward": (team["plain"], "stopped", work, 1.0),
        "hooks and lists by hand, saved": (team["plain"], "hooked", work, 1.0),
        "microtome, to disk": (team["own"], "capture", work, 1.0),
        "microtome, in memory": (team["own"], "in_memory", work, 1.0),
    }
    try:
        if peers is not None:
            team["tl"] = start(peers_python(peers), "transformerlens", folder)
            team["nnterp"] = start(nnterp_python(peers), "nnterp_", folder)
            entries["TransformerLens"] = (team["tl"], "last_tokens", work, 1.0)
            entries["nnterp"] = (team["nnterp"], "last_tokens", work, 1.0)
        print(f"  last tokens of {len(rows)} statements", flush=True)
        found = turns(entries, repeats)
    finally:
        for worker in team.values():
            worker.close()
    truth = found["hooks and lists by hand, saved"]["values"]
    for who in found.values():
        if values := who.pop("values", None):
            who["gap"] = max(abs(a - b) for a, b in zip(values, truth, strict=True)) / max(map(abs, truth))
    return {"statements": len(rows), "who": found}


def memory(small: bool) -> dict[str, dict[str, float]]:
    """Peak memory by number of tokens, on a random model of two layers, each in a process of its own."""
    return {str(n): peak("store", n) for n in (SMALL["tokens"] if small else MEMORY)}
