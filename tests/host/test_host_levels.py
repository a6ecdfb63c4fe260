"""Training meets the host's models as the pack's nodes sample them, and gradients through them are right."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from pack import ROOT, load_pack, pack_module, run_node

PROMPTS = ["a red house", "a small cat"]


@pytest.fixture(scope="module")
def host_backbone() -> Any:
    load_pack()
    from hypertransport_core.backbones import host_backbone

    return host_backbone


def backbone_of(host_backbone: Any, tiny: Any, **options: Any) -> Any:
    from tests.host.test_fit import word_clip

    clip = word_clip(tiny.family.context, tiny.family.pooled)
    return host_backbone.HostBackbone(tiny.model, clip, latent=tiny.latent(), **options)


def sampled_by_the_host(tiny: Any, backbone: Any, sampler: Any, sigmas: torch.Tensor, noise: torch.Tensor) -> tuple:
    """(latents, what the network saw at each step) of SamplerCustomAdvanced's parts, for one prompt."""
    import comfy.patcher_extension
    import comfy.sample

    seen = []

    def look(executor: Any, x: torch.Tensor, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(executor.class_obj.model_sampling.calculate_input(t, x).clone())
        return executor(x, t, *args, **kwargs)

    model = tiny.model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, look)
    (cond, extra), = backbone.clip.encode_from_tokens_scheduled(backbone.clip.tokenize(PROMPTS[0]))
    with torch.inference_mode():
        found = comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, [[cond, extra]], [[cond, extra]],
                                           torch.zeros_like(noise), disable_pbar=True, seed=0)  # fmt: skip
    return found, seen


