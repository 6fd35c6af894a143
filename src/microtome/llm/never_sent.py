"""What must never be sent to a model: files that hold keys, and texts with what looks like one."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

__all__ = ["secret_file", "secret_lines"]

_NAMES = re.compile(
    r".*\.env(\..+)?|.*\.(pem|key|p12|pfx|jks|keystore|kdbx|ovpn)|id_(rsa|dsa|ecdsa|ed25519).*|\.?netrc|\.pgpass|\.npmrc|\.pypirc|"
    r"\.git-credentials|credentials(\..+)?|secrets?(\.(json|ya?ml|toml|ini|txt))?|\.htpasswd",
    re.I,
)
_FOLDERS = frozenset({".ssh", ".gnupg", ".aws"})
_KEYS = (
    re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    re.compile(r"(?<![\w-])(?:sk|pk|rk)[-_](?:[A-Za-z]+[-_])*[A-Za-z0-9_-]{16,}"),
    re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|xox[abprs]-[\w-]{10,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{30,})"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{30,}"),
    re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{5,}"),
    re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]{3,}@", re.I),
    re.compile(r"""^\s*key\s*=\s*["'](?=\S*\d)(?=\S*[A-Za-z])[!-~]{8,}["']\s*(#|$)"""),  # as llm.toml has it
    re.compile(r"(?i)\bbearer\s+[\w.~+/-]{16,}"),
    re.compile(
        r"""(?ix)(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|password|passwd)\b["']?\s*[:=]\s*["']?
        (?=[^\s"']*\d)(?=[^\s"']*[a-z])[^\s"'(){}\[\],;]{12,}"""
    ),
)  # fmt: skip


def secret_file(path: str | Path) -> str:
    """Why a file is never sent, by its name and place; "" for one that may be. The settings of a model (`llm.toml`, in a project or at
    home) are among them: they hold its key."""
    parts = PurePath(path).parts
    name = parts[-1] if parts else ""
    if name.lower() == "llm.toml":
        return "it holds the key of a model"
    if any(part.lower() in _FOLDERS for part in parts[:-1]):
        return "its folder holds keys"
    return "files of this name hold keys" if _NAMES.fullmatch(name) else ""


def secret_lines(text: str) -> tuple[int, ...]:
    """Lines (from 1) that hold what looks like a key: known prefixes, private keys, a password beside its name or in an address."""
    return tuple(i for i, line in enumerate(text.splitlines(), 1) if any(key.search(line) for key in _KEYS))
