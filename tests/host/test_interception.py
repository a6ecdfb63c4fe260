"""Live steering in the host, on every family: what it computes, for which conds, when, and that nothing of it stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pack import pack_module

FAMILIES = ("pixart", "sd15", "sdxl", "flux", "sd3", "wan")


@pytest.fixture(params=FAMILIES)
def tiny(request) -> Any:
    from tiny_hosts import tiny_host

    return tiny_host(request.param)


def steer(model: Any, maps: Any, strength: Any = 1.0, **options: Any) -> Any:
    return pack_module("nodes.interception").steer_model(model, maps, strength, **options)


def always(model: Any, maps: Any, **options: Any) -> Any:
    """Steered even where `steer_model` would see that nothing can change."""
    interception = pack_module("nodes.interception")
    steering = interception.LiveSteering(maps, **options)
    if steering.is_off:
        stretch = interception.Stretch(0.0, 1.0, interception.Steering(maps.steps[0], options.get("strength", 1.0)))
        steering.stretches.append(stretch)
    return interception.install(model, steering)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def with_wrapper(model: Any, wrapper: Any) -> Any:
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone


# the nineteen properties of every family


def test_sampling_itself_is_deterministic_and_reaches_every_site(tiny):
    called = set()
    handles = [
        tiny.network.get_submodule(site.path).register_forward_hook(lambda *_args, path=site.path: called.add(path))
        for site in tiny.sites("everything")
    ]
    base = tiny.sample()
    for handle in handles:
        handle.remove()
    assert torch.equal(base, tiny.sample()) and torch.isfinite(base).all()
    assert {site.path for site in tiny.sites("everything")} == called


def test_identity_maps_change_no_bit(tiny):
    assert torch.equal(tiny.sample(always(tiny.model, tiny.identity())), tiny.sample())
    two = {"batch": 2, "positive": tiny.cond(11, tokens=6), "negative": tiny.cond(12, tokens=6)}
    assert torch.equal(tiny.sample(always(tiny.model, tiny.identity(), scope="positive"), **two), tiny.sample(**two))


def test_strength_zero_is_the_model_as_it_came(tiny):
    assert steer(tiny.model, tiny.maps(), 0.0) is tiny.model
    assert torch.equal(tiny.sample(always(tiny.model, tiny.maps(), strength=0.0)), tiny.sample())


def test_steering_acts_and_leaves_model_and_clones_alone(tiny):
    base = tiny.sample()
    steered = steer(tiny.model, tiny.maps())
    picture = tiny.sample(steered)
    assert off(picture, base) > 1e-2
    assert torch.equal(tiny.sample(), base) and tiny.traces() == []
    assert torch.equal(tiny.sample(steered.clone()), picture)
    other = tiny.sample(steer(tiny.model, tiny.maps(seed=2)))
    assert off(other, picture) > 1e-3 and torch.equal(tiny.sample(steered), picture)


def test_chains_are_composition_in_the_order_of_the_wires(tiny):
    first, second = tiny.maps(seed=1, amount=0.05), tiny.maps(seed=2, amount=0.05)
    steered = steer(tiny.model, first)
    alone = tiny.sample(steered)
    chained = tiny.sample(steer(steered, second, 0.5))
    right, wrong = (
        type(first)((m,))
        for m in (
            first.steps[0].then(second.steps[0].interpolate(0.5)),
            second.steps[0].interpolate(0.5).then(first.steps[0]),
        )
    )
    errors = [off(chained, tiny.sample(steer(tiny.model, maps))) for maps in (right, wrong)]
    assert errors[0] < 1e-4 and errors[0] < 0.02 * errors[1]
    assert torch.equal(tiny.sample(steered), alone)


def test_the_inverse_undoes(tiny):
    maps = tiny.maps(amount=0.05)
    undone = steer(steer(tiny.model, maps), maps.change(lambda one: one.inverse()))
    assert off(tiny.sample(undone), tiny.sample()) < 1e-3


def test_scopes_in_closed_form(tiny):
    """One step is linear in the two predictions: u + cfg (c - u)."""
    maps, cfg, run = tiny.maps(), 3.0, {"steps": 1}
    base = {scope: steer(tiny.model, maps, scope=scope) for scope in ("both", "positive", "negative")}
    pictures = {scope: tiny.sample(model, cfg=cfg, **run) for scope, model in base.items()}
    c0, c1 = tiny.sample(cfg=1.0, **run), tiny.sample(base["both"], cfg=1.0, **run)
    u0, u1 = (tiny.sample(model, cfg=1.0, positive=tiny.cond(12), **run) for model in (None, base["both"]))
    for scope, (c, u) in {"both": (c1, u1), "positive": (c1, u0), "negative": (c0, u1)}.items():
        assert off(pictures[scope], u + cfg * (c - u)) < 1e-4, scope
    assert torch.equal(tiny.sample(base["negative"], cfg=1.0), tiny.sample(cfg=1.0))
    assert torch.equal(tiny.sample(base["positive"], cfg=1.0), tiny.sample(base["both"], cfg=1.0))


def test_positive_and_negative_together_are_both(tiny):
    maps = tiny.maps()
    halves = steer(steer(tiny.model, maps, scope="positive"), maps, scope="negative")
    for tokens in (6, 9):  # in one batch, or each in its own
        run = {"negative": tiny.cond(12, tokens=tokens), "batch": 2}
        assert torch.equal(tiny.sample(halves, **run), tiny.sample(steer(tiny.model, maps), **run))


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_two_halves_of_the_schedule_are_the_whole(tiny, sampler):
    maps, run = tiny.maps(amount=0.05), {"steps": 4, "sampler": sampler, "cfg": 1.0}
    full = tiny.sample(steer(tiny.model, maps), **run)
    early, late = ({"end_percent": 0.5}, {"start_percent": 0.5})
    pictures = [tiny.sample(steer(tiny.model, maps, **part), **run) for part in (early, late)]
    halves = tiny.sample(steer(steer(tiny.model, maps, **early), maps, **late), **run)
    assert torch.equal(halves, full)
    everything = [full, *pictures, tiny.sample(**run)]
    assert all(off(a, b) > 1e-4 for i, a in enumerate(everything) for b in everything[:i])


def test_weight_patches_and_steering_do_not_disturb_one_another(tiny):
    maps, base = tiny.maps(), tiny.sample()
    steered = steer(tiny.model, maps)
    picture = tiny.sample(steered)
    key = next(
        f"diffusion_model.{name}"
        for site in tiny.sites("mlp")
        for name, p in tiny.network.named_parameters()
        if name.startswith(site.path) and p.ndim == 2
    )
    patch = {
        key: (
            "diff",
            (0.1 * torch.randn(tiny.model.model.state_dict()[key].shape, generator=torch.Generator().manual_seed(0)),),
        )
    }
    after, before = steered.clone(), tiny.model.clone()
    after.add_patches(patch)
    before.add_patches(patch)
    patched = tiny.sample(after)
    assert off(patched, picture) > 1e-5 and torch.equal(tiny.sample(steer(before, maps)), patched)
    assert torch.equal(tiny.sample(steered), picture) and torch.equal(tiny.sample(), base)


@pytest.mark.parametrize("kind", ["error", "interrupt"])
def test_nothing_stays_when_sampling_is_torn_away(tiny, kind):
    from comfy.model_management import InterruptProcessingException

    error = RuntimeError("boom") if kind == "error" else InterruptProcessingException()
    calls = []

    def fail_in_the_second_call(executor, *args, **kwargs):
        calls.append(len(tiny.traces()))
        if len(calls) == 2:
            raise error
        return executor(*args, **kwargs)

    steered = steer(steer(tiny.model, tiny.maps()), tiny.maps(seed=2), scope="positive")
    base = tiny.sample()
    with pytest.raises(type(error)):
        tiny.sample(with_wrapper(steered, fail_in_the_second_call), cfg=1.0)
    assert calls == [len(tiny.sites())] * 2, "steered while the network was called"
    assert tiny.traces() == [] and torch.equal(tiny.sample(), base)


def test_rows_of_maps_are_the_single_runs(tiny):
    maps, strengths = tiny.maps(rows=2), torch.tensor([1.0, -0.5])
    noise = tiny.noise(2)
    together = tiny.sample(steer(tiny.model, maps, strengths), batch=2)
    for row in range(2):
        alone = steer(tiny.model, maps.change(lambda one: one.row(row)), float(strengths[row]))
        assert off(tiny.sample(alone, noise=noise[row : row + 1]), together[row : row + 1]) < 1e-4


def test_a_batch_of_another_size_is_refused_before_any_work(tiny):
    from comfy.patcher_extension import WrappersMP

    steering = pack_module("hypertransport_core.steering")
    calls = []
    model = steer(tiny.model, tiny.maps(rows=2))
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "test", lambda executor, *args, **kwargs: calls.append(1))
    with pytest.raises(steering.SteeringError, match="2 rows, but the latent batch has 3; set the batch size to 2"):
        tiny.sample(model, batch=3)
    assert calls == []


def test_a_constant_mask_is_a_factor_and_a_full_one_is_none(tiny):
    kinds = ("self_attention", "cross_attention", "mlp")
    maps = tiny.maps(kinds=kinds)
    # Flux and SD3 have text tokens among their sites, which no mask reaches
    maps = maps.change(
        lambda one: one.onto([s for s in one.sites if not s.is_text_stream and "single_blocks" not in s.path])
    )
    quarter = tiny.sample(steer(tiny.model, maps, mask=torch.full((1, 32, 32), 0.25)))
    assert off(quarter, tiny.sample(steer(tiny.model, maps, 0.25))) < 1e-4
    assert torch.equal(
        tiny.sample(steer(tiny.model, maps, mask=torch.ones(1, 8, 8))), tiny.sample(steer(tiny.model, maps))
    )
    assert steer(tiny.model, maps, mask=torch.zeros(8, 8)) is tiny.model


def test_maps_per_step_take_equal_stretches_of_the_schedule(tiny):
    maps = tiny.maps(steps=2, amount=0.05)
    parts = [type(maps)((one,)) for one in maps.steps]
    chain = steer(steer(tiny.model, parts[0], end_percent=0.5), parts[1], start_percent=0.5)
    run = {"steps": 4, "cfg": 1.0}
    assert torch.equal(tiny.sample(steer(tiny.model, maps), **run), tiny.sample(chain, **run))
    late = steer(tiny.model, parts[1], start_percent=0.75)
    assert torch.equal(tiny.sample(steer(tiny.model, maps, start_percent=0.75), **run), tiny.sample(late, **run))


def test_a_curve_is_a_staircase_over_the_steps(tiny):
    """Each step has the strength that straight lines between the curve's values give at its place in the schedule."""
    maps, run, start, end, values = tiny.maps(amount=0.1), {"steps": 4, "cfg": 1.0}, 0.1, 0.9, (1.0, 0.2, 0.6)
    sigmas = []

    def spy(executor, *args, **kwargs):
        sigmas.append(float(args[5]["sigmas"].max()))
        return executor(*args, **kwargs)

    tiny.sample(with_wrapper(tiny.model, spy), **run)
    grid = torch.linspace(0, 1, 4001)
    sampling = tiny.model.get_model_object("model_sampling")
    noise = torch.tensor([float(sampling.percent_to_sigma(float(percent))) for percent in grid])
    places = [float(grid[(noise - sigma).abs().argmin()]) for sigma in sigmas]
    middles = [0.0, *((a + b) / 2 for a, b in zip(places, places[1:])), 1.0]
    staircase, width = tiny.model, (end - start) / 2
    for place, low, high in zip(places, middles, middles[1:]):
        if start <= place < end:
            share = (place - start) / width
            factor = values[0] + (values[1] - values[0]) * share
            if share > 1:
                factor = values[1] + (values[2] - values[1]) * (share - 1)
            staircase = steer(staircase, maps, 0.8 * factor, start_percent=low, end_percent=high)
    curved = tiny.sample(steer(tiny.model, maps, 0.8, start_percent=start, end_percent=end, curve=values), **run)
    assert off(curved, tiny.sample(staircase, **run)) < 1e-4
    flat = tiny.sample(steer(tiny.model, maps, 0.8, start_percent=start, end_percent=end), **run)
    assert off(curved, flat) > 1e-3
