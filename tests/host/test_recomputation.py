"""Gradient checkpointing on the host's own models: same gradients, also where blocks add in place, for less memory."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from pack import pack_module
from tests.host.test_fit import word_clip
from tests.host.test_sites_families import TINY_HUNYUAN

# Deeper than the usual small models, so that what is inside blocks outweighs the rest.
DEEPER: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sdxl": {"transformer_depth": [3, 3], "transformer_depth_output": [3, 3, 3, 3], "transformer_depth_middle": 3},
    "pixart": {"depth": 6},
    "sd3": {
        "depth": 6,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 16, "out_features": 384}},
    },
    "flux": {"depth": 4, "depth_single_blocks": 4},
    "wan": {"num_layers": 6},
    "hunyuan_image": {"depth": 4, "depth_single_blocks": 4},
}
# What runs twice, by class; the text refiner's blocks of HunyuanImage as well.
BLOCKS = {
    "sd15": {"ResBlock", "BasicTransformerBlock"},
    "sdxl": {"ResBlock", "BasicTransformerBlock"},
    "pixart": {"PixArtMSBlock"},
    "sd3": {"JointBlock"},
    "flux": {"DoubleStreamBlock", "SingleStreamBlock"},
    "wan": {"WanAttentionBlock"},
    "hunyuan_image": {"DoubleStreamBlock", "SingleStreamBlock", "TokenRefinerBlock"},
}


def backbone_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from tests.support import tiny_hosts

    small = tiny_hosts.FAMILIES.get(name) or tiny_hosts.Family("HunyuanImage21", TINY_HUNYUAN, (64, 8, 8), 16)
    monkeypatch.setitem(tiny_hosts.FAMILIES, name, replace(small, config={**small.config, **DEEPER[name]}))
    host = tiny_hosts.TinyHost(name, tiny_hosts.build(name))
    clip = word_clip(host.family.context, host.family.pooled)
    return pack_module("hypertransport_core.backbones.host_backbone").HostBackbone(
        host.model, clip, latent=host.latent()
    )


@pytest.mark.parametrize("name", DEEPER)
def test_gradients_are_those_without_and_memory_is_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputation = pack_module("hypertransport_core.training.recomputation")
    meter = pack_module("hypertransport_core.training.meter").Meter
    maps_of, call = (
        pack_module("hypertransport_core.transport").TransportMaps,
        pack_module("hypertransport_core.measuring").one_call,
    )
    backbone = backbone_of(name, monkeypatch)
    assert {type(block).__name__ for block in recomputation.find_blocks(backbone.network).values()} == BLOCKS[name]
    sites = backbone.sites("all")
    width, generator = sum(site.channels for site in sites), torch.Generator().manual_seed(0)
    values = [1 + 0.1 * torch.randn(2, width, generator=generator), 0.1 * torch.randn(2, width, generator=generator)]
    noise, conditioning = backbone.noise(range(4)), backbone.encode(["a red house", "a cat in the rain"] * 2)
    results, peaks = [], []
    for context in (nullcontext(), recomputation.checkpointed(backbone.network)):
        scale, shift = (value.clone().requires_grad_() for value in values)
        with meter() as counted:
            with context:
                rows = torch.tensor([0, 0, 1, 1])
                seen, clean = call(backbone, noise, 0.7, conditioning, sites, maps_of(sites, scale, shift), rows)
            # Nothing is installed any more when backward runs.
            loss = seen.square().mean() + clean.square().mean()
            loss.backward()
        results.append((float(loss), scale.grad, shift.grad))
        peaks.append(counted.peak)
        assert not any("forward" in module.__dict__ for module in backbone.network.modules())
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-6)
    for plain, saving in zip(results[0][1:], results[1][1:]):
        assert bool(plain.abs().max() > 0)
        assert float((plain - saving).abs().max()) <= 1e-5 * float(plain.abs().max())
    assert peaks[1] < 0.5 * peaks[0]
