"""What a technique declares of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TechniqueSpec:
    """What a technique declares of itself.

    Parameters
    ----------
    name, version: a change that moves numbers is a new version.
    controls: names of the controls that every result of it carries (run or, with a reason, not run).
    mandatory: those of them without which its verdict is "unchecked".
    figure: "module:function", called with a Result to draw it; "" for none.
    random: whether it draws, and so takes a seed.
    code_hash: of the source file it was defined in; a calibration of other code does not count.
    """

    name: str
    version: str
    controls: tuple[str, ...]
    mandatory: tuple[str, ...]
    figure: str
    random: bool
    code_hash: str
