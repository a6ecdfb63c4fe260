"""Live steering wherever weights lie and in whatever dtype: few bits, half precision, partial loads, compiled."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from pack import pack_module
from steering_checks import identically, off, steer


@pytest.fixture
def unet() -> Any:
    from tiny_hosts import tiny_host

    return tiny_host("sd15")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_weights_in_few_bits_with_manual_cast(dtype):
    """Computed in fp32 from 16 or 8 bit weights: the same as from fp32 weights of these values; and they stay so."""
    from tiny_hosts import TinyHost, build

    few = TinyHost("sd15", build("sd15", getattr(torch, dtype), torch.float32))
    same = TinyHost("sd15", build("sd15"))
    same.network.load_state_dict({name: value.float() for name, value in few.network.state_dict().items()})
    maps = few.maps()
    assert torch.equal(few.sample(identically(few, few.model)), few.sample())
    assert off(few.sample(steer(few.model, maps)), same.sample(steer(same.model, maps))) < 1e-5
    assert {p.dtype for p in few.network.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computing_in_half_precision(dtype):
    from tiny_hosts import TinyHost, build

    half, full = TinyHost("flux", build("flux", dtype)), TinyHost("flux", build("flux"))
    maps = half.maps(amount=0.3)
    assert torch.equal(half.sample(identically(half, half.model)), half.sample())
    picture, exact, base = half.sample(steer(half.model, maps)), full.sample(steer(full.model, maps)), full.sample()
    assert off(picture, exact) < 0.2 * off(base, exact)
    assert {p.dtype for p in half.network.parameters()} == {dtype}


class Packed(torch.nn.Linear):
    """A layer whose weights are whole numbers with a scale, unpacked when it is called, as loaders of GGUF files make."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.scale = torch.nn.Parameter(linear.weight.abs().amax() / 127, requires_grad=False)
        self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def unpacked(self) -> torch.Tensor:
        return self.weight.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.unpacked(), self.bias)


def test_weights_packed_as_whole_numbers():
    """Steered live, the same as from what they unpack to; `auto` does not fold; maps of the original are accepted."""
    from tiny_hosts import TinyHost, build

    files = pack_module("hypertransport_core.files")
    packed, plain = TinyHost("sd15", build("sd15")), TinyHost("sd15", build("sd15"))
    maps = plain.maps()
    fingerprint = files.network_fingerprint(plain.network, maps.steps[0].sites)
    maps = dataclasses.replace(maps, backbone={"family": "sd15", "fingerprint": fingerprint})
    for path, layer in [*packed.network.named_modules()]:
        if isinstance(layer, torch.nn.Linear):
            packed.network.set_submodule(path, Packed(layer))
            plain.network.get_submodule(path).weight.data = packed.network.get_submodule(path).unpacked()
    assert torch.equal(packed.sample(identically(packed, packed.model)), packed.sample())
    expected = plain.sample(steer(plain.model, maps))
    assert off(expected, plain.sample()) > 1e-2
    for mode in ("live", "auto"):
        assert off(packed.sample(steer(packed.model, maps, mode=mode)), expected) < 1e-5
    assert packed.traces() == [] and not packed.model.patches


def test_partly_loaded_models(unet, monkeypatch):
    import comfy.model_management

    maps = unet.maps()
    steered = steer(unet.model, maps)
    folded = steer(unet.model, maps, mode="folded")
    pictures = [unet.sample(), unet.sample(steered), unet.sample(folded)]
    for model, picture in zip((unet.model, steered, folded), pictures):
        comfy.model_management.unload_all_models()
        with monkeypatch.context() as patch:
            patch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **kwargs: None)
            model.patch_model(torch.device("cpu"), lowvram_model_memory=unet.model.model_size() // 2)
            casting = sum(getattr(m, "comfy_cast_weights", False) for m in unet.network.modules())
            again = unet.sample(model)
        model.unpatch_model(torch.device("cpu"))
        assert casting > 10 and off(again, picture) < 1e-6
    assert torch.equal(unet.sample(), pictures[0])


def test_steered_models_alternate_unload_and_return(unet):
    import comfy.model_management

    models = [
        unet.model,
        steer(unet.model, unet.maps()),
        steer(unet.model, unet.maps(seed=2), mode="folded"),
        steer(unet.model, unet.maps(seed=3), 0.5, scope="positive"),
    ]
    pictures = [unet.sample(model) for model in models]
    for order in ((3, 1, 0, 2), (2, 0, 1, 3)):
        for index in order:
            assert torch.equal(unet.sample(models[index]), pictures[index])
        comfy.model_management.unload_all_models()
    assert unet.traces() == []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        pytest.param("pixart", "", marks=pytest.mark.slow),
        ("pixart", ".blocks.0"),
        pytest.param("flux", "", marks=pytest.mark.slow),
        ("flux", ".double_blocks.0"),
        ("sd15", ".input_blocks.1.1.transformer_blocks.0"),
    ],
)
def test_compiled_models(name, key):
    """Traced unsteered first: forward hooks would be ignored from then on, without a word."""
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from tiny_hosts import TinyHost, build

    torch._dynamo.reset()
    tiny = TinyHost(name, build(name))
    a, b, run = tiny.maps(seed=1), tiny.maps(seed=2), {"steps": 2, "cfg": 1.0}
    makers = [
        lambda m: m,
        lambda m: steer(m, a),
        lambda m: m,
        lambda m: steer(m, b, 0.5),
        lambda m: steer(steer(m, a), b),
        lambda m: steer(m, a, end_percent=0.5),
        lambda m: steer(m, a, mask=torch.eye(16)),
        lambda m: m,
    ]
    expected = [tiny.sample(make(tiny.model), **run) for make in makers]
    compiled = tiny.model.clone()
    set_torch_compile_wrapper(compiled, backend="eager", keys=["diffusion_model" + key])
    for make, picture in zip(makers, expected):
        assert off(tiny.sample(make(compiled), **run), picture) < 1e-5
    assert tiny.traces() == []
    last = steer(tiny.model, a)
    set_torch_compile_wrapper(last, backend="eager", keys=["diffusion_model" + key])
    assert off(tiny.sample(last, **run), expected[1]) < 1e-5
    torch._dynamo.reset()
