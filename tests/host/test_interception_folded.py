"""Maps folded into the host's weight patches: as live, beside what else patches weights; and when they cannot be."""

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


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


def steer(model: Any, maps: Any, strength: Any = 1.0, **options: Any) -> Any:
    return pack_module("nodes.interception").steer_model(model, maps, strength, **options)


def foldable(tiny: Any, seed: int = 1, amount: float = 0.05) -> Any:
    return tiny.maps(seed=seed, amount=amount, site_set="everything", kinds=tiny.family.foldable)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def is_live(model: Any) -> bool:
    interception = pack_module("nodes.interception")
    return bool(model.get_wrappers(interception.WrappersMP.APPLY_MODEL, interception.KEY))


@pytest.mark.parametrize("strength", [-1.0, 0.5, 1.0, 1.5])
def test_folded_is_live(tiny, strength):
    maps, run = foldable(tiny), {"steps": 1}
    live, folded = (tiny.sample(steer(tiny.model, maps, strength, mode=mode), **run) for mode in ("live", "folded"))
    assert off(folded, live) < 1e-5 and off(live, tiny.sample(**run)) > 1e-3


def test_folding_leaves_the_model_alone_and_works_per_step_for_nothing(tiny):
    maps, base = foldable(tiny), tiny.sample()
    folded = steer(tiny.model, maps, mode="auto")
    assert not is_live(folded) and folded.wrappers == tiny.model.wrappers
    picture = tiny.sample(folded)
    assert torch.equal(tiny.sample(), base) and torch.equal(tiny.sample(folded), picture)
    assert off(tiny.sample(steer(folded, maps.change(lambda one: one.inverse()), mode="folded")), base) < 1e-3


def test_factors_fold_too(unet):
    maps, factors = foldable(unet), {"mlp": 0.5, "norm": 0.0, "middle_block.1.transformer_blocks.0.ff": 2.0}
    live, folded = (
        unet.sample(steer(unet.model, maps, 0.7, factors=factors, mode=mode), steps=1) for mode in ("live", "folded")
    )
    assert off(folded, live) < 1e-5 and off(live, unet.sample(steer(unet.model, maps, 0.7), steps=1)) > 1e-3


def test_convolutions_fold(unet):
    maps = unet.maps(amount=0.05, site_set="everything", kinds=("convolution",))
    live, folded = (unet.sample(steer(unet.model, maps, mode=mode), steps=1) for mode in ("live", "folded"))
    assert off(folded, live) < 1e-5 and off(live, unet.sample(steps=1)) > 1e-3


def test_chains_of_folded_and_live(unet):
    first, second, run = foldable(unet, 1), foldable(unet, 2), {"steps": 1}
    expected = unet.sample(steer(steer(unet.model, first), second, 0.5), **run)
    for modes in (("folded", "folded"), ("folded", "live"), ("live", "auto")):
        chain = steer(steer(unet.model, first, mode=modes[0]), second, 0.5, mode=modes[1])
        assert off(unet.sample(chain, **run), expected) < 1e-5, modes
    with pytest.raises(Exception, match="cannot be folded .* a live steering comes before"):
        steer(steer(unet.model, first), second, mode="folded")


def lora(unet: Any, model: Any) -> Any:
    """The model as a LoRA loader leaves it: low-rank patches on the layers that end the sites."""
    from comfy.weight_adapter import LoRAAdapter

    generator, patches = torch.Generator().manual_seed(4), {}
    for site in unet.sites("attention_mlp"):
        layer = f"{site.path}.net.2" if site.kind == "mlp" else f"{site.path}.0"
        width = unet.network.get_submodule(layer).in_features
        up, down = torch.randn(site.channels, 2, generator=generator), torch.randn(2, width, generator=generator)
        patches[f"diffusion_model.{layer}.weight"] = LoRAAdapter(set(), (up, 0.02 * down, 2.0, None, None, None))
    clone = model.clone()
    assert len(clone.add_patches(patches, 0.8)) == len(patches)
    return clone


