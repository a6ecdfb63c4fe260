"""Live steering under a mask: which tokens and pixels of which row are steered, on every grid."""
from __future__ import annotations


import pytest
import torch
from small_networks import network_case, random_maps, small_unet, steered, unet_inputs
from torch import nn

from hypertransport_core.masks import mask_for, token_grid
from hypertransport_core.sites import Site, find_sites
from hypertransport_core.steering import Steering


@pytest.fixture(params=["unet", "dit"])
def case(request) -> tuple[nn.Module, tuple, tuple[Site, ...]]:
    """A network, inputs of batch 3 and all of its sites."""
    return network_case(request.param)


def test_mask_steers_inside_only():
    network, z = nn.Module(), torch.randn(2, 3, 4, 6)
    network.site = nn.Identity()
    maps = random_maps([Site("site", "convolution", 3, 1)], amount=0.5)
    mask = torch.zeros(8, 12)
    mask[:, :6] = 1
    with Steering(maps).installed(network):
        full = network.site(z)
    with Steering(maps, mask=mask).installed(network):
        half = network.site(z)
    assert torch.equal(half[..., :3], full[..., :3]) and torch.equal(half[..., 3:], z[..., 3:])


def test_mask_is_a_factor_on_the_strength(case):
    network, inputs, sites = case
    maps = random_maps(sites)
    got = steered(network, inputs, Steering(maps, 0.8, mask=torch.full((8, 8), 0.25)))
    torch.testing.assert_close(got, steered(network, inputs, Steering(maps, 0.2)))
    everywhere = steered(network, inputs, Steering(maps, mask=torch.ones(8, 8)))
    assert torch.equal(everywhere, steered(network, inputs, Steering(maps)))


def test_masks_differ_by_row_and_meet_row_choice(case):
    network, inputs, sites = case
    maps = random_maps(sites)
    mask = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.ones(8, 8)])
    got = steered(network, inputs, Steering(maps, mask=mask), rows=torch.tensor([True, True, False]))
    base, full = network(*inputs), steered(network, inputs, Steering(maps))
    torch.testing.assert_close(got, torch.stack([base[0], full[1], base[2]]))
    assert torch.equal(got[2], base[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_keep_the_dtype(dtype):
    network = small_unet().to(dtype)
    x, t, context = unet_inputs()
    inputs = (x.to(dtype), t, context.to(dtype))
    maps = random_maps(find_sites(network, "all"))
    mask = torch.zeros(8, 8)
    mask[2:5] = 0.5
    assert steered(network, inputs, Steering(maps, mask=mask)).dtype == dtype


@pytest.mark.parametrize(("tokens", "size", "grid"), [
    (64, (8, 8), (8, 8)), (16, (512, 512), (4, 4)), (96, (512, 768), (8, 12)), (24, (4, 6), (4, 6)),
    (54, (2, 3), (6, 9)), (289, (33, 33), (17, 17)), (117, (33, 50), (9, 13)), (77, (64, 64), None),
    (65, (64, 64), None), (8, (64, 64), None),
])
def test_grids_of_tokens(tokens, size, grid):
    assert token_grid(tokens, *size) == grid


def test_tokens_are_laid_out_row_by_row():
    mask = torch.zeros(2, 4)
    mask[0, 3] = 1
    laid = mask_for(torch.zeros(1, 8, 5), Site("site", "mlp", 5), mask)
    assert laid.shape == (1, 8, 1) and laid.flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


def test_frames_of_a_video_each_have_the_grid():
    mask = torch.zeros(2, 4)
    mask[0, 3] = 1
    site = Site("blocks.0.ffn", "mlp", 5)
    laid = mask_for(torch.zeros(1, 32, 5), site, mask, frames=4)
    assert laid.shape == (1, 32, 1) and laid.flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 0] * 4
    assert mask_for(torch.zeros(1, 30, 5), site, mask, frames=4) is None


def test_joint_blocks_have_a_grid_after_their_text():
    mask = torch.zeros(2, 4)
    mask[0, 3] = 1
    site, z = Site("single_blocks.0.linear2", "mlp", 5), torch.zeros(1, 11, 5)
    assert mask_for(z, site, mask) is None and mask_for(torch.zeros(1, 8, 5), site, mask) is None
    laid = mask_for(z, site, mask, text_tokens=3)
    assert laid.shape == (1, 11, 1) and laid.flatten().tolist() == [0] * 6 + [1] + [0] * 4
    assert mask_for(torch.zeros(1, 8, 5), Site("blocks.0.mlp", "mlp", 5), mask, text_tokens=3).shape == (1, 8, 1)


def test_a_mask_can_be_given_per_call():
    network, z = nn.Module(), torch.randn(2, 8, 3)
    network.site = nn.Identity()
    steering = Steering(random_maps([Site("site", "mlp", 3)], amount=0.5))
    own = Steering(steering.maps, mask=torch.eye(4)[:2])
    with own.installed(network):
        expected = network.site(z)
    with steering.installed(network, mask=torch.eye(4)[:2]):
        assert torch.equal(network.site(z), expected)
    with own.installed(network, mask=torch.eye(4)[:2].flip(0)):
        assert not torch.equal(network.site(z), expected)


def test_sites_without_a_picture_grid_are_left_alone_under_a_mask():
    mask = torch.ones(4, 4)
    assert mask_for(torch.zeros(1, 17, 5), Site("blocks.0.mlp", "mlp", 5), mask) is None
    assert mask_for(torch.zeros(1, 16, 5), Site("double_blocks.0.txt_mlp", "mlp", 5), mask) is None
    assert mask_for(torch.zeros(1, 5), Site("blocks.0.mlp", "mlp", 5), mask) is None
    assert mask_for(torch.zeros(1, 5, 2, 4, 4), Site("a", "convolution", 5, 1), mask) is None
