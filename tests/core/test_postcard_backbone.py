"""PostcardBackbone: the protocol, seeds, sampling, steering inside sampling, files."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hypertransport_core import files
from hypertransport_core.backbones.protocol import Backbone
from hypertransport_core.postcard.clip import PostcardCLIP
from hypertransport_core.postcard.model import KIND, PostcardBackbone
from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig
from hypertransport_core.steering import Envelope, Steering
from hypertransport_core.transport import TransportMaps

CONFIG = UNetConfig(model_channels=32, transformer_depth=(0, 1), num_head_channels=32)


@pytest.fixture(scope="module")
def backbone() -> PostcardBackbone:
    torch.manual_seed(0)
    network = PostcardUNet(CONFIG)
    for p in network.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return PostcardBackbone(network, PostcardCLIP(["a", "red", "house"]))


def random_maps(backbone: PostcardBackbone, rows: int = 1) -> TransportMaps:
    maps = TransportMaps.identity(backbone.sites("all"), rows)
    g = torch.Generator().manual_seed(5)
    return TransportMaps(maps.sites, maps.scale + 0.3 * torch.randn(maps.scale.shape, generator=g), 0.3 * torch.randn(maps.shift.shape, generator=g))


def test_it_is_a_backbone(backbone: PostcardBackbone) -> None:
    assert isinstance(backbone, Backbone)
    assert backbone.latent_shape == (48, 16, 16)
    assert backbone.encode(["a red house", "house"]).shape == (2, 24, 192)
    assert not any(p.requires_grad for p in backbone.network.parameters()) and not backbone.network.training
    mine = json.loads(json.dumps(backbone.fingerprint()))
    assert files.weights_agreement(mine, backbone.network) == 1.0


def test_noise_of_a_row_depends_on_its_seed_only(backbone: PostcardBackbone) -> None:
    noise = backbone.noise([3, 2**64 - 1, 3])
    assert torch.equal(noise[0], noise[2]) and torch.equal(noise[1], backbone.noise([2**64 - 1])[0])
    assert not torch.equal(noise[0], noise[1]) and abs(noise.std() - 1) < 0.02
    assert backbone.noise([]).shape == (0, 48, 16, 16)


def test_noise_levels(backbone: PostcardBackbone) -> None:
    assert backbone.noise_levels(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert backbone.noise_levels(2, 0.5) == [0.5, 0.25, 0.0]
    for steps, start in ((0, 1.0), (4, 0.0), (4, 1.5)):
        with pytest.raises(ValueError, match="expected"):
            backbone.noise_levels(steps, start)


@torch.no_grad()
def test_sampling_is_eulers_method(backbone: PostcardBackbone) -> None:
    context, x = backbone.encode(["a red house", "house"]), backbone.noise([1, 2])
    got = backbone.sample(context, x, steps=4)
    for t, following in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)):
        x = x + (following - t) * (x - backbone.denoise(x, t, context)) / t
    torch.testing.assert_close(got, x, atol=1e-5, rtol=1e-5)
    assert torch.equal(backbone.sample(context, backbone.noise([1, 2]), steps=1), backbone.denoise(backbone.noise([1, 2]), 1.0, context))
    one = backbone.sample(context[1:], backbone.noise([2]), steps=4)
    torch.testing.assert_close(got[1:], one, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_steering_acts_at_its_levels_and_leaves_nothing(backbone: PostcardBackbone) -> None:
    context, x = backbone.encode(["a red house"]), backbone.noise([1, 2])
    plain = backbone.sample(context, x)
    maps = random_maps(backbone)
    steered = backbone.sample(context, x, steering=[Steering(maps)])
    assert (steered - plain).abs().max() > 0.01
    assert torch.equal(backbone.sample(context, x), plain)
    assert torch.equal(backbone.sample(context, x, steering=[Steering(maps, 0.0), Steering(maps, envelope=Envelope(0.5, 0.5))]), plain)
    assert torch.equal(backbone.sample(context, x, steering=[Steering(TransportMaps.identity(maps.sites))]), plain)
    halves = [Steering(maps, envelope=Envelope(1.0, 0.5)), Steering(maps, envelope=Envelope(0.5, 0.0))]
    assert torch.equal(backbone.sample(context, x, steering=halves), steered)
    some = backbone.sample(context, x, steering=[Steering(maps)], rows=torch.tensor([False, True]))
    torch.testing.assert_close(some, torch.stack([plain[0], steered[1]]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_maps_equal_single_runs(backbone: PostcardBackbone) -> None:
    context, x, maps = backbone.encode(["a red house"]), backbone.noise([1, 2]), random_maps(backbone, 2)
    together = backbone.sample(context, x, steering=[Steering(maps)])
    alone = torch.cat([backbone.sample(context, x[i:i + 1], steering=[Steering(maps.row(i))]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_maps_through_four_steps(backbone: PostcardBackbone) -> None:
    maps = random_maps(backbone)
    scale, shift = maps.scale.clone().requires_grad_(), maps.shift.clone().requires_grad_()
    out = backbone.sample(backbone.encode(["house"]), backbone.noise([1]), steering=[Steering(TransportMaps(maps.sites, scale, shift))])
    out.square().mean().backward()
    assert torch.isfinite(scale.grad).all() and scale.grad.any() and shift.grad.any()


def test_pictures_and_latents_are_inverse(backbone: PostcardBackbone) -> None:
    pictures = torch.rand(2, 3, 64, 64)
    latents = backbone.latents(pictures)
    assert latents.shape == (2, 48, 16, 16)
    torch.testing.assert_close(backbone.decode(latents), pictures, atol=1e-6, rtol=0)
    wild = backbone.decode(5 * latents)
    assert wild.min() == 0 and wild.max() == 1


def test_file_round_trip(backbone: PostcardBackbone, tmp_path: Path) -> None:
    path, clip_path = tmp_path / "model.safetensors", tmp_path / "clip.safetensors"
    files.save_file(path, {k: v.half() for k, v in backbone.network.state_dict().items()}, KIND, {"config": CONFIG.to_dict()}, {})
    backbone.clip.save(clip_path)
    loaded = PostcardBackbone.load(path, clip_path)
    assert loaded.network.out[2].weight.dtype == torch.float32
    assert files.weights_agreement(backbone.fingerprint(), loaded.network) > 0.99
    context, x = backbone.encode(["a red house"]), backbone.noise([1])
    with torch.no_grad():
        torch.testing.assert_close(loaded.denoise(x, 1.0, loaded.encode(["a red house"])), backbone.denoise(x, 1.0, context), atol=2e-2, rtol=2e-2)


def test_files_that_do_not_fit_are_refused(backbone: PostcardBackbone, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = dict(backbone.network.state_dict())
    for header in ({}, {"config": 3}, {"config": {"model_channels": 100}}, {"config": {"layers": 1}}, {"config": {"channel_mult": "ab"}},
                   {"config": {**CONFIG.to_dict(), "model_channels": 64}}):
        files.save_file(path, tensors, KIND, header, {})
        with pytest.raises(files.FileError, match="expected"):
            PostcardBackbone.load(path, backbone.clip)
    files.save_file(path, tensors, "hypernetwork", {"config": CONFIG.to_dict()}, {})
    with pytest.raises(files.FileError, match="hypernetwork"):
        PostcardBackbone.load(path, backbone.clip)
