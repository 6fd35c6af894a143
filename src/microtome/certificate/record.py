"""What a certificate says, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from microtome.errors import ModelError


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    `observed` is the largest error found and `tolerance` what rounding explains, both relative to the size of the
    numbers compared unless `unit` says otherwise. passed is None where the check did not run; `n` counts the
    comparisons (layers or prompts).
    """

    name: str
    rules_out: str
    passed: bool | None
    observed: float | None = None
    tolerance: float | None = None
    unit: str = "relative"
    n: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Lack:
    """A point that some layers do not have, with the reason. layers is None for points of the whole model."""

    point: str
    layers: tuple[int, ...] | None
    reason: str


@dataclass(frozen=True)
class Noise:
    """How far one forward moves when only the batch's shape changes: largest |difference| of any logit, in logits."""

    dtype: str
    attention: str
    shape: str
    logits: float


@dataclass(frozen=True)
class Certificate:
    """The checks of one loaded model.

    Attributes
    ----------
    family, model_type: what was certified; known is False for a family resolved by structure.
    numerics: dtype, attention implementation, device.
    checks: one row per check; lacks: what this model does not have and why; noise: the noise floor.
    """

    family: str
    model_type: str
    known: bool
    numerics: Mapping[str, str]
    checks: tuple[Check, ...]
    lacks: tuple[Lack, ...]
    noise: tuple[Noise, ...]

    @property
    def passed(self) -> bool:
        """True when no check failed (one that did not run does not count as failed)."""
        return all(c.passed is not False for c in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.passed is False)

    @property
    def noise_floor(self) -> float:
        """The largest noise of the model's own attention implementation, in logits."""
        own = [n.logits for n in self.noise if n.attention == self.numerics["attention"]]
        return max(own, default=0.0)

    def check(self, name: str) -> Check:
        """One row by its name.

        Raises
        ------
        ModelError: no such row.
        """
        for row in self.checks:
            if row.name == name:
                return row
        raise ModelError(
            f"the certificate has no check {name!r}",
            why="each check has a name",
            instead=f"one of: {', '.join(c.name for c in self.checks)}",
        )

    def table(self) -> list[tuple[str, str, str, str, str]]:
        """Rows for printing: check, verdict, observed, tolerance, what it rules out or what was found."""
        rows = []
        for c in self.checks:
            verdict = {True: "passed", False: "FAILED", None: "did not run"}[c.passed]
            observed = "" if c.observed is None else f"{c.observed:.1e}"
            tolerance = "" if c.tolerance is None else f"{c.tolerance:.1e} {c.unit}"
            rows.append((c.name, verdict, observed, tolerance, c.detail or c.rules_out))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The whole certificate as JSON-able data."""
        out = asdict(self)
        out["numerics"] = dict(self.numerics)
        return {**out, "passed": self.passed, "noise_floor": self.noise_floor}
