"""Live steering beside everything else the host does to a model, each with the relation that must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from steering_checks import identically, off, steer

CFG = 3.0
ONE_STEP = {"steps": 1}


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


@pytest.fixture(params=["sd15", "flux"])
def either(request) -> Any:
    from tiny_hosts import tiny_host

    return tiny_host(request.param)


def check_scopes(tiny: Any, model: Any, **run: Any) -> None:
    """After one step, u + cfg (c - u): steering the positives adds cfg (c1 - c0), the negatives what is missing."""
    maps = tiny.maps()
    pictures = {
        scope: tiny.sample(steer(model, maps, scope=scope), cfg=CFG, **ONE_STEP, **run)
        for scope in ("both", "positive", "negative")
    }
    base = tiny.sample(model, cfg=CFG, **ONE_STEP, **run)
    c0, c1 = tiny.sample(model, cfg=1.0, **ONE_STEP, **run), tiny.sample(steer(model, maps), cfg=1.0, **ONE_STEP, **run)
    assert off(c1, c0) > 1e-2
    assert off(pictures["positive"], base + CFG * (c1 - c0)) < 1e-4
    assert off(pictures["positive"] + pictures["negative"], base + pictures["both"]) < 1e-4
    assert torch.equal(tiny.sample(identically(tiny, model), cfg=CFG, **run), tiny.sample(model, cfg=CFG, **run))


# what conditioning can do


def area(tiny: Any, seed: int, left: bool, **values: Any) -> list:
    """A cond for one half of the picture."""
    side = tiny.family.latent[-1]
    return tiny.cond(seed, area=(side, side // 2, 0, 0 if left else side // 2), strength=1.0, **values)


def test_area_conditioning(either):
    """The host gives the negatives a counterpart of each area under the positive's uuid, so uuids alone are wrong."""
    check_scopes(either, either.model, positive=either.cond(11) + area(either, 13, left=True))


def test_masked_and_regional_conditioning(either):
    mask = torch.zeros(1, *either.family.latent[-2:])
    mask[..., :5] = 1
    regions = either.cond(13, mask=mask, mask_strength=1.0, set_area_to_bounds=False)
    rest = either.cond(14, mask=1 - mask, mask_strength=0.5, set_area_to_bounds=True)
    check_scopes(either, either.model, positive=regions + rest)


def test_conditioning_with_a_range_and_of_other_lengths(either):
    positive = either.cond(11, start_percent=0.0, end_percent=0.9) + either.cond(13, tokens=9)
    check_scopes(either, either.model, positive=positive, negative=either.cond(12, tokens=4))


def test_batches(either):
    check_scopes(either, either.model, batch=3)


def test_controlnet_residuals(unet):
    from comfy.controlnet import ControlBase

    class Residuals(ControlBase):
        """What a ControlNet gives back, without a network."""

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            channels = {"middle": [64], "output": [32, 32, 32, 64]}
            generator = torch.Generator().manual_seed(7)
            return {
                kind: [torch.randn(1, c, 1, 1, generator=generator) for c in sizes] for kind, sizes in channels.items()
            }

        def copy(self):
            return Residuals()

    positive = unet.cond(11, control=Residuals(), control_apply_to_uncond=True)
    assert off(unet.sample(positive=positive), unet.sample()) > 1e-2
    check_scopes(unet, unet.model, positive=positive)


# guiders


def guided(guider_class: Any, model: Any, set_up: Any) -> Any:
    guider = guider_class(model)
    set_up(guider)
    return guider


def test_dual_cfg_counts_its_middle_as_positive(unet):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    conds = {name: unet.cond(seed) for name, seed in (("positive", 11), ("middle", 13), ("negative", 12))}
    maps = unet.maps()

    def picture(model: Any, nested: bool) -> torch.Tensor:
        def set_up(guider):
            guider.set_conds(conds["positive"], conds["middle"], conds["negative"])
            guider.set_cfg(CFG, 2.0, nested=nested)

        return unet.guide(guided(Guider_DualCFG, model, set_up), steps=1)

    plain, full = (
        {name: unet.sample(model, cfg=1.0, positive=cond, **ONE_STEP) for name, cond in conds.items()}
        for model in (unet.model, steer(unet.model, maps))
    )
    for scope, (some, negative) in {"both": (full, full), "positive": (full, plain), "negative": (plain, full)}.items():
        p, m, n = some["positive"], some["middle"], negative["negative"]
        steered = steer(unet.model, maps, scope=scope)
        assert off(picture(steered, False), n + 2.0 * (m - n) + CFG * (p - m)) < 1e-4, scope
        assert off(picture(steered, True), n + 2.0 * (m + CFG * (p - m) - n)) < 1e-4, scope


