"""Maps as LoRA tensors: what a loader does with them is what folding does. The loader's arithmetic is written out here;
tests/host/test_lora.py asks the real one."""
from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

from hypertransport_core.folding import FoldError, fold_maps
from hypertransport_core.lora import FORMS, lora_tensors, save_lora, size_in_bytes
from hypertransport_core.sites import Site
from hypertransport_core.transport import TransportMaps
from tests.support.tiny_backbone import TinyBackbone

SET = "all"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return TinyBackbone().network


def random_maps(sites, seed: int = 0, rows: int = 1) -> TransportMaps:
    g = torch.Generator().manual_seed(seed)
    width = sum(site.channels for site in sites)
    return TransportMaps(sites, 1 + 0.5 * torch.randn(rows, width, generator=g), torch.randn(rows, width, generator=g))


def applied(network: nn.Module, tensors: dict, strength: float = 1.0) -> dict:
    """{parameter name: value} as the host's loader computes it, see comfy/weight_adapter/base.py: weight_decompose."""
    values = dict(network.named_parameters())
    out = {}
    for key, value in tensors.items():
        path, _, what = key.removeprefix("diffusion_model.").rpartition(".")
        if what == "diff":
            out[path + ".weight"] = values[path + ".weight"] + strength * value
        elif what == "diff_b":
            out[path + ".bias"] = values[path + ".bias"] + strength * value
        elif what == "dora_scale":
            w = values[path + ".weight"]
            length = w.flatten(1).norm(dim=1, keepdim=True).reshape(value.shape) + torch.finfo(w.dtype).eps
            out[path + ".weight"] = w + strength * (w * value / length - w)
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0, 1.7])
def test_a_loader_gets_the_folded_weights(network: nn.Module, form: str, strength: float) -> None:
    maps = random_maps(TinyBackbone().sites(SET))
    found, folded = applied(network, lora_tensors(network, maps, strength, form=form)), fold_maps(network, maps, strength)
    assert found.keys() == folded.keys()
    for name, value in folded.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_loaders_slider_is_the_strength(network: nn.Module, form: str) -> None:
    maps = random_maps(TinyBackbone().sites(SET))
    found, folded = applied(network, lora_tensors(network, maps, form=form), 0.4), fold_maps(network, maps, 0.4)
    for name, value in folded.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_a_small_file_is_small_and_shift_only_maps_need_no_weights() -> None:
    wide = nn.ModuleDict({"a": nn.Linear(512, 256)})
    sites = (Site("a", "mlp", 256),)
    small, full = (lora_tensors(wide, random_maps(sites), form=form) for form in ("small", "full"))
    assert size_in_bytes(small) < 0.02 * size_in_bytes(full)
    shift_only = TransportMaps(sites, torch.ones(1, 256), torch.randn(1, 256))
    for form in FORMS:
        assert [key for key in lora_tensors(wide, shift_only, form=form)] == ["diffusion_model.a.diff_b"]


def test_rows_of_zeros_and_scale_zero_are_finite(network: nn.Module) -> None:
    layer = nn.ModuleDict({"a": nn.Linear(4, 3)})
    with torch.no_grad():
        layer["a"].weight[1] = 0.0
    maps = TransportMaps((Site("a", "mlp", 3),), torch.tensor([[2.0, 3.0, 0.0]]), torch.zeros(1, 3))
    found, folded = applied(layer, lora_tensors(layer, maps)), fold_maps(layer, maps)
    torch.testing.assert_close(found["a.weight"], folded["a.weight"], atol=1e-6, rtol=1e-6)


def test_given_weights_win_over_patched_ones() -> None:
    layer = nn.ModuleDict({"a": nn.Linear(4, 3)})
    original = {name: value.detach().clone() for name, value in layer.named_parameters()}
    maps = random_maps((Site("a", "mlp", 3),))
    expected = lora_tensors(layer, maps, form="full")
    with torch.no_grad():
        layer["a"].weight.add_(1.0)
    for key, value in lora_tensors(layer, maps, form="full", original=original.get).items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("layer, scale, shift, words", [
    (nn.LayerNorm(4, elementwise_affine=False), 2.0, 1.0, "'a' has no learned affine"),
    (nn.Linear(2, 4, bias=False), 2.0, 1.0, "'a' has no bias to take the shift"),
    (nn.Linear(2, 5), 2.0, 1.0, "5 channels instead of 4"),
    (nn.Linear(2, 4), 1.0, 0.0, "change nothing"),
])
def test_refusals_name_the_site_and_the_reason(layer: nn.Module, scale: float, shift: float, words: str) -> None:
    maps = TransportMaps((Site("a", "norm", 4),), torch.full((1, 4), scale), torch.full((1, 4), shift))
    with pytest.raises(FoldError, match=words):
        lora_tensors(nn.ModuleDict({"a": layer}), maps)


def test_a_layer_without_bias_takes_a_scale(network: nn.Module) -> None:
    layer = nn.ModuleDict({"a": nn.Linear(2, 4, bias=False)})
    maps = TransportMaps((Site("a", "mlp", 4),), torch.full((1, 4), 2.0), torch.zeros(1, 4))
    torch.testing.assert_close(applied(layer, lora_tensors(layer, maps))["a.weight"], 2 * layer["a"].weight)


def test_several_concepts_are_refused(network: nn.Module) -> None:
    with pytest.raises(FoldError, match="2 concepts"):
        lora_tensors(network, random_maps(TinyBackbone().sites(), rows=2))


def test_file(tmp_path, network: nn.Module) -> None:
    tensors = lora_tensors(network, random_maps(TinyBackbone().sites()))
    save_lora(tmp_path / "x.safetensors", tensors, {"modelspec.title": "fog", "ss_steps": 3})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata()["modelspec.title"] == "fog" and file.metadata()["ss_steps"] == "3"
        assert set(file.keys()) == set(tensors)
