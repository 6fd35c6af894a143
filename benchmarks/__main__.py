"""Measure everything in one run, contestants turn by turn, and write benchmarks/results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks import edges, examples, recording, startup, steering, store
from benchmarks.cases import cells, pairs, some, whole_layers
from benchmarks.peers import ALL, peers_python

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
LAYERS, HEADS = 30, 9
SOME = {1: 30, 4: 15, 16: 6}
"""Cells that a contestant of one forward per cell runs, by number of pairs."""


class Worker:
    """A contestant in a process of its own; idle while others are measured."""

    def __init__(self, python: str, name: str, *arguments: str) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.name = name
        self.process = subprocess.Popen([python, str(HERE / "worker.py"), name, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True, cwd=HERE.parent, env=environment)  # fmt: skip
        self._answer()

    def __call__(self, job: str, work: dict) -> dict:
        """One job; its answer. Raises SystemExit when the contestant is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"job": job, "work": work}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def turns(entries: dict, repeats: int) -> dict[str, dict]:
    """Every entry once to warm up, then `repeats` rounds in which each has its turn.

    entries: name -> (worker, job, work, cells of the whole map / cells run). Returns name -> median, spread, values.
    """
    kept: dict[str, list[dict]] = {name: [] for name in entries}
    for turn in range(repeats + 1):
        for name, (worker, job, work, _) in entries.items():
            if kept[name] and "failed" in kept[name][-1]:
                continue
            said = worker(job, work)
            if turn or "failed" in said:
                kept[name].append(said)
    out = {}
    for name, answers in kept.items():
        if "failed" in answers[-1]:
            out[name] = {"failed": answers[-1]["failed"]}
            continue
        scale = entries[name][3]
        seconds = [a["seconds"] * scale for a in answers]
        last = {k: v for k, v in answers[-1].items() if k != "seconds"}
        out[name] = {
            "seconds": statistics.median(seconds),
            "low": min(seconds),
            "high": max(seconds),
            "rounds": seconds,
            "scaled_by": scale,
            **last,
        }
        print(
            f"    {name:<34}{out[name]['seconds']:9.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})",
            flush=True,
        )
    return out


def sweeps(
    team: dict[str, Worker], tokenizer, n: int, shared: bool, kind: str, repeats: int, last: bool = False
) -> dict:
    """One sweep by everyone who can do it."""
    work = pairs(tokenizer, n, shared)
    every = cells(kind, LAYERS, HEADS, len(work["ids"][0]), last)
    work |= {"kind": kind, "every": every}
    few = some(every, SOME[n])
    loop = work | {"cells": few}
    layers = work | {
        "cells": whole_layers(every, {1: 10, 4: 5, 16: 2}[n] if kind == "resid" else {1: 3, 4: 1, 16: 1}[n])
    }
    lone, several = len(every) / len(few), len(every) / len(layers["cells"])
    entries = {
        "microtome": (team["own"], "sweep", work, 1.0),
        "batched loop": (team["plain"], "batched", layers, several),
        "plain loop": (team["plain"], "loop", loop, lone),
    }
    if shared and n < 16:  # pairs that differ from the first token skip next to nothing anyway
        entries["microtome, nothing skipped"] = (team["own"], "sweep", work | {"skip": False}, 1.0)
    if shared:
        entries["batched loop behind the prefix"] = (team["plain"], "batched_prefix", layers, several)
    if "transformerlens" in team:
        entries["TransformerLens"] = (team["transformerlens"], "loop", loop, lone)
    if "nnsight_" in team and kind == "resid":
        entries["nnsight"] = (team["nnsight_"], "loop", loop, lone)
    if kind == "resid" and shared:
        entries["microtome with controls"] = (team["own"], "controlled", work, 1.0)
    if kind == "resid":
        for name in [name for name in ("microtome", "microtome, nothing skipped") if name in entries]:
            skip = {"skip": "nothing" not in name}
            entries[f"products of {name}"] = (team["own"], "limit", work | skip, 1.0)
    found = turns(entries, repeats)
    for name in [name for name in found if name.startswith("products of ")]:
        found[name.removeprefix("products of ")]["limit"] = found.pop(name)
    found["largest difference from the plain loop"] = _gaps(found, every, few, layers["cells"])
    return {"pairs": n, "shared_prefix": shared, "kind": kind, "last": last, "tokens": len(work["ids"][0]), "same_tokens": work["shared"], "cells": len(every), "who": found}  # fmt: skip