def inputs_seen(tiny: Any, backbone: Any, steps: int, noise: torch.Tensor) -> tuple:
    """The same of our own sampling."""
    seen, network = [], tiny.network
    forward = network.forward

    def look(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(x.clone())
        return forward(x, *args, **kwargs)

    network.forward = look
    try:
        with torch.no_grad():
            found = backbone.sample(backbone.encode(PROMPTS[:1]), noise, steps=steps)
    finally:
        del network.forward
    return tiny.model.model.process_latent_out(found), seen


@pytest.mark.parametrize("name, timestep", [("sdxl", 399), ("pixart", 400), ("sd15", 100)])
def test_one_step_models_see_unit_noise_at_their_timestep(name: str, timestep: int, host_backbone: Any) -> None:
    from tiny_hosts import tiny_host

    tiny = tiny_host(name)
    sampler, sigmas = run_node(pack_module("nodes.sampling").OneStepSampling, model=tiny.model, timestep=timestep)
    backbone = backbone_of(host_backbone, tiny, timesteps=(timestep,))
    level, end = backbone.noise_levels(1)
    assert end == 0 and backbone.sigma(level) == pytest.approx(float(sigmas[0]), rel=1e-6)
    noise = backbone.noise([3])
    theirs, their_inputs = sampled_by_the_host(tiny, backbone, sampler, sigmas, noise)
    ours, our_inputs = inputs_seen(tiny, backbone, 1, noise)
    torch.testing.assert_close(our_inputs[0], noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_inputs, their_inputs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_four_step_dmd2_is_the_nodes_sigmas_with_the_hosts_lcm(host_backbone: Any) -> None:
    """With our fresh noise handed to the host's own sampler, both see the same latents at every step."""
    import comfy.samplers
    from tiny_hosts import tiny_host

    tiny = tiny_host("sdxl")
    (sigmas,) = run_node(pack_module("nodes.sampling").DMD2Sigmas, model=tiny.model)
    steps = pack_module("nodes.sampling").DMD2_TIMESTEPS
    backbone = backbone_of(host_backbone, tiny, timesteps=steps, renoise=True)
    levels = backbone.noise_levels(4)
    assert [backbone.sigma(level) for level in levels[:4]] == pytest.approx(sigmas[:4].tolist(), rel=1e-6)
    noise = backbone.noise([7])
    fresh = [host_backbone.fresh_noise(noise, level) for level in levels[1:4]]
    drawn = iter(fresh)
    sampler = comfy.samplers.ksampler("lcm", {"noise_sampler": lambda sigma, following: next(drawn)})
    theirs, their_inputs = sampled_by_the_host(tiny, backbone, sampler, sigmas, noise)
    ours, our_inputs = inputs_seen(tiny, backbone, 4, noise)
    assert len(our_inputs) == 4
    torch.testing.assert_close(our_inputs, their_inputs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_fresh_noise_is_normal_new_and_decided_by_the_seed(host_backbone: Any) -> None:
    from tiny_hosts import tiny_host

    backbone = backbone_of(host_backbone, tiny_host("sdxl"), timesteps=(999, 499), renoise=True)
    noise = torch.stack([torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    one, other = host_backbone.fresh_noise(noise, 0.75), host_backbone.fresh_noise(noise, 0.5)
    everything = torch.stack([noise[0], noise[1], one[0], one[1], other[0], other[1]]).flatten(1)
    torch.testing.assert_close(torch.corrcoef(everything), torch.eye(6), atol=0.04, rtol=0)
    assert one.std() == pytest.approx(1.0, abs=0.02)
    # what else is in the batch, and a second time, make no difference
    torch.testing.assert_close(host_backbone.fresh_noise(noise[1:], 0.75), one[1:], atol=0, rtol=0)
    x, clean = backbone.noise([1, 2]), backbone.noise([3, 4])
    both = backbone.advance(x, clean, 1.0, 499 / 999, noise[:, :, :8, :8])
    torch.testing.assert_close(backbone.advance(x[1:], clean[1:], 1.0, 499 / 999, noise[1:, :, :8, :8]), both[1:])
    assert torch.equal(backbone.advance(x, clean, 499 / 999, 0.0), clean)


def test_refused_levels(host_backbone: Any) -> None:
    from tiny_hosts import tiny_host

    backbone = backbone_of(host_backbone, tiny_host("sdxl"), timesteps=(999, 749, 499, 249))
    with pytest.raises(host_backbone.HostBackboneError, match="is 8, expected 4, one for each of the timesteps 999"):
        backbone.noise_levels(8)
    with pytest.raises(host_backbone.HostBackboneError, match="flow model.*leave timesteps empty"):
        backbone_of(host_backbone, tiny_host("flux"), timesteps=(400,))


def test_prompts_read_at_different_times_fit_one_batch(host_backbone: Any) -> None:
    """For text encoders without a fixed length, as PixArt's: without room made before, the host cannot join them."""
    from tiny_hosts import tiny_host

    long = "a small blue boat on the left of a big tree by the sea"
    free, padded = (backbone_of(host_backbone, tiny_host("pixart")) for _ in range(2))
    padded.pad_to_longest(["a cat", long])
    together = []
    for backbone in (free, padded):
        rows = [backbone.encode([prompt]).rows[0] for prompt in ("a cat", long)]
        together.append(host_backbone.HostConditioning(rows, backbone.device))
    with pytest.raises(host_backbone.HostBackboneError, match="different shapes"):
        together[0].together()
    assert together[1].together()["c_crossattn"].shape[:2] == (2, len(long.split()))


def test_rows_without_a_mask_get_one_that_hides_nothing(host_backbone: Any) -> None:
    import comfy.conds

    cond = comfy.conds.CONDRegular
    rows = [{"c_crossattn": cond(torch.ones(1, 3, 4)), "attention_mask": cond(torch.tensor([[1, 1, 0]]))},
            {"c_crossattn": cond(torch.ones(1, 3, 4))}]  # fmt: skip
    together = host_backbone.HostConditioning(rows, torch.device("cpu")).together()
    assert together["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_prompts_used_longest_ago_are_forgotten(host_backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiny_hosts import tiny_host

    backbone = backbone_of(host_backbone, tiny_host("sd15"))
    one = backbone.encode(["a red cat"]).rows[0]["c_crossattn"].cond
    monkeypatch.setattr(host_backbone, "MOST_REMEMBERED", 3 * one.nbytes)
    for prompt in ("a blue cat", "a red cat", "a green cat", "a pale cat"):
        backbone.encode([prompt])
    assert list(backbone._encoded) == ["a red cat", "a green cat", "a pale cat"]
    assert len(backbone.encode([f"a {word} cat" for word in ("b", "c", "d", "e")])) == 4  # more than there is room for
    torch.testing.assert_close(backbone.encode(["a red cat"]).rows[0]["c_crossattn"].cond, one, atol=0, rtol=0)


def test_pictures_that_are_not_numbers_are_refused(host_backbone: Any) -> None:
    from hypertransport_core.backbones.host_files import load_weights

    loaded = load_weights(ROOT / "weights" / "postcard.safetensors")
    latent = torch.zeros(1, 48, 16, 16)
    backbone = host_backbone.HostBackbone(loaded.model, loaded.clip, vae=loaded.vae, latent=latent)
    assert bool(backbone.decode(latent).isfinite().all())
    with pytest.raises(host_backbone.HostBackboneError, match="VAE made pictures that are not finite"):
        backbone.decode(latent + float("nan"))


def test_guidance_that_a_model_reads_reaches_it(host_backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_hosts

    family = tiny_hosts.FAMILIES["flux"]
    dev = replace(family, config_class="Flux", config={**family.config, "guidance_embed": True})
    monkeypatch.setitem(tiny_hosts.FAMILIES, "flux", dev)
    tiny = tiny_hosts.TinyHost("flux", tiny_hosts.build("flux"))
    found = []
    for extra in (None, {"guidance": 3.5}, {"guidance": 1.0}):
        backbone = backbone_of(host_backbone, tiny, extra=extra)
        with torch.no_grad():
            found.append(backbone.denoise(backbone.noise([1]), 1.0, backbone.encode(PROMPTS[:1])))
    assert torch.equal(found[0], found[1])  # the host's own
    assert not torch.allclose(found[0], found[2], atol=1e-4)


def test_a_lora_is_in_the_weights_that_are_trained_on(host_backbone: Any, tmp_path: Any) -> None:
    from hypertransport_core.backbones.host import HostError
    from hypertransport_core.backbones.host_files import with_lora
    from safetensors.torch import save_file
    from tiny_hosts import TinyHost, build

    tiny = TinyHost("sd15", build("sd15"))
    path = "middle_block.1.transformer_blocks.0.attn1.to_out.0"
    plain = tiny.network.get_submodule(path).weight.clone()
    up, down = torch.randn(plain.shape[0], 2), torch.randn(2, plain.shape[1])
    tensors = {f"diffusion_model.{path}.lora_up.weight": up, f"diffusion_model.{path}.lora_down.weight": down}
    save_file(tensors, str(tmp_path / "lora.safetensors"))
    model, _ = with_lora(tiny.model, None, tmp_path / "lora.safetensors", 0.5)
    backbone = backbone_of(host_backbone, TinyHost("sd15", model))
    torch.testing.assert_close(backbone.network.get_submodule(path).weight, plain + 0.5 * up @ down)
    save_file({f"foreign.{name}": value for name, value in tensors.items()}, str(tmp_path / "other.safetensors"))
    with pytest.raises(HostError, match="holds no LoRA weights of this SD15 model"):
        with_lora(tiny.model, None, tmp_path / "other.safetensors", 1.0)


def slopes(host_backbone: Any, tiny: Any, safe: bool, checkpointing: bool) -> tuple[float, float]:
    """Directional derivatives of a loss by backward and by finite differences, for maps on the words' half of the first
    double block: what the next block adds to in place."""
    from hypertransport_core.steering import Steering
    from hypertransport_core.training.recomputation import checkpointed
    from hypertransport_core.transport import TransportMaps

    backbone = backbone_of(host_backbone, tiny)
    sites = backbone.sites("all", r"double_blocks\.0\.txt")
    width, conditioning, noise = sum(s.channels for s in sites), backbone.encode(PROMPTS), backbone.noise([1, 2])
    direction = torch.randn(2, 1, width, generator=torch.Generator().manual_seed(0))

    def value(step: float, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        maps = TransportMaps(sites, scale + step * direction[0], shift + step * direction[1])
        with ExitStack() as stack:
            stack.enter_context(Steering(maps).installed(backbone.network, batch=2))
            stack.enter_context(checkpointed(backbone.network) if checkpointing else nullcontext())
            return backbone.denoise(noise, 1.0, conditioning).double().square().mean()

    scale, shift = torch.ones(1, width, requires_grad=True), torch.zeros(1, width, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        if not safe:
            patch.setattr(host_backbone, "safe_norms", lambda network: nullcontext())
        gradients = torch.autograd.grad(value(0.0, scale, shift), [scale, shift])
    with torch.no_grad():
        numeric = float(value(1e-2, scale, shift) - value(-1e-2, scale, shift)) / 2e-2
    return float(sum((g * d).sum() for g, d in zip(gradients, direction))), numeric


@pytest.mark.parametrize("name", ["flux", "hunyuan_image"])
def test_gradients_where_networks_add_in_place(name: str, host_backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences in float64; without `safe_norms` backward fails, or with checkpointing is wrong."""
    import host_training  # noqa: F401 - for its HunyuanImage
    import tiny_hosts

    family = tiny_hosts.FAMILIES[name]
    deeper = replace(family, config={**family.config, "depth": 2, "depth_single_blocks": 2})
    monkeypatch.setitem(tiny_hosts.FAMILIES, name, deeper)
    tiny = tiny_hosts.TinyHost(name, tiny_hosts.build(name, torch.float64))
    for checkpointing in (False, True):
        slope, numeric = slopes(host_backbone, tiny, True, checkpointing)
        assert slope == pytest.approx(numeric, rel=5e-4)
    with pytest.raises(RuntimeError, match="inplace operation"):
        slopes(host_backbone, tiny, False, False)
    wrong, numeric = slopes(host_backbone, tiny, False, True)
    assert abs(wrong / numeric - 1) > 1e-3
