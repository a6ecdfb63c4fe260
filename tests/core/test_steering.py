"""Live steering: what it computes, for which rows, where and when, and that nothing of it stays."""
from __future__ import annotations

import gc
import weakref

import pytest
import torch
from small_networks import network_case, random_maps, small_dit, steered, traces
from torch import nn

from hypertransport_core.sites import SITE_KINDS, Site, SiteError, find_sites, site_module
from hypertransport_core.steering import Envelope, Steering, SteeringError, depth_factors, shadowed
from hypertransport_core.transport import TransportMaps


def hooked(network: nn.Module, inputs: tuple, maps: TransportMaps, strength: float) -> torch.Tensor:
    """The same by forward hooks and the formula of the paper, as a reference."""

    def hook(site: Site):
        def transport(module, args, out):
            z = out[0] if isinstance(out, tuple) else out
            shape = [-1 if d == site.channel_dim % z.ndim else 1 for d in range(z.ndim)]
            w, b = (t[0].reshape(shape) for t in (maps[site.path].scale, maps[site.path].shift))
            z = (1 - strength) * z + strength * (w * z + b)
            return (z, *out[1:]) if isinstance(out, tuple) else z
        return transport

    handles = [site_module(network, s.path).register_forward_hook(hook(s)) for s in maps.sites]
    out = network(*inputs)
    for handle in handles:
        handle.remove()
    return out


@pytest.fixture(params=["unet", "dit"])
def case(request) -> tuple[nn.Module, tuple, tuple[Site, ...]]:
    """A network, inputs of batch 3 and all of its sites."""
    return network_case(request.param)


# what is computed


@pytest.mark.parametrize("strength", [-0.5, 0.3, 1.0, 1.7])
def test_is_the_displacement_interpolation_at_every_site(case, strength):
    network, inputs, sites = case
    maps = random_maps(sites)
    got = steered(network, inputs, Steering(maps, strength))
    torch.testing.assert_close(got, hooked(network, inputs, maps, strength))


def test_identity_maps_change_no_bit(case):
    network, inputs, sites = case
    assert torch.equal(steered(network, inputs, Steering(TransportMaps.identity(sites))), network(*inputs))
    assert torch.equal(steered(network, inputs, Steering(TransportMaps.identity(sites, 3))), network(*inputs))


def test_chain_is_composition_in_the_order_of_installation(case):
    network, inputs, sites = case
    a, b, c = (random_maps(sites, seed=seed) for seed in (1, 2, 3))
    chained = steered(network, inputs, Steering(a), Steering(b, 0.5), Steering(c))
    torch.testing.assert_close(chained, steered(network, inputs, Steering(a.then(b.interpolate(0.5)).then(c))))
    assert not torch.allclose(chained, steered(network, inputs, Steering(c), Steering(b, 0.5), Steering(a)), atol=1e-4)


def test_inverse_undoes(case):
    network, inputs, sites = case
    maps = random_maps(sites)
    torch.testing.assert_close(steered(network, inputs, Steering(maps), Steering(maps.inverse())), network(*inputs),
                               atol=1e-4, rtol=1e-4)


def test_factors_by_kind(case):
    network, inputs, sites = case
    maps, factors = random_maps(sites), {"mlp": 0.0, "norm": 0.5}
    only = tuple(s for s in sites if s.kind not in factors)
    norms = tuple(s for s in sites if s.kind == "norm")
    expected = maps.onto(only).then(maps.onto(norms).interpolate(0.5))
    got = steered(network, inputs, Steering(maps, 0.8, factors=factors))
    torch.testing.assert_close(got, steered(network, inputs, Steering(expected, 0.8)))
    per_row = Steering(maps, torch.full((3,), 0.8), factors=factors)
    torch.testing.assert_close(steered(network, inputs, per_row), got)


def test_factors_by_path_multiply_those_by_kind(case):
    network, inputs, sites = case
    maps, site = random_maps(sites), next(s for s in sites if s.kind == "mlp")
    factors = {"mlp": 0.5, site.path: 0.5, sites[0].path: 0.0}
    steering = Steering(maps, 0.8, factors=factors)
    assert [s for s in sites if s not in steering.sites] == [sites[0]]
    parts = [maps.onto([s]).interpolate(0.8 * (factors.get(s.kind, 1.0) * factors.get(s.path, 1.0))) for s in steering.sites]
    expected = parts[0]
    for part in parts[1:]:
        expected = expected.then(part)
    assert steering.blended().allclose(expected)
    torch.testing.assert_close(steered(network, inputs, steering), steered(network, inputs, Steering(expected)))


