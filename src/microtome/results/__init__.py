"""Results as values: what was asked, what was measured, which controls ran, what may be believed.

The names below are imported when they are first used; importing this package needs neither NumPy, pandas
nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

# Not lazy, although the rest is: a module of the same name exists, and Python binds a submodule over a lazy
# name as soon as anybody imports it. Bound here, the function stays.
from .technique import technique

if TYPE_CHECKING:
    from . import registry, seeds
    from .calibration import calibration_line, calibration_of
    from .event import Event
    from .events import (
        ObserverWarning,
        add_observer,
        emit_look,
        in_this_run,
        observe,
        progress,
        remove_observer,
    )
    from .labelled import Labelled
    from .query import Query
    from .result import Result
    from .spec import TechniqueSpec
    from .store import open_result, save
    from .verdicts import VERDICTS, Control, Verdict, verdict

_HOME = {
    "Control": "verdicts",
    "Event": "event",
    "Labelled": "labelled",
    "ObserverWarning": "events",
    "Query": "query",
    "Result": "result",
    "TechniqueSpec": "spec",
    "VERDICTS": "verdicts",
    "Verdict": "verdicts",
    "add_observer": "events",
    "calibration_line": "calibration",
    "calibration_of": "calibration",
    "emit_look": "events",
    "in_this_run": "events",
    "observe": "events",
    "open_result": "store",
    "progress": "events",
    "registry": "",
    "remove_observer": "events",
    "save": "store",
    "seeds": "",
    "verdict": "verdicts",
}

__all__ = [
    "VERDICTS",
    "Control",
    "Event",
    "Labelled",
    "ObserverWarning",
    "Query",
    "Result",
    "TechniqueSpec",
    "Verdict",
    "add_observer",
    "calibration_line",
    "calibration_of",
    "emit_look",
    "in_this_run",
    "observe",
    "open_result",
    "progress",
    "registry",
    "remove_observer",
    "save",
    "seeds",
    "technique",
    "verdict",
]

__getattr__, __dir__ = lazily(__name__, _HOME)
