"""What captures see: pooled outputs after steering, with gradients, and nothing left behind."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from small_networks import random_maps, small_dit, small_unet, traces, unet_inputs

from hypertransport_core.capture import CaptureError, PooledCapture
from hypertransport_core.sites import Site, find_sites, site_module, site_slices, total_channels
from hypertransport_core.steering import Steering
from hypertransport_core.transport import TransportMaps


def outputs_of(network, sites, *inputs):
    """What each site puts out, as (B, T, C), read with plain hooks."""
    seen = {}
    handles = [site_module(network, s.path).register_forward_hook(lambda m, a, out, s=s: seen.__setitem__(s.path, out))
               for s in sites]
    network(*inputs)
    for handle in handles:
        handle.remove()
    first = {path: out[0] if isinstance(out, tuple) else out for path, out in seen.items()}
    return {s.path: first[s.path].movedim(s.channel_dim, -1).flatten(1, -2) for s in sites}


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_moments_of_every_site(kind):
    network = small_unet() if kind == "unet" else small_dit()
    inputs = unet_inputs(3) if kind == "unet" else (torch.randn(3, 16, 8),)
    sites = find_sites(network, "everything")
    expected = outputs_of(network, sites, *inputs)
    width = total_channels(sites)
    with PooledCapture(network, sites) as mean:
        out = network(*inputs)
    with PooledCapture(network, sites, "mean_std") as both:
        network(*inputs)
    with PooledCapture(network, sites, "mean_quarters") as quarters:
        network(*inputs)
    with PooledCapture(network, sites, "tokens") as tokens:
        network(*inputs)
    assert torch.equal(out, network(*inputs)) and traces(network) == []
    assert mean.features().shape == (3, width) and both.features().shape == (3, 2 * width)
    assert torch.equal(both.features()[:, :width], mean.features())
    assert torch.equal(quarters.features()[:, :width], mean.features()) and quarters.features().shape == (3, 5 * width)
    for site, captured in zip(sites, tokens.tokens()):
        where = site_slices(sites)[site.path]
        assert torch.equal(captured, expected[site.path])
        torch.testing.assert_close(mean.features()[:, where], captured.mean(1))
        deviation = both.features()[:, width:][:, where]
        torch.testing.assert_close(deviation, captured.std(1, correction=0), atol=1e-5, rtol=1e-4)
        assert captured.shape[1] % 4 == 0
        laws = np.sort(captured.detach().numpy(), axis=1).reshape(3, 4, -1, site.channels).mean(2)
        found = quarters.features()[:, width:].unflatten(1, (4, width))[:, :, where]
        torch.testing.assert_close(found, torch.from_numpy(laws), atol=1e-5, rtol=1e-4)


def test_quarters_where_four_do_not_divide_the_tokens():
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])[None, :, None]
    network = torch.nn.Sequential(torch.nn.Identity())
    with PooledCapture(network, [Site("0", "mlp", 1, -1)], "mean_quarters") as capture:
        network(values)
    torch.testing.assert_close(capture.features(), torch.tensor([[2.5, 0.5, 1.5, 3.5, 4.5]]))
    with PooledCapture(network, [Site("0", "mlp", 1, -1)], "mean_quarters") as capture:
        network(values[:, :1])
    assert capture.features().tolist() == [[5.0] * 5]


def test_sees_steered_outputs_and_pooling_commutes_with_the_map():
    network, x = small_dit(), torch.randn(2, 16, 8)
    sites = find_sites(network, "mlp", pattern=r"blocks\.0")
    maps = random_maps(sites)
    with PooledCapture(network, sites) as plain:
        network(x)
    with Steering(maps).installed(network), PooledCapture(network, sites) as steered:
        network(x)
    torch.testing.assert_close(steered.features(), plain.features() * maps.scale + maps.shift)


def test_gradients_flow_through_earlier_maps():
    network, x = small_dit(), torch.randn(2, 16, 8)
    sites = find_sites(network, "all")
    width = total_channels(sites)
    scale, shift = torch.ones(2, width, requires_grad=True), torch.zeros(2, width, requires_grad=True)
    with Steering(TransportMaps(sites, scale, shift)).installed(network, batch=2), \
            PooledCapture(network, sites, "mean_std") as capture:
        network(x)
    capture.features()[:, site_slices(sites)["blocks.1.mlp"]].square().sum().backward()
    earlier, later = site_slices(sites)["blocks.0.mlp"], site_slices(sites)["final_layer.norm_final"]
    assert scale.grad[:, earlier].abs().min() > 0 and shift.grad[:, earlier].abs().min() > 0
    assert scale.grad[:, later].abs().max() == 0


def test_std_of_constant_tokens_has_a_finite_gradient():
    network, x = small_dit(), torch.ones(1, 1, 8, requires_grad=True)
    with PooledCapture(network, find_sites(network, "all"), "mean_std") as capture:
        network(x)
    capture.features().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_moments_are_fp32_and_tokens_keep_their_dtype():
    network = small_dit().to(torch.bfloat16)
    x, sites = torch.randn(1, 16, 8, dtype=torch.bfloat16), find_sites(network)
    for pooling in ("mean", "mean_std"):
        with PooledCapture(network, sites, pooling) as capture:
            network(x)
        assert capture.features().dtype == torch.float32
    with PooledCapture(network, sites, "tokens") as capture:
        network(x)
    assert {t.dtype for t in capture.tokens()} == {torch.bfloat16}


def test_early_exit_skips_what_follows_the_last_site():
    network, x = small_dit(), torch.randn(1, 16, 8)
    sites = find_sites(network, "mlp", pattern=r"blocks\.0")
    with PooledCapture(network, sites) as full:
        network(x)
    reached = []
    network.final_layer.register_forward_hook(lambda *_: reached.append(True))
    with Steering(random_maps(find_sites(network, "norm"))).installed(network):
        with PooledCapture(network, sites, stop_after_last_site=True):
            network(x)
    with PooledCapture(network, sites, stop_after_last_site=True) as early:
        network(x)
    network.final_layer._forward_hooks.clear()
    assert reached == [] and torch.equal(early.features(), full.features()) and traces(network) == []


def test_other_exceptions_pass_and_leave_nothing():
    network = small_dit()
    with pytest.raises(RuntimeError, match="shape"), PooledCapture(network, find_sites(network)):
        network(torch.randn(1, 4, 5))
    assert traces(network) == []


def test_the_last_run_counts_and_a_capture_can_be_used_again():
    network = small_dit()
    first, second = torch.randn(2, 1, 16, 8)
    capture = PooledCapture(network, find_sites(network))
    with capture:
        network(first)
        network(second)
    twice = capture.features()
    with capture:
        network(second)
    assert torch.equal(capture.features(), twice)
    with capture:
        pass
    with pytest.raises(CaptureError, match="6 of 6 sites were not called, first 'blocks.0.attn'"):
        capture.features()


def test_refusals():
    network = small_dit()
    sites = find_sites(network)
    with pytest.raises(CaptureError, match="no pooling 'max'"):
        PooledCapture(network, sites, "max")
    with pytest.raises(CaptureError, match="no sites"):
        PooledCapture(network, ())
    with pytest.raises(CaptureError, match=r"read them with `tokens\(\)`"):
        PooledCapture(network, sites, "tokens").features()
    with pytest.raises(CaptureError, match="pooling='tokens'"):
        PooledCapture(network, sites).tokens()
