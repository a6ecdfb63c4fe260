"""One-Step Sampling and DMD2 Sigmas with the host's own samplers and small models of its classes."""

from __future__ import annotations

import pytest
import torch

from pack import load_pack, pack_module, run_node


@pytest.fixture(scope="module")
def sampling():
    return pack_module("nodes.sampling")


@pytest.fixture(scope="module", params=["sd15", "pixart"])
def tiny(request):
    load_pack()
    from tiny_hosts import tiny_host

    return tiny_host(request.param)


def latent_shape(model) -> tuple[int, ...]:
    return (
        (2, 4, 36, 36) if "pixart" in str(model.model.model_config.unet_config.get("image_model")) else (2, 4, 24, 24)
    )


def advanced(
    model, sampler, sigmas, seed: int = 5, answers: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The stock SamplerCustomAdvanced; also what the network saw."""
    import comfy.patcher_extension
    from comfy_extras import nodes_custom_sampler as stock

    seen = []

    def look(executor, x, t, *args, **kwargs):
        seen.append(executor.class_obj.model_sampling.calculate_input(t, x).clone())
        answer = executor(x, t, *args, **kwargs)
        if answers is not None:
            answers.append(answer.clone())
        return answer

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, look)
    width = (
        model.model.model_config.unet_config.get("context_dim")
        or model.model.model_config.unet_config["caption_channels"]
    )
    conditioning = [[torch.randn(1, 7, width, generator=torch.Generator().manual_seed(1)), {}]]
    guider = stock.BasicGuider().get_guider(model, conditioning)[0]
    with torch.inference_mode():
        _, out = stock.SamplerCustomAdvanced().sample(
            stock.Noise_RandomNoise(seed), guider, sampler, sigmas, {"samples": torch.zeros(latent_shape(model))}
        )
    return out["samples"], seen


def test_the_network_sees_unit_noise_at_the_asked_timestep(sampling, tiny) -> None:
    import comfy.sample
    import comfy.samplers

    sampler, sigmas = run_node(sampling.OneStepSampling, model=tiny.model, timestep=400)
    schedule = tiny.model.get_model_object("model_sampling")
    assert sigmas.shape == (2,) and sigmas[1] == 0 and int(schedule.timestep(sigmas[:1])) == 400
    noise = comfy.sample.prepare_noise(torch.zeros(latent_shape(tiny.model)), 5)
    _, seen = advanced(tiny.model, sampler, sigmas)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], noise, atol=1e-5, rtol=1e-5)
    # why the node is there: the stock sampler gives the network too little noise
    _, pale = advanced(tiny.model, comfy.samplers.sampler_object("euler"), sigmas)
    torch.testing.assert_close(
        pale[0].std() / noise.std(), (sigmas[0] / (1 + sigmas[0] ** 2) ** 0.5), atol=1e-4, rtol=1e-4
    )


def test_one_step_is_the_networks_prediction(sampling, tiny) -> None:
    sampler, sigmas = run_node(sampling.OneStepSampling, model=tiny.model, timestep=399)
    answers = []
    made, seen = advanced(tiny.model, sampler, sigmas, answers=answers)
    assert len(answers) == len(seen) == 1
    torch.testing.assert_close(made, tiny.model.model.process_latent_out(answers[0]), atol=1e-5, rtol=1e-5)
    assert torch.equal(made, advanced(tiny.model, sampler, sigmas)[0])


def test_known_noise_levels(sampling) -> None:
    """Published numbers of the SDXL and the PixArt schedule, reference section 7."""
    from tiny_hosts import tiny_host

    (sigmas,) = run_node(sampling.DMD2Sigmas, model=tiny_host("sdxl").model)
    torch.testing.assert_close(sigmas, torch.tensor([14.6146, 4.0817, 1.6129, 0.6932, 0.0]), atol=1e-3, rtol=0)
    assert float(
        run_node(sampling.OneStepSampling, model=tiny_host("sdxl").model, timestep=399)[1][0]
    ) == pytest.approx(1.1606, abs=1e-4)
    assert float(
        run_node(sampling.OneStepSampling, model=tiny_host("pixart").model, timestep=400)[1][0]
    ) == pytest.approx(2.0411, abs=1e-4)


def test_dmd2_with_lcm_visits_its_timesteps(sampling, tiny) -> None:
    import comfy.samplers

    (sigmas,) = run_node(sampling.DMD2Sigmas, model=tiny.model)
    made, seen = advanced(tiny.model, comfy.samplers.sampler_object("lcm"), sigmas)
    assert len(seen) == 4 and torch.isfinite(made).all()
    assert tiny.model.get_model_object("model_sampling").timestep(sigmas[:4]).tolist() == [999, 749, 499, 249]
    assert float(seen[0].std()) == pytest.approx(1.0, abs=0.05)


def test_flow_models_are_refused_in_one_sentence(sampling) -> None:
    model = run_node(pack_module("nodes.postcard").PostcardModelNode)[0]
    for node, inputs in ((sampling.OneStepSampling, {"timestep": 400}), (sampling.DMD2Sigmas, {})):
        with pytest.raises(ValueError, match="flow model.*KSampler"):
            run_node(node, model=model, **inputs)
