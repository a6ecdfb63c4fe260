"""Words read by the base model too: what is measured, what is kept of it, files, and the pipeline's way through it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_postcard import write_world

from hypertransport_core.capture import PooledCapture
from hypertransport_core.encoders.base import EncoderError
from hypertransport_core.encoders.concept import concept_from_text
from hypertransport_core.encoders.response import ResponseEncoder, ResponseReader, plain_id, response_encoder, responses
from hypertransport_core.files import FileError, load_file, network_fingerprint, save_file
from hypertransport_core.hypernetworks import MLPHypernetwork
from hypertransport_core.pipeline import HYPERNETWORK_FILE, Pipeline
from hypertransport_core.sites import total_channels
from hypertransport_core.transport import TransportMaps
from hypertransport_core.weights_io import load_hypernetwork, record_measured, save_hypernetwork
from tests.support.tiny_backbone import TinyBackbone
from tests.training.worlds import WordEncoder

WORDS = [f"{colour} {look}" for colour in ("crimson", "teal", "golden") for look in ("stripes", "dots", "mosaic")]
TEMPLATES = ("{}", "{} style")


@pytest.fixture
def backbone() -> TinyBackbone:
    return TinyBackbone()


def reader_of(backbone: TinyBackbone, width: int = 5) -> ResponseReader:
    sites = backbone.sites()[2:]
    found = responses(backbone, sites, WORDS)
    return ResponseReader.from_responses(sites, found, found.std(0), width, backbone.latent_shape)


def test_a_response_is_what_the_sites_put_out_for_the_bare_words(backbone: TinyBackbone) -> None:
    sites = backbone.sites()[2:]
    found = responses(backbone, sites, ["teal dots"])
    with PooledCapture(backbone.network, sites) as capture, torch.no_grad():
        backbone.denoise(backbone.noise([0]), 1.0, backbone.encode(["teal dots"]))
    assert found.shape == (1, total_channels(sites)) and found.dtype == torch.float32 and not found.requires_grad
    assert torch.equal(found, capture.features())
    many = responses(backbone, sites, ["teal dots", *WORDS])
    assert torch.equal(many[0], found[0]), "whatever stands beside it"
    assert len(many) == 10 and float((many[1] - many[2]).abs().max()) > 1e-3


def test_a_reader_keeps_the_directions_in_which_concepts_differ(backbone: TinyBackbone) -> None:
    reader = reader_of(backbone)
    found = responses(backbone, reader.sites, WORDS)
    kept = reader.keep(found)
    assert kept.shape == (9, 5) and kept.dtype == torch.float32 and reader.width == 5
    torch.testing.assert_close(kept.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    assert float(kept.square().sum(1).mean()) == pytest.approx(1, rel=1e-2), "about 1 long"
    cross = kept.T @ kept
    torch.testing.assert_close(cross, torch.diag(cross.diag()), atol=2e-2, rtol=0)  # principal components, in fp16
    spread = cross.diag().sqrt()
    assert bool((spread[:-1] >= 0.99 * spread[1:]).all())
    # Between raw (a component's deviation) and white (1 for all): the square root of the raw one.
    raw = torch.linalg.svdvals((found - found.mean(0)) / found.std(0))[:5]
    torch.testing.assert_close(spread / spread[0], (raw / raw[0]).sqrt(), atol=2e-2, rtol=0)


def test_fewer_concepts_than_numbers_give_fewer_numbers(backbone: TinyBackbone) -> None:
    sites = backbone.sites()[2:]
    found = responses(backbone, sites, WORDS[:3])
    reader = ResponseReader.from_responses(sites, found, found.std(0), 64, backbone.latent_shape)
    assert reader.width == 2 and bool(reader.keep(found).isfinite().all())
    alone = ResponseReader.from_responses(sites, found[:1], found.std(0), 64, backbone.latent_shape)
    assert alone.width == 1 and bool(alone.matrix.isfinite().all())


def test_words_and_pictures_of_the_joint_encoder(backbone: TinyBackbone) -> None:
    words, reader = WordEncoder(), reader_of(backbone)
    encoder = response_encoder(words, backbone, reader)
    assert encoder.width == 16 + 5 and encoder.encoder_id == f"words-16+response-{reader.sign}"
    assert plain_id(encoder.encoder_id) == "words-16" == plain_id("words-16") and len(repr(encoder)) < 100
    vectors = encoder.encode_text(["teal dots", "golden mosaic"])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    first, rest = vectors[:, :16], vectors[:, 16:]
    torch.testing.assert_close(torch.nn.functional.normalize(first, dim=1), words.encode_text(["teal dots", "golden mosaic"]))
    expected = reader.keep(responses(backbone, reader.sites, ["teal dots", "golden mosaic"]))
    torch.testing.assert_close(rest / first.norm(dim=1, keepdim=True), expected, atol=1e-5, rtol=1e-4)
    shown = encoder.encode_images(torch.rand(2, 3, 8, 8))
    assert shown.shape == (2, 21) and not bool(shown[:, 16:].any())
    torch.testing.assert_close(shown[:, :16].norm(dim=1), torch.ones(2))


def test_a_concept_costs_one_row_of_one_call(backbone: TinyBackbone) -> None:
    words, reader = WordEncoder(), reader_of(backbone)
    encoder = ResponseEncoder(words, lambda: backbone, reader)
    before = backbone.calls
    concept = concept_from_text(encoder, " teal dots ", TEMPLATES)
    assert backbone.calls == before + 1 and concept.source == "teal dots" and concept.width == 21
    mean = words.encode_text([template.format("teal dots") for template in TEMPLATES]).mean(0)
    expected = encoder.join(mean, responses(backbone, reader.sites, ["teal dots"])[0])
    assert torch.equal(concept.vector, expected)
    with pytest.raises(EncoderError, match="empty|nothing"):
        concept_from_text(encoder, "  ", TEMPLATES)
    assert encoder.unknown_words("zyx") == []


# -- files and the pipeline -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Postcard world whose hypernetwork reads responses."""
    folder = write_world(tmp_path_factory.mktemp("weights"))
    write_reading(folder / HYPERNETWORK_FILE, Pipeline.load(folder))
    return folder


