"""Hypernetworks, transport maps and concepts to files and back, and files that lie."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_networks import TWO_BLOCKS, two_blocks

from hypertransport_core import weights_io
from hypertransport_core.encoders import ConceptEmbedding, average, centre, stack
from hypertransport_core.files import FileError, check_fits, load_file, network_fingerprint, save_file
from hypertransport_core.hypernetworks import MLPHypernetwork, PerceiverHypernetwork
from hypertransport_core.transport import TransportMaps

KIND = "transport_maps"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def _unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("make", [
    lambda: MLPHypernetwork(TWO_BLOCKS, 8, width=12, bottleneck=4),
    lambda: MLPHypernetwork(TWO_BLOCKS, 8, steps=2, width=12, bottleneck=4),
    lambda: PerceiverHypernetwork(TWO_BLOCKS, 8),
])
def test_hypernetwork_round_trip(tmp_path: Path, make) -> None:
    torch.manual_seed(1)
    hypernetwork = make()
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.copy_((parameter + 0.05 * torch.randn_like(parameter)).half().float())
        hypernetwork.set_source(torch.randn(hypernetwork.steps, 64), torch.rand(hypernetwork.steps, 64))
    means = {"text": _unit(8) * 0.5, "image": _unit(8) * 0.5, "image_map": torch.eye(8) + 0.1}
    path = tmp_path / "h.safetensors"
    weights_io.save_hypernetwork(path, hypernetwork, family="tiny", fingerprint=network_fingerprint(two_blocks(), TWO_BLOCKS),
                                 encoder_id="clip-a",
                                 means=means, strength_range=(-1, 2), training={"steps": 3}, licence="MIT")
    loaded = weights_io.load_hypernetwork(path)
    assert loaded.strength_range == (-1.0, 2.0) and loaded.header["training"] == {"steps": 3}
    assert loaded.hypernetwork.sites == TWO_BLOCKS
    assert not loaded.hypernetwork.training and all(torch.equal(loaded.means[key], value) for key, value in means.items())
    embedding = ConceptEmbedding(_unit(8), "clip-a", "text", "snow")
    step = None if hypernetwork.steps == 1 else 1
    maps = loaded.maps_for(embedding, step)
    with torch.no_grad():
        expected = hypernetwork.eval()(centre(embedding, means).vector[None], step)
    assert maps.allclose(expected) and maps.rows == 1 and maps.info["concept"] == "snow"
    with pytest.raises(FileError, match="clip-b"):
        loaded.maps_for(ConceptEmbedding(_unit(8), "clip-b", "text", "snow"), step)
    assert check_fits(loaded.header, path, network=two_blocks(), family="tiny") == []


@pytest.mark.parametrize(("change", "match"), [
    (lambda h, t: h["config"].update(width=10**12), "claims width"),
    (lambda h, t: h["config"].update(width=13), "shape"),
    (lambda h, t: h["config"].update(width=-1), None),
    (lambda h, t: h["config"].update(kind="magic"), "magic"),
    (lambda h, t: h["config"].update(unheard=1), "unheard"),
    (lambda h, t: h["config"].update(depth="many"), None),
    (lambda h, t: h.update(config=3), "'config'"),
    (lambda h, t: h.pop("encoder"), "'encoder'"),
    (lambda h, t: h["encoder"].update(width=9), "width 9"),
    (lambda h, t: h["sites"].pop(), "shape"),
    (lambda h, t: h["sites"].append(h["sites"][0]), "none twice"),
    (lambda h, t: h.update(sites=[["a", "magic", 3, 1]]), "list of sites"),
    (lambda h, t: h.update(sites=[[]]), "list of sites"),
    (lambda h, t: h.pop("sites"), "list of sites"),
    (lambda h, t: t.pop("network.head.weight"), "head.weight"),
    (lambda h, t: t.update({"network.more": torch.ones(2)}), "more"),
    (lambda h, t: t.update({"mean.text": torch.ones(5)}), r"\(5,\)"),
])
def test_hypernetwork_files_that_lie(tmp_path: Path, change, match: str | None) -> None:
    path = tmp_path / "h.safetensors"
    weights_io.save_hypernetwork(path, MLPHypernetwork(TWO_BLOCKS, 8, width=12, bottleneck=4), family="tiny",
                                 fingerprint={}, encoder_id="a")
    tensors, header = load_file(path)
    change(header, tensors)
    save_file(path, tensors, "hypernetwork", header)
    with pytest.raises(FileError, match=match) as caught:
        weights_io.load_hypernetwork(path)
    assert "h.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_maps_round_trip_and_lies(tmp_path: Path) -> None:
    maps = TransportMaps(TWO_BLOCKS, torch.rand(2, 64) + 0.5, torch.randn(2, 64), {"concept": "snow"})
    path = tmp_path / "m.safetensors"
    weights_io.save_maps(path, maps, family="tiny", fingerprint=network_fingerprint(two_blocks(), TWO_BLOCKS))
    again, header = weights_io.load_maps(path)
    assert torch.equal(again.scale, maps.scale) and torch.equal(again.shift, maps.shift)
    assert again.sites == TWO_BLOCKS and again.info == {"concept": "snow"}
    assert check_fits(header, path, network=two_blocks(), family="tiny", encoder_id="any", encoder_width=3) == []
    for wrong in ({"scale": torch.ones(1, 64)}, {"scale": torch.ones(1, 64), "shift": torch.ones(2, 64)},
                  {"scale": torch.ones(64), "shift": torch.ones(64)},
                  {"scale": torch.ones(1, 63), "shift": torch.ones(1, 63)},
                  {"scale": torch.ones(()), "shift": torch.ones(())}):
        save_file(path, wrong, KIND, header)
        with pytest.raises(FileError, match="m.safetensors holds tensors of the shapes"):
            weights_io.load_maps(path)
    with pytest.raises(FileError, match="expected 'hypernetwork'"):
        weights_io.load_hypernetwork(path)


def test_concept_round_trip(tmp_path: Path) -> None:
    text, images = ConceptEmbedding(_unit(8), "a", "text", "snow"), ConceptEmbedding(_unit(3, 8), "a", "image", "three")
    means = {"text": _unit(8) * 0.3, "image": _unit(8) * 0.3}
    mixed = average([text, images], [1, -0.5])
    rows = stack([text, mixed, images])  # one concept per row of a batch, each of another origin
    for embedding in (text, images, mixed, centre(average([text, images]), means), rows, centre(rows, means)):
        weights_io.save_concept(tmp_path / "c.safetensors", embedding)
        again = weights_io.load_concept(tmp_path / "c.safetensors")
        assert torch.equal(again.vector, embedding.vector)
        assert (again.modality, again.source, again.encoder_id, again.centred) == (
            embedding.modality, embedding.source, embedding.encoder_id, embedding.centred)
        assert torch.equal(centre(again, means).vector, centre(embedding, means).vector)
        assert [row.source for row in again.each()] == [row.source for row in embedding.each()]
    tensors, header = load_file(tmp_path / "c.safetensors")
    for lie in ({"parts": [[{"modality": "text"}, 1]]}, {"rows": []}, {"rows": [{"modality": "text"}]}):
        header["concept"] = lie
        save_file(tmp_path / "c.safetensors", tensors, "concept", header)
        with pytest.raises(FileError, match="no usable concept"):
            weights_io.load_concept(tmp_path / "c.safetensors")
