"""Language models as tools for learning, and as instruments with a known error. Never required."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microtome.lazy import lazily

if TYPE_CHECKING:
    from .claim_text import ClaimText as ClaimText
    from .claim_text import EvidenceText as EvidenceText
    from .endpoint import Endpoint as Endpoint
    from .frames import critique as critique
    from .frames import sycophancy as sycophancy
    from .judge_adapters import as_measure as as_measure
    from .judge_error import judged_interval as judged_interval
    from .judge_report import HandLabels as HandLabels
    from .judge_report import calibrate_judge as calibrate_judge
    from .judging import Judge as Judge
    from .judging import Scale as Scale
    from .merging import merge as merge
    from .packing import pack as pack
    from .pasting import Pasting as Pasting
    from .quotes import verify_quotes as verify_quotes
    from .quoting import ask_with_quotes as ask_with_quotes
    from .redteam import red_team as red_team

__all__ = [
    "ClaimText",
    "Endpoint",
    "EvidenceText",
    "HandLabels",
    "Judge",
    "Pasting",
    "Scale",
    "as_measure",
    "ask_with_quotes",
    "calibrate_judge",
    "critique",
    "judged_interval",
    "merge",
    "pack",
    "red_team",
    "sycophancy",
    "verify_quotes",
]

_HOME = {
    "ClaimText": "claim_text",
    "Endpoint": "endpoint",
    "EvidenceText": "claim_text",
    "HandLabels": "judge_report",
    "Judge": "judging",
    "Pasting": "pasting",
    "Scale": "judging",
    "as_measure": "judge_adapters",
    "ask_with_quotes": "quoting",
    "calibrate_judge": "judge_report",
    "critique": "frames",
    "judged_interval": "judge_error",
    "merge": "merging",
    "pack": "packing",
    "red_team": "redteam",
    "sycophancy": "frames",
    "verify_quotes": "quotes",
}

__getattr__, __dir__ = lazily(__name__, _HOME)
