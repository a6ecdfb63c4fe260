"""An exported LoRA through the stock loader = folded = live."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pack import load_pack, pack_module, run_node

FAMILIES = ["sd15", "sdxl", "pixart", "sd3", "flux", "wan"]
FORMS = ["small", "full"]


@pytest.fixture(autouse=True)
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/loras."""
    load_pack()
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


def tiny(name: str) -> Any:
    from tests.support.tiny_hosts import tiny_host

    return tiny_host(name)


def export(model: Any, maps: Any, strength: float = 1.0, form: str = "small") -> tuple[Path, str]:
    path, text = run_node(pack_module("nodes.lora").ExportLora, model=model, maps=maps, strength=strength, filename_prefix="x", form=form)
    return Path(path), text


def stock_load(model: Any, path: Path, strength: float = 1.0, caplog: Any = None) -> Any:
    """What LoraLoaderModelOnly does."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path), safe_load=True), strength, 0)[0]


def weights_in(model: Any, patched: Any) -> dict[str, torch.Tensor]:
    """The weights that sampling would use."""
    import comfy.lora

    out = {}
    for key, (first, *patches) in patched.get_key_patches("diffusion_model.").items():
        if patches:
            out[key] = comfy.lora.calculate_weight(patches, first[0].float().clone(), key)
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_loader_gives_the_folded_weights(name: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    host = tiny(name)
    maps = host.maps(amount=0.3, kinds=host.family.foldable)
    path, _ = export(host.model, maps, 0.7, form)
    loaded = weights_in(host.model, stock_load(host.model, path))
    assert "not loaded" not in caplog.text.lower()
    folded = pack_module("hypertransport_core.folding").fold_maps(host.network, maps.steps[0], 0.7)
    assert loaded.keys() == {f"diffusion_model.{key}" for key in folded}
    for key, value in folded.items():
        torch.testing.assert_close(loaded[f"diffusion_model.{key}"], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_pictures_of_lora_folded_and_live_agree(name: str, form: str) -> None:
    host, steer_model = tiny(name), pack_module("nodes.interception").steer_model
    maps = host.maps(kinds=host.family.foldable)
    path, _ = export(host.model, maps, 1.0, form)
    base = host.sample()
    for strength in (1.0, 0.5, -0.5):
        lora = host.sample(stock_load(host.model, path, strength))
        for mode in ("folded", "live"):
            steered = host.sample(steer_model(host.model, maps, strength, mode=mode))
            assert (lora - steered).abs().max() < 1e-4 * base.abs().max() < (lora - base).abs().max()
    assert torch.equal(host.sample(), base)  # the model is as it was


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kinds", ["norms", "attention, MLPs and norms"])
def test_one_step_of_sdxl_at_every_strength(kinds: str, form: str) -> None:
    """Exported once, then moved by the stock loader's own slider, also below 0 and above 1: to 1e-5 of the picture's largest
    value (5e-7 measured)."""
    host, steer_model = tiny("sdxl"), pack_module("nodes.interception").steer_model
    maps = host.maps(kinds=("norm",) if kinds == "norms" else host.family.foldable)
    path, _ = export(host.model, maps, 1.0, form)
    base = host.sample(steps=1, cfg=1.0)
    seen = []
    for strength in (-1.0, -0.5, 0.25, 0.5, 1.0, 1.5):
        lora = host.sample(stock_load(host.model, path, strength), steps=1, cfg=1.0)
        for mode in ("folded", "live"):
            steered = host.sample(steer_model(host.model, maps, strength, mode=mode), steps=1, cfg=1.0)
            assert (lora - steered).abs().max() < 1e-5 * base.abs().max()
        assert all((lora - other).abs().max() > 1e-2 * base.abs().max() for other in (base, *seen))
        seen.append(lora)


@pytest.mark.parametrize("form", FORMS)
def test_postcard(form: str) -> None:
    from tests.host.test_postcard_host import SMALL, host_sample, inputs, randomised

    comfyui, unet = pack_module("hypertransport_core.backbones.comfyui"), pack_module("hypertransport_core.postcard.unet")
    sites, transport = pack_module("hypertransport_core.sites"), pack_module("hypertransport_core.transport")
    small = unet.UNetConfig.from_dict(SMALL.to_dict())
    model = comfyui.postcard_model(randomised(unet.PostcardUNet(small)).state_dict(), small)
    places = sites.find_sites(model.model.diffusion_model, "all")
    width = sum(site.channels for site in places)
    g = torch.Generator().manual_seed(0)
    one = transport.TransportMaps(places, 1 + 0.1 * torch.randn(1, width, generator=g), 0.1 * torch.randn(1, width, generator=g))
    maps = pack_module("nodes.sockets").PredictedMaps((one,), {"family": "postcard"}, name="fog")
    path, _ = export(model, maps, form=form)
    noise, _, context = inputs(SMALL, 1)
    def picture(m: Any) -> torch.Tensor:
        return host_sample(m, [1.0, 0.5, 0.0], noise, context)
    live = picture(pack_module("nodes.interception").steer_model(model, maps))
    torch.testing.assert_close(picture(stock_load(model, path)), live, atol=1e-4, rtol=1e-4)
    assert (live - picture(model)).abs().max() > 0.01


def test_another_lora_in_the_chain_is_not_exported() -> None:
    host = tiny("sd15")
    maps = host.maps(kinds=host.family.foldable)
    plain, _ = export(host.model, maps, form="full")
    other = host.model.clone()
    key = next(k for k, v in weights_in(host.model, stock_load(host.model, plain)).items() if v.ndim == 2)
    other.add_patches({key: ("diff", (torch.ones_like(host.network.state_dict()[key.removeprefix("diffusion_model.")]),))})
    host.sample(other)  # its weights are now in the shared network
    for number, model in enumerate((other, host.model), 2):
        again, _ = export(model, maps, form="full")
        assert again.name == f"x_0000{number}.safetensors"
        old, new = load_file(plain), load_file(again)
        assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)


def test_small_files_words_and_sizes() -> None:
    host = tiny("sd15")
    maps = host.maps(kinds=host.family.foldable)
    paths = {form: export(host.model, maps, form=form) for form in ("small", "full", "full, 16 bit")}
    sizes = {form: path.stat().st_size for form, (path, _) in paths.items()}
    assert sizes["full, 16 bit"] < 0.7 * sizes["full"]
    assert "'concept 1' at strength 1" in paths["small"][1] and "Load LoRA" in paths["small"][1]
    text = pack_module("nodes.lora").summary(maps, 3, 1.0, "x", 2 * 1024**3, "full")
    assert "large file (2.1 GB)" in text and "'small'" in text


def test_refusals() -> None:
    fold_error = pack_module("hypertransport_core.folding").FoldError
    file_error = pack_module("hypertransport_core.files").FileError
    pixart, sd15 = tiny("pixart"), tiny("sd15")
    with pytest.raises(fold_error, match="norm1' has no learned affine"):
        export(pixart.model, pixart.maps(kinds=("norm",)))
    with pytest.raises(file_error, match="2 stretches of noise level"):
        export(sd15.model, sd15.maps(steps=2))
    with pytest.raises(fold_error, match="2 concepts"):
        export(sd15.model, sd15.maps(rows=2))
    with pytest.raises(file_error, match="was made for"):
        export(sd15.model, pixart.maps())
    with pytest.raises(fold_error, match="change nothing"):
        export(sd15.model, sd15.maps(), 0.0)
