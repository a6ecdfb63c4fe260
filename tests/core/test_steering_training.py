"""Live steering while it is trained, called again and again, and compiled."""
from __future__ import annotations


import pytest
import torch
from small_networks import network_case, random_maps, small_dit, steered, traces
from torch import nn

from hypertransport_core.sites import Site, find_sites
from hypertransport_core.steering import Steering
from hypertransport_core.transport import TransportMaps


@pytest.fixture(params=["unet", "dit"])
def case(request) -> tuple[nn.Module, tuple, tuple[Site, ...]]:
    """A network, inputs of batch 3 and all of its sites."""
    return network_case(request.param)


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.0, 1.0])], ids=["one", "per row"])
def test_gradients_reach_the_maps(strength):
    network, x = small_dit(), torch.randn(3, 16, 8)
    sites = find_sites(network, "all")
    base = random_maps(sites, rows=3)
    leaf = base.scale.clone().requires_grad_(), base.shift.clone().requires_grad_()
    maps = TransportMaps(sites, *leaf)
    loss = steered(network, (x,), Steering(maps, strength), batch=3).square().mean()
    loss.backward()
    for tensor in leaf:
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad.abs().sum(1) > 0).tolist() == [True, isinstance(strength, float), True]
    direction, eps = torch.randn_like(base.scale), 1e-2
    ends = []
    for sign in (-1, 1):
        moved = TransportMaps(sites, base.scale + sign * eps * direction, base.shift)
        ends.append(steered(network, (x,), Steering(moved, strength), batch=3).square().mean())
    torch.testing.assert_close((leaf[0].grad * direction).sum(), (ends[1] - ends[0]) / (2 * eps), rtol=2e-2, atol=1e-5)


def test_trained_maps_are_read_anew_each_time():
    network, x = small_dit(), torch.randn(1, 16, 8)
    sites = find_sites(network)
    maps = TransportMaps(sites, torch.ones(1, 48, requires_grad=True), torch.zeros(1, 48, requires_grad=True))
    steering = Steering(maps)
    before = steered(network, (x,), steering)
    with torch.no_grad():
        maps.shift.add_(1.0)
    assert not torch.allclose(before, steered(network, (x,), steering)) and not steering._cache


def test_a_learned_strength_gets_a_gradient_even_at_zero():
    network, x = small_dit(), torch.randn(1, 16, 8)
    strength = torch.zeros(1, requires_grad=True)
    steered(network, (x,), Steering(random_maps(find_sites(network)), strength)).sum().backward()
    assert strength.grad.abs() > 0


def test_coefficients_are_reused_and_the_cache_stays_small():
    network, x = small_dit(), torch.randn(4, 16, 8)
    steering = Steering(random_maps(find_sites(network), rows=2))
    for rows in ([0, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, -1]):
        steered(network, (x,), steering, rows=torch.tensor(rows))
    assert len(steering._cache) == 2
    for i in range(40):
        steered(network, (x,), steering, rows=torch.tensor([int(b) for b in f"{i % 16:04b}"]))
    assert len(steering._cache) <= 8


def test_inference_mode_does_not_spoil_later_training():
    network, x = small_dit(), torch.randn(1, 16, 8, requires_grad=True)
    steering = Steering(random_maps(find_sites(network)))
    with torch.inference_mode():
        steered(network, (torch.randn(1, 16, 8),), steering)
    steered(network, (x,), steering).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("whole", [True, False], ids=["whole network", "each block"])
def test_compiled_gives_the_same_picture(whole):
    """The graph is traced unsteered first: forward hooks would be ignored from then on."""
    torch._dynamo.reset()
    network, x = small_dit(depth=1), torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    sites = find_sites(network, "all")
    a, b, rows = random_maps(sites, seed=1), random_maps(sites, seed=2), random_maps(sites, rows=2, seed=3)
    flags = torch.tensor([False, True])
    mask = torch.zeros(4, 4)
    mask[:2] = 1
    cases = [((), {}), ((Steering(a),), {}), ((), {}), ((Steering(b, 0.4),), {}), ((Steering(a), Steering(b)), {}),
             ((Steering(rows),), {}), ((Steering(a),), {"rows": flags}), ((Steering(a, mask=mask),), {}), ((), {})]
    with torch.no_grad():
        expected = [steered(network, (x,), *steerings, **options) for steerings, options in cases]
        if whole:
            compiled = torch.compile(network, backend="eager")
        else:
            compiled = network
            network.blocks[0] = torch.compile(network.blocks[0], backend="eager")
        for (steerings, options), picture in zip(cases, expected):
            torch.testing.assert_close(steered(compiled, (x,), *steerings, **options), picture)
    assert traces(network) == ([] if whole else ["blocks.0"])  # the compile wrapper has a forward of its own
    torch._dynamo.reset()


def test_another_map_or_strength_needs_no_new_graph():
    torch._dynamo.reset()
    network, x = small_dit(depth=1), torch.randn(2, 16, 8)
    sites = find_sites(network)
    compiled = torch.compile(network, backend="eager")
    with torch.no_grad():
        steered(compiled, (x,), Steering(random_maps(sites)))
        torch._dynamo.utils.counters.clear()
        for seed in (1, 2):
            steered(compiled, (x,), Steering(random_maps(sites, seed=seed), 0.3 * seed))
    assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) == 0
    torch._dynamo.reset()
