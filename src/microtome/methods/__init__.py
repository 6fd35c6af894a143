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
    from microtome.methods.describing import score_description
    from microtome.methods.diff_copies import merged_copy as merged_copy
    from microtome.methods.diff_copies import quantised_copy as quantised_copy
    from microtome.methods.diff_patching import cross_model_patching
    from microtome.methods.diff_reading import difference_direction as difference_direction
    from microtome.methods.diffing import DiffOptions as DiffOptions
    from microtome.methods.diffing import model_diff
    from microtome.methods.direct_attribution import direct_logit_attribution
    from microtome.methods.examples import max_activating
    from microtome.methods.functions import function_vector
    from microtome.methods.gradient_attribution import attribution_patching
    from microtome.methods.grids import prompt_grid
    from microtome.methods.lens import logit_lens
    from microtome.methods.lensing.comparing import lenses
    from microtome.methods.lensing.fitting import FitOptions as FitOptions
    from microtome.methods.lensing.fitting import jacobian_lens as jacobian_lens
    from microtome.methods.lensing.fitting import tuned_lens as tuned_lens
    from microtome.methods.lensing.patchscopes import patchscope
    from microtome.methods.lensing.translators import Translators as Translators
    from microtome.methods.patching import activation_patching
    from microtome.methods.paths import path_patching
    from microtome.methods.patterns import attention_patterns
    from microtome.methods.probing.generalising import generalisation
    from microtome.methods.probing.options import Ask as Ask
    from microtome.methods.probing.options import ProbeOptions as ProbeOptions
    from microtome.methods.probing.reading import direction_of as direction_of
    from microtome.methods.probing.technique import probe
    from microtome.methods.probing.unlabelled import unsupervised
    from microtome.methods.removing import directional_ablation
    from microtome.methods.sets import component_set
    from microtome.methods.steer import steering
    from microtome.methods.thoughts import chain_of_thought
    from microtome.methods.token_attributing import token_attribution
    from microtome.methods.weights.composing import composition
    from microtome.methods.weights.roles import head_roles
    from microtome.methods.weights.vocabulary import vocabulary_svd

_HOMES = {
    "ablation": "ablating",
    "activation_patching": "patching",
    "attention_patterns": "patterns",
    "attribution_patching": "gradient_attribution",
    "behaviour": "behaviour_check",
    "chain_of_thought": "thoughts",
    "component_set": "sets",
    "composition": "weights.composing",
    "cross_model_patching": "diff_patching",
    "das": "alignment",
    "direct_logit_attribution": "direct_attribution",
    "directional_ablation": "removing",
    "head_roles": "weights.roles",
    "generalisation": "probing.generalising",
    "lenses": "lensing.comparing",
    "logit_lens": "lens",
    "model_diff": "diffing",
    "patchscope": "lensing.patchscopes",
    "path_patching": "paths",
    "probe": "probing.technique",
    "steering": "steer",
    "prompt_grid": "grids",
    "token_attribution": "token_attributing",
    "max_activating": "examples",
    "score_description": "describing",
    "unsupervised": "probing.unlabelled",
    "vocabulary_svd": "weights.vocabulary",
    "function_vector": "functions",
}

__all__ = [
    "ablation",
    "activation_patching",
    "attention_patterns",
    "attribution_patching",
    "behaviour",
    "chain_of_thought",
    "component_set",
    "composition",
    "cross_model_patching",
    "das",
    "direct_logit_attribution",
    "directional_ablation",
    "function_vector",
    "generalisation",
    "head_roles",
    "lenses",
    "logit_lens",
    "max_activating",
    "model_diff",
    "patchscope",
    "path_patching",
    "probe",
    "prompt_grid",
    "score_description",
    "steering",
    "token_attribution",
    "unsupervised",
    "vocabulary_svd",
]

_HELPERS = {
    "Ask": "probing.options",
    "DiffOptions": "diffing",
    "ProbeOptions": "probing.options",
    "difference_direction": "diff_reading",
    "direction_of": "probing.reading",
    "merged_copy": "diff_copies",
    "quantised_copy": "diff_copies",
    "FitOptions": "lensing.fitting",
    "Translators": "lensing.translators",
    "jacobian_lens": "lensing.fitting",
    "tuned_lens": "lensing.fitting",
}
"""What techniques take, and what makes it."""

_NAMES = {"das": "distributed_alignment_search"}
"""Techniques whose function has a shorter name."""

for _name, _file in _HOMES.items():
    registry.register(
        "techniques", _NAMES.get(_name, _name), registry.Lazy(f"microtome.methods.{_file}:{_name}")
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"microtome.methods.{_HOMES[name]}"), name)
    if name in _HELPERS:
        return getattr(import_module(f"microtome.methods.{_HELPERS[name]}"), name)
    raise AttributeError(f"microtome.methods has no technique {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_HELPERS])
