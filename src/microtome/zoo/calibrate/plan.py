"""Which specimens are looked at, and which settings run on them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from microtome.errors import ModelError
from microtome.results.arguments import ArgumentError, suggest
from microtome.zoo.calibrate.adapters import SILENT, Setting, settings

if TYPE_CHECKING:
    from microtome.zoo.specimen import Specimen

QUICK = ("hist", "shift")
"""Programs of the part that takes a minute, the smallest with decoys; slow settings run on the first of them."""
DECOYS = 2
"""Every model that takes decoys is looked at once without and this many times with them, from different seeds."""
BIG = ("shuffle_dyck2",)
"""Of 1,100 edges without decoys and 3,000 with them: looked at without, and by no slow setting."""


@dataclass(frozen=True)
class Case:
    """One specimen, not built yet. id: "reverse/0", "reverse+decoys/1". slow: whether slow settings run on it: one variant of each."""

    name: str
    tier: str
    seed: int
    decoys: bool = False
    slow: bool = True

    @property
    def id(self) -> str:
        """Its name among all cases."""
        return f"{self.name}{'+decoys' if self.decoys else ''}/{self.seed}"

    def build(self) -> Specimen:
        """The specimen, from a small cache: settings on one case come one after the other."""
        return _built(self)


@lru_cache(maxsize=2)
def _built(case: Case) -> Specimen:
    from microtome.zoo.catalog import build
    from microtome.zoo.decoys import Decoys

    options: dict[str, Any] = {"decoys": Decoys()} if case.decoys else {}
    return build(case.name, seed=case.seed, **options)


@dataclass(frozen=True)
class Job:
    """One setting on one case."""

    setting: Setting
    case: Case

    @property
    def id(self) -> str:
        """Its name among all jobs."""
        return f"{self.setting.id} on {self.case.id}"


def cases(models: Sequence[str] = (), *, quick: bool = False) -> tuple[Case, ...]:
    """The fixed set of specimens: of the zoo's whole list, or of some of its names.

    Raises
    ------
    ModelError: a name that the zoo does not have (names the nearest).
    """
    from microtome.zoo.catalog import entries

    known = entries()
    for name in models:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ModelError(f"the zoo has no {name!r}", why=f"it has {', '.join(known)}",
                             instead=f"did you mean {near[0]!r}?" if near else "choose one of them")  # fmt: skip
    chosen = list(dict.fromkeys(models)) or (list(QUICK) if quick else list(known))
    out: list[Case] = []
    for name in chosen:
        tier, takes = known[name].tier, known[name].decoys and name not in BIG
        plain = Case(name, tier, 0, slow=not takes and name not in BIG)
        with_ = [
            Case(name, tier, seed, decoys=True, slow=seed == 0 and not (quick and out))
            for seed in range(1 if quick else DECOYS)
        ]
        out += with_ if quick and takes else [plain, *(with_ if takes else ())]
    return tuple(out)


def jobs(only: Sequence[str] = (), models: Sequence[str] = (), *, quick: bool = False) -> tuple[Job, ...]:
    """Every job, case by case. only: techniques.

    Raises
    ------
    ArgumentError: a technique that nobody registered, or one that flags nothing (says why). ModelError: as `cases`.
    """
    every = settings()
    known = dict.fromkeys(s.technique for s in every)
    for name in only:
        if name in SILENT:
            raise ArgumentError(
                f"{name} cannot be calibrated", why=SILENT[name], instead=f"one of: {', '.join(known)}"
            )
        if name not in known:
            raise ArgumentError(f"nothing is called {name!r} among the calibrated techniques",
                                why=f"they are {', '.join(known)}", instead=suggest(name, list(known)))  # fmt: skip
    chosen = [s for s in every if not only or s.technique in only]
    every_case = cases(models, quick=quick)
    return tuple(
        Job(s, c)
        for c in every_case
        for s in chosen
        if (not s.slow or c.slow) and (not s.where or c.name in s.where)
    )


def expected(every: Sequence[Job]) -> float:
    """Seconds that jobs take one after the other: as measured when the shipped file was written, else each setting's guess."""
    from microtome.results.calibration import shipped

    known = {
        (technique, setting["name"], tier): float(of["seconds"])
        for technique, versions in shipped()["entries"].items()
        for entry in versions.values()
        for setting in entry.get("settings", ())
        for tier, of in setting["tiers"].items()
    }
    return sum(
        known.get((j.setting.technique, j.setting.name, j.case.tier), j.setting.seconds) for j in every
    )
