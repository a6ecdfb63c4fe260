"""ComfyUI's own UNetModel, samplers and VAE run Postcard and agree with our own code."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hypertransport_core.postcard.model import PostcardBackbone, load_network
from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig

SHIPPED = Path(__file__).parents[2] / "weights" / "postcard.safetensors"
SMALL = UNetConfig(model_channels=32, context_dim=24, num_head_channels=16)
CONFIGS = {
    "two levels": SMALL,
    "three levels, own depths": UNetConfig(model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=(1, 2, 1), transformer_depth=(0, 1, 2),
                                           transformer_depth_middle=2, num_head_channels=-1, num_heads=4, context_dim=24),
    "no attention in the middle": UNetConfig(model_channels=32, transformer_depth=(1, 0), transformer_depth_middle=-1, context_dim=24),
}


class FakeClip(torch.nn.Module):
    """Sampling needs none; only its device is read."""

    device = torch.device("cpu")


def randomised(network: PostcardUNet, seed: int = 0) -> PostcardUNet:
    """No layer left at zero, so nothing is hidden behind a residual branch that is off."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.05))
    return network.eval().requires_grad_(False)


def inputs(config: UNetConfig, rows: int = 2, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, config.in_channels, 16, 16, generator=g)
    return x, torch.rand(rows, generator=g) * 1000, torch.randn(rows, 24, config.context_dim, generator=g)


def host_unet(network: PostcardUNet) -> torch.nn.Module:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    theirs = UNetModel(**network.config.to_comfy_config()).eval()
    theirs.load_state_dict(network.state_dict(), strict=True)
    return theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_hosts_unet_computes_the_same(name: str) -> None:
    network = randomised(PostcardUNet(CONFIGS[name]))
    x, t, context = inputs(network.config)
    with torch.no_grad():
        ours, theirs = network(x, t, context), host_unet(network)(x, t, context)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_hosts_unet_runs_the_shipped_file() -> None:
    network = load_network(SHIPPED).eval()
    x, t, context = inputs(network.config)
    with torch.no_grad():
        torch.testing.assert_close(host_unet(network)(x, t, context), network(x, t, context), atol=1e-4, rtol=1e-4)


def host_sample(model, sigmas: list[float], noise: torch.Tensor, context: torch.Tensor, latent: torch.Tensor | None = None,
                cfg: float = 1.0, negative: torch.Tensor | None = None) -> torch.Tensor:
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros_like(noise) if latent is None else latent
    negative = torch.zeros_like(context) if negative is None else negative
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, noise, cfg, comfy.samplers.sampler_object("euler"), torch.tensor(sigmas), [[context, {}]],
                                          [[negative, {}]], latent, disable_pbar=True, seed=0)


@pytest.mark.parametrize("steps", [1, 4])
def test_hosts_euler_equals_our_sampling(steps: int) -> None:
    from hypertransport_core.backbones.comfyui import postcard_model

    network = randomised(PostcardUNet(SMALL))
    backbone = PostcardBackbone(network, FakeClip())
    noise, context = backbone.noise([3]), inputs(SMALL, 1)[2]
    ours = backbone.sample(context, noise, steps=steps)
    theirs = host_sample(postcard_model(network.state_dict(), SMALL), backbone.noise_levels(steps), noise, context)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_hosts_schedulers_cfg_and_partial_denoising_fit() -> None:
    import comfy.samplers
    from hypertransport_core.backbones.comfyui import postcard_model

    network = randomised(PostcardUNet(SMALL))
    backbone = PostcardBackbone(network, FakeClip())
    model = postcard_model(network.state_dict(), SMALL)
    noise, context = backbone.noise([3]), inputs(SMALL, 1)[2]
    negative = torch.zeros_like(context)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    picture = torch.rand(1, 3, 64, 64)
    latent = backbone.latents(picture)
    half = host_sample(model, [0.5, 0.25, 0.0], noise, context, latent)
    torch.testing.assert_close(half, backbone.sample(context, 0.5 * noise + 0.5 * latent, steps=2, start=0.5), atol=1e-4, rtol=1e-4)
    guided = host_sample(model, [1.0, 0.0], noise, context, cfg=3.0, negative=negative)
    with torch.no_grad():
        pos, neg = (backbone.denoise(noise, 1.0, c) for c in (context, negative))
    torch.testing.assert_close(guided, neg + 3.0 * (pos - neg), atol=1e-3, rtol=1e-3)


def test_hosts_vae_is_exact() -> None:
    from hypertransport_core.backbones.comfyui import postcard_vae

    vae, backbone = postcard_vae(), PostcardBackbone(PostcardUNet(SMALL), FakeClip())
    pictures = torch.rand(2, 64, 64, 3)
    latents = vae.encode(pictures)
    assert latents.shape == (2, 48, 16, 16)
    torch.testing.assert_close(latents, backbone.latents(pictures.movedim(-1, 1)), atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.decode(latents), pictures, atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.decode_tiled(latents, tile_x=16, tile_y=16, overlap=4), pictures, atol=1e-5, rtol=0)


def test_preview_shows_the_mean_of_each_square() -> None:
    from hypertransport_core.backbones.comfyui import PostcardLatents

    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    factors = torch.tensor(PostcardLatents().latent_rgb_factors)
    preview = torch.nn.functional.linear(torch.nn.functional.pixel_unshuffle(picture, 4).movedim(1, -1), factors.T)
    torch.testing.assert_close(preview.movedim(-1, 1), torch.nn.functional.avg_pool2d(picture, 4), atol=1e-5, rtol=0)


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from hypertransport_core import files
    from hypertransport_core.backbones.comfyui import load_postcard_model

    tensors = PostcardUNet(SMALL).state_dict()
    tensors.pop("out.2.bias")
    files.save_file(tmp_path / "x.safetensors", tensors, "postcard_model", {"config": SMALL.to_dict()}, {})
    with pytest.raises(files.FileError, match="out.2.bias|whole Postcard network"):
        load_postcard_model(tmp_path / "x.safetensors")
