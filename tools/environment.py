"""Make the project's environment: a virtual environment with Microtome and what it needs, pinned.

Run by `make`; needs nothing but Python (any 3.x to be told what is missing, 3.11 or newer to do it). It never
changes the environment it is started from. What torch it takes, and why: docs/decisions/0006-environment.md.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

OLDEST = (3, 11)
OLDEST_TORCH = (2, 6)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OTHERS = {"": 245, "dev": 345}  # MB of everything but torch, as measured on Linux x86_64
CUDA_LIBRARIES = 2500  # MB that the plain Linux build of torch pulls in
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Failed(Exception):
    """What, why, instead: as the package's own errors."""

    def __init__(self, what, why, instead):
        super().__init__("error: {}\n  why:     {}\n  instead: {}".format(what, why, instead))


def say(text):
    """One line of what is going on."""
    print("environment: " + text, flush=True)


def answer(command, timeout=120):
    """The stdout of a command, None when it fails or is not there."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def find_python():
    """An interpreter that is new enough: this one, else the newest on the path."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for minor in range(20, OLDEST[1] - 1, -1):
        found = shutil.which("python3.{}".format(minor))
        if found and answer([found, "-c", "print(1)"]) == "1":
            return found
    raise Failed(
        "Python {}.{} is too old".format(*sys.version_info[:2]),
        "Microtome needs {}.{} or newer and none is on the path".format(*OLDEST),
        "install one, or name it: make PYTHON=/path/to/python3.12",
    )


def make_venv(python, venv):
    """The environment's interpreter; the environment is made if it is not there or does not run."""
    inside = os.path.join(venv, "bin", "python")
    if answer([inside, "-m", "pip", "--version"]) is not None:
        return inside
    shutil.rmtree(venv, ignore_errors=True)
    say("making {} with {}".format(venv, python))
    made = answer([python, "-m", "venv", venv], 300) is not None
    if not made and shutil.which("uv"):  # a Python without ensurepip, as Debian's without python3-venv
        made = answer(["uv", "venv", "--seed", "--python", python, venv], 300) is not None
    if not made or answer([inside, "-m", "pip", "--version"]) is None:
        shutil.rmtree(venv, ignore_errors=True)
        raise Failed(
            "no virtual environment could be made in {}".format(venv),
            "{} has no venv or ensurepip, and uv is not installed or failed".format(python),
            "install Debian's python3-venv, or uv, or name another interpreter: make PYTHON=...",
        )
    return inside


def torch_of(python):
    """(version, folder) of the torch that an interpreter can import, None where it cannot or it is too old.

    The version is the one that pip knows: PyPI's build says 2.13.0 to pip and 2.13.0+cu130 of itself.
    """
    code = (
        "import importlib.metadata as known, os, torch\n"
        "try: print(known.version('torch'))\n"
        "except known.PackageNotFoundError: print(torch.__version__)\n"
        "print(os.path.dirname(os.path.dirname(torch.__file__)))"
    )
    lines = (answer([python, "-c", code]) or "").splitlines()
    if len(lines) < 2:
        return None
    numbers = tuple(int(n) for n in re.findall(r"\d+", lines[-2])[:2])
    return (lines[-2], lines[-1]) if numbers >= OLDEST_TORCH else None


def gpu_driver():
    """What shows that an NVIDIA driver is here, "" where nothing does."""
    for path in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1"):
        if os.path.exists(path):
            return path
    return shutil.which("nvidia-smi") or ""


def would_take(python, requirement, options=()):
    """(version, url) of what pip would install, found without downloading it; None when it finds nothing."""
    command = [
        python,
        "-m",
        "pip",
        "install",
        "-qq",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
    ]
    found = answer([*command, *options, requirement], 180)
    try:
        item = json.loads(found or "")["install"][0]
    except (ValueError, KeyError, IndexError):
        return None
    return item["metadata"]["version"], item["download_info"]["url"]


def megabytes(url):
    """The size of a file behind a URL, None when nobody says."""
    parts = urllib.parse.urlsplit(url)
    try:
        if parts.scheme == "file":
            return os.path.getsize(urllib.request.url2pathname(parts.path)) / 1e6
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20) as answered:
            return int(answered.headers["Content-Length"]) / 1e6
    except (OSError, ValueError, TypeError, urllib.error.URLError):
        return None


