"""Inspect Maps in the real host."""
from __future__ import annotations

import pytest
import torch

from pack import load_pack, pack_module, run_node


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart", "sd3", "flux", "wan"])
def test_every_family_is_drawn(name: str) -> None:
    load_pack()
    from tests.support.tiny_hosts import tiny_host

    inspect, host = pack_module("nodes.inspect"), tiny_host(name)
    with torch.inference_mode():
        plot, text = run_node(inspect.InspectMaps, maps=host.maps(1), second_maps=host.maps(2))
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[2:] == (1800, 3) and plot.dtype == torch.float32
    assert text.startswith("concept 1: ") and "Compared with concept 2" in text


def test_alone_and_with_maps_of_another_model() -> None:
    load_pack()
    from tests.support.tiny_hosts import tiny_host

    inspect = pack_module("nodes.inspect")
    one, other = tiny_host("sd15").maps(), tiny_host("wan").maps()
    plot, text = run_node(inspect.InspectMaps, maps=one)
    assert plot.shape[1] > 400 and "Compared" not in text
    with pytest.raises(ValueError, match="no site in common"):
        run_node(inspect.InspectMaps, maps=one, second_maps=other)
