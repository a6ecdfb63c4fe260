"""Weights that also read what the base model does with the words: the encoder that Load Concept Encoder makes for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pack import load_pack, pack_module, run_node


@pytest.fixture(scope="module")
def world():
    """The shipped Postcard world: its pipeline, and MODEL and CLIP as its node gives them."""
    load_pack()
    pipeline = pack_module("hypertransport_core.pipeline").Pipeline.load()
    model, clip, _, encoder = run_node(pack_module("nodes.postcard").PostcardModelNode)
    return SimpleNamespace(pipeline=pipeline, plain=pipeline.without_response(), model=model, clip=clip, encoder=encoder)


@pytest.fixture(scope="module")
def weights(world, tmp_path_factory: pytest.TempPathFactory):
    """A hypernetwork for it that reads responses, untrained but for a random head."""
    return written(world.plain, tmp_path_factory.mktemp("weights") / "reading.safetensors", world.plain.encoder)


def written(plain, path: Path, encoder, family: str | None = None):
    response, io = pack_module("hypertransport_core.encoders.response"), pack_module("hypertransport_core.weights_io")
    backbone, names = plain.backbone, ["neon", "teal mosaic", "sepia", "snow", "film grain", "golden dots", "rain"]
    sites = backbone.sites("attention_mlp")
    found = response.responses(backbone, sites[6:], names)
    reader = response.ResponseReader.from_responses(sites[6:], found, found.std(0), 6, backbone.latent_shape)
    joint = response.response_encoder(encoder, backbone, reader)
    torch.manual_seed(5)
    network = pack_module("hypertransport_core.hypernetworks").MLPHypernetwork(sites, joint.width, width=32, bottleneck=8)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    fingerprint = pack_module("hypertransport_core.files").network_fingerprint(backbone.network, sites)
    io.save_hypernetwork(
        path, network, family=family or backbone.family, fingerprint=fingerprint, encoder_id=joint.encoder_id, reader=reader)
    return io.load_hypernetwork(path)


def load(**inputs):
    return run_node(pack_module("nodes.encoders").LoadConceptEncoder, **{"encoder": "automatic", **inputs})[0]


def concept(encoder, text: str = "", images: torch.Tensor | None = None):
    return run_node(pack_module("nodes.concepts").ConceptEncoderNode, encoder=encoder, text=text, images=images)[0]


def test_the_shipped_world_needs_no_wires(world, weights) -> None:
    encoder = load(weights=weights)
    response = pack_module("hypertransport_core.encoders.response")
    expected = response.response_encoder(world.plain.encoder, world.plain.backbone, weights.reader)
    assert encoder.encoder_id == expected.encoder_id == weights.header["encoder"]["id"] and encoder.width == 134
    made = concept(encoder, "teal mosaic")
    words = expected.encode_concept("teal mosaic", world.plain.templates)
    torch.testing.assert_close(made.vector, words, atol=1e-6, rtol=0)
    shown = concept(encoder, "", torch.rand(2, 64, 64, 3))
    assert shown.width == 134 and not bool(shown.vector[128:].any())


def test_the_shipped_encoder_follows_the_shipped_weights(world, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    postcard = pack_module("nodes.postcard")
    node = postcard.PostcardModelNode
    for name in (postcard.MODEL_FILE, postcard.CLIP_FILE):
        (tmp_path / name).symlink_to(postcard.WEIGHTS / name)
    monkeypatch.setattr(postcard, "WEIGHTS", tmp_path)
    assert postcard.postcard_encoder().encoder_id == world.plain.encoder.encoder_id, "no hypernetwork there"
    before = node.fingerprint_inputs()
    (tmp_path / postcard.HYPERNETWORK_FILE).write_bytes(weights.path.read_bytes())
    encoder = run_node(node)[3]
    assert node.fingerprint_inputs() != before and encoder is postcard.postcard_encoder()
    assert encoder.encoder_id == weights.header["encoder"]["id"]
    expected = concept(load(weights=weights), "neon")
    torch.testing.assert_close(concept(encoder, "neon").vector, expected.vector, atol=1e-6, rtol=0)


def test_a_model_and_its_clip_from_the_graph_say_the_same(world, weights) -> None:
    encoder = load(weights=weights, model=world.model, clip=world.clip)
    assert encoder.encoder_id == weights.header["encoder"]["id"]
    made, expected = concept(encoder, "teal mosaic"), concept(load(weights=weights), "teal mosaic")
    assert float(expected.vector[128:].norm()) > 0.1
    torch.testing.assert_close(made.vector, expected.vector, atol=1e-3, rtol=0)
    rows = concept(encoder, "teal mosaic\nneon")
    assert rows.width == 134 and rows.vector.ndim == 1


def test_a_steered_model_answers_as_the_model_itself(world, weights) -> None:
    plain = concept(load(weights=weights, model=world.model, clip=world.clip), "neon")
    steer = pack_module("nodes.steer").HyperTransportSteer
    (steered,) = run_node(steer, model=world.model, weights=weights, concept=plain, strength=1.5)
    again = concept(load(weights=weights, model=steered, clip=world.clip), "neon")
    assert torch.equal(again.vector, plain.vector)


def test_the_concept_steers(world, weights) -> None:
    predict = pack_module("nodes.prediction").predict
    first, second = (predict(weights, concept(load(weights=weights), words)) for words in ("neon", "teal mosaic"))
    assert float((first.steps[0].shift - second.steps[0].shift).abs().max()) > 1e-4
    with pytest.raises(ValueError, match="width 134 .* gives width 128"):
        predict(weights, concept(load(), "neon") if world.encoder.width == 128 else concept(world.plain.encoder, "neon"))


@pytest.mark.parametrize("given, lacking", [((), "model and clip are not"), (("model",), "but clip is not"), (("clip",), "but model is not")])
def test_what_is_lacking_is_named(world, tmp_path: Path, given: tuple[str, ...], lacking: str) -> None:
    other = written(world.plain, tmp_path / "sdxl.safetensors", world.plain.encoder, family="SDXL")  # though by the shipped CLIP
    with pytest.raises(ValueError, match=lacking) as refusal:
        load(weights=other, **{name: getattr(world, name) for name in given})
    assert "\n" not in str(refusal.value) and "connect them to Load Concept Encoder" in str(refusal.value)


def test_another_model_is_refused(world, tmp_path: Path) -> None:
    other = written(world.plain, tmp_path / "h.safetensors", world.plain.encoder, family="SDXL")
    with pytest.raises(ValueError, match="SDXL"):
        load(weights=other, model=world.model, clip=world.clip)


def test_plain_weights_need_no_model(world, weights, tmp_path: Path) -> None:
    files, io = pack_module("hypertransport_core.files"), pack_module("hypertransport_core.weights_io")
    backbone = world.plain.backbone
    network = pack_module("hypertransport_core.hypernetworks").MLPHypernetwork(backbone.sites(), 128, width=16, bottleneck=4)
    fingerprint = files.network_fingerprint(backbone.network, backbone.sites())
    path = tmp_path / "plain.safetensors"
    io.save_hypernetwork(path, network, family="postcard", fingerprint=fingerprint, encoder_id=world.plain.encoder.encoder_id)
    encoder = load(weights=io.load_hypernetwork(path))
    assert encoder.encoder_id == world.plain.encoder.encoder_id and encoder.width == 128