def test_perp_neg_counts_its_empty_prompt_as_positive(unet):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg, perp_neg

    conds = {name: unet.cond(seed) for name, seed in (("positive", 11), ("negative", 12), ("empty", 13))}
    maps = unet.maps()

    def set_up(guider):
        guider.set_conds(conds["positive"], conds["negative"], conds["empty"])
        guider.set_cfg(CFG, 1.5)

    plain, full = (
        {name: unet.sample(model, cfg=1.0, positive=cond, **ONE_STEP) for name, cond in conds.items()}
        for model in (unet.model, steer(unet.model, maps))
    )
    for scope, (some, negative) in {"both": (full, full), "positive": (full, plain), "negative": (plain, full)}.items():
        expected = perp_neg(None, some["positive"], negative["negative"], some["empty"], 1.5, CFG)
        got = unet.guide(guided(Guider_PerpNeg, steer(unet.model, maps, scope=scope), set_up), steps=1)
        assert off(got, expected) < 1e-4, scope


def test_a_call_of_the_negatives_alone_is_known_as_negative(unet):
    """As self-attention guidance makes it: the list of negatives at the place of the positives."""
    import comfy.samplers

    def ask_again(args):
        (again,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["uncond"]], args["input"], args["sigma"], args["model_options"]
        )
        return again

    only = unet.model.clone()
    only.set_model_sampler_post_cfg_function(ask_again, disable_cfg1_optimization=True)
    maps = unet.maps()
    u0, u1 = (unet.sample(model, cfg=1.0, positive=unet.cond(12)) for model in (unet.model, steer(unet.model, maps)))
    assert off(unet.sample(steer(only, maps, scope="negative")), u1) < 1e-4
    assert off(unet.sample(steer(only, maps, scope="positive")), u0) < 1e-4


def test_context_windows():
    """The host then hands out copies of the lists of conds, once per window of frames."""
    import comfy.context_windows as windows
    from tiny_hosts import tiny_host

    wan = tiny_host("wan")
    windowed = wan.model.clone()
    windowed.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("flat"),
        context_length=2,
        context_overlap=1,
        context_stride=1,
        closed_loop=False,
        dim=2,
    )
    assert off(wan.sample(windowed), wan.sample()) > 1e-3
    check_scopes(wan, windowed)


def test_calls_outside_of_sampling(unet):
    """Whoever calls `apply_model` directly passes the wrappers; then position 1 of the batch is the negative."""
    from comfy.model_management import load_models_gpu

    steered, base = steer(unet.model, unet.maps(), scope="negative"), unet.model.model
    load_models_gpu([unet.model])
    x, sigma = unet.noise(2), torch.tensor([5.0, 5.0])
    context = torch.cat([unet.cond(11)[0][0], unet.cond(12)[0][0]])

    def call(**options):
        with torch.inference_mode():
            return base.apply_model(
                x, sigma, c_crossattn=context, transformer_options={"wrappers": steered.wrappers, **options}
            )

    plain = base.apply_model(x, sigma, c_crossattn=context)
    both = call(cond_or_uncond=[1, 0])
    assert not torch.allclose(both[0], plain[0], rtol=1e-2) and torch.equal(both[1], plain[1])
    assert torch.equal(call(), plain) and torch.equal(call(cond_or_uncond=[0, 0]), plain)


# attention replacement


@pytest.mark.parametrize("which", ["attn1", "attn2"])
def test_attention_replacement(unet, which):
    """IPAdapter and PAG replace attention; then the host calls `to_out` and nothing of the attention around it."""
    from comfy.ldm.modules.attention import optimized_attention

    def changed(q, k, v, extra_options):
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"]) + 0.5 * v.mean(1, keepdim=True)

    replaced = unet.model.clone()
    for block, numbers in (("input", (1, 3)), ("middle", (0,)), ("output", (0, 1, 2, 3))):
        for number in numbers:
            replaced.set_model_patch_replace(changed, which, block, number)
    assert off(unet.sample(replaced), unet.sample()) > 1e-3
    check_scopes(unet, replaced)
    kind = {"attn1": "self_attention", "attn2": "cross_attention"}[which]
    only = unet.maps(kinds=(kind,))
    live, folded = (unet.sample(steer(replaced, only, mode=mode)) for mode in ("live", "folded"))
    assert off(live, unet.sample(replaced)) > 1e-3 and off(folded, live) < 1e-4