def _gaps(found: dict, every: list, few: list, layers: list) -> dict[str, float]:
    """Largest difference of a patched metric, on the cells that both ran."""
    run = {"plain loop": few, "TransformerLens": few, "nnsight": few, "batched loop": layers, "batched loop behind the prefix": layers}  # fmt: skip
    values = {name: dict(zip(map(tuple, run.get(name, every)), row.pop("values"), strict=True)) for name, row in found.items() if "values" in row}  # fmt: skip
    truth = values["plain loop"]
    return {name: max((abs(v[c] - truth[c]) for c in truth if c in v), default=float("nan")) for name, v in values.items()}  # fmt: skip


def captures(team: dict[str, Worker], tokenizer, repeats: int) -> dict:
    """One forward with everything captured, beside a plain one."""
    work = {"ids": pairs(tokenizer, 16, True)["ids"]}
    entries = {
        "plain forward": (team["own"], "forward", work, 1.0),
        "nothing": (team["own"], "capture", work | {"kind": "nothing"}, 1.0),
        "every residual": (team["own"], "capture", work | {"kind": "resid"}, 1.0),
        "plain forward, eager attention": (team["own"], "forward", work | {"attention": "eager"}, 1.0),
        "every pattern": (team["own"], "capture", work | {"kind": "pattern"}, 1.0),
    }
    if "transformerlens" in team:
        entries["TransformerLens, every residual"] = (
            team["transformerlens"],
            "capture",
            work | {"kind": "resid"},
            1.0,
        )
        entries["TransformerLens, every pattern"] = (
            team["transformerlens"],
            "capture",
            work | {"kind": "pattern"},
            1.0,
        )
    if "nnsight_" in team:
        entries["nnsight, every residual"] = (team["nnsight_"], "capture", work, 1.0)
    return turns(entries, repeats)


def cold(folder: str, repeats: int) -> dict:
    """Fresh processes."""
    taken: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        for name, command in startup.commands(folder).items():
            seconds = startup.run(command)
            if turn:
                taken.setdefault(name, []).append(seconds)
    return {
        name: {"seconds": statistics.median(s), "low": min(s), "high": max(s)} for name, s in taken.items()
    }