def test_depth_factors_take_thirds_in_order():
    sites = [Site(f"blocks.{n}.mlp", "mlp", 2) for n in range(7)]
    assert list(depth_factors(sites, 2.0, 3.0, 4.0).values()) == [2, 2, 2, 3, 3, 4, 4]
    assert list(depth_factors(sites, middle=0.0)) == ["blocks.3.mlp", "blocks.4.mlp"] and not depth_factors(sites)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [False, True])
def test_activations_keep_their_dtype_and_maps_are_cast_once_after_blending(dtype, given):
    layer = nn.Module()
    layer.forward = lambda z: z
    network = nn.Module()
    network.add_module("site", layer)
    maps = TransportMaps((Site("site", "mlp", 3),), torch.full((1, 3), 1.1), torch.full((1, 3), 0.7))
    z = torch.linspace(-2, 2, 12).to(dtype).reshape(2, 2, 3)
    with Steering(maps, 0.3).installed(network, dtype=dtype if given else None, device="cpu" if given else None):
        out = layer.forward(z)
    w, b = (t.to(dtype) for t in (torch.tensor(1.03), torch.tensor(0.21)))
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.addcmul(b, z, w), rtol=1e-7 if dtype == torch.float64 else None,
                               atol=1e-7 if dtype == torch.float64 else None)


# rows


