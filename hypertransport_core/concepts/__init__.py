"""Concept lists: what a hypernetwork is trained on, validated with and kept from."""

from __future__ import annotations

from .lists import Concept, ConceptError, ConceptSplit, load_concepts, split_concepts, validated

__all__ = ["Concept", "ConceptError", "ConceptSplit", "load_concepts", "split_concepts", "validated"]
