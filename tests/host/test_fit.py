"""A host's MODEL as a backbone, and Fit Maps in the graph: right statistics, right gradients, nothing left behind."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pack import load_pack, pack_module, run_node
from random_worlds import word_clip

FAMILIES = ["sd15", "sdxl", "pixart", "sd3", "flux", "wan"]
SCENES, WANTED = ["a red house", "a small blue boat on the left", "a cat", "a green tree"], "mosaic"


@pytest.fixture(scope="module")
def pack() -> SimpleNamespace:
    load_pack()
    return SimpleNamespace(fit=pack_module("nodes.fit"), host=pack_module("hypertransport_core.backbones.host_backbone"),
                           measuring=pack_module("hypertransport_core.measuring"), transport=pack_module("hypertransport_core.transport"),
                           recipe=pack_module("hypertransport_core.fitting.recipe"), pipeline=pack_module("hypertransport_core.pipeline"))


@pytest.fixture(scope="module")
def postcard() -> tuple:
    """(model, clip, vae, latent) as the nodes give them."""
    nodes = pack_module("nodes.postcard")
    model, clip, vae, _ = run_node(nodes.PostcardModelNode)
    return model, clip, vae, run_node(nodes.EmptyPostcardLatent, batch_size=1)[0]


def fit(pack: SimpleNamespace, model: Any, clip: Any, latent: Any, **changes: Any) -> tuple:
    options = dict(concept=WANTED, method="LinEAS", site_set="attention_mlp", iterations=2, sampling_steps=1, generic_prompts="\n".join(SCENES),
                   samples=4, batch=4, at_once=4) | changes
    return run_node(pack.fit.FitMaps, model=model, clip=clip, latent=latent, **options)


def state_of(model: Any) -> tuple:
    """Everything that a fit might leave changed, by identity."""
    tables = [(m._parameters, m._buffers) for m in model.model.modules()]
    values = [(id(v), None if v is None else v.requires_grad) for pair in tables for table in pair for v in table.values()]
    return values, [m.training for m in model.model.modules()], ["forward" in m.__dict__ for m in model.model.modules()]


def test_statistics_and_samples_are_those_of_the_plain_backbone(pack: SimpleNamespace, postcard: tuple) -> None:
    model, clip, vae, latent = postcard
    host = pack.host.HostBackbone(model, clip, latent=latent["samples"], vae=vae)
    plain = pack.pipeline.Pipeline.load(steered=False).backbone
    assert host.family == plain.family == "postcard" and host.latent_shape == plain.latent_shape and set(host.sites("all")) == set(plain.sites("all"))
    step_maps = pack_module("hypertransport_core.step_maps")
    assert step_maps.fingerprint_agreement(host.fingerprint(), plain.fingerprint()) == 1  # the host lists modules in another order
    assert host.noise_levels(4) == plain.noise_levels(4) and torch.equal(host.noise([3, 4]), plain.noise([3, 4]))
    sites = plain.sites("all")
    for options in ({"steps": 3}, {"pooling": "mean_std"}):
        theirs, ours = (pack.measuring.pooled_samples(b, SCENES, range(4), sites, batch=2, **options) for b in (host, plain))
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    g = torch.Generator().manual_seed(0)
    width = sum(site.channels for site in sites)
    steering = [pack.pipeline.Steering(pack.transport.TransportMaps(sites, 1 + 0.1 * torch.randn(1, width, generator=g), torch.zeros(1, width)))]
    pictures = [b.decode(b.sample(b.encode(SCENES), b.noise(range(4)), steps=2, steering=steering)) for b in (host, plain)]
    torch.testing.assert_close(*pictures, atol=1e-3, rtol=1e-3)


# The host's scheduler takes whole timesteps of 1000; with these numbers of steps the equal ones are whole.
@pytest.mark.parametrize("name, steps", [("sd15", 3), ("sdxl", 3), ("pixart", 3), ("sd3", 4), ("flux", 4), ("wan", 4)])
def test_unguided_sampling_is_the_hosts_euler(pack: SimpleNamespace, name: str, steps: int) -> None:
    from tests.support.tiny_hosts import tiny_host

    host = tiny_host(name)
    backbone = pack.host.HostBackbone(host.model, word_clip(host.family.context, host.family.pooled), latent=host.latent())
    (cond, extra), = backbone.clip.encode_from_tokens_scheduled(backbone.clip.tokenize("a cat"))
    theirs = host.sample(steps=steps, cfg=1.0, positive=[[cond, extra]])
    ours = backbone.sample(backbone.encode(["a cat"]), host.noise(), steps=steps)
    assert (host.model.model.process_latent_out(ours) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_on_every_family_in_inference_mode(pack: SimpleNamespace, name: str) -> None:
    """As in the server: weights made in inference mode, the node run in it, prompts of different lengths."""
    from tests.support.tiny_hosts import TinyHost, build

    with torch.inference_mode():
        host = TinyHost(name, build(name))
        assert any(p.is_inference() for p in host.network.parameters())
        clip = word_clip(host.family.context, host.family.pooled)
        before = state_of(host.model)
        maps, report = fit(pack, host.model, clip, {"samples": host.latent()}, sampling_steps=2)
        assert state_of(host.model) == before
    one = maps.steps[0]
    assert not one.scale.is_inference() and bool(one.scale.isfinite().all()) and bool(one.shift.isfinite().all())
    moved = {site.path for site, value in zip(one.sites, one.site_norms().values()) if value > 0}
    # In a text stream that has not met the picture yet, source and target may be alike, but most sites must move.
    assert len(moved) >= 0.8 * len(one.sites)
    assert "LinEAS" in report and "loss" in report


def test_gradients_agree_with_finite_differences_where_norms_are_followed_by_in_place_adds(pack: SimpleNamespace) -> None:
    from tests.support.tiny_hosts import tiny_host

    host = tiny_host("flux")
    backbone = pack.host.HostBackbone(host.model, word_clip(16, 16), latent=host.latent())
    sites, steering = backbone.sites("all"), pack_module("hypertransport_core.steering").Steering
    width, conditioning, noise = sum(s.channels for s in sites), backbone.encode(SCENES[:2]), backbone.noise([1, 2])
    direction = torch.randn(2, 1, width, generator=torch.Generator().manual_seed(0))

    def value(step: float, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        maps = pack.transport.TransportMaps(sites, scale + step * direction[0], shift + step * direction[1])
        with steering(maps).installed(backbone.network, batch=2):
            return backbone.denoise(noise, 1.0, conditioning).double().square().mean()

    scale, shift = torch.ones(1, width, requires_grad=True), torch.zeros(1, width, requires_grad=True)
    gradients = torch.autograd.grad(value(0.0, scale, shift), [scale, shift])
    slope = float(sum((g * d).sum() for g, d in zip(gradients, direction)))
    with torch.no_grad():
        numeric = float(value(1e-2, scale, shift) - value(-1e-2, scale, shift)) / 2e-2
    assert numeric == pytest.approx(slope, rel=2e-2)


def test_lineas_lowers_the_loss_and_steers(pack: SimpleNamespace, postcard: tuple) -> None:
    model, clip, _, latent = postcard
    losses: list[float] = []
    recipe = pack.recipe.Recipe(samples=4, batch=4, at_once=4, iterations=30, steps=1)
    wanted = pack.recipe.in_scenes(SCENES, WANTED)
    with torch.inference_mode():
        maps, losses = pack.fit.fit(model, clip, latent["samples"], recipe, "attention_mlp", SCENES, wanted, WANTED)
    assert losses[-1] < 0.6 * losses[0]
    assert maps.backbone["family"] == "postcard" and maps.name == WANTED
    pack_module("nodes.interception").check_maps(model, maps)
    backbone = pack.host.HostBackbone(model, clip, latent=latent["samples"])
    sites = maps.steps[0].sites
    plain, steered, target = (pack.measuring.pooled_samples(backbone, prompts, range(4), sites, maps=m)[0].mean(0)
                              for prompts, m in ((SCENES, None), (SCENES, maps.steps[0]), (wanted, None)))
    assert (steered - target).norm() < 0.5 * (plain - target).norm()


@pytest.mark.parametrize("method", ["Linear-AcT", "Mean-AcT"])
@pytest.mark.parametrize("samples", [4, 8])
def test_one_pass_methods_are_the_cores(pack: SimpleNamespace, postcard: tuple, method: str, samples: int) -> None:
    model, clip, _, latent = postcard
    with torch.inference_mode():
        maps, report = fit(pack, model, clip, latent, method=method, samples=samples, fit_seed=5)
    plain = pack.pipeline.Pipeline.load(steered=False).backbone
    recipe = pack.recipe.Recipe(method, samples, 4, 4, steps=1, seed=5)
    sites = maps.steps[0].sites  # in the host's order, by which groups are made
    expected = recipe.fit(plain, sites, SCENES, pack.recipe.in_scenes(SCENES, WANTED))
    assert maps.steps[0].allclose(expected, rtol=1e-2, atol=1e-3) and "loss" not in report
    assert not maps.steps[0].scale.is_inference()


@pytest.mark.parametrize("dtype, compute", [(torch.float16, None), (torch.float8_e4m3fn, torch.float32)])
def test_half_precision_models_learn_as_well(pack: SimpleNamespace, dtype: torch.dtype, compute: torch.dtype | None) -> None:
    """The loss is amplified in fp16, where the gradient at one token of many would underflow."""
    from tests.support.tiny_hosts import TinyHost, build

    recipe = pack.recipe.Recipe(samples=4, batch=4, at_once=4, iterations=4, learning_rate=0.1, steps=1)
    wanted, results = pack.recipe.in_scenes(SCENES, WANTED), []
    for types in ((torch.float32, None), (dtype, compute)):
        with torch.inference_mode():
            host = TinyHost("sd15", build("sd15", *types))
            latent = host.latent()
            results.append(pack.fit.fit(host.model, word_clip(16, 0), latent, recipe, "attention_mlp", SCENES, wanted, "x"))
    (full, full_losses), (half, half_losses) = results
    assert half_losses[-1] < half_losses[0] and half_losses[0] == pytest.approx(full_losses[0], rel=0.3)
    departures = [torch.cat([m.steps[0].scale - 1, m.steps[0].shift]).flatten() for m in (full, half)]
    assert torch.nn.functional.cosine_similarity(*departures, dim=0) > 0.7


def test_fewer_pictures_at_once_give_the_same_maps(pack: SimpleNamespace) -> None:
    from tests.support.tiny_hosts import tiny_host

    host = tiny_host("sd15")
    found = [fit(pack, host.model, word_clip(16, 0), {"samples": host.latent()}, iterations=3, at_once=n)[0].steps[0] for n in (4, 3)]
    assert found[0].allclose(found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("at_once", [4, 3])
@pytest.mark.parametrize("method", ["LinEAS", "Linear-AcT", "Mean-AcT"])
def test_progress_is_counted_right_and_cancel_leaves_the_model_as_it_was(pack: SimpleNamespace, method: str, at_once: int,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management
    import comfy.utils
    from tests.support.tiny_hosts import tiny_host

    host, seen = tiny_host("sd15"), []
    clip = word_clip(host.family.context, 0)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *rest, **more: seen.append((value, total)))
    fit(pack, host.model, clip, {"samples": host.latent()}, method=method, samples=8, sampling_steps=2, at_once=at_once)
    assert seen[-1][0] == seen[-1][1] and len(seen) == seen[-1][1]

    before, count = state_of(host.model), len(seen)
    def cancel(value: int, total: int, *rest: Any, **more: Any) -> None:
        if value == total - 1:
            management.interrupt_current_processing()
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", cancel)
    with pytest.raises(management.InterruptProcessingException):
        fit(pack, host.model, clip, {"samples": host.latent()}, method=method, samples=8, sampling_steps=2, at_once=at_once)
    assert state_of(host.model) == before and len(seen) == count


def test_own_concept_prompts_and_refusals(pack: SimpleNamespace, postcard: tuple) -> None:
    model, clip, _, latent = postcard
    fit_error = pack_module("hypertransport_core.fitting.moments").FitError
    maps, _ = fit(pack, model, clip, latent, concept="", concept_prompts="a cat, in snow\na house, in snow", method="Mean-AcT")
    assert maps.name == "a cat, in snow | a house, in snow"
    with pytest.raises(fit_error, match="0 prompts with the concept"):
        fit(pack, model, clip, latent, concept="  ")
    with pytest.raises(fit_error, match="needs at least 4"):
        fit(pack, model, clip, latent, batch=2)
    with pytest.raises(pack.host.HostBackboneError, match="no CLIP"):
        pack.host.HostBackbone(model, latent=latent["samples"]).encode(["a cat"])
    with pytest.raises(pack.host.HostBackboneError, match="no VAE"):
        pack.host.HostBackbone(model, latent=latent["samples"]).decode(latent["samples"])
    with pytest.raises(ValueError, match="at least 1"):
        pack.host.HostBackbone(model, latent=latent["samples"]).noise_levels(0)