def test_a_batch_of_rows_equals_the_single_runs(case):
    network, inputs, sites = case
    maps, strengths = random_maps(sites, rows=3), torch.tensor([1.0, -0.5, 1.7])
    together = steered(network, inputs, Steering(maps, strengths), batch=3)
    for i in range(3):
        alone = steered(network, tuple(t[i:i + 1] for t in inputs), Steering(maps.row(i), float(strengths[i])))
        torch.testing.assert_close(together[i:i + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("map_rows", [1, 3])
@pytest.mark.parametrize("flags", [(True, False, True), (False, False, True), (True, True, True)])
def test_rows_that_are_not_steered_keep_every_bit(case, map_rows, flags):
    network, inputs, sites = case
    maps = random_maps(sites, rows=map_rows)
    base, full = network(*inputs), steered(network, inputs, Steering(maps))
    some = steered(network, inputs, Steering(maps), rows=torch.tensor(flags), batch=3)
    for i, flag in enumerate(flags):
        assert torch.equal(some[i], full[i] if flag else base[i])


def test_rows_choose_their_map(case):
    network, inputs, sites = case
    maps = random_maps(sites, rows=2)
    got = steered(network, inputs, Steering(maps, torch.tensor([0.5, 1.0])), rows=torch.tensor([1, -1, 0]))
    assert torch.equal(got[1], network(*inputs)[1])
    torch.testing.assert_close(got[0], steered(network, inputs, Steering(maps.row(1)))[0])
    torch.testing.assert_close(got[2], steered(network, inputs, Steering(maps.row(0), 0.5))[2])
    single = steered(network, inputs, Steering(maps.row(0)), rows=torch.tensor([0, -1, 0]))
    assert torch.equal(single[1], network(*inputs)[1]) and not torch.equal(single[0], network(*inputs)[0])


def test_rows_of_strength_zero_keep_every_bit(case):
    network, inputs, sites = case
    got = steered(network, inputs, Steering(random_maps(sites), torch.tensor([0.0, 1.0, 0.0])))
    base = network(*inputs)
    assert torch.equal(got[0], base[0]) and torch.equal(got[2], base[2]) and not torch.allclose(got[1], base[1])


def test_rows_not_steered_may_even_overflow_under_the_map():
    network, z = nn.Module(), torch.tensor([[[60000.0]], [[1.0]]], dtype=torch.float16)
    network.site = nn.Identity()
    maps = TransportMaps((Site("site", "mlp", 1),), torch.full((1, 1), 2.0), torch.zeros(1, 1))
    with Steering(maps).installed(network, rows=torch.tensor([False, True])):
        assert network.site(z).flatten().tolist() == [60000.0, 2.0]


def test_modules_that_fold_frames_into_the_batch():
    network, z = nn.Module(), torch.ones(6, 1, 1)
    network.site = nn.Identity()
    maps = TransportMaps((Site("site", "mlp", 1),), torch.tensor([[2.0], [3.0]]), torch.zeros(2, 1))
    with Steering(maps).installed(network, batch=2):
        assert network.site(z).flatten().tolist() == [2, 2, 2, 3, 3, 3]
    with Steering(maps).installed(network, batch=2, rows=torch.tensor([1, -1])):
        assert network.site(z).flatten().tolist() == [3, 3, 3, 1, 1, 1]
    with Steering(maps).installed(network), pytest.raises(SteeringError, match="'site' sees a batch of 5"):
        network.site(z[:5])


# when


def test_envelope_is_open_after_its_end_up_to_its_start():
    envelope = Envelope(0.8, 0.2)
    assert [t for t in (1.0, 0.81, 0.8, 0.5, 0.21, 0.2, 0.0) if envelope.active(t)] == [0.8, 0.5, 0.21]
    assert Envelope().active(1.0) and Envelope().active(1.0000002) and Envelope().active(1e-6)
    assert not any(Envelope(0.3, 0.3).active(t) or Envelope(0.2, 0.4).active(t) for t in (0.1, 0.2, 0.3, 0.4, 1.0))


def test_strength_follows_the_envelope():
    maps = random_maps([Site("a", "mlp", 2)])
    steering = Steering(maps, 0.7, envelope=Envelope(0.8, 0.2))
    assert (steering.at(0.5), steering.at(0.9), steering.at(None), steering.at()) == (0.7, 0.0, 0.7, 0.7)
    assert steering.is_off(0.9) and not steering.is_off(0.5) and not steering.is_off()
    assert torch.equal(Steering(maps, torch.tensor([0.0, 1.0])).at(0.3), torch.tensor([0.0, 1.0]))


OFF = {
    "strength 0": (lambda maps: Steering(maps, 0.0), {}),
    "strengths 0": (lambda maps: Steering(maps, torch.zeros(3)), {}),
    "closed envelope": (lambda maps: Steering(maps, envelope=Envelope(0.5, 0.5)), {"noise_level": 0.5}),
    "outside the envelope": (lambda maps: Steering(maps, envelope=Envelope(0.5, 0.0)), {"noise_level": 0.9}),
    "mask of zeros": (lambda maps: Steering(maps, mask=torch.zeros(8, 8)), {}),
    "no rows": (lambda maps: Steering(maps), {"rows": torch.zeros(3, dtype=torch.bool)}),
    "rows without a map": (lambda maps: Steering(maps), {"rows": torch.full((3,), -1)}),
    "kinds at 0": (lambda maps: Steering(maps, factors=dict.fromkeys(SITE_KINDS, 0.0)), {}),
    "no sites": (lambda maps: Steering(maps.onto(())), {}),
}


@pytest.mark.parametrize("name", OFF)
def test_off_means_nothing_is_installed(name):
    network, x = small_dit(), torch.randn(3, 16, 8)
    make, options = OFF[name]
    steering = make(random_maps(find_sites(network)))
    assert steering.is_off(options.get("noise_level")) or "rows" in options
    with steering.installed(network, batch=3, **options):
        assert traces(network) == []
        out = network(x)
    assert torch.equal(out, network(x))


# nothing stays


def test_nothing_is_left_behind(case):
    network, inputs, sites = case
    steering = Steering(random_maps(sites))
    with steering.installed(network):
        assert len(traces(network)) == len(sites)
        with steering.installed(network):
            network(*inputs)
        assert len(traces(network)) == len(sites)
    assert traces(network) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_nothing_is_left_behind_by_an_exception(error):
    network = small_dit()
    steering = Steering(random_maps(find_sites(network)))

    def failing(module, args):
        raise error("stop")

    handle = network.blocks[1].register_forward_pre_hook(failing)
    with pytest.raises((error, RuntimeError)), steering.installed(network), steering.installed(network):
        network(torch.randn(1, 16, 8))
    handle.remove()
    assert traces(network) == []


def test_an_own_forward_of_the_module_is_put_back():
    network = small_dit()
    site = network.blocks[0].mlp
    own = lambda x: torch.zeros_like(x)  # noqa: E731
    site.forward = own
    maps = random_maps(find_sites(network, "mlp"))
    with Steering(maps).installed(network):
        out = site(torch.ones(1, 2, 8))
    torch.testing.assert_close(out, maps["blocks.0.mlp"].shift.expand(1, 2, 8))
    assert site.__dict__["forward"] is own and "forward" not in network.blocks[1].mlp.__dict__


def test_a_missing_site_is_named_before_anything_is_installed():
    network = small_dit()
    maps = random_maps([*find_sites(network), Site("blocks.5.mlp", "mlp", 8)])
    with pytest.raises(SiteError, match="blocks.5.mlp"), Steering(maps).installed(network):
        raise AssertionError("the network call must not run")
    assert traces(network) == []


def test_a_maker_that_fails_undoes_the_others():
    network = small_dit()

    def fails(forward):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), shadowed(network, {"blocks.0.mlp": lambda f: f, "blocks.1.mlp": fails}):
        raise AssertionError("the network call must not run")
    assert traces(network) == []


def test_steering_keeps_no_network_alive():
    network = small_dit()
    steering = Steering(random_maps(find_sites(network)))
    steered(network, (torch.randn(1, 16, 8),), steering)
    alive = weakref.ref(network)
    del network
    gc.collect()
    assert alive() is None and not hasattr(steering, "to")


def test_one_steering_on_two_networks_at_once():
    first, second, x = small_dit(), small_dit(), torch.randn(1, 16, 8)
    steering = Steering(random_maps(find_sites(first)))
    with steering.installed(first), steering.installed(second):
        a, b = first(x), second(x)
    assert torch.equal(a, b) and torch.equal(a, steered(first, (x,), steering))


# words


def test_repr_is_short():
    maps = random_maps(find_sites(small_dit()))
    assert repr(Steering(maps, 0.5, envelope=Envelope(), mask=torch.zeros(2, 2))) == (
        f"Steering({maps!r}, strength 0.5, envelope, mask)")
    assert "2 values" in repr(Steering(maps, torch.ones(2)))


MAPS = random_maps([Site("site", "mlp", 2)], rows=2)


def install(steering: Steering, **options) -> None:
    network = nn.Module()
    network.site = nn.Identity()
    with steering.installed(network, **options):
        raise AssertionError("the network call must not run")


@pytest.mark.parametrize(("call", "words"), [
    (lambda: Envelope(1.5, 0.0), "start is 1.5"),
    (lambda: Envelope(1.0, float("nan")), "end is nan"),
    (lambda: Steering(MAPS, float("nan")), "strength is nan"),
    (lambda: Steering(MAPS, torch.tensor([1.0, float("inf")])), "not a finite number"),
    (lambda: Steering(MAPS, torch.ones(3)), "3 strengths for 2 rows"),
    (lambda: Steering(MAPS, mask=torch.ones(2)), "shape (2,)"),
    (lambda: Steering(MAPS, mask=torch.full((2, 2), 1.5)), "from 1.5 to 1.5"),
    (lambda: Steering(MAPS, mask=torch.full((2, 2), float("nan"))), "nan"),
    (lambda: Steering(MAPS, factors={"attention": 1.0}), "no site kind 'attention'"),
    (lambda: Steering(MAPS, factors={"mlp": float("inf")}), "'mlp' is inf"),
    (lambda: install(Steering(MAPS), batch=3), "2 rows to steer for a batch of 3"),
    (lambda: install(Steering(MAPS), rows=torch.ones(3, dtype=torch.bool)), "needs 1 row of maps or as many, not 2"),
    (lambda: install(Steering(MAPS), rows=torch.tensor([0, 2])), "there are 2"),
    (lambda: install(Steering(MAPS), rows=torch.tensor([0, -2])), "-2"),
    (lambda: install(Steering(MAPS), rows=torch.ones(2)), "must be bool or long"),
])
def test_refusals_are_one_sentence_that_names_the_fault(call, words):
    with pytest.raises(SteeringError) as refusal:
        call()
    message = str(refusal.value)
    assert words in message and message.endswith(".") and ". " not in message
