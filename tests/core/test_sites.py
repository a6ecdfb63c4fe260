"""Finding sites: names, kinds and widths of real families, and refusals."""
from __future__ import annotations

import pytest
import torch
from small_networks import SmallDiT, small_dit, small_unet, unet_inputs
from torch import nn

from hypertransport_core.postcard.unet import PostcardUNet, UNetConfig
from hypertransport_core.sites import (
    SITE_KINDS,
    SITE_SETS,
    Site,
    SiteError,
    find_sites,
    output_module,
    site_module,
    site_slices,
    total_channels,
)


def tree(leaves: dict[str, nn.Module]) -> nn.Module:
    """A module tree that has the given modules at the given paths."""
    root = nn.Module()
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        node = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, nn.Module())
            node = getattr(node, parent)
        node.add_module(name, leaf)
    return root


def linear(width: int = 8) -> nn.Module:
    return nn.Linear(4, width)


def mlp(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))


def norm(width: int = 8) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=False)


FLUX = {
    "img_in": linear(), "txt_in": linear(), "double_blocks.0.img_attn.qkv": linear(24),
    "double_blocks.0.img_norm1": norm(), "double_blocks.0.img_attn.proj": linear(), "double_blocks.0.img_mlp": mlp(),
    "double_blocks.0.txt_attn.proj": linear(), "double_blocks.0.txt_mlp": mlp(),
    "single_blocks.0.linear1": linear(40), "single_blocks.0.linear2": linear(), "single_blocks.0.pre_norm": norm(),
    "final_layer.norm_final": norm(), "final_layer.linear": linear(),
}
SD3 = {
    "joint_blocks.0.x_block.attn.qkv": linear(24), "joint_blocks.0.x_block.attn.proj": linear(),
    "joint_blocks.0.x_block.attn2.proj": linear(), "joint_blocks.0.x_block.norm1": norm(),
    "joint_blocks.0.x_block.mlp": mlp(),
    "joint_blocks.0.context_block.attn.proj": linear(), "joint_blocks.1.context_block.norm1": norm(),
    "joint_blocks.1.context_block.attn.proj": nn.Identity(),
}
REFINER = "txt_in.individual_token_refiner.blocks.0"
WAN_CROSS = tree({"q": linear(), "o": linear(8), "v_img": linear(12)})
WAN = {
    "blocks.0.norm1": norm(), "blocks.0.self_attn": tree({"q": linear(), "o": linear()}),
    "blocks.0.cross_attn": WAN_CROSS, "blocks.0.ffn": mlp(), "head.norm": norm(), "head.head": linear(),
    f"{REFINER}.norm1": norm(), f"{REFINER}.mlp": mlp(),
}


@pytest.mark.parametrize(("leaves", "kinds"), [
    (FLUX, {"double_blocks.0.img_attn.proj": "self_attention", "double_blocks.0.txt_attn.proj": "self_attention",
            "double_blocks.0.img_mlp": "mlp", "double_blocks.0.txt_mlp": "mlp", "single_blocks.0.linear2": "mlp",
            "double_blocks.0.img_norm1": "norm", "single_blocks.0.pre_norm": "norm", "final_layer.norm_final": "norm"}),
    (SD3, {"joint_blocks.0.x_block.attn.proj": "self_attention", "joint_blocks.0.x_block.attn2.proj": "self_attention",
           "joint_blocks.0.x_block.mlp": "mlp", "joint_blocks.0.context_block.attn.proj": "self_attention",
           "joint_blocks.0.x_block.norm1": "norm", "joint_blocks.1.context_block.norm1": "norm"}),
    (WAN, {"blocks.0.self_attn": "self_attention", "blocks.0.cross_attn": "cross_attention", "blocks.0.ffn": "mlp",
           "blocks.0.norm1": "norm", "head.norm": "norm"}),
], ids=["flux", "sd3", "wan"])
def test_names_of_joint_transformers(leaves, kinds):
    sites = find_sites(tree(leaves), "everything")
    assert {site.path: site.kind for site in sites} == kinds
    assert {(site.channels, site.channel_dim) for site in sites} == {(8, -1)}


