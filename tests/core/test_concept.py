"""Concepts as rows, mixing row by row, and the one way from words and pictures to a concept."""
from __future__ import annotations

import pytest
import torch

from hypertransport_core.encoders import (
    ConceptEmbedding,
    EncoderError,
    average,
    centre,
    concept_from_text,
    concepts_from_pictures,
    mix,
    one_concept,
    stack,
    unknown_words,
)

MEANS = {"text": torch.full((6,), 0.1), "image": torch.full((6,), -0.2)}


class Letters:
    """An encoder of letter counts and mean colours."""

    encoder_id, width = "letters", 6

    def encode_text(self, texts):
        counts = torch.tensor([[text.count(letter) + 0.1 for letter in "abcdef"] for text in texts])
        return torch.nn.functional.normalize(counts, dim=-1)

    def encode_images(self, images):
        return torch.nn.functional.normalize(images.mean((2, 3)).repeat(1, 2) + 0.1, dim=-1)


def made(seed: int, modality: str = "text", **more) -> ConceptEmbedding:
    vector = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    return ConceptEmbedding(vector, more.pop("encoder_id", "e"), modality, f"{modality} {seed}", **more)


def test_rows_keep_their_origin() -> None:
    mixture = average([made(1), made(2, "image")], [1.0, -0.5])
    rows = [made(3), made(4, "image"), mixture]
    stacked = stack(rows)
    assert stacked.vector.shape == (3, 6) and stacked.modality == "mixed" and stacked.each() == rows
    centred = centre(stacked, MEANS)
    assert centred.centred and centre(centred, MEANS) is centred
    expected = torch.stack([centre(row, MEANS).vector for row in rows])
    torch.testing.assert_close(centred.vector, expected, atol=0, rtol=0)
    torch.testing.assert_close(stacked.single().vector, average(rows).vector)


def test_stacking_flattens_and_one_row_is_itself() -> None:
    one = made(1)
    assert stack([one]) is one
    many = ConceptEmbedding(torch.randn(2, 6), "e", "text", "two")
    stacked = stack([one, many])
    assert stacked.modality == "text" and stacked.vector.shape == (3, 6)
    assert torch.equal(stacked.vector[1:], many.vector)
    for wrong in ([], [one, made(1, encoder_id="other")], [one, centre(one, MEANS)]):
        with pytest.raises(EncoderError):
            stack(wrong)


def test_mix_is_average_row_by_row() -> None:
    rows, one = stack([made(1), made(2, "image")]), made(3)
    assert torch.equal(mix([one, made(4)], [1, 2]).vector, average([one, made(4)], [1, 2]).vector)
    both = mix([rows, one], [1.0, -0.5])
    expected = [average([row, one], [1.0, -0.5]).vector for row in rows.each()]
    torch.testing.assert_close(both.vector, torch.stack(expected), atol=0, rtol=0)
    with pytest.raises(EncoderError, match="2 and 3 rows"):
        mix([rows, stack([one, one, one])])


def test_words_and_pictures() -> None:
    encoder = Letters()
    plain = concept_from_text(encoder, " abba ")
    assert plain.source == "abba" and torch.equal(plain.vector, encoder.encode_text(["abba"])[0])
    two = concept_from_text(encoder, "abba", ["{}", "{} face"])
    expected = torch.nn.functional.normalize(encoder.encode_text(["abba", "abba face"]).mean(0), dim=-1)
    torch.testing.assert_close(two.vector, expected)
    with pytest.raises(EncoderError, match="empty"):
        concept_from_text(encoder, "  ")
    pictures = [torch.rand(3, 4, 5), torch.rand(2, 3, 6, 6)]
    shown = concepts_from_pictures(encoder, pictures)
    assert [one.vector.shape for one in shown] == [(6,)] * 3
    together = one_concept(shown, [1.0, 0.5, 0.0])
    assert together.modality == "image" and not together.parts
    with pytest.raises(EncoderError, match="no picture"):
        concepts_from_pictures(encoder, [])
    assert unknown_words(encoder, "qqq") == []
