"""The algebra of concept embeddings: averages, rows, centring."""

from __future__ import annotations


import pytest
import torch
from torch.nn.functional import normalize as unit_rows

from hypertransport_core.encoders import (ConceptEmbedding, EncoderError, average, centre)
from hypertransport_core.encoders.base import centred, toward_words

SIZE = 32


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def vector(*shape: int) -> torch.Tensor:
    return unit_rows(torch.randn(*shape), dim=-1)


def embedding(modality: str = "text", *shape: int, **more) -> ConceptEmbedding:
    return ConceptEmbedding(vector(*(shape or (6,))), more.pop("encoder_id", "e"), modality,
                            more.pop("source", modality), **more)


def test_vectors_are_made_unit_float32() -> None:
    made = ConceptEmbedding(torch.tensor([3.0, 4.0], dtype=torch.float64), "e", "text")
    assert made.vector.dtype == torch.float32 and torch.allclose(made.vector, torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.tensor([float("nan"), 1]), torch.ones(1, 2, 3), torch.ones(0)])
def test_vectors_without_direction_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(EncoderError, match="expected"):
        ConceptEmbedding(wrong, "e", "text")


def test_average_of_one_is_itself_and_weights_scale_freely() -> None:
    one, two = embedding(), embedding()
    assert torch.allclose(average([one]).vector, one.vector)
    assert torch.allclose(average([one, two], [1, 3]).vector, average([one, two], [2, 6]).vector, atol=1e-6)
    assert torch.allclose(average([one, two], [1, 0]).vector, one.vector, atol=1e-6)
    assert torch.allclose(average([one, two], [1, -1]).vector, unit_rows(one.vector - two.vector, dim=0), atol=1e-6)


def test_rows_count_as_their_mean() -> None:
    pictures = embedding("image", 3, 6)
    assert torch.allclose(average([pictures]).vector, unit_rows(pictures.vector.mean(0), dim=0), atol=1e-6)


def test_mixture_of_modalities_says_so() -> None:
    assert average([embedding("text"), embedding("image")]).modality == "mixed"
    assert average([embedding("image"), embedding("image")]).modality == "image"


def test_averages_that_make_no_sense() -> None:
    one = embedding()
    opposite = ConceptEmbedding(-one.vector, "e", "text")
    for concepts, weights, match in (([], None, "at least one"), ([one], [1, 2], "2 weights for 1"),
                                     ([one, opposite], None, "cancel"),
                                     ([one, embedding(encoder_id="f")], None, "'e'.*'f'"),
                                     ([one, embedding("text", 5)], None, "width 5"),
                                     ([one, centre(one, {})], None, "centred"), ([one], [float("nan")], "direction")):
        with pytest.raises(EncoderError, match=match):
            average(concepts, weights)


def test_centring_subtracts_the_mean_of_the_modality() -> None:
    means = {"text": vector(6) * 0.4, "image": vector(6) * 0.4}
    text, pictures = embedding("text"), embedding("image", 3, 6)
    assert torch.allclose(centre(text, means).vector, unit_rows(text.vector - means["text"], dim=-1), atol=1e-6)
    assert torch.allclose(centre(pictures, means).vector, unit_rows(pictures.vector - means["image"], dim=-1),
                          atol=1e-6)
    assert centre(centre(text, means), means) is not None
    assert torch.equal(centre(centre(text, means), means).vector, centre(text, means).vector)
    assert torch.equal(centre(text, {}).vector, text.vector)
    with pytest.raises(EncoderError, match=r"\(5,\)"):
        centre(text, {"text": vector(5)})


def test_pictures_move_toward_their_words_and_lose_their_subject() -> None:
    generator = torch.Generator().manual_seed(0)
    words = unit_rows(torch.randn(80, 12, generator=generator), dim=1).repeat_interleave(6, 0)
    subjects = torch.randn(480, 4, generator=generator) @ torch.randn(4, 12, generator=generator) * 0.4
    pictures = unit_rows(words + subjects, dim=1)
    matrix = toward_words(pictures[:420], words[:420])
    moved = centred(pictures[420:], "image", {"image_map": matrix})  # concepts that the regression has not seen
    before, after = ((a * words[420:]).sum(1).mean() for a in (pictures[420:], moved))
    assert matrix.shape == (12, 12) and after > before + 0.05
    assert torch.equal(centred(words, "text", {"image_map": matrix}), words)
    with pytest.raises(EncoderError, match="use the hypernetwork made for this encoder"):
        centred(pictures, "image", {"image_map": torch.eye(11)})


def test_centring_a_mixture_centres_its_parts() -> None:
    means = {"text": vector(6) * 0.4, "image": vector(6) * 0.4}
    text, pictures = embedding("text"), embedding("image", 3, 6)
    mixed = centre(average([average([text, text]), pictures], [2, -0.5]), means)
    by_hand = 2 * centre(text, means).vector - 0.5 * unit_rows(centre(pictures, means).vector.mean(0), dim=0)
    assert mixed.centred and torch.allclose(mixed.vector, unit_rows(by_hand, dim=0), atol=1e-5)
