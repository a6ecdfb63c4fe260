"""Where steering acts: masks on latents of any size, per picture, on areas of the picture, and on video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack import pack_module


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


def steer(model: Any, maps: Any, strength: Any = 1.0, **options: Any) -> Any:
    return pack_module("nodes.interception").steer_model(model, maps, strength, **options)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def left(height: int = 8, width: int = 8, value: float = 1.0) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[..., : width // 2] = value
    return mask


def test_only_the_part_under_the_mask_is_steered():
    """On one site whose output goes straight to the picture: PixArt's last norm works on each token alone."""
    from tiny_hosts import tiny_host

    pixart = tiny_host("pixart")
    maps = pixart.maps().change(lambda one: one.onto([s for s in one.sites if s.path == "final_layer.norm_final"]))
    run = {"steps": 1, "cfg": 1.0}
    base, full, half = (
        pixart.sample(model, **run)
        for model in (pixart.model, steer(pixart.model, maps), steer(pixart.model, maps, mask=left(34, 36)))
    )
    # 17 tokens of 2 x 2: eight on the left, one in the middle that is half under the mask, eight on the right
    assert torch.equal(half[..., :16], full[..., :16]) and torch.equal(half[..., 18:], base[..., 18:])
    assert off(half[..., 16:18], (base + full)[..., 16:18] / 2) < 1e-4


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (512, 512), (128, 64)])
def test_masks_of_any_size_and_shape_are_stretched_over_the_picture(unet, size):
    expected = unet.sample(steer(unet.model, unet.maps(), mask=left()))
    assert off(unet.sample(steer(unet.model, unet.maps(), mask=left(*size))), expected) < 1e-6
    assert off(expected, unet.sample(steer(unet.model, unet.maps()))) > 1e-3 and off(expected, unet.sample()) > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_batch_of_masks_is_one_per_picture(unet, cfg):
    """With guidance the batch is rows x conds, rows innermost."""
    masks = torch.cat([left(), 1 - left(), left(value=0.3)])
    maps, noise = unet.maps(amount=0.05), unet.noise(3)
    together = unet.sample(steer(unet.model, maps, mask=masks), batch=3, cfg=cfg)
    for row in range(3):
        alone = unet.sample(steer(unet.model, maps, mask=masks[row : row + 1]), noise=noise[row : row + 1], cfg=cfg)
        assert off(together[row : row + 1], alone) < 1e-4
    with pytest.raises(ValueError, match="3 rows, but the latent batch has 2"):
        unet.sample(steer(unet.model, maps, mask=masks), batch=2)


def test_masks_meet_rows_of_maps_and_scopes(unet):
    masks, maps, noise = torch.cat([left(), 1 - left()]), unet.maps(rows=2, amount=0.05), unet.noise(2)
    together = unet.sample(steer(unet.model, maps, torch.tensor([1.0, 0.5]), mask=masks, scope="positive"), batch=2)
    for row, strength in enumerate((1.0, 0.5)):
        one = steer(unet.model, maps.change(lambda m: m.row(row)), strength, mask=masks[row], scope="positive")
        assert off(together[row : row + 1], unet.sample(one, noise=noise[row : row + 1])) < 1e-4


@pytest.mark.parametrize("name", ["sd15", "flux"])
@pytest.mark.parametrize("size", [(8, 8), (64, 64)])
def test_an_area_sees_its_part_of_the_mask(name, size):
    from tiny_hosts import tiny_host

    tiny = tiny_host(name)
    maps, run = tiny.maps(site_set="mlp" if name == "sd15" else "attention_mlp"), {"steps": 1, "cfg": 1.0}
    # Flux's text tokens and joint blocks have no grid, and are left alone under any mask
    maps = maps.change(lambda m: m.onto([s for s in m.sites if not s.is_text_stream and "single_blocks" not in s.path]))
    for start, inside, outside in ((0, left(*size), 1 - left(*size)), (4, 1 - left(*size), left(*size))):
        positive = tiny.cond(11, area=(8, 4, 0, start), strength=1.0)
        base, full = (tiny.sample(model, positive=positive, **run) for model in (tiny.model, steer(tiny.model, maps)))
        part = (..., slice(start, start + 4))
        within, without = (
            tiny.sample(steer(tiny.model, maps, mask=mask), positive=positive, **run) for mask in (inside, outside)
        )
        assert torch.equal(within[part], full[part]) and torch.equal(without[part], base[part])
        assert off(full[part], base[part]) > 1e-3


def test_areas_of_the_same_size_share_a_batch_and_keep_their_own_part(unet):
    """Two halves of the picture in one network call, one under the mask."""
    maps, run = unet.maps(), {"steps": 1, "cfg": 1.0}
    halves = [unet.cond(seed, area=(8, 4, 0, start), strength=1.0) for seed, start in ((11, 0), (13, 4))]
    base, full, masked = (
        unet.sample(model, positive=halves[0] + halves[1], **run)
        for model in (unet.model, steer(unet.model, maps), steer(unet.model, maps, mask=left()))
    )
    # the host blends areas where they meet, so compare away from the seam
    assert off(masked[..., :3], full[..., :3]) < 1e-5 and off(masked[..., 5:], base[..., 5:]) < 1e-5


def test_joint_blocks_are_steered_under_the_mask_too():
    """Flux's last block: text and picture in one row, each token on its own from there on."""
    from tiny_hosts import tiny_host

    flux = tiny_host("flux")
    maps = flux.maps().change(lambda m: m.onto([s for s in m.sites if s.path == "single_blocks.0.linear2"]))
    run = {"steps": 1, "cfg": 1.0}
    base, full, half = (
        flux.sample(model, **run)
        for model in (flux.model, steer(flux.model, maps), steer(flux.model, maps, mask=left()))
    )
    assert torch.equal(half[..., :4], full[..., :4]) and torch.equal(half[..., 4:], base[..., 4:])
    assert off(full, base) > 1e-3


def test_a_mask_lies_on_every_frame_of_a_video():
    from tiny_hosts import tiny_host

    wan = tiny_host("wan")
    maps = wan.maps(site_set="everything").change(lambda m: m.onto([s for s in m.sites if s.path == "head.norm"]))
    run = {"steps": 1, "cfg": 1.0}
    base, full, half = (
        wan.sample(model, **run) for model in (wan.model, steer(wan.model, maps), steer(wan.model, maps, mask=left()))
    )
    assert torch.equal(half[..., :4], full[..., :4]) and torch.equal(half[..., 4:], base[..., 4:])


def test_the_mask_follows_the_size_of_the_picture(unet):
    """One steered model, latents of several sizes in turn."""
    steered = steer(unet.model, unet.maps(), mask=left(64, 64))
    for size in (8, 16, 8):
        latent = torch.zeros(1, 4, size, size)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(size))
        fresh = steer(unet.model, unet.maps(), mask=left(64, 64))
        assert torch.equal(
            unet.sample(steered, latent=latent, noise=noise), unet.sample(fresh, latent=latent, noise=noise)
        )
