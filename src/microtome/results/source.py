"""The hash of the code that made a number, so that what was measured of it can go out of date."""

from __future__ import annotations

from typing import Any


def code_hash(function: Any) -> str:
    """Hex digest of the source that a function comes from: of its whole file, since helpers beside it count.

    Without a file (a notebook cell, a console): of its own source, else of its byte code and constants.
    """
    import inspect

    function = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(function)
        if path is not None:
            with open(path, encoding="utf-8") as stream:  # text mode: the same with Windows' line ends
                return _digest(stream.read())
    except (OSError, TypeError, UnicodeDecodeError):
        pass  # no file
    try:
        return _digest(inspect.getsource(function))
    except (OSError, TypeError):
        return _digest(_code_text(getattr(function, "__code__", None)) or repr(type(function)))


def _code_text(code: Any) -> str:
    """Byte code, names and constants, nested functions included: reprs of code objects hold addresses."""
    if code is None:
        return ""
    import inspect

    constants = [_code_text(c) if inspect.iscode(c) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _digest(text: str) -> str:
    import hashlib

    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
