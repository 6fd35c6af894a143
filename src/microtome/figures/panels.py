"""Which pictures a result of a kind has, in the order a reader wants them.

A figure module has `draw(result)`, the picture that stands for the result, and may have `panels(result)`, all of
them. Techniques of other packages have the one that they name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import MicrotomeError

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..results.result import Result

MODULES = {
    "behaviour": "behaviour",
    "activation_patching": "patching",
    "attribution_patching": "attribution",
    "direct_logit_attribution": "logits",
    "head_roles": "roles",
    "lenses": "lenses",
    "logit_lens": "lens",
    "model_diff": "diffing",
    "ablation": "ablation",
    "attention_patterns": "attention",
    "component_set": "sets",
    "composition": "composition",
    "circuit_discovery": "discovery",
    "circuit_evaluation": "circuit_tests",
    "circuit_robustness": "robustness",
    "distributed_alignment_search": "alignment",
    "max_activating": "examples",
    "patchscope": "patchscopes",
    "path_patching": "paths",
    "vocabulary_svd": "vectors",
    "generalisation": "generalisation",
    "probe": "probing",
    "unsupervised": "unsupervised",
    "steering": "steering",
    "prompt_grid": "prompts",
    "directional_ablation": "removing",
    "token_attribution": "tokens",
    "training_dynamics": "dynamics",
    "cross_model_patching": "cross_patching",
    "dissect": "overview",
    "score_description": "descriptions",
    "function_vector": "functions",
    "chain_of_thought": "thoughts",
}


@dataclass(frozen=True)
class Picture:
    """One picture of a result: a name, a sentence on how to read it, and the function that draws it.

    call: the expression on `result` that draws it in Python, "" for `result.figure()`. secondary: of interest to
    some readers only.
    """

    name: str
    caption: str
    draw: Callable[[], go.Figure]
    call: str = ""
    secondary: bool = False


def pictures_of(result: Result) -> tuple[Picture, ...]:
    """All pictures of a result; none for a kind without figures.

    Raises whatever a figure raises only when a picture's `draw` is called.
    """
    module = MODULES.get(result.kind)
    if module is not None:
        found: tuple[Picture, ...] = importlib.import_module(f"{__package__}.{module}").pictures(result)
        return found
    return (Picture("figure", "", result.figure),) if _has_figure(result) else ()


def _has_figure(result: Result) -> bool:
    from ..results import registry

    if result.query is None:
        return False
    try:
        spec = getattr(registry.get("techniques", result.query.method), "spec", None)
    except MicrotomeError:  # a technique that is not installed here
        return False
    return bool(spec and spec.figure)
