"""Concept lists: what a hypernetwork is trained on, validated with and kept from."""

from __future__ import annotations

from .builtin import BUILTIN, builtin_concepts, generic_scenes
from .lists import Concept, ConceptError, ConceptSplit, load_concepts, split_concepts, spread, validated

__all__ = [
    "BUILTIN",
    "Concept",
    "ConceptError",
    "ConceptSplit",
    "builtin_concepts",
    "generic_scenes",
    "load_concepts",
    "split_concepts",
    "spread",
    "validated",
]
