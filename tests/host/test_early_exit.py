"""A call that ends at its last site has read what the whole call reads, on every family's own order of modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack import load_pack

NAMES = ("sd15", "sdxl", "pixart", "flux", "sd3", "wan", "hunyuan_image")


@pytest.mark.parametrize("name", NAMES)
def test_early_exit_misses_no_site(name: str) -> None:
    load_pack()
    import host_training
    import tiny_hosts
    from hypertransport_core.backbones import host_backbone
    from hypertransport_core.capture import PooledCapture
    from hypertransport_core.sites import SITE_SETS
    from tests.host.test_host_levels import PROMPTS, backbone_of

    assert set(NAMES) == set(host_training.FAMILIES)
    backbone: Any = backbone_of(host_backbone, tiny_hosts.tiny_host(name))
    conditioning, noise = backbone.encode(PROMPTS), backbone.noise([1, 2])
    with torch.no_grad():
        for site_set in SITE_SETS:
            sites, whole = backbone.sites(site_set), None
            with PooledCapture(backbone.network, sites) as everything:
                whole = backbone.denoise(noise, 1.0, conditioning)
            rest = None
            with PooledCapture(backbone.network, sites, stop_after_last_site=True) as early:
                rest = backbone.denoise(noise, 1.0, conditioning)
            assert whole is not None and rest is None, site_set
            assert torch.equal(early.features(), everything.features()), site_set
            assert early.features().shape == (2, sum(site.channels for site in sites))
