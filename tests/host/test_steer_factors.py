"""HyperTransport Steer: factors by depth and kind of layer, layers by name, per picture, and a curve over the schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack import pack_module
from steer_nodes import concept, make_weights, node, one_sentence, steer
from steering_checks import off


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


@pytest.fixture(params=[1, 2], ids=["one set of maps", "maps per step"])
def weights(request, unet, tmp_path) -> Any:
    return make_weights(unet, tmp_path / "weights.safetensors", steps=request.param)


def test_factors_leave_sites_alone_and_split_the_depth(unet, weights):
    maps = pack_module("nodes.prediction").predict(weights, concept(1))
    sites, steer_model = maps.steps[0].sites, pack_module("nodes.interception").steer_model
    only_mlp = maps.change(lambda one: one.onto([s for s in sites if s.kind == "mlp"]))
    others = {"self_attention": 0.0, "cross_attention": 0.0, "norm": 0.0}
    assert torch.equal(
        unet.sample(steer(unet, weights, concept(1), **others)), unet.sample(steer_model(unet.model, only_mlp))
    )
    third = len(sites) // 3
    early = maps.change(lambda one: one.onto(sites[:third]))
    assert torch.equal(
        unet.sample(steer(unet, weights, concept(1), middle=0.0, late=0.0)), unet.sample(steer_model(unet.model, early))
    )
    half = unet.sample(steer(unet, weights, concept(1), 0.8, **dict.fromkeys(("early", "middle", "late"), 0.5)))
    assert off(half, unet.sample(steer(unet, weights, concept(1), 0.4))) < 1e-4


@pytest.mark.parametrize(
    ("layers", "without"),
    [
        ("all", ()),
        ("attention", ("mlp", "norm")),
        ("attention and mlp", ("norm",)),
        ("mlp", ("self_attention", "cross_attention", "norm")),
        ("norm", ("self_attention", "cross_attention", "mlp")),
        ("early", ("middle", "late")),
        ("early and middle", ("late",)),
        ("middle", ("early", "late")),
        ("middle and late", ("early",)),
        ("late", ("early", "middle")),
    ],
)
def test_layers_by_name_are_the_factors(unet, weights, layers, without):
    by_name = unet.sample(steer(unet, weights, concept(1), layers=layers, mlp=0.5))
    factors = {"mlp": 0.5, **dict.fromkeys(without, 0.0)}
    assert torch.equal(by_name, unet.sample(steer(unet, weights, concept(1), **factors)))
    options = next(entry for entry in node("HyperTransportSteer").GET_SCHEMA().inputs if entry.id == "layers").options
    assert layers in options and len(options) == 10


def test_factors_per_picture_are_the_single_runs(unet, weights):
    noise, factors = unet.noise(3), (1.0, 0.0, -0.5)
    together = unet.sample(steer(unet, weights, concept(1), 0.8, per_picture="1, 0; -0.5"), batch=3)
    for row, factor in enumerate(factors):
        alone = unet.sample(steer(unet, weights, concept(1), 0.8 * factor), noise=noise[row : row + 1])
        assert off(together[row : row + 1], alone) < 1e-4
    untouched = unet.sample(batch=3)
    assert torch.equal(together[1], untouched[1]) and not torch.allclose(together[0], untouched[0], rtol=1e-2)
    assert steer(unet, weights, concept(1), per_picture="0, 0") is unet.model


def test_a_curve_of_one_height_is_a_factor(unet, weights):
    half = unet.sample(steer(unet, weights, concept(1), 0.5))
    for curve in ("0.5", "0.5, 0.5"):
        assert torch.equal(unet.sample(steer(unet, weights, concept(1), curve=curve)), half)
    assert steer(unet, weights, concept(1), curve="0, 0") is unet.model
    folded = unet.sample(steer(unet, weights, concept(1), curve="0.5", mode="auto"))
    assert off(folded, half) < 1e-4


def test_layers_that_the_maps_lack_are_refused(unet, tmp_path):
    only_mlps = make_weights(unet, tmp_path / "mlps.safetensors", site_set="mlp")
    with pytest.raises(ValueError, match="layers are 'norm', but these maps are for mlp only; choose all") as refusal:
        steer(unet, only_mlps, concept(1), layers="norm")
    assert one_sentence(str(refusal.value))
    assert steer(unet, only_mlps, concept(1), layers="late") is not unet.model