def test_loras(unet):
    maps, run = foldable(unet), {"steps": 1}
    patched = lora(unet, unet.model)
    live = unet.sample(steer(patched, maps), **run)
    assert off(unet.sample(patched, **run), unet.sample(**run)) > 1e-3
    assert off(unet.sample(steer(patched, maps, mode="folded"), **run), live) < 1e-5
    assert torch.equal(unet.sample(lora(unet, steer(unet.model, maps)), **run), live), "live, the order does not matter"
    assert off(unet.sample(lora(unet, steer(unet.model, maps, mode="folded")), **run), live) < 0.1, (
        "folded, it is not steered itself"
    )


def test_patches_keep_half_precision_and_small_changes_of_it():
    patch = pack_module("nodes.folding").AffinePatch(torch.tensor([1.5, 1.0]), torch.tensor([0.25, -1.0]))
    assert patch.calculate_weight(torch.tensor([2.0, 3.0], dtype=torch.bfloat16), "b", 1.0).tolist() == [3.25, 2.0]
    assert patch.calculate_weight(torch.tensor([2.0, 3.0]), "b", 0.5).tolist() == [2.625, 2.5]
    scale = pack_module("nodes.folding").AffinePatch(torch.tensor([1.5, 1.0]))
    assert scale.calculate_weight(torch.ones(2, 3, 1, 1), "w", 1.0)[:, 0, 0, 0].tolist() == [1.5, 1.0]
    assert "2 channels" in repr(scale)


def test_saved_and_merged_models_hold_the_maps(unet):
    """What ModelSave and the merge nodes read."""
    import comfy.model_management

    maps = foldable(unet)
    folded = steer(unet.model, maps, mode="folded")
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_out.0.bias"
    site = maps.steps[0]["middle_block.1.transformer_blocks.0.attn1.to_out"]
    comfy.model_management.load_models_gpu([unet.model])  # whatever was loaded before had patched weights
    old = unet.model.model.state_dict()[key].clone()
    comfy.model_management.load_models_gpu([folded], force_patch_weights=True)
    torch.testing.assert_close(folded.model.state_dict()[key], old * site.scale[0] + site.shift[0])
    merged = unet.model.clone()
    merged.add_patches(folded.get_key_patches("diffusion_model."), 1.0, 0.0)
    assert off(unet.sample(merged, steps=1), unet.sample(folded, steps=1)) < 1e-5


WHY = {
    "a range": ({"end_percent": 0.5}, "part of the schedule"),
    "a mask": ({"mask": torch.eye(8)}, "a mask limits"),
    "a scope": ({"scope": "positive"}, "on the positive conditioning"),
    "strengths": ({"strength": torch.tensor([1.0, 0.5])}, "differ by row"),
}


@pytest.mark.parametrize("name", WHY)
def test_what_needs_live_says_so(unet, name):
    options, words = WHY[name]
    steering = pack_module("hypertransport_core.steering")
    assert is_live(steer(unet.model, foldable(unet), mode="auto", **options))
    with pytest.raises(steering.SteeringError, match=words) as refusal:
        steer(unet.model, foldable(unet), mode="folded", **options)
    message = str(refusal.value)
    assert message.endswith("choose the mode live or auto.") and ". " not in message


def test_maps_per_step_and_rows_need_live(unet):
    for maps, words in ((unet.maps(steps=2), "part of the schedule"), (unet.maps(rows=2), "differ by row")):
        assert is_live(steer(unet.model, maps, mode="auto"))
        with pytest.raises(ValueError, match=words):
            steer(unet.model, maps, mode="folded")


def test_norms_without_weights_need_live():
    from tiny_hosts import tiny_host

    pixart = tiny_host("pixart")
    assert is_live(steer(pixart.model, pixart.maps(), mode="auto"))
    with pytest.raises(ValueError, match="cannot be folded .* has no learned affine"):
        steer(pixart.model, pixart.maps(), mode="folded")


def test_weights_in_8_bits_are_only_folded_on_demand():
    from tiny_hosts import TinyHost, build

    few = TinyHost("sd15", build("sd15", torch.float8_e4m3fn, torch.float32))
    maps = foldable(few, amount=0.3)
    assert is_live(steer(few.model, maps, mode="auto"))
    folded, live = (few.sample(steer(few.model, maps, mode=mode), steps=1) for mode in ("folded", "live"))
    assert off(folded, live) < 0.5 * off(few.sample(steps=1), live)
