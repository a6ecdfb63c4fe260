"""Every hypernetwork: identity at the start, monotone bounded maps, source units, rows, steps, config round trip."""
from __future__ import annotations

import json

import pytest
import torch

from hypertransport_core.hypernetworks import (FreeMaps, Hypernetwork, HypernetworkError, MLPHypernetwork,
                                               PerceiverHypernetwork, build_hypernetwork)
from hypertransport_core.hypernetworks.base import SCALE_RANGE, bounded_scale
from hypertransport_core.sites import Site

SITES = (Site("blocks.0.attn", "self_attention", 6), Site("blocks.0.norm1", "norm", 11, 1),
         Site("blocks.1.mlp", "mlp", 4))
CHANNELS, WIDTH = 21, 8
SMALL = {"mlp": {"width": 16, "bottleneck": 4}, "perceiver": {"width": 16, "heads": 2, "tokens": 3, "chunk": 4},
         "free": {"concepts": 3}}


def build(kind: str, **more) -> Hypernetwork:
    torch.manual_seed(0)
    return build_hypernetwork({"kind": kind, "sites": SITES, "embedding_dim": WIDTH, **SMALL[kind], **more})


def stir(network: Hypernetwork) -> Hypernetwork:
    with torch.no_grad():
        for parameter in network.head_parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return network


def embeddings(rows: int = 3) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)


kinds = pytest.mark.parametrize("kind", sorted(SMALL))


@kinds
@pytest.mark.parametrize("steps", [1, 3])
def test_untrained_is_exactly_the_identity(kind: str, steps: int) -> None:
    network = build(kind, steps=steps)
    network.set_source(torch.linspace(-300, 500, CHANNELS).expand(steps, -1),
                       torch.linspace(0, 90, CHANNELS).expand(steps, -1))
    for maps in network.all_steps(embeddings()):
        assert maps.rows == 3 and maps.sites == SITES and maps.is_identity()
        assert maps.scale.dtype == maps.shift.dtype == torch.float32


@kinds
def test_rows_and_their_gradients_are_independent(kind: str) -> None:
    network = stir(build(kind)).eval()
    maps = network(embeddings())
    assert not maps.is_identity() and not torch.allclose(maps.scale[0], maps.scale[1])
    if kind != "free":
        assert network(embeddings()[1:2]).allclose(maps.row(1), atol=1e-5)
    (maps.scale.sum() + maps.shift.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    trained = {id(p) for p in network.trunk_parameters() + network.head_parameters()}
    assert trained == {id(p) for p in network.parameters()}


def test_scale_is_increasing_smooth_and_bounded() -> None:
    raw = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    scale = bounded_scale(raw)
    assert scale.diff().min() >= 0 and scale.min() >= SCALE_RANGE[0] - 1e-9 and scale.max() <= SCALE_RANGE[1] + 1e-9
    assert scale.min() < 0.1001 and scale.max() > 4.999 and bounded_scale(torch.zeros(1)).item() == 1
    near = torch.tensor([-1e-6, 0.0, 1e-6], dtype=torch.float64, requires_grad=True)
    bounded_scale(near).sum().backward()
    torch.testing.assert_close(near.grad, torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)
    extreme = torch.tensor([-1e4, 1e4], requires_grad=True)
    bounded_scale(extreme).sum().backward()
    assert extreme.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["mlp", "perceiver"])
def test_a_linear_scale_has_no_limits_and_is_remembered(kind: str) -> None:
    network = stir(build(kind, scale="linear")).eval()
    with torch.no_grad():
        for parameter in network.head_parameters():
            parameter.mul_(20)
    again = build_hypernetwork(network.config())
    again.load_state_dict(network.state_dict())
    scale = again.eval()(embeddings()).scale
    assert scale.min() < 0 and scale.max() > SCALE_RANGE[1] and torch.equal(scale, network(embeddings()).scale)
    bounded = build(kind)
    bounded.load_state_dict(network.state_dict())
    assert bounded.eval()(embeddings()).scale.min() >= SCALE_RANGE[0] - 1e-6
    with pytest.raises(HypernetworkError, match="got the scale 'cubic'; choose one of bounded, linear"):
        build(kind, scale="cubic")


@kinds
def test_maps_turn_around_the_source_mean(kind: str) -> None:
    network, mean, std = stir(build(kind)), torch.linspace(-3, 5, CHANNELS), torch.linspace(0.1, 2, CHANNELS)
    network.eval().set_source(mean, std)
    _, beta = network.raw(embeddings(), 0).split(CHANNELS, dim=1)
    maps = network(embeddings())
    torch.testing.assert_close(maps.scale * mean + maps.shift, mean + std * beta)


