"""Which process recorded something, whether it still lives, and what code and packages it had."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LOST", "Process", "called_from", "gone", "mine", "this"]

LOST = "its process ended without a word (killed, or the machine stopped)"
_COMMAND = 500  # characters of a command line that are kept
_DIFF = 1_000_000  # bytes of a diff that are kept
_GIT = 5.0  # seconds that git may take
_SAME = 2.0  # seconds by which two readings of one process's start may differ


@dataclass(frozen=True)
class Process:
    """A process as the record knows it; see the columns of the table `process`."""

    id: str
    host: str
    boot: str
    pid: int
    started: float
    command: str
    versions: str
    commit: str
    diff: bytes | None

    def row(self, diff_key: str | None) -> dict[str, Any]:
        """Values for the table; `diff_key` names the file of the diff."""
        kept = ("id", "host", "boot", "pid", "started", "command", "versions", "commit")
        return {**{name: getattr(self, name) for name in kept}, "heard_at": time.time(), "diff": diff_key}


def this(folder: Path) -> Process:
    """The process in which this is called, for a project in `folder`."""
    commit, diff = _git(folder)
    command = shlex.join(sys.argv)[:_COMMAND].encode("utf-8", "replace").decode()
    return Process(os.urandom(16).hex(), socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or 0.0,
                   command, json.dumps(_versions(), sort_keys=True), commit, diff)  # fmt: skip


def gone(host: str, boot: str, pid: int, started: float) -> bool | None:
    """Whether that process has ended; None when it ran on another machine, of which nothing can be told from here."""
    if host != socket.gethostname():
        return None
    if boot != _boot():
        return True
    now = _started(pid)
    return now is None or abs(now - started) > _SAME


def mine(host: str, boot: str, pid: int, started: float) -> bool:
    """Whether that process is this one."""
    return pid == os.getpid() and gone(host, boot, pid, started) is False


def called_from() -> str:
    """The place in the user's code from which Microtome was called: "file:line", a cell's number, or "" for none."""
    frame: Any = sys._getframe(1)
    while frame is not None and not _users(frame):
        frame = frame.f_back
    if frame is None:
        return ""
    name = frame.f_code.co_filename
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and ("ipykernel_" in name or name.startswith("<ipython-input")):
        # the number of the cell whose code this is: the shell's own counter may be at the next already
        told = shell.compile.format_code_name(name)
        number = re.search(r"\d+", told[1]) if told else None
        return f"cell {number.group() if number else '?'}, line {frame.f_lineno}"
    return f"{name}:{frame.f_lineno}"


def _users(frame: Any) -> bool:
    """Whether a frame is the user's code: neither ours nor an installed package's nor Python's own."""
    name = frame.f_code.co_filename
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] == "microtome" or name.startswith(
        "<frozen"
    ):
        return False
    return not any(name.startswith(root + os.sep) for root in _ROOTS)


_ROOTS = tuple(
    {path for key in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(key))}
)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return f"{psutil.boot_time():.0f}"


def _started(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _versions() -> dict[str, str]:
    """Every installed distribution as its folder is named: reading their metadata would take a hundred times as long."""
    found: dict[str, str] = {}
    for folder in sys.path:
        if folder and os.path.isdir(folder):
            for entry in os.scandir(folder):
                if entry.name.endswith(".dist-info"):
                    name, _, version = entry.name[: -len(".dist-info")].partition("-")
                    found.setdefault(name.lower(), version)
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _git(folder: Path) -> tuple[str, bytes | None]:
    """(commit, what differs from it) of the repository that a folder is in."""
    if not any((up / ".git").exists() for up in (folder, *folder.parents)) or shutil.which("git") is None:
        return "", None
    commit = _ask(folder, "rev-parse", "HEAD")
    if commit is None:
        return "", None
    diff = _ask(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or b""
    cut = b"\n(cut here: it is longer)\n" if len(diff) > _DIFF else b""
    return commit.decode("ascii", "replace").strip(), (diff[:_DIFF] + cut) or None


def _ask(folder: Path, *words: str) -> bytes | None:
    # the repository's own settings must not run anything
    safe = ["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    command = ["git", "-C", str(folder), *safe, "--no-optional-locks", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_GIT, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
