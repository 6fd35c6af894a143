"""Techniques: one file each, functions from a model and data to a Result. Loaded when first used.

Files are not called as their functions, so that importing one never hides the other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from microtome.results import registry

if TYPE_CHECKING:
    from microtome.methods.ablating import ablation
    from microtome.methods.alignment import das
    from microtome.methods.behaviour_check import behaviour
    from microtome.methods.direct_attribution import direct_logit_attribution
    from microtome.methods.gradient_attribution import attribution_patching
    from microtome.methods.grids import prompt_grid
    from microtome.methods.lens import logit_lens
    from microtome.methods.patching import activation_patching
    from microtome.methods.paths import path_patching
    from microtome.methods.patterns import attention_patterns
    from microtome.methods.sets import component_set
    from microtome.methods.thoughts import chain_of_thought
    from microtome.methods.token_attributing import token_attribution

_HOMES = {
    "ablation": "ablating",
    "activation_patching": "patching",
    "attention_patterns": "patterns",
    "attribution_patching": "gradient_attribution",
    "behaviour": "behaviour_check",
    "chain_of_thought": "thoughts",
    "component_set": "sets",
    "das": "alignment",
    "direct_logit_attribution": "direct_attribution",
    "logit_lens": "lens",
    "path_patching": "paths",
    "prompt_grid": "grids",
    "token_attribution": "token_attributing",
}

__all__ = [
    "ablation",
    "activation_patching",
    "attention_patterns",
    "attribution_patching",
    "behaviour",
    "chain_of_thought",
    "component_set",
    "das",
    "direct_logit_attribution",
    "logit_lens",
    "path_patching",
    "prompt_grid",
    "token_attribution",
]

_NAMES = {"das": "distributed_alignment_search"}
"""Techniques whose function has a shorter name."""

for _name, _file in _HOMES.items():
    registry.register(
        "techniques", _NAMES.get(_name, _name), registry.Lazy(f"microtome.methods.{_file}:{_name}")
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"microtome.methods.{_HOMES[name]}"), name)
    raise AttributeError(f"microtome.methods has no technique {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