def memory(folder: str, sizes: tuple[int, ...], budget: int) -> list[dict]:
    """Peak memory of a sweep above the loaded model."""
    rows = []
    for n in sizes:
        command = [sys.executable, "-m", "benchmarks.memory", folder, str(n), str(budget)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def probes(small: bool) -> dict:
    """Seconds of a sweep of probes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.probes", *(["small"] if small else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    print("    " + done.stdout.splitlines()[-1], flush=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def machine() -> dict:
    """Where this was measured."""
    names = [
        x.split(":")[1].strip()
        for x in Path("/proc/cpuinfo").read_text().splitlines()
        if x.startswith("model name")
    ]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version(),
            "torch": version("torch"), "transformers": version("transformers"), "peers": list(ALL)}  # fmt: skip


SWEEPS = ("capture", "resid", "heads")
PARTS = (*SWEEPS, "memory", "cold", "edges", "probes", "steering", "store", "examples", "record")


def lone(given: argparse.Namespace, folder: str, tokenizer) -> dict[str, Callable[[], dict]]:
    """The parts that stand alone: name -> what measures it and returns what goes into the file."""
    n, small = given.repeats, given.small
    peers = None if given.no_peers else given.peers
    return {
        "cold": lambda: {"cold": cold(folder, n)},
        "memory": lambda: {"memory": memory(folder, (4, 16, 64), 64 << 20)},
        "probes": lambda: {"probes": probes(small)},
        "edges": lambda: {
            "edge_memory": edges.memory(folder),
            "edges": edges.edges(Worker, turns, folder, tokenizer, n, peers and peers_python(peers)),
        },
        "steering": lambda: {"steering": steering.steering(Worker, turns, folder, tokenizer, n, peers, small)},
        "store": lambda: {
            "store": store.store(Worker, turns, folder, n, small),
            "store_beside": store.beside(Worker, turns, folder, n, peers, small),
            "store_memory": store.memory(small),
        },
        "examples": lambda: {
            "examples": examples.examples(Worker, turns, folder, n, peers, small),
            "examples_memory": examples.memory(small),
        },
        "record": lambda: {"record": recording.measure(small)},
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    import torch

    import microtome as mt
    from microtome.model.load import load_module

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out")
    parser.add_argument(
        "--peers", type=Path, default=HERE.parent / ".venv-peers", help="the peers' environment"
    )
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--pairs", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--small", action="store_true", help="tiny sizes of probes, steering, store, examples and record, to try the machinery; needs --out")  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.small and given.out == RESULTS:
        parser.error("--small measures nothing worth keeping: name another file with --out")
    begun = time.time()
    loaded = load_module("default")
    folder, tokenizer = str(loaded.hf.config._name_or_path), loaded.tokenizer
    own, out = sys.executable, json.loads(given.out.read_text()) if given.out.exists() else {}
    out |= {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "microtome": mt.__version__, "machine": machine(), "threads": torch.get_num_threads(), "repeats": given.repeats}  # fmt: skip
    del loaded
    failed = []
    for name, measure in lone(given, folder, tokenizer).items():
        if name not in given.only:
            continue
        print(name, flush=True)
        try:
            out |= measure()
        except (Exception, SystemExit) as error:  # noqa: BLE001  a part that fails does not take the others with it
            failed.append(f"{name}: {type(error).__name__}: {error}")
            print(f"  failed: {failed[-1]}", flush=True)
        given.out.write_text(json.dumps(out, indent=1) + "\n")
    if {*SWEEPS} & {*given.only}:
        compare(given, folder, tokenizer, own, out)
    print(f"written to {given.out} after {time.time() - begun:.0f} s")
    if failed:
        raise SystemExit("\n".join(failed))


def compare(given: argparse.Namespace, folder: str, tokenizer, own: str, out: dict) -> None:
    """Captures and sweeps, by contestants that stay loaded."""
    team = {"own": Worker(own, "own", folder), "plain": Worker(own, "plain", folder)}
    try:
        if not given.no_peers:
            python = peers_python(given.peers)
            team |= {name: Worker(python, name, folder) for name in ("transformerlens", "nnsight_")}
        if "capture" in given.only:
            print("capture", flush=True)
            out["capture"] = captures(team, tokenizer, 4 * given.repeats)
        jobs = (
            [("resid", n, shared, False) for shared in (True, False) for n in given.pairs]
            if "resid" in given.only
            else []
        )
        jobs += [("heads", 1, True, False), ("heads", 4, True, True)] if "heads" in given.only else []
        for kind, n, shared, last in jobs:
            print(
                f"{kind}, {n} pairs, {'shared prefix' if shared else 'differ from the first token'}{', last position' if last else ''}",
                flush=True,
            )
            row = sweeps(team, tokenizer, n, shared, kind, given.repeats, last)
            key = f"{kind} {n} {'shared' if shared else 'first'}{' last' if last else ''}"
            out.setdefault("sweeps", {})[key] = row
            given.out.write_text(json.dumps(out, indent=1) + "\n")
    finally:
        for worker in team.values():
            worker.close()
    given.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
