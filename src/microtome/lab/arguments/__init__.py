"""The arguments of any technique's call as JSON and files, and back: what makes "run it again from its record" possible."""

from __future__ import annotations

from .again import decode, encode, run_again
from .looks import look_of
from .models import load_again, recipe_of
from .reading import Material, family_of, material_of, sites_of
from .values import SCHEMA_VERSION, Encoded, Files

__all__ = [
    "SCHEMA_VERSION",
    "Encoded",
    "Files",
    "Material",
    "decode",
    "encode",
    "family_of",
    "load_again",
    "look_of",
    "material_of",
    "recipe_of",
    "run_again",
    "sites_of",
]
