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
    from microtome.methods.lens import logit_lens
    from microtome.methods.patching import activation_patching
    from microtome.methods.paths import path_patching
    from microtome.methods.patterns import attention_patterns
    from microtome.methods.sets import component_set
    from microtome.methods.weights.composing import composition
    from microtome.methods.weights.roles import head_roles

_HOMES = {
    "ablation": "ablating",
    "activation_patching": "patching",
    "attention_patterns": "patterns",
    "attribution_patching": "gradient_attribution",
    "behaviour": "behaviour_check",
    "component_set": "sets",
    "composition": "weights.composing",
    "das": "alignment",
    "direct_logit_attribution": "direct_attribution",
    "head_roles": "weights.roles",
    "logit_lens": "lens",
    "path_patching": "paths",
}

__all__ = [
    "ablation",
    "activation_patching",
    "attention_patterns",
    "attribution_patching",
    "behaviour",
    "component_set",
    "composition",
    "das",
    "direct_logit_attribution",
    "head_roles",
    "logit_lens",
    "path_patching",
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