def write_reading(path: Path, plain: Pipeline, width: int = 6) -> ResponseReader:
    sites = plain.backbone.sites("attention_mlp")
    found = responses(plain.backbone, sites[4:], ["neon", "teal mosaic", "sepia", "snow", "film grain", "gold dots", "rain"])
    reader = ResponseReader.from_responses(sites[4:], found, found.std(0), width, plain.backbone.latent_shape)
    encoder = response_encoder(plain.without_response().encoder, plain.backbone, reader)
    torch.manual_seed(3)
    hypernetwork = MLPHypernetwork(sites, encoder.width, width=32, bottleneck=8)
    torch.nn.init.normal_(hypernetwork.head.weight, std=0.1)
    means = {"text": torch.full((encoder.width,), 0.01), "image": torch.full((encoder.width,), -0.01)}
    save_hypernetwork(
        path, hypernetwork, family=plain.backbone.family, fingerprint=network_fingerprint(plain.backbone.network, sites),
        encoder_id=encoder.encoder_id, means=means, reader=reader)
    return reader


def test_a_reader_comes_back_from_its_file_to_the_last_bit(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    reader = write_reading(path, Pipeline.load(folder, steered=False))
    loaded = load_hypernetwork(path)
    assert loaded.reader is not None
    for one in (loaded.reader, reader):
        assert torch.equal(one.matrix, reader.matrix) and torch.equal(one.mean, reader.mean)
    assert loaded.reader.sites == reader.sites and loaded.reader.latent_shape == (48, 16, 16)
    record_measured(path, {"concept": 0.5})
    again = load_hypernetwork(path)
    assert again.header["measured"] and again.reader is not None and torch.equal(again.reader.matrix, reader.matrix)


@pytest.mark.parametrize("damage", ["shape", "sites", "tensors"])
def test_a_damaged_reader_is_refused_in_one_sentence(folder: Path, tmp_path: Path, damage: str) -> None:
    tensors, header = load_file(folder / HYPERNETWORK_FILE)
    header = json.loads(json.dumps(header))
    if damage == "shape":
        tensors["response.mean"] = tensors["response.mean"][1:].clone()
    elif damage == "sites":
        header["response"]["sites"] = header["response"]["sites"][1:]
    else:
        del tensors["response.matrix"]
    save_file(tmp_path / "h.safetensors", tensors, "hypernetwork", header)
    with pytest.raises(FileError, match="no usable response reader .*expected its sites, matrix and mean: ") as refusal:
        load_hypernetwork(tmp_path / "h.safetensors")
    assert "\n" not in str(refusal.value)


def test_the_pipeline_reads_words_with_its_model(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    concept = pipeline.embed_text("neon")
    assert concept.width == 128 + 6 and bool(concept.vector[128:].any())
    plain = pipeline.without_response()
    assert plain.embed_text("neon").width == 128 and plain.hypernetwork is None
    expected = torch.nn.functional.normalize(concept.vector[:128], dim=0)
    torch.testing.assert_close(plain.embed_text("neon").vector, expected)
    maps = pipeline.maps(concept)
    other = pipeline.maps(replace(concept, vector=torch.cat([concept.vector[:128], -concept.vector[128:]])))
    assert isinstance(maps, TransportMaps) and isinstance(other, TransportMaps)
    assert float((maps.shift - other.shift).abs().max()) > 1e-3, "the response counts"
    picture = torch.rand(3, 64, 64)
    mixed = pipeline.mix([concept, pipeline.embed_image(picture)], [0.5, 0.5])
    assert mixed.width == 134 and pipeline.maps(mixed).rows == 1
    pictures = pipeline.generate("a red house", 3, maps, 1.0, steps=2)
    assert pictures.shape == (1, 3, 64, 64)
    assert torch.equal(pipeline.embed_text("neon").vector, concept.vector)


def test_the_plain_encoder_is_refused_for_weights_that_read_responses(folder: Path) -> None:
    loaded = load_hypernetwork(folder / HYPERNETWORK_FILE)
    plain = Pipeline.load(folder).without_response()
    with pytest.raises(FileError, match="concepts of width 134 .* gives width 128: connect these weights, the base model and its CLIP"):
        loaded.maps_for(plain.embed_text("neon"))