def choose_torch(python, pin):
    """(options for pip, sentence, MB or None): the CPU build where no driver is found and it can be had."""
    plain = would_take(python, pin)
    intel_linux = sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")
    driver = gpu_driver()
    if plain is not None and (driver or not intel_linux or "+cpu" in plain[0]):
        why = "an NVIDIA driver is here ({})".format(driver) if driver else "the build for this machine"
        if not driver and "+cpu" in plain[0]:
            why = "the CPU build: no NVIDIA driver was found"
        extra = CUDA_LIBRARIES if driver and intel_linux and "+" not in plain[0] else 0
        size = megabytes(plain[1])
        return [], "torch {}, {}".format(plain[0], why), size + extra if size is not None else None
    if not driver and intel_linux:
        options = ["--index-url", CPU_INDEX, "--retries", "0", "--timeout", "15"]
        small = would_take(python, pin, options)
        if small is not None:
            said = "torch {}, the CPU build: no NVIDIA driver was found".format(small[0])
            return ["--index-url", CPU_INDEX], said, megabytes(small[1])
    if plain is None:
        raise Failed(
            "{} cannot be had".format(pin),
            "the package index that pip is configured for does not answer, or has no build for this Python ({})".format(
                platform.python_version()
            ),
            "check the network and `pip config list`, or name another interpreter: make PYTHON=...",
        )
    size = megabytes(plain[1])
    said = (
        "torch {} with CUDA libraries that this machine cannot use: the CPU build cannot be had here".format(
            plain[0]
        )
    )
    return [], said, size + CUDA_LIBRARIES if size is not None else None


def install_torch(python, base, venv, constraints):
    """Make torch importable in the environment; the path of the constraints to go on with."""
    with open(constraints, encoding="utf-8") as file:
        lines = file.read().splitlines()
    pin = next(line for line in lines if line.startswith("torch=="))
    own = torch_of(python)
    here = own or torch_of(base)
    if here is not None:
        version, folder = here
        say("keeping torch {} from {}".format(version, folder))
        if own is None:  # seen through a path file: nothing is copied, nothing there is changed
            site = answer([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            with open(os.path.join(site, "microtome-torch.pth"), "w", encoding="utf-8") as file:
                file.write(folder + "\n")
        kept = os.path.join(venv, "constraints.txt")
        with open(kept, "w", encoding="utf-8") as file:
            file.write("\n".join("torch==" + version if line == pin else line for line in lines) + "\n")
        return kept
    options, said, size = choose_torch(python, pin)
    say(said + (", {:.0f} MB".format(size) if size is not None else ", size not known"))
    pip(python, "install", *options, *(["--no-deps"] if options else []), "-c", constraints, pin)
    return constraints


def pip(python, *arguments):
    """Run pip with its errors on the screen."""
    if (
        subprocess.call(
            [python, "-m", "pip", "--disable-pip-version-check", arguments[0], "-q", *arguments[1:]]
        )
        != 0
    ):
        raise Failed(
            "pip {} failed".format(" ".join(arguments)),
            "its own message is above",
            "correct what it names and run make again: what is installed already is kept",
        )


def main():
    """Set the environment up and write the stamp that make looks at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", required=True)
    parser.add_argument("--stamp", required=True)
    parser.add_argument("--extra", default="", choices=sorted(OTHERS))
    given = parser.parse_args()
    began = time.time()
    base = find_python()
    python = make_venv(base, given.venv)
    constraints = os.path.join(ROOT, "constraints.txt")
    say("other packages: up to {} MB to download, a few minutes".format(OTHERS[given.extra]))
    constraints = install_torch(python, base, given.venv, constraints)
    target = "{}{}".format(ROOT, "[{}]".format(given.extra) if given.extra else "")
    pip(python, "install", "-c", constraints, "-e", target)
    said = answer([python, "-c", "import torch, transformers, microtome; print(torch.__version__)"])
    if said is None:
        raise Failed(
            "the new environment does not import microtome",
            "see above",
            "rm -r {} and make again".format(given.venv),
        )
    with open(given.stamp, "w", encoding="utf-8") as file:
        file.write("torch {}\n".format(said))
    say("ready in {:.0f} s: Python {}, torch {}".format(time.time() - began, platform.python_version(), said))


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(str(failure))
