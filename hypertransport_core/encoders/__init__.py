"""Concept encoders: text or pictures to unit vectors."""