def test_source_statistics_of_several_steps_and_moments() -> None:
    mean, std = torch.rand(2, 2 * CHANNELS), torch.rand(2, 2 * CHANNELS) + 0.1
    single = build("mlp")
    single.set_source(mean, std)
    torch.testing.assert_close(single.source_mean[0], mean[:, :CHANNELS].mean(0))
    double = build("mlp", steps=2)
    double.set_source(mean, std)
    torch.testing.assert_close(double.source_std, std[:, :CHANNELS])
    constant = torch.ones(CHANNELS).index_fill(0, torch.tensor([3]), 0.0)
    single.set_source(mean[0], constant)
    torch.testing.assert_close(single.source_std[0, 2:4], torch.tensor([1.0, 0.01]))
    with pytest.raises(HypernetworkError, match=r"needs \(2, 21\)"):
        double.set_source(mean[:1], std[:1])
    with pytest.raises(HypernetworkError, match="not finite"):
        single.set_source(mean / 0, std)


@pytest.mark.parametrize("kind", ["mlp", "perceiver"])
def test_steps_have_maps_of_their_own(kind: str) -> None:
    network = stir(build(kind, steps=2))
    first, second = network.all_steps(embeddings())
    assert not torch.allclose(first.shift, second.shift, atol=1e-3)
    with pytest.raises(HypernetworkError, match="choose 0 to 1"):
        network(embeddings())
    with pytest.raises(HypernetworkError, match="step is 2"):
        network(embeddings(), step=2)


@kinds
def test_config_and_weights_rebuild_the_network(kind: str) -> None:
    network = stir(build(kind, steps=2))
    network.set_source(torch.rand(2, CHANNELS), torch.rand(2, CHANNELS))
    again = build_hypernetwork(json.loads(json.dumps(network.config())))
    again.load_state_dict(network.state_dict())
    assert again.sites == SITES and again.config() == network.config()
    assert torch.equal(again.eval()(embeddings(), 1).shift, network.eval()(embeddings(), 1).shift)


def test_sizes() -> None:
    mlp, perceiver = build("mlp"), build("perceiver")
    assert mlp.head.weight.shape == (2 * CHANNELS, 4)
    assert perceiver.queries.shape == (2 + 3 + 1, 16)  # 6, 11 and 4 channels in pieces of 4


def test_dropout_acts_in_training_only() -> None:
    network = stir(build("mlp", dropout=0.5))
    assert not torch.equal(network(embeddings()).shift, network(embeddings()).shift)
    network.eval()
    assert torch.equal(network(embeddings()).shift, network(embeddings()).shift)


def test_mlp_learns_maps_of_several_concepts() -> None:
    network, inputs = build("mlp", width=64, bottleneck=16), embeddings(3)
    generator = torch.Generator().manual_seed(3)
    scale, shift = torch.rand(3, CHANNELS, generator=generator) + 0.5, torch.randn(3, CHANNELS, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        maps = network(inputs)
        loss = (maps.scale - scale).square().mean() + (maps.shift - shift).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


@pytest.mark.parametrize("broken, words", [
    (lambda: build_hypernetwork({"kind": "oracle"}), "mlp, perceiver, free"),
    (lambda: build_hypernetwork({"kind": "mlp", "sites": SITES}), "no key 'embedding_dim'"),
    (lambda: build("mlp", colour=3), "unknown key 'colour'"),
    (lambda: build("mlp", width="wide"), "cannot be used"),
    (lambda: build_hypernetwork({"kind": "mlp", "sites": [["a"]], "embedding_dim": 4}), "cannot be used"),
    (lambda: build("perceiver", heads=3), "multiple of the heads"),
    (lambda: MLPHypernetwork((), 4), "0 sites"),
    (lambda: build("mlp")(torch.zeros(2, 5)), r"must be \(B, 8\)"),
    (lambda: FreeMaps(SITES)(torch.zeros(2, 1)), "2 embeddings"),
])
def test_refusals_say_what_to_do(broken, words: str) -> None:
    with pytest.raises(HypernetworkError, match=words):
        broken()


def test_registry_names_the_classes() -> None:
    assert isinstance(build("perceiver"), PerceiverHypernetwork) and isinstance(build("mlp"), MLPHypernetwork)
