# What `microtome` offers, for type checkers and editors; __init__.py loads the same names when they are first used.
import os
from collections.abc import Callable
from typing import Any

import torch

from microtome import circuits as circuits
from microtome import dissect as dissect
from microtome import errors as errors
from microtome import methods as methods
from microtome import metrics as metrics
from microtome import zoo as zoo
from microtome.activations.capturing import capture as store
from microtome.directions.direction import Direction as Direction
from microtome.facade import Model
from microtome.lab.expecting import expect as expect
from microtome.lab.questions import query as query
from microtome.lab.study import study as study
from microtome.results import Result as Result
from microtome.results import open_result as open
from microtome.tasks.corpus import corpus as corpus
from microtome.tasks.dataset import labelled as labelled
from microtome.tasks.files import pairs as pairs
from microtome.tasks.registry import task as task
from microtome.trace.edits import Ablate as Ablate
from microtome.trace.edits import Edit as Edit
from microtome.trace.edits import Keep as Keep
from microtome.trace.edits import Patch as Patch
from microtome.trace.edits import Remove as Remove
from microtome.trace.edits import Steer as Steer

__version__: str

__all__ = [
    "Ablate",
    "Direction",
    "Edit",
    "Keep",
    "Patch",
    "Remove",
    "Result",
    "Steer",
    "circuits",
    "corpus",
    "dissect",
    "errors",
    "expect",
    "labelled",
    "load",
    "methods",
    "metrics",
    "open",
    "pairs",
    "query",
    "store",
    "study",
    "task",
    "zoo",
]

def load(
    name_or_module: str | os.PathLike[str] | torch.nn.Module = "smollm2-135m-instruct",
    *,
    tokenizer: Any = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Model: ...