def test_sdxl_has_the_256_norms_of_the_paper():
    with torch.device("meta"):
        sdxl = PostcardUNet(UNetConfig(in_channels=4, out_channels=4, model_channels=320, channel_mult=(1, 2, 4),
                                       num_res_blocks=2, transformer_depth=(0, 2, 10), transformer_depth_middle=10,
                                       num_head_channels=64, context_dim=2048))
    norms = find_sites(sdxl, "norm")
    assert (len(norms), total_channels(norms)) == (256, 294_080)
    assert len(find_sites(sdxl, "mlp")) == 70
    assert len(find_sites(sdxl, "attention_mlp")) == 210


def test_pixart_sigma_has_57_norms():
    with torch.device("meta"):
        pixart = SmallDiT(width=1152, depth=28, affine=False)
    norms = find_sites(pixart, "norm")
    assert (len(norms), total_channels(norms)) == (57, 65_664)


def test_every_site_is_called_once_with_the_width_and_layout_it_claims():
    unet = small_unet()
    sites, seen = find_sites(unet, "everything"), []
    handles = [site_module(unet, site.path).register_forward_hook(lambda m, a, out, s=site: seen.append((s, out.shape)))
               for site in sites]
    unet(*unet_inputs())
    for handle in handles:
        handle.remove()
    assert {site.kind for site in sites} == set(SITE_KINDS)
    assert sorted(site.path for site, _ in seen) == sorted(site.path for site in sites)
    assert all(shape[site.channel_dim] == site.channels and len(shape) == (3 if site.channel_dim == -1 else 4)
               for site, shape in seen)


def test_order_sets_and_pattern():
    network = small_dit()
    everything = find_sites(network, "all")
    order = [name for name, _ in network.named_modules()]
    assert [order.index(site.path) for site in everything] == sorted(order.index(site.path) for site in everything)
    for name, kinds in SITE_SETS.items():
        assert find_sites(network, name) == tuple(s for s in find_sites(network, "everything") if s.kind in kinds)
    assert [s.path for s in find_sites(network, "mlp", pattern=r"^blocks\.1\.")] == ["blocks.1.mlp"]


def test_compiled_networks_have_the_same_sites():
    network = small_dit()
    expected = find_sites(network, "all")
    assert find_sites(torch.compile(network, backend="eager"), "all") == expected
    network.blocks[0] = torch.compile(network.blocks[0], backend="eager")
    assert find_sites(network, "all") == expected
    assert isinstance(site_module(network, "blocks.0.norm1"), nn.LayerNorm)


def test_slices_cover_the_row():
    sites = find_sites(small_unet(), "everything")
    slices = list(site_slices(sites).values())
    assert slices[0].start == 0 and slices[-1].stop == total_channels(sites)
    assert all(a.stop == b.start for a, b in zip(slices, slices[1:]))


def test_text_streams_are_told_apart():
    assert [s.path for s in find_sites(tree(FLUX), "attention_mlp") if s.is_text_stream] == [
        "double_blocks.0.txt_attn.proj", "double_blocks.0.txt_mlp"]
    assert any(s.is_text_stream for s in find_sites(tree(SD3), "norm"))


def test_composites_end_where_their_output_comes_from():
    assert output_module(WAN_CROSS, "x")[0] == "x.o"
    assert output_module(mlp(), "x")[0] == "x.2"
    assert output_module(nn.Sequential(linear(), nn.Identity()))[0] == "0"


@pytest.mark.parametrize(("call", "words"), [
    (lambda: find_sites(small_dit(), "attn"), "no site set 'attn'"),
    (lambda: find_sites(small_dit(), pattern="("), "not a regular expression"),
    (lambda: find_sites(small_dit(), pattern="nowhere"), "matching 'nowhere'"),
    (lambda: find_sites(nn.Linear(2, 2)), "Linear has no sites"),
    (lambda: find_sites(tree({"blocks.0.mlp": nn.GELU()})), "blocks.0.mlp"),
    (lambda: site_module(small_dit(), "blocks.9.mlp"), "blocks.9.mlp"),
    (lambda: Site("a", "attention", 4), "'attention'"),
    (lambda: Site("a", "mlp", 0), "0 channels"),
    (lambda: Site("a", "mlp", 4, 2), "channel_dim 2"),
])
def test_refusals_are_one_sentence_that_names_the_fault(call, words):
    with pytest.raises(SiteError) as refusal:
        call()
    message = str(refusal.value)
    assert words in message and message.endswith(".") and ". " not in message