def test_perturbed_attention_guidance(unet):
    """The host's own node asks once more for the positive, self-attention replaced: steered just as the positive is."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    scale, maps = 2.0, unet.maps()
    guided_model = PerturbedAttentionGuidance.execute(unet.model, scale).args[0]
    perturbed = unet.model.clone()
    perturbed.set_model_patch_replace(lambda q, k, v, extra_options, mask=None: v, "attn1", "middle", 0)
    (c0, c1), (p0, p1) = (
        [unet.sample(one, cfg=1.0, **ONE_STEP) for one in (model, steer(model, maps))] for model in (unet.model, perturbed)
    )
    u0, u1 = (
        unet.sample(one, cfg=1.0, positive=unet.cond(12), **ONE_STEP) for one in (unet.model, steer(unet.model, maps))
    )
    assert off(p1, c1) > 1e-3
    for scope, (c, u, p) in {"both": (c1, u1, p1), "positive": (c1, u0, p1), "negative": (c0, u1, p0)}.items():
        got = unet.sample(steer(guided_model, maps, scope=scope), cfg=CFG, **ONE_STEP)
        assert off(got, u + CFG * (c - u) + scale * (c - p)) < 1e-4, scope


# samplers, ranges, schedules


def test_ksampler_advanced_ranges(unet):
    """A run in two parts is the run in one; and the range of the steering is one of noise, not of the parts' steps."""
    maps = unet.maps(amount=0.05)
    for options in ({}, {"end_percent": 0.5}, {"start_percent": 0.3, "end_percent": 0.8}):
        steered = steer(unet.model, maps, **options)
        half = unet.sample(steered, steps=6, last_step=3, force_full_denoise=False)
        parts = unet.sample(steered, steps=6, start_step=3, noise=torch.zeros_like(half), latent=half)
        assert off(parts, unet.sample(steered, steps=6)) < 1e-4, options
    late = steer(unet.model, maps, end_percent=0.5)
    assert torch.equal(unet.sample(late, steps=6, start_step=3), unet.sample(steps=6, start_step=3))


def test_image_to_image_in_absolute_noise(unet):
    maps, picture = unet.maps(amount=0.05), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    run = {"latent": picture, "denoise": 0.5, "steps": 3}
    base, full = unet.sample(**run), unet.sample(steer(unet.model, maps), **run)
    assert torch.equal(unet.sample(steer(unet.model, maps, end_percent=0.5), **run), base)
    assert torch.equal(unet.sample(steer(unet.model, maps, start_percent=0.5), **run), full) and off(full, base) > 1e-4


def test_inpainting(unet):
    """A noise mask keeps the rest of the picture as it was; inside, steering does what it does without one."""
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    hole = torch.zeros(1, 1, 8, 8)
    hole[..., 2:6] = 1
    check_scopes(unet, unet.model, latent=picture, noise_mask=hole)
    kept = unet.sample(steer(unet.model, unet.maps()), latent=picture, noise_mask=hole)
    assert off(kept[..., :2], picture[..., :2]) < 1e-6 and off(kept[..., 2:6], picture[..., 2:6]) > 1e-2


def test_the_range_follows_a_schedule_node_put_after_it(unet):
    """ModelSampling nodes exchange what percent means; it is asked at run time, not when the steering was made."""
    from comfy.patcher_extension import WrappersMP
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    maps, run = unet.maps(amount=0.05), {"steps": 4, "cfg": 1.0}
    seen = []

    def spy(executor, *args, **kwargs):
        seen.append((float(args[5]["sigmas"].max()), bool(unet.traces())))
        return executor(*args, **kwargs)

    steered = steer(unet.model, maps, end_percent=0.5)
    late = ModelSamplingContinuousEDM().patch(steered, "eps", 80.0, 0.002)[0]
    late.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", spy)
    unet.sample(late, **run)
    bound = float(late.get_model_object("model_sampling").percent_to_sigma(0.5))
    assert {active for _, active in seen} == {True, False}
    assert all(active == (sigma > bound) for sigma, active in seen)


@pytest.mark.parametrize("sampler", ["dpm_2", "dpmpp_sde", "euler_ancestral", "lcm", "uni_pc"])
def test_other_samplers(unet, sampler):
    maps, run = unet.maps(amount=0.05), {"steps": 3, "sampler": sampler}
    early, late = steer(unet.model, maps, end_percent=0.4), {"start_percent": 0.4}
    full = unet.sample(steer(unet.model, maps), **run)
    assert torch.equal(unet.sample(steer(early, maps, **late), **run), full) and off(full, unet.sample(**run)) > 1e-4
