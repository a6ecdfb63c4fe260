"""Folded weights do what live steering does."""
from __future__ import annotations

import copy

import pytest
import torch
from small_networks import random_maps, small_dit, small_unet, unet_inputs
from torch import nn

from hypertransport_core import folding, steering
from hypertransport_core.sites import Site, SiteError, find_sites
from hypertransport_core.steering import Steering
from hypertransport_core.transport import FoldError, TransportMaps


def folded_copy(network: nn.Module, values: dict[str, torch.Tensor]) -> nn.Module:
    twin = copy.deepcopy(network)
    twin.load_state_dict({**network.state_dict(), **values})
    return twin


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("strength", [-0.5, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("site_set", ["attention_mlp", "norm", "everything"])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_folded_equals_live(kind, site_set, strength):
    network = small_unet() if kind == "unet" else small_dit()
    inputs = unet_inputs() if kind == "unet" else (torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)),)
    maps = random_maps(find_sites(network, site_set))
    base = network(*inputs)
    with Steering(maps, strength).installed(network):
        live = network(*inputs)
    folded = folded_copy(network, folding.fold_maps(network, maps, strength))(*inputs)
    assert relative(live, base) > 1e-3
    assert relative(folded, live) < 1e-5


def test_only_the_layers_that_end_the_sites_change_and_the_network_does_not():
    network = small_unet()
    before = copy.deepcopy(network.state_dict())
    values = folding.fold_maps(network, random_maps(find_sites(network, "attention_mlp")))
    assert {name.rsplit(".", 1)[0].rsplit("transformer_blocks.0.", 1)[1] for name in values} == {
        "attn1.to_out.0", "attn2.to_out.0", "ff.net.2"}
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(value.requires_grad for value in values.values())


def test_dtype_stays_and_strength_zero_changes_nothing():
    network = small_dit().to(torch.bfloat16)
    maps = random_maps(find_sites(network))
    assert {value.dtype for value in folding.fold_maps(network, maps, 0.5).values()} == {torch.bfloat16}
    assert folding.fold_maps(network, maps, 0.0) == {}


def test_a_layer_without_bias_takes_a_map_without_shift():
    network = nn.Module()
    network.layer = nn.Linear(3, 2, bias=False)
    site = (Site("layer", "mlp", 2),)
    values = folding.fold_maps(network, TransportMaps(site, torch.tensor([[2.0, 3.0]]), torch.zeros(1, 2)), 1.0)
    assert set(values) == {"layer.weight"}
    torch.testing.assert_close(values["layer.weight"], network.layer.weight.detach() * torch.tensor([[2.0], [3.0]]))
    with pytest.raises(FoldError, match=r"'layer' has no bias to take the shift"):
        folding.fold_maps(network, random_maps(site))


def test_refusals_name_the_sites():
    network = small_dit(affine=False)
    with pytest.raises(FoldError, match=r"5 of 11 sites cannot fold \('blocks.0.norm1' has no learned.*and 1 more"):
        folding.fold_maps(network, random_maps(find_sites(network, "all")))
    with pytest.raises(FoldError, match="2 rows"):
        folding.fold_maps(network, random_maps(find_sites(network), rows=2))
    with pytest.raises(FoldError, match="has 8 channels instead of 4"):
        folding.fold_maps(network, random_maps([Site("blocks.0.mlp", "mlp", 4)]))
    with pytest.raises(SiteError, match="blocks.7.mlp"):
        folding.fold_maps(network, random_maps([Site("blocks.7.mlp", "mlp", 8)]))


def test_steering_offers_folding_too():
    assert steering.fold_maps is folding.fold_maps and steering.FoldError is FoldError
