"""Runs jobs, here or in worker processes, and keeps each answer the moment it is there.

The folder holds one file, `marks.jsonl`, one line of JSON per finished job. A line is found again by what was run: setting,
case, the technique's version and code, and the code of the zoo. So a run that was interrupted, or killed in the middle of a
line, goes on where it stopped and ends with the same table, and a line of changed code is never used.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import MicrotomeError, ResultError
from microtome.results import registry
from microtome.results.calibration import technique_hash
from microtome.zoo.calibrate.measures import mark
from microtome.zoo.calibrate.plan import Job
from microtome.zoo.calibrate.truths import truth

if TYPE_CHECKING:
    from concurrent.futures import Future

SEED = 0
MARKS = "marks.jsonl"
Line = Mapping[str, Any]


def calibrate(
    jobs: Sequence[Job],
    folder: str | Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Line]:
    """Run what is not yet in the folder; the lines of all jobs in their order.

    workers: processes; 1 runs in this one. The numbers do not depend on it: every job has its own seeds and one thread.
    progress: called with (done, total, what was done last).

    Raises
    ------
    ResultError: the folder cannot be written to, or holds something else under that name. KeyboardInterrupt: with a note
    on what is kept.
    """
    path = _place(folder)
    known = _read(path)
    keys = [key(job) for job in jobs]
    left = [(k, job) for k, job in zip(keys, jobs, strict=True) if k not in known]
    done = len(jobs) - len(left)
    say = progress or (lambda *_: None)
    say(done, len(jobs), "")
    try:
        with path.open("a", encoding="utf-8") as file:
            for line in _run(left, workers):
                file.write(json.dumps(line, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
                known[line["key"]] = line
                done += 1
                say(done, len(jobs), line["job"])
    except KeyboardInterrupt as stop:
        stop.add_note(f"{done} of {len(jobs)} jobs are kept in {path}; the same command goes on from there")
        raise
    return [known[k] for k in keys]


def key(job: Job) -> str:
    """What a finished job is found by."""
    version, code = identity(job.setting.technique)
    return " | ".join((job.id, f"version {version}", code, protocol()))


@cache
def identity(technique: str) -> tuple[str, str]:
    """(version, code hash) of a technique."""
    spec = registry.get("techniques", technique).spec
    return str(spec.version), technique_hash(technique)


@cache
def protocol() -> str:
    """Digest of the zoo's own code: specimens, truths, adapters and marks."""
    import hashlib

    total = hashlib.blake2b(digest_size=8)
    home = Path(__file__).parents[1]
    for file in sorted(home.rglob("*.py")):
        total.update(f"{file.relative_to(home).as_posix()}\n{file.read_text(encoding='utf-8')}".encode())
    return total.hexdigest()


def one(job: Job) -> dict[str, Any]:
    """The line of one job: its mark, or the reason why the technique refused this specimen."""
    setting, case = job.setting, job.case
    version, code = identity(setting.technique)
    line: dict[str, Any] = {"key": key(job), "job": job.id, "technique": setting.technique, "version": version, "code_hash": code,
                            "setting": setting.name, "case": case.id, "name": case.name, "tier": case.tier}  # fmt: skip
    z = case.build()
    began = time.perf_counter()
    try:
        made = mark(setting.run(z, SEED), truth(z, setting.kind, setting.ablation))
        line["mark"] = made.data()
    except MicrotomeError as error:
        line["refused"] = f"{error.what}: {error.why}" if error.why else error.what
    line["seconds"] = round(time.perf_counter() - began, 3)
    return line


def _run(left: Sequence[tuple[str, Job]], workers: int) -> Iterator[dict[str, Any]]:
    if workers < 2 or len(left) < 2:
        from microtome.zoo.training import one_thread

        with one_thread():
            for _, job in left:
                yield one(job)
        return
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    waiting: set[Future[dict[str, Any]]] = set()
    queue = iter(left)
    try:
        waiting |= {pool.submit(one, job) for _, job in _take(queue, 2 * workers)}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
            waiting |= {pool.submit(one, job) for _, job in _take(queue, len(ready))}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _take(queue: Iterator[Any], n: int) -> Iterator[Any]:
    for _ in range(n):
        try:
            yield next(queue)
        except StopIteration:
            return


def _begin() -> None:
    """In a worker: one thread, Ctrl-C is the parent's affair, and it ends when its parent is killed."""
    import multiprocessing
    import signal
    import threading

    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _place(folder: str | Path) -> Path:
    path = Path(folder).expanduser() / MARKS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise ResultError(
            f"{path} cannot be written to", why=error.strerror or str(error), instead="another --out"
        ) from error
    return path


def _read(path: Path) -> dict[str, Line]:
    """Finished jobs by their key. A line that was cut off is dropped from the file: its job runs again."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines = lines[:-1]
        kept = path.with_suffix(".new")
        kept.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(kept, path)
    out: dict[str, Line] = {}
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            out[found["key"]] = found
        except (ValueError, KeyError, TypeError) as error:
            raise ResultError(f"line {number} of {path} is no finished job", why=f"{type(error).__name__}: {error}",
                              instead="another --out, or take that line out") from error  # fmt: skip
    return out
